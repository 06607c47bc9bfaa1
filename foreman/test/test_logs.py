"""The log: one line an event, in the form and from the level that is set, with nothing secret in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.application.service import Application, MultiService
from twisted.logger import ILogObserver, LogEvent, LogLevel
from twisted.python.failure import Failure
from txaio import tx

from foreman.config import Configuration
from foreman.kinds import Secret
from foreman.logs import HIDDEN, Observer, install, make_logger

NOON = 1_767_225_600.1239


def event(message: str = "loaded", **fields: object) -> LogEvent:
    """An event of foreman's own at info level, or what the fields say."""
    defaults = {"log_format": message, "log_time": NOON, "log_level": LogLevel.info, "log_namespace": "foreman.work"}
    return {**defaults, **fields}


def text(*events: LogEvent, level: str = "info") -> str:
    """What is written as text."""
    stream = StringIO()
    observer = Observer("text", level, stream)
    for each in events:
        observer(each)
    return stream.getvalue()


def record(logged: LogEvent) -> dict[str, Any]:
    """What is written as JSON, once it is seen to be one line."""
    stream = StringIO()
    Observer("json", "info", stream)(logged)
    assert stream.getvalue().count("\n") == 1
    parsed: dict[str, Any] = json.loads(stream.getvalue())
    return parsed


def broken(message: str = "no such thing") -> Failure:
    """A failure with a traceback."""
    try:
        raise ValueError(message)
    except ValueError:
        return Failure()


def test_a_line_of_text_says_when_what_and_whose() -> None:
    """Each line has the time in UTC, the level, the message, the job and the model."""
    line = text(event("loaded in {seconds:.1f} s", seconds=2.34, job="01J", model="qwen3:30b"))
    assert line == "2026-01-01T00:00:00.123Z info  loaded in 2.3 s job=01J model=qwen3:30b\n"


def test_a_line_of_json_says_the_same() -> None:
    """A collector gets the same as keys, and no other fields."""
    assert record(event("loaded in {seconds:.1f} s", seconds=2.34, job="01J", model="qwen3:30b")) == {
        "time": "2026-01-01T00:00:00.123Z",
        "level": "info",
        "message": "loaded in 2.3 s",
        "job": "01J",
        "model": "qwen3:30b",
    }
    assert "job" not in record(event(job=None))


def test_a_failure_is_one_line_with_its_traceback() -> None:
    """A traceback does not tear a line apart."""
    failed = event("cannot load", log_failure=broken(), log_level=LogLevel.critical)
    assert "ValueError: no such thing" in record(failed)["traceback"]
    line = text(failed)
    assert line.count("\n") == 1
    assert "cannot load traceback=Traceback (most recent call last):\\n" in line
    assert record(event(log_format=None, log_failure=broken()))["message"] == "no such thing"


@pytest.mark.parametrize(
    ("least", "shown"),
    [
        ("debug", "debug info warn error critical"),
        ("info", "info warn error critical"),
        ("warn", "warn error critical"),
        ("error", "error critical"),
    ],
)
def test_only_the_level_and_above_is_written(least: str, shown: str) -> None:
    """FOREMAN_LOG_LEVEL is the least level that is logged."""
    events = [event(level.name, log_level=level) for level in LogLevel.iterconstants()]
    assert [line.split()[1] for line in text(*events, level=least).splitlines()] == shown.split()


@pytest.mark.parametrize(
    "noise",
    [
        event("Site starting on 8080", log_namespace="log_legacy"),
        event("Starting factory {factory!r}", log_namespace="foreman.web.site.Site", factory="x"),
        event("Timing out client: {peer}", log_namespace="foreman.web.site.Channel", peer="x"),
    ],
)
def test_the_chatter_of_twisted_is_debug(noise: LogEvent) -> None:
    """Ports, factories and idle clients do not fill the log; what Twisted warns of still does."""
    assert text(noise) == ""
    assert " debug " in text(noise, level="debug")
    assert text(event("careful", log_namespace="twisted.web", log_level=LogLevel.warn)) != ""


@given(st.text(), st.text(), st.text())
def test_nothing_logged_can_forge_a_line(value: str, job: str, message: str) -> None:
    """Whatever a model is called or an error says, it stays one printable line, and valid JSON."""
    logged = event("{value}", value=value, job=job, log_failure=broken(message))
    line = text(logged)
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert record(logged)["message"] == (value or message)


@pytest.mark.parametrize("name", sorted(HIDDEN))
@pytest.mark.parametrize("form", ["{%s}", "{%s!r}", "{%s[0]}", "{%s.headers}", "{%s()}"])
def test_secrets_and_what_people_say_are_never_written(name: str, form: str) -> None:
    """Neither a token nor a prompt gets into the log, even if somebody logs one by mistake."""
    logged = event(form % name, **{name: "hunter2"})
    assert "hunter2" not in text(logged)
    assert "hunter2" not in record(logged)["message"]


def test_a_secret_is_stars_under_any_name() -> None:
    """A secret setting that is logged under another name is stars all the same."""
    assert "got *** and ***" in text(event("got {it} and {it!r}", it=Secret("hunter2")))


def test_an_event_that_cannot_be_formatted_is_still_logged() -> None:
    """A mistake in a log call loses no event and raises nothing."""
    assert "Unable to format event" in text(event("{missing}"))


def test_a_letter_the_terminal_lacks_is_written_as_its_number() -> None:
    """The log works in every locale."""
    stream = TextIOWrapper(BytesIO(), encoding="ascii")
    Observer("text", "info", stream)(event("größer"))
    assert stream.buffer.getvalue().endswith(b"gr\\xf6\\xdfer\n")


@pytest.fixture
def _global_level() -> Iterator[None]:
    """Puts the level of the whole process back."""
    yield
    tx.set_global_log_level("info")  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("_global_level")
@pytest.mark.parametrize("level", ["debug", "warn"])
def test_installing_sets_the_level_and_the_observer(level: str) -> None:
    """An application logs as the settings say; a service below another parent leaves its log alone."""
    seen: list[LogEvent] = []
    house = make_logger()
    house._logger.observer = seen.append  # type: ignore[attr-defined]
    application: Any = Application("foreman")
    install(application, Configuration(log_format="json", log_level=level))
    assert application.getComponent(ILogObserver) == Observer("json", level, sys.stdout)
    install(MultiService(), Configuration(log_level=level))
    house.debug("low")
    house.warn("high")
    assert [each["log_format"] for each in seen] == (["low", "high"] if level == "debug" else ["high"])
    assert seen[0]["log_namespace"] == f"{__name__}.test_installing_sets_the_level_and_the_observer"


MODULE = """
from twisted.application.service import Application, Service
from twisted.internet import reactor

from foreman.config import Configuration
from foreman.logs import install, make_logger

log = make_logger()
log.info("before the log is there")


class Top(Service):
    def setServiceParent(self, parent):
        install(parent, Configuration(log_format="json"))
        super().setServiceParent(parent)

    def startService(self):
        log.info("started", job="01J")
        print("from a library")
        reactor.callWhenRunning(reactor.stop)


application = Application("foreman")
Top().setServiceParent(application)
"""


def test_under_twistd_each_event_is_logged_once_from_the_start(tmp_path: Path) -> None:
    """`twistd` prints our lines and no others: none twice, none of its own form, none lost before the start."""
    (tmp_path / "foreman_example.py").write_text(MODULE)
    (tmp_path / "example.tac").write_text("from foreman_example import application")
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            "from twisted.scripts.twistd import run; run()",
            "-n",
            "--pidfile=",
            "-y",
            "example.tac",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    records = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [each["message"] for each in records] == ["before the log is there", "started"]
    assert records[1]["job"] == "01J"
