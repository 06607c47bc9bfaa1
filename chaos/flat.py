"""Whether what foreman holds stays as it is: no series of samples may trend upwards.

After a warm-up the median of the last quarter of a series is compared with that of its second quarter.  Medians do not
mind peaks, and quarters do not mind faults; what leaks slowly is above its bound in the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from statistics import median

from attrs import frozen

from chaos.samples import Sample

WARM_UP = 60.0
"""Seconds at the beginning, of the run and of each process, that are not judged."""

LEAST = 120.0
"""Seconds after its warm-up for which a process has to have lived for its memory to be judged."""


@frozen
class Series:
    """One thing that is sampled.

    :ivar unit: in which it is measured, empty if it is counted.
    :ivar factor, more: the last quarter may be so many times the second, and so much more.
    :ivar by_life: judged in each process by itself: a new one begins anew.
    """

    unit: str
    factor: float
    more: float
    by_life: bool = False

    def bound(self, second: float) -> float:
        """What the last quarter may be."""
        return second * self.factor + self.more


SERIES: Mapping[str, Series] = {
    "memory": Series("MiB", 1.1, 2, by_life=True),
    "descriptors": Series("", 1.0, 10),
    "threads": Series("", 1.0, 2),
    "log": Series("MiB", 1.25, 4, by_life=True),
    "database": Series("MiB", 1.25, 4),
    "queue": Series("", 1.25, 50),
    "jobs": Series("", 1.25, 100),
}
"""What is judged, and how much is much: loads that come at random make queues, and so jobs, that differ by as much."""


@frozen
class Stretch:
    """A series, or the part of it in one process, by its quarters.

    :ivar life: which process, None for all.
    :ivar seconds: how long it is, without its warm-up.
    :ivar second, last: the medians of these quarters.
    """

    name: str
    life: int | None
    seconds: float
    second: float
    last: float

    @property
    def flat(self) -> bool:
        """Whether it is within its bound."""
        return self.last <= SERIES[self.name].bound(self.second)


def stretches(samples: Sequence[Sample]) -> Iterator[Stretch]:
    """What of these samples, the oldest first, is long enough to be judged."""
    for name, series in SERIES.items():
        lives = [list(life) for _, life in groupby(samples, lambda sample: sample["life"])]
        for part in lives if series.by_life else [samples]:
            warm = [sample for sample in part if sample["at"] >= part[0]["at"] + WARM_UP]
            if warm and warm[-1]["at"] - warm[0]["at"] >= LEAST:
                values, quarter = [sample[name] for sample in warm], max(1, len(warm) // 4)
                yield Stretch(
                    name,
                    int(part[0]["life"]) if series.by_life else None,
                    warm[-1]["at"] - warm[0]["at"],
                    median(values[quarter : 2 * quarter]),
                    median(values[-quarter:]),
                )


def judged(samples: Sequence[Sample]) -> list[str]:
    """A line for each series that grows, or is too short to tell."""
    found = list(stretches(samples))
    grown = [f"{_told(one)} grows: {_quarters(one)}" for one in found if not one.flat]
    unseen = SERIES.keys() - {one.name for one in found}
    return grown + [f"{name}: too few samples to tell whether it grows" for name in SERIES if name in unseen]


def _told(one: Stretch) -> str:
    return one.name if one.life is None else f"{one.name} of process {one.life}"


def _quarters(one: Stretch) -> str:
    second, last = (f"{value:g} {SERIES[one.name].unit}".rstrip() for value in (one.second, one.last))
    return f"{second} in the second quarter of {one.seconds:.0f} s, {last} in the last"
