"""What foreman adds to a small streamed sync chat of one client, its row committed first.

Held against no proxy at all and against others, none of which stores anything: nginx, Starlette + httpx as a proxy is
commonly written, and LiteLLM's proxy, which translates between OpenAI's wire and Ollama's besides.
"""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median

from benchmarks.processes import Bench, Running
from benchmarks.results import Result, at_most, percentile, told
from benchmarks.wire import Connection, Timing, lines_model

MODEL = lines_model(4, interval=3)
"""Tokens come one after another: were they all there at once, the head would share the work of the end."""
WARM_UP = 5
"""Calls at the start of a round that are not counted: the first may need a load request."""


def measure(bench: Bench) -> list[Result]:
    """Milliseconds until the first byte and until the last, over those without a proxy."""
    rounds, calls = bench.few(8, 4), bench.few(40, 20)
    with ExitStack() as stack:
        stub = stack.enter_context(bench.stub(MODEL))
        servers: dict[str, Running] = {"direct": stub, "foreman": stack.enter_context(bench.foreman(stub.port))}
        peers = bench.peers(stack, stub.port)
        servers |= peers
        times: dict[str, list[Timing]] = {name: [] for name in servers}
        for _ in range(rounds):
            for name, server in servers.items():
                wanted = server.chat(MODEL)
                with Connection(server.port) as connection:
                    times[name] += [connection.timed(wanted) for _ in range(calls + WARM_UP)][WARM_UP:]
    first = {name: [timing.first_byte * 1000 for timing in taken] for name, taken in times.items()}
    total = {name: median(timing.total * 1000 for timing in taken) for name, taken in times.items()}
    added = {name: median(taken) - median(first["direct"]) for name, taken in first.items()}
    results = [
        told("first byte, direct, p50", median(first["direct"]), "ms"),
        at_most("first byte, added by foreman, p50", added["foreman"], "ms", 1.2),
        told("first byte, added by foreman, p99", percentile(first["foreman"], 99) - median(first["direct"]), "ms"),
        told("whole answer, added by foreman, p50", total["foreman"] - total["direct"], "ms"),
    ]
    results += [told(f"first byte, added by {name}, p50", added[name], "ms") for name in peers]
    if "starlette+httpx" in peers:
        ratio = added["foreman"] / added["starlette+httpx"]
        results.append(at_most("first byte, foreman / starlette+httpx", ratio, "x", 1.5))
    return results
