"""Bytes as Go's encoders write them: JSON, times and sizes.  Source: ollama-wire §4, recorded traffic."""

from __future__ import annotations

import time
from functools import lru_cache

import orjson

_HTML = (
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    (b"&", b"\\u0026"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)


def go_json(value: object) -> bytes:
    """`value` as Go's `encoding/json` writes it: no blanks, keys in their order, HTML's signs escaped."""
    data = orjson.dumps(value)
    for plain, escaped in _HTML:
        if plain in data:
            data = data.replace(plain, escaped)
    return data


def go_float(text: str) -> orjson.Fragment:
    """A number written as Go writes it where Python would not (Go: `0.00001`, Python: `1e-05`)."""
    return orjson.Fragment(text.encode())


@lru_cache(maxsize=64)
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as Go's RFC3339Nano in UTC: trailing zeros dropped."""
    whole, nanos = divmod(int(seconds * 1_000_000_000), 1_000_000_000)
    fraction = f".{nanos:09d}".rstrip("0").rstrip(".")
    return f"{_second(whole)}{fraction}Z"


def nanoseconds(seconds: float) -> int:
    """A duration as Ollama reports it; at least 1, since Go leaves zeros out and a real duration never is."""
    return max(1, int(seconds * 1_000_000_000))
