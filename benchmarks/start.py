"""From the start of the process until it takes calls, with a million rows of which a tenth waits."""

from __future__ import annotations

import time
from statistics import median

from benchmarks.processes import Bench, free_port
from benchmarks.results import Result, at_most, told
from benchmarks.seed import fill


def measure(bench: Bench) -> list[Result]:
    """Seconds until `/readyz` says yes; the target is away, so that nothing runs."""
    rows = bench.few(1_000_000, 100_000)
    path = bench.folder / "rows.db"
    fill(path, queued=rows // 10, done=rows - rows // 10)
    full = median(_start(bench, str(path)) for _ in range(3))
    empty = median(_start(bench, str(bench.folder / f"empty-{number}.db")) for number in range(3))
    return [
        at_most(f"start with {rows} rows, until ready", full, "s", 1.5),
        told("start with none, until ready", empty, "s"),
    ]


def _start(bench: Bench, path: str) -> float:
    started = time.monotonic()
    with bench.foreman(free_port(), wait=False, DB=path) as foreman:
        foreman.wait_until_ready()
        return time.monotonic() - started
