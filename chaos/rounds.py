"""One round: foreman, its target and its receivers are started, loaded and struck; then all is mended and has to drain.

What everybody saw is the round's *evidence*, a plain dict, and `chaos.checker` judges it (see there for its shape).
"""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from chaos.faults import Faults
from chaos.load import Load
from chaos.plan import RECEIVERS, Plan
from chaos.processes import Foreman, Ollama, Silent
from chaos.receivers import SECRET, Receiver

SETTINGS = {
    "POLL_INTERVAL": "2s",
    "STALL_TIMEOUT": "3s",
    "ANSWER_TIMEOUT": "8s",
    "LOAD_TIMEOUT": "8s",
    "SYNC_WAIT": "6s",
    "MAX_RUN": "30s",
    "SHUTDOWN_GRACE": "3s",
    "JOB_TTL": "300d",
    "WEBHOOK_SECRET": SECRET,
}
"""foreman's, so that what takes minutes in life takes seconds here."""

DRAIN = 120.0
"""Seconds in which everything has to come to its end once the faults are over."""

SOON = 3_000
"""Milliseconds: deliveries due within them are waited for."""


async def run(plan: Plan, folder: Path) -> dict[str, Any]:
    """Run a round in an empty folder; gives the evidence."""
    receivers = [Receiver(number) for number in range(RECEIVERS)]
    ollama = Ollama()
    await ollama.start()
    await ollama.ready()
    settings = SETTINGS | {"HOLD_LINE": "0" if plan.seed % 2 else "7s"}
    foreman = Foreman(folder, ollama.url, settings)
    trouble: list[str] = []
    began = time.time()
    load = Load(plan, foreman.port, lambda number: receivers[number].url)
    faults = Faults(foreman=foreman, ollama=ollama, receivers=receivers)
    state: dict[str, Any] = {}
    healed_at = began
    try:
        for receiver in receivers:
            await receiver.start()
        await foreman.start()
        await foreman.ready()
        await asyncio.gather(load.run(), faults.run(plan))
        healed_at = time.time()
        drained = await _drained(foreman, load)
        if not drained:
            trouble.append(f"not drained {DRAIN} s after the last fault: {await foreman.ask('/healthz')}")
    except Silent as silent:
        trouble.append(str(silent))
    finally:
        for task in load.tasks:
            task.cancel()
        await asyncio.gather(*load.tasks, return_exceptions=True)
        ollama.send(signal.SIGCONT)
        foreman.send(signal.SIGCONT)
        with suppress(Silent):
            state = await ollama.control("GET", "state?bodies=1")
            await foreman.end(signal.SIGTERM)
        await ollama.end(signal.SIGKILL)
        for receiver in receivers:
            await receiver.stop()
    return {
        "seed": plan.seed,
        "began_at": began,
        "healed_at": healed_at,
        "over_at": time.time(),
        "trouble": trouble,
        "exchanges": load.log,
        "strikes": faults.log,
        "lives": foreman.lives,
        "log": foreman.log,
        "target": state,
        "target_log": ollama.log[2:],
        "deliveries": [entry for receiver in receivers for entry in receiver.log],
        "database": read_database(foreman.database),
    }


async def _drained(foreman: Foreman, load: Load) -> bool:
    """Wait until every client is through, every job over and nothing due soon at a receiver; whether that came."""
    deadline = time.time() + DRAIN
    while time.time() < deadline:
        await asyncio.sleep(0.5)
        if not foreman.alive:
            return False
        if any(not task.done() for task in load.tasks):
            continue
        if not _waiting(foreman.database, round(_clock(foreman) * 1000) + SOON):
            return True
    return False


def _clock(foreman: Foreman) -> float:
    return time.time() + float(foreman.clock.read_text())


def _waiting(database: Path, until: int) -> bool:
    """Whether a job is not over, or a delivery due until then."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        [[jobs, deliveries]] = connection.execute(
            "SELECT (SELECT count(*) FROM jobs WHERE state NOT IN ('done', 'failed')),"
            " (SELECT count(*) FROM events WHERE next_at < ?)",
            (until,),
        )
    return bool(jobs or deliveries)


def read_database(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Every table that tells of jobs, bodies of artifacts by their size and hash, and what SQLite finds wrong."""
    tables = {
        "jobs": "SELECT * FROM jobs ORDER BY seq",
        "bodies": "SELECT seq FROM bodies",
        "events": "SELECT * FROM events ORDER BY seq, sequence",
        "tries": "SELECT * FROM delivery_tries ORDER BY seq, place",
        "artifacts": "SELECT * FROM artifacts ORDER BY seq, name",
        "keys": "SELECT key, ids, kept, gone_at FROM idempotency",
        "faults": "PRAGMA integrity_check",
        "orphans": "PRAGMA foreign_key_check",
    }
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return {name: [dict(row) for row in connection.execute(query)] for name, query in tables.items()}
