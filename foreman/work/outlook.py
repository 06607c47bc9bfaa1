"""The order in which the next jobs will run: `Transaction.choose`, looked ahead without changing anything."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Collection
from functools import partial

from attrs import frozen

from foreman.job import Job, Runner
from foreman.work import queries
from foreman.work.moves import job_of
from foreman.work.schedule import order_key


@frozen
class Outlook:
    """What waits, and what of it runs next.

    :ivar oldest: for each model, as its callers wrote it, when its longest waiting job came (backoff or not), in
        milliseconds since the epoch.
    :ivar upcoming: the jobs that run next, in their order.
    """

    oldest: dict[str, int]
    upcoming: list[Job]


def look_ahead(
    cursor: sqlite3.Cursor, *, now: int, resident: Runner | None, aside: Collection[Runner], limit: int
) -> list[Job]:
    """The next `limit` jobs in the order in which they would be chosen, if none came and none failed.

    The runner that is chosen becomes the resident one and is drained before another is chosen, so the work is that of
    the runners, not of the jobs behind them.  Jobs in backoff are left out.

    :param now: milliseconds since the epoch; backoffs that have passed by then count as over.
    :param resident: the runner in the target's memory now, None if unknown.
    :param aside: runners that are not to be chosen.
    """
    due: defaultdict[Runner, list[Job]] = defaultdict(list)
    for row in cursor.execute(queries.DUE, (now,)):
        job = job_of(row)
        due[job.runner].append(job)
    firsts: dict[Runner, Job] = {}
    candidates = [job_of(row) for row in cursor.execute(queries.OLDEST_OF_EACH_RUNNER)]
    for job in (*candidates, *(job for jobs in due.values() for job in jobs)):
        if job.runner not in aside and (job.runner not in firsts or job.seq < firsts[job.runner].seq):
            firsts[job.runner] = job
    upcoming: list[Job] = []
    while firsts and (room := limit - len(upcoming)) > 0:
        resident = min(firsts.values(), key=partial(order_key, resident=resident)).runner
        del firsts[resident]
        ready = cursor.execute(queries.READY_OF_RUNNER, (resident.model, resident.options, room))
        jobs = sorted([*map(job_of, ready), *due[resident]], key=lambda job: job.seq)
        upcoming += jobs[:room]
    return upcoming


def outlook(
    cursor: sqlite3.Cursor, *, now: int, resident: Runner | None, aside: Collection[Runner], limit: int
) -> Outlook:
    """Both in one look; the parameters are those of `look_ahead`."""
    oldest: dict[str, int] = {}
    for model, created_at in cursor.execute(queries.OLDEST_OF_EACH_NAME):
        oldest[model] = min(created_at, oldest.get(model, created_at))
    return Outlook(oldest, look_ahead(cursor, now=now, resident=resident, aside=aside, limit=limit))
