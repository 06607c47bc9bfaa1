"""Bodies: whole and untouched for those who may send them, bounded, and let go exactly once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreman.test.front_door import KB, Step, asynchronous, chunked, echo, get, listening, post, until
from foreman.web import body as body_module
from foreman.web.body import IN_MEMORY, LINGER, Request


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=b",
        "multipart/form-data",
        "x",
        "application/json",
    ],
)
def test_bodies_come_through_untouched(content_type: str) -> None:
    """Whatever a client says its body is, it is not parsed, and its bytes arrive as they are."""
    bodies: list[bytes] = []

    def take(request: Request) -> None:
        bodies.append(request.body())
        bodies.append(request.body())
        assert request.args == {b"q": [b"1"]}
        request.finish()

    sent = b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\n&a=%ff\r\n"
    Step(take).send(post("/api/chat?q=1", sent, f"Content-Type: {content_type}"))
    assert bodies == [sent, sent]


@pytest.mark.parametrize("size", [0, 1, IN_MEMORY, IN_MEMORY + 1, 300 * KB])
@pytest.mark.parametrize("by_chunks", [False, True])
def test_bodies_of_any_size_arrive_whole_and_are_let_go(size: int, by_chunks: bool) -> None:
    """A body is counted while its request is open, and not afterwards."""
    held: list[int] = []

    def take(request: Request) -> None:
        held.append(step.site.bodies.held)
        echo(request)

    step = Step(take)
    data = bytes(size)
    request = chunked("/api/chat", *([data] if data else [])) + b"0\r\n\r\n" if by_chunks else post("/api/chat", data)
    assert json.loads(step.ask(request).body)["size"] == size
    assert held == [size]
    assert step.site.bodies.held == 0


def test_a_large_body_is_not_kept_in_memory() -> None:
    """Long prompts that wait in the queue wait on disk."""
    step = Step(lambda request: None)
    step.send(post("/api/chat", bytes(IN_MEMORY)))
    assert not step.native.seen[0].content._rolled
    step.connect()
    step.send(post("/api/chat", bytes(IN_MEMORY + 1)))
    assert step.native.seen[1].content._rolled


def test_a_declared_body_that_is_too_large_is_refused_at_once() -> None:
    """A client hears 413 before it has sent all, and in its API's shape."""
    step = Step(MAX_BODY="200KiB")
    step.send(get("/v1/chat/completions", f"Content-Length: {200 * KB + 1}", method="POST"))
    answer = step.answer()
    assert answer.status == 413
    assert json.loads(answer.body)["error"]["type"] == "api_error"
    assert answer["connection"] == "close"
    assert not step.native.seen


def test_a_chunked_body_that_grows_too_large_is_refused_where_it_does() -> None:
    """A client that does not say how much it sends is stopped at the limit, and what it sent is let go."""
    step = Step(MAX_BODY="200KiB")
    step.send(chunked("/api/chat", bytes(200 * KB)))
    assert step.transport.value() == b""
    assert step.site.bodies.held == 200 * KB
    step.send(b"1\r\nx\r\n")
    assert step.answer().status == 413
    assert step.site.bodies.held == 0


def test_the_rest_of_a_refused_body_is_read_so_that_the_answer_is_not_lost() -> None:
    """The connection is closed when the body has come, or soon after, and nothing more is kept or answered."""
    step = Step(MAX_BODY="200KiB")
    step.send(get("/api/chat", f"Content-Length: {300 * KB}", method="POST"))
    answered = step.transport.value()
    step.send(bytes(300 * KB - 1))
    assert step.open
    assert step.site.bodies.held == 0
    step.send(b"x" + get("/api/tags"))
    assert not step.open
    assert step.transport.value() == answered

    step.connect()
    step.send(chunked("/api/chat", bytes(201 * KB)))
    step.clock.advance(LINGER - 1)
    assert step.open
    step.clock.advance(1)
    assert not step.open
    assert not step.clock.getDelayedCalls()


def test_a_small_refused_body_leaves_the_connection_usable() -> None:
    """A client that is refused something small need not connect again."""
    step = Step(MAX_BODY="1KiB")
    assert step.ask(post("/api/chat", bytes(2 * KB))).status == 413
    assert step.ask(post("/api/chat", bytes(KB))).status == 200


def test_all_bodies_together_are_bounded() -> None:
    """When too much waits, the next caller is told to come again, before or while it sends; and then it may."""
    step = Step(lambda request: None, MAX_BODY="10KiB")
    for _ in range(15):
        step.send(post("/api/chat", bytes(10 * KB)))
        step.connect()
    step.send(chunked("/api/chat", bytes(10 * KB)))  # still coming
    first = step.channel
    step.connect()
    answer = step.ask(post("/api/chat", b"x"))
    assert (answer.status, answer["retry-after"]) == (503, "5")
    assert step.ask(get()[:-2] + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").status == 503
    first.transport.loseConnection()
    step.connect()
    step.send(post("/api/chat", b"x"))
    assert step.transport.value() == b""  # taken
    assert step.site.bodies.held == 150 * KB + 1


def test_spooled_bodies_and_connections_leave_descriptors_free() -> None:
    """A large body takes a file: idle connections make room for it, and where none is left the answer is `503`."""
    step = Step(lambda request: None)
    step.site.most_files = 5
    large, ends = post("/api/chat", bytes(IN_MEMORY + 1)), []
    for _ in range(2):
        step.send(large)
        ends.append(step.transport)
        step.connect()
    idle = step.transport
    step.connect()
    assert not idle.connected
    step.send(large)
    assert step.answer().status == 503
    assert (len(step.site.channels), step.site.files) == (2, 2)
    step.connect()
    step.send(post("/api/chat", bytes(IN_MEMORY)))
    assert step.transport.value() == b""
    ends[0].loseConnection()
    assert step.site.files == 1
    echo(step.native.seen[1])
    assert step.site.files == 0


def test_a_head_begun_behind_an_answer_is_idle() -> None:
    """Half a request behind one that was answered at once keeps no connection from making room for others."""
    step = Step(lambda request: None)
    step.site.most = 1
    half = step.transport
    step.send(get("*", method="OPTIONS") + b"GET /api/tags HTTP/1.1\r\nHost: 127")
    step.connect()
    assert not half.connected
    step.send(get("/api/tags"))
    working = step.transport
    step.connect()
    assert (working.connected, step.open) == (True, False)


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that cannot be spooled is a 503, not a dropped connection."""

    class Full:
        def __init__(self, max_size: int) -> None: ...

        def tell(self) -> int:
            return 0

        def write(self, data: bytes) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    monkeypatch.setattr(body_module, "SpooledTemporaryFile", Full)
    step = Step()
    assert step.ask(post("/api/chat", b"x")).status == 503
    assert step.site.bodies.held == 0


@pytest.mark.parametrize("path", ["/api/blobs/sha256:0", "/api/blobs%2Fsha256:0"])
def test_uploads_of_models_have_no_limit_when_they_are_allowed(path: str) -> None:
    """A model of many gigabytes can be uploaded when the operator allows it, and then only."""
    step = Step(MAX_BODY="1KiB", MODEL_ADMIN="on")
    assert json.loads(step.ask(post(path, bytes(64 * KB))).body)["size"] == 64 * KB
    assert step.ask(get(path, method="HEAD"), head_only=True).status == 200
    assert step.ask(post("/api/chat", bytes(2 * KB))).status == 413
    assert Step(MAX_BODY="1KiB").ask(post(path, bytes(64 * KB))).status == 413


def test_a_client_that_asks_first_is_told_to_go_on_or_not() -> None:
    """With `Expect: 100-continue` a body is asked for, unless it would be refused."""
    step = Step(MAX_BODY="200KiB")
    step.send(get("/api/chat", "Content-Length: 3", "Expect: 100-continue", method="POST"))
    assert step.transport.value() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert json.loads(step.ask(b"abc").body)["size"] == 3
    step.transport.clear()
    step.send(get("/api/chat", f"Content-Length: {300 * KB}", "Expect: 100-continue", method="POST"))
    assert step.answer().status == 413
    assert b"100 Continue" not in step.transport.value()


@given(st.lists(st.integers(0, 40)), st.integers(0, 700), st.booleans(), st.data())
def test_whatever_is_cut_where_nothing_stays_counted(sizes: list[int], leave: int, wait: bool, data: Any) -> None:
    """However the bytes are cut and wherever the client leaves, all that was held is let go, exactly once."""
    step = Step((lambda request: None) if wait else echo, MAX_BODY="200")
    body = bytes(sum(sizes))
    stream = chunked("/api/chat", *(bytes(size) for size in sizes if size)) + b"0\r\n\r\n"
    stream += post("/api/chat", body)
    sent = 0
    while sent < min(leave, len(stream)) and step.open:
        step_size = data.draw(st.integers(1, 200))
        step.send(stream[sent : min(sent + step_size, leave)])
        sent += step_size
        assert 0 <= step.site.bodies.held <= 400
    if step.open:
        step.transport.loseConnection()
    assert step.site.bodies.held == 0
    assert not step.clock.getDelayedCalls()


@asynchronous
async def test_an_upload_that_is_too_large_hears_so_though_it_sends_on() -> None:
    """A client that sends all its body before it reads still reads the 413."""
    async with listening(MAX_BODY="200KiB") as door:
        wire = await door.connect()
        wire.send(post("/api/chat", bytes(20_000 * KB)))
        answer = await wire.answer()
        assert answer.status == 413
        assert json.loads(answer.body) == {"error": "the request body is too large: at most 204800 bytes are taken"}
        await wire.closed
        assert door.site.bodies.held == 0


@asynchronous
async def test_a_client_that_leaves_mid_body_leaves_nothing_behind() -> None:
    """A broken upload frees its room at once."""
    async with listening(MAX_BODY="200KiB") as door:
        for request in (
            get("/a", "Content-Length: 100000", method="POST") + bytes(90 * KB),
            chunked("/a", bytes(90 * KB)),
        ):
            wire = await door.connect()
            wire.send(request + b"1")
            await until(lambda: door.site.bodies.held)
            wire.transport.loseConnection()
            await wire.closed
            await until(lambda: not door.site.bodies.held)
        assert not door.native.seen


@asynchronous
async def test_a_client_that_leaves_while_it_waits_frees_its_body() -> None:
    """The body of a waiting call is let go when its client leaves, and the face is told."""
    left: list[object] = []
    async with listening(lambda request: request.notifyFinish().addErrback(left.append)) as door:
        wire = await door.connect()
        wire.send(post("/api/chat", bytes(200 * KB)))
        await until(lambda: door.native.seen)
        assert door.site.bodies.held == 200 * KB
        wire.transport.loseConnection()
        await until(lambda: left)
        assert door.site.bodies.held == 0
