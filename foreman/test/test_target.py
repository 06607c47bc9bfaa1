"""The client of the target (`foreman.ollama.target`), over loopback, against a server that does its worst."""

from __future__ import annotations

import gzip
import io
import socket
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet import reactor as _reactor
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IPullProducer
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from foreman.errors import Lost, NotReachable, Stalled, TooLarge, Truncated
from foreman.ollama.exchange import Head
from foreman.ollama.target import Target
from foreman.test.badserver import Line, Recorder, SteppedReactor, asynchronous, rig, turns

reactor: Any = _reactor


# -- whole answers ---------------------------------------------------------------------------------------------------


@asynchronous
async def test_chunk_for_chunk() -> None:
    """Head and chunks are handed on as they come, one write for one chunk, before the next has been sent."""
    async with rig() as it:
        line, asking, sink = await it.asked()
        line.begin(b"Content-Type: application/x-ndjson\r\n")
        assert await sink.arrived.get() == b"head"
        for piece in (b'{"a":1}\n', b"\x00\xff\r\n\r\n", b"z" * 30_000):
            line.chunk(piece)
            got = await sink.arrived.get()
            while len(got) < len(piece):
                got += await sink.arrived.get()
            assert got == piece
        line.say(b"1\r\na\r\n2\r\nbc\r\n")
        assert [await sink.arrived.get(), await sink.arrived.get()] == [b"a", b"bc"]
        assert not asking.called
        line.chunk()
        head = await asking
        assert head is sink.heads[0]
        assert head == Head(200, b"OK", ((b"Content-Type", b"application/x-ndjson"),))
        assert it.target.bytes_in == 8 + 6 + 30_000 + 3


@asynchronous
async def test_content_is_not_touched() -> None:
    """A compressed body stays as it is, and compression is asked for only if the client did."""
    body = gzip.compress(b"hello")
    async with rig() as it:
        line, asking, _ = await it.asked()
        line.answer()
        await asking
        for headers in ((), ((b"Accept-Encoding", b"br"),)):
            sink = Recorder()
            asking = it.ask(sink, headers=headers)
            _, seen, _ = await line.request()
            assert seen.get(b"accept-encoding") == (b"br" if headers else None)
            line.answer(body, headers=b"Content-Encoding: gzip\r\n")
            assert (b"Content-Encoding", b"gzip") in (await asking).headers
            assert b"".join(sink.pieces) == body


@pytest.mark.parametrize("status", [b"200 OK", b"302 Found", b"404 Not Found", b"500 ", b"503 Busy", b"299"])
@asynchronous
async def test_any_complete_answer_is_an_answer(status: bytes) -> None:
    """The status is not judged here, and redirects are not followed."""
    async with rig() as it:
        line, asking, sink = await it.asked()
        line.answer(b"text", status=status, headers=b"Location: /y\r\nSet-Cookie: a=b\r\nX-A: 1\r\nX-A: 2\r\n")
        head = await asking
        code, _, phrase = status.partition(b" ")
        assert (head.status, head.phrase) == (int(code), phrase)
        assert sink.pieces == [b"text"]
        assert [value for name, value in head.headers if name == b"X-A"] == [b"1", b"2"]
        assert (b"Content-Length", b"4") in head.headers
        asking = it.ask()
        first, seen, _ = await line.request()
        assert first == b"POST /x HTTP/1.1"
        assert b"cookie" not in seen
        asking.cancel()
        with pytest.raises(CancelledError):
            await asking


@asynchronous
async def test_answers_without_a_body() -> None:
    """HEAD, 204, 304 and an empty body end with their head; the length of a HEAD's answer is kept."""
    async with rig() as it:
        asking = it.ask(method=b"HEAD")
        line = await it.server.line()
        await line.request()
        line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n")
        assert (await asking).headers == ((b"Content-Length", b"17"),)
        for status, length in (
            (b"204 No Content", b""),
            (b"304 Not Modified", b""),
            (b"200 OK", b"Content-Length: 0\r\n"),
        ):
            sink = Recorder()
            asking = it.ask(sink, method=b"DELETE")
            await line.request()
            line.say(b"HTTP/1.1 %b\r\n%b\r\n" % (status, length))
            assert (await asking).headers == (((b"Content-Length", b"0"),) if length else ())
            assert sink.pieces == []
        assert len(it.server.lines) == 1


@asynchronous
async def test_a_body_that_the_close_delimits() -> None:
    """An HTTP/1.0 answer without a length is complete when the connection ends."""
    async with rig() as it:
        line, asking, sink = await it.asked()
        line.say(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\none")
        line.say(b"two")
        line.hang_up()
        assert (await asking).status == 200
        assert b"".join(sink.pieces) == b"onetwo"


@asynchronous
async def test_hop_by_hop_headers_of_the_answer() -> None:
    """What concerns only the target's own connection is left out, with whatever `Connection` names."""
    async with rig() as it:
        line, asking, _ = await it.asked()
        line.answer(
            b"x",
            headers=b"Connection: Keep-Alive, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: 5\r\nTrailer: X\r\n"
            b"Upgrade: h2c\r\nTE: x\r\nProxy-Authenticate: x\r\nProxy-Whatever: x\r\nX-Kept: 1\r\n",
        )
        assert (await asking).headers == ((b"X-Kept", b"1"), (b"Content-Length", b"1"))
        asking = it.ask()
        await line.request()
        line.say(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert (await asking).headers == ()


# -- the request -----------------------------------------------------------------------------------------------------


@asynchronous
async def test_what_the_target_is_sent() -> None:
    """The client's request as it was, less what is not for the target, plus foreman's own host and token."""
    async with rig(token="t0ken", prefix="/ollama/") as it:
        path = b"/api//x/../y;p?q=%2F&r=&#?"
        headers = [
            (b"Host", b"evil.example"),
            (b"content-type", b"application/json"),
            (b"User-Agent", b"ollama/0.32"),
            (b"X-Twice", b"1"),
            (b"x-twice", b"2"),
            (b"Connection", b"close, X-Hop"),
            (b"Connection", b"x-hop-too"),
            *((name, b"no") for name in (b"X-Hop", b"X-Hop-Too", b"AUTHORIZATION", b"X-Api-Key", b"Origin", b"Cookie")),
            *(
                (name, b"no")
                for name in (b"Expect", b"Transfer-Encoding", b"TE", b"Trailer", b"Upgrade", b"Keep-Alive")
            ),
            *((name, b"no") for name in (b"Proxy-Authorization", b"Proxy-Connection")),
            (b"Content-Length", b"999"),
        ]
        asking = it.ask(path=path, headers=headers, body=b'{"model": "m"}')
        line = await it.server.line()
        await line.request()
        line.answer()
        await asking
        asking = it.ask(path=path, headers=headers, body=b'{"model": "m"}')
        while b"}" not in line.received:
            await line._more()
        head, _, body = line.received.partition(b"\r\n\r\n")
        line.received = b""
        first, *rest = head.split(b"\r\n")
        assert first == b"POST /ollama" + path + b" HTTP/1.1"
        assert sorted(rest) == [
            b"Authorization: Bearer t0ken",
            b"Content-Length: 14",
            b"Content-Type: application/json",
            b"Host: " + it.server.url.removeprefix("http://").encode(),
            b"User-Agent: ollama/0.32",
            b"X-Twice: 1",
            b"X-Twice: 2",
        ]
        assert body == b'{"model": "m"}'
        line.answer()
        await asking


_BAD: list[dict[str, Any]] = [
    {"headers": [(b"X-A", b"a\r\nHost: evil")]},
    {"headers": [(b"X-A", b"a\n b")]},
    {"headers": [(b"X-A", b"a\0b")]},
    {"headers": [(b"Authorization", b"dropped\r\n, but not passed over")]},
    {"headers": [(b"X-A: b\r\nX-B", b"c")]},
    {"headers": [(b"", b"c")]},
    {"path": b"/x HTTP/1.1\r\nX: y"},
    {"path": b"/x\r\n"},
    {"path": b"/\xc3\xa9"},
    {"path": b""},
    {"path": b"http://elsewhere/"},
    {"method": b"GET /\r\n"},
]


@pytest.mark.parametrize("bad", _BAD, ids=lambda bad: repr(bad)[:40])
@asynchronous
async def test_nothing_can_be_smuggled_in(bad: dict[str, Any]) -> None:
    """A header, path or method with line breaks or blanks in it is refused before any connection is made."""
    async with rig() as it:
        with pytest.raises(ValueError, match=r"."):
            await it.ask(**bad)
        if "method" not in bad:
            with pytest.raises(ValueError, match=r"."):
                await it.call(**bad)
        await turns(20)
        assert it.server.lines == []


@implementer(IBodyProducer)
class Halves:
    """A body in two pieces, of which the second may never come."""

    def __init__(self, length: Any, *, ends: bool) -> None:
        self.length = length
        self.ends = ends

    def startProducing(self, consumer: Any) -> Deferred[None]:  # noqa: N802
        """Produce the first, and maybe the second."""
        consumer.write(b"one")
        if not self.ends:
            return Deferred()
        consumer.write(b"two")
        return succeed(None)

    def pauseProducing(self) -> None:
        """Nothing is under way; so for the other two."""

    resumeProducing = stopProducing = pauseProducing


@asynchronous
async def test_bodies_of_every_kind() -> None:
    """Bytes, a file from where it stands (and it stays open, for another try), a producer, and nothing."""
    async with rig(on=reactor) as it:
        file = io.BytesIO(b"skip" + b"f" * 200_000)
        for _ in range(2):
            file.seek(4)
            asking = it.ask(body=file)
            line = it.server.lines[0] if it.server.lines else await it.server.line()
            assert (await line.request())[2] == b"f" * 200_000
            line.answer()
            await asking
            assert not file.closed
        for body in (b"", None):
            asking = it.ask(body=body)
            assert (await line.request())[1][b"content-length"] == b"0"
            line.answer()
            await asking
        asking = it.ask(body=Halves(UNKNOWN_LENGTH, ends=True))
        assert (await line.request())[1][b"transfer-encoding"] == b"chunked"
        while not line.received.endswith(b"0\r\n\r\n"):
            await line._more()
        assert line.received == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
        line.received = b""
        line.answer()
        await asking


@asynchronous
async def test_a_body_that_cannot_be_read() -> None:
    """A file that fails while it is sent ends the exchange with its own error, and the connection."""

    class Torn(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError("torn")

    async with rig(on=reactor) as it:
        asking = it.ask(body=Torn(b"123"))
        line = await it.server.line()
        with pytest.raises(OSError, match="torn"):
            await asking
        await line.closed


# -- what goes wrong -------------------------------------------------------------------------------------------------


@asynchronous
async def test_nobody_listens() -> None:
    """A refused connection is `NotReachable`, and so is a name that nobody knows, or a connection that never stands."""
    async with rig(on=reactor) as it:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            it.target = Target(reactor, it.tick, url=f"http://127.0.0.1:{closed.getsockname()[1]}")
            with pytest.raises(NotReachable, match="refused"):
                await it.ask()
            assert await it.target.probe() is False


class Resolver:
    """A name resolver that knows nobody, at once or never."""

    def __init__(self, *, ever: bool) -> None:
        self.ever = ever

    def resolveHostName(self, receiver: Any, name: str, **_: Any) -> None:  # noqa: N802
        """Say so."""
        receiver.resolutionBegan(None)
        if self.ever:
            receiver.resolutionComplete()


@asynchronous
async def test_nobody_of_that_name() -> None:
    """A name that cannot be found is `NotReachable`; so is a lookup or a connection that takes too long."""
    stepped: Any = SteppedReactor()
    async with rig(on=stepped) as it:
        stepped.nameResolver = Resolver(ever=True)
        with pytest.raises(NotReachable, match="cannot connect to http://127"):
            await it.ask()
        stepped.nameResolver = Resolver(ever=False)
        asking, calling, probing = it.ask(), it.call(timeout=2.0), Deferred.fromCoroutine(it.target.probe())
        stepped.clock.advance(2.0)
        assert await probing is False
        with pytest.raises(NotReachable, match="within 2 s"):
            await calling
        assert not asking.called
        stepped.clock.advance(8.0)
        with pytest.raises(NotReachable, match="within 10 s"):
            await asking
        assert it.server.lines == []


_END = pytest.mark.parametrize("end", [Line.hang_up, Line.reset], ids=["closed", "reset"])


@_END
@asynchronous
async def test_lost_before_the_answer(end: Callable[[Line], None]) -> None:
    """A connection that breaks before the first byte is `Lost`, used or not; the request is never sent again."""
    async with rig() as it:
        line, asking, _ = await it.asked(body=b"once")
        end(line)
        with pytest.raises(Lost) as lost:
            await asking
        assert lost.value.reused is False

        for method in (b"POST", b"GET"):
            line, asking, _ = await it.asked()
            line.answer()
            await asking
            asking = it.ask(method=method, body=b"once")
            await line.request()
            end(line)
            with pytest.raises(Lost) as lost:
                await asking
            assert lost.value.reused is True
        assert len(it.server.lines) == 3


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 200 OK\r\nContent-", b"HTTP/1.1 2", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 x y\r\n"]
)
@asynchronous
async def test_a_broken_head(said: bytes) -> None:
    """Some bytes but no whole head: `Lost`, and never excused by a used connection."""
    async with rig() as it:
        line, asking, _ = await it.asked()
        line.answer()
        await asking
        sink = Recorder()
        asking = it.ask(sink)
        await line.request()
        line.say(said)
        line.hang_up()
        with pytest.raises(Lost) as lost:
            await asking
        assert lost.value.reused is False
        assert sink.heads == []


_CUT = [
    b"Content-Length: 9\r\n\r\nabc",
    *(b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n" + tail for tail in (b"", b"9\r\n", b"0\r\n")),
]


@_END
@pytest.mark.parametrize("rest", _CUT, ids=repr)
@asynchronous
async def test_an_answer_cut_short(rest: bytes, end: Callable[[Line], None]) -> None:
    """A body that ends before its framing says so is `Truncated`; what had come was handed on."""
    async with rig() as it:
        line, asking, sink = await it.asked()
        line.say(b"HTTP/1.1 200 OK\r\n", rest)
        assert await sink.arrived.get() == b"head"
        assert await sink.arrived.get() == b"abc"
        end(line)
        with pytest.raises(Truncated):
            await asking
        assert sink.pieces == [b"abc"]


@asynchronous
async def test_broken_framing() -> None:
    """A chunk that is none is `Truncated` too, and the connection is closed."""
    async with rig() as it:
        line, asking, _ = await it.asked()
        line.begin()
        line.say(b"nonsense\r\n")
        with pytest.raises(Truncated):
            await asking
        await line.closed


@asynchronous
async def test_a_sink_that_fails() -> None:
    """What the sink raises is what the exchange raises, and the connection is closed, at the head or in the body."""

    def fails(_: object) -> None:
        raise ZeroDivisionError

    async with rig() as it:
        for sink in (Recorder(on_begin=fails), Recorder(on_write=fails)):
            line, asking, _ = await it.asked(sink=sink)
            line.begin()
            line.say(b"1\r\na\r\n1\r\nb\r\n")
            with pytest.raises(ZeroDivisionError):
                await asking
            await line.closed
            assert len(sink.pieces) <= 1


# -- cancelling ------------------------------------------------------------------------------------------------------


async def cut(asking: Any, line: Line) -> None:
    """Cancel, and see the server told within 50 ms."""
    before = reactor.seconds()
    asking.cancel()
    with pytest.raises(CancelledError):
        await asking
    assert await line.closed - before < 0.05


@asynchronous
async def test_cancelled_while_connecting() -> None:
    """Nothing is sent, and no connection stays."""
    async with rig() as it:
        for asking in (it.ask(), it.call(), it.call(fresh=True)):
            asking.cancel()
            with pytest.raises(CancelledError):
                await asking
        line, asking, _ = await it.asked()
        await cut(asking, line)
        assert [seen for seen in it.server.lines if seen.received] == []


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize(
    "stage", ["sending", "waiting", "in the head", "at the head", "in the body", "close-delimited"]
)
@asynchronous
async def test_cancelled(stage: str, paused: bool) -> None:
    """Whatever the stage, cancelling closes the connection at the target within 50 ms, and the sink hears no more."""
    sink = Recorder(on_begin=(lambda flow: flow.pause()) if paused else (lambda _: None))
    async with rig() as it:
        if stage == "sending":
            asking = it.ask(sink, body=b"x" * 50_000_000)
            line = await it.server.line()
            while not line.received:
                await line._more()
            line.transport.pauseProducing()
            await turns(20)
            line.transport.resumeProducing()
        else:
            line, asking, _ = await it.asked(sink=sink)
        if stage == "in the head":
            line.say(b"HTTP/1.1 200 OK\r\nX-A")
        if stage == "close-delimited":
            line.say(b"HTTP/1.0 200 OK\r\n\r\n")
        if stage in ("at the head", "in the body"):
            line.begin()
        if stage in ("at the head", "in the body", "close-delimited"):
            assert await sink.arrived.get() == b"head"
        if stage == "in the body":
            line.chunk(b"abc")
            await turns(20)
        await turns(3)
        await cut(asking, line)
        assert len(sink.pieces) == (stage == "in the body" and not paused)


@asynchronous
async def test_cancelled_by_the_sink() -> None:
    """A sink may cancel from within `begin` or `write`: not one piece more reaches it."""
    cancels: list[Any] = []
    for sink in (Recorder(on_begin=lambda _: cancels[-1]()), Recorder(on_write=lambda _: cancels[-1]())):
        async with rig() as it:
            line, asking, _ = await it.asked(sink=sink)
            cancels.append(asking.cancel)
            line.begin()
            line.say(b"1\r\na\r\n1\r\nb\r\n")
            with pytest.raises(CancelledError):
                await asking
            await line.closed
            assert len(sink.pieces) == len(cancels) - 1


@asynchronous
async def test_an_answer_before_the_request_is_out() -> None:
    """A target that answers without reading the rest: the answer counts, and the connection is not used again."""
    async with rig() as it:
        asking = it.ask(body=Halves(1_000_000, ends=False))
        line = await it.server.line()
        while not line.received:
            await line._more()
        line.answer(status=b"413 Too Large")
        assert (await asking).status == 413
        await line.closed


# -- backpressure ----------------------------------------------------------------------------------------------------


@implementer(IPullProducer)
class Flood:
    """The server sends `left` chunks of 64 KiB, as fast as they are taken."""

    def __init__(self, line: Line, left: int) -> None:
        self.line = line
        self.left = left
        line.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """Send one more."""
        self.left -= 1
        self.line.chunk(b"x" * 65536)
        if self.left == 0:
            self.line.transport.unregisterProducer()
            self.line.chunk()

    def stopProducing(self) -> None:
        """Nothing to do."""


@pytest.mark.parametrize("where", ["head", "body"])
@asynchronous
async def test_a_slow_reader_slows_the_target(where: str) -> None:
    """While reading is paused the target is made to wait and nothing piles up here; afterwards every byte arrives."""
    async with rig() as it:
        sink = Recorder()
        setattr(sink, "on_begin" if where == "head" else "on_write", lambda _: sink.flow.pause())
        line, asking, _ = await it.asked(sink=sink)
        line.begin()
        await sink.arrived.get()
        flood = Flood(line, 1000)
        before = -1
        tracemalloc.start()
        while flood.left != before:
            before = flood.left
            await turns(50)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert flood.left > 500  # the rest waits in the sockets' buffers
        assert sum(map(len, sink.pieces)) <= (0 if where == "head" else 65536)
        assert held < 1_000_000
        assert not asking.called
        sink.on_write = lambda _: None
        sink.flow.resume()
        await asking
        assert b"".join(sink.pieces) == b"x" * 65_536_000


@asynchronous
async def test_a_flow_outlives_its_exchange_harmlessly() -> None:
    """Pausing after the end does not touch the connection, which may serve another exchange by then."""
    async with rig() as it:
        line, asking, first = await it.asked()
        line.answer(b"1")
        await asking
        asking = it.ask(second := Recorder())
        await line.request()
        first.flow.pause()
        line.answer(b"2")
        await asking
        first.flow.resume()
        assert second.pieces == [b"2"]


# -- calls -----------------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_call() -> None:
    """A small call sends JSON or bytes, follows nothing, keeps no cookies, and gives status, headers and plain body."""
    async with rig(token="t0ken") as it:
        calling = it.call(b"POST", b"/api/show?a=b", {"model": "m"})
        line = await it.server.line()
        first, headers, body = await line.request()
        assert (first, body) == (b"POST /api/show?a=b HTTP/1.1", b'{"model":"m"}')
        assert headers[b"authorization"] == b"Bearer t0ken"
        assert headers[b"host"] == it.server.url.removeprefix("http://").encode()
        line.answer(
            gzip.compress(b"{}"),
            status=b"307 Elsewhere",
            headers=b"Location: /y\r\nContent-Encoding: gzip\r\nSet-Cookie: a=b\r\nRetry-After: 7\r\n",
        )
        reply = await calling
        assert (reply.status, reply.body, reply.retry_after) == (307, b"{}", 7.0)
        assert reply.header(b"location") == b"/y"
        assert reply.header(b"content-encoding") is None
        calling = it.call(b"PUT", body=b"raw", headers=[(b"X-A", b"1"), (b"Accept-Encoding", b"br"), (b"Origin", b"o")])
        _, headers, body = await line.request()
        assert (body, headers[b"x-a"], headers[b"accept-encoding"]) == (b"raw", b"1", b"gzip")
        assert not {b"cookie", b"origin"} & headers.keys()
        line.answer(b"", headers=b"Retry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n")
        assert (await calling).retry_after is None
        calling = it.call(fresh=True)
        other = await it.server.line()
        assert (await other.request())[1][b"connection"] == b"close"
        other.answer(b"x")
        assert (await calling).body == b"x"
        await other.closed


@asynchronous
async def test_a_call_is_bounded_in_bytes() -> None:
    """An answer over the limit is not read to its end: the connection is closed."""
    async with rig() as it:
        for size in (1000, 1001):
            calling = it.call(limit=1000)
            line = it.server.lines[0] if it.server.lines else await it.server.line()
            await line.request()
            line.answer(b"x" * size)
            if size == 1000:
                assert len((await calling).body) == 1000
        with pytest.raises(TooLarge):
            await calling
        await line.closed


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"])
@asynchronous
async def test_a_call_is_bounded_in_time(said: bytes) -> None:
    """The time is for all of it, head and body; at its end the connection is closed."""
    async with rig() as it:
        calling = it.call(timeout=2.0)
        line = await it.server.line()
        await line.request()
        line.say(said)
        await turns(20)
        it.clock.advance(1.9)
        assert not calling.called
        it.clock.advance(0.1)
        with pytest.raises(Stalled) as stalled:
            await calling
        assert stalled.value.probe_answered is False
        await line.closed


@asynchronous
async def test_a_call_that_fails() -> None:
    """A call fails as an exchange does, leaves no timer behind, and cancelling it closes its connection."""
    async with rig() as it:
        for said, error in ((b"", Lost), (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", Truncated)):
            calling = it.call()
            line = await it.server.line()
            await line.request()
            line.say(said)
            line.hang_up()
            with pytest.raises(error):
                await calling
        calling = it.call()
        line = await it.server.line()
        await line.request()
        await cut(calling, line)
        assert it.clock.getDelayedCalls() == []


@asynchronous
async def test_a_probe() -> None:
    """Only a 200 within the time says that the target is there."""
    async with rig() as it:
        for status, there in ((b"200 OK", True), (b"502 Bad Gateway", False), (None, False)):
            probing = Deferred.fromCoroutine(it.target.probe())
            line = await it.server.line()
            await line.request()
            if status is None:
                it.clock.advance(1.0)
            else:
                line.answer(status=status)
            assert await probing is there
            await line.closed


@asynchronous
async def test_connections_are_used_again() -> None:
    """Three exchanges at a time take three connections, the next three the same ones; a fresh one has its own."""
    async with rig() as it:
        lines: list[Line] = []
        for _ in range(2):
            asking = [it.ask() for _ in range(3)]
            while len(lines) < 3:
                lines.append(await it.server.line())
            for line in lines:
                await line.request()
            for line in lines:
                line.answer(b"x")
            for each in asking:
                await each
        assert len(it.server.lines) == 3
        asked = it.ask(fresh=True)
        line = await it.server.line()
        assert (await line.request())[1][b"connection"] == b"close"
        line.answer(b"x")
        await asked
        await line.closed


@asynchronous
async def test_connections_are_kept_alive_and_closed() -> None:
    """An idle connection is watched by the system's keepalive; closing the target closes it, or does not wait long."""
    async with rig() as it:
        line, asking, _ = await it.asked()
        line.answer()
        await asking
        (connection,) = it.target._pool._connections["target"]
        handle = connection.transport.getHandle()
        assert handle.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
        await it.target.close()
        await line.closed
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(it.target._pool, "closeCachedConnections", Deferred)  # as with a TLS peer that sleeps
            closing = Deferred.fromCoroutine(it.target.close())
            it.clock.advance(1.0)
            await closing
