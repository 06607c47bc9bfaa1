"""Large answers of foreman's own, written at the pace at which their clients take them.

A client that accepts no byte for `CLIENT_STALL` seconds while data waits is cut: it would keep its connection, and
what waits for it, for ever.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.web.server import Request
from zope.interface import implementer

CLIENT_STALL = 60.0
"""Seconds for which a client may accept nothing while data waits."""


def unsent(request: Request) -> int:
    """Bytes of an answer that the transport still holds; 0 where it does not tell."""
    transport: Any = request.transport
    return (
        len(getattr(transport, "dataBuffer", b""))
        - getattr(transport, "offset", 0)
        + getattr(transport, "_tempDataLen", 0)
    )


@implementer(IPushProducer)
class Pace:
    """Tells a route when its client takes more; one that leaves cancels the route, as ever."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._paused = False
        self._waiting: Deferred[None] | None = None
        self._watch: IDelayedCall | None = None
        self._unsent = 0
        request.registerProducer(self, streaming=True)

    async def ready(self) -> None:
        """Wait until the client takes more."""
        if self._paused:
            self._waiting = Deferred()
            await self._waiting

    def close(self) -> None:
        """Nothing large follows; to be called before the request is finished."""
        self._look_away()
        if self._request.channel is not None:
            self._request.unregisterProducer()

    def pauseProducing(self) -> None:
        """The client takes no more for now."""
        self._paused = True
        if self._watch is None:
            self._look_after()

    def resumeProducing(self) -> None:
        """The client takes more."""
        self._paused = False
        self._look_away()
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.called:
            waiting.callback(None)

    def stopProducing(self) -> None:
        """The connection is gone."""
        self._look_away()

    def _look_after(self) -> None:
        self._unsent = unsent(self._request)
        site: Any = self._request.site
        self._watch = site.reactor.callLater(CLIENT_STALL, self._look)

    def _look(self) -> None:
        self._watch = None
        if unsent(self._request) < self._unsent:
            self._look_after()
        elif self._request.transport is not None:
            self._request.transport.abortConnection()  # type: ignore[attr-defined]

    def _look_away(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
