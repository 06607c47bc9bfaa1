"""One POST to a receiver that may be slow, dead, lying or hostile.

Theory of operation.  Each delivery is an `_Attempt` with a connection of its own, an asking of its own at the DNS, and
one clock over all of it.  Twisted's Agent speaks HTTP; beneath it, under TLS even, lies a `_Wire`, which refuses the
wrong peer before the first byte is sent, counts what comes, and can be cut at any stage.  The first thing that decides
the outcome (the head of the answer, or what went wrong) is kept; it is told when the connection is gone.  So whoever
counts connections may count calls of `post`.

The Agent used here follows no redirect, keeps no cookie, undoes no coding, and knows no proxy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import (
    IConsumer,
    IProtocol,
    IProtocolFactory,
    IReactorPluggableNameResolver,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web import client as web
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IResponse
from zope.interface import implementer

from foreman import __version__
from foreman.errors import ForemanError
from foreman.webhooks.policy import AddressPolicy, AddressRefused, Destination

BODY_LIMIT = 16 * 1024
"""Bytes of an answer's body that are read, and thrown away, so that the receiver may end in peace."""

ANSWER_LIMIT = 64 * 1024
"""Bytes taken from one connection in all, the talk of TLS included: what bounds the headers."""

_NO_HTTP = "what the receiver answered is not HTTP"  # nor told: it may be another service's secret


class NotDelivered(ForemanError):
    """A delivery that did not succeed.

    :ivar status: of the answer, None if there was no whole head.
    :ivar retry_after: the answer's `Retry-After` as it came, for `retries.parse_retry_after`.
    """

    def __init__(self, message: str, *, status: int | None = None, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class NotConnected(NotDelivered):
    """No connection: no such name, refused, no route, or a certificate that does not prove the name."""


class TimedOut(NotDelivered):
    """The time for the whole delivery was over before the head of the answer was there."""


class Cut(NotDelivered):
    """The connection ended, or what came over it was no HTTP, before the head of the answer was there."""


class Rejected(NotDelivered):
    """The receiver answered, but not 2xx; `status` is set."""


@frozen
class Delivered:
    """The receiver took it.

    :ivar status: 200 to 299.
    """

    status: int


class Sender:
    """Posts JSON to receivers, wherever the policy lets it."""

    def __init__(self, reactor: IReactorTime, policy: AddressPolicy, timeout: float = 15.0) -> None:
        """Connect to nothing yet.

        :param reactor: keeps time, connects, and has the resolver of names.
        :param timeout: seconds for a delivery: looking up the name, connecting, TLS, sending, and the whole answer.
        """
        self._reactor = reactor
        self._policy = policy
        self._timeout = timeout
        self._pool = web.HTTPConnectionPool(reactor, persistent=False)
        # Making a context reads all the roots of the system.
        self._tls = web.HostnameCachingHTTPSPolicy(web.BrowserLikePolicyForHTTPS())

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Delivered:
        """Make one try to deliver a JSON body.

        Cancelling closes the connection at once.  As soon as the head of an answer is there its status decides; an
        answer's body that is late, cut, or too long changes nothing.

        :param headers: besides `Host`, `Content-Type`, `Content-Length`, `Connection` and `User-Agent`.
        :raise BadURL, AddressRefused: nothing was sent.
        :raise NotDelivered: as one of its subclasses.
        """
        destination = self._policy.check_url(url)
        attempt = _Attempt(destination, self._policy)
        outward = Headers({name: [value] for name, value in headers.items()})
        outward.setRawHeaders("Host", [destination.authority])
        outward.setRawHeaders("Content-Type", ["application/json"])
        outward.setRawHeaders("User-Agent", [f"foreman/{__version__}"])
        # A client of a proxy sends its request line as it is told to; the plain Agent would rebuild it from the URL.
        agent: Any = web.ProxyAgent(self._endpoint(destination, attempt), self._reactor, self._pool)
        attempt.follow(agent.request(b"POST", destination.target.encode("ascii"), outward, _Body(body)))
        end = self._reactor.callLater(self._timeout, attempt.expire, self._timeout)
        try:
            return await attempt.done
        finally:
            if end.active():
                end.cancel()

    def _endpoint(self, destination: Destination, attempt: _Attempt) -> IStreamClientEndpoint:
        host, port = destination.host, destination.port
        named = HostnameEndpoint(_Guard(self._reactor, attempt.check), host, port)
        endpoint: IStreamClientEndpoint = _Wired(named, attempt)
        if destination.scheme == "https":
            creator = self._tls.creatorForNetloc(host.encode("ascii"), port)
            endpoint = wrapClientTLS(creator, endpoint, clock=self._reactor)
        return endpoint


class _Attempt(Protocol):
    """One request and its answer, and the protocol that the answer's body is delivered to.

    :ivar done: fires when it is over and its connection gone; cancelling it cuts the connection.
    """

    def __init__(self, destination: Destination, policy: AddressPolicy) -> None:
        self.done: Deferred[Delivered] = Deferred(lambda _: self._end(CancelledError()))
        self._destination = destination
        self._policy = policy
        self._outcome: Delivered | Exception | None = None
        self._asking: Deferred[IResponse] | None = None
        self._wire: Any = None
        self._received = 0
        self._read = 0

    # -- the connection ----------------------------------------------------------------------------------------------

    def check(self, address: str) -> None:
        """Raise AddressRefused unless the policy allows this address."""
        self._policy.check_address(self._destination.host, address)

    def take(self, wire: Any) -> None:
        """Take the transport of the connection, to cut it when need be."""
        self._wire = wire

    def received(self, count: int) -> None:
        """Count bytes that have come over the wire."""
        self._received += count
        if self._received > ANSWER_LIMIT:
            self._end(Cut(f"the receiver sent more than {ANSWER_LIMIT} bytes and no end of its headers"))

    def gone(self) -> None:
        """End: the connection is closed, or none ever stood."""
        if self.done.called:
            return
        if isinstance(self._outcome, Delivered):
            self.done.callback(self._outcome)
        else:
            self.done.errback(self._outcome or Cut("the receiver closed the connection without an answer"))

    # -- the answer --------------------------------------------------------------------------------------------------

    def follow(self, asking: Deferred[IResponse]) -> None:
        """Wait for the head."""
        self._asking = asking
        asking.addCallbacks(self._answered, self._unanswered)

    def _answered(self, response: IResponse) -> None:
        self._decide(_judged(response))
        response.deliverBody(self)

    def _unanswered(self, failure: Failure) -> None:
        self._asking = None
        self._end(self._explained(failure))

    def dataReceived(self, data: bytes) -> None:
        """Throw away what the receiver has to say, up to where it says too much."""
        self._read += len(data)
        if self._read > BODY_LIMIT:
            self._wire.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Close the connection properly: the body is at its end.

        Over TLS the Agent waits for the receiver to say goodbye too; this does not.
        """
        self._wire.loseConnection()

    # -- the end -----------------------------------------------------------------------------------------------------

    def expire(self, timeout: float) -> None:
        """End, because the time is over; an outcome that is known already stands."""
        if self._wire is None:
            self._end(TimedOut(f"no connection to {self._destination.authority} within {timeout:g} s"))
        elif self._received == 0:
            self._end(TimedOut(f"no answer within {timeout:g} s"))
        else:
            self._end(TimedOut(f"no whole head of an answer within {timeout:g} s"))

    def _decide(self, outcome: Delivered | Exception) -> None:
        if self._outcome is None:
            self._outcome = outcome

    def _end(self, outcome: Exception) -> None:
        self._decide(outcome)
        if self._wire is not None:
            self._wire.abortConnection()  # and then `gone`
        elif self._asking is not None:
            self._asking.cancel()  # comes back here by way of `_unanswered`
        else:
            self.gone()

    def _explained(self, failure: Failure) -> Exception:
        """Put one of Twisted's failures into the words of a domain error."""
        cause, there = _innermost(failure), self._destination.authority
        if isinstance(cause, AddressRefused):
            return cause
        if self._wire is None:
            return NotConnected(f"cannot connect to {there}: {cause}")
        if isinstance(cause, VerificationError):
            return NotConnected(f"the certificate of {there} is for another name")
        if isinstance(cause, SSL.Error):
            return NotConnected(f"no TLS with {there}: {_ssl_reason(cause)}")
        if not isinstance(cause, ConnectionClosed):
            return Cut(_NO_HTTP)
        if self._received == 0:
            return Cut(f"the receiver closed the connection without an answer: {cause}")
        return Cut(f"the receiver closed the connection within the head of its answer: {cause}")


class _Wire(ProtocolWrapper):
    """The TCP connection of an attempt, under HTTP and TLS."""

    factory: _WireFactory

    def makeConnection(self, transport: Any) -> None:  # noqa: N802
        """Say that it stands, before anything is sent."""
        self.factory.attempt.take(transport)
        super().makeConnection(transport)  # type: ignore[no-untyped-call]

    def dataReceived(self, data: bytes) -> None:
        """Have it counted."""
        self.factory.attempt.received(len(data))
        super().dataReceived(data)  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Say that it is gone, when everybody above knows."""
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        self.factory.attempt.gone()


class _WireFactory(WrappingFactory):
    """Makes the wire, if the peer is one that the policy allows."""

    def __init__(self, wrapped: IProtocolFactory, attempt: _Attempt) -> None:
        super().__init__(wrapped)  # type: ignore[no-untyped-call]
        self.attempt = attempt

    def buildProtocol(self, addr: Any) -> _Wire:  # noqa: N802
        """Raise AddressRefused, which closes the connection, when it leads where it may not."""
        self.attempt.check(addr.host)
        return _Wire(self, self.wrappedFactory.buildProtocol(addr))  # type: ignore[arg-type]


@implementer(IStreamClientEndpoint)
@frozen
class _Wired:
    """An endpoint whose connections lie on a `_Wire`."""

    _inner: IStreamClientEndpoint
    _attempt: _Attempt

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect, and give the protocol of `factory`."""
        connecting: Deferred[Any] = self._inner.connect(_WireFactory(factory, self._attempt))
        return connecting.addCallback(lambda wire: wire.wrappedProtocol)


@implementer(IReactorPluggableNameResolver)
class _Guard:
    """The reactor, but every address that a name turns out to have is checked before it is connected to."""

    def __init__(self, reactor: Any, check: Callable[[str], None]) -> None:
        self._reactor = reactor
        self._check = check

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def connectTCP(self, host: str, *args: Any, **kwargs: Any) -> Any:  # noqa: N802
        """Connect to an address; its endpoint makes a failure of what is raised."""
        self._check(host)
        return self._reactor.connectTCP(host, *args, **kwargs)


@implementer(IBodyProducer)
class _Body:
    """A body in memory, written in one go."""

    def __init__(self, body: bytes) -> None:
        self.length = len(body)
        self._body = body

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:  # noqa: N802
        """Write it."""
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Everything is written already; so for the other two."""

    resumeProducing = stopProducing = pauseProducing


def _judged(response: IResponse) -> Delivered | Rejected | Cut:
    """What the head of an answer means."""
    status = response.code
    if response.version[0] != b"HTTP" or not 200 <= status <= 999:
        return Cut(_NO_HTTP)  # Twisted takes any protocol's name, and any number, of thousands of digits even
    if 200 <= status <= 299:
        return Delivered(status)
    note = "; redirects are not followed" if 300 <= status <= 399 else ""
    # As bytes: Twisted raises over text that is no UTF-8.
    values = response.headers.getRawHeaders(b"Retry-After")
    retry_after = values[0].decode("latin-1") if values else None
    return Rejected(f"the receiver answered {status}{note}", status=status, retry_after=retry_after)


def _innermost(failure: Failure) -> object:
    """The last reason among Twisted's wrapped failures, which is the first cause."""
    reasons = getattr(failure.value, "reasons", None)
    return _innermost(reasons[0]) if reasons else failure.value


def _ssl_reason(error: SSL.Error) -> str:
    """OpenSSL's own words: the last of each triple on its stack of errors, or of a pair."""
    stack = error.args[0] if error.args and isinstance(error.args[0], list) else [error.args]
    return ", ".join(str(entry[-1]) for entry in stack if entry) or "the receiver closed the connection"
