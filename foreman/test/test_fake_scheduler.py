"""The stand-in's scheduler, stepped by hand: it loads, queues, evicts and leaks as Ollama does (ollama-wire §7)."""

# mypy: disallow-untyped-calls=False
# Twisted's Failure is not typed.
from __future__ import annotations

from math import inf
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from foreman.ollama.fake import FakeModel
from foreman.ollama.fake.scheduler import Busy, Lease, Scheduler, Settings

A = FakeModel(name="a", load_time=3)
B = FakeModel(name="b", load_time=3)
C = FakeModel(name="c", load_time=3)
EMBEDDER = FakeModel(name="e", load_time=1, capabilities=("embedding",))
PLAIN: Settings = (("num_ctx", 2048),)
OTHER: Settings = (("num_ctx", 512),)


class Bench:
    """A scheduler on a clock, and what its clients got."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.complaints: list[str] = []
        self.scheduler = Scheduler(self.clock, complain=self.complaints.append, **options)

    def ask(self, model: FakeModel, keep_alive: float | None = None, settings: Settings = PLAIN) -> Deferred[Lease]:
        """A client that wants a lease; cancelling is its leaving."""
        return Deferred.fromCoroutine(self.scheduler.lease(model, settings, keep_alive))

    def generate(self, model: FakeModel, seconds: float) -> Deferred[None]:
        """A client that generates for a while, then lets go."""

        async def client() -> None:
            lease = await self.scheduler.lease(model, PLAIN, None)
            try:
                await lease.turn()
                pause: Deferred[None] = Deferred()
                call = self.clock.callLater(seconds, pause.callback, None)
                try:
                    await pause
                finally:
                    if call.active():
                        call.cancel()
            finally:
                lease.release()

        return Deferred.fromCoroutine(client())

    def load(self, model: FakeModel, keep_alive: float | None = None, settings: Settings = PLAIN) -> None:
        """Have a model loaded and let go of."""
        asked = self.ask(model, keep_alive, settings)
        for _ in range(100):
            if not asked.called:
                self.clock.advance(0.1)
        got(asked).release()

    @property
    def resident(self) -> list[str]:
        """What is listed, the latest expiry first."""
        return [runner.model.name.removesuffix(":latest") for runner, _ in self.scheduler.resident()]

    @property
    def loads(self) -> list[str]:
        """What was loaded, in order."""
        return [load.model.removesuffix(":latest") for load in self.scheduler.loads]


def got(deferred: Deferred[Any]) -> Any:
    """The result that must be there by now."""
    results: list[Any] = []
    deferred.addCallback(results.append)
    assert results, "nothing yet"
    return results[0]


def leave(deferred: Deferred[Any]) -> None:
    """A client goes away."""

    def cancelled(failure: Failure) -> None:
        failure.trap(CancelledError)

    deferred.addErrback(cancelled)
    deferred.cancel()


def test_a_load_takes_its_time_and_ps_is_empty_meanwhile() -> None:
    """An empty ps does not mean idle: a model is listed when its load has ended, not before."""
    bench = Bench()
    asked = bench.ask(A)
    bench.clock.advance(2.9)
    assert (bench.resident, asked.called, bench.scheduler.loading) == ([], False, True)
    bench.clock.advance(0.1)
    assert (bench.resident, asked.called, bench.scheduler.loading) == (["a"], True, False)


def test_requests_for_the_loaded_model_pass_the_queue() -> None:
    """While B waits for A's end, new requests for A go straight in: B starves until A is idle."""
    bench = Bench()
    bench.load(A)
    holding = got(bench.ask(A))
    waiting = bench.ask(B)
    second = got(bench.ask(A))
    holding.release()
    bench.clock.advance(10)
    assert not waiting.called
    second.release()
    bench.clock.pump([0.1] * 40)
    assert waiting.called
    assert bench.loads == ["a", "b"]


def test_one_fifo_with_head_of_line_blocking() -> None:
    """Whoever heads the queue is waited for by all behind: behind a busy A, B, C, B are three loads, in that order."""
    bench = Bench()
    bench.load(A)
    clients = [bench.generate(model, 1) for model in (A, B, C, B)]
    bench.clock.pump([0.1] * 200)
    assert all(client.called for client in clients)
    assert bench.loads == ["a", "b", "c", "b"]


def test_the_queue_holds_one_more_than_its_bound() -> None:
    """With OLLAMA_MAX_QUEUE=2 three are accepted, one of them in hand, and the fourth is told to come again."""
    bench = Bench(max_queue=2)
    bench.ask(A)
    bench.ask(B)
    bench.ask(C)
    refused: list[Failure] = []
    bench.ask(EMBEDDER).addErrback(refused.append)
    assert refused[0].check(Busy)


def test_leaving_during_its_own_load_aborts_it() -> None:
    """A client's disconnect kills the load it triggered; whoever else waits for that model starts a fresh one."""
    bench = Bench()
    first, second = bench.ask(A), bench.ask(A)
    bench.clock.advance(1)
    leave(first)
    assert bench.scheduler.aborted_loads == 1
    bench.clock.advance(2.9)
    assert not second.called
    bench.clock.advance(0.1)
    assert second.called
    assert bench.loads == ["a", "a"]
    assert bench.scheduler.leaked == 0


def test_leaving_the_queue_leaks() -> None:
    """Five clients that leave, one of them in hand: four leaks, and the models they wanted are never loaded."""
    bench = Bench()
    clients = [bench.ask(model) for model in (A, B, C, B, C)]
    bench.clock.advance(1)
    for client in reversed(clients):
        leave(client)
    bench.clock.pump([0.1] * 100)
    assert bench.scheduler.leaked == 4
    assert bench.loads == ["a"]
    assert bench.scheduler.queued == 0


def test_leaving_in_hand_evicts_for_nothing() -> None:
    """A client that leaves while room is made for it is noticed too late for the model that made room."""
    bench = Bench()
    bench.load(A)
    waiting = bench.ask(B)
    leave(waiting)
    bench.clock.advance(1)
    assert (bench.resident, bench.loads, bench.scheduler.leaked) == ([], ["a"], 0)


def test_keep_alive_is_sticky() -> None:
    """A request without keep_alive keeps the previous request's value, not the five minutes."""
    bench = Bench()
    bench.load(A, keep_alive=7)
    bench.load(A)
    bench.clock.advance(6.9)
    assert bench.resident == ["a"]
    bench.clock.pump([0.1] * 2)
    assert bench.resident == []


def test_keep_alive_counts_from_the_last_end() -> None:
    """The keep-alive starts anew when the last request ends, and is stale while one runs."""
    bench = Bench()
    bench.load(A, keep_alive=10)
    bench.clock.advance(4)
    lease = got(bench.ask(A))
    bench.clock.advance(60)
    ((_, stale),) = bench.scheduler.resident()
    assert stale < bench.clock.seconds()
    lease.release()
    ((_, renewed),) = bench.scheduler.resident()
    assert renewed == bench.clock.seconds() + 10


def test_keep_alive_zero_goes_at_once_and_for_ever_stays() -> None:
    """keep_alive 0 unloads after the request; a negative one, for ever, never does."""
    bench = Bench()
    bench.load(A, keep_alive=inf)
    bench.clock.advance(1e9)
    assert bench.resident == ["a"]
    bench.load(A, keep_alive=0)
    bench.clock.advance(0.03)
    assert bench.resident == []


def test_for_ever_is_a_time_that_stands_still() -> None:
    """A model that stays for ever expires in 292 years from its last end, and that does not move on its own."""
    bench = Bench()
    bench.load(A, keep_alive=inf)
    [(_, expires_at)] = bench.scheduler.resident()
    ended = bench.clock.seconds()
    assert expires_at == ended + 2**63 / 1e9
    bench.clock.advance(7)
    assert [moment for _, moment in bench.scheduler.resident()] == [expires_at]
    bench.load(A)
    assert [moment - expires_at for _, moment in bench.scheduler.resident()] == [bench.clock.seconds() - ended]


def test_unload_is_ignored_while_loading() -> None:
    """An unload request for a model that is still loading does nothing at all."""
    bench = Bench()
    asked = bench.ask(A)
    bench.clock.advance(1)
    bench.scheduler.expire(A)
    bench.clock.advance(2)
    got(asked).release()
    bench.clock.advance(60)
    assert bench.resident == ["a"]


def test_unload_waits_for_the_busy() -> None:
    """An unload request for a busy model keeps it listed until the accepted requests have ended, and a moment more."""
    bench = Bench()
    bench.load(A)
    running, accepted = bench.generate(A, 2), bench.generate(A, 2)
    bench.scheduler.expire(A)
    bench.clock.pump([0.5] * 8)
    assert running.called
    assert accepted.called
    assert bench.resident == ["a"]
    bench.clock.advance(0.03)
    assert bench.resident == []


def test_load_time_options_reload() -> None:
    """The same model with another num_ctx is another load."""
    bench = Bench()
    bench.load(A)
    bench.load(A, settings=OTHER)
    bench.load(A, settings=OTHER)
    assert bench.loads == ["a", "a"]


def test_two_slots_evict_the_shortest_keep_alive() -> None:
    """The idle model with the shortest keep-alive makes room; the pinned embedder stays."""
    bench = Bench(slots=2)
    bench.load(EMBEDDER, keep_alive=inf)
    bench.load(A, keep_alive=60)
    bench.load(B, keep_alive=60)
    assert sorted(bench.resident) == ["b", "e"]


def test_two_slots_with_equal_keep_alives_evict_the_embedder() -> None:
    """With equal keep-alives the embedder goes as readily as the old worker: here it always does."""
    bench = Bench(slots=2)
    bench.load(EMBEDDER, keep_alive=inf)
    bench.load(A, keep_alive=inf)
    bench.load(B, keep_alive=inf)
    assert sorted(bench.resident) == ["a", "b"]


def test_two_slots_prefer_the_idle() -> None:
    """A busy model is not evicted while an idle one with a longer keep-alive is there."""
    bench = Bench(slots=2)
    bench.load(A, keep_alive=60)
    got(bench.ask(A))
    bench.load(B, keep_alive=inf)
    bench.load(C)
    assert sorted(bench.resident) == ["a", "c"]


def test_two_names_of_one_blob_share_a_runner() -> None:
    """A copy of a model is loaded when the model is."""
    bench = Bench()
    bench.load(A)
    bench.load(FakeModel(name="copy-of-a", blob=A.blob))
    assert bench.loads == ["a"]


def test_one_generation_at_a_time_and_waiting_is_counted() -> None:
    """OLLAMA_NUM_PARALLEL is 1: the second waits at the semaphore, which is no overlap but is counted."""
    bench = Bench()
    bench.load(A)
    first, second = bench.generate(A, 2), bench.generate(A, 2)
    bench.clock.advance(2)
    assert (first.called, second.called) == (True, False)
    bench.clock.advance(2)
    assert second.called
    assert (bench.scheduler.max_waiting, bench.scheduler.overlaps) == (1, [])


def test_overlapping_workers_are_complained_of_loudly() -> None:
    """Two worker models that generate at once are recorded and complained of; an embedding beside one is not."""
    bench = Bench(slots=3)
    bench.load(EMBEDDER)
    bench.load(A)
    bench.load(B)
    bench.generate(A, 2)
    bench.generate(EMBEDDER, 2)
    assert bench.scheduler.overlaps == []
    bench.generate(B, 2)
    (overlap,) = bench.scheduler.overlaps
    assert overlap.models == ("a:latest", "b:latest")
    assert "OVERLAP" in bench.complaints[0]


@pytest.mark.parametrize("running", [0.5, 1.5])
def test_leaving_frees_the_turn(running: float) -> None:
    """A client that leaves in the middle of its answer, or while it waits for its turn, holds nobody up."""
    bench = Bench()
    bench.load(A)
    first, second, third = (bench.generate(A, 1) for _ in range(3))
    bench.clock.advance(0.2)
    leave(second)
    leave(first)
    bench.clock.advance(1)
    assert third.called
    assert bench.scheduler.generating == ()
