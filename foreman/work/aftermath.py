"""What follows from a try's end: the job's row, who pays, and how long the target is left alone.

`foreman.work.outcome` decides what an end means; here it is carried out.  The rows' ends are not waited for, since the
one writer keeps them in order with the next `take`, but while one cannot be written no further job is taken: nothing
is run again for want of a write.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from attrs import evolve, frozen
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from foreman.detach import detach
from foreman.errors import TargetError, Unavailable, Unwritable
from foreman.job import CLIENT_LEFT, Ending, ErrorCode, Job, JobError
from foreman.logs import make_logger
from foreman.ollama.inventory import Inventory
from foreman.ollama.replies import Verdict
from foreman.work.outcome import Fail, Outcome, Retry
from foreman.work.residency import Residency
from foreman.work.schedule import backoff, busy_wait
from foreman.work.spans import Spans
from foreman.work.store import Store
from foreman.work.switchboard import Caller
from foreman.work.wedge import Wedge

T = TypeVar("T")

FAULT = JobError(ErrorCode.TARGET_ERROR, "foreman met a fault of its own")
STOPPED = JobError(ErrorCode.INTERRUPTED, "foreman was stopped before the answer was complete.")

FREE_RETRY_WAIT = 1.0
"""Seconds before a job is tried once more at no charge when that has just been done without a wait."""

RETRY_WRITE = 1.0
"""Seconds after which a write that the store could not make is tried again."""


@frozen(kw_only=True)
class Run:
    """How a request at the target went.

    :ivar whole: its answer has come to its end, whatever it was.
    :ivar first_byte_at: milliseconds since the epoch, None if nothing came.
    :ivar verdict: on what came of the answer.
    """

    whole: bool
    first_byte_at: int | None
    verdict: Verdict


class Aftermath:
    """Carries out what the ends of tries mean.

    :ivar busy_until: `clock.seconds()` before which the target is left alone.
    :ivar unwritten: writes that the store could not make yet; while there are any no job is taken.
    :ivar erase: the job in hand is not to be ended but erased.
    :ivar stopping: foreman stops: no sync call can wait any longer.
    """

    _log = make_logger()

    def __init__(
        self,
        *,
        store: Store,
        inventory: Inventory,
        residency: Residency,
        clock: IReactorTime,
        now_ms: Callable[[], int],
        random: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        """:param wake: has the worker look again."""
        self._store = store
        self._inventory = inventory
        self._residency = residency
        self._clock = clock
        self._now_ms = now_ms
        self._random = random
        self._wake = wake
        self.busy_until = 0.0
        self.unwritten = 0
        self.erase = False
        self.stopping = False
        self._retried_freely: int | None = None  # the job that was last tried again at no charge and without a wait
        self._busy_answers = 0
        self._wedge = Wedge()
        self._worked = Spans()
        self._away = Spans()
        inventory.on_up.append(self._is_back)

    # -- what a try came to --------------------------------------------------------------------------------------

    async def apply(self, job: Job, caller: Caller, result: Outcome, run: Run | None = None) -> None:
        """Write what became of a try, and tell the caller.

        :param run: how its request went; None if none was sent.
        """
        whole = run is not None and run.whole
        if isinstance(result, Retry):
            if result.unreachable:
                self._residency.disturbed()
                self._inventory.unreachable(TargetError(result.cause.message))
            # A whole error answer that is a client's already costs nobody anything more by being tried.
            if result.charged and not (whole and caller.begun):
                result = self._blame(job, result)
            if not caller.begun:
                await self._put_back(job, caller, result, run)
                return
            # The client has the answer's head: nothing can be tried again, but the charge is written.
            if result.charged:
                job = evolve(job, failures=job.failures + 1)
            result = Fail(result.cause)
        elif whole:
            await self._absolve()
        self._busy_answers = 0
        self.finish(job, self._ending(job, caller, result.error if isinstance(result, Fail) else None, run))
        if whole:
            caller.finish()
        elif isinstance(result, Fail):
            caller.fail(TargetError(result.error.message))

    def _ending(self, job: Job, caller: Caller, error: JobError | None, run: Run | None) -> Ending:
        now = self._now_ms()
        if run is None:
            return Ending(error=error, at=now)
        verdict = run.verdict
        return Ending(
            error=error,
            at=now,
            first_byte_at=run.first_byte_at,
            prompt_tokens=verdict.prompt_tokens,
            output_tokens=verdict.output_tokens,
            output_ms=None if verdict.output_ms is None else round(verdict.output_ms),
            unreachable_ms=self._away.length_within(job.created_at, now),
            waited_for=self._worked.names_within(job.created_at, job.loading_at or now),
            artifacts=caller.keep(done=error is None),
        )

    def _blame(self, job: Job, retry: Retry) -> Retry:
        """Count a charged try; those on a wedged target charge nothing."""
        was_wedged = self._wedge.wedged
        wait = self._wedge.failed(job.seq)
        if self._wedge.wedged:
            self.busy_until = self._clock.seconds() + wait
            self._inventory.wedged = True
            self._log.warn("The target is wedged: {cause}", cause=retry.logged)
        return evolve(retry, charged=False) if was_wedged else retry

    async def _absolve(self) -> None:
        """A job got through: whatever it was is over."""
        lifted = self._wedge.succeeded()
        self._inventory.wedged = False
        if lifted:
            self._log.info("The target works again")
            await self.written(lambda: self._store.lift(lifted))

    async def _put_back(self, job: Job, caller: Caller, retry: Retry, run: Run | None) -> None:
        if self.stopping and job.sync:
            self.finish(job, Ending(error=STOPPED, at=self._now_ms()))
            caller.fail(Unavailable("foreman is stopping", retry_after=5))
            return
        not_before = 0
        if retry.charged:
            not_before = self._now_ms() + int(self.backoff(job) * 1000)
        elif retry.busy:
            self._busy_answers += 1
            self.busy_until = self._clock.seconds() + busy_wait(self._busy_answers, retry.retry_after)
        elif not retry.unreachable:
            # Once at once, for an idle connection that had died; then slowly, whatever it is.
            if self._retried_freely == job.seq:
                self.busy_until = max(self.busy_until, self._clock.seconds() + FREE_RETRY_WAIT)
            self._retried_freely = job.seq
        self._log.info("Back to the queue: {cause}", cause=retry.logged, job=job.id, model=job.model)
        charge = retry.cause if retry.charged else None
        remains = None if charge is None else self._ending(job, caller, charge, run)
        now = await self.written(
            lambda: self._store.put_back(job, not_before=not_before, charge=charge, remains=remains)
        )
        if now is not None and now.error is not None:
            caller.fail(TargetError(now.error.message))
        else:
            caller.put_back()

    def backoff(self, job: Job) -> float:
        """Seconds until the job, or its runner, is tried again after one charge more."""
        return backoff(job.failures + 1, self._random)

    def worked(self, job: Job) -> None:
        """The worker is through with a job, for now."""
        if job.loading_at is not None:
            self._worked.add(job.loading_at, self._now_ms(), job.model)

    def _is_back(self) -> None:
        now = self._now_ms()
        self._away.add(now - round((self._clock.seconds() - self._inventory.down_since) * 1000), now, "away")

    def part(self, job: Job, caller: Caller | None) -> None:
        """Nobody takes the answer of a sync call any more."""
        error = CLIENT_LEFT if caller is None else caller.parting
        self.finish(job, Ending(error=error, at=self._now_ms()))

    # -- writing -------------------------------------------------------------------------------------------------

    def finish(self, job: Job, ending: Ending) -> None:
        """Write the job's end beside whatever comes next; the one writer keeps the order."""
        self._log.info(
            "{state}: {code}",
            state=ending.state.value,
            code="complete" if ending.error is None else ending.error.code.value,
            job=job.id,
            model=job.model,
        )
        if self.erase:
            self._write_beside(job, lambda: self._store.delete(job.id, working=True))
        else:
            self._write_beside(job, lambda: self._store.end(job, ending))

    def put_back_unharmed(self, job: Job) -> None:
        """The job waits again, with nothing charged, at the next start."""
        self._log.info("Back to the queue: foreman stops", job=job.id, model=job.model)
        self._write_beside(job, lambda: self._store.put_back(job, not_before=0, charge=None))

    def _write_beside(self, job: Job, write: Callable[[], Awaitable[object]]) -> None:
        detach(self.written(write)).addErrback(
            lambda failure: self._log.failure("A job's end was not written", failure=failure, job=job.id)
        )

    async def written(self, write: Callable[[], Awaitable[T]]) -> T:
        """Make a write, however long the store cannot; no job is taken meanwhile."""
        try:
            return await write()
        except Unwritable as error:
            self._log.error("The store cannot write, trying again: {error}", error=error)
        self.unwritten += 1
        try:
            while True:
                await deferLater(self._clock, RETRY_WRITE)
                with suppress(Unwritable):
                    return await write()
        finally:
            self.unwritten -= 1
            self._wake()
