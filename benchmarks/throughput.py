"""Jobs a second through the worker: 32 clients with one small chat after another, at a target that answers at once."""

from __future__ import annotations

import time
from statistics import median

from benchmarks.processes import Bench, Foreman
from benchmarks.results import Result, at_least, told
from benchmarks.wire import Crowd, chat, lines_model

CLIENTS = 32
MODEL = lines_model(8)


def measure(bench: Bench) -> list[Result]:
    """Jobs a second, and processor time a job; the load without foreman shows that the ends are no bottleneck."""
    rounds, seconds = bench.few(5, 2), bench.few(2, 1)
    rates: dict[str, list[float]] = {"foreman": [], "direct": []}
    costs = []
    with bench.stub(MODEL) as stub, bench.foreman(stub.port) as foreman:
        _rate(foreman.port, 0.3)
        for _ in range(rounds):
            for name, server in (("foreman", foreman), ("direct", stub)):
                before = server.cpu()
                rate, finished = _rate(server.port, seconds)
                rates[name].append(rate)
                if isinstance(server, Foreman):
                    costs.append((server.cpu() - before) / finished)
    return [
        at_least(f"jobs through the worker, {CLIENTS} clients", median(rates["foreman"]), "/s", 1500),
        told("processor time of a job", median(costs) * 1e6, "µs"),
        told(f"the same calls without foreman, {CLIENTS} clients", median(rates["direct"]), "/s"),
    ]


def _rate(port: int, seconds: float) -> tuple[float, int]:
    """Answers a second, and how many there were."""
    request = chat(MODEL)
    with Crowd(port, CLIENTS) as crowd:
        started = time.monotonic()
        crowd.send(request)
        crowd.run(lambda: time.monotonic() - started > seconds, again=request)
        finished = crowd.finished
        passed = time.monotonic() - started
        crowd.run(lambda: crowd.finished == finished + CLIENTS)
    return finished / passed, finished
