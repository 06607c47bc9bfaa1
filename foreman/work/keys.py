"""Requests that may be repeated: idempotency keys, from the acceptance of their jobs to the end of the last one.

A key is kept as long as a job of its request is.  When the last one was deleted by its owner, rather than pruned, a
tombstone stays for as long as an ended job would have, so that a repeat is told so instead of run again.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence

import orjson
from attrs import frozen

from foreman.errors import KeyGone, KeyReused
from foreman.job import IdempotencyKey, Job, NewJob
from foreman.work import queries
from foreman.work.forecast import First, firsts
from foreman.work.moves import Transaction


@frozen(kw_only=True)
class Accepted:
    """What became of a request for jobs.

    :ivar ids: of its jobs, in their order.
    :ivar jobs: the same as they are now; None for one that was deleted or pruned since.
    :ivar repeated: the request had come before, and nothing was stored.
    :ivar firsts: each waiting runner's oldest ready job then, of a single new async job; for its forecast.
    """

    ids: tuple[str, ...]
    jobs: tuple[Job | None, ...]
    repeated: bool
    firsts: tuple[First, ...] | None = None


def repeat_of(transaction: Transaction, key: IdempotencyKey) -> Accepted | None:
    """What came of the request with this key; None if there was none.

    :raise KeyReused: it was another request.
    :raise KeyGone: its jobs were deleted.
    """
    row = transaction.cursor.execute(queries.KNOWN_KEY, (key.key,)).fetchone()
    if row is None:
        return None
    digest, ids, gone_at = row
    if digest != key.digest:
        raise KeyReused("this idempotency key came before with another request")
    if gone_at is not None:
        raise KeyGone("the jobs of this idempotency key were deleted")
    names = tuple(orjson.loads(ids))
    return Accepted(ids=names, jobs=tuple(transaction.find(name) for name in names), repeated=True)


def accept_all(transaction: Transaction, jobs: Sequence[NewJob], key: IdempotencyKey | None) -> Accepted:
    """Store the jobs of a request, and its key if it has one."""
    ids = tuple(new.id for new in jobs)
    number = None
    if key is not None:
        row = (key.key, key.digest, orjson.dumps(ids).decode(), len(jobs))
        number = transaction.cursor.execute(queries.INSERT_KEY, row).lastrowid
    return Accepted(
        ids=ids,
        jobs=tuple(transaction.accept(new, number) for new in jobs),
        repeated=False,
        firsts=firsts(transaction.cursor) if len(jobs) == 1 and not jobs[0].sync else None,
    )


def delete(transaction: Transaction, job: Job) -> None:
    """Erase a job that is over; with the last one of a request, a tombstone stays."""
    cursor = transaction.cursor
    for (number,) in cursor.execute(queries.DELETE, (job.seq,)).fetchall():
        cursor.execute(queries.LET_GO, (1, number))
        cursor.execute(queries.BURY, (transaction.now, number))


def prune(cursor: sqlite3.Cursor, before_ms: int, limit: int) -> int:
    """Delete the oldest ended jobs and the keys that nothing is left of; gives how many jobs."""
    requests = [number for (number,) in cursor.execute(queries.PRUNE, (before_ms, limit)).fetchall()]
    for number, count in Counter(number for number in requests if number is not None).items():
        cursor.execute(queries.LET_GO, (count, number))
        cursor.execute(queries.FORGET_KEY, (number,))
    cursor.execute(queries.FORGET_TOMBSTONES, (before_ms,))
    return len(requests)
