"""When a queued job will run, as far as can be told: its place in line, the swaps before it, the seconds until its end.

Theory of operation.  The order of work drains runner after runner, so what stands before a job is what is left of the
runners that come first, and the older jobs of its own.  How many jobs each runner has is counted in memory
(`Backlog`); which runner comes first is asked of the store, one look in an index for each runner, and not for more
than `RUNNERS`; a job's rank among those of its own runner is counted there up to `EXACT`.  So it never costs more
than a millisecond, whatever the depth, and beyond those bounds the position is a lower bound.

How long loads and runs take is learned from the jobs that have ended.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable

from attrs import evolve, frozen

from foreman.job import Job, JobState, Runner
from foreman.work import queries
from foreman.work.moves import Move
from foreman.work.schedule import order_key

EXACT = 1000
"""Jobs of the own runner that are counted, at most."""

RUNNERS = 100
"""Other runners that are looked at, at most."""

LEARNED_FROM = 500
"""Ended jobs that a start learns from."""

RATE = 0.2
"""What the newest job counts for, beside all before it."""

_LOADED = 100
"""Milliseconds from which a load request is taken to have loaded something."""


@frozen(kw_only=True)
class Forecast:
    """What can be said of a queued job.

    :ivar position: how many run before it, plus one.
    :ivar position_exact: False if `position` is only a lower bound.
    :ivar swaps_ahead: loads before it runs, its own included.
    :ivar eta_seconds: until it is likely to be done; None until there is something to learn from.
    """

    position: int
    position_exact: bool
    swaps_ahead: int
    eta_seconds: float | None

    def timeless(self) -> Forecast:
        """The same without the seconds."""
        return evolve(self, eta_seconds=None)


@frozen
class First:
    """A runner's oldest ready job."""

    runner: Runner
    seq: int


def firsts(cursor: sqlite3.Cursor) -> tuple[First, ...]:
    """Each runner's oldest ready job, of at most `RUNNERS` runners."""
    rows = cursor.execute(queries.FIRSTS, (RUNNERS,)).fetchall()
    return tuple(First(Runner(model, options), seq) for model, options, seq in rows)


@frozen(kw_only=True)
class Line:
    """What stands before a job, as the store has it.

    :ivar older: ready jobs of its own runner that are older, at most `EXACT`.
    :ivar firsts: each runner's oldest ready job, of at most `RUNNERS` runners.
    """

    older: int
    firsts: tuple[First, ...]


@frozen
class Pace:
    """How long a runner takes, in seconds, on average; None if that was never seen."""

    load: float | None = None
    run: float | None = None


class Paces:
    """What was learned of each runner."""

    def __init__(self) -> None:
        self._paces: dict[Runner, Pace] = {}

    def of(self, runner: Runner) -> Pace:
        """The runner's pace, or that of its model with other options."""
        if runner in self._paces:
            return self._paces[runner]
        return next((pace for known, pace in self._paces.items() if known.model == runner.model), Pace())

    def learn(self, jobs: Iterable[Job]) -> None:
        """Take note of jobs that are done, the oldest first."""
        for job in jobs:
            if job.working_at is None or job.completed_at is None or job.loading_at is None:
                continue
            pace = self._paces.pop(job.runner, Pace())
            run = _average(pace.run, (job.completed_at - job.working_at) / 1000)
            loading = job.working_at - job.loading_at
            load = _average(pace.load, loading / 1000) if loading >= _LOADED else pace.load
            self._paces[job.runner] = Pace(load=load, run=run)
            if len(self._paces) > LEARNED_FROM:
                del self._paces[next(iter(self._paces))]  # the one that was seen longest ago

    def follow(self, move: Move) -> None:
        """A job has moved; its end is learned from."""
        if move.job.state is JobState.DONE:
            self.learn([move.job])


def _average(before: float | None, now: float) -> float:
    return max(0.0, now) if before is None else before + RATE * (max(0.0, now) - before)


def forecast(
    job: Job,
    line: Line,
    *,
    queued: Callable[[Runner], int],
    resident: Runner | None,
    running: Runner | None,
    pace: Callable[[Runner], Pace],
) -> Forecast:
    """What can be said of a queued job.

    :param queued: how many jobs of a runner wait.
    :param resident: the runner that is drained now, None if unknown.
    :param running: the runner of the job in hand, None if there is none.
    """
    firsts = {job.runner: First(job.runner, job.seq)} | {first.runner: first for first in line.firsts}
    ahead, swaps, seconds = 0, 0, _half_a_run(running, pace)
    for runner in _in_order(firsts.values(), resident):
        if runner != resident:
            swaps += 1
            seconds = _plus(seconds, pace(runner).load)
        if runner == job.runner:
            break
        count = queued(runner)
        ahead += count
        seconds = _plus(seconds, pace(runner).run, count)
    seconds = _plus(seconds, pace(job.runner).run, line.older + 1)
    exact = line.older < EXACT and len(line.firsts) < RUNNERS
    return Forecast(
        position=ahead + line.older + 1,
        position_exact=exact,
        swaps_ahead=swaps,
        eta_seconds=None if seconds is None or not exact else round(seconds, 1),
    )


def _in_order(firsts: Collection[First], resident: Runner | None) -> list[Runner]:
    """The runners as they will be drained: the resident one, then those of its model, then model after model."""
    oldest: dict[str, int] = {}
    for first in firsts:
        model = first.runner.model
        oldest[model] = min(first.seq, oldest.get(model, first.seq))

    def key(first: First) -> tuple[bool, bool, int, int]:
        of_another_runner, of_another_model, seq = order_key(first, resident)
        return of_another_runner, of_another_model, oldest[first.runner.model], seq

    return [first.runner for first in sorted(firsts, key=key)]


def _half_a_run(runner: Runner | None, pace: Callable[[Runner], Pace]) -> float | None:
    """What is left of the job in hand, likely."""
    run = 0.0 if runner is None else pace(runner).run
    return None if run is None else run / 2


def _plus(sum_so_far: float | None, each: float | None, times: int = 1) -> float | None:
    """What is unknown stays so."""
    return None if sum_so_far is None or each is None else sum_so_far + each * times
