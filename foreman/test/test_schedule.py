"""When again: backoff and the wait for a busy target.

The order itself is tested where it is walked, in the store.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreman.work.schedule import backoff, busy_wait


@pytest.mark.parametrize(("failures", "seconds"), [(1, 2), (2, 4), (3, 8), (8, 256), (9, 300), (10_000, 300)])
def test_backoff_doubles_to_a_ceiling(failures: int, seconds: float) -> None:
    """A failing job is tried again after 2, 4, 8 … seconds, and never later than about five minutes."""
    assert backoff(failures, lambda: 0.5) == pytest.approx(seconds)


@given(st.integers(1, 100), st.floats(0, 1))
def test_backoff_is_spread(failures: int, chance: float) -> None:
    """Jobs that failed together do not come back together: each wait is spread by a fifth either way."""
    middle = backoff(failures, lambda: 0.5)
    assert 0.799 * middle <= backoff(failures, lambda: chance) <= 1.201 * middle
    assert backoff(failures, lambda: 0.0) == pytest.approx(0.8 * middle)
    assert backoff(failures, lambda: 1.0) == pytest.approx(1.2 * middle)


@pytest.mark.parametrize(("times", "seconds"), [(1, 1), (2, 2), (3, 4), (5, 16), (6, 30), (10_000, 30)])
def test_a_busy_target_is_left_alone_ever_longer(times: int, seconds: float) -> None:
    """A target that says busy without saying until when is asked again after 1, 2, 4 … 30 seconds."""
    assert busy_wait(times, None) == seconds


@pytest.mark.parametrize(("asked", "seconds"), [(7.0, 7.0), (120.0, 120.0), (0.0, 1.0), (-3.0, 1.0)])
def test_a_busy_target_is_obeyed(asked: float, seconds: float) -> None:
    """`Retry-After` is honoured, however long; "at once" still means a second."""
    assert busy_wait(9, asked) == seconds
