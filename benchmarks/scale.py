"""What a long queue costs: the same operations while 1,000 to 1,000,000 jobs wait, each with its body and its event.

Over HTTP at the real daemon, the target being away so that nothing runs; choosing and pruning in the daemon's own
transactions on its database, since no call of a client does them.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.jobs import answer, submission
from benchmarks.processes import Bench, free_port
from benchmarks.results import Result, at_most, percentile, told
from benchmarks.seed import MODELS, fill, opened
from benchmarks.wire import Connection, request
from foreman.job import Runner
from foreman.work import queries
from foreman.work.moves import Transaction
from foreman.work.retention import BATCH

ENDED = 5_000
"""Jobs that have ended, old enough to be pruned."""

PRUNED = 2_000
"""Of them, those that are."""


def measure(bench: Bench) -> list[Result]:
    """Each operation at each depth, and how much dearer the deepest is than the shallowest.

    The depths take turns, so that a slow moment of the machine strikes them all.
    """
    paths = {}
    for power in range(bench.few(4, 3)):
        jobs = 1000 * 10**power
        paths[jobs] = bench.folder / f"{jobs}.db"
        fill(paths[jobs], queued=jobs, done=ENDED)
    results = [*_restarts(bench, paths), *_calls(bench, paths), *_transactions(bench, paths)]
    return [*results, *_growth(results)]


def _growth(results: list[Result]) -> Iterator[Result]:
    curves: dict[str, list[Result]] = {}
    for result in results:
        curves.setdefault(result.name, []).append(result)
    for name, curve in curves.items():
        if curve[0].unit == "ms" and "p99" not in name:
            yield told(f"{name}: {curve[-1].jobs} over {curve[0].jobs} queued", curve[-1].value / curve[0].value, "x")


# -- the daemon ------------------------------------------------------------------------------------------------------


def _restarts(bench: Bench, paths: Mapping[int, Path]) -> Iterator[Result]:
    """From the start of the process until `/readyz` says yes."""
    times: dict[int, list[float]] = {jobs: [] for jobs in paths}
    for _ in range(bench.few(5, 3)):
        for jobs, path in paths.items():
            started = time.monotonic()
            with bench.foreman(free_port(), wait=False, DB=str(path)) as foreman:
                foreman.wait_until_ready()
                times[jobs].append((time.monotonic() - started) * 1000)
    for jobs, taken in times.items():
        yield at_most("restart", median(taken), "ms", 1500, jobs=jobs)


def _calls(bench: Bench, paths: Mapping[int, Path]) -> Iterator[Result]:
    """Milliseconds of a call, one client at a time."""
    rounds = bench.few(200, 60)
    times: dict[tuple[str, int], list[float]] = {}
    with ExitStack() as stack:
        foremen = {}
        for jobs, path in paths.items():
            # A hundred years: the seeded ended jobs date from 1970, and are for `_transactions` to prune.
            settings = {"DB": str(path), "MAX_QUEUE": str(2 * jobs), "JOB_TTL": "36500d"}
            foremen[jobs] = stack.enter_context(bench.foreman(free_port(), wait=False, **settings))
            foremen[jobs].wait_until_ready()
            yield told("memory", foremen[jobs].memory() / 2**20, "MiB", jobs=jobs)
        clients = {jobs: stack.enter_context(Connection(foreman.port)) for jobs, foreman in foremen.items()}
        cancelled = {jobs: iter(random.sample(range(1, jobs - len(MODELS)), rounds)) for jobs in paths}
        for _ in range(rounds):
            for jobs, client in clients.items():
                for name, (wanted, status) in _ways(jobs, cancelled[jobs]).items():
                    times.setdefault((name, jobs), []).append(_timed(client, wanted, status))
        for jobs, foreman in foremen.items():
            # Nothing has drained it meanwhile: as many were accepted as cancelled.
            assert foreman.queued() == jobs, foreman.health()
    for (name, jobs), taken in sorted(times.items()):
        yield told(name, median(taken), "ms", jobs=jobs)
        yield told(f"{name}, p99", percentile(taken, 99), "ms", jobs=jobs)


def _ways(jobs: int, cancelled: Iterator[int]) -> dict[str, tuple[bytes, int]]:
    """The calls of one round, and the status that each is answered with."""
    last = jobs - len(MODELS)
    gets = {
        "position": f"/jobs/{_id(random.randint(1, last))}",
        "position of the last": f"/jobs/{_id(last)}",
        "list, the newest 100": "/jobs?limit=100",
        "list, of a model and a state": f"/jobs?limit=100&model={MODELS[1]}&state=queued",
        "list, a page far down": f"/jobs?limit=100&after={_id(jobs // 2)}",
        "queue": "/queue",
    }
    return {
        "accept": (submission(), 202),
        **{name: (request("GET", path), 200) for name, path in gets.items()},
        "cancel": (request("POST", f"/jobs/{_id(next(cancelled))}/cancel"), 200),
    }


def _timed(client: Connection, wanted: bytes, status: int) -> float:
    started = time.perf_counter()
    client.socket.sendall(wanted)
    answer(client, status)
    return (time.perf_counter() - started) * 1000


def _id(number: int) -> str:
    """The id that `fill` gives to a queued job."""
    return f"q{number:026d}"


# -- the daemon's transactions ---------------------------------------------------------------------------------------


def _transactions(bench: Bench, paths: Mapping[int, Path]) -> Iterator[Result]:
    cases = {"next job of the resident runner": Runner(MODELS[2]), "next job of another": Runner("elsewhere")}
    times: dict[tuple[str, int], list[float]] = {}
    with ExitStack() as stack:
        connections = {jobs: stack.enter_context(opened(path)) for jobs, path in paths.items()}
        for connection in connections.values():
            connection.execute("PRAGMA foreign_keys = ON")
        for _ in range(PRUNED // BATCH):
            for jobs, connection in connections.items():
                for name, resident in cases.items():
                    times.setdefault((name, jobs), []).extend(_choices(connection, resident, bench.few(500, 200)))
                times.setdefault((f"prune, {BATCH} old jobs", jobs), []).append(_pruning(connection))
    for (name, jobs), taken in sorted(times.items()):
        if name in cases:
            yield at_most(name, median(taken), "ms", 0.2, jobs=jobs)
        else:
            yield told(name, median(taken), "ms", jobs=jobs)


def _choices(connection: sqlite3.Connection, resident: Runner, times: int) -> Iterator[float]:
    transaction = Transaction(connection.cursor(), 5)
    connection.execute("BEGIN IMMEDIATE")
    for _ in range(times):
        started = time.perf_counter()
        assert transaction.choose(resident, ()) is not None
        yield (time.perf_counter() - started) * 1000
    connection.execute("ROLLBACK")


def _pruning(connection: sqlite3.Connection) -> float:
    started = time.perf_counter()
    connection.execute("BEGIN IMMEDIATE")
    pruned = len(connection.execute(queries.PRUNE, (10**12, BATCH)).fetchall())
    connection.execute("COMMIT")
    assert pruned == BATCH
    return (time.perf_counter() - started) * 1000
