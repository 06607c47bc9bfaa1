"""The one worker: takes one job at a time from the store and has an attempt made at it.

Theory of operation.  A DeferredQueue carries nothing but "look again": a job that comes, the target's return, the end
of a backoff.  At each look the worker takes jobs until the store has none that may run, so the order of work is the
store's alone.  What an attempt is, and what becomes of it, is told in `foreman.work.attempt` and
`foreman.work.aftermath`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from twisted.internet.defer import CancelledError, Deferred, DeferredQueue
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater

from foreman.errors import StoreError
from foreman.job import TERMINAL, ErrorCode, Job, JobError, JobState, Runner
from foreman.logs import make_logger
from foreman.ollama.inventory import Inventory
from foreman.ollama.target import Target
from foreman.tick import Tick
from foreman.work.aftermath import Aftermath
from foreman.work.attempt import Attempts, Patience
from foreman.work.moves import Taken
from foreman.work.pause import Pause
from foreman.work.residency import Residency
from foreman.work.store import Store
from foreman.work.switchboard import Switchboard
from foreman.work.tails import Tails

CANCELLED = JobError(ErrorCode.CANCELLED, "The job was cancelled.")

AGAIN = 0.05
"""Seconds after which to see whether an end has been written."""

SHORTEST_ALARM = 0.02
"""Seconds until the worker looks again by itself, at least."""


class Worker:
    """The one worker."""

    _log = make_logger()

    def __init__(
        self,
        *,
        store: Store,
        target: Target,
        inventory: Inventory,
        residency: Residency,
        switchboard: Switchboard,
        tails: Tails,
        pause: Pause,
        tick: Tick,
        clock: IReactorTime,
        now_ms: Callable[[], int],
        random: Callable[[], float],
        patience: Patience,
    ) -> None:
        self._store = store
        self._inventory = inventory
        self._residency = residency
        self._pause = pause
        self._tick = tick
        self._clock = clock
        self._now_ms = now_ms
        self._patience = patience
        self._aftermath = Aftermath(
            store=store,
            inventory=inventory,
            residency=residency,
            clock=clock,
            now_ms=now_ms,
            random=random,
            wake=self.wake,
        )
        self._attempts = Attempts(
            store=store,
            target=target,
            inventory=inventory,
            residency=residency,
            switchboard=switchboard,
            tails=tails,
            pause=pause,
            clock=clock,
            now_ms=now_ms,
            patience=patience,
            aftermath=self._aftermath,
        )
        self._looks: DeferredQueue[None] = DeferredQueue()
        self._alarm: IDelayedCall | None = None
        self._loop: Deferred[None] | None = None
        self._taking: Deferred[Taken | None] | None = None
        self._run: Deferred[None] | None = None
        self._through: list[Deferred[None]] = []  # who waits for the job in hand to be over

    def start(self) -> None:
        """Begin to work."""
        self._store.on_wake = self.wake
        self._store.on_coming = self._look
        self._inventory.on_up.insert(0, self.wake)
        self._pause.on_change.append(self.wake)
        self._inventory.jobs_waiting = lambda: self._store.backlog.queued > 0 or self.running is not None
        self._loop = Deferred.fromCoroutine(self._work())
        self.wake()

    @property
    def running(self) -> Job | None:
        """The job in hand, None between jobs."""
        return self._attempts.job

    @property
    def resident_name(self) -> str | None:
        """The model foreman believes to be resident, by name, for operators."""
        return self._residency.resident_name if self._residency.resident is not None else None

    @property
    def drains(self) -> Runner | None:
        """The runner whose jobs come next: that of the job in hand, else the resident one; None if unknown."""
        if self.running is None:
            return self._residency.resident
        return self.running.runner if self.running.runner.model else None

    def set_aside(self) -> tuple[Runner, ...]:
        """The runners that would not load and are not tried again yet."""
        now = self._clock.seconds()
        return tuple(self._residency.known(runner) for runner, until in self._attempts.aside.items() if until > now)

    def wake(self) -> None:
        """Look again: there may be something to do."""
        self._attempts.consider_renewal()
        self._look()

    def _look(self) -> None:
        # While a job is in hand it would be for nothing: behind it the worker looks anyway.
        if self.running is None and not self._looks.pending:
            self._looks.put(None)

    async def stop(self) -> None:
        """Take no more jobs; give the running one its grace; return when nothing is in hand."""
        self._attempts.stopping = self._aftermath.stopping = True
        if self._alarm is not None and self._alarm.active():
            self._alarm.cancel()
        if self._taking is not None:
            await self._taking  # its commit goes on whatever happens: the job it brings is put back
        run, loop = self._run, self._loop
        if run is not None and self.running is not None:
            grace = self._patience.shutdown_grace if self.running.state is JobState.WORKING else 0.0
            limit = self._clock.callLater(grace, run.cancel)
            with suppress(CancelledError):
                await run
            if limit.active():
                limit.cancel()
        if loop is not None:
            loop.cancel()
            with suppress(CancelledError):
                await loop

    # -- cancelling ----------------------------------------------------------------------------------------------

    async def cancel(self, job_id: str) -> bool | None:
        """Fail a job as `cancelled`, closing its connection to the target first if it is there.

        :return: False if it was over already, or came to its end first; None if there is no such job.
        :raise Unwritable: the store cannot be written now.
        """
        state = await self._store.cancel(job_id, CANCELLED)
        if state is not JobState.WORKING:
            return None if state is None else state not in TERMINAL
        while state is JobState.WORKING:
            await self._interrupt(job_id, erase=False)
            state = await self._store.cancel(job_id, CANCELLED)
        if state not in TERMINAL:
            return state is not None
        job = await self._store.get(job_id)
        return job is not None and job.error == CANCELLED

    async def delete(self, job_id: str) -> bool:
        """Cancel a job if it is not over, and erase it; no event of it is sent any more.  False if there is none.

        :raise Unwritable: the store cannot be written now.
        """
        state = first = await self._store.delete(job_id)
        while state is JobState.WORKING:
            await self._interrupt(job_id, erase=True)
            state = await self._store.delete(job_id)
        return first is not None

    async def _interrupt(self, job_id: str, *, erase: bool) -> None:
        """Have a job that is at the target ended there, and wait until the worker is through with it."""
        if self.running is None or self.running.id != job_id or self._run is None:
            await deferLater(self._clock, AGAIN)  # it is over, and its end on its way into the store
            return
        self._aftermath.erase = self._aftermath.erase or erase
        through: Deferred[None] = Deferred()
        self._through.append(through)
        self._attempts.cut_off(CANCELLED)
        await through

    # -- the loop ------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            await self._looks.get()
            try:
                while self._may_take() and (taken := await self._take()) is not None:
                    self._aftermath.erase = False
                    self._run = Deferred.fromCoroutine(self._attempts.make(taken))
                    try:
                        await self._run
                    finally:
                        self._run = None
                        through, self._through = self._through, []
                        for waiter in through:
                            waiter.callback(None)
                await self._settle()
                await self._pause.free()
                await self._set_alarm()
            except CancelledError:
                if self._attempts.stopping:
                    raise
                self._wake_at_next_beat()
            except StoreError as error:
                self._log.warn("The store does not answer: {error}", error=error)
                self._wake_at_next_beat()
            except Exception:  # noqa: BLE001 (one bad job must not end the loop)
                self._log.failure("The worker met a fault of foreman's own")
                self._wake_at_next_beat()

    def _may_take(self) -> bool:
        return (
            not self._attempts.stopping
            and self._store.expecting
            and self._inventory.up
            and not self._pause.active
            and self._aftermath.unwritten == 0
            and self._clock.seconds() >= self._aftermath.busy_until
        )

    async def _take(self) -> Taken | None:
        residency, aside, now = self._residency, self._attempts.aside, self._clock.seconds()
        self._attempts.aside = {runner: until for runner, until in aside.items() if until > now}
        self._taking = Deferred.fromCoroutine(
            self._store.take(resident=residency.resident, warm=residency.is_warm(), aside=self.set_aside())
        )
        try:
            return await self._taking
        finally:
            self._taking = None

    async def _settle(self) -> None:
        owes = self._residency.owes()
        if owes is not None and (self._store.backlog.of(owes) == 0 or self._pause.active):
            await self._residency.settle(may_load=not self._pause.active)

    async def _set_alarm(self) -> None:
        """Nothing may run now: look again when the busy wait, else when the next backoff or set-aside runner ends.

        The target's return, the end of a pause and a store that can write again wake the worker by themselves.
        """
        if self._alarm is not None and self._alarm.active():
            self._alarm.cancel()
        if self._attempts.stopping or not self._inventory.up or self._pause.active or self._aftermath.unwritten:
            return
        now = self._clock.seconds()
        seconds = [until - now for until in self._attempts.aside.values()]
        due = await self._store.next_due() if self._store.backlog.queued else None
        if due is not None:
            seconds.append((due - self._now_ms()) / 1000)
        if self._aftermath.busy_until > now:
            seconds = [self._aftermath.busy_until - now]
        if seconds and not self._attempts.stopping:
            self._alarm = self._clock.callLater(max(min(seconds), SHORTEST_ALARM), self.wake)

    def _wake_at_next_beat(self) -> None:
        def beat(slept: bool) -> None:
            unsubscribe()
            self.wake()

        unsubscribe = self._tick.subscribe(beat)
