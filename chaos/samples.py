"""How much foreman's process holds, looked at from outside every few seconds, over all its lives."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from attrs import define, field

from chaos.archive import Archive, opened
from chaos.processes import Foreman

EVERY = 5.0
"""Seconds between two looks."""

MIB = 2**20

COUNTS = """
    SELECT count(*) AS jobs, count(*) FILTER (WHERE state NOT IN ('done', 'failed')) AS queue FROM jobs
"""

Sample = Mapping[str, float]
"""`at`: Unix seconds, `life`: which process, and each of the series of `chaos.flat` by its name."""


@define(eq=False)
class Sampler:
    """Looks at foreman's process and its database.

    :ivar samples: what it saw; nothing while there was no process.
    """

    samples: list[Sample] = field(factory=list)

    async def run(self, foreman: Foreman, archive: Archive) -> None:
        """Look until cancelled; rows are kept before they are pruned."""
        while True:
            with suppress(sqlite3.Error):  # not there yet, or just coming back from a kill
                archive.read()
            # Who ends in the middle of a look was not seen.
            with suppress(OSError, sqlite3.Error):
                if foreman.alive:
                    self.samples.append(sample(foreman.pid, len(foreman.lives), foreman.database))
            await asyncio.sleep(EVERY)


def sample(pid: int, life: int, database: Path) -> Sample:
    """One look.

    :raise OSError, sqlite3.Error: there is no such process, or no database.
    """
    process = Path("/proc") / str(pid)
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    if "VmRSS" not in status:
        raise ProcessLookupError(f"{pid} is ending")
    log = database.with_name(database.name + "-wal")
    with opened(database) as connection:
        counts = dict(connection.execute(COUNTS).fetchone())
    return {
        "at": round(time.time(), 1),
        "life": life,
        "memory": round(int(status["VmRSS"].split()[0]) / 1024, 2),
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "log": round(log.stat().st_size / MIB, 2) if log.exists() else 0.0,
        "database": round(database.stat().st_size / MIB, 2),
        **counts,
    }
