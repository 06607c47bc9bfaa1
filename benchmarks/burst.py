"""Loads and makespan of a burst of chats over four models with load times as real ones have, at FakeOllama.

The best that can be done is measured too: a client that sends one model's chats after another's straight to the
target, one at a time.  So is what happens without foreman: all of them straight to the target at once, first come
first served.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Sequence

from attrs import frozen

from benchmarks.processes import Bench, Fake
from benchmarks.results import Result, at_most, told
from benchmarks.wire import Connection, chat

MODELS = ("model-a", "model-b", "model-c", "model-d")


@frozen
class Burst:
    """How it went: how many loads, and seconds from the first request to the last answer."""

    loads: int
    makespan: float


def measure(bench: Bench) -> list[Result]:
    """Forty chats with and without foreman; two hundred with it and in the best order."""
    results = []
    chats = bench.few(40, 12)
    order = [model for _ in range(chats // 4) for model in MODELS]
    random.Random(1).shuffle(order)
    with bench.fake(_models(load=1.0)) as fake, bench.foreman(fake.port) as foreman:
        through = _burst(fake, foreman.port, order)
    with bench.fake(_models(load=1.0)) as fake:
        direct = _burst(fake, fake.port, order)
    results += [
        at_most(f"{chats} chats over 4 models, loads", through.loads, "", len(MODELS)),
        told(f"{chats} chats over 4 models, loads without foreman", direct.loads, ""),
        told(f"{chats} chats over 4 models, makespan", through.makespan, "s"),
        told(f"{chats} chats over 4 models, makespan without foreman", direct.makespan, "s"),
    ]
    jobs = bench.few(200, 20)
    order = [model for _ in range(jobs // 4) for model in MODELS]
    random.Random(2).shuffle(order)
    with bench.fake(_models(load=2.0)) as fake, bench.foreman(fake.port) as foreman:
        through = _burst(fake, foreman.port, order)
    with bench.fake(_models(load=2.0)) as fake:
        best = _one_by_one(fake, sorted(order))
    results += [
        at_most(f"{jobs} jobs over 4 models, loads", through.loads, "", len(MODELS)),
        told(f"{jobs} jobs over 4 models, makespan", through.makespan, "s"),
        at_most(f"{jobs} jobs over 4 models, makespan / best", through.makespan / best.makespan, "x", 1.03),
    ]
    return results


def _models(*, load: float) -> str:
    """Models that take so many seconds to load and some 0.1 s for a chat."""
    words = "alpha+bravo+charlie+delta+echo+foxtrot"
    return ";".join(f"{name},load={load},prompt=0.04,rate=100,words={words}" for name in MODELS)


def _burst(fake: Fake, port: int, order: Sequence[str]) -> Burst:
    """Everybody asks at once, a little apart so that their order is certain."""
    loads = fake.loads()
    clients = [Connection(port) for _ in order]
    started = time.monotonic()
    for client, model in zip(clients, order, strict=True):
        client.socket.sendall(chat(model))
        time.sleep(0.001)
    for client in clients:
        client.socket.settimeout(120)
        for _ in client.pieces():
            pass
        client.socket.shutdown(socket.SHUT_RDWR)
        client.close()
    return Burst(fake.loads() - loads, time.monotonic() - started)


def _one_by_one(fake: Fake, order: Sequence[str]) -> Burst:
    loads = fake.loads()
    started = time.monotonic()
    with Connection(fake.port) as client:
        for model in order:
            client.timed(chat(model))
    return Burst(fake.loads() - loads, time.monotonic() - started)
