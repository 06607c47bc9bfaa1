"""Looking ahead: what operators are told runs next is what runs next."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from foreman.job import ErrorCode, Job, JobError, Runner
from foreman.test.strategies import RUNNERS, SteppedDatabase, new_job, runners
from foreman.work.outlook import Outlook, outlook
from foreman.work.store import Store

QWEN, QWEN_LONG, GEMMA, PHI = RUNNERS
BROKE = JobError(ErrorCode.TARGET_ERROR, "connection reset")


class Queue:
    """A store on a real file, with a clock that the test sets."""

    def __init__(self, path: Path) -> None:
        self.now = 10
        self.database = SteppedDatabase(path)
        self.store = Store(self.database, lambda: self.now, 100_000, 3)
        self.run = self.database.finish
        self.run(self.store.start())

    def outlook(
        self, resident: Runner | None = None, aside: frozenset[Runner] = frozenset(), limit: int = 50
    ) -> Outlook:
        """What is told."""
        return self.run(self.store.outlook(resident=resident, aside=aside, limit=limit))

    def drain(self, resident: Runner | None, aside: frozenset[Runner]) -> list[Job]:
        """Take every job that may run, as the worker does: what ran last is resident."""
        taken = []
        while (pick := self.run(self.store.take(resident=resident, warm=False, aside=aside))) is not None:
            taken.append(pick.job)
            resident = pick.job.runner
        return taken


@given(
    queued=st.lists(runners, max_size=25),
    resident=st.none() | runners,
    aside=st.frozensets(runners, max_size=2),
    failing=st.sets(st.integers(min_value=0, max_value=24), max_size=5),
    now=st.integers(min_value=10, max_value=40),
    limit=st.integers(min_value=1, max_value=30),
)
@settings(max_examples=60)
def test_what_is_told_is_what_happens(
    *,
    queued: list[Runner],
    resident: Runner | None,
    aside: frozenset[Runner],
    failing: set[int],
    now: int,
    limit: int,
) -> None:
    """The next jobs are listed in the very order in which they will be picked, those whose backoff is over included."""
    with TemporaryDirectory() as folder:
        queue = Queue(Path(folder) / "foreman.db")
        queue.run(queue.store.accept([new_job(n, runner=runner) for n, runner in enumerate(queued)]))
        picked = queue.drain(None, frozenset())
        for place, job in enumerate(picked):
            not_before = 15 + place if place in failing else 0
            charge = BROKE if not_before else None
            queue.run(queue.store.put_back(job, not_before=not_before, charge=charge))
        queue.now = now
        told = [job.id for job in queue.outlook(resident, aside, limit).upcoming]
        assert told == [job.id for job in queue.drain(resident, aside)][:limit]
        queue.run(queue.store.stop())


def test_the_oldest_of_each_model_backoff_or_not(tmp_path: Path) -> None:
    """Each model's longest wait counts all its waiting jobs, whatever their options and backoffs; ended ones not."""
    queue = Queue(tmp_path / "foreman.db")
    jobs = [
        evolve(new_job(0, runner=GEMMA), created_at=1),
        evolve(new_job(1, runner=QWEN_LONG), created_at=2, model="QWEN"),
        evolve(new_job(2, runner=QWEN), created_at=3),
        evolve(new_job(3, runner=QWEN), created_at=4),
        evolve(new_job(4, runner=PHI), created_at=5),
        evolve(new_job(5, runner=GEMMA), created_at=6),
    ]
    queue.run(queue.store.accept(jobs))
    first = queue.run(queue.store.take(resident=None, warm=False, aside=()))
    assert first is not None
    second = queue.run(queue.store.take(resident=QWEN_LONG, warm=False, aside=()))
    assert second is not None
    queue.run(queue.store.put_back(second.job, not_before=1000, charge=BROKE))
    assert queue.outlook().oldest == {"QWEN": 2, "qwen:latest": 3, "phi:latest": 5, "gemma:latest": 6}


def steps(queue: Queue, resident: Runner | None) -> int:
    """SQLite's steps for one look at the queue."""
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    def look(cursor: sqlite3.Cursor) -> None:
        cursor.connection.set_progress_handler(step, 1)
        try:
            assert len(outlook(cursor, now=1, resident=resident, aside=(), limit=50).upcoming) == 50
        finally:
            cursor.connection.set_progress_handler(None, 1)

    queue.run(queue.database.read(look))
    return count


@pytest.mark.parametrize("resident", [None, PHI, QWEN, Runner("none")])
def test_looking_costs_the_same_at_any_depth(tmp_path: Path, resident: Runner | None) -> None:
    """Looking at the queue is the same work with three hundred jobs and with ten thousand."""
    queue = Queue(tmp_path / "foreman.db")
    queue.run(queue.store.accept([new_job(n, runner=RUNNERS[n % 4]) for n in range(300)]))
    shallow = steps(queue, resident)
    queue.run(queue.store.accept([new_job(n, runner=RUNNERS[n % 4]) for n in range(300, 10_000)]))
    assert steps(queue, resident) == shallow
