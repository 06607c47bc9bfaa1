"""When the target is wedged, as opposed to a job being broken."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from foreman.work.wedge import Wedge


def test_one_broken_job_is_not_a_wedged_target() -> None:
    """However often one job breaks, the target is not to blame."""
    wedge = Wedge()
    assert [wedge.failed(1) for _ in range(10)] == [0.0] * 10
    assert not wedge.wedged
    assert wedge.succeeded() == {}


def test_three_in_a_row_over_two_jobs_are() -> None:
    """The third charged try wedges it; trials come after 30 s, doubling to 5 min; a success lifts the run's charges."""
    wedge = Wedge()
    assert [wedge.failed(seq) for seq in (1, 2)] == [0.0, 0.0]
    assert [wedge.failed(seq) for seq in (1, 2, 1, 2, 1, 2)] == [30.0, 60.0, 120.0, 240.0, 300.0, 300.0]
    assert wedge.wedged
    assert wedge.succeeded() == {1: 2, 2: 1}
    assert not wedge.wedged
    assert wedge.failed(1) == 0.0


@given(st.lists(st.one_of(st.none(), st.integers(1, 4))))
def test_a_wedge_lifts_no_more_than_was_charged(events: list[int | None]) -> None:
    """Whatever happens, only charges of the current run are lifted, and only if it had become a wedge."""
    wedge = Wedge()
    run: list[int] = []
    for event in events:
        if event is None:
            was_wedged = wedge.wedged
            lifted = wedge.succeeded()
            assert lifted == ({seq: run.count(seq) for seq in set(run)} if was_wedged else {})
            run = []
        else:
            charged = not wedge.wedged
            wedge.failed(event)
            if charged:
                run.append(event)
            assert wedge.wedged == (len(run) >= 3 and len(set(run)) >= 2)
