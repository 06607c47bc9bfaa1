"""Memory that many jobs leave behind."""

from __future__ import annotations

import time

from benchmarks.processes import Bench
from benchmarks.results import Result, at_most, told
from benchmarks.wire import Crowd, chat, lines_model

CLIENTS = 32
MODEL = lines_model(8)


def measure(bench: Bench) -> list[Result]:
    """Resident bytes after ten thousand jobs, over those after one thousand."""
    first, last = 1000, bench.few(10_000, 3_000)
    sizes = {}
    request = chat(MODEL)
    with bench.stub(MODEL) as stub, bench.foreman(stub.port) as foreman:
        for goal, before in ((first, 0), (last, first)):
            with Crowd(foreman.port, CLIENTS) as crowd:
                crowd.send(request)
                crowd.run(lambda crowd=crowd, more=goal - before: crowd.finished >= more, again=request)  # type: ignore[misc]
                finished = crowd.finished
                crowd.run(lambda crowd=crowd, wanted=finished + CLIENTS: crowd.finished == wanted)  # type: ignore[misc]
            time.sleep(1)
            sizes[goal] = foreman.memory()
    return [
        at_most(f"memory, growth from job {first} to job {last}", (sizes[last] - sizes[first]) / 2**20, "MiB", 2),
        told(f"memory after {last} jobs", sizes[last] / 2**20, "MiB"),
    ]
