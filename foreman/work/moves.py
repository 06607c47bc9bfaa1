"""The moves of a job: pure functions from the job before to the job after, and the one place that writes them.

Every transition, whoever asks for it, is a call of `Transaction.move`.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import orjson
from attrs import evolve, field, frozen

from foreman.job import (
    TERMINAL,
    TRANSITIONS,
    Artifact,
    Ending,
    ErrorCode,
    Job,
    JobError,
    JobState,
    NewJob,
    Runner,
    Submission,
)
from foreman.ollama.names import normalise
from foreman.work import queries
from foreman.work.schedule import order_key

# -- from the job before to the job after ----------------------------------------------------------------------------


def picked(job: Job, now: int) -> Job:
    """The worker has chosen it: the next attempt begins."""
    return evolve(job, state=JobState.LOADING, attempt=job.attempt + 1, loading_at=now, working_at=None)


def at_work(job: Job, now: int) -> Job:
    """Its runner is resident and its request goes to the target."""
    return evolve(job, state=JobState.WORKING, working_at=now)


def ended(job: Job, ending: Ending) -> Job:
    """It is over."""
    return evolve(
        job,
        state=ending.state,
        completed_at=ending.at,
        first_byte_at=ending.first_byte_at,
        prompt_tokens=ending.prompt_tokens,
        output_tokens=ending.output_tokens,
        output_ms=ending.output_ms,
        unreachable_ms=ending.unreachable_ms,
        waited_for=ending.waited_for,
        error=ending.error,
    )


def requeued(job: Job) -> Job:
    """It waits again, and nothing is charged."""
    return evolve(job, state=JobState.QUEUED)


def charged(job: Job, cause: JobError, *, now: int, max_attempts: int, remains: Ending | None = None) -> Job:
    """It waits again with one failure more, or has failed for good when that was its last.

    :param remains: what there is to tell of the try in the latter case.
    """
    failures = job.failures + 1
    if failures < max_attempts:
        return evolve(job, state=JobState.QUEUED, failures=failures)
    error = JobError(
        ErrorCode.ATTEMPTS_EXHAUSTED, f"gave up after {failures} failures, the last: {cause.code}: {cause.message}"
    )
    ending = Ending(error=error, at=now) if remains is None else evolve(remains, error=error)
    return ended(evolve(job, failures=failures), ending)


# -- the rows --------------------------------------------------------------------------------------------------------


def job_of(row: Sequence[Any]) -> Job:
    """The job in a row of `queries.COLUMNS`."""
    return Job(
        seq=row[0],
        id=row[1],
        sync=bool(row[2]),
        endpoint=row[3],
        model=row[4],
        runner=Runner(row[5], row[6]),
        size=row[7],
        state=JobState(row[8]),
        attempt=row[9],
        failures=row[10],
        created_at=row[11],
        loading_at=row[12],
        working_at=row[13],
        first_byte_at=row[14],
        completed_at=row[15],
        prompt_tokens=row[16],
        output_tokens=row[17],
        output_ms=row[18],
        unreachable_ms=row[19],
        waited_for=tuple(orjson.loads(row[20])),
        error=None if row[21] is None else JobError(ErrorCode(row[21]), row[22]),
    )


def host_of(url: str) -> str:
    """The receiver behind a webhook's URL as `scheme://host:port`, in lower case."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}".lower()


@frozen
class Move:
    """What a transaction did to one job.

    :ivar job: as it is afterwards.
    :ivar was: its state before, None if it is new.
    :ivar ready: it may be picked now.
    :ivar told: there is a webhook to tell of it.
    """

    job: Job
    was: JobState | None
    ready: bool
    told: bool = False


@frozen
class Taken:
    """A job that was picked.

    :ivar submission: what it has brought, None of a sync call.
    """

    job: Job
    submission: Submission | None


@frozen
class Transaction:
    """One write transaction over the jobs, off the reactor thread.

    Each transition of an async job leaves an event, and its last one erases the request.

    :ivar now: milliseconds since the epoch.
    :ivar moves: what was done so far, in order; true once the transaction is committed.
    """

    cursor: sqlite3.Cursor
    now: int
    moves: list[Move] = field(factory=list)

    def accept(self, new: NewJob, request: int | None = None) -> Job:
        """Store a new job at the end of the queue.

        :param request: the number of the idempotency key it came with.
        :raise sqlite3.IntegrityError: its id exists.
        """
        runner, submission = new.runner, new.submission
        self.cursor.execute(
            queries.INSERT,
            (
                new.id,
                new.sync,
                new.endpoint,
                new.model,
                normalise(new.model),
                runner.model,
                runner.options,
                new.size,
                new.created_at,
                submission and submission.expires_at,
                submission and submission.timeout,
                submission and submission.metadata,
                submission and submission.webhook,
                request,
            ),
        )
        told = submission is not None and submission.webhook is not None
        seq = self.cursor.lastrowid
        assert seq is not None  # noqa: S101 - an INSERT just succeeded
        job = Job(
            seq=seq,
            id=new.id,
            sync=new.sync,
            endpoint=new.endpoint,
            model=new.model,
            runner=runner,
            size=new.size,
            state=JobState.QUEUED,
            attempt=0,
            failures=0,
            created_at=new.created_at,
        )
        if submission is not None:
            self.cursor.execute(queries.INSERT_BODY, (seq, submission.content_type, submission.body))
            host = None if submission.webhook is None else host_of(submission.webhook)
            due = (None, None) if host is None else ("pending", self.now)
            self.cursor.execute(queries.INSERT_FIRST_EVENT, (seq, self.now, host, *due))
        self.moves.append(Move(job, None, ready=True, told=told))
        return job

    def move(
        self,
        before: Job,
        after: Job,
        *,
        via: Job | None = None,
        not_before: int = 0,
        orphaned: int | None = None,
        artifacts: Sequence[Artifact] = (),
    ) -> bool:
        """Write one transition, if the row is still as it was `before`.

        :param via: the job in a state that it passes through in no time: told like any other, in the same statement.
        :param not_before: of a job that waits again: milliseconds since the epoch, 0 for at once.
        :param orphaned: how many starts in a row have found it without an owner; None leaves the count.
        :param artifacts: what an async job that has ended leaves.
        :return: False if somebody moved it meanwhile: nothing is written.
        :raise ValueError: no job may ever go from the one state to the other.
        """
        steps = [(before, after)] if via is None else [(before, via), (via, after)]
        for was, now in steps:
            if now.state not in TRANSITIONS[was.state]:
                raise ValueError(f"a job does not go from {was.state} to {now.state}")
        self.cursor.execute(
            queries.MOVE,
            {
                "seq": before.seq,
                "was_state": before.state,
                "was_attempt": before.attempt,
                "state": after.state,
                "attempt": after.attempt,
                "failures": after.failures,
                "not_before": not_before,
                "orphaned": orphaned,
                "loading_at": after.loading_at,
                "working_at": after.working_at,
                "first_byte_at": after.first_byte_at,
                "completed_at": after.completed_at,
                "prompt_tokens": after.prompt_tokens,
                "output_tokens": after.output_tokens,
                "output_ms": after.output_ms,
                "unreachable_ms": after.unreachable_ms,
                "waited_for": orjson.dumps(after.waited_for).decode(),
                "error_code": after.error and after.error.code,
                "error_message": after.error and after.error.message,
            },
        )
        if self.cursor.rowcount != 1:
            return False
        webhook = None
        if not after.sync:
            if after.state in TERMINAL:
                self.cursor.execute(queries.ERASE_BODY, (after.seq,))
                self.cursor.executemany(queries.INSERT_ARTIFACT, [_row(after, artifact) for artifact in artifacts])
            (webhook,) = self.cursor.execute(queries.WEBHOOK, (after.seq,)).fetchone()
        for was, now in steps:
            if not now.sync:
                self._tell(now, was.state, webhook)
            ready = now.state is JobState.QUEUED and not_before == 0
            self.moves.append(Move(now, was.state, ready=ready, told=webhook is not None))
        return True

    def _tell(self, job: Job, was: JobState, webhook: str | None) -> None:
        """Write the event of a later transition, which is the outbox's row too."""
        known = {
            JobState.LOADING: job.loading_at,
            JobState.WORKING: job.working_at,
            JobState.DONE: job.completed_at,
            JobState.FAILED: job.completed_at,
        }
        self.cursor.execute(
            queries.INSERT_EVENT,
            {
                "seq": job.seq,
                "previous": was,
                "state": job.state,
                "at": known.get(job.state, self.now),
                "attempt": job.attempt,
                "failures": job.failures,
                "error_code": job.error and job.error.code,
                "error_message": job.error and job.error.message,
                "host": None if webhook is None else host_of(webhook),
            },
        )

    def take(self, resident: Runner | None, aside: Collection[Runner], *, warm: bool) -> Taken | None:
        """Pick the job that is to run next; see `Store.take`."""
        job = self.choose(resident, aside)
        if job is None:
            return None
        loading = taken = picked(job, self.now)
        if warm and job.runner == resident:
            taken = at_work(loading, self.now)
            self.move(job, taken, via=loading)
        else:
            self.move(job, taken)
        return Taken(taken, None if job.sync else self._submission(job))

    def _submission(self, job: Job) -> Submission:
        body, content_type, metadata, webhook, expires_at, timeout = self.cursor.execute(
            queries.SUBMISSION, (job.seq,)
        ).fetchone()
        return Submission(
            body=body,
            content_type=content_type,
            metadata=metadata,
            webhook=webhook,
            expires_at=expires_at,
            timeout=timeout,
        )

    def choose(self, resident: Runner | None, aside: Collection[Runner]) -> Job | None:
        """The job to run next: that with the smallest `schedule.order_key` among the ready ones.

        :param aside: runners that are not to be chosen.
        """
        self.cursor.execute(queries.RELEASE, (self.now,))
        job = None
        if resident is not None and resident not in aside:
            job = self._one(queries.OLDEST_OF_RUNNER, (resident.model, resident.options))
        if job is None and aside:
            firsts = (job_of(row) for row in self.cursor.execute(queries.OLDEST_OF_EACH_RUNNER))
            return min(
                (first for first in firsts if first.runner not in aside),
                key=lambda first: order_key(first, resident),
                default=None,
            )
        if job is None and resident is not None:
            job = self._one(queries.OLDEST_OF_MODEL, (resident.model,))
        return job or self._one(queries.OLDEST, ())

    def lift(self, charges: Mapping[int, int]) -> None:
        """Take back charges, by seq, of jobs that still wait."""
        self.cursor.executemany(queries.LIFT, [(count, seq) for seq, count in charges.items()])

    def at(self, seq: int) -> Job | None:
        """The job with this key."""
        return self._one(queries.BY_SEQ, (seq,))

    def find(self, job_id: str) -> Job | None:
        """The job with this public id."""
        return self._one(queries.BY_ID, (job_id,))

    def expired(self, limit: int) -> list[Job]:
        """Queued jobs that have waited for longer than they may, at most so many."""
        return [job_of(row) for row in self.cursor.execute(queries.EXPIRED, (self.now, limit))]

    def interrupted(self) -> list[tuple[Job, int]]:
        """Jobs that were loading or working, each with how many starts in a row had found it so before."""
        return [(job_of(row), row[-1]) for row in self.cursor.execute(queries.INTERRUPTED)]

    def clients_gone(self) -> list[Job]:
        """Sync jobs that were still queued."""
        return [job_of(row) for row in self.cursor.execute(queries.CLIENTS_GONE)]

    def _one(self, query: str, parameters: tuple[object, ...]) -> Job | None:
        row = self.cursor.execute(query, parameters).fetchone()
        return None if row is None else job_of(row)


def _row(job: Job, artifact: Artifact) -> tuple[object, ...]:
    """The row of `queries.INSERT_ARTIFACT`."""
    body = artifact.body
    return job.seq, artifact.name, artifact.content_type, len(body), hashlib.sha256(body).hexdigest(), body
