"""The connections to the target (`foreman.ollama.wire`): when they are used again, and when not."""

from __future__ import annotations

import io
import socket
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from twisted.internet import reactor as _reactor
from twisted.internet.ssl import DefaultOpenSSLContextFactory

from foreman.errors import TargetError
from foreman.test.badserver import Line, Recorder, Rig, asynchronous, cut, rig, turns
from foreman.test.certificates import certificate

reactor: Any = _reactor


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
    """An idle connection is watched by the system's keepalive; closing the target closes it."""
    async with rig() as it:
        line, asking, _ = await it.asked()
        line.answer()
        await asking
        (wire,) = it.target._wires._idle
        handle = wire.transport.getHandle()
        assert handle.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
        assert handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        it.target.close()
        await line.closed


@asynchronous
async def test_a_connection_that_has_died_is_not_used() -> None:
    """One that the target has closed, has spoken on unasked, or that was idle for long, is passed over: a new one."""

    async def too_long(it: Rig, _: Line) -> None:
        it.clock.advance(241)

    async def closed(_: Rig, line: Line) -> None:
        line.hang_up()
        await line.closed
        await turns(5)

    async def unasked(_: Rig, line: Line) -> None:
        line.say(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        await line.closed

    for ends in (too_long, closed, unasked):
        async with rig() as it:
            line, asking, _ = await it.asked()
            line.answer()
            await asking
            await ends(it, line)
            other, asking, _ = await it.asked()
            other.answer()
            await asking
            await line.closed
            assert len(it.server.lines) == 2
            assert [wire.reused for wire in it.target._wires._idle] == [True]


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokMORE",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nMORE",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
)
@asynchronous
async def test_only_a_clean_end_keeps_the_connection(said: bytes) -> None:
    """Bytes after the end, or a target that closes: the answer counts, and the connection is not used again."""
    async with rig() as it:
        line, asking, sink = await it.asked()
        line.say(said)
        assert (await asking).status == 200
        assert sink.pieces == [b"ok"]
        await line.closed


@asynchronous
async def test_a_second_answer_is_nobodys() -> None:
    """Who is asked for in the same turn in which an answer ended is not given what the target said behind it."""
    async with rig() as it:
        line, asking, _ = await it.asked()
        sink, others = Recorder(), list[Any]()
        asking.addCallback(lambda _: others.append(it.ask(sink)))
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 65000\r\nX: "
        padding = bytes(65536 - 65000 - len(head) - 4).replace(b"\0", b"x")  # one reading ends where the answer does
        line.say(head + padding + b"\r\n\r\n" + bytes(65000) + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nold")
        await asking
        other = await it.server.line()
        await other.request()
        other.answer(b"new")
        await others[0]
        assert sink.pieces == [b"new"]
        await line.closed


@pytest.mark.parametrize("body", [bytes(50_000_000), io.BytesIO(bytes(50_000_000))], ids=["bytes", "file"])
@asynchronous
async def test_an_answer_before_the_request_was_sent_ends_the_connection(body: Any) -> None:
    """A target that refuses a long body before it has come: the rest of it stands in nobody's way."""
    async with rig() as it:
        asking = it.ask(sink := Recorder(), body=body)
        line = await it.server.line()
        while not line.received:
            await line._more()
        line.transport.pauseProducing()
        line.answer(b"too long", status=b"413 Too Large")
        assert (await asking).status == 413
        assert sink.pieces == [b"too long"]
        assert it.target._wires._idle == []
        line.transport.resumeProducing()
        await line.closed


@asynchronous
async def test_a_paused_answer_that_ends_leaves_its_connection_reading() -> None:
    """Whoever pauses an answer that has come whole: the next one on its connection is read all the same."""
    async with rig() as it:
        line, asking, _ = await it.asked(sink=Recorder(on_begin=lambda flow: flow.pause()))
        line.answer(b"1")
        await asking
        asking = it.ask(sink := Recorder())
        await line.request()
        line.answer(b"2")
        await asking
        assert sink.pieces == [b"2"]


@asynchronous
async def test_few_connections_are_kept() -> None:
    """After a burst at most eight stay open."""
    async with rig() as it:
        asking = [it.ask() for _ in range(10)]
        for _ in range(10):
            line = await it.server.line()
            await line.request()
            line.answer()
        for each in asking:
            await each
        assert len(it.target._wires._idle) == 8


@asynchronous
async def test_over_ipv6() -> None:
    """A target may have an IPv6 address."""
    async with rig(interface="::1") as it:
        line, asking, _ = await it.asked()
        line.answer()
        assert (await asking).status == 200


@asynchronous
async def test_over_tls(tls: DefaultOpenSSLContextFactory) -> None:
    """An https target is asked as any other: bodies of all sizes, connections used again, cut when cancelled."""
    async with rig(tls=tls, on=reactor) as it:
        line, asking, sink = await it.asked(body=b"small")
        line.begin()
        line.chunk(b"one")
        line.chunk(b"two")
        line.chunk()
        assert (await asking).status == 200
        assert b"".join(sink.pieces) == b"onetwo"
        asking = it.ask(body=io.BytesIO(bytes(3_000_000)))
        assert (await line.request())[2] == bytes(3_000_000)
        line.answer()
        await asking
        asking = it.ask()
        await line.request()
        await cut(asking, line)
        assert len(it.server.lines) == 1


@asynchronous
async def test_over_tls_with_nobody_to_trust(tmp_path: Path) -> None:
    """A target whose certificate nobody vouches for gets nothing."""
    async with rig(tls=certificate(tmp_path, x509.DNSName("nas")), on=reactor) as it:
        with pytest.raises(TargetError):
            await it.ask(body=b"secret")
        assert [line.received for line in it.server.lines] == [b""]
