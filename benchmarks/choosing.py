"""Choosing the next job among a million that wait."""

from __future__ import annotations

import time
from statistics import median

from benchmarks.processes import Bench
from benchmarks.results import Result, at_most, percentile, told
from benchmarks.seed import MODELS, fill, opened
from foreman.job import Runner
from foreman.work.moves import Transaction

CASES: dict[str, tuple[Runner | None, tuple[Runner, ...]]] = {
    "its runner is resident": (Runner(MODELS[2]), ()),
    "its model is, with other options": (Runner(MODELS[2], '{"num_ctx":512}'), ()),
    "nothing of the queue is": (Runner("elsewhere"), ()),
    "a runner is set aside": (None, (Runner(MODELS[0]),)),
}
"""Which runner is resident, and which are set aside."""


def measure(bench: Bench) -> list[Result]:
    """Microseconds of the query, in its transaction."""
    count = bench.few(1_000_000, 100_000)
    path = bench.folder / "queue.db"
    fill(path, queued=count, done=len(MODELS))
    results = []
    with opened(path) as connection:
        transaction = Transaction(connection.cursor(), 5)
        connection.execute("BEGIN IMMEDIATE")
        for case, (resident, aside) in CASES.items():
            times = []
            for _ in range(2000):
                started = time.perf_counter()
                assert transaction.choose(resident, aside) is not None
                times.append((time.perf_counter() - started) * 1e6)
            results += [
                at_most(f"choosing among {count} jobs, {case}, p50", median(times), "µs", 200),
                told(f"choosing among {count} jobs, {case}, p99", percentile(times, 99), "µs"),
            ]
        connection.execute("ROLLBACK")
    return results
