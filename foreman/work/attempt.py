"""One attempt at a job: its runner is loaded, its request sent, and the answer handed on.

`foreman.work.outcome` decides what the end of the attempt means, and `foreman.work.aftermath` carries it out.

An attempt has these ways to be interrupted: its client leaves (`Caller.on_gone`), its job is cancelled, or its time is
over (all three close the connection to the target); foreman stops (the attempt is cancelled); or the target fails it.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from foreman.errors import Answered, Lost, TargetError, Unavailable
from foreman.job import Ending, ErrorCode, Job, JobError, JobState, Runner, Submission
from foreman.logs import make_logger
from foreman.ollama.exchange import Flow, Head
from foreman.ollama.inventory import Inventory
from foreman.ollama.replies import FinalWatch
from foreman.ollama.target import Target
from foreman.work import outcome
from foreman.work.aftermath import FAULT, STOPPED, Aftermath, Run
from foreman.work.moves import Taken
from foreman.work.outcome import Done, Fail, Outcome, Retry
from foreman.work.pause import Pause
from foreman.work.recorder import Recorder
from foreman.work.residency import Load, Renewal, Residency
from foreman.work.store import Store
from foreman.work.switchboard import Caller, Errand, Switchboard
from foreman.work.tails import Tails

PAUSED = JobError(ErrorCode.CANCELLED, "foreman is paused.")
TOO_LONG = JobError(ErrorCode.TIMEOUT, "The job ran for longer than it may.")


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


@define(eq=False, kw_only=True)
class Attempts:
    """Makes one attempt after another; the worker's right hand.

    :ivar job: the one in hand as it is now, None between attempts.
    :ivar stopping: foreman stops: whatever is cancelled was meant to be.
    :ivar aside: until when, by `clock.seconds()`, each runner that would not load is left alone.
    """

    store: Store
    target: Target
    inventory: Inventory
    residency: Residency
    switchboard: Switchboard
    tails: Tails
    pause: Pause
    clock: IReactorTime
    now_ms: Callable[[], int]
    patience: Patience
    aftermath: Aftermath
    job: Job | None = None
    stopping: bool = False
    aside: dict[Runner, float] = field(factory=dict)
    _cut: JobError | None = None  # why the job in hand is ended before its end
    _exchange: Deferred[Head] | None = None
    _renewal: Renewal | None = None
    _distrusted: bool = False  # idle connections: one has just turned out to be dead

    _log = make_logger()

    async def make(self, taken: Taken) -> None:
        """Make an attempt at a job that has just been picked; what becomes of it is written."""
        job = taken.job
        self.job, self._cut = job, None
        caller = None
        try:
            if taken.submission is None:
                caller = self.switchboard.find(job.id)
            if self.stopping:  # since it was asked for
                raise CancelledError
            if taken.submission is not None:
                caller = await self._recorder(job, taken.submission)
            if caller is not None and not caller.closed:
                caller.job = job
                await self._try(job, caller)
            elif job.sync:
                self.aftermath.part(job, caller)
        except Exception as fault:
            # Whatever it was, neither the row nor its client may hang.
            if self.job is None:
                raise  # they do not
            self._broken(self.job, caller, fault)
        finally:
            self.job = None
            self.aftermath.worked(job)

    def _broken(self, job: Job, caller: Caller | None, fault: Exception) -> None:
        """The attempt did not come to its own end."""
        told: Exception = Unavailable("foreman is stopping", retry_after=5)
        if not (isinstance(fault, CancelledError) and self.stopping):
            self._log.failure("A job met a fault of foreman's own", job=job.id, model=job.model)
            told = RuntimeError(FAULT.message)
            self.aftermath.finish(job, Ending(error=FAULT, at=self.now_ms()))
        elif job.sync:
            self.aftermath.finish(job, Ending(error=STOPPED, at=self.now_ms()))
        else:
            self.aftermath.put_back_unharmed(job)
        if caller is not None:
            caller.fail(told)

    def cut_off(self, error: JobError) -> None:
        """The job in hand ends with that error; its connection to the target is closed at once."""
        if self._cut is None:
            self._cut = error
            if self._exchange is not None:
                self._exchange.cancel()

    def consider_renewal(self) -> None:
        """More work of the running job's runner may be waiting."""
        if self._renewal is not None:
            self._renewal.consider()

    # -- before the request --------------------------------------------------------------------------------------

    async def _recorder(self, job: Job, submission: Submission) -> Recorder | None:
        """Who takes an async job's answer; None if the target does not know its model."""
        patience = self.patience
        recorder = Recorder(job, submission, self.tails, max_run=patience.max_run, max_result=patience.max_result)
        if await self._is_known(job.model):
            return recorder
        error = JobError(ErrorCode.MODEL_NOT_FOUND, f"model '{job.model}' not found")
        await self.aftermath.apply(job, recorder, Fail(error))
        return None

    async def _is_known(self, model: str) -> bool:
        """Whether the target has the model: a job may have come while it was down, or the model be gone since."""
        if not model or self.residency.is_beside(model) or self.inventory.models is None:
            return True  # or nobody knows
        return await self.inventory.find_now(model) is not None or not self.inventory.up

    async def _try(self, job: Job, caller: Caller) -> None:
        load = None
        if not self.residency.is_beside(job.model):
            load = _load_of(job, caller.errand)
            if load is None:
                # What the target will hold is unknown, before and after.
                self.residency.disturbed()
        if job.state is JobState.LOADING:
            if load is not None and not self.pause.active and not await self._load(job, caller, load):
                return
            if caller.closed:
                self.aftermath.part(job, caller)
                return
            if self.pause.active:
                await self.aftermath.apply(job, caller, Retry(cause=PAUSED, charged=False))
                return
            working = await self.aftermath.written(lambda: self.store.work(job))
            if working is None:
                caller.put_back()
                return  # ended meanwhile, by whoever was entitled to
            self.job = caller.job = job = working
            if caller.closed:
                self.aftermath.part(job, caller)
                return
        await self._generate(job, caller, load)

    async def _load(self, job: Job, caller: Caller, load: Load) -> bool:
        """Have the job's runner loaded; False if the job's try is over."""
        try:
            await self.residency.ensure(load)
        except TargetError as error:
            if isinstance(error, Answered) and job.sync:
                # The call's own request is sent once all the same: its answer, status and text, is the client's.
                self.residency.disturbed()
                self._log.info("The load failed: {error}", error=error, job=job.id, model=job.model)
                return True
            result = outcome.of_load_error(error)
            if isinstance(result, Retry) and result.charged:
                self.aside[load.runner] = self.clock.seconds() + self.aftermath.backoff(job)
            await self.aftermath.apply(job, caller, result)
            return False
        return True

    # -- the request ---------------------------------------------------------------------------------------------

    async def _generate(self, job: Job, caller: Caller, load: Load | None) -> None:
        if self._cut is not None:
            await self.aftermath.apply(job, caller, Fail(self._cut))
            return
        errand = caller.errand
        streamed = errand.route.default_stream if errand.inference is None else errand.inference.stream
        if load is not None:
            self.residency.swaps.run(job.seq, self.residency.known(load.runner))
            self._renewal = Renewal(
                self.residency,
                load,
                lambda: self.store.backlog.of(self.residency.known(load.runner)) > 0 and not self.pause.active,
                self.clock,
            )
            self._renewal.start()
        watcher = _Watcher(caller, FinalWatch(errand.route.api, streamed), self.now_ms, self._renewal)
        patience = self.patience
        self._exchange = exchange = Deferred.fromCoroutine(
            self.target.exchange(
                b"POST",
                errand.path,
                headers=errand.headers,
                body=errand.body(),
                sink=watcher,
                first_byte=patience.answer_timeout,
                between=patience.stall_timeout if streamed else patience.answer_timeout,
                fresh=self._distrusted,
            )
        )
        caller.on_gone = lambda: self.cut_off(caller.parting)
        limit = None if caller.limit is None else self.clock.callLater(caller.limit, self.cut_off, TOO_LONG)
        head: Head | None = None
        result: Outcome
        try:
            head = await exchange
            self._distrusted = False
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
        verdict, whole = watcher.watch.verdict(), head is not None
        if head is not None:
            result = outcome.of_answer(head.status, verdict, head.retry_after)
        run = Run(whole=whole, first_byte_at=watcher.first_byte_at, verdict=verdict)
        await self.aftermath.apply(job, caller, result, run)
        self.job = None  # it is over; a stop waits for it no more
        # Only now: the client is not made to wait for it.
        renewed = renewal is not None and await renewal.end(ran=whole)
        if load is not None:
            self.residency.ran(load, well=isinstance(result, Done), renewed=renewed)


def _load_of(job: Job, errand: Errand) -> Load | None:
    """What it takes to load the job's runner; None if foreman could not read which, or the job unloads it."""
    if errand.inference is None or errand.inference.is_unload:
        return None
    return Load(
        runner=job.runner,
        name=job.model,
        kind=errand.route.kind,
        fields=errand.inference.load_fields,
        keep_alive=errand.inference.keep_alive,
    )
