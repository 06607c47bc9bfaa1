"""Request bodies read as Ollama reads them: Go's `encoding/json`, its tolerance and its complaints.

Keys match in any case, the last of two equal keys wins, unknown keys and whatever follows the first JSON value are
passed over, null is the same as absent (ollama-wire §2, §3).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import inf
from typing import Any

import orjson
from attrs import frozen


class Refusal(Exception):
    """An answer that says no.

    :ivar status: the HTTP status; `text`: Ollama's words.
    :ivar early: raised before the handler looked at the request: on `/v1` such answers look like `/api`'s.
    :ivar late: raised when the answer had been prepared as a stream: no charset, and chunked.
    """

    def __init__(self, text: str, status: int = 400, *, early: bool = False, late: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.status = status
        self.early = early
        self.late = late


@frozen
class Struct:
    """A Go struct that a body is decoded into.

    :ivar name: as Go's complaints name it, `ChatRequest`; `package`: before it, `api`.
    :ivar fields: lower-case key to Go type; an empty type takes anything.
    """

    package: str
    name: str
    fields: Mapping[str, str]


def _kind(value: object) -> str:
    """What Go's complaints call a JSON value."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, int | float):
        return "number"
    return "array" if isinstance(value, list) else "object"


def _fits(value: object, go_type: str) -> bool:
    if not go_type:
        return True
    if go_type == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    expected = {"string": "string", "bool": "bool", "float64": "number"}.get(go_type)
    if expected is None:
        expected = "array" if go_type.startswith("[]") or go_type == "api.Tools" else "object"
    return _kind(value) == expected


def read(data: bytes, struct: Struct, *, empty: str = "missing request body") -> dict[str, Any]:
    """The fields of the body that `struct` has and that are not null, under lower-case keys.

    :raise Refusal: 400 in Go's words; `empty` for a body without any value.
    """
    value = first_value(data, empty=empty)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refusal(
            f"json: cannot unmarshal {_kind(value)} into Go value of type {struct.package}.{struct.name}", early=True
        )
    found: dict[str, Any] = {}
    wrong = None
    for key, item in value.items():
        go_type = struct.fields.get(key.lower())
        if go_type is None or item is None:
            continue
        if _fits(item, go_type):
            found[key.lower()] = item
        elif wrong is None:
            number = f" {item}" if _kind(item) == "number" and go_type == "int" else ""
            wrong = f"{_kind(item)}{number} into Go struct field {struct.name}.{key.lower()} of type {go_type}"
    if wrong is not None:
        raise Refusal(f"json: cannot unmarshal {wrong}", early=True)
    return found


def _no_constant(name: str) -> None:
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_BLANK = re.compile(r"[ \t\r\n]*")


def first_value(data: bytes, *, empty: str = "missing request body") -> Any:
    """The first JSON value of `data`, whatever follows it.

    :raise Refusal: 400 with Go's text when there is none; `empty` when there is nothing at all.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    text = data.decode("utf-8", "replace")
    start = _BLANK.match(text).end()  # type: ignore[union-attr]
    if start == len(text):
        raise Refusal(empty, early=True)
    try:
        return _DECODER.raw_decode(text, start)[0]
    except (ValueError, RecursionError):
        raise Refusal(complaint(data), early=True) from None


def complaint(data: bytes) -> str:
    """What Go says of a body that does not begin with a JSON value."""
    try:
        _Scanner(data).value()
    except _Wrong as wrong:
        return str(wrong)
    except RecursionError:
        return "exceeded max depth"
    return "unexpected EOF"


class _Wrong(Exception):
    pass


class _Scanner:
    """Go's JSON scanner, as far as its complaints go; the first that applies is raised."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _peek(self) -> str:
        if self._at >= len(self._data):
            raise _Wrong("unexpected EOF")
        return chr(self._data[self._at])

    def _next(self) -> str:
        sign = self._peek()
        self._at += 1
        return sign

    def _blank(self) -> str:
        while self._peek() in " \t\r\n":
            self._at += 1
        return self._peek()

    def _fail(self, context: str) -> _Wrong:
        sign = self._peek()
        if sign == "'":
            quoted = r"\'"
        elif sign == '"':
            quoted = '"'
        elif sign.isprintable():
            quoted = sign.replace("\\", "\\\\")
        else:
            quoted = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(
                sign, f"\\x{ord(sign):02x}" if ord(sign) < 128 else f"\\u{ord(sign):04x}"
            )
        return _Wrong(f"invalid character '{quoted}' {context}")

    def value(self) -> None:
        sign = self._blank()
        if sign == "{":
            self._object()
        elif sign == "[":
            self._array()
        elif sign == '"':
            self._string()
        elif sign == "-" or sign.isdigit():
            self._number()
        elif sign in "tfn":
            self._literal({"t": "true", "f": "false", "n": "null"}[sign])
        else:
            raise self._fail("looking for beginning of value")

    def _object(self) -> None:
        self._at += 1
        if self._blank() == "}":
            self._at += 1
            return
        while True:
            if self._blank() != '"':
                raise self._fail("looking for beginning of object key string")
            self._string()
            if self._blank() != ":":
                raise self._fail("after object key")
            self._at += 1
            self.value()
            if self._ends("}", "after object key:value pair"):
                return

    def _array(self) -> None:
        self._at += 1
        if self._blank() == "]":
            self._at += 1
            return
        while True:
            self.value()
            if self._ends("]", "after array element"):
                return

    def _ends(self, end: str, context: str) -> bool:
        sign = self._blank()
        if sign not in (",", end):
            raise self._fail(context)
        self._at += 1
        return sign == end

    def _string(self) -> None:
        self._at += 1
        while (sign := self._peek()) != '"':
            if ord(sign) < 0x20:
                raise self._fail("in string literal")
            self._at += 1
            if sign == "\\":
                self._escape()
        self._at += 1

    def _escape(self) -> None:
        if self._peek() not in 'bfnrt\\/"u':
            raise self._fail("in string escape code")
        if self._next() == "u":
            for _ in range(4):
                if self._peek() not in "0123456789abcdefABCDEF":
                    raise self._fail("in \\u hexadecimal character escape")
                self._at += 1

    def _literal(self, word: str) -> None:
        for place, sign in enumerate(word):
            if place and self._peek() != sign:
                raise self._fail(f"in literal {word} (expecting '{sign}')")
            self._at += 1

    def _number(self) -> None:
        if self._peek() == "-":
            self._at += 1
        if self._peek() == "0":
            self._at += 1
        else:
            self._digits("in numeric literal")
        if self._peek() == ".":
            self._at += 1
            self._digits("after decimal point in numeric literal")
        if self._peek() in "eE":
            self._at += 1
            if self._peek() in "+-":
                self._at += 1
            self._digits("in exponent of numeric literal")

    def _digits(self, context: str) -> None:
        if not self._peek().isdigit():
            raise self._fail(context)
        while self._peek().isdigit():
            self._at += 1


# -- durations -------------------------------------------------------------------------------------------------------

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 2**63 / 1e9


def keep_alive(value: object) -> float | None:
    """Seconds a model stays after its last request, `inf` for ever, None to leave things as they are.

    :raise Refusal: 400 in Go's words (ollama-wire §6).
    """
    if value is None:
        return None
    if isinstance(value, bool):
        raise Refusal("Unsupported type: 'bool'", early=True)
    if isinstance(value, int | float):
        seconds = float(value)
    elif isinstance(value, str):
        seconds = _go_duration(value)
    else:
        kind = "[]interface {}" if isinstance(value, list) else "map[string]interface {}"
        raise Refusal(f"Unsupported type: '{kind}'", early=True)
    if seconds < 0:
        return inf
    return seconds if seconds < _LONGEST else 0.0  # it overflows: unloads at once


def _go_duration(text: str) -> float:
    quoted = json.dumps(text, ensure_ascii=False)
    sign, rest = (-1, text[1:]) if text[:1] == "-" else (1, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    if not rest:
        raise Refusal(f"time: invalid duration {quoted}", early=True)
    seconds = 0.0
    while rest:
        found = re.match(r"(\d+\.?\d*|\.\d+)([^\d.]*)", rest)
        if found is None:
            raise Refusal(f"time: invalid duration {quoted}", early=True)
        number, unit = found.groups()
        if not unit:
            raise Refusal(f"time: missing unit in duration {quoted}", early=True)
        if unit not in _UNITS:
            raise Refusal(f"time: unknown unit {json.dumps(unit)} in duration {quoted}", early=True)
        seconds += float(number) * _UNITS[unit]
        rest = rest[found.end() :]
    return sign * seconds
