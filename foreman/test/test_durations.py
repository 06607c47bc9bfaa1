"""Durations and sizes as people write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreman.durations import LONGEST, format_duration, format_size, parse_duration, parse_size

DURATIONS = [
    ("0", 0),
    ("30s", 30),
    ("500ms", 0.5),
    ("1h30m", 5400),
    ("1.5h", 5400),
    (".5s", 0.5),
    ("1m1h", 3660),
    ("7d", 604800),
    ("1d12h", 129600),
    ("250us", 0.00025),
    ("250µs", 0.00025),
    ("5ns", 5e-9),
]


@pytest.mark.parametrize(("text", "seconds"), DURATIONS)
def test_a_duration_is_read_as_go_reads_it(text: str, seconds: float) -> None:
    """I can write durations as I do for Ollama, and days beside."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "30",
        "s",
        "-1s",
        "+1s",
        "1 s",
        " 1s",
        "1s\n",
        "1S",
        "1w",
        "1e3s",
        "1..5s",
        ".s",
        "٣s",
        "300y",
        "99999999h",
    ],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    """A mistyped duration never passes for another one."""
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0"), (0.5, "500ms"), (90, "1m30s"), (90.5, "1m30.5s"), (5400, "1h30m"), (604800, "7d"), (7200, "2h")],
)
def test_a_duration_is_shown_as_a_person_would_write_it(seconds: float, text: str) -> None:
    """The log shows `1h30m`, not 5400.0."""
    assert format_duration(seconds) == text


@given(st.floats(0, LONGEST))
def test_a_duration_reads_back_as_it_was(seconds: float) -> None:
    """What is shown can be copied into the environment and means the same."""
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 1e300])
def test_what_is_no_length_of_time_is_not_shown_as_one(seconds: float) -> None:
    """Nonsense is not printed as if it were a duration."""
    with pytest.raises(ValueError, match="between"):
        format_duration(seconds)


@given(st.text() | st.from_regex(r"[0-9.]{0,500}[a-zµ]{0,2}"))
def test_no_text_upsets_the_parsers(text: str) -> None:
    """Whatever I write, I am told that it is wrong, and in no other way."""
    for parse in (parse_duration, parse_size):
        with contextlib.suppress(ValueError):
            parse(text)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("1000", 1000), ("64MiB", 64 * 2**20), ("256KiB", 2**18), ("1GiB", 2**30)]
)
def test_a_size_is_read_and_shown(text: str, size: int) -> None:
    """I can write sizes in KiB, MiB, GiB or plain bytes."""
    assert parse_size(text) == size
    assert format_size(size) == text


@pytest.mark.parametrize("text", ["", "MiB", "64MB", "64 MiB", "-1", "1.5MiB", "64mib", "1_000", "٣", "1\n", "9" * 20])
def test_what_is_no_size_is_refused(text: str) -> None:
    """A size in a unit that may mean two things is refused."""
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


@given(st.integers(0, 2**60))
def test_a_size_reads_back_as_it_was(size: int) -> None:
    """What is shown can be copied into the environment and means the same."""
    assert parse_size(format_size(size)) == size
