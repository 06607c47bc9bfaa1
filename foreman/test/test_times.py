"""How foreman writes a moment."""

from __future__ import annotations

from datetime import datetime

from hypothesis import given
from hypothesis import strategies as st

from foreman.times import rfc3339


def test_a_moment() -> None:
    """Times are RFC 3339 in UTC, and always have their milliseconds."""
    assert rfc3339(1_795_256_640_000) == "2026-11-21T10:24:00.000Z"
    assert rfc3339(1_795_256_640_123) == "2026-11-21T10:24:00.123Z"


@given(st.integers(min_value=0, max_value=4_000_000_000_000))
def test_no_millisecond_is_lost(ms: int) -> None:
    """What is written reads back as the same millisecond."""
    read = datetime.fromisoformat(rfc3339(ms))
    epoch = datetime.fromisoformat("1970-01-01T00:00:00.000Z")
    gone = read - epoch
    assert (gone.days * 86_400 + gone.seconds) * 1000 + gone.microseconds // 1000 == ms
