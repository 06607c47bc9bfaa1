"""How soon work goes on when the target is back, having been gone (it refuses) or asleep (it says nothing)."""

from __future__ import annotations

import random
import signal
import time

from benchmarks.processes import Bench, Foreman, Stub, free_port, wait_until
from benchmarks.results import Result, at_most
from benchmarks.wire import Connection, chat, lines_model

MODEL = lines_model(8)


def measure(bench: Bench) -> list[Result]:
    """Seconds from its return to the first job at the target: the longest of several."""
    return [
        at_most("target back after refusing, until the first job is there, longest", _gone(bench), "s", 2),
        at_most("target back after sleep, until the first job is there, longest", _asleep(bench), "s", 2),
    ]


def _gone(bench: Bench) -> float:
    waits = []
    port = free_port()
    with bench.foreman(port, wait=False, POLL_INTERVAL="1s") as foreman:
        foreman.wait_until_ready()
        with bench.stub(MODEL, port=port):
            wait_until(lambda: _state(foreman) == "up")
        for _ in range(bench.few(5, 2)):
            wait_until(lambda: _state(foreman) == "down")
            with Connection(foreman.port) as client:
                client.socket.sendall(chat(MODEL))
                # At no certain moment between two probes.
                time.sleep(1 + random.random())
                back = time.monotonic()
                with bench.stub(MODEL, port=port) as stub:
                    waits.append(_first_job(stub) - back)
                    for _ in client.pieces():
                        pass
    return max(waits)


def _asleep(bench: Bench) -> float:
    waits = []
    with bench.stub(MODEL) as stub, bench.foreman(stub.port, POLL_INTERVAL="1s") as foreman:
        for _ in range(bench.few(2, 1)):
            stub.process.send_signal(signal.SIGSTOP)
            # Each call of a poll under way takes its ten seconds to fail.
            wait_until(lambda: _state(foreman) == "down", within=60)
            with Connection(foreman.port) as client:
                client.socket.sendall(chat(MODEL))
                time.sleep(1 + random.random())
                back = time.monotonic()
                stub.process.send_signal(signal.SIGCONT)
                waits.append(_first_job(stub) - back)
                for _ in client.pieces():
                    pass
            wait_until(lambda: _state(foreman) == "up")
            time.sleep(0.5)  # the poll that follows is over
    return max(waits)


def _state(foreman: Foreman) -> str:
    return str(foreman.health()["target"]["state"])


def _first_job(stub: Stub) -> float:
    """When the first chat came, on the clock of `time.monotonic`."""
    seen: list[float] = []

    def came() -> bool:
        seen.extend(at for kind, at in stub.events() if kind == "r")
        return bool(seen)

    wait_until(came)
    return seen[0]
