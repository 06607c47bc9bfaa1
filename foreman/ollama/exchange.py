"""One request to the target and its answer, with every way in which that can go wrong.

An `Exchange` stands between Twisted's Agent and the connection pool, so it knows which connection it was given and
whether that had been used before, and can cut it at any stage.  It hands head and pieces to a sink as they come, and
ends exactly once: with the head, or with one of the target's errors of `foreman.errors`.
"""

from __future__ import annotations

import socket
import typing
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web import client as web
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse

from foreman.errors import Lost, NotReachable, Stalled, Truncated
from foreman.ollama.silence import Silence

if TYPE_CHECKING:
    from foreman.ollama.target import Target

CONNECT_TIMEOUT = 10.0
"""Seconds until a connection must stand, looking up the name included."""

_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"te", b"trailer", b"trailers", b"transfer-encoding", b"upgrade"}
)
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

    def header(self, name: bytes) -> bytes | None:
        """Give the first header of that name, in any case."""
        return header_of(self.headers, name)

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait, None if the target names none (or names a date)."""
        return seconds_of(self.header(b"retry-after"))


def header_of(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """Give the first header of that name, in any case."""
    return next((value for key, value in headers if key.lower() == name.lower()), None)


def seconds_of(value: bytes | None) -> float | None:
    """Read `Retry-After`; None if there is none, or it is a date."""
    return float(value) if value is not None and value.isdigit() else None


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


class Exchange(Protocol):
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

    def getConnection(self, _key: object, _endpoint: object) -> Deferred[Exchange]:
        """Take a connection to the target, an idle one if there is one, and stand in for it."""
        connecting = self._pool.getConnection("target", self._target.endpoint)
        self._reused = connecting.called  # a new one never stands at once
        if not self._reused:
            connecting.addTimeout(CONNECT_TIMEOUT, self._target.reactor, _no_connection)
        return connecting.addCallback(self._connected)

    def _connected(self, connection: Any) -> Exchange:
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


def _head(response: IResponse, control: Headers) -> Head:
    """Make the head to pass on; `control` are the connection's own headers, which Twisted sorts out."""
    dropped = named_by_connection(control.getRawHeaders(b"connection", ()))
    headers = [
        (name, value)
        for name, values in response.headers.getAllRawHeaders()
        if not is_hop_by_hop(name.lower()) and name.lower() not in dropped
        for value in values
    ]
    if response.length is not UNKNOWN_LENGTH:
        headers.extend((b"Content-Length", value) for value in control.getRawHeaders(b"content-length", ())[:1])
    return Head(response.code, response.phrase, tuple(headers))


def is_hop_by_hop(name: bytes) -> bool:
    """Whether a header of that name (in lower case) is between two neighbours only (RFC 9110, 7.6.1)."""
    return name in _HOP_BY_HOP or name.startswith(b"proxy-")


def named_by_connection(values: Sequence[bytes]) -> frozenset[bytes]:
    """The headers that `Connection` headers name, in lower case: hop-by-hop too."""
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
