"""The pause: the target's owner has the machine back for a while.

Theory of operation.  While it lasts the worker takes no job and the native face refuses calls that wait; both ask
`active`.  The running job is finished; a load in progress is awaited, then its job goes back to the queue.  When the
worker has come to rest it calls `free`, so that nothing is unloaded under a job.

The end is a moment of the wall clock, kept in the store, so that a pause survives a restart; a beat of the tick finds
that it has come.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import orjson
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from foreman.detach import detach
from foreman.errors import StoreError, Unavailable
from foreman.logs import make_logger
from foreman.tick import Tick
from foreman.times import rfc3339
from foreman.work.store import Store

LONGEST = 7 * 24 * 3600.0
"""Seconds that a pause may last."""

UNLOAD_WAIT = 15.0
"""Seconds for which `begin` waits to learn what became of the unloading."""

_KEY = "pause"  # kept answers of the target have paths for keys


class Pause:
    """Whether foreman is paused.

    :ivar until: when the pause ends, in milliseconds since the epoch; None while there is none.
    :ivar unloaded: whether the target's memory was freed in this pause; None if nobody asked, or not known yet.
    :ivar on_change: called whenever a pause has begun, changed or ended.
    :ivar unload: frees the target's memory and says whether it did; the service's to set.
    """

    _log = make_logger()

    def __init__(self, *, store: Store, tick: Tick, clock: IReactorTime, now_ms: Callable[[], int]) -> None:
        self.until: int | None = None
        self.unloaded: bool | None = None
        self.on_change: list[Callable[[], None]] = []
        self.unload: Callable[[], Awaitable[bool]]
        self._store = store
        self._tick = tick
        self._clock = clock
        self._now_ms = now_ms
        self._unload_wanted = False
        self._waiters: list[Deferred[bool | None]] = []
        self._unsubscribe: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Take up the pause that was on when foreman stopped, if it is not over."""
        kept = await self._store.kept(_KEY)
        if kept is not None:
            document = orjson.loads(kept[0])
            if document["until"] > self._now_ms():
                self.until, self._unload_wanted = document["until"], document["unload"]
                self._log.info("Still paused until {until}", until=rfc3339(document["until"]))
        self._unsubscribe = self._tick.subscribe(self._beat)

    def stop(self) -> None:
        """Look at the clock no more; the pause goes on, over the restart."""
        self._unsubscribe()
        self._told()

    @property
    def active(self) -> bool:
        """Whether foreman is paused now: nothing may be loaded, warmed or woken."""
        return self.until is not None and self._now_ms() < self.until

    def refusal(self) -> Unavailable:
        """What a caller is told who cannot wait; `Retry-After` is the rest of the pause."""
        until = self.until or self._now_ms()
        return Unavailable(
            f"foreman is paused until {rfc3339(until)}", retry_after=max(1.0, (until - self._now_ms()) / 1000)
        )

    def check(self) -> None:
        """Let a call pass that would put the target to work.

        :raise Unavailable: foreman is paused.
        """
        if self.active:
            raise self.refusal()

    # -- beginning and ending ------------------------------------------------------------------------------------

    async def begin(self, seconds: float, *, unload: bool) -> bool | None:
        """Pause from now on, in the place of any pause there is.

        :param seconds: at most `LONGEST`.
        :param unload: free the target's memory when the running job has ended.
        :return: as `unloaded`, after at most `UNLOAD_WAIT` seconds.
        :raise Unwritable: nothing has changed, since a pause must survive a restart.
        """
        until = self._now_ms() + round(seconds * 1000)
        await detach(self._keep(until, unload=unload))
        self.until, self.unloaded, self._unload_wanted = until, None, unload
        self._log.info("Paused until {until}", until=rfc3339(until))
        waiter: Deferred[bool | None] = Deferred()
        waiter.addTimeout(UNLOAD_WAIT, self._clock, onTimeoutCancel=lambda *_: None)
        self._waiters.append(waiter)
        if not unload:
            self._told()
        self._changed()
        return await waiter

    async def end(self) -> None:
        """Go on with the work, whether or not there is a pause.

        :raise Unwritable: nothing has changed.
        """
        await detach(self._keep(0, unload=False))
        self._over()

    async def free(self) -> None:
        """The worker is at rest: have the target's memory freed, if that is wanted and was not tried yet."""
        if not (self.active and self._unload_wanted):
            return
        until = self.until
        unloaded = await self.unload()
        if not self._unload_wanted or self.until != until or until is None:
            return  # ended or begun anew meanwhile, and that one wants its own try
        self.unloaded, self._unload_wanted = unloaded, False
        self._log.info("Unloaded: {unloaded}", unloaded=unloaded)
        self._told()
        try:
            await self._keep(until, unload=False)
        except StoreError as error:  # then the next start tries once more, which does no harm
            self._log.warn("Could not note that the models were unloaded: {error}", error=error)

    def _beat(self, slept: bool) -> None:
        if self.until is not None and not self.active:
            self._over()

    def _over(self) -> None:
        if self.until is not None:
            self._log.info("The pause is over")
        self.until, self.unloaded, self._unload_wanted = None, None, False
        self._told()
        self._changed()

    def _changed(self) -> None:
        for told in self.on_change:
            told()

    def _told(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.called:
                waiter.callback(self.unloaded)

    async def _keep(self, until: int, *, unload: bool) -> None:
        await self._store.keep(_KEY, orjson.dumps({"until": until, "unload": unload}), durable=True)
