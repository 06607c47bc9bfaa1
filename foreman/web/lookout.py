"""Waiting for a job to move: who asks is told by the commit itself, without asking again and again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from twisted.internet.defer import Deferred

from foreman.work.moves import Move


class Lookout:
    """Those who wait for a job's next move, by job id."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[Deferred[None]]] = {}

    def moved(self, move: Move) -> None:
        """A move was committed; for `Store.on_move`."""
        self._call(self._waiting.pop(move.job.id, set()))

    def release(self) -> None:
        """Nobody is to wait any longer: foreman stops."""
        waiting, self._waiting = self._waiting, {}
        for waiters in waiting.values():
            self._call(waiters)

    @contextmanager
    def watching(self, job_id: str) -> Iterator[Deferred[None]]:
        """Watch a job within the block; the Deferred fires at its first move in there.

        Look at the job *inside* the block, so that no move falls between the look and the wait.
        """
        waiter: Deferred[None] = Deferred()
        self._waiting.setdefault(job_id, set()).add(waiter)
        try:
            yield waiter
        finally:
            waiters = self._waiting.get(job_id, set())
            waiters.discard(waiter)
            if not waiters:
                self._waiting.pop(job_id, None)

    @staticmethod
    def _call(waiters: set[Deferred[None]]) -> None:
        for waiter in waiters:
            if not waiter.called:
                waiter.callback(None)
