"""What was measured: figures with their targets, as a table and as JSON.

The file holds a section for each benchmark; a run replaces those of the benchmarks it ran.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson
from attrs import asdict, frozen


@frozen
class Result:
    """One figure.

    :ivar target: what it is held against, such as `<= 1.2`; None for a figure that is only told.
    :ivar jobs: how many jobs waited; the figures of one name are then a curve.
    """

    name: str
    value: float
    unit: str
    target: str | None = None
    met: bool | None = None
    jobs: int | None = None


@frozen(kw_only=True)
class Section:
    """What one benchmark has measured.

    :ivar commit: of the code measured; it ends in `+` when the tree was not as committed.
    :ivar machine: in a few words; `at`: the day.
    :ivar quick: few samples: rough figures.
    :ivar left_out: what it should have been compared with but was not there.
    """

    benchmark: str
    commit: str
    machine: str
    at: str
    quick: bool
    results: tuple[Result, ...]
    left_out: tuple[str, ...] = ()


def at_most(name: str, value: float, unit: str, limit: float, *, jobs: int | None = None) -> Result:
    """A figure that must not be larger than `limit`."""
    return Result(name, _rounded(value), unit, f"<= {limit:g}", value <= limit, jobs)


def at_least(name: str, value: float, unit: str, limit: float) -> Result:
    """A figure that must not be smaller than `limit`."""
    return Result(name, _rounded(value), unit, f">= {limit:g}", value >= limit)


def told(name: str, value: float, unit: str, *, jobs: int | None = None) -> Result:
    """A figure without a target, for comparison."""
    return Result(name, _rounded(value), unit, jobs=jobs)


def percentile(values: Iterable[float], percent: float) -> float:
    """The value below which so many per cent of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def table(results: Sequence[Result]) -> str:
    """The figures for people."""
    rows = [
        (
            result.name if result.jobs is None else f"{result.name}, {result.jobs} queued",
            f"{result.value:g}",
            result.unit,
            result.target or "",
            {True: "met", False: "MISSED", None: ""}[result.met],
        )
        for result in results
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(5)]
    return "\n".join(
        f"{name:<{widths[0]}}  {value:>{widths[1]}} {unit:<{widths[2]}}  {target:<{widths[3]}}  {met}".rstrip()
        for name, value, unit, target, met in rows
    )


def load(path: Path) -> list[Section]:
    """The sections of the file, in no certain order; none if there is no file."""
    if not path.exists():
        return []
    return [_section(document) for document in orjson.loads(path.read_bytes())]


def save(sections: Iterable[Section], path: Path) -> None:
    """Write the sections in the place of those of the same benchmarks."""
    kept = {section.benchmark: section for section in (*load(path), *sections)}
    documents = [asdict(kept[name]) for name in sorted(kept)]
    path.write_bytes(orjson.dumps(documents, option=orjson.OPT_INDENT_2) + b"\n")


def _section(document: dict[str, Any]) -> Section:
    results = tuple(Result(**result) for result in document["results"])
    return Section(**document | {"results": results, "left_out": tuple(document["left_out"])})


def _rounded(value: float) -> float:
    return float(f"{value:.4g}") if abs(value) < 10_000 else float(round(value))
