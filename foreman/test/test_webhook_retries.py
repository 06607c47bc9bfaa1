"""When a delivery is tried again."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreman.webhooks.retries import STEPS, next_delay, parse_retry_after

NOW = 784111777.0
"""The moment of HTTP's own example, Sun, 06 Nov 1994 08:49:37 GMT."""

attempts = st.integers(1, len(STEPS))
randoms = st.floats(0, 1)


def test_the_steps_are_those_of_the_contract() -> None:
    """1, 2, 4, 8, 16 s, 1, 5, 30 min, 2, 5, 10 h; then it is given up."""
    delays = [next_delay(attempt, None, lambda: 0.5) for attempt in range(1, 13)]
    assert delays == pytest.approx([1, 2, 4, 8, 16, 60, 300, 1800, 7200, 18000, 36000, None])


@given(attempts, randoms)
def test_the_steps_are_spread(attempt: int, random: float) -> None:
    """Each is up to 20 % shorter or longer, so that many do not come back together."""
    delay = next_delay(attempt, None, lambda: random)
    assert delay == pytest.approx(STEPS[attempt - 1] * (0.8 + 0.4 * random))


@given(attempts, st.floats(0, allow_infinity=True), randoms)
def test_retry_after_is_honoured_within_bounds(attempt: int, asked: float, random: float) -> None:
    """A receiver gets the pause it asks for, up to twice the step; it cannot make us hurry, nor wait for ever."""
    step, own = STEPS[attempt - 1], next_delay(attempt, None, lambda: random)
    delay = next_delay(attempt, asked, lambda: random)
    assert delay is not None
    assert own is not None
    assert own <= delay <= 2 * step
    assert delay >= min(asked, 2 * step)
    assert delay in (own, asked, 2 * step)


def test_retry_after_does_not_bring_back_what_is_given_up() -> None:
    """After the last try there is none, whatever the receiver says."""
    assert next_delay(12, 5, lambda: 0.5) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("120", 120),
        ("0", 0),
        ("Sun, 06 Nov 1994 08:50:37 GMT", 60),
        ("Sunday, 06-Nov-94 08:50:37 GMT", 60),
        ("Sun Nov  6 08:50:37 1994", 60),
        ("Sun, 06 Nov 1994 08:49:00 GMT", 0),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("9" * 5000, None),
        ("soon", None),
        ("Sun, 06 Nov 99999 08:50:37 GMT", None),
        ("Sun, 99 Nov 1994 08:50:37 GMT", None),
    ],
)
def test_retry_after_is_read_as_http_writes_it(value: str | None, seconds: float | None) -> None:
    """Seconds, or a date in any of HTTP's three forms; what cannot be read counts as not said."""
    assert parse_retry_after(value, NOW) == seconds


def test_dates_are_not_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """A date without a zone is HTTP's UTC, wherever foreman runs."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC-9")
        time.tzset()
        assert parse_retry_after("Sun Nov  6 08:50:37 1994", NOW) == 60
    time.tzset()


DATES = st.from_regex(r"[A-Za-z]{3}, [0-9]{1,3}[ -][A-Za-z]{3}[ -][0-9]{1,5} [0-9:]{1,9} [A-Z+0-9-]{0,6}")


@given(st.text(max_size=60) | DATES)
def test_no_header_can_do_harm(value: str) -> None:
    """Whatever a receiver sends, it is a number of seconds or nothing."""
    seconds = parse_retry_after(value, NOW)
    assert seconds is None or seconds >= 0
