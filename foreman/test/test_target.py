"""The client of the target (`foreman.ollama.target`), over loopback, against a server that does its worst."""

from __future__ import annotations

import gzip
import io
from typing import Any

import pytest
from twisted.internet import reactor as _reactor
from twisted.internet.defer import CancelledError, Deferred

from foreman.errors import Lost, Stalled, TooLarge, Truncated
from foreman.ollama.exchange import Head
from foreman.test.badserver import Recorder, asynchronous, cut, rig, turns

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
        assert (await asking).headers == ((b"Content-Length", b"1"), (b"X-Kept", b"1"))
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


@asynchronous
async def test_bodies_of_every_kind() -> None:
    """Bytes, a file from where it stands (and it stays open, for another try), and nothing."""
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
        for body in (b"", io.BytesIO()):
            asking = it.ask(body=body)
            assert (await line.request())[1][b"content-length"] == b"0"
            line.answer()
            await asking
        asking = it.ask(method=b"GET")
        assert b"content-length" not in (await line.request())[1]
        line.answer()
        await asking


@asynchronous
async def test_a_body_that_cannot_be_read() -> None:
    """A file that fails, or ends early, while it is sent ends the exchange with its own error, and the connection."""

    class Torn(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError("torn")

    class Short(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(size) if self.tell() < 65536 else b""

    async with rig() as it:
        for file, error in (
            (Torn(b"123"), OSError),
            (Torn(bytes(100_000)), OSError),
            (Short(bytes(100_000)), EOFError),
        ):
            asking = it.ask(body=file)
            line = await it.server.line()
            with pytest.raises(error, match=r"torn|shorter"):
                await asking
            await line.closed


@asynchronous
async def test_a_long_body_is_read_as_the_target_takes_it() -> None:
    """A file is not read ahead of a target that is slow to take it, and arrives whole."""
    async with rig() as it:
        file = io.BytesIO(bytes(100_000_000))
        asking = it.ask(body=file)
        line = await it.server.line()
        while not line.received:
            await line._more()
        line.transport.pauseProducing()
        before = -1
        while file.tell() != before:
            before = file.tell()
            await turns(50)
        assert file.tell() < 50_000_000
        asking.cancel()
        with pytest.raises(CancelledError):
            await asking
        line.transport.resumeProducing()
        await line.closed
        file = io.BytesIO(bytes(3_000_000))
        asking = it.ask(body=file)
        line = await it.server.line()
        assert (await line.request())[2] == bytes(3_000_000)
        line.answer()
        await asking


# -- calls -----------------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_call() -> None:
    """A small call sends JSON or bytes, follows nothing, keeps no cookies, asks for no compression, and gives all."""
    async with rig(token="t0ken") as it:
        calling = it.call(b"POST", b"/api/show?a=b", {"model": "m"})
        line = await it.server.line()
        first, headers, body = await line.request()
        assert (first, body) == (b"POST /api/show?a=b HTTP/1.1", b'{"model":"m"}')
        assert headers[b"authorization"] == b"Bearer t0ken"
        assert headers[b"content-type"] == b"application/json"
        assert headers[b"host"] == it.server.url.removeprefix("http://").encode()
        line.answer(
            b"{}",
            status=b"307 Elsewhere",
            headers=b"Location: /y\r\nSet-Cookie: a=b\r\nRetry-After: 7\r\n",
        )
        reply = await calling
        assert (reply.status, reply.body, reply.retry_after) == (307, b"{}", 7.0)
        assert reply.header(b"location") == b"/y"
        calling = it.call(b"PUT", body=b"raw", headers=[(b"X-A", b"1"), (b"Accept-Encoding", b"br"), (b"Origin", b"o")])
        _, headers, body = await line.request()
        assert (body, headers[b"x-a"], headers[b"accept-encoding"]) == (b"raw", b"1", b"identity")
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
