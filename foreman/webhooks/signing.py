"""Signatures of webhooks, made and checked: foreman's own header and the Standard Webhooks 1.0.0 scheme.

Every delivery carries both, so that a receiver may use a stock library, or three lines of its own:

* `webhook-id`, `webhook-timestamp` (Unix seconds) and `webhook-signature: v1,<base64>`, the HMAC-SHA256 of
  `id.timestamp.body`.  `verify` checks this one; it also keeps out what is replayed later.
* `X-Foreman-Signature: sha256=<hex>`, the HMAC-SHA256 of the raw body alone.  `verify_body` checks this one; whoever
  has seen a delivery can send it again.

While secrets are rotated both headers hold a signature by each, the current secret's first: the standard one separated
by blanks as the standard has it, foreman's own by a comma without a blank.

This module knows the standard library only: the client imports it too.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence

BODY_SIGNATURE = "X-Foreman-Signature"
ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"

TOLERANCE = 300.0
"""Seconds by which the sender's clock and the receiver's may differ, the travelling time included."""


class SignatureError(ValueError):
    """A delivery that does not prove where it comes from; the text says what is missing or wrong."""


def sign(body: bytes, *, webhook_id: str, timestamp: int, secrets: Sequence[bytes]) -> dict[str, str]:
    """Give the headers that go with this body.

    :param body: the very bytes that are sent.
    :param webhook_id: the same for every try of one event; receivers tell repeats by it.
    :param timestamp: Unix seconds of this try.
    :param secrets: the current one first; with none, the headers name the event and are not signed.
    :raise ValueError: the id is not visible ASCII, or holds the dot that ends it in the signed text.
    """
    if not re.fullmatch("[!-~]+", webhook_id) or "." in webhook_id:
        raise ValueError(f"not an id that can be signed: {webhook_id!r}")
    headers = {ID: webhook_id, TIMESTAMP: str(timestamp)}
    if secrets:
        headers[SIGNATURE] = " ".join(_standard(body, webhook_id, str(timestamp), secret) for secret in secrets)
        headers[BODY_SIGNATURE] = ",".join(_plain(body, secret) for secret in secrets)
    return headers


def verify(headers: Mapping[str, str], body: bytes, secret: bytes, *, tolerance: float = TOLERANCE, now: float) -> str:
    """Check a delivery's standard signature and return its `webhook-id`.

    :param headers: as they came, names in any case.
    :param body: the very bytes that came.
    :param tolerance: seconds by which the timestamp may differ from `now`, either way.
    :param now: Unix seconds.
    :raise SignatureError: a header is missing or malformed, the timestamp is too far off, or no signature is this
        secret's.
    """
    lowered = _lowered(headers)
    webhook_id, timestamp, signatures = (_present(lowered, name) for name in (ID, TIMESTAMP, SIGNATURE))
    if not re.fullmatch("[0-9]{1,12}", timestamp):
        raise SignatureError(f"{TIMESTAMP} is not a number of seconds")
    if abs(age := now - int(timestamp)) > tolerance:
        direction = "old" if age > 0 else "far in the future"
        raise SignatureError(f"{TIMESTAMP} is {abs(age):.0f} s {direction}; {tolerance:.0f} s are allowed")
    if not _is_among(_standard(body, webhook_id, timestamp, secret), signatures.split()):
        raise SignatureError(f"no signature in {SIGNATURE} was made of this body with this secret")
    return webhook_id


def verify_body(headers: Mapping[str, str], body: bytes, secret: bytes) -> None:
    """Check a delivery's `X-Foreman-Signature`, which says nothing of when it was sent.

    :param headers: as they came, names in any case.
    :param body: the very bytes that came.
    :raise SignatureError: the header is missing, or none of its signatures is this secret's.
    """
    signatures = _present(_lowered(headers), BODY_SIGNATURE.lower())
    if not _is_among(_plain(body, secret), [signature.strip() for signature in signatures.split(",")]):
        raise SignatureError(f"no signature in {BODY_SIGNATURE} was made of this body with this secret")


def _standard(body: bytes, webhook_id: str, timestamp: str, secret: bytes) -> str:
    # Bytes of a received header may stand here as surrogates; they only have to sign as something else.
    signed = f"{webhook_id}.{timestamp}.".encode("utf-8", "surrogatepass") + body
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode("ascii")


def _plain(body: bytes, secret: bytes) -> str:
    return "sha256=" + hmac.digest(secret, body, hashlib.sha256).hex()


def _is_among(expected: str, given: Sequence[str]) -> bool:
    """Whether one of them is the expected one, in a time that does not tell how much of it was right."""
    wanted = expected.encode("ascii")
    return any(hmac.compare_digest(wanted, one.encode("utf-8", "surrogatepass")) for one in given)


def _lowered(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _present(headers: Mapping[str, str], name: str) -> str:
    if not headers.get(name):
        raise SignatureError(f"there is no {name} header")
    return headers[name]
