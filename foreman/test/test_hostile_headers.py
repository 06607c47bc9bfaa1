"""Headers and queries of any bytes, and clients that dawdle: read, refused or cut, never a fault of foreman's."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.web.http_headers import Headers

from foreman.durations import LONGEST, format_duration, parse_duration
from foreman.ollama.fake import default_models, streaming_model
from foreman.ollama.names import is_cloud, is_valid, normalise
from foreman.test.front_door import Step, get, post
from foreman.test.harness import House, RawClient, eventually, house, reactor
from foreman.web import pace
from foreman.web.artifacts import Unsatisfiable, span_of
from foreman.web.asks import LONGEST_KEY, LONGEST_WAIT, key_of, preferences
from foreman.web.body import LINGER, Request
from foreman.web.errors import BadRequest
from foreman.web.site import HEAD_TIMEOUT

CHAT = b'{"model": "tiny-a", "messages": [{"role": "user", "content": "x"}], "stream": false}'

ODD = (
    b"",
    b"\xff",
    b"\xc3\xa9",
    b"\x01\x0b\x0c\x7f",
    b'"',
    b'"\\"',
    b",;=,;=",
    b"x" * 60_000,
    b" " * 30_000 + b"x" + b" " * 30_000,
    b"a," + b" " * 60_000 + b",b",
    b'"' * 60_000,
    b"a=" * 30_000,
    b"1" * 60_000,
    b"-1",
    b"1e999",
    b"\xd9\xa1",
    b"bytes=" + b"1" * 19 + b"-" + b"9" * 19,
    b"bytes=" + b" " * 60_000,
    b"bytes=" + b"0-0," * 15_000,
    b"wait=" + b"9" * 60_000,
    b"multipart/form-data; boundary=" + b'\\"' * 20_000,
)

READ = {
    "Prefer": ("POST", "/jobs"),
    "Idempotency-Key": ("POST", "/jobs"),
    "Content-Type": ("POST", "/jobs"),
    "content-type": ("POST", "/v1/audio/transcriptions"),
    "Content-Encoding": ("POST", "/v1/chat/completions"),
    "Range": ("GET", "/jobs/{job}/artifacts/completion"),
    "If-Range": ("GET", "/jobs/{job}/artifacts/completion"),
    "If-None-Match": ("GET", "/jobs/{job}/artifacts/completion"),
    "Last-Event-ID": ("GET", "/jobs/{job}/stream"),
    "Host": ("GET", "/api/tags"),
    "Origin": ("POST", "/api/chat"),
    "Access-Control-Request-Headers": ("OPTIONS", "/api/chat"),
    "Authorization": ("GET", "/jobs"),
    "X-Api-Key": ("GET", "/jobs"),
    "X-Foreman-Job": ("POST", "/api/chat"),
    "X-Forwarded-For": ("POST", "/api/chat"),
    "Cookie": ("POST", "/api/chat"),
    "Connection": ("POST", "/api/chat"),
    "Keep-Alive": ("POST", "/api/chat"),
    "TE": ("POST", "/api/chat"),
    "Upgrade": ("POST", "/api/chat"),
    "Accept-Encoding": ("GET", "/api/tags"),
    "Age": ("GET", "/api/version"),
    "X-HTTP-Method-Override": ("GET", "/jobs/{job}"),
}
"""The headers that foreman reads, or might, and a route where it would."""


async def raw(here: House, data: bytes) -> int:
    """Send bytes as they are; the status of the answer."""
    client = RawClient("GET")
    await connectProtocol(HostnameEndpoint(reactor, "127.0.0.1", int(here.url.rpartition(":")[2])), client)
    assert client.transport is not None
    client.transport.write(data)
    await eventually(lambda: client.head is not None or client.is_closed)
    status = int(client.received.split(b" ", 2)[1])
    client.leave()
    await client.closed
    return status


@pytest_twisted.ensureDeferred
async def test_headers_of_any_bytes() -> None:
    """Whatever a header holds that foreman reads, the answer comes at once and is no fault of foreman's."""
    async with house({"HOLD_LINE": "0"}) as here:
        done = await here.ask("POST", "/jobs", CHAT, headers={"Prefer": "wait=20"})
        spent = time.process_time()
        for name, (method, path) in READ.items():
            for value in ODD:
                target = path.replace("{job}", done.document["job_id"])
                lines = [f"{method} {target} HTTP/1.1", f"Content-Length: {len(CHAT) if method == 'POST' else 0}"]
                lines += ["Host: 127.0.0.1"] if name != "Host" else []
                head = "\r\n".join([*lines, f"{name}: "]).encode() + value + b"\r\n\r\n"
                status = await raw(here, head + (CHAT if method == "POST" else b""))
                assert status < 500, (name, value[:30], status)
        assert time.process_time() - spent < 60


QUERIED = ("/jobs?%s", "/jobs/x?%s", "/jobs/{job}?%s", "/jobs/{job}/events?%s", "/jobs/{job}/artifacts/content?%s")
ODD_QUERIES = (
    *("", "=", "&&&", "%", "%zz", "%00", "%ff", ";", "?", "#", "x" * 60_000, "&".join(f"{n}=1" for n in range(9_000))),
    *(
        f"{name}={value}"
        for name in ("wait", "limit", "state", "model", "after")
        for value in ("-1", "%00", "%ff", "1e9", "9" * 5_000, "%D9%A1", "0x1", "nan", "%20", "done%00", "'--", "[]")
    ),
)


@pytest_twisted.ensureDeferred
async def test_queries_of_any_bytes() -> None:
    """Whatever stands behind the `?` of foreman's own routes, it is understood, refused or passed over."""
    async with house() as here:
        done = await here.ask("POST", "/jobs", CHAT, headers={"Prefer": "wait=20"})
        for path in QUERIED:
            for query in ODD_QUERIES:
                target = path.replace("{job}", done.document["job_id"]) % query
                answer = await here.ask("GET", target)
                assert answer.head is not None
                assert answer.head[0] in (200, 400, 404), target[:100]
                assert answer.head[0] == 200 or answer.document["error"], target[:100]
        for segment in ("%00", "%ff", "..", ".", "%2f", "%2e%2e", "a" * 60_000, "%0d%0aX:%20y", "'--", "{job}%00", "*"):
            for path in ("/jobs/%s", "/jobs/%s/events", "/jobs/%s/stream", "/jobs/x/artifacts/%s", "/queue/%s"):
                answer = await here.ask("GET", path % segment.replace("{job}", done.document["job_id"]))
                assert answer.head is not None
                assert answer.head[0] in (307, 400, 404, 405), (path, segment)
                assert "x" not in answer.head[1]


# -- the first of equal headers ----------------------------------------------------------------------------------------


def test_the_first_of_equal_headers_counts() -> None:
    """A header that comes twice is read as Ollama reads it: by its first line, and whatever its bytes are."""
    found: list[Any] = []

    def take(request: Request) -> None:
        found.extend((request.getHeader("Content-Encoding"), request.getHeader(b"x-odd"), request.getHeader("X-Odd")))
        found.append(request.getHeader("none"))
        request.finish()

    step = Step(take)
    head = get("/", "Content-Encoding: zstd", "content-encoding: identity")[:-2] + b"X-Odd: \xff\r\nX-Odd: a\r\n\r\n"
    assert step.ask(head).status == 200
    assert found == ["zstd", b"\xff", "\xff", None]


@pytest_twisted.ensureDeferred
async def test_a_content_type_of_any_bytes_goes_on_as_it_came() -> None:
    """A job by `respond-async` is sent with the content type it came with, byte for byte."""
    async with house() as here:
        data = post("/api/chat", CHAT, "Prefer: respond-async", "Content-Type: x/?").replace(b"/?", b"/\xff")
        assert await raw(here, data) == 202
        await eventually(lambda: [each for each in here.fake.requests if each.path == "/api/chat"])
        [record] = [each for each in here.fake.requests if each.path == "/api/chat"]
        assert record.headers["content-type"].encode("latin-1") == b"x/\xff"


# -- pure readers ------------------------------------------------------------------------------------------------------


class _Request:
    """As much of a request as the readers of headers look at."""

    path = b"/jobs"

    def __init__(self, name: bytes, *values: bytes) -> None:
        self.requestHeaders = Headers()
        for value in values:
            self.requestHeaders.addRawHeader(name, value)


@given(st.lists(st.binary(max_size=60) | st.text(alphabet='respond-async,wait=;" \t10').map(str.encode), max_size=3))
def test_any_prefer(values: list[bytes]) -> None:
    """No `Prefer` makes anybody wait for longer than may be."""
    request: Any = _Request(b"Prefer", *values)
    assert 0 <= (preferences(request).wait or 0) <= LONGEST_WAIT


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=2))
def test_any_idempotency_key(values: list[bytes]) -> None:
    """A key is printable text of one line, or refused."""
    request: Any = _Request(b"Idempotency-Key", *values)
    try:
        key = key_of(request, b"")
    except BadRequest:
        return
    assert key is not None
    assert key.key.isprintable()
    assert 1 <= len(key.key) <= LONGEST_KEY


@given(st.text(max_size=40) | st.from_regex(r"bytes=[0-9]{0,25}-[0-9]{0,25}", fullmatch=True), st.integers(0, 2**40))
def test_any_range(header: str, size: int) -> None:
    """A range is within the artifact, or none."""
    try:
        span = span_of(header, size)
    except Unsatisfiable:
        return
    assert span is None or 0 <= span.start < span.end <= size


@given(st.text(max_size=60) | st.text(alphabet="/:.@-_ aA0\x1c\u2028\u212a", max_size=60))
def test_any_name(name: str) -> None:
    """Whatever a model is called, it has one spelling, which is its own."""
    one = normalise(name)
    assert normalise(one) == one
    if is_valid(name):
        assert is_valid(one)
        assert one.isascii()
        assert one.isprintable()
        assert is_cloud(one) == is_cloud(name)


@given(st.text(max_size=30) | st.text(alphabet="0123456789.dhmsunµ-+e", max_size=420))
def test_any_duration(text: str) -> None:
    """A duration is a length of time that can be written again, or refused."""
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert 0 <= seconds <= LONGEST
    assert parse_duration(format_duration(seconds)) == seconds


# -- slow clients ------------------------------------------------------------------------------------------------------


def test_a_refused_body_cannot_drip_for_ever() -> None:
    """A stranger without the token keeps no connection by sending a byte now and then."""
    step = Step(TOKEN="s3cret")
    step.send(get("/api/chat", "Content-Length: 1000", method="POST"))
    for _ in range(int(LINGER) - 1):
        step.send(b"x")
        step.clock.advance(1)
    assert step.open
    step.clock.advance(1)
    assert not step.open
    step.connect()
    for _ in range(2):  # a body that comes in time leaves the connection as good as new
        assert step.ask(post("/api/chat", bytes(1000))).status == 401
        step.clock.advance(LINGER - 1)


def test_a_head_costs_the_same_however_many_connections_there_are() -> None:
    """A request's timer is set anew: moved closer, it would be looked for among those of thousands of connections."""
    step = Step()
    [idle] = step.clock.getDelayedCalls()
    step.send(get()[:10])
    [head] = step.clock.getDelayedCalls()
    assert head is not idle
    assert head.getTime() == HEAD_TIMEOUT


def test_connections_are_bounded() -> None:
    """The connection that has been idle for longest makes room for a new one; one that is being answered never does."""
    step = Step(lambda request: None)
    step.site.most = 3
    waiting = step.transport
    step.send(get())
    others = []
    for _ in range(2):
        step.connect()
        others.append((step.transport, step.channel))
    others[0][1].dataReceived(get("/", method="OPTIONS")[:20])  # half a head is none
    step.connect()
    assert [waiting.connected, others[0][0].connected, others[1][0].connected, step.open] == [True, False, True, True]
    for transport in (others[1][0], step.transport):
        transport.protocol.dataReceived(get())
    step.connect()
    assert not step.open
    assert others[1][0].connected
    assert len(step.site.channels) == 3


@pytest_twisted.ensureDeferred
async def test_who_reads_nothing_of_an_artifact_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that stops for good is cut after a while, so that it keeps neither its connection nor what waits."""
    monkeypatch.setattr(pace, "CLIENT_STALL", 0.3)
    models = (streaming_model("big", tokens=600, token_bytes=32_000), *default_models())
    async with house(models=models) as here:
        done = await here.ask("POST", "/jobs", {**json.loads(CHAT), "model": "big"}, headers={"Prefer": "wait=60"})
        path = f"/jobs/{done.document['job_id']}"
        for place in ("artifacts/completion", "stream"):
            client = await here.send("GET", f"{path}/{place}")
            assert client.transport is not None
            client.transport.pauseProducing()  # type: ignore[attr-defined]
            await eventually(lambda: len(here.foreman._site.channels) == 1)
            await eventually(lambda: not here.foreman._site.channels)
            client.transport.resumeProducing()  # type: ignore[attr-defined]
            await client.closed
