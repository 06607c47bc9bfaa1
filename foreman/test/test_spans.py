"""What a job had to wait for, by the clock."""

from __future__ import annotations

from foreman.work.spans import GAP, REMEMBERED, Spans


def test_what_went_on_meanwhile() -> None:
    """Names come once, in their order, with the milliseconds that fall between the two moments."""
    spans = Spans()
    spans.add(0, 100, "a")
    spans.add(100, 300, "b")
    spans.add(300, 400, "a")
    assert spans.names_within(50, 350) == ("a", "b")
    assert spans.names_within(100, 300) == ("b",)
    assert spans.length_within(50, 350) == 300
    assert (spans.names_within(400, 500), spans.length_within(400, 500)) == ((), 0)


def test_a_pause_is_no_work() -> None:
    """The same name again makes one span, unless there was a pause between; a clock may step back."""
    spans = Spans()
    spans.add(0, 100, "a")
    spans.add(100 + GAP, 300, "a")
    assert spans.length_within(0, 300) == 300
    spans.add(301 + GAP, 500, "a")
    assert spans.names_within(301, 300 + GAP) == ()
    spans.add(500, 400, "b")
    assert spans.length_within(0, 1000) == 300 + 500 - 301 - GAP


def test_only_so_much_is_remembered() -> None:
    """However long foreman runs."""
    spans = Spans()
    for number in range(REMEMBERED + 1):
        spans.add(number * 10, number * 10 + 5, str(number))
    assert spans.names_within(0, 20) == ("1",)
