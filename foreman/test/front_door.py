"""What tests of the front door stand on: a site with stub faces, driven over TCP or step by step on a clock."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest_twisted
from attrs import define, field
from klein import Klein
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.web.server import NOT_DONE_YET

from foreman.config import Configuration
from foreman.web.body import Request
from foreman.web.errors import install_error_handlers
from foreman.web.site import make_site

reactor: Any = _reactor
asynchronous: Callable[[Callable[..., Coroutine[Any, Any, None]]], Any] = pytest_twisted.ensureDeferred

KB = 1024


class Own:
    """A Klein face with one route of each kind."""

    app = Klein()

    @app.route("/healthz", methods=["GET"])
    def healthz(self, request: Request) -> bytes:
        """Whom it talks to."""
        return json.dumps({"authenticated": request.authenticated}).encode()

    @app.route("/jobs", methods=["POST"])
    def jobs(self, request: Request) -> bytes:
        """How large the body was."""
        return b"%d" % len(request.body())


install_error_handlers(Own.app)


def echo(request: Request) -> None:
    """The stub's usual answer: what it was asked, and how large the body was."""
    seen = {"method": request.method.decode(), "uri": request.uri.decode(), "size": len(request.body())}
    request.responseHeaders.setRawHeaders(b"content-type", [b"application/json"])
    request.write(json.dumps(seen).encode())
    request.finish()


@define
class Native:
    """A stub of the native face."""

    answer: Callable[[Request], Any] = echo
    seen: list[Request] = field(factory=list)

    def render(self, request: Request) -> int:
        """Take note, and answer."""
        self.seen.append(request)
        self.answer(request)
        return NOT_DONE_YET


def site_of(native: Native, clock: Any, **settings: str) -> Any:
    """A site with FOREMAN_… settings, named without the prefix."""
    config = Configuration.from_environment({f"FOREMAN_{name}": value for name, value in settings.items()})
    return make_site(native=native, own=Own().app.resource(), config=config, reactor=clock)


@define
class Answer:
    """An answer off the wire; names of headers in lower case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key == name]

    def __getitem__(self, name: str) -> str:
        [value] = self.all(name)
        return value


def parse(data: bytes, *, head_only: bool = False) -> tuple[Answer, bytes] | None:
    """The first whole answer in `data` and what follows it; None while it is not whole."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None
    first, *lines = head.decode().split("\r\n")
    headers = [(key.lower(), value) for key, value in (line.split(": ", 1) for line in lines)]
    answer = Answer(int(first.split()[1]), headers, b"")
    if head_only or answer.status in (100, 204):
        return answer, rest
    if answer.all("transfer-encoding") == ["chunked"]:
        while True:
            size, end, after = rest.partition(b"\r\n")
            if not end or len(after) < int(size, 16) + 2:
                return None
            answer.body += after[: int(size, 16)]
            rest = after[int(size, 16) + 2 :]
            if not int(size, 16):
                return answer, rest
    length = int(answer["content-length"])
    answer.body = rest[:length]
    return (answer, rest[length:]) if len(rest) >= length else None


def get(path: str = "/api/tags", *headers: str, method: str = "GET", host: str = "127.0.0.1") -> bytes:
    """A request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode()


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A request with a body of declared length."""
    return get(path, f"Content-Length: {len(body)}", *headers, method="POST") + body


def chunked(path: str, *pieces: bytes) -> bytes:
    """A request with a chunked body, as far as the last piece."""
    head = get(path, "Transfer-Encoding: chunked", method="POST")
    return head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


class Transport(StringTransportWithDisconnection):
    """In memory; tells that it is closing, as real ones do."""

    def loseConnection(self) -> None:
        """Close."""
        self.disconnecting = True
        super().loseConnection()  # type: ignore[no-untyped-call]


class Step:
    """One connection to a site on a `Clock`, without sockets."""

    def __init__(self, answer: Callable[[Request], Any] = echo, **settings: str) -> None:
        self.clock: Any = Clock()
        self.native = Native(answer)
        self.site = site_of(self.native, self.clock, **settings)
        self.connect()

    def connect(self) -> None:
        """Go on with a new connection."""
        self.transport: Any = Transport()  # type: ignore[no-untyped-call]
        self.channel: Any = self.site.buildProtocol(None)
        self.transport.protocol = self.channel
        self.channel.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.channel.dataReceived(data)

    def answer(self, **how: bool) -> Answer:
        """What has been answered on this connection, whole."""
        parsed = parse(self.transport.value(), **how)
        assert parsed is not None, self.transport.value()
        return parsed[0]

    def ask(self, data: bytes, **how: bool) -> Answer:
        """Send a request and take its answer."""
        self.transport.clear()
        self.send(data)
        return self.answer(**how)

    @property
    def open(self) -> bool:
        """Whether the connection is."""
        return bool(self.transport.connected)


class Wire(Protocol):
    """A client that sends bytes and takes answers apart."""

    def __init__(self) -> None:
        self.received = b""
        self.closed: Deferred[None] = Deferred()
        self._more: Deferred[None] | None = None

    def dataReceived(self, data: bytes) -> None:
        """Bytes came."""
        self.received += data
        self._wake()

    def connectionLost(self, reason: object = None) -> None:
        """The server closed, or we did."""
        self.closed.callback(None)
        self._wake()

    def _wake(self) -> None:
        if self._more is not None:
            more, self._more = self._more, None
            more.callback(None)

    def send(self, data: bytes) -> None:
        """Send bytes."""
        assert self.transport is not None
        self.transport.write(data)

    async def answer(self) -> Answer:
        """The next whole answer."""
        while (parsed := parse(self.received)) is None:
            assert not self.closed.called, f"closed after {self.received!r}"
            self._more = Deferred()
            await self._more
        answer, self.received = parsed
        return answer


@define
class Door:
    """A listening site."""

    native: Native
    site: Any
    port: int
    wires: list[Any] = field(factory=list)

    async def connect(self) -> Any:
        """A new connection to it."""
        there = HostnameEndpoint(reactor, "127.0.0.1", self.port)
        wire = await connectProtocol(there, Wire())
        self.wires.append(wire)
        return wire


@asynccontextmanager
async def listening(answer: Callable[[Request], Any] = echo, **settings: str) -> AsyncIterator[Door]:
    """A site on a free port of the loopback interface."""
    native = Native(answer)
    site = site_of(native, reactor, **settings)
    port = reactor.listenTCP(0, site, interface="127.0.0.1")
    door = Door(native, site, port.getHost().port)
    try:
        yield door
    finally:
        for wire in door.wires:
            wire.transport.abortConnection()
            await wire.closed
        await port.stopListening()


async def until(condition: Callable[[], object]) -> None:
    """Let the reactor turn until `condition()` is true; AssertionError after half a minute."""
    deadline = reactor.seconds() + 30
    while not condition():
        assert reactor.seconds() < deadline
        await deferLater(reactor, 0)
