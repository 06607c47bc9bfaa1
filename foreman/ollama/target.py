"""The HTTP client of the one target: bytes to it, bytes from it.

Nothing is sent twice here; whether to try again is the worker's business.

`Target.exchange` carries a client's request as it is.  It asks the Agent directly, as a proxy's client would, so that
the request line is the caller's byte for byte; treq's request layer would parse and rebuild the URL, negotiate and
undo gzip, keep cookies, and double the time a small request takes.  `Target.call` is for small requests whose answer
foreman reads itself; it uses treq over the same `Exchange`, with a client (and so a cookie jar) for each call.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from attrs import field, frozen
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IConsumer, IReactorTime, IStreamClientEndpoint
from twisted.internet.task import Cooperator
from twisted.web import client as web
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from foreman.errors import TargetError, TooLarge
from foreman.ollama.exchange import (
    Exchange,
    Flow,
    Head,
    Sink,
    header_of,
    is_hop_by_hop,
    named_by_connection,
    seconds_of,
)
from foreman.tick import Tick

CLOSE_TIMEOUT = 1.0
"""Seconds that closing idle connections may take."""

PERSISTENT = 8
"""Idle connections kept for the next request."""

RawHeaders = Sequence[tuple[bytes, bytes]]

# What a caller says to foreman rather than to the target, or what only the sender can know.
_OURS = frozenset({b"host", b"authorization", b"x-api-key", b"origin", b"cookie", b"expect", b"content-length"})
_PATH = re.compile(rb"/[!-~]*")
_BREAKS = re.compile(rb"[\r\n\0]")


@frozen
class Reply:
    """A whole answer to a small call; `body` is plain, without content coding."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = field(repr=False)

    def header(self, name: bytes) -> bytes | None:
        """Give the first header of that name, in any case."""
        return header_of(self.headers, name)

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait, None if the target names none (or names a date)."""
        return seconds_of(self.header(b"retry-after"))


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
        exchange = Exchange(self, self._no_pool if fresh else self._pool, sink, first_byte, between)
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
        exchange = Exchange(self, pool, collected, timeout, timeout, watched=probing)
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
        dropped = _OURS | named_by_connection([value for name, value in lowered if name == b"connection"])
        outward = Headers()
        for name, value in lowered:
            if _BREAKS.search(value):
                raise ValueError(f"a header's value must be one line: {name!r}")
            if not is_hop_by_hop(name) and name not in dropped:
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
