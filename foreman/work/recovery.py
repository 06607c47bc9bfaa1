"""What a start does with the jobs the last foreman left behind.

foreman holds its file alone, so at start every job in `loading` or `working` is an orphan, for certain, and no
client waits for a sync job any more.
"""

from __future__ import annotations

from attrs import frozen

from foreman.job import Ending, ErrorCode, JobError, JobState
from foreman.work.moves import Transaction, charged, ended, requeued

SUSPECT = 3
"""Starts in a row that may find a job running before it is charged: it may be what kills foreman."""

_INTERRUPTED = JobError(ErrorCode.INTERRUPTED, "foreman was restarted while this call waited")


@frozen
class Recovered:
    """What a start found, in jobs.

    :ivar requeued: async jobs that were running and wait again.
    :ivar interrupted: sync jobs whose clients are gone.
    :ivar exhausted: async jobs that were running at one start too many, and have failed.
    """

    requeued: int
    interrupted: int
    exhausted: int


def recover(transaction: Transaction, *, max_attempts: int) -> Recovered:
    """Put async orphans back into the queue and fail sync ones."""
    now = transaction.now
    requeues = interruptions = exhaustions = 0
    gone = Ending(error=_INTERRUPTED, at=now)
    for job, orphaned in transaction.interrupted():
        if job.sync:
            transaction.move(job, ended(job, gone))
            interruptions += 1
            continue
        times = orphaned + 1
        after = requeued(job)
        if times >= SUSPECT:
            cause = JobError(ErrorCode.INTERRUPTED, f"foreman ended {times} times in a row while this job ran")
            after = charged(job, cause, now=now, max_attempts=max_attempts)
        transaction.move(job, after, orphaned=times)
        if after.state is JobState.QUEUED:
            requeues += 1
        else:
            exhaustions += 1
    for job in transaction.clients_gone():
        transaction.move(job, ended(job, gone))
        interruptions += 1
    return Recovered(requeued=requeues, interrupted=interruptions, exhausted=exhaustions)
