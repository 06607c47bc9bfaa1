"""The rows of the webhook outbox: which events are to be sent when, and what became of them.

An event's row is written with the transition itself (`moves.Transaction`).  Its `next_at` is the whole schedule: an
event that must wait for the one before it to have been tried has none yet.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from foreman.job import ErrorCode, JobError, JobState
from foreman.record import Delivery, DeliveryState, DeliveryTry, Event
from foreman.work import queries
from foreman.work.database import Database
from foreman.work.moves import Transaction
from foreman.work.store import Store


def event_of(row: Sequence[Any]) -> Event:
    """The event in a row of `queries.EVENT_COLUMNS`."""
    return Event(
        sequence=row[0],
        previous_state=None if row[1] is None else JobState(row[1]),
        state=JobState(row[2]),
        at=row[3],
        attempt=row[4],
        failures=row[5],
        error=None if row[6] is None else JobError(ErrorCode(row[6]), row[7]),
        delivery=None if row[8] is None else DeliveryState(row[8]),
        tries=row[9],
        next_at=row[10],
    )


def _delivery_of(row: Sequence[Any]) -> Delivery:
    seq, job_id, url, host, model, metadata, *event = row
    return Delivery(seq=seq, job_id=job_id, url=url, host=host, model=model, metadata=metadata, event=event_of(event))


class Deliveries:
    """What the outbox may ask of the durable queue; writing calls raise `Unwritable` as the store's do."""

    def __init__(self, store: Store, database: Database) -> None:
        self._store = store
        self._database = database

    async def due(self, now: int, *, limit: int, per_host: int, under_way: Collection[Delivery] = ()) -> list[Delivery]:
        """What is to be sent now, longest due first.

        Within a job an event is first tried after the one before it was.  The cost is that of the hosts, not of what
        is pending for them.

        :param now: milliseconds since the epoch.
        :param limit: as many at most; and of one host `per_host`, those under way included.
        :param under_way: deliveries that are being tried, which are left out.
        """
        keys = {delivery.key for delivery in under_way}
        busy = Counter(delivery.host for delivery in under_way)

        def read(cursor: sqlite3.Cursor) -> list[Delivery]:
            found: list[Delivery] = []
            host = ""
            while (row := cursor.execute(queries.NEXT_HOST, (host,)).fetchone()) is not None:
                (host,) = row
                room = per_host - busy[host]
                if room > 0:
                    # Those under way are still due by their rows.
                    rows = cursor.execute(queries.DUE_FOR_HOST, (host, now, room + busy[host]))
                    found += [each for each in map(_delivery_of, rows) if each.key not in keys][:room]
            found.sort(key=lambda delivery: delivery.event.next_at or 0)
            return found[:limit]

        return await self._database.read(read)

    async def next_at(self) -> int | None:
        """When the next delivery is due, in milliseconds since the epoch, past or not; None if none is pending."""
        (at,) = await self._database.read(lambda cursor: cursor.execute(queries.NEXT_DELIVERY).fetchone())
        return None if at is None else int(at)

    async def tried(self, delivery: Delivery, outcome: DeliveryTry, state: DeliveryState, next_at: int | None) -> None:
        """Note one attempt: its row in the history, what is now the state, and what follows from it for the job.

        After a first attempt the next event may be tried.  A delivered final event supersedes what is pending before
        it; `GONE` holds for all the job's events, those to come included.  The job may have been deleted meanwhile.

        :param next_at: when to try again, in milliseconds since the epoch; None unless `state` is `PENDING`.
        """
        seq, sequence = delivery.key

        def note(transaction: Transaction) -> None:
            cursor = transaction.cursor
            if transaction.at(seq) is None:
                return
            cursor.execute(
                queries.NOTE_TRY,
                {
                    "seq": seq,
                    "sequence": sequence,
                    "at": outcome.at,
                    "status": outcome.status,
                    "error": outcome.error,
                },
            )
            cursor.execute(queries.MARK_TRIED, {"seq": seq, "sequence": sequence, "state": state, "next_at": next_at})
            if state is DeliveryState.GONE:
                cursor.execute(queries.NO_MORE, (seq,))
            elif state is DeliveryState.DELIVERED and delivery.event.state in (JobState.DONE, JobState.FAILED):
                cursor.execute(queries.SUPERSEDE, (seq, sequence))
            cursor.execute(queries.ITS_TURN, (outcome.at, seq, sequence + 1))

        await self._store.transact(note, durable=False)

    async def skip_to_final(self, delivery: Delivery) -> int:
        """Supersede a job's pending events that were never tried, if its final one exists, which is due then.

        For a host that has failed three times in a row.

        :return: how many were dropped.
        """

        def skip(transaction: Transaction) -> int:
            cursor = transaction.cursor
            final = cursor.execute(queries.FINAL_EVENT, (delivery.seq,)).fetchone()
            if final is None:
                return 0
            dropped = cursor.execute(queries.SUPERSEDE_UNTRIED, (delivery.seq, *final)).rowcount
            cursor.execute(queries.ITS_TURN, (transaction.now, delivery.seq, *final))
            return dropped

        return await self._store.transact(skip, durable=False)

    async def counts(self) -> Mapping[DeliveryState, int]:
        """How many events are pending and how many exhausted."""
        rows = await self._database.read(lambda cursor: cursor.execute(queries.UNDELIVERED).fetchall())
        return {DeliveryState.PENDING: 0, DeliveryState.EXHAUSTED: 0} | {
            DeliveryState(state): count for state, count in rows
        }

    async def redeliver(self, job_id: str, now: int) -> bool:
        """Send a job's final event again, from the first try on; False if it has none or no webhook."""
        return await self._store.transact(
            lambda transaction: transaction.cursor.execute(queries.SEND_AGAIN, (now, job_id)).rowcount == 1,
            durable=True,
        )
