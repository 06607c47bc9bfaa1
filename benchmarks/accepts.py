"""Durable accepts: rows that are on the disk when their callers hear of it, against bare SQLite doing the same.

`measure` has the store measured in a process of its own (`python -m benchmarks.accepts`), since it needs a reactor.
The way through HTTP is `benchmarks.jobs`'.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react

from benchmarks.processes import Bench
from benchmarks.results import Result, at_least, told
from benchmarks.seed import new_job, opened
from foreman.work.database import Database
from foreman.work.store import Store

CALLERS = 64
BATCH = 1000
CALL = "call"  # a row a call, 64 callers, one commit for all that wait
BULK = "bulk"  # a thousand rows a call


def measure(bench: Bench) -> list[Result]:
    """Rows a second."""
    seconds = bench.few(2, 1)
    command = [sys.executable, "-m", "benchmarks.accepts", str(bench.folder), str(bench.few(4, 2)), str(seconds)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=120).stdout
    rates: dict[str, float] = json.loads(printed)
    return [
        at_least(f"durable accepts, {CALLERS} callers, at the store", rates[f"store {CALL}"], "rows/s", 1500),
        told(f"durable accepts, {CALLERS} a commit, bare SQLite", rates[f"bare {CALL}"], "rows/s"),
        at_least(f"durable accepts, batches of {BATCH}, at the store", rates[f"store {BULK}"], "rows/s", 30_000),
        told(f"durable accepts, batches of {BATCH}, bare SQLite", rates[f"bare {BULK}"], "rows/s"),
        at_least(f"batches of {BATCH}, store / bare", rates[f"store {BULK}"] / rates[f"bare {BULK}"], "x", 0.5),
    ]


# -- the process that has a reactor ----------------------------------------------------------------------------------


async def _measure_store(reactor: Any, folder: Path, rounds: int, seconds: float) -> dict[str, float]:
    """Rows a second, by way and kind, taking turns."""
    ids = (f"{number:026d}" for number in count())
    store = Store(
        Database(folder / "store.db", reactor), lambda: time.time_ns() // 10**6, max_queue=10**9, max_attempts=3
    )
    await store.start()
    rates: dict[str, list[float]] = {}
    with opened(folder / "bare.db") as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        connection.execute("PRAGMA synchronous = FULL")
        await store.accept([new_job("pattern")])
        patterns = await store._database.read(_patterns)  # noqa: SLF001 (the rows as foreman writes them)
        numbers = count(1)

        def bare(size: int) -> float:
            rows, started = 0, time.perf_counter()
            while time.perf_counter() - started < seconds:
                new = [(next(numbers), next(ids)) for _ in range(size)]
                connection.execute("BEGIN IMMEDIATE")
                for insert, pattern in patterns:
                    connection.executemany(insert, [{**pattern, "seq": seq, "id": job_id} for seq, job_id in new])
                connection.execute("COMMIT")
                rows += size
            return rows / (time.perf_counter() - started)

        async def stored(callers: int, size: int) -> float:
            rows, started = 0, time.perf_counter()

            async def caller() -> None:
                nonlocal rows
                while time.perf_counter() - started < seconds:
                    accepted = await store.accept([new_job(next(ids)) for _ in range(size)])
                    rows += len(accepted)  # on a line of its own: others add meanwhile

            await gatherResults([Deferred.fromCoroutine(caller()) for _ in range(callers)])
            return rows / (time.perf_counter() - started)

        for _ in range(rounds):
            for kind, callers, size in ((CALL, CALLERS, 1), (BULK, 2, BATCH)):
                rates.setdefault(f"store {kind}", []).append(await stored(callers, size))
                rates.setdefault(f"bare {kind}", []).append(bare(callers if size == 1 else size))
    await store.stop()
    return {name: median(taken) for name, taken in rates.items()}


def _patterns(cursor: sqlite3.Cursor) -> list[tuple[str, dict[str, Any]]]:
    """The rows that belong to the only job there is: for each a statement that inserts one like it, and its values."""
    tables = [name for (name,) in cursor.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    patterns = []
    for table in ("jobs", *(table for table in tables if table != "jobs")):
        names = [row[1] for row in cursor.execute(f"PRAGMA table_info({table})")]
        if "seq" in names:
            for row in cursor.execute(f"SELECT {', '.join(names)} FROM {table}").fetchall():  # noqa: S608
                insert = f"INSERT INTO {table} ({', '.join(names)}) VALUES (:{', :'.join(names)})"  # noqa: S608
                patterns.append((insert, dict(zip(names, row, strict=True))))
    return patterns


async def _main(reactor: Any, folder: str, rounds: str, seconds: str) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as own:
        print(json.dumps(await _measure_store(reactor, Path(own), int(rounds), float(seconds))))


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(_main(reactor, *sys.argv[1:])))
