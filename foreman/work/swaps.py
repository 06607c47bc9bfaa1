"""The loads that were paid, and those that first come, first served would have paid for the same jobs.

`by_arrival` is what the jobs that ran would have cost in the order in which they were accepted: a load wherever a
job's runner is not that of the job before it.  Each job is put in its place when its request goes to the target, and
adds what it changes there, `[before != job] + [job != after] - [before != after]`, which is never less than nothing:
the figure only grows, and never runs ahead of the work.

What no order helps against counts on both sides: the first load after a start, and that of a runner which foreman used
last and which is gone (it expired, somebody unloaded it, the target restarted).  Else it errs to less: what retries
load is only paid, and a job whose runner somebody else has brought adds nothing.
"""

from __future__ import annotations

from bisect import bisect_left

from foreman.job import Runner

REMEMBERED = 10_000
"""Places; the earliest are forgotten, and a job from before them counts nothing.  Half a megabyte at most."""


class Swaps:
    """Both counts, since the start.

    :ivar paid: how many times a runner was loaded that was not there.
    :ivar by_arrival: how many times it would have been, had the jobs that ran run in the order of their acceptance.
    """

    def __init__(self) -> None:
        self.paid = 0
        self.by_arrival = 0
        self._loaded = False  # since the last job's request
        self._last: Runner | None = None
        self._forgotten = 0  # places before this one
        self._places: list[int] = []
        self._runners: list[Runner] = []  # of the same indexes

    def load(self, runner: Runner) -> None:
        """A runner that is not there is being loaded."""
        self.paid += 1
        self.by_arrival += self._last in (None, runner)
        self._loaded = True

    def run(self, seq: int, runner: Runner) -> None:
        """A job's request goes to the target.

        :param seq: its place in the order of acceptance.
        """
        found = self._last not in (None, runner) and not self._loaded
        self._loaded, self._last = False, runner
        if seq < self._forgotten:
            return
        at = bisect_left(self._places, seq)
        beside = self._runners[max(at - 1, 0) : at + 1]  # the one before, and the one after or an earlier try
        if not found:
            self.by_arrival += sum(other != runner for other in beside) - (len(set(beside)) == 2)
        self._places.insert(at, seq)
        self._runners.insert(at, runner)
        if len(self._places) > REMEMBERED:
            self._forgotten = self._places.pop(0) + 1
            del self._runners[0]
