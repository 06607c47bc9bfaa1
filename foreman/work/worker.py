"""The one worker: takes one job at a time from the store, has its runner loaded, and runs it at the target.

Theory of operation.  A DeferredQueue carries nothing but "look again": a commit, the target's return, the end of a
backoff.  At each look the worker takes jobs until the store has none that may run, so the order of work is the store's
alone.  `foreman.work.outcome` decides what a try's end means; the rows' ends are not waited for, since the one writer
keeps them in order with the next `take`, but while one cannot be written no further job is taken.

A job's run has three ways to be interrupted: its client leaves (`Caller.on_gone` closes the connection to the target),
the service stops (`stop` cancels the run), or the target fails it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from attrs import define, evolve, frozen
from twisted.internet.defer import CancelledError, Deferred, DeferredQueue
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater

from foreman.detach import detach
from foreman.errors import Answered, Lost, StoreError, TargetError, Unavailable, Unwritable
from foreman.job import CLIENT_LEFT, Ending, ErrorCode, Job, JobError, JobState, Runner
from foreman.logs import make_logger
from foreman.ollama.exchange import Flow, Head
from foreman.ollama.inventory import Inventory
from foreman.ollama.replies import FinalWatch
from foreman.ollama.target import Target
from foreman.tick import Tick
from foreman.work import outcome
from foreman.work.outcome import Done, Fail, Outcome, Retry
from foreman.work.pause import Pause
from foreman.work.residency import Load, Renewal, Residency
from foreman.work.schedule import backoff, busy_wait
from foreman.work.store import Store
from foreman.work.switchboard import Caller, Errand, Switchboard
from foreman.work.wedge import Wedge

T = TypeVar("T")

PAUSED = JobError(ErrorCode.CANCELLED, "foreman is paused.")
STOPPED = JobError(ErrorCode.INTERRUPTED, "foreman was stopped before the answer was complete.")

SHORTEST_ALARM = 0.02
"""Seconds until the worker looks again by itself, at least."""

FREE_RETRY_WAIT = 1.0
"""Seconds before a job is tried once more at no charge when that has just been done without a wait."""

RETRY_WRITE = 1.0
"""Seconds after which a write that the store could not make is tried again."""


@frozen(kw_only=True)
class Patience:
    """How long the worker waits, in seconds; the settings of the same names."""

    answer_timeout: float
    stall_timeout: float
    shutdown_grace: float


@define
class _Watcher:
    """The sink of a run: hands everything on to the caller and watches for the end marker.

    :ivar first_byte_at: milliseconds since the epoch, None until then.
    """

    caller: Caller
    watch: FinalWatch
    now_ms: Callable[[], int]
    renewal: Renewal | None
    first_byte_at: int | None = None

    def begin(self, head: Head, flow: Flow) -> None:
        """The answer's head has come."""
        self.first_byte_at = self.now_ms()
        self.caller.begin(head, flow)
        if self.renewal is not None:
            self.renewal.due()

    def write(self, data: bytes) -> None:
        """The next bytes have come."""
        self.watch.feed(data)
        self.caller.write(data)


class Worker:
    """The one worker.

    :ivar running: the job in hand, None between jobs.
    """

    _log = make_logger()

    def __init__(
        self,
        *,
        store: Store,
        target: Target,
        inventory: Inventory,
        residency: Residency,
        switchboard: Switchboard,
        pause: Pause,
        tick: Tick,
        clock: IReactorTime,
        now_ms: Callable[[], int],
        random: Callable[[], float],
        patience: Patience,
    ) -> None:
        self._store = store
        self._target = target
        self._inventory = inventory
        self._residency = residency
        self._switchboard = switchboard
        self._pause = pause
        self._tick = tick
        self._clock = clock
        self._now_ms = now_ms
        self._random = random
        self._patience = patience
        self.running: Job | None = None
        self._looks: DeferredQueue[None] = DeferredQueue()
        self._alarm: IDelayedCall | None = None
        self._aside: dict[Runner, float] = {}
        self._retried_freely: int | None = None  # the job that was last tried again at no charge and without a wait
        self._busy_until = 0.0
        self._busy_answers = 0
        self._wedge = Wedge()
        self._unwritten = 0
        self._distrusted = False  # idle connections: one has just turned out to be dead
        self._stopping = False
        self._loop: Deferred[None] | None = None
        self._run: Deferred[None] | None = None
        self._renewal: Renewal | None = None

    def start(self) -> None:
        """Begin to work."""
        self._store.on_wake = self.wake
        self._inventory.on_up.insert(0, self.wake)
        self._pause.on_change.append(self.wake)
        self._inventory.jobs_waiting = lambda: self._store.backlog.queued > 0 or self.running is not None
        self._loop = Deferred.fromCoroutine(self._work())
        self.wake()

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
        return tuple(runner for runner, until in self._aside.items() if until > now)

    def wake(self) -> None:
        """Look again: there may be something to do."""
        if self._renewal is not None:
            self._renewal.consider()
        if not self._looks.pending:
            self._looks.put(None)

    async def stop(self) -> None:
        """Take no more jobs; give the running one its grace; return when nothing is in hand."""
        self._stopping = True
        if self._alarm is not None and self._alarm.active():
            self._alarm.cancel()
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

    # -- the loop ------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            await self._looks.get()
            try:
                while self._may_take() and (job := await self._take()) is not None:
                    self.running = job
                    try:
                        self._run = Deferred.fromCoroutine(self._one(job))
                        await self._run
                    finally:
                        self.running = self._run = None
                await self._settle()
                await self._pause.free()
                await self._set_alarm()
            except CancelledError:
                if self._stopping:
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
            not self._stopping
            and self._inventory.up
            and not self._pause.active
            and self._unwritten == 0
            and self._clock.seconds() >= self._busy_until
        )

    async def _take(self) -> Job | None:
        aside = self.set_aside()
        self._aside = {runner: self._aside[runner] for runner in aside}
        return await self._store.take(resident=self._residency.resident, warm=self._residency.is_warm(), aside=aside)

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
        if self._stopping or not self._inventory.up or self._pause.active or self._unwritten:
            return
        now = self._clock.seconds()
        seconds = [until - now for until in self._aside.values()]
        due = await self._store.next_due()
        if due is not None:
            seconds.append((due - self._now_ms()) / 1000)
        if self._busy_until > now:
            seconds = [self._busy_until - now]
        if seconds and not self._stopping:
            self._alarm = self._clock.callLater(max(min(seconds), SHORTEST_ALARM), self.wake)

    def _wake_at_next_beat(self) -> None:
        def beat(slept: bool) -> None:
            unsubscribe()
            self.wake()

        unsubscribe = self._tick.subscribe(beat)

    # -- one job -------------------------------------------------------------------------------------------------

    async def _one(self, job: Job) -> None:
        caller = self._switchboard.find(job.id)
        if caller is None or caller.closed:
            self._part(job, caller)
            return
        caller.job = job
        try:
            await self._try(job, caller)
        except Exception as fault:  # noqa: BLE001 (whatever it was, neither the row nor its client may hang)
            if isinstance(fault, CancelledError) and self._stopping:
                # Shutdown: what was in hand is dropped, and the sync caller is told so.
                self._finish(caller.job, Ending(error=STOPPED, at=self._now_ms()))
                caller.fail(Unavailable("foreman is stopping", retry_after=5))
                return
            self._log.failure("A job met a fault of foreman's own", job=job.id, model=job.model)
            error = JobError(ErrorCode.TARGET_ERROR, "foreman met a fault of its own")
            self._finish(caller.job, Ending(error=error, at=self._now_ms()))
            caller.fail(RuntimeError(error.message))

    async def _try(self, job: Job, caller: Caller) -> None:
        load = _load_of(job, caller.errand)
        if load is None:
            # Only Ollama can read this body, so what it will load is unknown, before and after.
            self._residency.disturbed()
        if job.state is JobState.LOADING:
            if load is not None and not self._pause.active and not await self._load(job, caller, load):
                return
            if caller.closed:
                self._part(job, caller)
                return
            if self._pause.active:
                await self._put_back(job, caller, Retry(cause=PAUSED, charged=False))
                return
            working = await self._written(lambda: self._store.work(job))
            if working is None:
                return  # ended meanwhile, by whoever was entitled to
            self.running = caller.job = job = working
            if caller.closed:
                self._part(job, caller)
                return
        await self._generate(job, caller, load)

    def _part(self, job: Job, caller: Caller | None) -> None:
        """Nobody takes the answer any more."""
        error = CLIENT_LEFT if caller is None else caller.parting
        self._finish(job, Ending(error=error, at=self._now_ms()))

    async def _load(self, job: Job, caller: Caller, load: Load) -> bool:
        """Have the job's runner loaded; False if the job's try is over."""
        try:
            await self._residency.ensure(load)
        except Answered as error:
            # The job's own request is sent once all the same: its answer, status and text, is the client's.
            self._residency.disturbed()
            self._log.info("The load failed: {error}", error=error, job=job.id, model=job.model)
        except TargetError as error:
            result = outcome.of_error(error)
            if isinstance(result, Retry) and result.charged:
                self._aside[load.runner] = self._clock.seconds() + backoff(job.failures + 1, self._random)
            await self._apply(job, caller, result)
            return False
        return True

    async def _generate(self, job: Job, caller: Caller, load: Load | None) -> None:
        errand = caller.errand
        streamed = errand.route.default_stream if errand.inference is None else errand.inference.stream
        if load is not None:
            self._renewal = Renewal(
                self._residency,
                load,
                lambda: self._store.backlog.of(load.runner) > 0 and not self._pause.active,
                self._clock,
            )
            self._renewal.start()
        watcher = _Watcher(caller, FinalWatch(errand.route.api, streamed), self._now_ms, self._renewal)
        exchange = Deferred.fromCoroutine(
            self._target.exchange(
                b"POST",
                errand.path,
                headers=errand.headers,
                body=errand.body(),
                sink=watcher,
                first_byte=self._patience.answer_timeout,
                between=self._patience.stall_timeout if streamed else self._patience.answer_timeout,
                fresh=self._distrusted,
            )
        )
        caller.on_gone = exchange.cancel
        whole = False
        result: Outcome
        try:
            head = await exchange
            whole, self._distrusted = True, False
            result = outcome.of_answer(head.status, watcher.watch.verdict())
        except CancelledError:
            if not caller.closed:
                raise
            result = Fail(caller.parting)
        except TargetError as error:
            result = outcome.of_error(error)
            self._distrusted = isinstance(error, Lost) and error.reused
        finally:
            caller.on_gone = None
            renewal, self._renewal = self._renewal, None
        await self._apply(job, caller, result, watcher, whole=whole)
        # Only now: the client is not made to wait for it.
        renewed = renewal is not None and await renewal.end(ran=whole)
        if load is not None:
            self._residency.ran(load, well=isinstance(result, Done), renewed=renewed)

    async def _apply(
        self, job: Job, caller: Caller, result: Outcome, watcher: _Watcher | None = None, *, whole: bool = False
    ) -> None:
        """Write what became of the try, and tell the caller; `whole` if the answer has come to its end."""
        if isinstance(result, Retry):
            if result.unreachable:
                self._residency.disturbed()
                self._inventory.unreachable(TargetError(result.cause.message))
            # A whole error answer that is a client's already costs nobody anything more by being tried.
            if result.charged and not (whole and caller.begun):
                result = self._blame(job, result)
            if not caller.begun:
                await self._put_back(job, caller, result)
                return
            # The client has the answer's head: nothing can be tried again, but the charge is written.
            if result.charged:
                job = evolve(job, failures=job.failures + 1)
            result = Fail(result.cause)
        elif whole:
            await self._absolve()
        self._busy_answers = 0
        verdict = None if watcher is None else watcher.watch.verdict()
        self._finish(
            job,
            Ending(
                error=result.error if isinstance(result, Fail) else None,
                at=self._now_ms(),
                first_byte_at=None if watcher is None else watcher.first_byte_at,
                prompt_tokens=None if verdict is None else verdict.prompt_tokens,
                output_tokens=None if verdict is None else verdict.output_tokens,
            ),
        )
        if whole:
            caller.finish()
        elif isinstance(result, Fail):
            caller.fail(TargetError(result.error.message))

    def _blame(self, job: Job, retry: Retry) -> Retry:
        """Count a charged try; those on a wedged target charge nothing."""
        was_wedged = self._wedge.wedged
        wait = self._wedge.failed(job.seq)
        if self._wedge.wedged:
            self._busy_until = self._clock.seconds() + wait
            self._inventory.wedged = True
            self._log.warn("The target is wedged: {cause}", cause=retry.cause.message)
        return evolve(retry, charged=False) if was_wedged else retry

    async def _absolve(self) -> None:
        """A job got through: whatever it was is over."""
        lifted = self._wedge.succeeded()
        self._inventory.wedged = False
        if lifted:
            self._log.info("The target works again")
            await self._written(lambda: self._store.lift(lifted))

    async def _put_back(self, job: Job, caller: Caller, retry: Retry) -> None:
        if self._stopping and job.sync:
            self._finish(job, Ending(error=STOPPED, at=self._now_ms()))
            caller.fail(Unavailable("foreman is stopping", retry_after=5))
            return
        not_before = 0
        if retry.charged:
            not_before = self._now_ms() + int(backoff(job.failures + 1, self._random) * 1000)
        elif retry.busy:
            self._busy_answers += 1
            self._busy_until = self._clock.seconds() + busy_wait(self._busy_answers, retry.retry_after)
        elif not retry.unreachable:
            # Once at once, for an idle connection that had died; then slowly, whatever it is.
            if self._retried_freely == job.seq:
                self._busy_until = max(self._busy_until, self._clock.seconds() + FREE_RETRY_WAIT)
            self._retried_freely = job.seq
        self._log.info("Back to the queue: {cause}", cause=retry.cause.message, job=job.id, model=job.model)
        charge = retry.cause if retry.charged else None
        now = await self._written(lambda: self._store.put_back(job, not_before=not_before, charge=charge))
        if now is not None and now.error is not None:
            caller.fail(TargetError(now.error.message))

    # -- writing -------------------------------------------------------------------------------------------------

    def _finish(self, job: Job, ending: Ending) -> None:
        """Write the job's end beside whatever comes next; the one writer keeps the order."""
        self._log.info(
            "{state}: {code}",
            state=ending.state.value,
            code="complete" if ending.error is None else ending.error.code.value,
            job=job.id,
            model=job.model,
        )
        detach(self._written(lambda: self._store.end(job, ending))).addErrback(
            lambda failure: self._log.failure("A job's end was not written", failure=failure, job=job.id)
        )

    async def _written(self, write: Callable[[], Awaitable[T]]) -> T:
        """Make a write, however long the store cannot; no job is taken meanwhile."""
        try:
            return await write()
        except Unwritable as error:
            self._log.error("The store cannot write, trying again: {error}", error=error)
        self._unwritten += 1
        try:
            while True:
                await deferLater(self._clock, RETRY_WRITE)
                with suppress(Unwritable):
                    return await write()
        finally:
            self._unwritten -= 1
            self.wake()


def _load_of(job: Job, errand: Errand) -> Load | None:
    """What it takes to load the job's runner, None if foreman could not read which."""
    if errand.inference is None:
        return None
    return Load(
        runner=job.runner,
        name=job.model,
        kind=errand.route.kind,
        fields=errand.inference.load_fields,
        keep_alive=errand.inference.keep_alive,
    )
