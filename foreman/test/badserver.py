"""A TCP server that does what a test tells it, byte by byte: the target at its worst, with foreman's client before it.

`async with rig() as it:` listens on loopback and has a `Target` for it; `await it.server.line()` is the next
connection, and on it the test reads requests and says whatever it likes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any, TypeVar

import pytest
import pytest_twisted
from attrs import define, field
from twisted.internet import reactor as _reactor
from twisted.internet.defer import CancelledError, Deferred, DeferredQueue
from twisted.internet.interfaces import IReactorPluggableNameResolver, IReactorTCP, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from foreman.ollama.exchange import Flow, Head
from foreman.ollama.target import Reply, Target
from foreman.tick import Tick

reactor: Any = _reactor

PATIENCE = 60.0
"""Seconds after which a test is given up."""

_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
HOME = f"127.0.0.{2 + int(_WORKER.removeprefix('gw'))}" if _WORKER and sys.platform == "linux" else "127.0.0.1"
"""Where servers listen: another address in each process that runs tests.  A port that one process has given back is
soon another's, and whoever goes on asking there would be taken for the one that is tested."""

_Test = TypeVar("_Test", bound=Callable[..., Any])


class Line(Protocol):
    """One connection, seen from the server.

    :ivar received: what has come and belongs to no request read so far.
    :ivar closed: fires when the peer, or this side, has closed the connection.
    """

    transport: Any

    def __init__(self) -> None:
        self.received = b""
        self.closed: Deferred[None] = Deferred()
        self._waiting: Deferred[None] | None = None

    def dataReceived(self, data: bytes) -> None:
        """Keep it, and wake whoever waits."""
        self.received += data
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Take note of the end."""
        self.closed.callback(None)

    async def request(self) -> tuple[bytes, dict[bytes, bytes], bytes]:
        """Wait for a whole request: its first line, its headers by lower-case name, and its body."""
        while b"\r\n\r\n" not in self.received:
            await self._more()
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        headers: dict[bytes, bytes] = {}
        for name, value in (line.split(b": ", 1) for line in lines):
            headers[name.lower()] = b", ".join([headers[name.lower()], value] if name.lower() in headers else [value])
        length = int(headers.get(b"content-length", b"0"))
        while len(self.received) < length:
            await self._more()
        body, self.received = self.received[:length], self.received[length:]
        return first, headers, body

    def say(self, *pieces: bytes) -> None:
        """Send these bytes."""
        self.transport.writeSequence(pieces)

    def answer(self, body: bytes = b"", *, status: bytes = b"200 OK", headers: bytes = b"") -> None:
        """Send a whole answer with its length."""
        self.say(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n" % (status, len(body), headers), body)

    def begin(self, headers: bytes = b"") -> None:
        """Send the head of a chunked answer."""
        self.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n%b\r\n" % headers)

    def chunk(self, data: bytes = b"") -> None:
        """Send one chunk; an empty one ends the answer."""
        self.say(b"%x\r\n%b\r\n" % (len(data), data))

    def hang_up(self) -> None:
        """Close the connection."""
        self.transport.loseConnection()

    def reset(self) -> None:
        """Break the connection."""
        self.transport.abortConnection()

    def _more(self) -> Deferred[None]:
        self._waiting = Deferred()
        return self._waiting


class BadServer(Factory):
    """The listening side.

    :ivar url: where it listens.
    :ivar lines: every connection so far.
    """

    protocol = Line

    def __init__(self) -> None:
        self.url = ""
        self.lines: list[Line] = []
        self._queue: DeferredQueue[Line] = DeferredQueue()

    def buildProtocol(self, addr: object) -> Line:  # noqa: N802
        """Take a connection."""
        line = Line()
        self.lines.append(line)
        self._queue.put(line)
        return line

    def line(self) -> Deferred[Line]:
        """Wait for the next connection."""
        return self._queue.get()


@asynccontextmanager
async def bad_server(tls: Any = None, interface: str = "") -> AsyncIterator[BadServer]:
    """A server on loopback, gone with the block, its connections with it.

    :param tls: a context factory, to have it speak TLS.
    :param interface: an address of this machine, else one that no test in another process talks to.
    """
    interface = interface or (HOME if tls is None else "127.0.0.1")
    server = BadServer()
    where = {"interface": interface}
    port = reactor.listenSSL(0, server, tls, **where) if tls else reactor.listenTCP(0, server, **where)
    host = f"[{interface}]" if ":" in interface else interface
    server.url = f"http{'s' if tls else ''}://{host}:{port.getHost().port}"
    try:
        yield server
    finally:
        await port.stopListening()
        for line in server.lines:
            if not line.closed.called:
                line.reset()
            await line.closed


@implementer(IReactorTime, IReactorTCP, IReactorPluggableNameResolver)
class SteppedReactor:
    """The real reactor, but with timers that only move by hand."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.seconds, self.callLater = self.clock.seconds, self.clock.callLater
        self.nameResolver = reactor.nameResolver

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


@define(eq=False)
class Recorder:
    """A sink that keeps everything.

    :ivar on_begin: called with the flow, `on_write` with each piece, to interfere.
    """

    on_begin: Callable[[Flow], object] = lambda _: None
    on_write: Callable[[bytes], object] = lambda _: None
    heads: list[Head] = field(factory=list)
    pieces: list[bytes] = field(factory=list)
    flow: Any = None
    arrived: DeferredQueue[bytes] = field(factory=DeferredQueue)

    def begin(self, head: Head, flow: Flow) -> None:
        """Keep the head."""
        self.heads.append(head)
        self.flow = flow
        self.arrived.put(b"head")
        self.on_begin(flow)

    def write(self, data: bytes) -> None:
        """Keep the piece."""
        self.pieces.append(data)
        self.arrived.put(data)
        self.on_write(data)


@define(eq=False)
class Rig:
    """A target and the server behind it.

    :ivar reactor: the target's.
    :ivar clock: what steps its timers, when the reactor is a `SteppedReactor`.
    :ivar now: the wall clock of the heartbeat.
    """

    server: BadServer
    reactor: Any
    token: str
    prefix: str
    now: float = 0.0
    clock: Clock = field(init=False)
    tick: Tick = field(init=False)
    target: Target = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.clock = getattr(self.reactor, "clock", Clock())
        self.tick = Tick(Clock(), lambda: self.now)
        self.target = Target(self.reactor, self.tick, url=self.server.url + self.prefix, token=self.token)

    def ask(self, sink: Recorder | None = None, method: bytes = b"POST", path: bytes = b"/x", **more: Any) -> Any:
        """Start an exchange."""
        more = {"first_byte": 7200, "between": 300, **more}
        return Deferred.fromCoroutine(self.target.exchange(method, path, sink=sink or Recorder(), **more))

    def call(self, method: bytes = b"GET", path: bytes = b"/api/ps", json: Any = None, **more: Any) -> Deferred[Reply]:
        """Start a call."""
        return Deferred.fromCoroutine(self.target.call(method, path, json, **{"timeout": 5.0, **more}))

    def beat(self, times: int = 1, *, step: float = 1.0) -> None:
        """Let seconds of silence pass."""
        for _ in range(times):
            self.now += step
            self.tick.beat()

    async def asked(self, **more: Any) -> tuple[Line, Deferred[Head], Recorder]:
        """Start an exchange and wait until the server has the request."""
        sink = more.pop("sink", None) or Recorder()
        asking = self.ask(sink, **more)
        line = await self.server.line()
        await line.request()
        return line, asking, sink


@asynccontextmanager
async def rig(
    *, token: str = "", on: Any = None, prefix: str = "", tls: Any = None, interface: str = ""
) -> AsyncIterator[Rig]:
    """A `Rig` whose timers are stepped by hand, unless it is `on` the real reactor, as with `tls` it must be."""
    async with bad_server(tls, interface) as server:
        made = Rig(server, on or SteppedReactor(), token, prefix)
        try:
            yield made
            assert not made.tick._listeners, "something still listens to the heartbeat"
        finally:
            made.target.close()


async def cut(asking: Deferred[Any], line: Line) -> None:
    """Cancel, and see the server told, though none of foreman's timers goes off: those move by hand."""
    asking.cancel()
    with pytest.raises(CancelledError):
        await asking
    await line.closed


async def turns(count: int) -> None:
    """Give the real reactor so many turns."""
    for _ in range(count):
        await deferLater(reactor, 0)


def asynchronous(test: _Test) -> _Test:
    """Run a coroutine function as a test in the reactor; one that waits for what never comes fails."""

    @wraps(test)
    async def bounded(*args: Any, **kwargs: Any) -> None:
        await Deferred.fromCoroutine(test(*args, **kwargs)).addTimeout(PATIENCE, reactor)

    return pytest_twisted.ensureDeferred(bounded)  # type: ignore[no-any-return]
