"""One exchange with the target (`foreman.ollama.exchange`), and every way in which it can go wrong."""

from __future__ import annotations

import io
import socket
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet import reactor as _reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPullProducer
from zope.interface import implementer

from foreman.errors import Lost, NotReachable, Truncated
from foreman.ollama.target import Target
from foreman.test.badserver import Line, Recorder, SteppedReactor, asynchronous, cut, rig, turns

reactor: Any = _reactor


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
async def test_a_reset_is_no_end() -> None:
    """A body that only the close delimits is complete when the target closes properly, not when the line breaks."""
    async with rig() as it:
        line, asking, sink = await it.asked()
        line.say(b"HTTP/1.1 200 OK\r\n\r\nabc")
        await sink.arrived.get()
        line.reset()
        with pytest.raises(Truncated):
            await asking


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
    """Whatever the stage, cancelling closes the connection at the target at once, and the sink hears no more."""
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
        asking = it.ask(body=io.BytesIO(bytes(50_000_000)))
        line = await it.server.line()
        while not line.received:
            await line._more()
        line.transport.pauseProducing()
        line.answer(status=b"413 Too Large")
        assert (await asking).status == 413
        line.transport.resumeProducing()
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
