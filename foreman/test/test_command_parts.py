"""What the command `foreman` is made of: its settings, what is asked, what is shown."""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from attrs import define, evolve, frozen
from hypothesis import given
from hypothesis import strategies as st

from foreman.client import (
    Artifact,
    Chunk,
    ForemanError,
    JobFailed,
    JobInfo,
    JobState,
    NotReachable,
    Rejected,
    WaitTimeout,
)
from foreman.command.inputs import Duration, Object, Option, batch_of
from foreman.command.reading import read_along
from foreman.command.screen import Screen, plain, printable, seconds
from foreman.command.settings import DEFAULT_URL, Settings, UnusableSettings, read_settings, settings_path
from foreman.command.talking import Exit, Said
from foreman.command.waiting import wait_for

HERE, THERE = "http://here:1", "http://there:2"


@pytest.mark.parametrize(
    ("url", "environ", "kept", "found"),
    [
        (None, {}, "", Settings(DEFAULT_URL)),
        (None, {}, f'url = "{HERE}"\ntoken = "a"', Settings(HERE, "a", kept=True)),
        (None, {}, 'token = "a"', Settings(DEFAULT_URL, "a", kept=True)),
        (None, {"FOREMAN_TOKEN": "b"}, f'url = "{HERE}"\ntoken = "a"', Settings(HERE, "b")),
        (None, {"FOREMAN_URL": HERE}, f'url = "{HERE}"\ntoken = "a"', Settings(HERE, "a", kept=True)),
        (None, {"FOREMAN_URL": THERE}, f'url = "{HERE}"\ntoken = "a"', Settings(THERE)),
        (THERE, {"FOREMAN_URL": HERE}, f'url = "{HERE}"\ntoken = "a"', Settings(THERE)),
        (THERE, {"FOREMAN_TOKEN": "b"}, 'token = "a"', Settings(THERE, "b")),
        (
            None,
            {"FOREMAN_URL": "", "FOREMAN_TOKEN": "", "FOREMAN_TOKEN_FILE": ""},
            f'url = "{HERE}"\ntoken = "a"',
            Settings(HERE, "a", kept=True),
        ),
    ],
)
def test_which_foreman(url: str | None, environ: dict[str, str], kept: str, found: Settings, tmp_path: Path) -> None:
    """The option comes before the environment, that before the file; a kept token goes to no other address."""
    path = tmp_path / "config.toml"
    path.write_text(kept)
    assert read_settings(url, environ, path) == found


def test_where_the_daemon_runs_its_token_file_serves_the_command(tmp_path: Path) -> None:
    """In the daemon's container nobody types a token: FOREMAN_TOKEN_FILE is read, and if it cannot be, that is said."""
    secret = tmp_path / "token"
    secret.write_text("a b\n")
    environ = {"FOREMAN_TOKEN_FILE": str(secret)}
    assert read_settings(None, environ, tmp_path / "none") == Settings(DEFAULT_URL, "a b")
    assert read_settings(None, {**environ, "FOREMAN_TOKEN": "c"}, tmp_path / "none") == Settings(DEFAULT_URL, "c")
    secret.unlink()
    with pytest.raises(UnusableSettings, match=r"FOREMAN_TOKEN_FILE: .*No such file"):
        read_settings(None, environ, tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("url = ", "Invalid value"),
        ("urll = 'x'", "'urll'"),
        ("token = 7", "token is not a text"),
        ("url = ''", "url is"),
    ],
)
def test_a_settings_file_that_cannot_be_used(text: str, said: str, tmp_path: Path) -> None:
    """It is said which file is wrong, and where."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(UnusableSettings) as raised:
        read_settings(None, {}, path)
    assert str(path) in str(raised.value)
    assert said in str(raised.value)


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system knows no home, as for a container's user, no settings file is looked for in some other place."""

    def homeless(*_given: object, **_more: object) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr("foreman.command.settings.user_config_path", homeless)
    assert settings_path() == Path("/.config/foreman/config.toml")


def test_the_token_is_not_printed() -> None:
    """Whoever prints the settings does not print the token."""
    assert "s3cret" not in repr(Settings(HERE, "s3cret"))


def test_values_of_options() -> None:
    """An option's value is JSON if it can be, a text otherwise; lengths of time have units."""
    assert Option().convert("temperature=0.5", None, None) == ("temperature", 0.5)
    assert Option().convert("stop=a=b", None, None) == ("stop", "a=b")
    assert Duration().convert("1h30m", None, None) == 5400.0
    assert Object().convert('{"a": [1]}', None, None) == {"a": [1]}
    for kind, text in (
        (Option(), "temperature"),
        (Option(), "=1"),
        (Duration(), "5"),
        (Object(), "[1]"),
        (Object(), "{"),
    ):
        with pytest.raises(click.BadParameter):
            kind.convert(text, None, None)


@given(st.lists(st.one_of(st.just(None), st.dictionaries(st.text(), st.integers())), max_size=20))
def test_batches(lines: list[dict[str, int] | None]) -> None:
    """Every line of a batch is a submission, in its order; blank ones are passed over."""
    file = io.StringIO("\n".join("  " if line is None else json.dumps(line) for line in lines))
    assert list(batch_of(file)) == [line for line in lines if line is not None]


@given(st.text(st.characters(codec="utf-8")))
def test_nothing_printed_gives_orders_to_a_terminal(text: str) -> None:
    """What can be read stays as it is, in its place; control characters and changes of direction do not stay."""
    shown = printable(text)
    assert all(each in "\n\t\u200d" or unicodedata.category(each) not in ("Cc", "Cf") for each in shown)
    if text.isprintable():
        assert shown == text


class Terminal(io.StringIO):
    """A terminal that keeps what it is given."""

    def isatty(self) -> bool:
        """It is one."""
        return True


@define
class Spoken:
    """A job that has been answered so."""

    chunks: list[Chunk]
    state: JobState = JobState.WORKING
    position: int | None = None

    def stream(self, timeout: float | None = None) -> Iterator[Chunk]:
        """The answer."""
        return iter(self.chunks)


def test_thoughts_give_no_orders_to_a_terminal_either() -> None:
    """What a model thinks is shown beside the answer as harmless as that, and not broken into lines of ours."""
    err = Terminal()
    thought = "\x1b]0;owned\x07" + "so " * 100
    job: Any = Spoken([Chunk(thinking=thought), Chunk(text="hi")])
    read_along(Screen(io.StringIO(), err, as_json=False), job)
    assert "\x1b]" not in err.getvalue()
    assert "\x07" not in err.getvalue()
    assert "so " * 100 in err.getvalue()


@frozen(kw_only=True)
class Over(JobInfo):
    """A job that is over when it is looked at."""

    def refresh(self) -> Over:
        """Look."""
        return evolve(self, state=JobState.DONE)


def test_many_jobs_that_are_over_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal that shows some of many jobs, those that ended meanwhile do not take a second a screenful."""
    slept: list[float] = []
    monkeypatch.setattr("foreman.command.waiting.time.sleep", slept.append)
    out = Terminal()
    jobs: Any = [Over(job_id=f"J{number}", state=JobState.QUEUED) for number in range(200)]
    desk: Any = SimpleNamespace(screen=Screen(out, io.StringIO(), as_json=False))
    assert wait_for(desk, jobs, timeout=None) == 0
    assert out.getvalue().count("done") == 200
    assert slept == []


def test_calls_of_tools_are_json() -> None:
    """A program that reads the answer can read the calls in it."""
    out = io.StringIO()
    call = {"name": "weather", "arguments": {"where": "K\u00f6ln", "now": True}}
    job: Any = Spoken([Chunk(tool_calls=({"function": call},))])
    read_along(Screen(out, io.StringIO(), as_json=False), job)
    assert json.loads(out.getvalue()) == call


def test_plain_lines_off_a_terminal() -> None:
    """A program that reads a table gets a line for each row, whatever a cell holds, and no heading."""
    out = io.StringIO()
    screen = Screen(out, io.StringIO(), as_json=False)
    screen.table(("A", "B"), [("1", "two\nlines\tand a tab"), ("x" * 300, "")])
    assert out.getvalue() == "1\ttwo lines and a tab\n" + "x" * 300 + "\t\n"


def test_a_job_as_json() -> None:
    """A job's document has its names, its moments as ISO 8601, and its text."""
    artifact = Artifact(name="content", content_type="text/plain", size=2, sha256="", inline="hi")
    at = datetime(2026, 1, 2, tzinfo=UTC)
    job = JobInfo(job_id="x", state=JobState.DONE, created_at=at, artifacts=(artifact,))
    document = json.loads(json.dumps(plain(job)))
    assert (document["job_id"], document["state"], document["text"]) == ("x", "done", "hi")
    assert document["created_at"] == "2026-01-02T00:00:00+00:00"
    assert document["artifacts"][0]["name"] == "content"
    assert not [name for name in document if name.startswith("_")]


@pytest.mark.parametrize(
    ("length", "shown"),
    [(None, ""), (0.0, "0.0s"), (9.94, "9.9s"), (59.4, "59s"), (61, "1m01s"), (3600, "1h00m"), (90000, "1d01h")],
)
def test_lengths_of_time(length: float | None, shown: str) -> None:
    """They are as short as can be read at a glance."""
    assert seconds(length) == shown


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (JobFailed(JobInfo(job_id="x", state=JobState.FAILED)), Exit.FAILED),
        (NotReachable("away"), Exit.NOT_REACHABLE),
        (Rejected(400, "no", {3: "why"}), Exit.REJECTED),
        (WaitTimeout("late"), Exit.TOO_LATE),
    ],
)
def test_exit_codes(error: ForemanError, code: Exit) -> None:
    """A script can tell what went wrong; lines of a batch are named."""
    said = Said(error)
    assert said.exit_code == code
    assert ("line 3: why" in said.message) is isinstance(error, Rejected)
