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
from foreman.job import TERMINAL, Ending, Job, JobError, JobState, NewJob, Runner
from foreman.logs import make_logger
from foreman.work import queries
from foreman.work.backlog import Backlog
from foreman.work.database import Database
from foreman.work.moves import Move, Transaction, at_work, charged, ended, job_of, picked, requeued
from foreman.work.outlook import Outlook, outlook
from foreman.work.recovery import Recovered, recover

T = TypeVar("T")

_log = make_logger()

PAGES_GIVEN_BACK = 1000
"""Free pages (of 4 KiB) that leave the file with one call of `prune`: some 10 ms in which no other write runs."""


class Store:
    """The durable queue.

    While the database cannot be written every writing call raises `Unwritable`, and while it is not open every
    call raises `StoreError`.

    :ivar backlog: what waits and runs, counted in memory.
    :ivar writable: False from a write that failed until one has succeeded (`try_writing` sees to that).
    :ivar on_wake: called on the reactor thread after a commit that made a job ready.
    :ivar on_move: each called on the reactor thread with every move of a job, in order, once it is committed.
    """

    def __init__(self, database: Database, clock_ms: Callable[[], int], max_queue: int, max_attempts: int) -> None:
        self.backlog = Backlog()
        self.writable = True
        self.on_wake: Callable[[], None] = lambda: None
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
            lambda cursor: recover(Transaction(cursor), now=now, max_attempts=self._max_attempts), durable=True
        )
        self.backlog.load(await self._database.read(lambda cursor: cursor.execute(queries.DEPTH).fetchall()))
        return recovered

    async def stop(self) -> None:
        """Wait for what is under way and close the database."""
        await self._database.close()

    # -- moving jobs -------------------------------------------------------------------------------------------------

    async def accept(self, jobs: Sequence[NewJob]) -> list[Job]:
        """Store new jobs, all or none, in their order; an async one is on the disk when this returns.

        :raise QueueFull: there is no room for all of them.
        """
        count = len(jobs)
        if self.backlog.queued + self._accepting + count > self._max_queue:
            raise QueueFull(f"{self.backlog.queued} jobs are waiting, at most {self._max_queue} may")
        self._accepting += count

        async def store() -> list[Job]:
            try:
                return await self._commit(
                    lambda transaction: [transaction.accept(new) for new in jobs],
                    durable=not all(new.sync for new in jobs),
                )
            finally:
                self._accepting -= count

        return await detach(store())

    async def take(self, *, resident: Runner | None, warm: bool, aside: Collection[Runner]) -> Job | None:
        """Pick the next job: `loading`, or `working` at once when its runner needs no load; None if none may run.

        :param resident: the runner in the target's memory, None if unknown.
        :param warm: a job of the resident runner needs no load request.
        :param aside: runners that are not to be picked now.
        """
        now = self._clock_ms()
        avoided = frozenset(aside)

        def pick(transaction: Transaction) -> Job | None:
            job = transaction.choose(now, resident, avoided)
            if job is None:
                return None
            taken = picked(job, now)
            transaction.move(job, taken)
            if not warm or job.runner != resident:
                return taken
            working = at_work(taken, now)
            transaction.move(taken, working)
            return working

        return await self._write(pick, durable=False)

    async def work(self, job: Job) -> Job | None:
        """From `loading` to `working`; None if somebody ended it meanwhile."""
        return await self._move(job, at_work(job, self._clock_ms()))

    async def end(self, job: Job, ending: Ending) -> bool:
        """End a job; False if somebody moved it meanwhile."""
        return await self._move(job, ended(job, ending)) is not None

    async def put_back(self, job: Job, *, not_before: int, charge: JobError | None) -> Job | None:
        """From `loading` or `working` to `queued`, or to `failed` when the charge was the last it could bear.

        :param not_before: milliseconds since the epoch, 0 for at once.
        :param charge: what the try is charged for, None if the job is not to blame.
        :return: the job as it now is; None if somebody moved it meanwhile.
        """
        if charge is None:
            after = requeued(job)
        else:
            after = charged(job, charge, now=self._clock_ms(), max_attempts=self._max_attempts)
        # foreman lived through this try, so the job is no suspect: the count of starts that found it begins anew.
        waits_until = not_before if after.state is JobState.QUEUED else 0
        return await self._move(job, after, not_before=waits_until, orphaned=0)

    async def lift(self, charges: Mapping[int, int]) -> None:
        """Take back charges, by seq, of jobs that still wait."""
        await self._write(lambda transaction: transaction.lift(charges), durable=False)

    async def abandon(self, seq: int, error: JobError) -> JobState | None:
        """Fail a job whose caller leaves, unless it is at the target.

        :return: the state it was found in: `queued` and `loading` have become `failed`, `working` is the worker's
            to end, a terminal one was over already; None if there is no such job.
        """
        ending = Ending(error=error, at=self._clock_ms())

        def leave(transaction: Transaction) -> JobState | None:
            job = transaction.at(seq)
            if job is None:
                return None
            if job.state in (JobState.QUEUED, JobState.LOADING):
                transaction.move(job, ended(job, ending))
            return job.state

        return await self._write(leave, durable=True)

    async def _move(self, before: Job, after: Job, *, not_before: int = 0, orphaned: int | None = None) -> Job | None:
        moved = await self._write(
            lambda transaction: transaction.move(before, after, not_before=not_before, orphaned=orphaned),
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

    async def _number(self, query: str) -> int | None:
        row = await self._database.read(lambda cursor: cursor.execute(query).fetchone())
        return None if row is None else row[0]

    # -- keeping and forgetting --------------------------------------------------------------------------------------

    async def keep(self, key: str, value: bytes, *, durable: bool = False) -> None:
        """Remember a value over restarts, and over power cuts if `durable`, in the place of the one before."""
        now = self._clock_ms()
        await self._write(
            lambda transaction: transaction.cursor.execute(queries.KEEP, (key, value, now)), durable=durable
        )

    async def kept(self, key: str) -> tuple[bytes, int] | None:
        """An answer kept earlier and when it was kept, in milliseconds since the epoch."""
        return await self._database.read(lambda cursor: cursor.execute(queries.KEPT, (key,)).fetchone())

    async def prune(self, before_ms: int, limit: int) -> int:
        """Delete jobs that ended before a time, the oldest first and at most `limit`, and give pages back to the disk.

        :return: how many were deleted; less than `limit` when there are no more.
        """

        def delete(transaction: Transaction) -> int:
            cursor = transaction.cursor
            deleted = cursor.execute(queries.PRUNE, (before_ms, limit)).rowcount
            (free,) = cursor.execute(queries.FREE_PAGES).fetchone()
            for _ in range(min(free, PAGES_GIVEN_BACK)):
                cursor.execute(queries.GIVE_BACK)
            return deleted

        return await self._write(delete, durable=False)

    async def try_writing(self) -> None:
        """Write something, to see whether that is possible again; does not raise."""
        with suppress(Unwritable):
            await self.keep("/written", b"")
            self.writable = True

    # -- committing --------------------------------------------------------------------------------------------------

    def _write(self, work: Callable[[Transaction], T], *, durable: bool) -> Deferred[T]:
        return detach(self._commit(work, durable=durable))

    async def _commit(self, work: Callable[[Transaction], T], *, durable: bool) -> T:
        def run(cursor: sqlite3.Cursor) -> tuple[T, list[Move]]:
            transaction = Transaction(cursor)
            return work(transaction), transaction.moves

        try:
            result, moves = await self._database.write(run, durable=durable)
        except Unwritable:
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
