"""Copies of a database beside its owner, what they refuse to write over, and the way back."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from foreman import backups, database_file
from foreman.backups import back_up, restore
from foreman.errors import NotCopied
from foreman.test.strategies import SteppedDatabase

NOW = datetime(2026, 11, 21, 15, 51, 38, tzinfo=UTC)
OLD = "foreman.db.20261121T155138Z.old"


def put(database: SteppedDatabase, *rows: str) -> None:
    """Write rows."""

    def insert(cursor: sqlite3.Cursor) -> None:
        cursor.executemany("INSERT INTO kept VALUES (?, x'00', 0)", [(row,) for row in rows])

    database.finish(database.write(insert, durable=False))


def keys(path: Path) -> list[str]:
    """The rows of a file that needs nothing beside it, and is sound."""
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [key for (key,) in connection.execute("SELECT key FROM kept ORDER BY key")]


def names(folder: Path) -> set[str]:
    """What is in a folder."""
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SteppedDatabase]:
    """A database in use, with a row."""
    opened = SteppedDatabase(tmp_path / "foreman.db")
    opened.finish(opened.open())
    put(opened, "first")
    yield opened
    opened.finish(opened.close())


@pytest.fixture
def live(database: SteppedDatabase) -> Path:
    """Its file."""
    return database._path


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A database that nobody uses, with a row."""
    return made(tmp_path / "foreman.db", "first")


def made(path: Path, *rows: str) -> Path:
    """A database as a stop leaves it."""
    database = SteppedDatabase(path)
    database.finish(database.open())
    put(database, *rows)
    database.finish(database.close())
    return path


# -- a copy ----------------------------------------------------------------------------------------------------------


def test_a_copy_is_one_private_file(
    database: SteppedDatabase, live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What foreman has just acknowledged is in the copy, which stands alone and which nobody else may read."""
    before, umask = names(tmp_path), os.umask(0)
    seen: list[int] = []
    fill = database_file._fill

    def look(source: sqlite3.Connection, part: Path, descriptor: int) -> None:
        seen.append(part.stat().st_mode & 0o777)
        fill(source, part, descriptor)

    monkeypatch.setattr(database_file, "_fill", look)
    monkeypatch.setattr(os, "fchmod", lambda descriptor, _mode: seen.append(os.fstat(descriptor).st_mode & 0o777))
    try:
        copy = back_up(live, tmp_path / "copy.db", NOW)
    finally:
        os.umask(umask)
    put(database, "later")
    assert keys(copy) == ["first"]
    assert [*seen, copy.stat().st_mode & 0o777] == [0o600] * 3
    assert names(tmp_path) == before | {"copy.db"}


def test_a_copy_ends_beside_a_writer(
    database: SteppedDatabase, live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often foreman writes while it is copied, the copy ends, and is of the moment at which it began."""
    put(database, *(f"a{number}" for number in range(50)))
    expected = ["first", *(f"a{number}" for number in range(50))]
    written: list[str] = []
    fsync = os.fsync

    def write_meanwhile(descriptor: int) -> None:
        assert len(written) < 500, "it begins anew each time"
        written.append(f"b{len(written)}")
        put(database, written[-1])
        fsync(descriptor)

    monkeypatch.setattr(database_file, "STEP", 1)
    monkeypatch.setattr(os, "fsync", write_meanwhile)
    copy = back_up(live, tmp_path / "copy.db", NOW)
    assert len(written) > 20
    assert keys(copy) == sorted(expected)


def test_a_folder_gets_a_copy_named_by_the_time(live: Path, tmp_path: Path) -> None:
    """Each run of a timer leaves another file, whose names sort by time; none is ever replaced."""
    folder = tmp_path / "copies"
    folder.mkdir()
    copy = back_up(live, folder, NOW)
    assert copy.name == "foreman-20261121T155138Z.db"
    with pytest.raises(NotCopied, match="exists"):
        back_up(live, folder, NOW)
    assert names(folder) == {copy.name}


def test_an_older_backup_is_replaced(database: SteppedDatabase, live: Path, tmp_path: Path) -> None:
    """The same name again holds the newer copy; through a link too, which stays a link."""
    copy = back_up(live, tmp_path / "copy.db", NOW)
    (tmp_path / "link").symlink_to(copy)
    put(database, "second")
    assert back_up(live, tmp_path / "link", NOW) == copy
    assert keys(copy) == ["first", "second"]
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", ["a b?c=d&e#f%41.db", os.fsdecode(b"\xff.db"), "ä:\n.db", "loop"])
def test_any_name_will_do(stopped: Path, tmp_path: Path, name: str) -> None:
    """Whatever is in the names of the database, its folder and the copy, they are those files and no others."""
    (folder := tmp_path / "a#b").mkdir()
    (folder / "loop").symlink_to("loop")
    copy = back_up(stopped, folder / name, NOW)
    assert copy == folder / name
    assert restore(copy, stopped, NOW) == tmp_path / OLD
    assert keys(back_up(copy, tmp_path / "copy.db", NOW)) == ["first"]
    assert names(folder) - {"loop"} == {name} - {"loop"}


def test_any_schema_is_copied(stopped: Path, tmp_path: Path) -> None:
    """A database of an older or a newer foreman is copied like one's own."""
    with closing(sqlite3.connect(stopped)) as connection:
        connection.execute("PRAGMA user_version = 99")
    copy = back_up(stopped, tmp_path / "copy.db", NOW)
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (99,)


def test_what_a_crash_has_left_is_taken_over(live: Path, tmp_path: Path) -> None:
    """Half a copy that a crash has left neither stops the next one nor outlives it."""
    (tmp_path / "copy.db.part").write_bytes(b"half a copy" * 100_000)
    (tmp_path / "copy.db.part").chmod(0o644)
    copy = back_up(live, tmp_path / "copy.db", NOW)
    assert keys(copy) == ["first"]
    assert copy.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "copy.db.part").exists()


# -- what is refused -------------------------------------------------------------------------------------------------


def text(path: Path) -> Path:
    """A diary."""
    path.write_text("my diary\n" * 1000)
    return path


def somebodys(path: Path) -> Path:
    """A database of another program's."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE moz_places (url TEXT)")
        connection.execute("PRAGMA user_version = 1")
    return path


def linked(path: Path) -> Path:
    """The live database under another name."""
    path.hardlink_to(path.with_name("foreman.db"))
    return path


def pointing(path: Path) -> Path:
    """A link to the live database."""
    path.symlink_to(path.with_name("foreman.db"))
    return path


def pipe(path: Path) -> Path:
    """No file at all."""
    os.mkfifo(path)
    return path


def in_use(path: Path) -> Path:
    """A database of foreman's, with a log."""
    made(path)
    path.with_name(path.name + "-wal").write_bytes(b"log")
    return path


def half_made(path: Path) -> Path:
    """What another process writes."""
    database_file._begin(path.with_name(path.name + ".part"))
    return path


def planted(path: Path) -> Path:
    """A name that leads elsewhere."""
    path.with_name(path.name + ".part").symlink_to(path.with_name("foreman.db"))
    return path


REFUSED: dict[str, Callable[[Path], Path]] = {
    "not a backup of foreman's .file is not a database": text,
    "not a backup of foreman's$": somebodys,
    "the database itself": linked,
    "that is the database itself$": pointing,
    "not a regular file": pipe,
    "goal-wal is there: that is, or was, a database in use": in_use,
    "goal.part is being written by another process": half_made,
    "goal.part: Too many levels of symbolic links": planted,
    "there is no folder .*/missing$": lambda path: path.with_name("missing") / path.name,
    "foreman.db-wal: that is the database itself$": lambda path: path.with_name("foreman.db-wal"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_nothing_but_an_older_backup_is_written_over(live: Path, tmp_path: Path, why: str) -> None:
    """A mistyped name costs nothing: one line says why, and every file is as it was."""
    goal = REFUSED[why](tmp_path / "goal")
    before = contents(tmp_path)
    with pytest.raises(NotCopied, match=why) as refusal:
        back_up(live, goal, NOW)
    assert "\n" not in str(refusal.value)
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, bytes]:
    """All files, but for the one in which SQLite's readers leave their marks."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".db-shm"}


def torn(path: Path) -> Path:
    """A database with a hole."""
    made(path, *(f"{number}" for number in range(300)))
    with path.open("r+b") as file:
        file.seek(4096 * 20)
        file.write(b"\xff" * 4096 * 8)
    return path


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (lambda path: path, "there is no file"),
        (text, "file is not a database"),
        (somebodys, "not a database of foreman's"),
        (torn, "it is damaged: "),
    ],
)
def test_only_a_sound_database_is_copied(tmp_path: Path, source: Callable[[Path], Path], why: str) -> None:
    """What is missing, not foreman's or damaged never takes the place of a good backup, nor of the database."""
    (tmp_path / "kept").mkdir()
    good = made(tmp_path / "kept" / "good.db", "good")
    good.with_name("good.db.lock").unlink()
    bad = source(tmp_path / "bad.db")
    with pytest.raises(NotCopied, match=f"^[^\n]*{why}[^\n]*$"):
        back_up(bad, good, NOW)
    with pytest.raises(NotCopied, match=f"^[^\n]*{why}[^\n]*$"):
        restore(bad, good, NOW)
    assert keys(good) == ["good"]
    assert names(good.parent) - {"good.db.lock"} == {"good.db"}


def test_a_disk_without_room_is_not_filled(live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that would fill the disk that foreman may write to is not begun; one that fills it leaves nothing."""
    room = SimpleNamespace(free=backups.ROOM)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _folder: room)
        with pytest.raises(NotCopied, match=r"needs 16 MiB, and .* has 16 MiB"):
            back_up(live, tmp_path / "copy.db", NOW)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotCopied, match=r"copy.db: No space left on device"):
        back_up(live, tmp_path / "copy.db", NOW)
    assert not {name for name in names(tmp_path) if "copy" in name}


# -- the way back ----------------------------------------------------------------------------------------------------


def test_a_restored_database_has_no_foreign_log(database: SteppedDatabase, live: Path, tmp_path: Path) -> None:
    """After a crash of foreman, the log beside the file goes with the old database and is not read into the new."""
    copy = back_up(live, tmp_path / "copy.db", NOW)
    put(database, "second")
    crashed = database.snapshot(tmp_path / "crashed")
    assert crashed.with_name("foreman.db-wal").stat().st_size > 0
    before = restore(copy, crashed, NOW)
    assert before == crashed.with_name(OLD)
    assert keys(crashed) == ["first"]
    assert keys(before) == ["first", "second"]
    assert names(crashed.parent) == {"foreman.db", "foreman.db.lock", OLD}
    assert crashed.stat().st_mode & 0o777 == 0o600


def test_a_running_foreman_keeps_its_database(live: Path, tmp_path: Path) -> None:
    """While foreman runs, nothing is restored under it; the line names its pid."""
    copy = back_up(live, tmp_path / "copy.db", NOW)
    before = names(tmp_path)
    with pytest.raises(NotCopied, match=f"in use by another foreman, pid {os.getpid()}; stop it first"):
        restore(copy, live, NOW)
    assert names(tmp_path) == before


def test_a_stranger_keeps_the_database(stopped: Path, tmp_path: Path) -> None:
    """While another program reads the database it is not taken from under it."""
    copy = back_up(stopped, tmp_path / "copy.db", NOW)
    with closing(sqlite3.connect(stopped, isolation_level=None)) as stranger:
        stranger.execute("BEGIN")
        stranger.execute("SELECT count(*) FROM kept").fetchone()
        connect = sqlite3.connect
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sqlite3, "connect", lambda *given, **more: connect(*given, **{**more, "timeout": 0}))
            with pytest.raises(NotCopied, match="database is locked"):
                restore(copy, stopped, NOW)
    assert keys(stopped) == ["first"]
    assert not (tmp_path / OLD).exists()


@pytest.mark.parametrize("header", [b"not a database", b"SQLite format 3\0\x10\0\1\1", b"SQLite format 3\0\x10\0\2\2"])
@pytest.mark.parametrize("log", [b"", b"log", None])
def test_a_damaged_database_makes_way(
    database: SteppedDatabase, live: Path, tmp_path: Path, header: bytes, log: bytes | None
) -> None:
    """A database that nobody can read is kept for whoever can; the backup takes its place, and has no foreign log."""
    copy = back_up(live, tmp_path / "copy.db", NOW)
    put(database, "second")
    crashed = database.snapshot(tmp_path / "crashed")
    with crashed.open("r+b") as file:
        file.write(header.ljust(4096, b"\xff"))
    if log is not None:
        crashed.with_name("foreman.db-wal").write_bytes(log)
    before = restore(copy, crashed, NOW)
    assert before is not None
    assert before.exists()
    assert keys(crashed) == ["first"]
    assert names(crashed.parent) - {f"{OLD}-wal", f"{OLD}-shm"} == {"foreman.db", "foreman.db.lock", OLD}


def test_a_lost_database(stopped: Path, tmp_path: Path) -> None:
    """Where there is none any more the backup becomes it; a log left without its database has to go first."""
    copy = back_up(stopped, tmp_path / "copy.db", NOW)
    stopped.unlink()
    log = tmp_path / "foreman.db-wal"
    log.write_bytes(b"log")
    with pytest.raises(NotCopied, match=r"foreman.db-wal is there without its database: move it away"):
        restore(copy, stopped, NOW)
    assert not stopped.exists()
    log.unlink()
    assert restore(copy, stopped, NOW) is None
    assert keys(stopped) == ["first"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_only_a_file_makes_way(stopped: Path, tmp_path: Path, make: Callable[[Path], None]) -> None:
    """What is named as the database by mistake, a device or a folder, stays where it is, and gets nothing beside it."""
    copy = back_up(stopped, tmp_path / "copy.db", NOW)
    make(thing := tmp_path / "thing")
    before = names(tmp_path)
    with pytest.raises(NotCopied, match=r"thing is not a regular file$"):
        restore(copy, thing, NOW)
    assert names(tmp_path) == before
    assert not thing.is_file()


def test_a_database_is_not_restored_from_itself(stopped: Path, tmp_path: Path) -> None:
    """Naming the database as the backup is told for the mistake it is."""
    (tmp_path / "link").symlink_to(stopped)
    for name in (stopped, tmp_path / "link"):
        with pytest.raises(NotCopied, match="the same file"):
            restore(name, stopped, NOW)
    assert keys(stopped) == ["first"]


# -- traps: root restores into a folder of foreman's user --------------------------------------------------------------


def test_a_lock_that_is_a_link_is_not_followed(stopped: Path, tmp_path: Path) -> None:
    """Whoever owns the folder cannot have root empty another file, or give it away, by a link in the lock's place."""
    copy = back_up(stopped, tmp_path / "copy.db", NOW)
    (precious := tmp_path / "shadow").write_text("precious")
    (lock := tmp_path / "foreman.db.lock").unlink(missing_ok=True)
    lock.symlink_to(precious)
    with pytest.raises(NotCopied, match=r"foreman\.db\.lock: .* \(it is a link: remove it\)$"):
        restore(copy, stopped, NOW)
    assert precious.read_text() == "precious"
    assert keys(stopped) == ["first"]


def test_a_link_of_somebody_elses_is_not_restored_through(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that is your own link, or root's, is restored where it leads; anybody else's link leads nowhere."""
    copy = back_up(stopped, tmp_path / "copy.db", NOW)
    (elsewhere := tmp_path / "profile.d").mkdir()
    (link := tmp_path / "link.db").symlink_to(elsewhere / "x.sh")
    lstat = Path.lstat
    monkeypatch.setattr(Path, "lstat", lambda path: SimpleNamespace(st_mode=lstat(path).st_mode, st_uid=10001))
    with pytest.raises(NotCopied, match=r"link\.db is a link of user 10001: name the file itself$"):
        restore(copy, link, NOW)
    assert names(elsewhere) == set()
    monkeypatch.undo()
    assert restore(copy, link, NOW) is None
    assert keys(elsewhere / "x.sh") == ["first"]


def test_nothing_is_given_away_through_a_link(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is swapped for a link just before root gives it away leaves what the link leads to as it is."""
    given: list[bool] = []
    monkeypatch.setattr(os, "chown", lambda *_, follow_symlinks=True: given.append(follow_symlinks))
    monkeypatch.setattr(os, "fchown", lambda *_: None)
    euids = iter([os.geteuid() + 1])
    monkeypatch.setattr(os, "geteuid", lambda: next(euids, 0))  # not the owner at first, then root
    restore(back_up(stopped, tmp_path / "copy.db", NOW), stopped, NOW)
    assert given
    assert not any(given)


def test_a_copy_is_not_written_through_a_link(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another database, to which the half copy's name is led at the worst moment, is not written over."""
    precious = back_up(stopped, tmp_path / "precious.db", NOW)
    before, connect = precious.read_bytes(), sqlite3.connect

    def trapped(name: str, **options: Any) -> sqlite3.Connection:
        if name.endswith("copy.db.part?mode=rw&nolock=1"):
            (part := tmp_path / "copy.db.part").unlink()
            part.symlink_to(precious)
        made: sqlite3.Connection = connect(name, **options)
        return made

    with closing(sqlite3.connect(stopped)) as connection:
        connection.execute("INSERT INTO kept VALUES ('second', x'00', 0)")
        connection.commit()
    monkeypatch.setattr(sqlite3, "connect", trapped)
    with pytest.raises(NotCopied, match=r"copy\.db\.part was replaced by somebody meanwhile$"):
        back_up(stopped, tmp_path / "copy.db", NOW)
    assert precious.read_bytes() == before
    assert not (tmp_path / "copy.db").exists()


class Copies(RuleBasedStateMachine):
    """Rows come, copies are made, foreman stops, crashes and comes back, copies are restored, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = TemporaryDirectory()
        self._path = Path(self._folder.name) / "foreman.db"
        self._database = SteppedDatabase(self._path)
        self._database.finish(self._database.open())
        self._open, self._rows, self._count = True, set[str](), 0
        self._copies: dict[str, set[str]] = {}

    @precondition(lambda self: self._open)
    @rule(number=st.integers(1, 3))
    def write(self, number: int) -> None:
        """Store some."""
        for _ in range(number):
            self._count += 1
            put(self._database, f"{self._count:04}")
            self._rows.add(f"{self._count:04}")

    @rule(name=st.sampled_from("ab"))
    def copy(self, name: str) -> None:
        """Make a copy, or replace one."""
        back_up(self._path, self._path.with_name(name), NOW)
        self._copies[name] = {*self._rows}

    @precondition(lambda self: self._open)
    @rule(crash=st.booleans())
    def stop(self, crash: bool) -> None:
        """Stop, or die and leave the log."""
        if crash:
            files = [(path, path.read_bytes()) for path in self._path.parent.glob("foreman.db*")]
            self._database.drop()
            for path, content in files:
                path.write_bytes(content)
        else:
            self._database.finish(self._database.close())
        self._open = False

    @precondition(lambda self: not self._open)
    @rule()
    def start(self) -> None:
        """Come back."""
        self._database.finish(self._database.open())
        self._open = True

    @precondition(lambda self: self._copies)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        """Go back to a copy; not while foreman runs."""
        name = data.draw(st.sampled_from(sorted(self._copies)))
        if self._open:
            with pytest.raises(NotCopied, match="stop it first"):
                restore(self._path.with_name(name), self._path, NOW)
            return
        before = restore(self._path.with_name(name), self._path, NOW)
        assert before is not None
        assert keys(before) == sorted(self._rows)
        before.unlink()
        self._rows = {*self._copies[name]}

    @invariant()
    def whole(self) -> None:
        """Everything is where it was said to be, and nothing else is there."""
        for name, rows in self._copies.items():
            assert keys(self._path.with_name(name)) == sorted(rows)
        if self._open:
            found = self._database.finish(
                self._database.read(lambda cursor: {key for (key,) in cursor.execute("SELECT key FROM kept")})
            )
            assert found == self._rows
        ours = {"foreman.db", "foreman.db-wal", "foreman.db-shm", "foreman.db.lock"}
        assert names(self._path.parent) - ours == {*self._copies}

    def teardown(self) -> None:
        """Remove it all."""
        if self._open:
            self._database.finish(self._database.close())
        self._folder.cleanup()


TestCopies = Copies.TestCase
TestCopies.settings = settings(max_examples=40, stateful_step_count=20)
