"""How many values a JSON text holds, told without reading it.

Texts and images are read at some hundred megabytes a second and take no more memory than they are long.  Values are
another matter: 64 MiB of `[],[],[],` are twenty million objects, for which the daemon would stand still for many
seconds and take gigabytes.
"""

from __future__ import annotations

import re

MOST_VALUES = 1_000_000
"""Strings, and commas and opening brackets outside them: so many are read within a second or so, in some 100 MiB."""

TOO_MANY = f"the body holds more than {MOST_VALUES} values"

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


def is_bulky(body: bytes) -> bool:
    """Whether a JSON text, well formed or not, holds more values than `MOST_VALUES`."""
    if _marks(body) <= MOST_VALUES:
        return False
    # But they may stand in strings, where they cost nothing.
    outside, strings = _STRING.subn(b"", body, MOST_VALUES)
    return strings == MOST_VALUES or strings + _marks(outside) > MOST_VALUES


def _marks(text: bytes) -> int:
    return sum(map(text.count, (b",", b"[", b"{")))
