"""`twistd foreman`: its options, and how it refuses to start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from foreman import __version__
from foreman.config import SETTINGS, Configuration
from foreman.kinds import Secret
from foreman.tap import Options, makeService


def test_every_setting_is_an_option() -> None:
    """Each variable has an option of its name, and `--help` tells what it is for and its default."""
    options = Options()  # type: ignore[no-untyped-call]
    usage = " ".join(str(options).split())
    for setting in SETTINGS:
        for variable in setting.variables:
            name = variable.removeprefix("FOREMAN_").lower().replace("_", "-")
            assert f"--{name}=" in usage
        assert setting.purpose.split()[0] in usage
        assert setting.default in usage


def test_options_that_show_a_secret_say_so() -> None:
    """`--help` warns that a secret on the command line is seen by other users, and offers a file instead."""
    purposes = {str(option): str(purpose) for option, _, _, purpose in Options.optParameters}
    in_sight = {option for option, purpose in purposes.items() if "list of processes" in purpose}
    assert in_sight == {"token", "ollama-token", "webhook-secret", "webhook-secret-old"}
    assert {f"{option}-file" for option in in_sight} <= purposes.keys()


def test_the_service_is_made_of_environment_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment and the options, which win, are what the service gets; and it gets the reactor."""
    made: list[tuple[Configuration, Any]] = []
    service: Any = ModuleType("foreman.service")
    service.Foreman = lambda config, reactor: made.append((config, reactor))
    monkeypatch.setitem(sys.modules, "foreman.service", service)
    monkeypatch.setattr(os, "environ", {"FOREMAN_DB": "a.db", "FOREMAN_MAX_QUEUE": "7"})
    options = Options()  # type: ignore[no-untyped-call]
    options.parseOptions(["--db=b.db", "--token", "hunter2"])  # type: ignore[no-untyped-call]
    makeService(options)
    from twisted.internet import reactor

    assert made == [(Configuration(db="b.db", max_queue=7, token=Secret("hunter2")), reactor)]


def twistd(directory: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `twistd --nodaemon foreman` to its end, with nothing of foreman's in the environment but `environ`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FOREMAN_")}
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from twisted.scripts.twistd import run; run()",
            "-n",
            "--pidfile=",
            "foreman",
            *arguments,
        ],
        cwd=directory,
        env={**clean, **environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "environ", "line"),
    [
        ((), {"FOREMAN_POLL_INTERVAL": "soon"}, "FOREMAN_POLL_INTERVAL is 'soon', but must be a duration"),
        ((), {"FOREMAN_TOKEN": "two words"}, "FOREMAN_TOKEN is ***, but must be printable ASCII"),
        ((), {"FOREMAN_OLAMA_URL": "x"}, "FOREMAN_OLAMA_URL is ***, but there is no such setting"),
        (("--max-body=64MB",), {}, "FOREMAN_MAX_BODY is '64MB', but must be a size"),
        (("--sync-wait=1h",), {}, "FOREMAN_HOLD_LINE is '4m', but must be 0 or longer"),
    ],
)
def test_settings_that_cannot_be_used_end_the_start_with_one_line(
    tmp_path: Path, arguments: tuple[str, ...], environ: dict[str, str], line: str
) -> None:
    """A bad setting gives me exactly one line on stderr, and exit status 1; nothing is left behind."""
    ran = twistd(tmp_path, *arguments, **environ)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"foreman: {line}")
    assert ran.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_foremans(tmp_path: Path) -> None:
    """`twistd foreman --version` tells which foreman would run, not which Twisted."""
    asked = twistd(tmp_path, "--version")
    assert (asked.returncode, asked.stdout) == (0, f"foreman {__version__}\n")


def test_looking_at_the_options_does_not_choose_a_reactor(tmp_path: Path) -> None:
    """`twistd --reactor=…` has its way, since nothing of ours installs a reactor before it."""
    script = "import sys, foreman.tap, twisted.plugins.foreman_plugin; print('twisted.internet.reactor' in sys.modules)"
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stdout == "False\n"
