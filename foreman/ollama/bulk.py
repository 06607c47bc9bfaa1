"""How many values a JSON text holds, told without reading it.

Texts and images are read at some hundred megabytes a second and take no more memory than they are long.  Values are
another matter: 64 MiB of `[],[],[],` are twenty million objects, for which the daemon would stand still for many
seconds and take gigabytes.
"""

from __future__ import annotations

import re

MOST_VALUES = 1_000_000
"""Commas and opening brackets of a JSON text, outside its strings: read in a second, and with some 100 MiB."""

TOO_MANY = f"the body holds more than {MOST_VALUES} values"

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


def is_bulky(body: bytes) -> bool:
    """Whether a JSON text, well formed or not, holds more values than `MOST_VALUES`."""
    if _marks(body, 0, len(body)) <= MOST_VALUES:
        return False
    # But they may stand in strings, where they cost nothing.
    seen = at = 0
    for string in _STRING.finditer(body):
        seen += 1 + _marks(body, at, string.start())
        at = string.end()
        if seen > MOST_VALUES:
            return True
    return seen + _marks(body, at, len(body)) > MOST_VALUES


def _marks(body: bytes, start: int, end: int) -> int:
    return sum(body.count(mark, start, end) for mark in (b",", b"[", b"{"))
