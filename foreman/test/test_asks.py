"""What callers may say in headers: preferences, waits and idempotency keys."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.web.http_headers import Headers

from foreman.test.harness import eventually  # noqa: F401 - installs the reactor first
from foreman.web.asks import LONGEST_KEY, Preferences, key_of, parameter, preferences, wait_of
from foreman.web.errors import BadRequest


class _Request:
    """As much of a request as is asked for here."""

    def __init__(self, *headers: tuple[str, str], path: bytes = b"/jobs", **args: str) -> None:
        self.requestHeaders = Headers()
        for name, value in headers:
            self.requestHeaders.addRawHeader(name, value.encode("latin-1"))
        self.path = path
        self.args = {name.encode(): [value.encode()] for name, value in args.items()}


def request(*headers: tuple[str, str], **more: Any) -> Any:
    """A request with those headers."""
    return cast(Any, _Request(*headers, **more))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], Preferences()),
        (["respond-async"], Preferences(respond_async=True)),
        (["Respond-Async, WAIT=10"], Preferences(respond_async=True, wait=10)),
        (["respond-async", "wait=10"], Preferences(respond_async=True, wait=10)),
        (['wait="10"'], Preferences(wait=10)),
        (["wait = 2 ; strict"], Preferences(wait=2)),
        (["wait=10, wait=20"], Preferences(wait=10)),
        (["wait=9999"], Preferences(wait=300)),
        (["wait=soon"], Preferences()),
        (["wait=-1"], Preferences()),
        (["wait"], Preferences()),
        (["return=minimal; foo=bar, respond-async;x"], Preferences(respond_async=True)),
        (["respond-asynchronously"], Preferences()),
    ],
)
def test_preferences(headers: list[str], expected: Preferences) -> None:
    """`Prefer` is read as RFC 7240 writes it; what makes no sense is passed over."""
    assert preferences(request(*[("Prefer", each) for each in headers])) == expected


@given(st.text(alphabet='respond-async,wait=;" 10', max_size=40))
def test_any_preference_is_read(header: str) -> None:
    """No `Prefer` header makes foreman stumble or wait for longer than it may."""
    wait = preferences(request(("Prefer", header))).wait
    assert wait is None or 0 <= wait <= 300


def test_the_query_goes_before_the_preference() -> None:
    """`?wait=` is what counts when both are there."""
    assert wait_of(request(("Prefer", "wait=20"), wait="1.5")) == 1.5
    assert wait_of(request(("Prefer", "wait=20"))) == 20
    assert wait_of(request()) == 0


@pytest.mark.parametrize("text", ["soon", "-1", "1e9", "NaN", "\u0661"])
def test_a_wait_that_is_no_number_is_refused(text: str) -> None:
    """A mistyped `?wait=` is told so, not silently no wait."""
    with pytest.raises(BadRequest, match="wait: must be"):
        wait_of(request(wait=text))


def test_an_empty_parameter_is_none() -> None:
    """`?model=` asks for nothing."""
    assert parameter(request(model=""), "model") is None


@pytest.mark.parametrize("key", ["", " ", "ä", "a\tb", "x" * (LONGEST_KEY + 1)])
def test_a_key_that_cannot_be_one_is_refused(key: str) -> None:
    """A key that would not come back the same is refused, not stored."""
    with pytest.raises(BadRequest, match="Idempotency-Key"):
        key_of(request(("Idempotency-Key", key)), b"")


def test_two_keys_are_refused() -> None:
    """Which of them counts nobody knows."""
    with pytest.raises(BadRequest, match="must be one text"):
        key_of(request(("Idempotency-Key", "a"), ("Idempotency-Key", "b")), b"")


def test_a_key_covers_route_content_type_and_body() -> None:
    """The same key with another route, content type or body is another request."""
    one = ("Idempotency-Key", "k")
    requests = [
        key_of(request(one), b"body"),
        key_of(request(one), b"bodY"),
        key_of(request(one, path=b"/api/chat"), b"body"),
        key_of(request(one, ("Content-Type", "application/x-ndjson")), b"body"),
    ]
    digests = {each.digest for each in requests if each is not None}
    assert len(digests) == 4
    again = key_of(request(one), b"body")
    assert again is not None
    assert again == requests[0]
    assert key_of(request(), b"body") is None


@pytest.mark.parametrize("key", ["a", "ab", '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "x" * LONGEST_KEY])
def test_good_keys(key: str) -> None:
    """Whatever clients make up as keys is taken."""
    found = key_of(request(("Idempotency-Key", key)), b"")
    assert found is not None
    assert found.key == key
