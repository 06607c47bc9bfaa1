"""How foreman writes a moment: RFC 3339 in UTC with milliseconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def rfc3339(ms: int) -> str:
    """A moment such as `2026-11-21T10:24:00.123Z`, from milliseconds since the epoch."""
    # Not `fromtimestamp`: a float loses milliseconds to rounding.
    return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
