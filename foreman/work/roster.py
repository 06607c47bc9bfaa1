"""What the target's list of models means for what is stored: whose runners now have a name, and what is of no use.

A job that came while no list was known has its model's name for a runner, and would not be drained together with jobs
of the same model that came later, which have its digest; its row is given the digest too.  A kept answer about a model
that is gone, or was pulled anew, can never be given again; it is deleted.

What does not come about is done again with the next list.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define
from twisted.python.failure import Failure

from foreman.detach import detach
from foreman.job import Runner
from foreman.logs import make_logger
from foreman.ollama.listings import Model
from foreman.work import queries
from foreman.work.moves import Transaction
from foreman.work.store import Store

BATCH = 1000
"""Jobs in one transaction, at most."""


@define(eq=False)
class Roster:
    """Hears of each list of models (`Inventory.on_models`)."""

    _store: Store
    _tidied: Mapping[str, Model] | None = None  # the last list that no answer was kept beyond

    _log = make_logger()

    def listed(self, models: Mapping[str, Model]) -> None:
        """There is a list."""
        for name in self._store.backlog.runner_models():
            if (model := models.get(name)) is not None and model.digest:
                detach(self._identify(name, model.digest)).addErrback(self._failed)
        if models != self._tidied:
            detach(self._tidy(models)).addErrback(self._failed)

    async def _identify(self, name: str, digest: str) -> None:
        """Give the jobs that wait by this name the digest."""
        while await self._identify_some(name, digest) == BATCH:
            pass

    async def _identify_some(self, name: str, digest: str) -> int:
        options: list[tuple[str]] = await self._store.transact(
            lambda transaction: transaction.cursor.execute(queries.IDENTIFY, (digest, name, BATCH)).fetchall(),
            durable=False,
        )
        for (each,) in options:
            self._store.backlog.identify(Runner(name, each), digest)
        return len(options)

    async def _tidy(self, models: Mapping[str, Model]) -> None:
        """Delete the kept answers about models that the list does not have."""
        useful = {f"/api/show {model.name} {model.digest}" for model in models.values()}
        useful |= {f"/v1/models/{name}" for name in models}

        def tidy(transaction: Transaction) -> None:
            cursor = transaction.cursor
            kept = {key for (key,) in cursor.execute(queries.KEPT_OF_MODELS)}
            cursor.executemany(queries.FORGET_KEPT, [(key,) for key in kept - useful])

        await self._store.transact(tidy, durable=False)
        self._tidied = models

    def _failed(self, failure: Failure) -> None:
        self._log.warn("The list of models was not heeded: {error}", error=failure.value)
