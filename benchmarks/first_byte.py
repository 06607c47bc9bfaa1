"""What foreman adds to a small streamed sync chat of one client, its row committed first.

Held against no proxy at all, nginx, and a Starlette + httpx proxy that stores nothing.
"""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median

from benchmarks.processes import Bench, Missing
from benchmarks.results import Result, at_most, percentile, told
from benchmarks.wire import Connection, Timing, chat, lines_model

MODEL = lines_model(4, interval=3)
"""Tokens come one after another: were they all there at once, the head would share the work of the end."""
WARM_UP = 5
"""Calls at the start of a round that are not counted: the first may need a load request."""


def measure(bench: Bench) -> list[Result]:
    """Milliseconds until the first byte and until the last, over those without a proxy."""
    rounds, calls = bench.few(8, 4), bench.few(40, 20)
    with ExitStack() as stack:
        stub = stack.enter_context(bench.stub(MODEL))
        ports = {"direct": stub.port, "foreman": stack.enter_context(bench.foreman(stub.port)).port}
        for name, proxy in (("nginx", bench.nginx), ("starlette+httpx", bench.plain_proxy)):
            try:
                ports[name] = stack.enter_context(proxy(stub.port)).port
            except Missing as missing:
                print(f"  left out: there is no {missing}")
        times: dict[str, list[Timing]] = {name: [] for name in ports}
        for _ in range(rounds):
            for name, port in ports.items():
                with Connection(port) as connection:
                    times[name] += [connection.timed(chat(MODEL)) for _ in range(calls + WARM_UP)][WARM_UP:]
    first = {name: [timing.first_byte * 1000 for timing in taken] for name, taken in times.items()}
    total = {name: median(timing.total * 1000 for timing in taken) for name, taken in times.items()}
    added = {name: median(taken) - median(first["direct"]) for name, taken in first.items()}
    results = [
        told("first byte, direct, p50", median(first["direct"]), "ms"),
        at_most("first byte, added by foreman, p50", added["foreman"], "ms", 1.2),
        told("first byte, added by foreman, p99", percentile(first["foreman"], 99) - median(first["direct"]), "ms"),
        told("whole answer, added by foreman, p50", total["foreman"] - total["direct"], "ms"),
    ]
    if "nginx" in added:
        results.append(told("first byte, added by nginx, p50", added["nginx"], "ms"))
    if "starlette+httpx" in added:
        results += [
            told("first byte, added by starlette+httpx, p50", added["starlette+httpx"], "ms"),
            at_most("first byte, foreman / starlette+httpx", added["foreman"] / added["starlette+httpx"], "x", 1.5),
        ]
    return results
