"""One round: foreman, its target and its receivers are started, loaded and struck; then all is mended and has to drain.

What everybody saw is the round's *evidence*, a plain dict, and `chaos.checker` judges it (see there for its shape).
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from chaos.archive import Archive, opened
from chaos.faults import Faults
from chaos.load import Load
from chaos.plan import EMBEDDER, RECEIVERS, Plan
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
    "WEBHOOK_SECRET": SECRET,
    "EMBED_MODEL": EMBEDDER,
}
"""foreman's, so that what takes minutes in life takes seconds here."""

DRAIN = 120.0
"""Seconds in which everything has to come to its end once the faults are over."""

SOON = 3_000
"""Milliseconds: deliveries due within them are waited for."""


Beside = Callable[[Foreman, Archive], Awaitable[None]]


async def run(
    plan: Plan, folder: Path, *, ttl: float = 300 * 86_400, quiet: float = 0.0, beside: Beside | None = None
) -> dict[str, Any]:
    """Run a round in an empty folder; gives the evidence.

    :param ttl: seconds for which foreman keeps jobs.
    :param quiet: seconds of peace after each stretch of faults.
    :param beside: done all the while, cancelled at the end.
    """
    receivers = [Receiver(number) for number in range(RECEIVERS)]
    ollama = Ollama()
    await ollama.start()
    await ollama.ready()
    settings = SETTINGS | {"HOLD_LINE": "0" if plan.seed % 2 else "7s", "JOB_TTL": f"{ttl:.0f}s"}
    foreman = Foreman(folder, ollama.url, settings)
    trouble: list[str] = []
    began = time.time()
    load = Load(plan, foreman.port, lambda number: receivers[number].url)
    faults = Faults(foreman=foreman, ollama=ollama, receivers=receivers)
    archive = Archive(foreman.database)
    aside: list[asyncio.Future[None]] = []
    state: dict[str, Any] = {}
    healed_at = began
    try:
        for receiver in receivers:
            await receiver.start()
        await foreman.start()
        await foreman.ready()
        if beside is not None:
            aside.append(asyncio.ensure_future(beside(foreman, archive)))
        await asyncio.gather(load.run(), _stretches(faults, plan, quiet))
        healed_at = time.time()
        drained = await _drained(foreman, load)
        if not drained:
            trouble.append(f"not drained {DRAIN} s after the last fault: {await foreman.ask('/healthz')}")
    except (Silent, OSError) as error:  # a process that has ended by itself cannot be struck
        trouble.append(str(error))
    finally:
        for task in (*aside, *load.tasks):
            task.cancel()
        await asyncio.gather(*load.tasks, return_exceptions=True)
        ends = await asyncio.gather(*aside, return_exceptions=True)
        trouble += [f"who watched fell asleep: {end!r}" for end in ends if isinstance(end, Exception)]
        ollama.send(signal.SIGCONT)
        foreman.send(signal.SIGCONT)
        with suppress(Silent):
            state = await ollama.seen()
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
        "target_log": ollama.log,
        "deliveries": [entry for receiver in receivers for entry in receiver.log],
        "ttl": ttl,
        "database": archive.evidence(entry["job"] for entry in load.log if entry["does"] == "delete"),
    }


async def _stretches(faults: Faults, plan: Plan, quiet: float) -> None:
    """Strike as planned, with peace after each stretch."""
    for strikes in plan.stretches:
        await faults.run(strikes)
        await asyncio.sleep(quiet)


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
    with opened(database) as connection:
        [[jobs, deliveries]] = connection.execute(
            "SELECT (SELECT count(*) FROM jobs WHERE state NOT IN ('done', 'failed')),"
            " (SELECT count(*) FROM events WHERE next_at < ?)",
            (until,),
        )
    return bool(jobs or deliveries)
