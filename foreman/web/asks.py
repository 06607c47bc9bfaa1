"""What callers of the async face may say beside the body: how long they wait, and by which key they repeat."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from attrs import frozen
from twisted.web.server import Request

from foreman.job import IdempotencyKey
from foreman.web.errors import BadRequest

LONGEST_WAIT = 300.0
"""Seconds; whoever wants to wait for longer asks again."""

LONGEST_KEY = 255
"""Characters of an idempotency key."""

_PREFERENCE = re.compile(r'([^\s=;,"]+)\s*(?:=\s*(?:"([^"]*)"|([^\s;,"]*)))?[^,]*')
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")


@frozen(kw_only=True)
class Preferences:
    """The `Prefer` headers (RFC 7240), as far as foreman knows them.

    :ivar wait: seconds, at most `LONGEST_WAIT`; None if there is no such preference.
    """

    respond_async: bool = False
    wait: float | None = None


def preferences(request: Request) -> Preferences:
    """Read what the caller would like; what cannot be understood is passed over, as the RFC has it."""
    found: dict[str, str] = {}
    for header in request.requestHeaders.getRawHeaders(b"prefer") or ():
        for name, quoted, plain in _PREFERENCE.findall(header.decode("latin-1")):
            found.setdefault(name.lower(), quoted or plain)
    wait = found.get("wait", "")
    return Preferences(
        respond_async="respond-async" in found,
        wait=_seconds(wait) if _SECONDS.fullmatch(wait) else None,
    )


def wait_of(request: Request) -> float:
    """How long the caller waits, in seconds: by `?wait=`, else by its preference, else not at all.

    :raise BadRequest: the query says something else than a number.
    """
    text = parameter(request, "wait")
    if text is None:
        return preferences(request).wait or 0.0
    if not _SECONDS.fullmatch(text):
        raise BadRequest("wait: must be a number of seconds")
    return _seconds(text)


def _seconds(text: str) -> float:
    return min(float(text), LONGEST_WAIT)


def parameter(request: Request, name: str) -> str | None:
    """A parameter of the query, the first of that name; None if there is none or it is empty."""
    values: Iterable[bytes] = (request.args or {}).get(name.encode(), ())
    return next((value.decode("utf-8", "replace") for value in values if value), None)


def key_of(request: Request, body: bytes) -> IdempotencyKey | None:
    """The key under which this request may be repeated, None if it has none.

    :raise BadRequest: the key cannot be one.
    """
    keys = request.requestHeaders.getRawHeaders(b"idempotency-key") or []
    if not keys:
        return None
    key = keys[0].decode("latin-1")
    if len(keys) > 1 or not re.fullmatch(rf"[!-~](?:[ -~]{{0,{LONGEST_KEY - 2}}}[!-~])?", key):
        raise BadRequest(f"Idempotency-Key: must be one text of 1 to {LONGEST_KEY} printable ASCII characters")
    digest = hashlib.sha256()
    content_type = (request.requestHeaders.getRawHeaders(b"content-type") or [b""])[0]
    # Neither a path nor a header holds a NUL, so that no two requests share their bytes.
    for part in (request.path, content_type):
        digest.update(part + b"\0")
    digest.update(body)
    return IdempotencyKey(key, digest.digest())
