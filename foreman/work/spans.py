"""What went on when: the last spans of time, each with a name, to say afterwards what a job had to wait for.  Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import takewhile

from attrs import frozen

REMEMBERED = 1000
"""Spans; older ones are forgotten."""

GAP = 100
"""Milliseconds between two spans of the same name that still make one."""


@frozen
class _Span:
    start: int
    end: int
    name: str


class Spans:
    """Spans one after another, in milliseconds since the epoch; lost with the process."""

    def __init__(self) -> None:
        self._spans: deque[_Span] = deque(maxlen=REMEMBERED)

    def add(self, start: int, end: int, name: str) -> None:
        """That went on from `start` to `end`; the last one, if it has the same name, goes on."""
        if self._spans and self._spans[-1].name == name and start - self._spans[-1].end <= GAP:
            start = self._spans.pop().start
        self._spans.append(_Span(start, max(start, end), name))

    def names_within(self, start: int, end: int) -> tuple[str, ...]:
        """Whatever went on between two moments, each name once, in the order in which they began."""
        return tuple(dict.fromkeys(span.name for span in self._within(start, end)))

    def length_within(self, start: int, end: int) -> int:
        """For how many milliseconds between two moments anything went on."""
        return sum(min(span.end, end) - max(span.start, start) for span in self._within(start, end))

    def _within(self, start: int, end: int) -> Iterator[_Span]:
        last = takewhile(lambda span: span.end > start, reversed(self._spans))
        return reversed([span for span in last if span.start < end])
