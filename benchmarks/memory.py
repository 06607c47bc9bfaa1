"""Memory: of an idle foreman, and of one before whom 1,000 and 5,000 sync clients wait."""

from __future__ import annotations

import time

from benchmarks.processes import Bench, wait_until
from benchmarks.results import Result, at_most, told
from benchmarks.wire import Connection, chat, lines_model

BLOCKER = lines_model(1, delay=3_600_000)
MIB, KIB = 2**20, 2**10


def measure(bench: Bench) -> list[Result]:
    """Resident bytes, once they have settled."""
    few, many = bench.few(1000, 200), bench.few(5000, 1000)
    clients: list[Connection] = []
    with bench.stub(BLOCKER) as stub, bench.foreman(stub.port) as foreman:
        time.sleep(1)
        idle = foreman.memory()
        sizes = {}
        try:
            for count in (few, many):
                # One is at the target; the others wait.
                while len(clients) <= count:
                    clients.append(Connection(foreman.port))
                    clients[-1].socket.sendall(chat(BLOCKER))
                wait_until(lambda count=count: foreman.queued() == count)  # type: ignore[misc]
                time.sleep(0.5)
                sizes[count] = foreman.memory()
        finally:
            for client in clients:
                client.close()
    each = (sizes[many] - sizes[few]) / (many - few)
    return [
        at_most("memory, idle", idle / MIB, "MiB", 70),
        told(f"memory, {few} sync clients wait", sizes[few] / MIB, "MiB"),
        at_most(f"memory, {many} sync clients wait", sizes[many] / MIB, "MiB", 200),
        at_most("memory, each waiting sync client", each / KIB, "KiB", 25),
    ]
