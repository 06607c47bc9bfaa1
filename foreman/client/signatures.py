"""Webhooks, for receivers: is it foreman's, is it fresh, and what does it say.  docs/webhooks.md has the rules."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping

from foreman.client.documents import read
from foreman.client.errors import InvalidSignature, NotForeman
from foreman.client.values import WebhookEvent
from foreman.webhooks import signing

TOLERANCE = signing.TOLERANCE
"""Seconds by which the clocks may differ, the travelling time included."""


def verify(
    headers: Mapping[str, str],
    body: bytes,
    secret: str | bytes,
    *,
    tolerance: float | None = TOLERANCE,
    now: float | None = None,
) -> WebhookEvent:
    """Check that a delivery comes from foreman, and return what it says.

    :param headers: as they came, names in any case.
    :param body: the very bytes that came.
    :param secret: foreman's FOREMAN_WEBHOOK_SECRET; as bytes, the key itself.
    :param tolerance: seconds for which a delivery is fresh.  None to take it however old it is; then foreman's own
        header will do, for where only that gets through.
    :param now: Unix seconds; unless said, what the clock says.
    :raise InvalidSignature: it does not prove that it is foreman's, or not that it is fresh.
    :raise NotForeman: it is signed, and yet no event.
    :raise ValueError: the secret is empty, or begins with `whsec_` and is not base64.
    """
    key = key_of(secret)
    try:
        if tolerance is not None or any(name.lower() == signing.SIGNATURE for name in headers):
            moment = time.time() if now is None else now
            signing.verify(headers, body, key, tolerance=float("inf") if tolerance is None else tolerance, now=moment)
        else:
            signing.verify_body(headers, body, key)
    except signing.SignatureError as error:
        raise InvalidSignature(str(error)) from error
    return event_of(body)


def event_of(body: bytes) -> WebhookEvent:
    """What a webhook says, whoever it is from.

    :raise NotForeman: it is no event.
    """
    try:
        return read(WebhookEvent, json.loads(body))
    except ValueError as error:
        raise NotForeman(f"no event: {error}") from None


def key_of(secret: str | bytes) -> bytes:
    """The key that a secret stands for, as foreman reads it.

    :raise ValueError: it is empty, or begins with `whsec_` and is not base64.
    """
    if isinstance(secret, bytes):
        key = secret
    elif secret.startswith("whsec_"):
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except ValueError as error:
            raise ValueError(f"the secret begins with whsec_ and is not base64: {error}") from None
    else:
        key = secret.encode("utf-8", "surrogateescape")
    if not key:
        raise ValueError("the secret is empty")
    return key
