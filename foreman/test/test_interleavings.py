"""What happens when two things happen at once: leaving, pausing, stopping and polling in each other's midst."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from foreman.detach import detach
from foreman.ollama.fake import Fault, default_models
from foreman.ollama.fake.models import FakeModel
from foreman.test.harness import House, RawClient, chat, eventually, house, request_bytes, unhurried
from foreman.test.test_moods import beat, bodies, idle, loads_asked
from foreman.work import residency

SLOW = default_models(token_rate=20.0)


def generations(here: House) -> list[str]:
    """The models of the chats the target got, in order."""
    return [body["model"] for body in bodies(here, "/api/chat")]


def is_open(here: House, path: str) -> bool:
    """Whether the target has a request on that path that it has not answered."""
    return any(record.path == path and record.outcome == "open" for record in here.fake.requests)


def held_back(call: Callable[..., Awaitable[Any]], gate: Deferred[None]) -> Callable[..., Awaitable[Any]]:
    """The same call, which the gate must open for."""

    async def later(*arguments: Any) -> Any:
        await gate
        return await call(*arguments)

    return later


def short(model: str, tokens: int, **more: Any) -> dict[str, Any]:
    """The body of a chat with an answer of so many tokens."""
    return chat(model, options={"num_predict": tokens}, **more)


def status(client: RawClient) -> int:
    """The status of its answer."""
    assert client.head is not None
    return client.head[0]


# -- leaving -----------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_who_leaves_while_its_model_is_looked_up_never_reaches_the_target() -> None:
    """The client of a model that foreman had to look for has left meanwhile: no row, no generation."""
    async with house() as here:
        here.fake.models["brand-new:latest"] = FakeModel(name="brand-new")
        here.fake.faults.next("/api/version", Fault.HANG)
        client = await here.send("POST", "/api/chat", chat("brand-new"))
        await eventually(lambda: is_open(here, "/api/version"))
        client.leave()
        await client.closed
        here.fake.cut()
        await eventually(lambda: here.foreman._inventory.find("brand-new"))
        await here.ask("POST", "/api/chat", chat("tiny-a"))
        assert generations(here) == ["tiny-a"]
        assert [row["model"] for row in await here.rows()] == ["tiny-a"]


@pytest_twisted.ensureDeferred
async def test_a_client_that_sends_on_cannot_hide_that_it_leaves() -> None:
    """A waiting client that sends more bytes than anybody pipelines is cut, so its job does not run for nobody."""
    async with house(models=default_models(token_rate=2.0)) as here:
        first = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: first.chunks)
        second = await here.send("POST", "/api/chat", chat("tiny-b"))
        await eventually(lambda: here.foreman._store.backlog.queued == 1)
        assert second.transport is not None
        second.transport.write(request_bytes("POST", "/api/show", b"x" * 300_000))
        await eventually(lambda: here.foreman._store.backlog.queued == 0)
        assert [row["error_code"] for row in await here.rows()] == [None, "client_disconnected"]
        first.leave()


# -- pausing -----------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_who_was_refused_while_its_work_was_being_written_is_not_run() -> None:
    """A pause refuses a call whose row is just becoming `working`: the target never sees it."""
    async with house() as here:
        store, gate = here.foreman._store, Deferred[None]()
        written: list[Any] = []
        work = store.work

        async def slow_to_tell(job: Any) -> Any:
            written.append(await work(job))
            await gate
            return written[0]

        store.work = slow_to_tell  # type: ignore[method-assign]
        client = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: written)
        await here.ask("POST", "/queue/pause", {"for": "5m"})
        beat(here, 1)
        await eventually(lambda: client.ended)
        assert status(client) == 503
        gate.callback(None)
        await idle(here)
        await eventually(lambda: not here.foreman._store.backlog.running)
        assert generations(here) == []
        [row] = await here.rows()
        assert (row["state"], row["error_code"]) == ("failed", "cancelled")
        client.leave()


@pytest_twisted.ensureDeferred
async def test_who_was_refused_before_its_row_was_written_leaves_no_queued_row() -> None:
    """A pause refuses a call whose row is on its way into the database: it ends as soon as it is there."""
    async with house() as here:
        store, gate = here.foreman._store, Deferred[None]()
        store.accept = held_back(store.accept, gate)  # type: ignore[method-assign, assignment]
        client = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: len(here.foreman._switchboard))
        await here.ask("POST", "/queue/pause", {"for": "5m"})
        beat(here, 1)
        await eventually(lambda: client.ended)
        assert status(client) == 503
        gate.callback(None)
        rows: list[dict[str, Any]] = []
        while not rows or rows[0]["state"] == "queued":
            rows = await here.rows()
        assert [(row["state"], row["error_code"]) for row in rows] == [("failed", "cancelled")]
        await eventually(lambda: store.backlog.queued == 0)  # the counters follow the commit a turn later
        client.leave()


# -- stopping ----------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_try_that_breaks_while_foreman_stops_is_answered() -> None:
    """The running call breaks during the grace of a stop: its client gets 503, at once and not cut off."""
    async with house({"SHUTDOWN_GRACE": "10m"}) as here:
        here.fake.faults.next("/api/chat", Fault.HANG)
        client = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: is_open(here, "/api/chat"))
        stopped = here.foreman.stopService()
        await eventually(lambda: here.foreman._worker._attempts.stopping)
        here.fake.cut()
        await eventually(lambda: client.ended)
        assert status(client) == 503
        await stopped
        assert len(generations(here)) == 1


@pytest_twisted.ensureDeferred
async def test_a_stop_does_not_wait_for_a_renewal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target hangs on foreman's renewal of a job that is over: a stop drops it, and the job's end stays its end."""
    monkeypatch.setattr(residency, "SMALL_CALL", 3600.0)
    async with house({"SHUTDOWN_GRACE": "10m"}, models=SLOW) as here:
        first = await here.send("POST", "/api/chat", short("tiny-a", 15, keep_alive="1m"))
        await eventually(lambda: first.chunks)
        here.fake.faults.next("/api/generate", Fault.HANG, load=True)
        with unhurried(here.fake):
            second = await here.send("POST", "/api/chat", short("tiny-a", 3))
            await eventually(lambda: is_open(here, "/api/generate"))
        await eventually(lambda: first.ended)
        await eventually(lambda: here.foreman._worker.running is None)
        stopped = here.foreman._worker.stop()
        await stopped
        await eventually(lambda: not is_open(here, "/api/generate"))
        await here.foreman._store.try_writing()  # behind the end of the first, which is written beside all this
        rows = await here.rows()
        assert [(row["state"], row["error_code"]) for row in rows] == [("done", None), ("queued", None)]
        first.leave()
        second.leave()


@pytest.mark.parametrize("warm", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_job_that_is_being_picked_when_foreman_stops_waits_again(*, warm: bool) -> None:
    """Foreman stops while a pick is on its way to the disk: the job never looks as if foreman had died with it."""
    async with house() as here:
        if warm:
            await here.ask("POST", "/api/chat", chat("tiny-a"))
        worker, store = here.foreman._worker, here.foreman._store
        before = len(generations(here))
        stopped: list[Deferred[None]] = []

        def asked_for() -> None:
            look()
            stopped.append(Deferred.fromCoroutine(worker.stop()))

        look, store.on_coming = store.on_coming, asked_for
        sending = await here.send("POST", "/jobs", chat("tiny-a"))
        await eventually(lambda: stopped)
        await stopped[0]
        await store.try_writing()  # behind whatever is still to be written
        row = (await here.rows())[-1]
        assert (row["state"], row["failures"]) == ("queued", 0)
        assert len(generations(here)) == before
        sending.leave()


# -- loading and renewing ----------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_an_answer_ends_whatever_becomes_of_the_renewal() -> None:
    """A client with a short keep_alive gets the end of its answer while the target hangs on foreman's renewal."""
    async with house(models=SLOW) as here:
        first = await here.send("POST", "/api/chat", short("tiny-a", 15, keep_alive="1m"))
        await eventually(lambda: first.chunks)
        here.fake.faults.next("/api/generate", Fault.HANG, load=True)
        with unhurried(here.fake):
            second = await here.send("POST", "/api/chat", short("tiny-a", 3))
            await eventually(lambda: is_open(here, "/api/generate"))
        await eventually(lambda: first.ended)
        assert is_open(here, "/api/generate")
        here.fake.cut()
        first.leave()
        second.leave()


@pytest_twisted.ensureDeferred
async def test_a_runner_that_would_not_load_is_not_taken_for_loaded() -> None:
    """After a load that failed the next call of that model loads again, and nobody is told that it is resident."""
    async with house() as here:
        here.fake.faults.always("/api/generate", Fault.ERROR_500, load=True)
        here.fake.faults.next("/api/chat", Fault.ERROR_500)
        assert status(await here.ask("POST", "/api/chat", chat("tiny-a"))) == 500
        assert (await here.ask("GET", "/healthz")).document["target"]["resident"] is None
        here.fake.faults.clear()
        before = len(loads_asked(here))
        assert status(await here.ask("POST", "/api/chat", chat("tiny-a"))) == 200
        assert len(loads_asked(here)) == before + 1


# -- polling -----------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_calls_queue_while_the_list_of_models_cannot_be_had() -> None:
    """Without a list nothing is known to be unknown: calls wait their turn, and one at a time goes to the target."""
    async with house(models=SLOW) as here:
        here.fake.faults.always("/api/tags", Fault.DROP)
        here.foreman._inventory.models = None  # as at the first start ever
        clients = [await here.send("POST", "/api/chat", short("tiny-a", 4)) for _ in range(3)]
        await eventually(lambda: all(client.ended for client in clients))
        assert [status(client) for client in clients] == [200, 200, 200]
        assert here.fake.max_at_once == 1
        assert len(await here.rows()) == 3
        for client in clients:
            client.leave()


@pytest_twisted.ensureDeferred
async def test_a_new_model_is_found_by_the_poll_after_the_one_under_way() -> None:
    """A poll that read the list before the model was there does not speak for it: the call is a job, not a 404."""
    async with house(models=SLOW) as here:
        here.fake.faults.next("/api/ps", Fault.HANG)
        detach(here.foreman._inventory.refresh())
        await eventually(lambda: is_open(here, "/api/ps"))
        here.fake.models["brand-new:latest"] = FakeModel(name="brand-new")
        client = await here.send("POST", "/api/chat", chat("brand-new"))
        await eventually(lambda: here.foreman._inventory._waiters)
        here.fake.cut()
        await eventually(lambda: client.ended)
        assert status(client) == 200
        assert [row["model"] for row in await here.rows()] == ["brand-new"]
        client.leave()


@pytest_twisted.ensureDeferred
async def test_a_copy_is_answered_when_foreman_knows_the_new_model() -> None:
    """The answer to /api/copy does not end before the list of models has been read anew."""
    async with house({"MODEL_ADMIN": "on"}) as here:
        here.fake.faults.next("/api/tags", Fault.HANG)
        client = await here.send("POST", "/api/copy", {"source": "tiny-a", "destination": "tiny-z"})
        await eventually(lambda: is_open(here, "/api/tags"))
        assert not client.ended
        here.fake.cut()
        await eventually(lambda: client.ended)
        client.leave()
        answer = await here.ask("POST", "/api/copy", {"source": "tiny-a", "destination": "tiny-y"})
        assert status(answer) == 200
        assert here.foreman._inventory.find("tiny-y") is not None
