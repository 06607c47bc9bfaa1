"""When a job will run: its place in line, the swaps before it, the seconds until its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from foreman.job import Job, JobState, Runner
from foreman.test.strategies import RUNNERS, runners
from foreman.work.forecast import EXACT, First, Forecast, Line, Pace, Paces, forecast
from foreman.work.moves import Move
from foreman.work.schedule import order_key

A, A_LONG, B, C = RUNNERS


def job(seq: int, runner: Runner = A, **more: Any) -> Job:
    """A queued job, or a done one by its times."""
    return Job(
        seq=seq,
        id=str(seq),
        sync=False,
        endpoint="/api/chat",
        model=runner.model,
        runner=runner,
        size=1,
        state=JobState.QUEUED,
        attempt=0,
        failures=0,
        created_at=0,
        **more,
    )


def told(jobs: list[Job], seq: int, resident: Runner | None, paces: Mapping[Runner, Pace] | None = None) -> Forecast:
    """The forecast for one of these jobs."""
    wanted = next(each for each in jobs if each.seq == seq)
    oldest: dict[Runner, First] = {}
    for each in jobs:
        oldest.setdefault(each.runner, First(each.runner, each.seq))
    older = sum(each.runner == wanted.runner and each.seq < seq for each in jobs)
    return forecast(
        wanted,
        Line(older=older, firsts=tuple(oldest.values())),
        queued=lambda runner: sum(each.runner == runner for each in jobs),
        resident=resident,
        running=None,
        pace=lambda runner: (paces or {}).get(runner, Pace()),
    )


@given(queue=st.lists(runners, min_size=1, max_size=12), resident=st.none() | runners, data=st.data())
def test_the_place_is_where_the_order_puts_it(
    queue: list[Runner], resident: Runner | None, data: st.DataObject
) -> None:
    """Position and swaps are those of the order of work itself."""
    jobs = [job(seq, runner) for seq, runner in enumerate(queue)]
    seq = data.draw(st.sampled_from(range(len(jobs))))
    said = told(jobs, seq, resident)
    left, position, swaps, at = list(jobs), 0, 0, resident
    while True:
        following = min(left, key=lambda each: order_key(each, at))
        left.remove(following)
        position, swaps, at = position + 1, swaps + (following.runner != at), following.runner
        if following.seq == seq:
            break
    assert (said.position, said.swaps_ahead, said.position_exact) == (position, swaps, True)


def test_the_seconds() -> None:
    """The time is that of the loads and runs before the job and of its own; unknown while one of them is."""
    jobs = [job(0, B), job(1, A), job(2, A)]
    paces = {A: Pace(load=10.0, run=2.0), B: Pace(load=5.0, run=1.0)}
    assert told(jobs, 2, B, paces).eta_seconds == 1 + 10 + 2 * 2
    assert told(jobs, 0, B, {B: Pace(run=1.0)}).eta_seconds == 1.0
    assert told(jobs, 2, B, {A: paces[A]}).eta_seconds is None
    assert told(jobs, 2, C, {**paces, B: Pace(run=1.0)}).eta_seconds is None


def test_beyond_what_is_counted() -> None:
    """Beyond a thousand the position is a lower bound, and no time is promised."""
    said = forecast(
        job(5000),
        Line(older=EXACT, firsts=(First(A, 1),)),
        queued=lambda _: 5000,
        resident=A,
        running=A,
        pace=lambda _: Pace(load=1.0, run=1.0),
    )
    assert (said.position, said.position_exact, said.eta_seconds) == (EXACT + 1, False, None)


def test_what_is_learned() -> None:
    """Runs count always, loads only where something was loaded, the newest more than each before."""
    paces = Paces()
    assert paces.of(A) == Pace()
    paces.learn([job(1, A, loading_at=0, working_at=5000, completed_at=7000)])
    assert paces.of(A) == Pace(load=5.0, run=2.0)
    assert paces.of(A_LONG) == Pace(load=5.0, run=2.0)
    done = job(2, A, loading_at=0, working_at=1, completed_at=4001)
    paces.follow(Move(done, JobState.LOADING, ready=True))
    assert paces.of(A) == Pace(load=5.0, run=2.0)
    paces.follow(Move(evolve(done, state=JobState.DONE), JobState.WORKING, ready=False))
    assert paces.of(A) == Pace(load=5.0, run=2.4)
    assert paces.of(B) == Pace()
