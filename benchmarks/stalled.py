"""Memory while 200 MB stream past for a client that stops to read for a while."""

from __future__ import annotations

import time

from benchmarks.processes import Bench
from benchmarks.results import Result, at_most, told
from benchmarks.wire import Connection, chat, lines_model

LINE = 4096
BYTES = 200_000_000
MODEL = lines_model(BYTES // LINE, size=LINE)
SMALL = lines_model(8)
MIB = 2**20


def measure(bench: Bench) -> list[Result]:
    """Growth of the peak of resident bytes."""
    with bench.stub(MODEL, SMALL) as stub, bench.foreman(stub.port) as foreman:
        with Connection(foreman.port) as warm:
            for _ in range(2):
                warm.timed(chat(SMALL))
        before = foreman.memory()
        foreman.forget_peak()
        with Connection(foreman.port, receive_buffer=65536) as client:
            client.socket.sendall(chat(MODEL))
            client.receive()
            time.sleep(bench.few(5, 2))
            stalled = foreman.peak() - before
            started = time.perf_counter()
            size = sum(map(len, client.pieces()))
            seconds = time.perf_counter() - started
        streamed = foreman.peak() - before
    assert size > BYTES * 0.99
    return [
        at_most("200 MB past a reader that stalls, growth of memory in the stall", stalled / MIB, "MiB", 2),
        at_most("200 MB past a reader that stalls, growth of memory in all", streamed / MIB, "MiB", 2),
        told("200 MB once it reads again, speed", size / seconds / 1e6, "MB/s"),
    ]
