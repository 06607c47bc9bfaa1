"""Large answers of foreman's own, written at the pace at which their clients take them."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.web.server import Request
from zope.interface import implementer


@implementer(IPushProducer)
class Pace:
    """Tells a route when its client takes more; one that leaves cancels the route, as ever."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._paused = False
        self._waiting: Deferred[None] | None = None
        request.registerProducer(self, streaming=True)

    async def ready(self) -> None:
        """Wait until the client takes more."""
        if self._paused:
            self._waiting = Deferred()
            await self._waiting

    def close(self) -> None:
        """Nothing large follows; to be called before the request is finished."""
        if self._request.channel is not None:
            self._request.unregisterProducer()

    def pauseProducing(self) -> None:
        """The client takes no more for now."""
        self._paused = True

    def resumeProducing(self) -> None:
        """The client takes more."""
        self._paused = False
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.called:
            waiting.callback(None)

    def stopProducing(self) -> None:
        """The connection is gone."""
