"""The rows of the webhook outbox: which events are to be sent when, and what became of them.

An event's row is written with the transition itself (`moves.Transaction`).  Its `next_at` is the whole schedule: an
event that must wait for the one before it to have been tried has none yet.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from foreman.record import Delivery, DeliveryState, DeliveryTry
from foreman.work.store import Store


class Deliveries:
    """What the outbox may ask of the durable queue; writing calls raise `Unwritable` as the store's do."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def due(
        self, now: int, *, limit: int, per_host: int, under_way: Collection[Delivery] = ()
    ) -> list[Delivery]:
        """What is to be sent now, longest due first.

        Within a job an event is first tried after the one before it was.

        :param now: milliseconds since the epoch.
        :param limit: as many at most; and of one host `per_host`, those under way included.
        :param under_way: deliveries that are being tried, which are left out.
        """
        raise NotImplementedError

    async def next_at(self) -> int | None:
        """When the next delivery is due, in milliseconds since the epoch, past or not; None if none is pending."""
        raise NotImplementedError

    async def tried(self, delivery: Delivery, outcome: DeliveryTry, state: DeliveryState, next_at: int | None) -> None:
        """Note one attempt: its row in the history, what is now the state, and what follows from it for the job.

        After a first attempt the next event may be tried.  A delivered final event supersedes what is pending before
        it; `GONE` holds for all the job's events, those to come included.

        :param next_at: when to try again, in milliseconds since the epoch; None unless `state` is `PENDING`.
        """
        raise NotImplementedError

    async def skip_to_final(self, delivery: Delivery) -> int:
        """Supersede a job's pending events that were never tried, if its final one exists, which is due then.

        For a host that has failed three times in a row.

        :return: how many were dropped.
        """
        raise NotImplementedError

    async def counts(self) -> Mapping[DeliveryState, int]:
        """How many events are pending and how many exhausted."""
        raise NotImplementedError

    async def redeliver(self, job_id: str, now: int) -> bool:
        """Send a job's final event again, from the first try on; False if it has none or no webhook."""
        raise NotImplementedError
