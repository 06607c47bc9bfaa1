"""Whether the target is wedged: it answers its probes, and no job gets through.  Pure.

After three charged tries in a row, over at least two jobs, it is not the jobs.  From then on one job is tried every
30 s, doubling to 5 min; these tries charge nothing, and the first success ends it and lifts the charges of that run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

TRIES = 3
JOBS = 2
FIRST_WAIT = 30.0
LONGEST_WAIT = 300.0


class Wedge:
    """The run of charged tries since the last success.

    :ivar wedged: the run is long enough.
    """

    def __init__(self) -> None:
        self.wedged = False
        self._charged: Counter[int] = Counter()
        self._trials = 0

    def failed(self, seq: int) -> float:
        """A try that would charge the job of that seq has failed.

        :return: seconds to leave the target alone, 0 unless it is wedged.
        """
        if self.wedged:
            self._trials += 1
        else:
            self._charged[seq] += 1
            self.wedged = self._charged.total() >= TRIES and len(self._charged) >= JOBS
        return min(FIRST_WAIT * 2**self._trials, LONGEST_WAIT) if self.wedged else 0.0

    def succeeded(self) -> Mapping[int, int]:
        """A job got through.

        :return: the charges to lift, by seq: those of a run that had become a wedge, else none.
        """
        lifted: Mapping[int, int] = dict(self._charged) if self.wedged else {}
        self.wedged, self._trials = False, 0
        self._charged.clear()
        return lifted
