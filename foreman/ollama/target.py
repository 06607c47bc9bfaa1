"""The HTTP client of the one target: bytes to it, bytes from it.

Nothing is sent twice here; whether to try again is the worker's business.

`Target.exchange` carries a client's request as it is, and its answer piece by piece; `Target.call` is the same for
small requests whose answer foreman reads itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from json import dumps
from typing import BinaryIO
from urllib.parse import urlsplit

from attrs import field, frozen
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.web.client import BrowserLikePolicyForHTTPS

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
from foreman.ollama.wire import Wires, remaining
from foreman.tick import Tick

RawHeaders = Sequence[tuple[bytes, bytes]]

# What a caller says to foreman rather than to the target, or what only the sender can know.
_OURS = frozenset({b"host", b"authorization", b"x-api-key", b"origin", b"cookie", b"expect", b"content-length"})
_PATH = re.compile(rb"/[!-~]*")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
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
        endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, host, port)
        if tls:
            policy = BrowserLikePolicyForHTTPS()
            endpoint = wrapClientTLS(policy.creatorForNetloc(host.encode("ascii"), port), endpoint)
        netloc = parts.netloc.rpartition("@")[2]
        self.name = f"{parts.scheme}://{netloc}"
        self._prefix = parts.path.rstrip("/").encode("ascii")
        self._own_headers = b"Host: %b\r\n" % netloc.encode("ascii")
        if token:
            self._own_headers += b"Authorization: Bearer %b\r\n" % token.encode("ascii")
        self._wires = Wires(reactor, endpoint)

    async def exchange(
        self,
        method: bytes,
        path: bytes,
        *,
        headers: RawHeaders = (),
        body: bytes | BinaryIO = b"",
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
        request = self._head(method, path, headers, body, fresh=fresh), body
        exchange = Exchange(self, request, sink, first_byte, between)
        exchange.start(self._wires, fresh=fresh)
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
        headers = [(name, value) for name, value in headers if name.lower() != b"accept-encoding"]
        headers.append((b"accept-encoding", b"identity"))
        if json is not None:
            headers.append((b"content-type", b"application/json"))
            body = dumps(json, separators=(",", ":")).encode()  # orjson has no numbers beyond 64 bits
        collected = _Collected(limit)
        request = self._head(method, path, headers, body, fresh=fresh), body
        exchange = Exchange(self, request, collected, timeout, timeout, watched=probing)
        exchange.start(self._wires, fresh=fresh)
        deadline = None if probing else self.reactor.callLater(timeout, exchange.expire, timeout)
        try:
            head = await exchange.done
        finally:
            if deadline is not None and deadline.active():
                deadline.cancel()
        return Reply(head.status, head.headers, b"".join(collected.pieces))

    async def version(self, timeout: float) -> Reply:  # noqa: ASYNC109 - handed on to `call`
        """What the target answers to `/api/version` within so many seconds, on a connection of its own.

        :raise TargetError: nothing, or not what an Ollama does.
        """
        reply = await self.call(b"GET", b"/api/version", timeout=timeout, limit=65536, fresh=True)
        if reply.status != 200:  # nobody's Ollama; a proxy before a dead one, perhaps
            raise TargetError(f"/api/version was answered with status {reply.status}: is that an Ollama?")
        return reply

    async def probe(self, timeout: float = 1.0) -> bool:  # noqa: ASYNC109 - handed on to `version`
        """Whether the target is there, and answers within so many seconds."""
        try:
            await self.version(timeout)
        except TargetError:
            return False
        return True

    def close(self) -> None:
        """Cut the idle connections."""
        self._wires.close()

    def _head(self, method: bytes, path: bytes, headers: RawHeaders, body: bytes | BinaryIO, *, fresh: bool) -> bytes:
        """Make what comes before the body: what the target gets of a client's headers, and foreman's own.

        :raise ValueError: method or path are none, a name is no token, or a value would end its line.
        """
        if not _TOKEN.fullmatch(method):
            raise ValueError(f"not a method: {method!r}")
        if not _PATH.fullmatch(path):
            raise ValueError(f"not a path: {path!r}")
        lines = [b"%b %b%b HTTP/1.1\r\n" % (method, self._prefix, path), self._own_headers]
        if fresh:
            lines.append(b"Connection: close\r\n")
        length = len(body) if isinstance(body, bytes) else remaining(body)
        if length or method in (b"POST", b"PUT"):
            lines.append(b"Content-Length: %d\r\n" % length)
        dropped = named_by_connection([value for name, value in headers if name.lower() == b"connection"])
        for name, value in headers:
            if _BREAKS.search(value):
                raise ValueError(f"a header's value must be one line: {name!r}")
            spelled = _outward(name)
            if spelled is not None and name.lower() not in dropped:
                lines.append(b"%b: %b\r\n" % (spelled, value))
        lines.append(b"\r\n")
        return b"".join(lines)


@lru_cache(256)
def _outward(name: bytes) -> bytes | None:
    """A header's name in its usual capitals, None if it is not for the target.

    :raise ValueError: it is no token.
    """
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"not a header's name: {name!r}")
    lowered = name.lower()
    if lowered in _OURS or is_hop_by_hop(lowered):
        return None
    return b"-".join(word.capitalize() for word in lowered.split(b"-"))


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
