"""The front door: who may come in (`Gate`), how much they may bring, and which face answers (`Root`).

A request meets the gate when its head is complete, before its body is read: nobody fills the disk or the memory
without the token.  Paths of foreman's own go to Klein; all others go to the native face, never through Klein, which
decodes, redirects and merges slashes, whereas Ollama's routes are matched on the path as it came.
"""

from __future__ import annotations

import hmac
import resource
import socket
import sys
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from attrs import field, frozen
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http import HTTPChannel
from twisted.web.http import Request as HTTPRequest
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from foreman.config import Configuration
from foreman.errors import Unavailable
from foreman.web import cors
from foreman.web.body import IN_MEMORY, Bodies, Request
from foreman.web.errors import BadRequest, Denied, Unauthorized, respond_error

__all__ = ["Gate", "OwnFace", "Request", "Site", "make_site"]

IDLE_TIMEOUT = 600.0
"""Seconds of silence between requests, and in which a body ends or brings `LEAST`.  Ollama has no such limit, and
clients pool connections."""

LEAST = 65536
"""Bytes of a body that win it another `IDLE_TIMEOUT`: whatever brings fewer, some 109 a second, is no upload."""

HEAD_TIMEOUT = 60.0
"""Seconds from the first byte of a request's head to its last."""

SPARE = 128
"""File descriptors, or a quarter of what the process may have if that is more, that clients' connections leave free:
for foreman's own, spooled bodies, and connections about to be closed."""

OWN = 96
"""Of these, what spooled bodies leave free too: for the target, the receivers of webhooks, and the database."""

BODIES_AT_ONCE = 16
"""The bodies of all requests together may be as large as this many of the largest."""

_OPEN_PATHS = (b"/healthz", b"/readyz")
_OWN_PATHS = (*_OPEN_PATHS, b"/metrics", b"/queue", b"/jobs")
_OWN_BELOW = (b"/queue/", b"/jobs/")


class Face(Protocol):
    """What answers requests: a Klein resource, or the native face."""

    def render(self, request: Request) -> Any:
        """Answer the request, now or later; NOT_DONE_YET."""


@frozen(kw_only=True)
class OwnFace:
    """Foreman's own paths: `/jobs` and what is below, and the operators'."""

    jobs: Face
    operators: Face

    def render(self, request: Request) -> Any:
        """Have the request answered."""
        face = self.jobs if (request.path + b"/").startswith(b"/jobs/") else self.operators
        return face.render(request)


@frozen(kw_only=True)
class Gate:
    """Whether a request may come in.

    :ivar token: what callers must bring, empty for nothing.
    :ivar origins: browser origins allowed beside Ollama's own defaults.
    :ivar loopback: foreman listens on a loopback address only.
    """

    token: bytes = field(repr=False)
    origins: tuple[str, ...]
    loopback: bool

    def admit(self, request: Request) -> None:
        """Judge a request by its head, and note on it what its answer needs.

        In the order of Ollama's: origin, preflight, host; then the token.

        :raise BadRequest: the request target or the `Host` header is malformed.
        :raise Denied: its page or its `Host` may not talk to us.
        :raise Unauthorized: the token is missing or wrong.
        """
        host = self._host(request)
        request.authenticated = not self.token or self._has_token(request)
        origin = (request.requestHeaders.getRawHeaders(b"origin") or [b""])[0].decode("latin-1")
        if origin and not cors.same_origin(origin, host):
            if not cors.allowed(origin, host, self.origins):
                raise Denied("this origin is not allowed")
            if request.method == b"OPTIONS":
                request.preflight = True
                request.cors_headers = cors.preflight_headers(origin, self.origins)
                return
            request.cors_headers = cors.answer_headers(origin, self.origins)
        if self.loopback and not self.token and not cors.host_ok(host):
            raise Denied("this host is not ours")
        if not request.authenticated and request.path not in _OPEN_PATHS:
            raise Unauthorized("the token is missing or wrong")

    def _host(self, request: Request) -> str:
        origin_form = request.path.startswith(b"/") and request.method != b"CONNECT"
        if not origin_form and (request.method, request.path) != (b"OPTIONS", b"*"):
            raise BadRequest("malformed request target")
        hosts = request.requestHeaders.getRawHeaders(b"host") or []
        if len(hosts) > 1 or (not hosts and request.clientproto != b"HTTP/1.0"):
            raise BadRequest("there must be exactly one Host header")
        return hosts[0].decode("latin-1") if hosts else ""

    def _has_token(self, request: Request) -> bool:
        given = request.requestHeaders.getRawHeaders(b"x-api-key") or []
        for header in request.requestHeaders.getRawHeaders(b"authorization") or []:
            scheme, _, credentials = header.partition(b" ")
            if scheme.lower() == b"bearer":
                given = [*given, credentials.strip()]
        return any(hmac.compare_digest(one, self.token) for one in given)


class Root(Resource):
    """The one resource: hands each request to its face."""

    isLeaf = True

    def __init__(self, *, native: Face, own: Face) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._native = native
        self._own = own

    def render(self, request: Request) -> int:
        """Answer the request, or have it answered."""
        path = request.path
        if request.preflight:
            request.setResponseCode(204)
            request.finish()
        elif path == b"*":  # OPTIONS *, a ping
            request.responseHeaders.setRawHeaders(b"content-length", [b"0"])
            request.finish()
        elif path in _OWN_PATHS or path.startswith(_OWN_BELOW):
            try:
                unquote_to_bytes(path).decode()
            except UnicodeDecodeError:  # over which Klein would log a traceback
                respond_error(request, BadRequest("the path is not UTF-8"))
            else:
                self._own.render(request)
        else:
            self._native.render(request)
        return NOT_DONE_YET


class Channel(HTTPChannel):
    """One connection: Twisted's, with TCP keepalive, a bound on slow heads, and no HTTP/2."""

    site: Site
    totalHeadersSize = MAX_LENGTH = 65536  # noqa: N815 - Twisted's names; browsers send a host's cookies to all its ports
    _in_head = False
    _brought = 0

    def connectionMade(self) -> None:
        """Have the system notice within minutes that a client has vanished; its job may wait for hours."""
        super().connectionMade()  # type: ignore[no-untyped-call]
        self.site.enter(self)
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpKeepAlive(True)
            handle = self.transport.getHandle()  # type: ignore[attr-defined]
            # Not under TLS, and Twisted's unix sockets call themselves TCP too.
            tcp = isinstance(handle, socket.socket) and handle.family != socket.AF_UNIX
            for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 8)):
                if tcp and hasattr(socket, option):
                    handle.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Forget the connection."""
        self.site.channels.pop(self, None)
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    def dataReceived(self, data: bytes) -> None:
        """Take in bytes; those of a head do not put off its end."""
        if self.line_mode and not self._in_head:
            self._in_head = True
            self._set_sooner(HEAD_TIMEOUT)
        super().dataReceived(data)  # type: ignore[no-untyped-call]
        if self._handlingRequest and sum(map(len, self._dataBuffer)) > self._optimisticEagerReadSize:
            # Twisted reads no more now, and so would not notice that the client leaves.  Nobody pipelines so much.
            self.transport.abortConnection()  # type: ignore[union-attr]

    def resetTimeout(self) -> None:  # noqa: N802
        """Do nothing: that something came puts off no end.  What does, `progress` says."""

    def progress(self, size: int) -> None:
        """Take note of so many bytes of a body; a trickle does not put off its end."""
        self._brought += size
        if self._brought >= LEAST:
            self._brought = 0
            super().resetTimeout()  # type: ignore[no-untyped-call]

    def headerReceived(self, line: bytes) -> bool:  # noqa: N802
        """Take in one header; whether it is well-formed."""
        name, _, value = line.partition(b":")
        if name.lower() == b"transfer-encoding" and value.strip(b" \t").lower() != b"chunked":
            # Twisted passes over `identity`; others in front of us may not.
            self._respondToBadRequestAndDisconnect()  # type: ignore[no-untyped-call]
            return False
        try:
            return bool(super().headerReceived(line))  # type: ignore[no-untyped-call]
        except ValueError:  # a Content-Length of thousands of digits
            self._respondToBadRequestAndDisconnect()  # type: ignore[no-untyped-call]
            return False

    def allHeadersReceived(self) -> None:  # noqa: N802
        """The head is complete."""
        self._in_head = False
        self._brought = 0
        self.site.touch(self)
        self.setTimeout(IDLE_TIMEOUT)  # type: ignore[no-untyped-call]
        self.requests[-1].head_received(self._command, self._path, self._version)
        super().allHeadersReceived()  # type: ignore[no-untyped-call]

    def hurry(self, seconds: float) -> None:
        """Give the body that comes now, of which no progress is told, so long in all; close the connection then."""
        self._set_sooner(seconds)

    def _set_sooner(self, seconds: float) -> None:
        # Anew: to move a timer closer, Twisted looks for it among those of all connections, one by one.
        self.setTimeout(None)  # type: ignore[no-untyped-call]
        self.setTimeout(seconds)  # type: ignore[no-untyped-call]

    @property
    def idle(self) -> bool:
        """Whether nobody works on a request of it, and none has come whole so far as its head."""
        return bool(self.line_mode)

    def lineLengthExceeded(self, line: bytes) -> None:  # noqa: N802
        """Say why before closing."""
        self._respondToBadRequestAndDisconnect()  # type: ignore[no-untyped-call]


class Site(server.Site):
    """All connections.

    :ivar bodies: how much is held of all request bodies.
    :ivar channels: the connections that stand, in the order of their last requests.
    :ivar files: bodies that are spooled, each in a file.
    :ivar most: as many connections may stand.
    :ivar most_files: as many connections and files there may be together.
    """

    protocol = Channel  # type: ignore[assignment]

    def __init__(
        self, root: Root, *, gate: Gate, bodies: Bodies, limit_for: Callable[[bytes, bytes], int | None], reactor: Any
    ) -> None:
        super().__init__(root, Request, timeout=IDLE_TIMEOUT, reactor=reactor)  # type: ignore[no-untyped-call]
        self.bodies = bodies
        self.channels: dict[Channel, None] = {}
        self.files = 0
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        soft = sys.maxsize if soft == resource.RLIM_INFINITY else soft
        self.most, self.most_files = max(1, soft - max(SPARE, soft // 4)), max(2, soft - OWN)
        self._gate = gate
        self._limit_for = limit_for

    def enter(self, channel: Channel) -> None:
        """Take in a connection.

        Where as many stand as may, the one that has been idle for longest is closed; if no other is idle, the new one.
        """
        self.channels[channel] = None
        if len(self.channels) > self.most or len(self.channels) + self.files > self.most_files:
            self._close_idle()

    def spool(self) -> None:
        """Take in the file of a body, for which an idle connection may have to go.

        :raise Unavailable: there is no room for it now.
        """
        if len(self.channels) + self.files >= self.most_files and not self._close_idle():
            raise Unavailable("too many large request bodies are waiting", retry_after=5)
        self.files += 1

    def _close_idle(self) -> bool:
        """Close the connection that has been idle for longest; False if none is."""
        closed = next((each for each in self.channels if each.idle), None)
        if closed is None:
            return False
        del self.channels[closed]  # now: more may come before its loss is told
        closed.transport.abortConnection()  # type: ignore[union-attr]
        return True

    def touch(self, channel: Channel) -> None:
        """Note that a request has come on a connection."""
        if channel in self.channels:
            del self.channels[channel]
            self.channels[channel] = None

    def admit(self, request: Request) -> int | None:
        """Let a request in by its head; gives the largest body it may have in bytes, None for any.

        :raise WebError: it may not come in.
        """
        self._gate.admit(request)
        return self._limit_for(request.method, request.path) if request.authenticated else IN_MEMORY

    async def close(self, seconds: float) -> None:
        """Close each connection when its answer is out, and cut those that are left after so many seconds."""
        for channel in tuple(self.channels):
            channel.persistent = False
            if not channel.requests:
                channel.loseConnection()  # type: ignore[no-untyped-call]
        deadline = self.reactor.seconds() + seconds
        while self.channels and self.reactor.seconds() < deadline:
            await deferLater(self.reactor, 0.01)
        for channel in tuple(self.channels):
            channel.forceAbortClient()  # type: ignore[no-untyped-call]

    def startFactory(self) -> None:  # noqa: N802
        """Nothing: Twisted's opens its own access log and a clock for it."""

    def stopFactory(self) -> None:  # noqa: N802
        """Nothing, likewise."""

    def log(self, request: HTTPRequest) -> None:
        """Nothing: the request logs itself, without its query."""

    def acceptableProtocols(self) -> list[bytes]:  # noqa: N802
        """HTTP/1.1 alone, as Ollama, also under TLS."""
        return [b"http/1.1"]


def make_site(*, native: Face, own: Face, config: Configuration, reactor: Any) -> Site:
    """The HTTP server, ready to listen.

    :param native: answers every path that is not foreman's own.
    :param own: answers foreman's own.
    """

    def limit_for(method: bytes, path: bytes) -> int | None:
        upload = method == b"POST" and unquote_to_bytes(path).startswith(b"/api/blobs/")
        return None if upload and config.model_admin else config.max_body

    return Site(
        Root(native=native, own=own),
        gate=Gate(
            token=b"" if config.token is None else config.token.reveal().encode(),
            origins=config.origins,
            loopback=config.addr.loopback,
        ),
        bodies=Bodies(config.max_body * BODIES_AT_ONCE),
        limit_for=limit_for,
        reactor=reactor,
    )
