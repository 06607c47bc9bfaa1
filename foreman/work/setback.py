"""What was put off by the wall clock when that clock is set back: a backoff of seconds must not become one of hours.

Backoffs of jobs, tries of webhooks and `expires_in` stand in the database as moments of the wall clock, since they
outlive the process.  Against the monotonic clock each beat shows whether the wall clock has been set back, and by how
much; what is planned then moves with it.  (Set forward, or slept through, makes plans come early, which harms nobody.)
A clock that was set back while no foreman ran shows at the start: the newest job is from the future.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from foreman.detach import detach
from foreman.errors import StoreError
from foreman.logs import make_logger
from foreman.tick import Tick
from foreman.work import queries
from foreman.work.moves import Transaction
from foreman.work.store import Store

LEAST = 1000
"""Milliseconds by which a clock must have been set back; less is how clocks are kept right."""


class Setback:
    """Moves what is planned when the wall clock is set back, for as long as it runs.

    :ivar on_moved: each called when plans have moved: what is due may be due sooner.
    """

    _log = make_logger()

    def __init__(self, *, store: Store, tick: Tick, clock: IReactorTime, now_ms: Callable[[], int]) -> None:
        self.on_moved: list[Callable[[], None]] = []
        self._store = store
        self._tick = tick
        self._clock = clock
        self._now_ms = now_ms
        self._lead = 0  # of the wall clock over the monotonic one
        self._owed = 0  # milliseconds by which plans are still to be moved
        self._moving = False
        self._unsubscribe: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Look whether it was set back while nobody looked, and watch from now on."""
        self._lead = self._measured()
        newest = await self._store.newest()
        if newest is not None and newest - self._now_ms() >= LEAST:
            # When exactly that was, and what was planned since, nobody knows: nothing is made to expire sooner.
            await self._store.transact(_move(newest - self._now_ms(), expiries=False), durable=False)
        self._unsubscribe = self._tick.subscribe(self._beat)

    def stop(self) -> None:
        """Look no more."""
        self._unsubscribe()

    def _measured(self) -> int:
        return self._now_ms() - round(self._clock.seconds() * 1000)

    def _beat(self, slept: bool) -> None:
        before, self._lead = self._lead, self._measured()
        if before - self._lead >= LEAST:
            self._owed += before - self._lead
            self._log.warn("The clock was set back by {seconds} s", seconds=(before - self._lead) / 1000)
        if self._owed and not self._moving:
            self._moving = True
            detach(self._pay(self._owed))

    async def _pay(self, by: int) -> None:
        try:
            await self._store.transact(_move(by, expiries=True), durable=False)
        except StoreError as error:
            self._log.warn("What is planned could not be moved: {error}", error=error)  # the next beat tries again
        else:
            self._owed -= by
            for told in self.on_moved:
                told()
        finally:
            self._moving = False


def _move(by: int, *, expiries: bool) -> Callable[[Transaction], None]:
    def move(transaction: Transaction) -> None:
        for query in (queries.HASTEN_JOBS, queries.HASTEN_DELIVERIES, *((queries.HASTEN_EXPIRY,) if expiries else ())):
            transaction.cursor.execute(query, (by,))

    return move
