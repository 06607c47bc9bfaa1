"""What was measured: figures with their targets, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import orjson
from attrs import asdict, frozen


@frozen
class Result:
    """One figure.

    :ivar target: what it is held against, such as `<= 1.2`; None for a figure that is only told.
    """

    name: str
    value: float
    unit: str
    target: str | None = None
    met: bool | None = None


def at_most(name: str, value: float, unit: str, limit: float) -> Result:
    """A figure that must not be larger than `limit`."""
    return Result(name, _rounded(value), unit, f"<= {limit:g}", value <= limit)


def at_least(name: str, value: float, unit: str, limit: float) -> Result:
    """A figure that must not be smaller than `limit`."""
    return Result(name, _rounded(value), unit, f">= {limit:g}", value >= limit)


def told(name: str, value: float, unit: str) -> Result:
    """A figure without a target, for comparison."""
    return Result(name, _rounded(value), unit)


def percentile(values: Iterable[float], percent: float) -> float:
    """The value below which so many per cent of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def table(results: Sequence[Result]) -> str:
    """The figures for people."""
    rows = [
        (
            result.name,
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


def save(results: Sequence[Result], path: Path) -> None:
    """Write the figures as a JSON list."""
    path.write_bytes(orjson.dumps([asdict(result) for result in results], option=orjson.OPT_INDENT_2) + b"\n")


def _rounded(value: float) -> float:
    return float(f"{value:.4g}") if abs(value) < 10_000 else float(round(value))
