"""Jobs that have waited for longer than their `expires_in`: looked for once a second, and failed."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred

from foreman.detach import detach
from foreman.errors import StoreError
from foreman.logs import make_logger
from foreman.tick import Tick
from foreman.work.store import Store


class Expiry:
    """Fails what has expired, for as long as it runs."""

    _log = make_logger()

    def __init__(self, *, store: Store, tick: Tick, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._tick = tick
        self._now_ms = now_ms
        self._looking: Deferred[None] | None = None
        self._unsubscribe: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin."""
        self._unsubscribe = self._tick.subscribe(self._beat)

    async def stop(self) -> None:
        """Fail no more; returns when no look is under way."""
        self._unsubscribe()
        if self._looking is not None:
            await self._looking

    def _beat(self, slept: bool) -> None:
        if self._looking is None:
            self._looking = detach(self._look())

    async def _look(self) -> None:
        try:
            while (due := await self._store.next_expiry()) is not None and due <= self._now_ms():
                count = await self._store.expire()
                self._log.info("{count} jobs have expired", count=count)
        except StoreError as error:
            self._log.warn("Expired jobs were not failed: {error}", error=error)
        finally:
            self._looking = None
