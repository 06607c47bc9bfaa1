"""How soon the target's connection is closed after a client has gone."""

from __future__ import annotations

import time
from statistics import median

from benchmarks.processes import Bench, Foreman, Stub
from benchmarks.results import Result, at_most, percentile, told
from benchmarks.wire import Connection, chat, lines_model

STREAMING = lines_model(100_000, interval=10)
SILENT = lines_model(8, delay=60_000)

MODES = {
    "within a stream": (chat(STREAMING), True),
    "before the first byte of a stream": (chat(SILENT), False),
    "before an unstreamed answer": (chat(SILENT, stream=False), False),
}
"""Requests, and whether bytes of the answer come before the client leaves."""


def measure(bench: Bench) -> list[Result]:
    """Milliseconds from the client's close to the close that the target sees."""
    times = bench.few(100, 20)
    results = []
    with bench.stub(STREAMING, SILENT) as stub, bench.foreman(stub.port) as foreman:
        for mode, (request, speaks) in MODES.items():
            taken = [_leave(stub, foreman, request, speaks) * 1000 for _ in range(times)]
            results += [
                told(f"client gone {mode}, p50", median(taken), "ms"),
                at_most(f"client gone {mode}, p99", percentile(taken, 99), "ms", 50),
            ]
    return results


def _leave(stub: Stub, foreman: Foreman, request: bytes, speaks: bool) -> float:
    stub.events()
    client = Connection(foreman.port)
    client.socket.sendall(request)
    if speaks:
        client.receive()
    else:
        _wait_for(stub, "r")
    time.sleep(0.01)
    left = time.monotonic()
    client.close()
    return _wait_for(stub, "g") - left


def _wait_for(stub: Stub, wanted: str) -> float:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for kind, at in stub.events():
            if kind == wanted:
                return at
        time.sleep(0.002)
    raise AssertionError(f"the target saw no {wanted} within 5 s")
