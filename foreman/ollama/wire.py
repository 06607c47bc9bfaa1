"""The connections to the target: how they are opened, written to, kept for the next request, and cut.

A wire carries one exchange at a time.  It is kept only after an answer that ended cleanly, to a request that had gone
out whole, and dropped when the target closes it, or says anything, while nobody asks.
"""

from __future__ import annotations

import os
import socket
import typing
from contextlib import suppress
from io import BytesIO
from typing import Any, BinaryIO

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from foreman.transports import push

CONNECT_TIMEOUT = 10.0
"""Seconds until a connection must stand, looking up the name included."""

PERSISTENT = 8
"""Idle connections kept for the next request."""

IDLE = 240.0
"""Seconds after which an idle connection is not trusted any more."""

PIECE = 65536
"""Bytes of a body that are read and sent at a time."""

# A target that has moved to another address, where it answers the probes, is noticed on its old connection after a
# minute and a half.  Each system knows some of the names; macOS says TCP_KEEPALIVE for TCP_KEEPIDLE.
_KEEPALIVE = {
    "TCP_KEEPIDLE": 30,
    "TCP_KEEPALIVE": 30,
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 6,
    "TCP_USER_TIMEOUT": 90_000,
}


class User(typing.Protocol):
    """Who a wire is in the hands of."""

    def received(self, data: bytes) -> None:
        """These bytes have come."""

    def lost(self, reason: Failure) -> None:
        """The wire is closed; it has no user any more."""

    def fail(self, error: BaseException) -> None:
        """What was to be sent cannot be read."""


class Wire(Protocol):
    """One connection to the target.

    :ivar user: who asks on it, None while it is idle or cut.
    :ivar reused: it has carried an exchange before.
    :ivar sent: the request is with the transport to its last byte.
    :ivar idle_since: `seconds()` when it was kept.
    """

    transport: Any

    def __init__(self, wires: Wires) -> None:
        self.user: User | None = None
        self.reused = False
        self.sent = False
        self.idle_since = 0.0
        self._wires = wires

    def connectionMade(self) -> None:
        """Send at once what is written, and have the system watch the connection."""
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                with suppress(OSError):  # a connection that is gone already says so soon enough
                    self.transport.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def dataReceived(self, data: bytes) -> None:
        """Hand it to who asked."""
        if self.user is None:
            self.cut()
        else:
            self.user.received(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell who asked."""
        user, self.user = self.user, None
        self._wires.forget(self)
        if user is not None:
            user.lost(reason)

    def send(self, user: User, head: bytes, body: bytes | BinaryIO) -> None:
        """Send a request for `user`: all of it in one write, unless the body is long.

        :param body: a file is sent from where it stands, and is left open.
        """
        self.user = user
        self.sent = True
        if isinstance(body, bytes) and len(body) <= PIECE:
            push(self.transport, head + body)
            return
        file = BytesIO(body) if isinstance(body, bytes) else body
        left = remaining(file)
        if left <= PIECE:
            push(self.transport, head + file.read(left))
        else:
            self.sent = False
            self.transport.write(head)
            self.transport.registerProducer(_Upload(self, file, left), False)

    @property
    def quiet(self) -> bool:
        """Whether nothing waits to be read: words that nobody asked for, or an end."""
        try:
            self.transport.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def keep(self) -> None:
        """The exchange has ended cleanly: keep it for the next one, if there is room."""
        self._wires.keep(self)

    def cut(self) -> None:
        """Close it at once, whatever is under way; its user hears no more of it."""
        self.user = None
        self._wires.forget(self)
        self.transport.abortConnection()


def remaining(file: BinaryIO) -> int:
    """Bytes from where a file stands to its end."""
    here = file.tell()
    file.seek(0, os.SEEK_END)
    size = file.tell() - here
    file.seek(here)
    return size


@implementer(IPullProducer)
@define(eq=False)
class _Upload:
    """A long body on its way, read as fast as the target takes it."""

    _wire: Wire
    _file: BinaryIO
    _left: int

    def resumeProducing(self) -> None:
        """Send the next piece."""
        try:
            data = self._file.read(min(PIECE, self._left))
            if not data:
                raise EOFError("the body has become shorter")
        except Exception as error:  # noqa: BLE001 - raised to the caller of the exchange
            if self._wire.user is not None:
                self._wire.user.fail(error)
            return
        self._left -= len(data)
        self._wire.transport.write(data)
        if self._left == 0:
            self._wire.sent = True
            self._wire.transport.unregisterProducer()

    def stopProducing(self) -> None:
        """The connection is gone, which its user is told."""


class Wires(Factory):
    """All connections to the one server."""

    noisy = False

    def __init__(self, reactor: IReactorTime, endpoint: IStreamClientEndpoint) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._idle: list[Wire] = []

    def buildProtocol(self, addr: object) -> Wire:  # noqa: N802
        """Make a wire of a connection that stands."""
        return Wire(self)

    def connect(self) -> Deferred[Wire]:
        """Open one; fails with whatever keeps it from standing within `CONNECT_TIMEOUT`."""
        connecting: Deferred[Any] = self._endpoint.connect(self)
        return connecting.addTimeout(CONNECT_TIMEOUT, self._reactor, _no_connection)

    def idle(self) -> Wire | None:
        """Take the one that was used last, None if there is none to be trusted."""
        while self._idle:
            wire = self._idle.pop()
            if self._reactor.seconds() - wire.idle_since < IDLE and wire.quiet:
                return wire
            wire.cut()
        return None

    def keep(self, wire: Wire) -> None:
        """See `Wire.keep`."""
        if len(self._idle) < PERSISTENT:
            wire.user, wire.reused, wire.idle_since = None, True, self._reactor.seconds()
            self._idle.append(wire)
        else:
            wire.cut()

    def forget(self, wire: Wire) -> None:
        """One is closed."""
        if wire in self._idle:
            self._idle.remove(wire)

    def close(self) -> None:
        """Cut those that are idle."""
        for wire in tuple(self._idle):
            wire.cut()


def _no_connection(_: object, timeout: float) -> typing.NoReturn:
    raise TimeoutError(f"no connection within {timeout:g} s")
