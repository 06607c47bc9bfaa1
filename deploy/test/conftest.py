"""Other people's tools, which judge the files of `deploy/`: where they are, and what they say."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".venv-deploy" / "bin"
"""Those from PyPI; the others are Debian's packages (CONTRIBUTING.md)."""

Run = Callable[..., str]

# As in foreman/test: the same examples on every run, however long one takes.
settings.register_profile("ci", derandomize=True, deadline=None, database=None)
settings.load_profile("ci")

# A shell's background jobs ignore Ctrl-C, and so would the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
