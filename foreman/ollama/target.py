"""The HTTP client of the one target: bytes to it, bytes from it, and every way in which that can go wrong.

Theory of operation.  An `_Exchange` is one request and its answer.  It stands between Twisted's Agent and the
connection pool, so it knows which connection it was given and whether that had been used before, and can cut it at any
stage.  It hands head and pieces to a sink as they come, and ends exactly once: with the head, or with one of the
target's errors of `foreman.errors`.  Nothing is sent twice here; whether to try again is the worker's business.

`Target.exchange` carries a client's request as it is.  It asks the Agent directly, as a proxy's client would, so that
the request line is the caller's byte for byte; treq's request layer would parse and rebuild the URL, negotiate and
undo gzip, keep cookies, and double the time a small request takes.  `Target.call` is for small requests whose answer
foreman reads itself; it uses treq over the same `_Exchange`, with a client (and so a cookie jar) for each call.
"""

from __future__ import annotations

import re
import socket
import typing
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from attrs import frozen
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IConsumer, IPushProducer, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Cooperator
from twisted.python.failure import Failure
from twisted.web import client as web
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer, IResponse
from zope.interface import implementer

from foreman.errors import Lost, NotReachable, Stalled, TargetError, TooLarge, Truncated
from foreman.ollama.silence import Silence
from foreman.tick import Tick

CONNECT_TIMEOUT = 10.0
"""Seconds until a connection must stand, looking up the name included."""

CLOSE_TIMEOUT = 1.0
"""Seconds that closing idle connections may take."""

PERSISTENT = 8
"""Idle connections kept for the next request."""

RawHeaders = Sequence[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"te", b"trailer", b"trailers", b"transfer-encoding", b"upgrade"}
)
# What a caller says to foreman rather than to the target, or what only the sender can know.
_OURS = frozenset({b"host", b"authorization", b"x-api-key", b"origin", b"cookie", b"expect", b"content-length"})
_PATH = re.compile(rb"/[!-~]*")
_BREAKS = re.compile(rb"[\r\n\0]")
# A target that has moved to another address, where it answers the probes, is noticed on its old connection after a
# minute and a half.  Each system knows some of the names; macOS says TCP_KEEPALIVE for TCP_KEEPIDLE.
_KEEPALIVE = {
    "TCP_KEEPIDLE": 30,
    "TCP_KEEPALIVE": 30,
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 6,
    "TCP_USER_TIMEOUT": 90_000,
}


@frozen
class Head:
    """Status line and headers of an answer.

    :ivar phrase: the reason phrase, maybe empty.
    :ivar headers: names in their usual capitals, equal names together, hop-by-hop ones left out.
    """

    status: int
    phrase: bytes
    headers: tuple[tuple[bytes, bytes], ...]


@frozen
class Reply:
    """A whole answer to a small call; `body` is plain, without content coding."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """Give the first header of that name, in any case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait, None if the target names none (or names a date)."""
        value = self.header(b"retry-after") or b""
        return float(value) if value.isdigit() else None


class Flow(typing.Protocol):
    """The tap of an answer's body.  What has been read already (at most 64 KiB) still arrives after a pause."""

    def pause(self) -> None:
        """Read no more for now; the silence clock stands still."""

    def resume(self) -> None:
        """Read on."""


class Sink(typing.Protocol):
    """Where an answer goes.  What it raises ends the exchange, closes the connection, and is what `exchange` raises."""

    def begin(self, head: Head, flow: Flow) -> None:
        """The head has come; called once, before any `write`."""

    def write(self, data: bytes) -> None:
        """One piece of the body has come."""


class Target:
    """The one Ollama server.

    :ivar bytes_in: of bodies received from it so far, probes and calls included.
    """

    def __init__(self, reactor: IReactorTime, tick: Tick, *, url: str, token: str = "") -> None:
        """Connect to nothing yet.

        :param reactor: keeps time and also connects.
        :param url: `http[s]://host[:port][/prefix]`.
        :param token: the bearer sent with every request, empty for none.
        """
        self.bytes_in = 0
        self.reactor = reactor
        self.tick = tick
        parts = urlsplit(url)
        host, tls = parts.hostname or "", parts.scheme == "https"
        port = parts.port or (443 if tls else 80)
        self.endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, host, port)
        if tls:
            policy = web.BrowserLikePolicyForHTTPS()
            self.endpoint = wrapClientTLS(policy.creatorForNetloc(host.encode("ascii"), port), self.endpoint)
        netloc = parts.netloc.rpartition("@")[2]
        self.name = f"{parts.scheme}://{netloc}"
        self._prefix = parts.path.rstrip("/").encode("ascii")
        self._own_headers = [(b"Host", netloc.encode("ascii"))]
        if token:
            self._own_headers.append((b"Authorization", b"Bearer " + token.encode("ascii")))
        self._pool = web.HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = PERSISTENT
        self._pool.retryAutomatically = False
        self._no_pool = web.HTTPConnectionPool(reactor, persistent=False)
        self._cooperator = Cooperator(scheduler=partial(reactor.callLater, 0))

    async def exchange(
        self,
        method: bytes,
        path: bytes,
        *,
        headers: RawHeaders = (),
        body: bytes | IBodyProducer | BinaryIO | None = None,
        sink: Sink,
        first_byte: float,
        between: float,
        fresh: bool = False,
    ) -> Head:
        """Carry one request to the target and its answer to the sink.

        Cancelling closes the connection at once, whatever the stage.  Any complete answer is returned, whatever its
        status.  An answer that only the end of the connection delimits is complete when that comes.

        :param path: with its query, sent as it is.
        :param headers: as a client sent them; those that are not for the target are left out here.
        :param body: a file is sent from where it stands, and is left open.
        :param first_byte: seconds of silence allowed before the head; `between`: after it.
        :param fresh: on a connection of its own; for who has just lost one that had been used before.
        :return: the head, when the last byte of the body is with the sink.
        :raise NotReachable: no connection; nothing was sent.
        :raise Lost: the connection broke before there was a whole head.
        :raise Truncated: it broke, or the framing did, in the body.
        :raise Stalled: silence; the connection is closed.
        :raise ValueError: method, path or headers are not fit to be sent; nothing was.
        """
        path, outward = self._checked(path), self._outward(headers)
        exchange = _Exchange(self, self._no_pool if fresh else self._pool, sink, first_byte, between)
        agent: Any = web.ProxyAgent(self.endpoint, self.reactor, exchange)
        exchange.follow(agent.request(method, path, outward, self._producer(body)))
        return await exchange.done

    async def call(
        self,
        method: bytes,
        path: bytes,
        json: object | None = None,
        *,
        headers: RawHeaders = (),
        body: bytes = b"",
        timeout: float,  # noqa: ASYNC109 - what its end means depends on how far the call has come
        limit: int = 16 * 1024 * 1024,
        fresh: bool = False,
        probing: bool = False,
    ) -> Reply:
        """Make a small call and return the whole answer, whatever its status.

        :param json: the body as a value, None for none; `body`: the same as bytes.
        :param timeout: seconds for all of it; with `probing`, the silence allowed, judged as in `exchange`.
        :param limit: bytes of the answer's body.
        :param fresh: on a connection of its own, to an address looked up anew.
        :raise NotReachable: also when the time is over before the connection stands.
        :raise TooLarge: more than `limit` bytes came; the connection is closed.
        :raise Lost, Truncated, Stalled, ValueError: as `exchange`.  Without `probing` nobody asks whether the target
            is awake, so `probe_answered` is False.
        """
        url, outward = self.name + self._checked(path).decode("ascii"), self._outward(headers)
        outward.removeHeader(b"accept-encoding")  # treq offers what it can undo
        collected = _Collected(limit)
        pool = self._no_pool if fresh else self._pool
        exchange = _Exchange(self, pool, collected, timeout, timeout, watched=probing)
        agent = web.Agent(self.reactor, pool=exchange)
        client: Any = HTTPClient(agent, data_to_body_producer=_Bytes)
        content = {"data": body} if json is None else {"json": json}
        options = {"allow_redirects": False, "unbuffered": True, "reactor": self.reactor}
        exchange.follow(client.request(method.decode("ascii"), url, headers=outward, **content, **options))
        deadline = None if probing else self.reactor.callLater(timeout, exchange.expire, timeout)
        try:
            head = await exchange.done
        finally:
            if deadline is not None and deadline.active():
                deadline.cancel()
        # treq's undoing of content encodings leaves an empty header behind where there was none.
        headers = [(name, value) for name, value in head.headers if (name.lower(), value) != (b"content-encoding", b"")]
        return Reply(head.status, tuple(headers), b"".join(collected.pieces))

    async def probe(self, timeout: float = 1.0) -> bool:  # noqa: ASYNC109 - handed on to `call`
        """Whether the target answers `/api/version` within so many seconds, on a connection of its own."""
        try:
            reply = await self.call(b"GET", b"/api/version", timeout=timeout, limit=65536, fresh=True)
        except TargetError:
            return False
        return reply.status == 200

    async def close(self) -> None:
        """Close the idle connections."""
        closing: Deferred[None] = self._pool.closeCachedConnections()
        # Over TLS the peer has its say, which one that sleeps never has.
        await closing.addTimeout(CLOSE_TIMEOUT, self.reactor, lambda *_: None)

    def _checked(self, path: bytes) -> bytes:
        if not _PATH.fullmatch(path):
            raise ValueError(f"not a path: {path!r}")
        return self._prefix + path

    def _outward(self, headers: RawHeaders) -> Headers:
        """Make what the target gets of a client's headers, with foreman's own.

        :raise ValueError: a name is no token, or a value would end its line.
        """
        lowered = [(name.lower(), value) for name, value in headers]
        dropped = _OURS | _named_by_connection([value for name, value in lowered if name == b"connection"])
        outward = Headers()
        for name, value in lowered:
            if _BREAKS.search(value):
                raise ValueError(f"a header's value must be one line: {name!r}")
            if not _is_hop_by_hop(name) and name not in dropped:
                outward.addRawHeader(name, value)
        for name, value in self._own_headers:
            outward.addRawHeader(name, value)
        return outward

    def _producer(self, body: bytes | IBodyProducer | BinaryIO | None) -> IBodyProducer | None:
        if not body:
            return None
        if isinstance(body, bytes):
            return _Bytes(body)
        if IBodyProducer.providedBy(body):
            return body
        return web.FileBodyProducer(_LeftOpen(body), self._cooperator)


class _Exchange(Protocol):
    """One request and its answer: the Agent's pool and connection before the head, the body's protocol after it.

    :ivar done: fires with the head when the body has ended, or with what went wrong; cancelling it cuts the line.
    :ivar persistent: the Agent asks its pool for it, to choose between keeping the connection and `Connection: close`.
    """

    def __init__(
        self,
        target: Target,
        pool: web.HTTPConnectionPool,
        sink: Sink,
        first_byte: float,
        between: float,
        *,
        watched: bool = True,
    ) -> None:
        self.done: Deferred[Head] = Deferred(lambda _: self._close())
        self.persistent = pool.persistent
        self._target = target
        self._pool = pool
        self._sink = sink
        self._silence = Silence(target.tick, target.probe, first_byte, self.fail)
        self._between = between
        self._watched = watched
        self._over = False
        self._reused = False
        self._asking: Deferred[IResponse] | None = None
        self._connection: Any = None
        self._parser: Any = None
        self._head: Head | None = None

    # -- the Agent's pool and connection -----------------------------------------------------------------------------

    def getConnection(self, _key: object, _endpoint: object) -> Deferred[_Exchange]:
        """Take a connection to the target, an idle one if there is one, and stand in for it."""
        connecting = self._pool.getConnection("target", self._target.endpoint)
        self._reused = connecting.called  # a new one never stands at once
        if not self._reused:
            connecting.addTimeout(CONNECT_TIMEOUT, self._target.reactor, _no_connection)
        return connecting.addCallback(self._connected)

    def _connected(self, connection: Any) -> _Exchange:
        self._connection = connection
        if not self._reused:
            _keep_alive(connection.transport)
        return self

    def request(self, request: Any) -> Deferred[IResponse]:
        """Send the request; from here on silence counts."""
        if self._watched:
            self._silence.start()
        answer: Deferred[IResponse] = self._connection.request(request)
        # Twisted shows the connection's own headers nowhere else, and they say which others are hop-by-hop.
        self._parser = self._connection._parser  # noqa: SLF001
        return answer

    # -- the answer --------------------------------------------------------------------------------------------------

    def follow(self, asking: Deferred[IResponse]) -> None:
        """Wait for the head."""
        self._asking = asking
        asking.addCallbacks(self._answered, self._unanswered)

    def _answered(self, response: IResponse) -> None:
        if self._over:
            return
        self._silence.limit = self._between
        self._silence.beats = 0
        self._head = _head(response, self._parser.connHeaders)
        try:
            self._sink.begin(self._head, self)
        except Exception as error:  # noqa: BLE001 - raised to the caller of the exchange
            self.fail(error)
        if self._over:
            return
        response.deliverBody(self)
        if self._silence.held:
            self.pause()  # deliverBody has resumed reading

    def _unanswered(self, failure: Failure) -> None:
        if self._over:
            return
        error = failure.value
        if self._connection is None:
            self.fail(NotReachable(f"cannot connect to {self._target.name}: {_reason(failure)}"))
        elif isinstance(error, web.ResponseNeverReceived | web.RequestTransmissionFailed):
            self.fail(Lost(f"the connection broke before the answer: {_reason(failure)}", reused=self._reused))
        elif isinstance(error, web.ResponseFailed):
            self.fail(Lost(f"the answer's head is broken: {_reason(failure)}", reused=False))
        elif isinstance(error, web.RequestGenerationFailed):
            self.fail(error.reasons[0])  # the body's own trouble, such as an unreadable file
        else:
            self.fail(failure)

    def dataReceived(self, data: bytes) -> None:
        """Pass one piece of the body on.  This is the hot path."""
        if self._over:
            return
        self._silence.beats = 0
        self._target.bytes_in += len(data)
        try:
            self._sink.write(data)
        except Exception as error:  # noqa: BLE001 - raised to the caller of the exchange
            self.fail(error)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End: the body is complete, or was cut."""
        if self._over:
            return
        if self._head is not None and isinstance(reason.value, web.ResponseDone | PotentialDataLoss):
            self._close()
            self.done.callback(self._head)
        else:
            self.fail(Truncated(f"the answer was cut short: {_reason(reason)}"))

    # -- what others may do with it ----------------------------------------------------------------------------------

    def pause(self) -> None:
        """See `Flow`."""
        self._silence.held = True
        if self.transport is not None:
            cast(IPushProducer, self.transport).pauseProducing()

    def resume(self) -> None:
        """See `Flow`."""
        self._silence.held = False
        if self.transport is not None:
            cast(IPushProducer, self.transport).resumeProducing()

    def expire(self, timeout: float) -> None:
        """End, because the time for the whole call is over."""
        if self._connection is None:
            self.fail(NotReachable(f"no connection to {self._target.name} within {timeout:g} s"))
        else:
            self.fail(Stalled(f"no whole answer within {timeout:g} s", probe_answered=False))

    def fail(self, error: BaseException | Failure) -> None:
        """End with this error and cut the line; nothing once it has ended."""
        if not self._over:
            self._close()
            self.done.errback(error)

    def _close(self) -> None:
        self._over = True
        self._silence.stop()
        if self._connection is None:
            if self._asking is not None:
                self._asking.cancel()
        elif self._connection.state != "QUIESCENT":  # a quiescent one is the pool's again
            self._connection.transport.abortConnection()


class _Collected:
    """A sink that keeps the pieces of a body of bounded size."""

    def __init__(self, limit: int) -> None:
        self.pieces: list[bytes] = []
        self._limit = self._room = limit

    def begin(self, head: Head, flow: Flow) -> None:
        """Nothing to do."""

    def write(self, data: bytes) -> None:
        self._room -= len(data)
        if self._room < 0:
            raise TooLarge(f"the answer is larger than {self._limit} bytes")
        self.pieces.append(data)


@implementer(IBodyProducer)
class _Bytes:
    """A body in memory, written in one go."""

    def __init__(self, body: bytes) -> None:
        self.length = len(body)
        self._body = body

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:  # noqa: N802
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Everything is written already; so for the other two."""

    resumeProducing = stopProducing = pauseProducing


class _LeftOpen:
    """A file for `FileBodyProducer`, which would close it, while the owner may need it for another try."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell

    def close(self) -> None:
        """Leave that to the owner."""


def _head(response: IResponse, control: Headers) -> Head:
    """Make the head to pass on; `control` are the connection's own headers, which Twisted sorts out."""
    dropped = _named_by_connection(control.getRawHeaders(b"connection", ()))
    headers = [
        (name, value)
        for name, values in response.headers.getAllRawHeaders()
        if not _is_hop_by_hop(name.lower()) and name.lower() not in dropped
        for value in values
    ]
    if response.length is not UNKNOWN_LENGTH:
        headers.extend((b"Content-Length", value) for value in control.getRawHeaders(b"content-length", ())[:1])
    return Head(response.code, response.phrase, tuple(headers))


def _is_hop_by_hop(name: bytes) -> bool:
    return name in _HOP_BY_HOP or name.startswith(b"proxy-")


def _named_by_connection(values: Sequence[bytes]) -> frozenset[bytes]:
    return frozenset(token.strip().lower() for value in values for token in value.split(b","))


def _keep_alive(transport: Any) -> None:
    transport.setTcpKeepAlive(True)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            with suppress(OSError):  # a connection that is gone already says so soon enough
                transport.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _no_connection(_: object, timeout: float) -> typing.NoReturn:
    raise TimeoutError(f"no connection within {timeout:g} s")


def _reason(failure: Failure) -> str:
    """Give the innermost reason of Twisted's wrapped failures."""
    reasons = getattr(failure.value, "reasons", None)
    return _reason(reasons[0]) if reasons else failure.getErrorMessage()
