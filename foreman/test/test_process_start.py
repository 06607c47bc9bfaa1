"""The real process comes up: where it listens, and what keeps it from starting, in one line."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater
from twisted.logger import LogEvent

from foreman.config import Configuration
from foreman.database_file import LOGS, companion
from foreman.service import Foreman
from foreman.test.harness import Daemon, ask, chat, daemon, eventually, fake_ollama, reactor

NOBODY = "http://127.0.0.1:9"  # the discard port: no target is needed to refuse a start


async def refusal(foreman: Daemon, status: int = 1) -> str:
    """The one line with which a start ends, and with that status."""
    foreman.start()
    assert await foreman.exit_status() == status
    assert "stop" not in foreman.output  # nothing ran
    said = foreman.lines("warn", "error", "critical") + foreman.errors.splitlines()
    assert len(said) == 1, said
    assert "Traceback" not in said[0]
    return said[0]


@pytest_twisted.ensureDeferred
async def test_a_second_foreman_on_the_same_file_says_who_has_it(tmp_path: Path) -> None:
    """The second start ends with one line that names the holder's pid, and the first goes on undisturbed."""
    async with fake_ollama() as fake, daemon(tmp_path, fake.url) as first:
        folder = tmp_path / "second"
        folder.mkdir()
        async with daemon(folder, fake.url, {"DB": str(first.database)}, start=False) as second:
            line = await refusal(second)
            assert f"pid {first.pid}" in line
        client = await ask(first.url, "POST", "/api/chat", chat("tiny-a"))
        assert client.head is not None
        assert client.head[0] == 200


@pytest_twisted.ensureDeferred
async def test_a_busy_port_ends_the_start(tmp_path: Path) -> None:
    """Status 1 and one line that names the setting and the address; nothing goes on running without a listener."""
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        async with daemon(tmp_path, NOBODY, {"ADDR": f"127.0.0.1:{port}"}, start=False) as foreman:
            line = await refusal(foreman)
            assert f"FOREMAN_ADDR is '127.0.0.1:{port}': " in line
            assert "Address already in use" in line
            assert not foreman.database.with_name("foreman.db-wal").exists()


@pytest_twisted.ensureDeferred
async def test_an_endpoints_impossible_port_ends_the_start(tmp_path: Path) -> None:
    """A port that no machine has, which Twisted's words for an address let pass, is one line too, and no traceback."""
    async with daemon(tmp_path, NOBODY, {"ADDR": "tcp:99999"}, start=False) as foreman:
        line = await refusal(foreman)
        assert "FOREMAN_ADDR is 'tcp:99999': " in line
        assert "port must be 0-65535" in line


class SlowToStop:
    """The reactor, but a stop that is asked for does not come, nor the end of the process.

    :ivar status: with which the process was to end.
    """

    status: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)

    def addSystemEventTrigger(self, phase: str, event: str, what: Any, *more: Any) -> object:  # noqa: N802 - the interface's
        """Take note of the end."""
        if what is not os._exit:
            return reactor.addSystemEventTrigger(phase, event, what, *more)
        [self.status] = more
        return None

    def stop(self) -> None:
        """Do not."""


@pytest_twisted.ensureDeferred
async def test_a_start_that_failed_has_the_last_word(tmp_path: Path, logged_errors: list[LogEvent]) -> None:
    """However long the stop takes, no word about the target follows the line that says why the start ended."""
    slow = SlowToStop()
    settings = {"FOREMAN_OLLAMA_URL": NOBODY, "FOREMAN_ADDR": "tcp:99999", "FOREMAN_DB": str(tmp_path / "foreman.db")}
    foreman = Foreman(Configuration.from_environment(settings), slow)
    foreman.startService()
    await eventually(lambda: slow.status == 1)
    await deferLater(reactor, 1.0)  # only time shows that nothing happens
    assert foreman._inventory.last_error is None
    await foreman.stopService()
    assert len(logged_errors) == 1
    logged_errors.clear()


@pytest_twisted.ensureDeferred
async def test_a_bad_setting_ends_the_start(tmp_path: Path) -> None:
    """Status 1 and one line on stderr that names the variable."""
    async with daemon(tmp_path, NOBODY, {"POLL_INTERVAL": "soon"}, start=False) as foreman:
        assert "FOREMAN_POLL_INTERVAL is 'soon'" in await refusal(foreman)
        assert foreman.output == ""
        foreman.process = None  # its stderr has been looked at


@pytest_twisted.ensureDeferred
async def test_a_newer_database_ends_the_start(tmp_path: Path) -> None:
    """A file of a newer foreman is left as it is, to the byte; one line says which schema it has."""
    with closing(sqlite3.connect(tmp_path / "foreman.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = (tmp_path / "foreman.db").read_bytes()
    async with daemon(tmp_path, NOBODY, start=False) as foreman:
        assert "schema 99" in await refusal(foreman)
    assert (tmp_path / "foreman.db").read_bytes() == before
    assert not [ending for ending in LOGS if companion(tmp_path / "foreman.db", ending).is_file()]


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_no_database_ends_the_start(tmp_path: Path) -> None:
    """A mistyped FOREMAN_DB does not cost the file it names."""
    (tmp_path / "foreman.db").write_text("my diary\n" * 1000)
    async with daemon(tmp_path, NOBODY, start=False) as foreman:
        assert "not a database" in await refusal(foreman, os.EX_IOERR)
    assert (tmp_path / "foreman.db").read_text() == "my diary\n" * 1000


def _without_privilege() -> None:
    """Let the file's mode bind root too: drop CAP_DAC_OVERRIDE for the program that is executed next (Linux)."""
    if sys.platform == "linux" and os.geteuid() == 0:
        ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP


def _no_folder(folder: Path) -> Path:
    return folder / "missing" / "foreman.db"


def _folder_read_only(folder: Path) -> Path:
    (folder / "shut").mkdir()
    (folder / "shut").chmod(0o555)
    return folder / "shut" / "foreman.db"


def _file_read_only(folder: Path) -> Path:
    path = folder / "ours.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE something (x)")
    path.chmod(0o444)
    return path


@pytest.mark.skipif(sys.platform != "linux" and os.geteuid() == 0, reason="modes do not bind root")
@pytest.mark.parametrize("place", [_no_folder, _folder_read_only, _file_read_only])
@pytest_twisted.ensureDeferred
async def test_a_database_that_cannot_be_written_ends_the_start(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    """One line that names the file, and a status of its own: what starts foreman again may try until it can be."""
    database = place(tmp_path)
    async with daemon(tmp_path, NOBODY, {"DB": str(database)}, start=False) as foreman:
        foreman.before_exec = _without_privilege
        assert str(database) in await refusal(foreman, os.EX_IOERR)


@pytest_twisted.ensureDeferred
async def test_a_unix_socket_is_an_address(tmp_path: Path, socket_file: Path) -> None:
    """`FOREMAN_ADDR=unix:…`: a chat through the socket works, and a restart over a stale socket too."""
    async with fake_ollama() as fake, daemon(tmp_path, fake.url, {"ADDR": f"unix:{socket_file}"}) as foreman:
        for _ in range(2):
            client = await ask(foreman.url, "POST", "/api/chat", chat("tiny-a"))
            assert client.head is not None
            assert client.head[0] == 200
            await foreman.end(signal.SIGKILL)
            foreman.start()
            await foreman.ready()
        assert f"listens on {socket_file}\n" in foreman.output
        assert await foreman.end(signal.SIGTERM) == 0
        assert not socket_file.exists()  # noqa: ASYNC240


@pytest_twisted.ensureDeferred
async def test_port_0_and_every_interface(tmp_path: Path) -> None:
    """`:0` listens on every IPv4 address at a port of the system's choice, and warns as no token is set."""
    async with fake_ollama() as fake, daemon(tmp_path, fake.url, {"ADDR": ":0"}) as foreman:
        assert (await ask(foreman.url, "GET", "/readyz")).document == {"ready": True}
        [warning] = foreman.lines("warn")
        assert "FOREMAN_TOKEN" in warning


@pytest_twisted.ensureDeferred
async def test_a_stop_in_the_middle_of_the_start(tmp_path: Path) -> None:
    """SIGTERM at any moment of the start ends the process at once, without a word of complaint."""
    async with fake_ollama() as fake, daemon(tmp_path, fake.url, start=False) as foreman:
        for delay in (0.1, 0.18, 0.24, 0.3, 0.36, 0.5):
            foreman.start()
            await deferLater(reactor, delay)
            assert await foreman.end(signal.SIGTERM) in (0, -signal.SIGTERM)
            assert foreman.lines("warn", "error", "critical") == []
            assert foreman.errors == ""
        foreman.start()
        await foreman.ready()


@pytest.mark.parametrize(
    ("target", "why"),
    [
        (NOBODY, "refused"),
        ("http://nosuchhost.invalid", "nosuchhost.invalid"),
        ("another foreman", "/api/version was answered with status 401: is that an Ollama?"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_target_that_was_never_there_is_told_with_its_reason(target: str, why: str, tmp_path: Path) -> None:
    """A wrong FOREMAN_OLLAMA_URL: the log says that the target is down and why, and so does `/healthz`."""
    (tmp_path / "other").mkdir()
    async with (
        daemon(tmp_path / "other", NOBODY, {"TOKEN": "x"}) as other,
        daemon(tmp_path, other.url if target == "another foreman" else target) as foreman,
    ):
        await eventually(lambda: foreman.lines("warn"))
        [line] = foreman.lines("warn")
        assert "The target is down: " in line
        assert why in line
        assert why in (await ask(foreman.url, "GET", "/healthz")).document["target"]["last_error"]
