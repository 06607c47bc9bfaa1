"""Signatures of webhooks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from foreman.webhooks.signing import SignatureError, sign, verify, verify_body

BODY = '{"state": "done", "text": "fünf"}'.encode()
NEW, OLD = b"new secret", b"old secret"

bodies = st.binary(max_size=200)
secrets = st.binary(min_size=1, max_size=80)
ids = st.from_regex(r"[!-\-/-~]{1,40}", fullmatch=True)
times = st.integers(0, 10**11)


def signed(*secrets: bytes, now: int = 1000) -> dict[str, str]:
    """The headers of a delivery of `BODY`."""
    return sign(BODY, webhook_id="01J-3", timestamp=now, secrets=secrets)


def test_the_headers_are_those_of_the_contract() -> None:
    """Anybody can work the two signatures out from the contract's own words."""
    plain = hmac.new(NEW, BODY, hashlib.sha256).hexdigest()
    standard = base64.b64encode(hmac.new(NEW, b"01J-3.1000." + BODY, hashlib.sha256).digest()).decode()
    assert signed(NEW) == {
        "webhook-id": "01J-3",
        "webhook-timestamp": "1000",
        "webhook-signature": f"v1,{standard}",
        "X-Foreman-Signature": f"sha256={plain}",
    }


def test_a_stock_library_accepts_our_deliveries() -> None:
    """A receiver with the standardwebhooks package needs to know nothing of foreman, during rotation neither."""
    headers = signed(NEW, OLD, now=int(time.time()))
    for secret in (NEW, OLD):
        assert Webhook(base64.b64encode(secret).decode()).verify(BODY, headers) == {"state": "done", "text": "fünf"}
    with pytest.raises(WebhookVerificationError):
        Webhook(b"another").verify(BODY, headers)


def test_we_accept_the_deliveries_of_a_stock_library() -> None:
    """What that package signs, our check takes."""
    from datetime import UTC, datetime

    signature = Webhook(NEW).sign("msg_1", datetime.fromtimestamp(1000, UTC), BODY.decode())
    headers = {"Webhook-Id": "msg_1", "Webhook-Timestamp": "1000", "Webhook-Signature": signature}
    assert verify(headers, BODY, NEW, now=1000) == "msg_1"


@given(bodies, st.lists(secrets, min_size=1, max_size=2, unique=True), ids, times)
def test_whoever_holds_a_secret_can_check(body: bytes, held: list[bytes], webhook_id: str, now: int) -> None:
    """Every body of bytes, every id: each of the secrets proves it, by either scheme."""
    headers = {
        name.upper(): value for name, value in sign(body, webhook_id=webhook_id, timestamp=now, secrets=held).items()
    }
    for secret in held:
        assert verify(headers, body, secret, now=now) == webhook_id
        verify_body(headers, body, secret)


@given(bodies, secrets, ids, times, st.data())
def test_whatever_was_changed_is_noticed(
    body: bytes, secret: bytes, webhook_id: str, now: int, data: st.DataObject
) -> None:
    """Another body, another id, another time or another secret: no."""
    headers = sign(body, webhook_id=webhook_id, timestamp=now, secrets=[secret])
    other_body = data.draw(bodies.filter(lambda other: other != body))
    # HMAC fills a short key up with zeros and hashes a long one, so that some keys are the same key.
    other_secret = data.draw(secrets.filter(lambda other: other.rstrip(b"\0") != secret.rstrip(b"\0")))
    other_id = data.draw(ids.filter(lambda other: other != webhook_id))
    for changed_headers, changed_body, changed_secret in [
        (headers, other_body, secret),
        (headers, body, other_secret),
        (headers | {"webhook-id": other_id}, body, secret),
        (headers | {"webhook-timestamp": str(now + 1)}, body, secret),
    ]:
        with pytest.raises(SignatureError, match="no signature in webhook-signature"):
            verify(changed_headers, changed_body, changed_secret, now=now)
    for changed_body, changed_secret in [(other_body, secret), (body, other_secret)]:
        with pytest.raises(SignatureError, match="no signature in X-Foreman-Signature"):
            verify_body(headers, changed_body, changed_secret)


@pytest.mark.parametrize(("now", "fine"), [(700, True), (1300, True), (699, False), (1301, False)])
def test_a_delivery_is_fresh_for_five_minutes(now: int, fine: bool) -> None:
    """What somebody recorded and sends again later is refused, and so is what a wrong clock signed."""
    if fine:
        verify(signed(NEW), BODY, NEW, now=now)
        return
    with pytest.raises(SignatureError, match=r"301 s old|301 s far in the future"):
        verify(signed(NEW), BODY, NEW, now=now)


def test_the_tolerance_is_the_receivers_choice() -> None:
    """A laptop whose clock drifts may allow more."""
    verify(signed(NEW), BODY, NEW, tolerance=3600, now=4600)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"webhook-id": ""}, "no webhook-id"),
        ({"webhook-timestamp": ""}, "no webhook-timestamp"),
        ({"webhook-signature": ""}, "no webhook-signature"),
        ({"webhook-timestamp": "soon"}, "not a number"),
        ({"webhook-timestamp": "-5"}, "not a number"),
        ({"webhook-timestamp": "1" * 5000}, "not a number"),
        ({"webhook-timestamp": "1000.5"}, "not a number"),
        ({"webhook-signature": "v1"}, "no signature"),
        ({"webhook-signature": "v1,ü \udcff v1a,x"}, "no signature"),
        ({"webhook-id": "\udcff"}, "no signature"),
    ],
)
def test_the_error_says_what_is_wrong(change: dict[str, str], complaint: str) -> None:
    """Somebody who sets up a receiver reads which header is missing or malformed."""
    with pytest.raises(SignatureError, match=complaint):
        verify(signed(NEW) | change, BODY, NEW, now=1000)


def test_a_missing_body_signature_is_named() -> None:
    """The same for the header of foreman's own."""
    with pytest.raises(SignatureError, match="no x-foreman-signature header"):
        verify_body({}, BODY, NEW)


def test_without_a_secret_an_event_still_has_its_name() -> None:
    """Receivers tell repeats by `webhook-id`, signed or not."""
    assert signed() == {"webhook-id": "01J-3", "webhook-timestamp": "1000"}


@pytest.mark.parametrize("webhook_id", ["", "a.b", "a b", "ä", "a\r\nX: y"])
def test_an_id_that_could_be_read_two_ways_is_not_signed(webhook_id: str) -> None:
    """No id can end early in the signed text, or in the header."""
    with pytest.raises(ValueError, match="not an id"):
        sign(b"", webhook_id=webhook_id, timestamp=0, secrets=[])


def test_the_client_can_use_it_without_the_daemon() -> None:
    """Checking signatures needs nothing but Python."""
    code = (
        "import sys; before = set(sys.modules); import foreman.webhooks.signing; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - sys.stdlib_module_names - {'foreman'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
