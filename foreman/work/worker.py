"""The one worker: takes one job at a time from the store, has its runner loaded, and runs it at the target.

Theory of operation.  A DeferredQueue carries nothing but "look again": a commit, the target's return, the end of a
backoff.  At each look the worker takes jobs until the store has none that may run, so the order of work is the store's
alone.  `foreman.work.outcome` decides what a try's end means, and `foreman.work.aftermath` carries it out.

A job's run has these ways to be interrupted: its client leaves (`Caller.on_gone`), it is cancelled, or its time is over
(all three close the connection to the target); the service stops (`stop` cancels the run); or the target fails it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from attrs import define, frozen
from twisted.internet.defer import CancelledError, Deferred, DeferredQueue
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater

from foreman.errors import Answered, Lost, StoreError, TargetError, Unavailable
from foreman.job import TERMINAL, Ending, ErrorCode, Job, JobError, JobState, Runner
from foreman.logs import make_logger
from foreman.ollama.exchange import Flow, Head
from foreman.ollama.inventory import Inventory
from foreman.ollama.replies import FinalWatch
from foreman.ollama.target import Target
from foreman.tick import Tick
from foreman.work import outcome
from foreman.work.aftermath import Aftermath, Run
from foreman.work.outcome import Fail, Outcome, Retry
from foreman.work.pause import Pause
from foreman.work.recorder import Recorder
from foreman.work.residency import Load, Renewal, Residency
from foreman.work.store import Store
from foreman.work.switchboard import Caller, Errand, Switchboard
from foreman.work.tails import Tails

CLIENT_LEFT = JobError(ErrorCode.CLIENT_DISCONNECTED, "The client left before its answer was complete.")
PAUSED = JobError(ErrorCode.CANCELLED, "foreman is paused.")
STOPPED = JobError(ErrorCode.INTERRUPTED, "foreman was stopped before the answer was complete.")

CANCELLED = JobError(ErrorCode.CANCELLED, "The job was cancelled.")
TOO_LONG = JobError(ErrorCode.TIMEOUT, "The job ran for longer than it may.")
FAULT = JobError(ErrorCode.TARGET_ERROR, "foreman met a fault of its own")

AGAIN = 0.05
"""Seconds after which to see whether an end has been written."""


@frozen(kw_only=True)
class Patience:
    """How long the worker waits, in seconds, and `max_result`, in bytes; the settings of the same names."""

    answer_timeout: float
    stall_timeout: float
    shutdown_grace: float
    max_run: float
    max_result: int


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
        tails: Tails,
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
        self._tails = tails
        self._pause = pause
        self._tick = tick
        self._clock = clock
        self._now_ms = now_ms
        self._patience = patience
        self.running: Job | None = None
        self._looks: DeferredQueue[None] = DeferredQueue()
        self._alarm: IDelayedCall | None = None
        self._aside: dict[Runner, int] = {}
        self._aftermath = Aftermath(
            store=store,
            inventory=inventory,
            residency=residency,
            clock=clock,
            now_ms=now_ms,
            random=random,
            wake=self.wake,
        )
        self._distrusted = False  # idle connections: one has just turned out to be dead
        self._stopping = False
        self._loop: Deferred[None] | None = None
        self._run: Deferred[None] | None = None
        self._renewal: Renewal | None = None
        self._exchange: Deferred[Head] | None = None
        self._cut: JobError | None = None  # why the job in hand is ended before its end
        self._through: list[Deferred[None]] = []  # who waits for the job in hand to be over

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
        now = self._now_ms()
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
        self._cut_off(CANCELLED)
        await through

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
                        through, self._through = self._through, []
                        for waiter in through:
                            waiter.callback(None)
                await self._settle()
                await self._pause.free()
                await self._set_alarm()
            except CancelledError:
                if self._stopping:
                    raise
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
            and self._aftermath.unwritten == 0
            and self._clock.seconds() >= self._aftermath.busy_until
        )

    async def _take(self) -> Job | None:
        now = self._now_ms()
        self._aside = {runner: until for runner, until in self._aside.items() if until > now}
        return await self._store.take(
            resident=self._residency.resident, warm=self._residency.is_warm(), aside=tuple(self._aside)
        )

    async def _settle(self) -> None:
        owes = self._residency.owes()
        if owes is not None and (self._store.backlog.of(owes) == 0 or self._pause.active):
            await self._residency.settle()

    async def _set_alarm(self) -> None:
        """Nothing may run now: look again when the next backoff, set-aside runner or busy wait ends."""
        if self._alarm is not None and self._alarm.active():
            self._alarm.cancel()
        times = list(self._aside.values())
        due = await self._store.next_due()
        if due is not None:
            times.append(due)
        seconds = [max(0.0, (at - self._now_ms()) / 1000) for at in times]
        if self._aftermath.busy_until > self._clock.seconds():
            seconds.append(self._aftermath.busy_until - self._clock.seconds())
        if seconds and self._inventory.up and not self._stopping:
            self._alarm = self._clock.callLater(min(seconds) + 0.001, self.wake)

    def _wake_at_next_beat(self) -> None:
        def beat(slept: bool) -> None:
            unsubscribe()
            self.wake()

        unsubscribe = self._tick.subscribe(beat)

    # -- one job -------------------------------------------------------------------------------------------------

    async def _one(self, job: Job) -> None:
        self._cut, self._aftermath.erase = None, False
        caller = None
        try:
            caller = self._switchboard.find(job.id) if job.sync else await self._recorder(job)
            if caller is not None and not caller.gone:
                caller.job = job
                await self._try(job, caller)
            elif job.sync:
                self._aftermath.finish(job, Ending(error=CLIENT_LEFT, at=self._now_ms()))
        except Exception as fault:  # noqa: BLE001 (whatever it was, neither the row nor its client may hang)
            now = job if caller is None or caller.job is None else caller.job
            if isinstance(fault, CancelledError) and self._stopping:
                # Shutdown: what was in hand is dropped; an async job runs again, a sync caller is told.
                told: Exception = Unavailable("foreman is stopping", retry_after=5)
                if job.sync:
                    self._aftermath.finish(now, Ending(error=STOPPED, at=self._now_ms()))
                else:
                    self._aftermath.put_back_unharmed(now)
            else:
                self._log.failure("A job met a fault of foreman's own", job=job.id, model=job.model)
                told = RuntimeError(FAULT.message)
                self._aftermath.finish(now, Ending(error=FAULT, at=self._now_ms()))
            if caller is not None:
                caller.fail(told)
        finally:
            self._aftermath.worked(job)

    async def _recorder(self, job: Job) -> Recorder | None:
        """Who takes an async job's answer; None if there is nothing to run."""
        submission = await self._aftermath.written(lambda: self._store.submission(job))
        if submission is None:
            return None  # ended or erased meanwhile
        recorder = Recorder(
            job, submission, self._tails, max_run=self._patience.max_run, max_result=self._patience.max_result
        )
        if await self._is_known(job.model):
            return recorder
        error = JobError(ErrorCode.MODEL_NOT_FOUND, f"model '{job.model}' not found")
        await self._aftermath.apply(job, recorder, Fail(error))
        return None

    async def _is_known(self, model: str) -> bool:
        """Whether the target has the model: a job may have come while it was down, or the model be gone since."""
        if not model or self._residency.is_beside(model) or self._inventory.models is None:
            return True  # or nobody knows
        return await self._inventory.find_now(model) is not None or not self._inventory.up

    async def _try(self, job: Job, caller: Caller) -> None:
        load = None
        if not self._residency.is_beside(job.model):
            load = _load_of(job, caller.errand)
            if load is None:
                # What the target will hold is unknown, before and after.
                self._residency.disturbed()
        if job.state is JobState.LOADING:
            if load is not None and not self._pause.active and not await self._load(job, caller, load):
                return
            if self._pause.active and not caller.gone:
                await self._aftermath.apply(job, caller, Retry(cause=PAUSED, charged=False))
                return
            if caller.gone:
                self._aftermath.finish(job, Ending(error=CLIENT_LEFT, at=self._now_ms()))
                return
            working = await self._aftermath.written(lambda: self._store.work(job))
            if working is None:
                caller.put_back()
                return  # ended meanwhile, by whoever was entitled to
            self.running = caller.job = job = working
            if caller.gone:
                self._aftermath.finish(job, Ending(error=CLIENT_LEFT, at=self._now_ms()))
                return
        await self._generate(job, caller, load)

    async def _load(self, job: Job, caller: Caller, load: Load) -> bool:
        """Have the job's runner loaded; False if the job's try is over."""
        try:
            await self._residency.ensure(load)
        except TargetError as error:
            if isinstance(error, Answered) and job.sync:
                # The call's own request is sent once all the same: its answer, status and text, is the client's.
                self._log.info("The load failed: {error}", error=error, job=job.id, model=job.model)
                return True
            result = outcome.of_load_error(error)
            if isinstance(result, Retry) and result.charged:
                self._aside[load.runner] = self._now_ms() + self._aftermath.backoff_ms(job)
            await self._aftermath.apply(job, caller, result)
            return False
        return True

    async def _generate(self, job: Job, caller: Caller, load: Load | None) -> None:
        if self._cut is not None:
            await self._aftermath.apply(job, caller, Fail(self._cut))
            return
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
            self._residency.runs(load)
        watcher = _Watcher(caller, FinalWatch(errand.route.api, streamed), self._now_ms, self._renewal)
        self._exchange = exchange = Deferred.fromCoroutine(
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
        caller.on_gone = partial(self._cut_off, CLIENT_LEFT)
        limit = None if caller.limit is None else self._clock.callLater(caller.limit, self._cut_off, TOO_LONG)
        ran = False
        result: Outcome
        try:
            head = await exchange
            ran, self._distrusted = True, False
            result = outcome.of_answer(head.status, watcher.watch.verdict(), head.retry_after)
        except CancelledError:
            if self._cut is None:
                raise
            result = Fail(self._cut)
        except TargetError as error:
            result = outcome.of_error(error)
            self._distrusted = isinstance(error, Lost) and error.reused
        finally:
            caller.on_gone = self._exchange = None
            if limit is not None and limit.active():
                limit.cancel()
            renewal, self._renewal = self._renewal, None
            renewed = renewal is not None and await renewal.end(ran=ran)
            if load is not None:
                self._residency.ran(load, well=ran, renewed=renewed)
        run = Run(whole=ran, first_byte_at=watcher.first_byte_at, verdict=watcher.watch.verdict())
        await self._aftermath.apply(job, caller, result, run)

    def _cut_off(self, error: JobError) -> None:
        """The job in hand ends with that error; its connection to the target is closed at once."""
        if self._cut is None:
            self._cut = error
            if self._exchange is not None:
                self._exchange.cancel()


def _load_of(job: Job, errand: Errand) -> Load | None:
    """What it takes to load the job's runner, None if foreman could not read which, or the job unloads it."""
    if errand.inference is None or errand.inference.is_unload:
        return None
    return Load(
        runner=job.runner,
        name=job.model,
        kind=errand.route.kind,
        fields=errand.inference.load_fields,
        keep_alive=errand.inference.keep_alive,
    )
