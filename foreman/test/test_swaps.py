"""What draining by model saves: the loads that were paid beside those of first come, first served."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreman.job import Runner
from foreman.test.strategies import RUNNERS, runners
from foreman.work import swaps
from foreman.work.schedule import order_key
from foreman.work.swaps import Swaps

A, _, B, C = RUNNERS


class _Queued:
    def __init__(self, seq: int, runner: Runner) -> None:
        self.seq = seq
        self.runner = runner


def work(counted: Swaps, *jobs: tuple[int, Runner], resident: Runner | None = None) -> Runner | None:
    """Run jobs, given by place and runner, as a target of one slot would; gives what is resident then."""
    for seq, runner in jobs:
        if runner != resident:
            counted.load(runner)
        counted.run(seq, runner)
        resident = runner
    return resident


def test_the_example_of_the_contract() -> None:
    """`A B A A C A B C` costs three loads, not seven: four are saved."""
    counted = Swaps()
    work(counted, (1, A), (3, A), (4, A), (6, A), (2, B), (7, B), (5, C), (8, C))
    assert (counted.paid, counted.by_arrival) == (3, 7)


@given(queue=st.lists(runners, min_size=1, max_size=30), together=st.integers(1, 10))
def test_it_is_what_the_order_of_arrival_would_have_cost(queue: list[Runner], together: int) -> None:
    """However many wait when the next is picked: the sum is that of the jobs that ran, in their order."""
    counted, resident = Swaps(), None
    coming = [_Queued(seq, runner) for seq, runner in enumerate(queue)]
    waiting: list[_Queued] = []
    ran: list[_Queued] = []
    while coming or waiting:
        waiting, coming = waiting + coming[:together], coming[together:]
        job = min(waiting, key=lambda each: order_key(each, resident))
        waiting.remove(job)
        resident = work(counted, (job.seq, job.runner), resident=resident)
        ran.append(job)
        in_order = sorted(ran, key=lambda each: each.seq)
        assert counted.by_arrival == 1 + sum(one.runner != next_.runner for one, next_ in pairwise(in_order))
        assert counted.by_arrival >= counted.paid


def test_what_no_order_helps_against_saves_nothing() -> None:
    """A model that expires between two jobs, or is resident at the start, makes no difference: nothing is claimed."""
    counted = Swaps()
    counted.run(1, A)
    assert (counted.paid, counted.by_arrival) == (0, 0)
    work(counted, (2, A), (3, A))
    assert (counted.paid, counted.by_arrival) == (1, 1)
    work(counted, (4, A))
    assert (counted.paid, counted.by_arrival) == (2, 2)


def test_what_somebody_else_has_loaded_is_no_saving() -> None:
    """A job that finds its model there, loaded by people who use the target directly, is no merit of the order."""
    counted = Swaps()
    work(counted, (1, A), (2, B))
    counted.run(3, A)
    assert (counted.paid, counted.by_arrival) == (2, 2)


def test_a_job_counts_once() -> None:
    """Tries after the first are foreman's own cost."""
    counted = Swaps()
    work(counted, (1, A), (2, B), (1, A), resident=None)
    assert (counted.paid, counted.by_arrival) == (3, 2)


def test_it_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded; a job from before what is remembered claims nothing."""
    monkeypatch.setattr(swaps, "REMEMBERED", 3)
    counted = Swaps()
    resident = work(counted, *((seq, A) for seq in range(10, 20)))
    assert len(counted._places) == len(counted._runners) == 3
    resident = work(counted, (12, B), resident=resident)
    assert (counted.paid, counted.by_arrival) == (2, 1)
    work(counted, (20, B), (18, A), resident=resident)
    assert (counted.paid, counted.by_arrival) == (3, 2)
