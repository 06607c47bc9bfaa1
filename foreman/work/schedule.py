"""Which job next, and when again: pure functions.

The order is foreman's whole policy: drain the resident runner, then its model with other options, then take the
oldest.  `moves.Transaction.choose` walks indexes in this very order; `order_key` is what it must agree with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from foreman.job import Runner

BACKOFF_CEILING = 300.0
BUSY_CEILING = 30.0


class InLine(Protocol):
    """What the order goes by: of a job, or of whatever stands for one."""

    @property
    def runner(self) -> Runner:
        """What has to be loaded for it."""

    @property
    def seq(self) -> int:
        """The order of acceptance."""


def order_key(job: InLine, resident: Runner | None) -> tuple[bool, bool, int]:
    """The place of a ready job in line: the smallest key runs next.

    :param resident: the runner in the target's memory, None if unknown.
    """
    return (
        job.runner != resident,
        resident is None or job.runner.model != resident.model,
        job.seq,
    )


def backoff(failures: int, random: Callable[[], float]) -> float:
    """Seconds until a job, or a runner that would not load, is tried again: 2, 4, 8 … 300, each ±20 %.

    :param failures: tries charged so far, at least 1.
    :param random: gives numbers from 0 to 1; the spread keeps many from coming back together.
    """
    return min(2.0 ** min(failures, 16), BACKOFF_CEILING) * (0.8 + 0.4 * random())


def busy_wait(times: int, retry_after: float | None) -> float:
    """Seconds to leave a busy target (503, 429) alone: what it asked for, else 1, 2, 4 … 30.

    :param times: how often in a row it was busy, at least 1.
    :param retry_after: seconds from its `Retry-After`, None if it sent none; less than 1 counts as 1, or the
        worker would spin.
    """
    if retry_after is not None:
        return max(retry_after, 1.0)
    return min(2.0 ** min(times - 1, 16), BUSY_CEILING)
