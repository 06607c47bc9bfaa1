"""How long the target has nothing to do between two jobs of one runner while many wait, sync calls or async jobs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from statistics import median

from benchmarks.processes import Bench, Foreman, Stub, wait_until
from benchmarks.results import Result, at_most, percentile
from benchmarks.wire import Connection, ask, chat, lines_model

BLOCKER = lines_model(1, delay=3_600_000)
MODEL = lines_model(1)


def measure(bench: Bench) -> list[Result]:
    """Milliseconds from the end of an answer until the next request has come."""
    sync = _measure(bench, bench.few(2_000, 500), _send)
    posted = _measure(bench, bench.few(10_000, 2_000), _post)
    results = []
    for kind, gaps in (("sync calls", sync), ("async jobs", posted)):
        count = len(gaps) + 1
        results += [
            at_most(f"gap between two {kind}, {count} queued, p50", median(gaps) * 1000, "ms", 1),
            at_most(f"gap between two {kind}, {count} queued, p99", percentile(gaps, 99) * 1000, "ms", 5),
        ]
    return results


def _measure(bench: Bench, count: int, fill: Callable[[Foreman, int, ExitStack], None]) -> list[float]:
    with bench.stub(BLOCKER, MODEL) as stub, bench.foreman(stub.port) as foreman, ExitStack() as clients:
        # The queue is filled while a job that does not end is at the target; its client then leaves.
        blocker = Connection(foreman.port)
        blocker.socket.sendall(chat(BLOCKER))
        wait_until(lambda: any(kind == "r" for kind, _ in stub.events()))
        fill(foreman, count, clients)
        wait_until(lambda: foreman.queued() == count)
        blocker.close()
        return _gaps(stub, count)


def _send(foreman: Foreman, count: int, clients: ExitStack) -> None:
    """Have so many clients make a call and wait."""
    for _ in range(count):
        client = clients.enter_context(Connection(foreman.port))
        client.socket.sendall(chat(MODEL))


def _post(foreman: Foreman, count: int, clients: ExitStack) -> None:
    """Leave so many jobs, a thousand at a time."""
    line = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Say something."}]}).encode() + b"\n"
    for _ in range(count // 1000):
        status, answer = ask(foreman.port, "POST", "/jobs", line * 1000, "application/x-ndjson")
        assert status == 202, answer


def _gaps(stub: Stub, count: int) -> list[float]:
    """Seconds between each end and the next beginning, until so many jobs have ended."""
    events: list[tuple[str, float]] = []

    def all_over() -> bool:
        time.sleep(0.3)  # not to be in the way
        events.extend(stub.events())
        return sum(kind == "d" for kind, _ in events) >= count

    wait_until(all_over, within=60)
    return [then - now for (kind, now), (next_kind, then) in pairwise(events) if (kind, next_kind) == ("d", "r")]
