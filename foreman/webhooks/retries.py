"""When a delivery that failed is tried again: pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime

STEPS = (1.0, 2.0, 4.0, 8.0, 16.0, 60.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0)
"""Seconds between one try and the next: a receiver that restarts is back within the first few, one that is mended by
people within the last."""


def next_delay(attempt: int, retry_after: float | None, random: Callable[[], float]) -> float | None:
    """Seconds until a delivery is tried again, None when it was tried often enough.

    `Retry-After` lengthens the step to at most twice itself.  It never shortens it: a receiver that always says 0
    would use up, within a minute, tries that are meant to last for a day.

    :param attempt: tries so far, at least 1.
    :param retry_after: seconds the receiver asked for, None if it did not.
    :param random: gives numbers from 0 to 1; the ±20 % keep many from coming back together.
    """
    if attempt > len(STEPS):
        return None
    step = STEPS[attempt - 1]
    return max(step * (0.8 + 0.4 * random()), min(retry_after or 0.0, 2 * step))


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds from `now` that a `Retry-After` header asks for; None if there is none, or none that can be read.

    :param value: a number of seconds, or a date in one of HTTP's three forms; one that has passed is 0.
    :param now: Unix seconds.
    """
    if value is None:
        return None
    if re.fullmatch("[0-9]{1,12}", value):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        # HTTP's dates are all in UTC; the form that names no zone is read without one.
        return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now)
    except (ValueError, OverflowError):
        return None
