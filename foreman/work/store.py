"""What the rest of the house may ask of the durable queue.

Each call is one transaction.  What must follow a commit (the counters, the wake-up) is part of one detached
operation with it: a client that hangs up cancels its handler at the `await`, and neither may be lost with it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from twisted.internet.defer import Deferred

from foreman.detach import detach
from foreman.errors import QueueFull, Unwritable
from foreman.job import (
    TERMINAL,
    Artifact,
    Ending,
    ErrorCode,
    IdempotencyKey,
    Job,
    JobError,
    JobState,
    NewJob,
    Runner,
)
from foreman.logs import make_logger
from foreman.work import queries
from foreman.work.backlog import Backlog
from foreman.work.database import Database
from foreman.work.forecast import EXACT, Line, firsts
from foreman.work.keys import Accepted, accept_all, delete, prune, repeat_of
from foreman.work.moves import Move, Taken, Transaction, at_work, charged, ended, job_of, requeued
from foreman.work.outlook import Outlook, outlook
from foreman.work.recovery import Recovered, recover

T = TypeVar("T")

DELETED = JobError(ErrorCode.CANCELLED, "The job was deleted.")
EXPIRED = JobError(ErrorCode.EXPIRED, "The job was still waiting when its time was over.")

_log = make_logger()

COMPANY = 0.005
"""Seconds that the row of a sync call may wait for a commit to share, while the worker is busy."""

TRIAL = 1 << 20
"""Bytes: if no more than a few pages are left on a disk, the next large job would be refused again."""

PAGES_GIVEN_BACK = 1000
"""Free pages (of 4 KiB) that leave the file with one call of `prune`: some 10 ms in which no other write runs."""


class Store:
    """The durable queue.

    While the database cannot be written every writing call raises `Unwritable`, and while it is not open every
    call raises `StoreError`.

    :ivar backlog: what waits and runs, counted in memory.
    :ivar writable: False from a write that failed until one has succeeded (`try_writing` sees to that).
    :ivar on_wake: called on the reactor thread after a commit that made a job ready.
    :ivar on_coming: called when new jobs stand in line for a commit: a `take` asked for now comes behind them in it.
    :ivar on_move: each called on the reactor thread with every move of a job, in order, once it is committed.
    """

    def __init__(self, database: Database, clock_ms: Callable[[], int], max_queue: int, max_attempts: int) -> None:
        self.backlog = Backlog()
        self.writable = True
        self.on_wake: Callable[[], None] = lambda: None
        self.on_coming: Callable[[], None] = lambda: None
        self.on_move: list[Callable[[Move], None]] = []
        self._database = database
        self._clock_ms = clock_ms
        self._max_queue = max_queue
        self._max_attempts = max_attempts
        self._accepting = 0  # jobs on their way into the database

    async def start(self) -> Recovered:
        """Open the database and bring in what the last foreman left behind.

        :raise StoreLocked: another foreman holds the file.
        :raise SchemaTooNew: a newer foreman wrote it.
        """
        await self._database.open()
        now = self._clock_ms()
        recovered = await self._database.write(
            lambda cursor: recover(Transaction(cursor, now), max_attempts=self._max_attempts), durable=True
        )
        self.backlog.load(await self._database.read(lambda cursor: cursor.execute(queries.DEPTH).fetchall()))
        return recovered

    @property
    def expecting(self) -> bool:
        """Whether there may be a job to take: one waits, or is on its way into the database."""
        return self.backlog.queued + self._accepting > 0

    async def stop(self) -> None:
        """Wait for what is under way and close the database."""
        await self._database.close()

    # -- moving jobs -------------------------------------------------------------------------------------------------

    async def accept(self, jobs: Sequence[NewJob]) -> list[Job]:
        """Store new jobs, all or none, in their order; an async one is on the disk when this returns.

        :raise QueueFull: there is no room for all of them.
        """
        accepted = await self._accept(jobs, None)
        return [job for job in accepted.jobs if job is not None]

    async def repeated(self, key: IdempotencyKey) -> Accepted | None:
        """What came of the request with that key, None if there was none yet.

        :raise KeyReused: it came with another request.
        :raise KeyGone: its jobs were deleted.
        """
        now = self._clock_ms()
        return await self._database.read(lambda cursor: repeat_of(Transaction(cursor, now), key))

    async def accept_once(self, jobs: Sequence[NewJob], key: IdempotencyKey | None) -> Accepted:
        """As `accept`, unless the request has a key and it has come before.

        :raise KeyReused: it came with another request.
        :raise KeyGone: its jobs were deleted.
        :raise QueueFull: there is no room for all of them, and the key is new.
        """
        return await self._accept(jobs, key)

    async def _accept(self, jobs: Sequence[NewJob], key: IdempotencyKey | None) -> Accepted:
        waiting = self.backlog.queued
        room = waiting + self._accepting + len(jobs) <= self._max_queue
        held = len(jobs) if room else 0
        durable = not all(new.sync for new in jobs)
        # Nobody is told of a sync call's row before its turn, and while a job runs that has time.
        within = 0.0 if durable or not self.backlog.running else COMPANY

        def store(transaction: Transaction) -> Accepted:
            repeated = None if key is None else repeat_of(transaction, key)
            if repeated is not None:
                return repeated
            if not room:
                raise QueueFull(f"{waiting} jobs are waiting, at most {self._max_queue} may")
            return accept_all(transaction, jobs, key)

        async def commit() -> Accepted:
            try:
                return await self._commit(store, durable=durable, within=within)
            finally:
                self._accepting -= held

        if not room and key is None:
            raise QueueFull(f"{waiting} jobs are waiting, at most {self._max_queue} may")
        self._accepting += held
        accepting = detach(commit())
        self.on_coming()
        return await accepting

    async def take(self, *, resident: Runner | None, warm: bool, aside: Collection[Runner]) -> Taken | None:
        """Pick the next job: `loading`, or `working` at once when its runner needs no load; None if none may run.

        :param resident: the runner in the target's memory, None if unknown.
        :param warm: a job of the resident runner needs no load request.
        :param aside: runners that are not to be picked now.
        """
        avoided = frozenset(aside)
        return await self.transact(lambda transaction: transaction.take(resident, avoided, warm=warm), durable=False)

    async def work(self, job: Job) -> Job | None:
        """From `loading` to `working`; None if somebody ended it meanwhile."""
        return await self._move(job, at_work(job, self._clock_ms()))

    async def end(self, job: Job, ending: Ending) -> bool:
        """End a job; False if somebody moved it meanwhile."""
        return await self._move(job, ended(job, ending), artifacts=ending.artifacts) is not None

    async def put_back(
        self, job: Job, *, not_before: int, charge: JobError | None, remains: Ending | None = None
    ) -> Job | None:
        """From `loading` or `working` to `queued`, or to `failed` when the charge was the last it could bear.

        :param not_before: milliseconds since the epoch, 0 for at once.
        :param charge: what the try is charged for, None if the job is not to blame.
        :param remains: what there is to tell and to keep of the try when it was the last.
        :return: the job as it now is; None if somebody moved it meanwhile.
        """
        if charge is None:
            after = requeued(job)
        else:
            after = charged(job, charge, now=self._clock_ms(), max_attempts=self._max_attempts, remains=remains)
        # foreman lived through this try, so the job is no suspect: the count of starts that found it begins anew.
        if after.state is JobState.QUEUED:
            return await self._move(job, after, not_before=not_before, orphaned=0)
        return await self._move(job, after, orphaned=0, artifacts=() if remains is None else remains.artifacts)

    async def lift(self, charges: Mapping[int, int]) -> None:
        """Take back charges, by seq, of jobs that still wait."""
        await self.transact(lambda transaction: transaction.lift(charges), durable=False)

    async def abandon(self, seq: int, error: JobError) -> JobState | None:
        """Fail a job whose caller leaves, unless it is at the target.

        :return: the state it was found in: `queued` and `loading` have become `failed`, `working` is the worker's
            to end, a terminal one was over already; None if there is no such job.
        """
        return await self._leave(lambda transaction: transaction.at(seq), error)

    async def cancel(self, job_id: str, error: JobError) -> JobState | None:
        """As `abandon`, by public id."""
        return await self._leave(lambda transaction: transaction.find(job_id), error)

    async def _leave(self, find: Callable[[Transaction], Job | None], error: JobError) -> JobState | None:
        def leave(transaction: Transaction) -> JobState | None:
            job = find(transaction)
            if job is not None and job.state in (JobState.QUEUED, JobState.LOADING):
                transaction.move(job, ended(job, Ending(error=error, at=transaction.now)))
            return None if job is None else job.state

        return await self.transact(leave, durable=True)

    async def delete(self, job_id: str, *, working: bool = False) -> JobState | None:
        """Erase a job with all that is kept of it, unless it is at the target; no event of it is sent any more.

        :param working: erase it even so; for the worker, which knows that it is there no more.
        :return: the state it was found in: `working` is the worker's to end first (`Worker.delete`); None if there
            is no such job.
        """

        def erase(transaction: Transaction) -> JobState | None:
            job = transaction.find(job_id)
            if job is None or (job.state is JobState.WORKING and not working):
                return None if job is None else job.state
            if job.state not in TERMINAL:
                transaction.move(job, ended(job, Ending(error=DELETED, at=transaction.now)))
            delete(transaction, job)
            return job.state

        return await self.transact(erase, durable=True)

    async def expire(self, limit: int = 500) -> int:
        """Fail queued jobs whose `expires_at` has passed, at most so many; gives how many."""

        def fail(transaction: Transaction) -> int:
            expired = transaction.expired(limit)
            for job in expired:
                transaction.move(job, ended(job, Ending(error=EXPIRED, at=transaction.now)))
            return len(expired)

        return await self.transact(fail, durable=True)

    async def next_expiry(self) -> int | None:
        """When the next queued job expires, in milliseconds since the epoch; None if none ever does."""
        return await self._number(queries.NEXT_EXPIRY)

    async def _move(
        self,
        before: Job,
        after: Job,
        *,
        not_before: int = 0,
        orphaned: int | None = None,
        artifacts: Sequence[Artifact] = (),
    ) -> Job | None:
        moved = await self.transact(
            lambda transaction: transaction.move(
                before, after, not_before=not_before, orphaned=orphaned, artifacts=artifacts
            ),
            durable=after.state in TERMINAL and not after.sync,
        )
        return after if moved else None

    # -- asking ------------------------------------------------------------------------------------------------------

    async def get(self, job_id: str) -> Job | None:
        """The job with this public id."""

        def find(cursor: sqlite3.Cursor) -> Job | None:
            row = cursor.execute(queries.BY_ID, (job_id,)).fetchone()
            return None if row is None else job_of(row)

        return await self._database.read(find)

    async def line(self, job: Job) -> Line:
        """What stands before a queued job."""
        runner = job.runner

        def look(cursor: sqlite3.Cursor) -> Line:
            older = cursor.execute(queries.OLDER_OF_RUNNER, (runner.model, runner.options, job.seq, EXACT)).fetchone()
            return Line(older=older[0], firsts=firsts(cursor))

        return await self._database.read(look)

    async def recent(self, limit: int) -> list[Job]:
        """The newest jobs that are done, the oldest of them first."""
        rows = await self._database.read(lambda cursor: cursor.execute(queries.RECENT, (limit,)).fetchall())
        return [job_of(row) for row in reversed(rows)]

    async def next_due(self) -> int | None:
        """When the next backoff passes, in milliseconds since the epoch; None if no job is in backoff."""
        return await self._number(queries.NEXT_DUE)

    async def outlook(self, *, resident: Runner | None, aside: Collection[Runner], limit: int) -> Outlook:
        """What waits, and which jobs `take` would pick next if it were asked `limit` times."""
        now = self._clock_ms()
        avoided = frozenset(aside)
        return await self._database.read(
            lambda cursor: outlook(cursor, now=now, resident=resident, aside=avoided, limit=limit)
        )

    async def oldest(self) -> int | None:
        """When the longest waiting job was created, in milliseconds since the epoch; None if none waits."""
        return await self._number(queries.OLDEST_CREATED)

    async def newest(self) -> int | None:
        """When the newest job was created, in milliseconds since the epoch; None if there is none."""
        return await self._number(queries.NEWEST)

    async def _number(self, query: str) -> int | None:
        row = await self._database.read(lambda cursor: cursor.execute(query).fetchone())
        return None if row is None else row[0]

    # -- keeping and forgetting --------------------------------------------------------------------------------------

    async def keep(self, key: str, value: bytes, *, durable: bool = False) -> None:
        """Remember a value over restarts, and over power cuts if `durable`, in the place of the one before."""
        now = self._clock_ms()
        await self.transact(
            lambda transaction: transaction.cursor.execute(queries.KEEP, (key, value, now)), durable=durable
        )

    async def kept(self, key: str) -> tuple[bytes, int] | None:
        """An answer kept earlier and when it was kept, in milliseconds since the epoch."""
        return await self._database.read(lambda cursor: cursor.execute(queries.KEPT, (key,)).fetchone())

    async def prune(self, before_ms: int, limit: int) -> int:
        """Delete jobs that ended before a time, the oldest first and at most `limit`, and give pages back to the disk.

        All that is theirs goes with them; one of which somebody is still to be told stays.

        :return: how many were deleted; less than `limit` when there are no more.
        """

        def forget(transaction: Transaction) -> int:
            cursor = transaction.cursor
            deleted = prune(cursor, before_ms, limit)
            (free,) = cursor.execute(queries.FREE_PAGES).fetchone()
            for _ in range(min(free, PAGES_GIVEN_BACK)):
                cursor.execute(queries.GIVE_BACK)
            return deleted

        return await self.transact(forget, durable=False)

    async def try_writing(self) -> None:
        """Write as much as a large job, to see whether that is possible again; does not raise."""
        with suppress(Unwritable):
            await self.keep("/written", bytes(TRIAL))
            await self.keep("/written", b"")
            if not self.writable:
                _log.info("The store can write again")
            self.writable = True

    # -- committing --------------------------------------------------------------------------------------------------

    def transact(self, work: Callable[[Transaction], T], *, durable: bool) -> Deferred[T]:
        """Run `work` in one write transaction, and let the house know of the moves it made; for the store's parts."""
        return detach(self._commit(work, durable=durable))

    async def _commit(self, work: Callable[[Transaction], T], *, durable: bool, within: float = 0.0) -> T:
        now = self._clock_ms()

        def run(cursor: sqlite3.Cursor) -> tuple[T, list[Move]]:
            transaction = Transaction(cursor, now)
            return work(transaction), transaction.moves

        try:
            result, moves = await self._database.write(run, durable=durable, within=within)
        except Unwritable as error:
            if self.writable:
                _log.error("The store cannot write: {error}", error=error)
            self.writable = False
            raise
        for move in moves:
            self.backlog.follow(move)
            for told in self.on_move:
                try:
                    told(move)
                except Exception:  # noqa: BLE001 (whoever listens must not lose the result of a commit)
                    _log.failure("A listener of moves failed")
        if any(move.ready for move in moves):
            self.on_wake()
        return result
