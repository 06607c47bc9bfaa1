"""Jobs a second through the worker: 32 clients with one small chat after another, at a target that answers at once."""

from __future__ import annotations

import time
from contextlib import ExitStack
from statistics import median

from benchmarks.processes import Bench, Running
from benchmarks.results import Result, at_least, told
from benchmarks.wire import Crowd, lines_model

CLIENTS = 32
MODEL = lines_model(8)


def measure(bench: Bench) -> list[Result]:
    """Jobs a second and processor time a job; the calls without a proxy show that the two ends are no bottleneck."""
    rounds, seconds = bench.few(5, 2), bench.few(2, 1)
    with ExitStack() as stack:
        stub = stack.enter_context(bench.stub(MODEL))
        servers: dict[str, Running] = {"foreman": stack.enter_context(bench.foreman(stub.port)), "no proxy": stub}
        servers |= bench.peers(stack, stub.port)
        rates: dict[str, list[float]] = {name: [] for name in servers}
        costs: dict[str, list[float]] = {name: [] for name in servers if name != "no proxy"}
        for server in servers.values():
            _rate(server, 0.0)  # the first calls of some take seconds; nobody's are counted
        for _ in range(rounds):
            for name, server in servers.items():
                before = server.cpu() if name in costs else 0.0
                rate, finished = _rate(server, seconds)
                rates[name].append(rate)
                if name in costs:
                    costs[name].append((server.cpu() - before) / finished)
    results = [at_least(f"jobs through the worker, {CLIENTS} clients", median(rates["foreman"]), "/s", 1500)]
    for name in servers:
        if name != "foreman":
            results.append(told(f"the same calls with {name}, {CLIENTS} clients", median(rates[name]), "/s"))
        if name in costs:
            results.append(told(f"processor time of a call with {name}", median(costs[name]) * 1e6, "µs"))
    return results


def _rate(server: Running, seconds: float) -> tuple[float, int]:
    """Answers a second, and how many there were; those under way when the time is over are waited for and counted."""
    request = server.chat(MODEL)
    with Crowd(server.port, CLIENTS) as crowd:
        started = time.monotonic()
        crowd.send(request)
        crowd.run(lambda: time.monotonic() - started > seconds, again=request)
        wanted = crowd.finished + CLIENTS
        crowd.run(lambda: crowd.finished == wanted)
        return wanted / (time.monotonic() - started), wanted
