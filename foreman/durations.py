"""How people write lengths of time and sizes: Go's durations (`30s`, `1h30m`, also `7d`) and byte sizes (`64MiB`).

Both directions are exact: what is printed reads back as the same number.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

_UNITS = {
    "d": Fraction(86400),
    "h": Fraction(3600),
    "m": Fraction(60),
    "s": Fraction(1),
    "ms": Fraction(1, 10**3),
    "us": Fraction(1, 10**6),
    "µs": Fraction(1, 10**6),
    "ns": Fraction(1, 10**9),
}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(d|h|ms|m|s|us|µs|ns)")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")
LONGEST = 2**63 / 10**9
"""Seconds; what Go can hold, some 292 years."""

_SIZE = re.compile(r"([0-9]{1,19})(KiB|MiB|GiB|)")
_SIZE_UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "": 1}


def parse_duration(text: str) -> float:
    """Seconds, from numbers with units such as `500ms`, `1h30m`, `1.5h`, `7d`, or a bare `0`.

    :raise ValueError: for anything else, negative lengths and lengths beyond `LONGEST` included.
    """
    if text == "0":
        return 0.0
    # The bound keeps a number of a million digits from being worked out.
    if len(text) > 400 or not _DURATION.fullmatch(text):
        raise ValueError("not a duration such as 30s, 1h30m or 7d")
    seconds = sum(Fraction(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if seconds > LONGEST:
        raise ValueError("a duration of more than 292 years")
    return float(seconds)


def format_duration(seconds: float) -> str:
    """The shortest of the usual ways to write so many seconds: `7d`, `1h30m`, `1m30.5s`, `500ms`, `0`.

    :raise ValueError: when `seconds` is negative, not a number or more than `LONGEST`.
    """
    if not 0 <= seconds <= LONGEST:
        raise ValueError("not between 0 and 292 years")
    # repr is the shortest decimal that reads back as this very float.
    rest = Decimal(repr(float(seconds)))
    if rest == 0:
        return "0"
    if rest < 1:
        return f"{_plain(rest * 1000)}ms"
    text = ""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        count, rest = divmod(rest, length)
        if count:
            text += f"{int(count)}{unit}"
    return text + (f"{_plain(rest)}s" if rest else "")


def _plain(number: Decimal) -> str:
    """Digits only: no exponent, no trailing zeros."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def parse_size(text: str) -> int:
    """Bytes, from `64MiB`, `256KiB`, `1GiB` or a bare number of bytes.

    :raise ValueError: for anything else.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError("not a size such as 64MiB, 256KiB or 1000")
    return int(match[1]) * _SIZE_UNITS[match[2]]


def format_size(size: int) -> str:
    """So many bytes in the largest unit that divides them: `64MiB`, `1000`."""
    if size == 0:
        return "0"
    unit, length = next((unit, length) for unit, length in _SIZE_UNITS.items() if size % length == 0)
    return f"{size // length}{unit}"
