"""The forecasts of jobs, from what the store, the worker and the past know."""

from __future__ import annotations

from attrs import field, frozen

from foreman.job import Job, JobState
from foreman.ollama.inventory import Inventory
from foreman.work.forecast import EXACT, LEARNED_FROM, First, Forecast, Line, Paces, forecast
from foreman.work.pause import Pause
from foreman.work.store import Store
from foreman.work.worker import Worker


@frozen(kw_only=True, eq=False)
class Forecasts:
    """Forecasts for whoever asks."""

    store: Store
    worker: Worker
    inventory: Inventory
    pause: Pause
    _paces: Paces = field(init=False, factory=Paces)

    async def start(self) -> None:
        """Learn from the last jobs that are done, and from each one to come."""
        self._paces.learn(await self.store.recent(LEARNED_FROM))
        self.store.on_move.append(self._paces.follow)

    async def of(self, job: Job) -> Forecast | None:
        """What can be said of a job; None unless it is queued.

        While the target is away or foreman is paused nobody knows how long it will take.
        """
        if job.state is not JobState.QUEUED:
            return None
        return self._forecast(job, await self.store.line(job))

    def of_new(self, job: Job, firsts: tuple[First, ...]) -> Forecast:
        """The same of a job that was accepted just now: all others of its runner are older.

        :param firsts: what `Accepted` says of them.
        """
        older = max(0, self.store.backlog.of(job.runner) - 1)
        return self._forecast(job, Line(older=min(older, EXACT), firsts=firsts))

    def _forecast(self, job: Job, line: Line) -> Forecast:
        running = self.worker.running
        known = forecast(
            job,
            line,
            queued=self.store.backlog.of,
            resident=self.worker.drains,
            running=None if running is None else running.runner,
            pace=self._paces.of,
        )
        return known if self.inventory.up and not self.pause.active else known.timeless()
