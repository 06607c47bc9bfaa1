"""deploy/systemd: what systemd says of the units, and the real daemon started as they start it.

The tests stand in for systemd where it is the service manager: they hold the listening socket and hand it over, and
give the daemon the unit's own command and environment.
"""

# mypy: disallow-untyped-decorators=False
# pytest-twisted's.
from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_twisted
from attrs import frozen
from conftest import ROOT, Run

from foreman.config import SETTINGS, Configuration
from foreman.kinds import BACKLOG
from foreman.test.harness import ask, chat, eventually, fake_ollama, send
from foreman.web.site import BODIES_AT_ONCE

UNITS = ROOT / "deploy" / "systemd"
SERVICE, SOCKET, SETTINGS_FILE = (UNITS / f"foreman.{ending}" for ending in ("service", "socket", "env"))
PAGE = ROOT / "docs" / "deploy" / "systemd.md"
EXPOSURE = 13
"""Tenths; what is left is mostly that foreman talks to the network."""

TWISTD = str(Path(sys.executable).with_name("twistd"))
TOKEN = "a-token-for-the-test"
HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="foreman.socket")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""What systemd does between fork and exec: the socket becomes descriptor 3, and the environment says for whom it is."""

BEARER = {"Authorization": f"Bearer {TOKEN}"}


# -- reading -----------------------------------------------------------------------------------------------------------


def directives(unit: Path) -> list[tuple[str, str]]:
    """A unit's names and values, in order."""
    lines = (line.strip() for line in unit.read_text().splitlines())
    return [
        (name, value) for name, equals, value in (line.partition("=") for line in lines if line[:1] != "#") if equals
    ]


def value(unit: Path, name: str) -> str:
    """The value of a directive that is there once."""
    (found,) = [each for other, each in directives(unit) if other == name]
    return found


def variables(text: str) -> dict[str, str]:
    """The variables that an environment file sets."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: each for name, _, each in (line.partition("=") for line in lines)}


# -- the daemon, as the unit has it ------------------------------------------------------------------------------------


@frozen
class Manager:
    """As much of systemd as starts the service: specifiers, credential, environment, and the socket it holds.

    :ivar settings: what is in the environment file.
    """

    folder: Path
    listening: socket.socket
    settings: Mapping[str, str]

    def environment(self) -> dict[str, str]:
        """What the service's environment is."""
        state, credentials = self.folder / "state", self.folder / "credentials"
        (state / "foreman").mkdir(parents=True, exist_ok=True)
        credentials.mkdir(exist_ok=True)
        name, _, source = value(SERVICE, "LoadCredential").partition(":")
        assert source == "/etc/%N/token"
        (credentials / name).write_text(f"{TOKEN}\n")
        specifiers = {"S": str(state), "d": str(credentials), "N": "foreman"}
        given: dict[str, str] = {}
        for name, line in directives(SERVICE):
            if name == "Environment":
                given |= variables(re.sub(r"%(.)", lambda found: specifiers[found[1]], line))
        return {"PATH": "/usr/bin:/bin", **given, **self.settings}

    def start(self) -> subprocess.Popen[bytes]:
        """Start the service, with the socket as its descriptor 3."""
        program, *arguments = shlex.split(value(SERVICE, "ExecStart"))
        assert program == "/opt/foreman/bin/twistd"
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", HAND_OVER, str(self.listening.fileno()), TWISTD, *arguments],
                cwd="/",
                env={"PYTHONPATH": str(ROOT), **self.environment()},
                stdout=log,
                stderr=log,
                pass_fds=[self.listening.fileno()],
            )

    @property
    def url(self) -> str:
        """Where callers find it."""
        return f"http://127.0.0.1:{self.listening.getsockname()[1]}"

    def log(self) -> str:
        """What the journal has."""
        return (self.folder / "log").read_text()


@contextmanager
def held(family: socket.AddressFamily, address: str) -> Iterator[socket.socket]:
    """A socket as the socket unit has systemd hold it, on any port."""
    with socket.socket(family) as listening:
        listening.bind((address, 0))
        listening.listen(int(value(SOCKET, "Backlog")))
        yield listening


# -- the units ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["foreman", "foreman-desktop"])
def test_systemd_takes_the_units(run: Run, tmp_path: Path, name: str) -> None:
    """Nothing is wrong with them, says systemd, nor with copies for a second target, which share nothing with them."""
    (tmp_path / "twistd").symlink_to(TWISTD)  # whose own path may have blanks
    for unit in (SERVICE, SOCKET):
        own = (text for name, text in directives(unit) if name not in ("Description", "ExecStart"))
        assert not [text for text in own if re.search(r"foreman(?!\.env|\.db)", text)]
        # The one path that must be there to be judged.
        judged = unit.read_text().replace("/opt/foreman/bin/twistd", str(tmp_path / "twistd"))
        (tmp_path / f"{name}{unit.suffix}").write_text(judged)
    said = run("systemd-analyze", "verify", tmp_path / f"{name}.service", tmp_path / f"{name}.socket")
    assert [line for line in said.splitlines() if name in line] == []


def test_the_service_can_do_little_else(run: Run) -> None:
    """By systemd's own measure the service is hardly exposed, and a line that is taken away shows."""
    run("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", SERVICE)
    run("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE - 1}", SERVICE, fails=True)


def test_hardening_leaves_tls_and_figures() -> None:
    """`https://` targets and webhooks work, and so do the process figures: what would break them is not asked for."""
    names = {name for name, _ in directives(SERVICE)}
    assert not names & {"MemoryDenyWriteExecute", "ProcSubset"}


def test_a_stop_has_the_time_it_needs() -> None:
    """A stop may take longer than the running job may go on, and whoever changes the one is told of the other."""
    grace = Configuration.from_environment({}).shutdown_grace
    assert int(value(SERVICE, "TimeoutStopSec")) >= grace + 15
    assert "TimeoutStopSec" in SETTINGS_FILE.read_text().partition("FOREMAN_SHUTDOWN_GRACE")[0].rpartition("\n\n")[2]


def test_all_that_may_wait_fits_into_the_memory() -> None:
    """As many and as large requests as foreman takes in at once do not have it killed for its memory."""
    bodies = BODIES_AT_ONCE * Configuration.from_environment({}).max_body
    assert int(value(SERVICE, "MemoryMax").removesuffix("G")) * 2**30 >= 1.5 * bodies


def test_as_many_may_wait_at_the_socket() -> None:
    """A burst of callers finds as much room as where foreman makes its socket itself."""
    assert int(value(SOCKET, "Backlog")) == BACKLOG


# -- the settings ------------------------------------------------------------------------------------------------------


def test_the_example_settings_are_settings() -> None:
    """What the example file sets foreman takes, and what it has as a comment is the default."""
    given = variables(SETTINGS_FILE.read_text())
    Configuration.from_environment(given)
    assert set(given) == {"FOREMAN_OLLAMA_URL"}
    text = SETTINGS_FILE.read_text().replace("\n#FOREMAN_", "\nFOREMAN_")
    defaults = {setting.variable: setting.default for setting in SETTINGS}
    commented = {name: each for name, each in variables(text).items() if name not in given}
    assert commented == {name: defaults[name] for name in commented}
    assert commented


def test_what_may_hold_a_secret_is_roots_alone() -> None:
    """Any setting can stand in the environment's file, secrets too, others beside it: nobody else reads them."""
    modes = re.findall(r"install (?:-d )?-m (\d+) (?:deploy/systemd/foreman.env )?/etc/foreman", PAGE.read_text())
    assert modes == ["0700", "0600"]


# -- the daemon --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET6, "::"), (socket.AF_INET, "127.0.0.1")])
@pytest_twisted.ensureDeferred
async def test_the_service_answers_on_the_socket_it_is_given(
    tmp_path: Path, family: socket.AddressFamily, address: str
) -> None:
    """Started as the unit starts it, foreman answers on systemd's socket, of either family, and works."""
    async with fake_ollama() as fake:
        settings = variables(SETTINGS_FILE.read_text()) | {"FOREMAN_OLLAMA_URL": fake.url}
        with held(family, address) as listening:
            manager = Manager(tmp_path, listening, settings)
            service = manager.start()
            try:
                assert (await ask(manager.url, "GET", "/api/tags")).head[0] == 401  # type: ignore[index]
                answer = await ask(manager.url, "POST", "/api/chat", chat("mid-b:latest", stream=False), BEARER)
                assert answer.document["done"] is True, answer.body
                shown = "[::]" if family == socket.AF_INET6 else address
                assert f" listens on {shown}:{listening.getsockname()[1]}\n" in manager.log()
                service.send_signal(signal.SIGTERM)
                await eventually(lambda: service.poll() is not None, within=30)
                assert service.returncode == 0, manager.log()
            finally:
                service.kill()
                service.wait()
        assert (tmp_path / "state/foreman/foreman.db").exists()
        assert TOKEN not in manager.log()


@pytest_twisted.ensureDeferred
async def test_nobody_is_refused_during_a_restart(tmp_path: Path) -> None:
    """Who connects while foreman is not there, between a stop and a start, waits and is then served."""
    async with fake_ollama() as fake:
        with held(socket.AF_INET6, "::") as listening:
            manager = Manager(tmp_path, listening, {"FOREMAN_OLLAMA_URL": fake.url})
            service = manager.start()
            try:
                await ask(manager.url, "GET", "/readyz")
                service.send_signal(signal.SIGTERM)
                await eventually(lambda: service.poll() is not None, within=30)
                body = chat("mid-b:latest", stream=False)
                callers = [await send(manager.url, "POST", "/api/chat", body, BEARER) for _ in range(20)]
                service = manager.start()
                await eventually(lambda: all(caller.ended for caller in callers), within=30)
                assert {caller.head[0] for caller in callers if caller.head} == {200}
                for caller in callers:
                    caller.leave()
                    await caller.closed
            finally:
                service.kill()
                service.wait()


@pytest_twisted.ensureDeferred
async def test_bad_settings_do_not_start_it_again_and_again(tmp_path: Path) -> None:
    """A mistyped setting ends the start with one line, and with the status after which the unit is not restarted."""
    with held(socket.AF_INET6, "::") as listening:
        manager = Manager(tmp_path, listening, {"FOREMAN_EMBED_MODLE": "nomic-embed-text"})
        service = manager.start()
        await eventually(lambda: service.poll() is not None, within=30)
        assert str(service.returncode) in value(SERVICE, "RestartPreventExitStatus").split()
        assert (
            manager.log()
            == "foreman: FOREMAN_EMBED_MODLE is ***, but there is no such setting; did you mean FOREMAN_EMBED_MODEL?\n"
        )


@pytest_twisted.ensureDeferred
async def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    """A start that fails for the disk's sake is tried again, and tries alone never reach the limit of starts."""
    with held(socket.AF_INET6, "::") as listening:
        manager = Manager(tmp_path, listening, {"FOREMAN_DB": str(tmp_path / "missing" / "foreman.db")})
        service = manager.start()
        await eventually(lambda: service.poll() is not None, within=30)
        assert "cannot be used" in manager.log()
        assert str(service.returncode) not in value(SERVICE, "RestartPreventExitStatus").split()
    seconds, burst, pause = (
        int(value(SERVICE, name)) for name in ("StartLimitIntervalSec", "StartLimitBurst", "RestartSec")
    )
    assert seconds / pause < burst
