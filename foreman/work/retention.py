"""Forgetting: jobs that ended longer ago than FOREMAN_JOB_TTL are deleted, a few at a time.

There is one writer for all, so a batch is small and never follows the one before directly: the next comes a second
later while there is more to delete, else after a minute.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred

from foreman.detach import detach
from foreman.errors import StoreError
from foreman.logs import make_logger
from foreman.tick import Tick
from foreman.work.store import Store

BATCH = 500
"""Jobs deleted in one transaction, at most."""

PERIOD = 60
"""Beats of the tick between two looks."""


class Retention:
    """Deletes what is old, for as long as it runs."""

    _log = make_logger()

    def __init__(self, *, store: Store, tick: Tick, now_ms: Callable[[], int], ttl: float) -> None:
        """:param ttl: seconds for which ended jobs are kept."""
        self._store = store
        self._tick = tick
        self._now_ms = now_ms
        self._ttl_ms = round(ttl * 1000)
        self._beats_left = PERIOD
        self._pruning: Deferred[None] | None = None
        self._unsubscribe: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin, with the first look in a minute."""
        self._unsubscribe = self._tick.subscribe(self._beat)

    async def stop(self) -> None:
        """Delete no more; returns when no batch is under way."""
        self._unsubscribe()
        if self._pruning is not None:
            await self._pruning

    def _beat(self, slept: bool) -> None:
        self._beats_left -= 1
        if self._beats_left <= 0 and self._pruning is None:
            self._pruning = detach(self._prune())

    async def _prune(self) -> None:
        self._beats_left = PERIOD
        try:
            deleted = await self._store.prune(self._now_ms() - self._ttl_ms, BATCH)
            if deleted == BATCH:
                self._beats_left = 1
            if deleted:
                self._log.debug("Forgot {count} old jobs", count=deleted)
        except StoreError as error:
            self._log.warn("Old jobs were not deleted: {error}", error=error)
        finally:
            self._pruning = None
