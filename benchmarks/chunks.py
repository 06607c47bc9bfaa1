"""What foreman adds to each chunk of a stream: time with one stream, processor time with fifty at once.

foreman runs one generation at a time, so the fifty are streams it carries without a queue: of `:cloud` models.
"""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from statistics import median

from benchmarks.processes import Bench, Running
from benchmarks.results import Result, at_most, told
from benchmarks.wire import Connection, Crowd, lines_model

STREAMS = 50
INTERVAL = 10

GO_TO_NGINX = 54 / 34
"""A Go reverse proxy's processor time for a chunk over nginx's, where both were measured."""

_MADE_AT = re.compile(rb'"content": ?"([0-9]{16})x')


def measure(bench: Bench) -> list[Result]:
    """Microseconds a chunk, over those without a proxy; and against nginx."""
    rounds, lines = bench.few(3, 1), bench.few(200, 100)
    one, carried = lines_model(lines, interval=INTERVAL), lines_model(lines, interval=INTERVAL) + ":cloud"
    with ExitStack() as stack:
        stub = stack.enter_context(bench.stub(one))
        servers: dict[str, Running] = {"direct": stub, "foreman": stack.enter_context(bench.foreman(stub.port))}
        servers |= bench.peers(stack, stub.port)
        ages: dict[str, list[float]] = {name: [] for name in servers}
        costs: dict[str, list[float]] = {name: [] for name in servers}
        for _ in range(rounds):
            for name, server in servers.items():
                ages[name] += _ages(server, one)
                if server is not stub:
                    costs[name].append(_cost(server, carried, lines))
    added = {name: (median(taken) - median(ages["direct"])) * 1e6 for name, taken in ages.items()}
    cost = {name: median(taken) * 1e6 for name, taken in costs.items() if taken}
    results = []
    for name, seconds in added.items():
        if name != "direct":
            results.append(told(f"a chunk of one stream, added by {name}, p50", seconds, "µs"))
            results.append(told(f"a chunk of {STREAMS} streams, processor time of {name}", cost[name], "µs"))
    if "nginx" in added:
        results += [
            at_most("a chunk of one stream, foreman / nginx", added["foreman"] / added["nginx"], "x", 1.25),
            at_most(
                f"a chunk of {STREAMS} streams, processor time, foreman / nginx",
                cost["foreman"] / cost["nginx"],
                "x",
                round(GO_TO_NGINX, 2),
            ),
        ]
    return results


def _ages(server: Running, model: str) -> list[float]:
    """Seconds from the making of each line until the client had it."""
    ages = []
    with Connection(server.port) as connection:
        connection.socket.sendall(server.chat(model))
        for piece in connection.pieces():
            now = time.monotonic()
            ages += [now - int(made) / 1e6 for made in _MADE_AT.findall(piece)]
    return ages


def _cost(server: Running, model: str, lines: int) -> float:
    """Seconds of processor time for one chunk of many streams at once."""
    with Crowd(server.port, STREAMS) as crowd:
        before = server.cpu()
        crowd.send(server.chat(model))
        crowd.run(lambda: crowd.finished == STREAMS)
        return (server.cpu() - before) / (STREAMS * lines)
