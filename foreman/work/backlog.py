"""How much waits: counters in memory, so that nobody asks the database for them.

They are rebuilt at start and follow each commit on the reactor thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

from foreman.job import JobState, Runner
from foreman.work.moves import Move

K = TypeVar("K")

_RUNNING = frozenset({JobState.LOADING, JobState.WORKING})


class Backlog:
    """The queued and running jobs, counted.

    :ivar queued: jobs that wait, in backoff or not.
    :ivar running: jobs that are loading or working.
    """

    def __init__(self) -> None:
        self.queued = 0
        self.running = 0
        self._by_runner: Counter[Runner] = Counter()
        self._by_model: Counter[str] = Counter()

    def of(self, runner: Runner) -> int:
        """Queued jobs of one runner, in backoff or not."""
        return self._by_runner[runner]

    def runner_models(self) -> set[str]:
        """The models of the runners that jobs wait for: digests, or names where none was known."""
        return {runner.model for runner in self._by_runner}

    def by_model(self) -> dict[str, int]:
        """Queued jobs by model as their callers wrote it; models without any are left out."""
        return dict(self._by_model)

    def load(self, depth: Iterable[tuple[str, str, str, int]]) -> None:
        """Begin from what the store holds at start, when nothing runs.

        :param depth: rows of `queries.DEPTH`.
        """
        for runner_model, runner_options, model, count in depth:
            self._count(Runner(runner_model, runner_options), model, count)

    def follow(self, move: Move) -> None:
        """One job has moved."""
        now = move.job.state
        self.running += (now in _RUNNING) - (move.was in _RUNNING)
        self._count(move.job.runner, move.job.model, (now is JobState.QUEUED) - (move.was is JobState.QUEUED))

    def identify(self, runner: Runner, digest: str) -> None:
        """A queued job of a runner known by its model's name is one of that digest's."""
        _add(self._by_runner, runner, -1)
        _add(self._by_runner, Runner(digest, runner.options), 1)

    def _count(self, runner: Runner, model: str, by: int) -> None:
        if by:
            self.queued += by
            _add(self._by_runner, runner, by)
            _add(self._by_model, model, by)


def _add(counter: Counter[K], key: K, by: int) -> None:
    counter[key] += by
    if not counter[key]:
        del counter[key]  # or every name ever used would stay
