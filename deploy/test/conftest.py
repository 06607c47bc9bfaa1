"""Other people's tools, which judge the files of `deploy/`: where they are, and what they say."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import foreman.test.conftest  # noqa: F401 - what it does to the whole process is for these tests, too

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".venv-deploy" / "bin"
"""Those from PyPI; the others are Debian's packages (CONTRIBUTING.md)."""

Run = Callable[..., str]

os.umask(0o022)  # a builder's, and what systemd wants of units


@contextmanager
def kept_port(port: int = 0) -> Iterator[int]:
    """A port of loopback for a server that is told where to listen: the kernel gives it to nobody who asks for any."""
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers have it, so that one can join
        keeper.bind(("127.0.0.1", port))
        yield keeper.getsockname()[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs a command in the checkout, two minutes at most, and gives what it printed; its failure is the test's."""

    def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None, fails: bool = False) -> str:
        name = str(command[0])
        where = os.pathsep.join((str(TOOLS), os.environ["PATH"]))
        program = shutil.which(name, path=where)
        assert program, f"{name} is not installed: `make test-deploy` says what installs it"
        done = subprocess.run(
            [program, *map(str, command[1:])],
            cwd=cwd,
            env={**os.environ, "PATH": where, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )
        assert (done.returncode != 0) is fails, f"{name} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    return run
