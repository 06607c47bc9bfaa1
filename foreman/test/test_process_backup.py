"""Backups of the real process: beside load, after a kill, by another user, and back again."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sqlite3
import stat
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from foreman import backups
from foreman.errors import NotCopied
from foreman.ollama.fake import FakeModel
from foreman.test.harness import Child, Daemon, ask, chat, daemon, eventually, fake_ollama, reactor
from foreman.test.test_process_start import NOBODY, _without_privilege

SLOW = FakeModel(name="slow", words=(" one", " two"), token_rate=0.001)


async def typed(
    folder: Path, *words: str | Path, fails: bool = False, before_exec: Callable[[], None] | None = None
) -> str:
    """What `foreman …` prints, or, if it is to fail, its one line."""
    child = begun(folder, *words, before_exec=before_exec)
    status = await child.exit_status(within=60)
    assert (status, child.output if fails else child.errors) == (1 if fails else 0, "")
    said = child.errors if fails else child.output
    assert said.count("\n") <= 1
    return said.strip()


def begun(folder: Path, *words: str | Path, before_exec: Callable[[], None] | None = None) -> Child:
    """A `foreman …` that runs."""
    command = [sys.executable, "-m", "foreman.command", *map(str, words)]
    child = Child(folder, "typed", command, {"HOME": str(folder)}, before_exec)
    child.start()
    return child


def ids(path: Path) -> set[str]:
    """The jobs of a copy, which is sound."""
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return {job for (job,) in connection.execute("SELECT id FROM jobs")}


def mode(path: Path) -> int:
    """Who may do what with a file."""
    return stat.S_IMODE(path.stat().st_mode)


def size_of(path: Path) -> int:
    """How long a file is; -1 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


async def submitted(foreman: Daemon, model: str = "tiny-a", **more: Any) -> str:
    """The id of a job that foreman has acknowledged."""
    client = await ask(foreman.url, "POST", "/jobs", chat(model, **more))
    assert client.head is not None
    assert client.head[0] == 202, client.body
    return str(client.document["job_id"])


async def state(foreman: Daemon, job: str) -> str:
    """How a job is, or the status of the refusal."""
    client = await ask(foreman.url, "GET", f"/jobs/{job}")
    assert client.head is not None
    return str(client.document["state"]) if client.head[0] == 200 else str(client.head[0])


async def all_done(foreman: Daemon, jobs: set[str]) -> None:
    """Wait until they are."""
    await eventually(lambda: {row["id"] for row in foreman.rows() if row["state"] == "done"} >= jobs, within=30)


# -- beside a daemon that works ----------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_backup_under_load(tmp_path: Path) -> None:
    """While foreman accepts job after job, each backup ends, is sound, and has all that was acknowledged before it."""
    async with fake_ollama(models=(SLOW,)) as fake, daemon(tmp_path, fake.url) as foreman:
        accepted: list[str] = []
        working = True

        async def accept() -> None:
            while working:
                accepted.append(await submitted(foreman, "slow", text="x" * 30_000))

        callers = [Deferred.fromCoroutine(accept()) for _ in range(4)]
        await eventually(lambda: len(accepted) > 100, within=60)
        for number in range(4):
            acknowledged = set(accepted)
            copy = Path(await typed(tmp_path, "backup", f"copy{number}.db"))
            assert ids(copy) >= acknowledged
            assert len(accepted) > len(acknowledged) + 3
            assert mode(copy) == 0o600
        working = False
        for caller in callers:
            await caller
        assert ids(Path(await typed(tmp_path, "backup", "copy0.db"))) == set(accepted)
        assert foreman.database.with_name("foreman.db-wal").stat().st_size < 64 << 20
        assert foreman.lines("warn", "error", "critical") == []


@pytest_twisted.ensureDeferred
async def test_a_backup_is_killed(tmp_path: Path) -> None:
    """`kill -9` at any moment: the older copy is there, or the newer, and the next run leaves nothing but a copy."""
    async with fake_ollama(models=(SLOW,)) as fake, daemon(tmp_path, fake.url) as foreman:
        first = {await submitted(foreman, "slow", text="x" * 1_000_000) for _ in range(20)}
        folder = tmp_path / "copies"
        folder.mkdir()
        goal, part = folder / "copy.db", folder / "copy.db.part"
        await typed(tmp_path, "backup", goal)
        both = first | {await submitted(foreman, "slow")}
        for size in (0, 1, 1_000_000, 5_000_000, 10_000_000, 20_000_000):
            child = begun(tmp_path, "backup", goal)
            begun_or_over = partial(lambda child, size: child.ended or size_of(part) >= size, child, size)
            await eventually(begun_or_over, within=60)
            await child.end(signal.SIGKILL)
            assert ids(goal) in (first, both)
            assert {path.name for path in folder.iterdir()} <= {"copy.db", "copy.db.part"}
        await typed(tmp_path, "backup", goal)
        assert ids(goal) == both
        assert {path.name for path in folder.iterdir()} == {"copy.db"}
        assert await state(foreman, next(iter(both))) in ("queued", "loading", "working")


# -- the way back ------------------------------------------------------------------------------------------------------


class Hook(Resource):
    """A receiver of webhooks."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ids: list[str] = []

    def render_POST(self, request: Request) -> bytes:  # noqa: N802
        """Take note of the id."""
        self.ids.append(request.getHeader("webhook-id") or "")
        return b""


@pytest_twisted.ensureDeferred
async def test_what_a_restore_does_to_work(tmp_path: Path) -> None:
    """What the copy holds runs, again if it has run since, with the same webhook-ids; what came later is forgotten."""
    hook = Hook()
    port = reactor.listenTCP(0, Site(hook), interface="127.0.0.1")
    url = f"http://127.0.0.1:{port.getHost().port}/"
    key = {"Idempotency-Key": "order-7"}
    try:
        async with fake_ollama() as fake, daemon(tmp_path, fake.url) as foreman:
            done = await submitted(foreman)
            await all_done(foreman, {done})
            await ask(foreman.url, "POST", "/queue/pause", {"for": "1h"})
            waiting = {await submitted(foreman, state_webhook_url=url), await submitted(foreman, "tiny-b")}
            copy = Path(await typed(tmp_path, "backup", "."))
            assert ids(copy) == {done} | waiting

            await ask(foreman.url, "POST", "/queue/resume")
            late = (await ask(foreman.url, "POST", "/jobs", chat("tiny-a"), key)).document["job_id"]
            await all_done(foreman, waiting | {late})
            await eventually(lambda: len(hook.ids) == 4)
            told = [*hook.ids]

            line = await typed(tmp_path, "restore", copy, fails=True)
            assert line.endswith(f"in use by another foreman, pid {foreman.pid}; stop it first")
            assert await foreman.end() == 0
            before = Path(await typed(tmp_path, "restore", copy))
            assert ids(before) == {done, late} | waiting
            foreman.start()
            await foreman.ready()

            assert [await state(foreman, job) for job in (done, late)] == ["done", "404"]
            assert (await ask(foreman.url, "GET", "/queue")).document["paused"]
            await ask(foreman.url, "POST", "/queue/resume")
            await all_done(foreman, waiting)
            await eventually(lambda: len(hook.ids) > len(told) and hook.ids[-1].endswith("-4"))
            assert set(hook.ids) == set(told)
            again = await ask(foreman.url, "POST", "/jobs", chat("tiny-a"), key)
            assert again.head is not None
            assert again.head[0] == 202
            assert again.document["job_id"] != late
    finally:
        await port.stopListening()


# -- other users -------------------------------------------------------------------------------------------------------


DAEMON = 10001
"""A user of a container, who needs no name."""


def _no_giving() -> None:
    """Take from root, in what is executed next, the right to give files away, as containers do."""
    ctypes.CDLL(None).prctl(24, 0, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_CHOWN


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A folder of the daemon's user with a database, in one that is closed to that user, as systemd has it."""
    closed = Path(tempfile.mkdtemp())
    (folder := closed / "foreman").mkdir()
    with closing(sqlite3.connect(folder / "foreman.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE jobs AS SELECT zeroblob(20000000)")
        connection.execute("PRAGMA user_version = 1")
    for path in (folder, *folder.iterdir()):
        path.chmod(0o777)  # for whoever dares
        os.chown(path, DAEMON, DAEMON)
    yield folder
    shutil.rmtree(closed)


def owners(folder: Path) -> dict[str, int]:
    """Whose each file is."""
    return {entry.name: entry.stat().st_uid for entry in os.scandir(folder)}


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be others")


@as_root
@pytest_twisted.ensureDeferred
async def test_root_leaves_nothing_of_its_own(theirs: Path, tmp_path: Path) -> None:
    """A backup by root makes no file that foreman, as its own user, could not open; nor does a restore."""
    copy, database = tmp_path / "copy.db", theirs / "foreman.db"
    seen: dict[str, int] = {}
    while "foreman.db-shm" not in seen:  # what SQLite makes for the while, and a kill would leave
        child = begun(tmp_path, "backup", copy, "--db", database)
        await eventually(partial(lambda child: seen.update(owners(theirs)) or child.ended, child))
        assert await child.exit_status() == 0
    assert set(seen.values()) == {DAEMON}
    assert owners(tmp_path)["copy.db"] == 0
    assert set(owners(theirs).values()) == {DAEMON}

    await typed(tmp_path, "restore", copy, "--db", database)
    assert {name.rpartition(".")[2] for name in owners(theirs)} == {"db", "lock", "old"}  # and no log
    assert set(owners(theirs).values()) == {DAEMON}
    database.unlink()
    await typed(tmp_path, "restore", copy, "--db", database)
    assert set(owners(theirs).values()) == {DAEMON}


@as_root
@pytest.mark.parametrize("command", ["backup", "restore"])
@pytest_twisted.ensureDeferred
async def test_nobody_else_touches_the_database(theirs: Path, tmp_path: Path, command: str) -> None:
    """Whoever cannot give a file away, a container's root for one, is told whom to be, and leaves nothing there."""
    database = theirs / "foreman.db"
    await typed(tmp_path, "backup", "copy.db", "--db", database)
    before = owners(theirs)
    line = await typed(tmp_path, command, "copy.db", "--db", database, fails=True, before_exec=_no_giving)
    assert line.endswith(f"foreman.db belongs to user {DAEMON}: run this as that user, or as root")
    assert owners(theirs) == before


def lay_trap(database: Path, named: Path) -> None:
    """Put a journal beside a database, after whose playback SQLite deletes the file that is named in it.

    By SQLite's file format: a header with the size of the database and no page, then the name of a super-journal.
    """
    page, name, magic = 4096, os.fsencode(named), bytes.fromhex("d9d505f920a163d7")
    header = magic + struct.pack(">IIIII", 0, 0, database.stat().st_size // page, 512, page)
    last = struct.pack(f">I{len(name)}sII", (1 << 30) // page + 1, name, len(name), sum(name)) + magic
    trap = database.with_name("trap")
    trap.write_bytes(header.ljust(512, b"\0") + last)
    trap.rename(database.with_name(f"{database.name}-journal"))


@as_root
@pytest_twisted.ensureDeferred
async def test_root_plays_no_journal_back(theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns the database cannot have root delete another file, by what lies beside it or is just put there."""
    (precious := tmp_path / "shadow").write_text("precious")
    database, copy, journal = theirs / "foreman.db", tmp_path / "copy.db", theirs / "foreman.db-journal"
    await typed(tmp_path, "backup", copy, "--db", database)
    lay_trap(database, precious)
    for command in ("backup", "restore"):
        line = await typed(tmp_path, command, copy, "--db", database, fails=True)
        assert line.endswith(f"{journal} is there, which root does not touch: start foreman, or move it away")
    journal.unlink()

    connect = sqlite3.connect

    def trapped(name: str, **options: Any) -> sqlite3.Connection:
        made: sqlite3.Connection = connect(name, **options)
        lay_trap(database, precious)
        return made

    monkeypatch.setattr(sqlite3, "connect", trapped)
    with pytest.raises(NotCopied):
        backups.back_up(database, copy, datetime.now(UTC))
    monkeypatch.undo()
    assert journal.exists()
    journal.unlink()

    look = backups._is_of_others

    def too_early(path: Path) -> bool:
        found = look(path)
        if path == database:
            lay_trap(database, precious)
        return found

    monkeypatch.setattr(backups, "_is_of_others", too_early)
    with pytest.raises(NotCopied):
        backups.restore(copy, database, datetime.now(UTC))
    monkeypatch.undo()
    assert journal.exists()
    assert precious.read_text() == "precious"
    with closing(sqlite3.connect(database)) as connection:  # what it would have done
        connection.execute("SELECT * FROM sqlite_schema").fetchall()
    assert not precious.exists()


@as_root
@pytest_twisted.ensureDeferred
async def test_root_plays_no_journal_back_of_a_copy_in_tmp(theirs: Path, tmp_path: Path) -> None:
    """Root's own copy, in a folder where everybody may write, is no way to have root delete another file, either."""
    (precious := tmp_path / "shadow").write_text("precious")
    (folder := tmp_path / "tmp").mkdir()
    folder.chmod(0o1777)
    copy = folder / "copy.db"
    await typed(tmp_path, "backup", copy, "--db", theirs / "foreman.db")
    lay_trap(copy, precious)
    assert "root does not touch" in await typed(tmp_path, "restore", copy, "--db", theirs / "foreman.db", fails=True)
    assert precious.exists()


@pytest.mark.parametrize("path", ["", " "])
@pytest_twisted.ensureDeferred
async def test_a_backup_to_nowhere(tmp_path: Path, path: str) -> None:
    """A variable that is not set, in a timer's line, leaves no copy wherever the timer happens to stand."""
    async with daemon(tmp_path, "http://127.0.0.1:9"):
        assert "PATH is empty" in await typed(tmp_path, "backup", path, fails=True)


@pytest.mark.parametrize("ending", ["/", "/."])
@pytest_twisted.ensureDeferred
async def test_a_folder_that_is_not_there(tmp_path: Path, ending: str) -> None:
    """Where a slash says that a folder is meant there comes no file of its name, but a line that says what to do."""
    async with daemon(tmp_path, "http://127.0.0.1:9") as foreman:
        place = f"{tmp_path}/my copies{ending}"
        line = await typed(tmp_path, "backup", place, fails=True)
        assert line == f"Error: there is no folder {place}: make it, as by install -d -m 0700 '{place}'"
        folder = tmp_path / "my copies"
        folder.mkdir()  # nothing of its name was made
        copy = Path(await typed(tmp_path, "backup", place))
        assert copy.parent == folder
        assert ids(copy) == {row["id"] for row in foreman.rows()}


@pytest_twisted.ensureDeferred
async def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """One line says which; and a settings file that cannot be used has no part in it."""
    (tmp_path / ".config" / "foreman").mkdir(parents=True)
    (tmp_path / ".config" / "foreman" / "config.toml").write_text("no settings")
    async with daemon(tmp_path, NOBODY) as foreman:
        (tmp_path / "shut").mkdir()
        (tmp_path / "shut").chmod(0o555)
        line = await typed(tmp_path, "backup", "shut", fails=True, before_exec=_without_privilege)
        assert line.endswith("shut/foreman.part: Permission denied")
        assert ids(Path(await typed(tmp_path, "backup", "copy.db", "--db", foreman.database))) == set()
