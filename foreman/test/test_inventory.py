"""What foreman knows of its target, and what it answers from that when the target does not."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest_twisted

from foreman.errors import NotReachable, Stalled
from foreman.ollama.fake import Fault
from foreman.ollama.inventory import Inventory
from foreman.test.harness import House, RawClient, ask, chat, eventually, house
from foreman.test.test_moods import beat, go_away


def status(client: RawClient) -> int:
    """The status of its answer."""
    assert client.head is not None
    return client.head[0]


def header(client: RawClient, name: str) -> str | None:
    """A header of its answer."""
    assert client.head is not None
    return client.head[1].get(name)


@asynccontextmanager
async def same_database() -> AsyncIterator[dict[str, str]]:
    """Settings for houses that are one after the other the same foreman."""
    with tempfile.TemporaryDirectory() as folder:
        yield {"DB": str(Path(folder) / "foreman.db")}


async def kept_keys(here: House) -> list[str]:
    """The keys of the answers in the database."""

    def read(cursor: Any) -> list[str]:
        return [row[0] for row in cursor.execute("SELECT key FROM kept ORDER BY key").fetchall()]

    return await here.foreman._store._database.read(read)


# -- answers kept ------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_kept_answers_survive_a_restart() -> None:
    """Foreman restarts while the laptop sleeps: tags, version and a plain show are answered as before."""
    questions: list[tuple[str, str, Any]] = [
        ("GET", "/api/tags", None),
        ("GET", "/api/version", None),
        ("POST", "/api/show", {"model": "tiny-a"}),
    ]
    async with same_database() as settings:
        async with house(settings) as here:
            live = [await here.ask(*question) for question in questions]
        async with house({**settings, "OLLAMA_URL": "http://127.0.0.1:9"}, wait=False) as here:
            kept = [await here.ask(*question) for question in questions]
            assert [answer.body for answer in kept] == [answer.body for answer in live]
            assert {header(answer, "x-foreman-degraded") for answer in kept} == {"true"}
            unseen = await here.ask("POST", "/api/show", {"model": "tiny-b"})
            assert status(unseen) == 503


@pytest_twisted.ensureDeferred
async def test_what_only_foreman_has_seen_is_answered_too() -> None:
    """Nobody has asked for tags or version before the laptop fell asleep: foreman's own look at them is enough."""
    async with house() as here:
        await eventually(lambda: here.foreman._inventory._polling is None)
        await go_away(here)
        for method, path in (("HEAD", "/api/tags"), ("GET", "/api/tags"), ("GET", "/api/version"), ("GET", "/api/ps")):
            answer = await here.ask(method, path)
            assert (status(answer), header(answer, "x-foreman-degraded")) == (200, "true")


@pytest_twisted.ensureDeferred
async def test_the_age_of_a_kept_answer_grows() -> None:
    """`Age` says how old the answer is, in seconds."""
    async with house() as here:
        await eventually(lambda: here.foreman._inventory._polling is None)
        await go_away(here)
        assert int(header(await here.ask("GET", "/api/tags"), "age") or "") < 10
        real = here.foreman._native.now_ms
        here.foreman._native.now_ms = lambda: real() + 90_000
        assert 90 <= int(header(await here.ask("GET", "/api/tags"), "age") or "") < 100


@pytest_twisted.ensureDeferred
async def test_a_head_is_answered_while_the_target_is_away() -> None:
    """`HEAD /`, which clients send to see whether the server is there, is answered as `GET /` is."""
    async with house() as here:
        assert status(await here.ask("HEAD", "/")) == 200
        await go_away(here)
        answer = await here.ask("HEAD", "/")
        assert status(answer) == 200
        assert answer.body == b""
        assert (await here.ask("GET", "/")).body == b"Ollama is running"


@pytest_twisted.ensureDeferred
async def test_a_first_show_may_take_its_time() -> None:
    """Nothing to fall back on: a show that takes longer than the live budget is waited for."""
    async with house() as here:
        budgets: list[float] = []
        call = here.foreman._target.call

        async def measured(method: bytes, path: bytes, **how: Any) -> Any:
            if path == b"/api/show":
                budgets.append(how["timeout"])
            return await call(method, path, **how)

        here.foreman._target.call = measured  # type: ignore[method-assign, assignment]
        for _ in range(2):
            assert status(await here.ask("POST", "/api/show", {"model": "tiny-a"})) == 200
        assert budgets == [10.0, 1.0]


@pytest_twisted.ensureDeferred
async def test_spellings_and_queries_do_not_fill_the_database() -> None:
    """One model asked for in eight spellings is one kept answer."""
    async with house() as here:
        for number, name in enumerate(("tiny-a", "TINY-A", "Tiny-a", "tiny-A", "tiny-a:latest", "library/tiny-a")):
            await here.ask("GET", f"/v1/models/{name}?x={number}")
        await here.foreman._store.transact(lambda _: None, durable=False)  # whatever was to be written stands before it
        assert [key for key in await kept_keys(here) if key.startswith("/v1/models/")] == ["/v1/models/tiny-a:latest"]


@pytest_twisted.ensureDeferred
async def test_what_was_kept_of_a_model_goes_with_it() -> None:
    """A model is removed, or pulled anew: the answers about it that nobody can be given any more are deleted."""
    async with house() as here:
        for name in ("tiny-a", "tiny-b"):
            await here.ask("POST", "/api/show", {"model": name})
            await here.ask("GET", f"/v1/models/{name}")
        del here.fake.models["tiny-a:latest"]
        await here.foreman._inventory.refresh()
        await here.foreman._store.transact(lambda _: None, durable=False)  # the deletion stands before it
        about = [key.split(" ")[:2] for key in await kept_keys(here) if key.startswith(("/api/show ", "/v1/models/"))]
        assert about == [["/api/show", "tiny-b:latest"], ["/v1/models/tiny-b:latest"]]
        assert status(await here.ask("GET", "/v1/models/tiny-b")) == 200


# -- up and down -------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_proxy_before_a_dead_ollama_is_not_ollama() -> None:
    """Something answers every request with 500: the target is down, not up."""
    async with house() as here:
        here.fake.faults.always("*", Fault.ERROR_500)
        await here.foreman._inventory.refresh()
        assert not here.foreman._inventory.up
        assert "500" in (await here.ask("GET", "/healthz")).document["target"]["last_error"]


@pytest_twisted.ensureDeferred
async def test_a_target_that_falls_asleep_during_a_poll_is_noticed_at_the_first_call_that_fails() -> None:
    """The lid is closed between two calls of a poll: what is left of it is not waited for."""
    async with house() as here:
        await eventually(lambda: here.foreman._inventory._polling is None)
        target, asked = here.foreman._target, list[bytes]()
        call = target.call

        async def asleep_after_the_first(method: bytes, path: bytes, **how: Any) -> Any:
            asked.append(path)
            if len(asked) > 1:
                raise Stalled("silence", probe_answered=False)
            return await call(method, path, **how)

        target.call = asleep_after_the_first  # type: ignore[method-assign, assignment]
        assert not await here.foreman._inventory.refresh()
        assert asked == [b"/api/version", b"/api/tags", b"/api/version"]
        assert not here.foreman._inventory.up


def count_probes(inventory: Inventory) -> list[int]:
    """Counts the probes from now on, each ended at once: nobody is there.  The one element is the count."""
    count = [0]

    async def version(_: float) -> Any:
        count[0] += 1
        raise NotReachable("nobody")

    inventory._target.version = version  # type: ignore[method-assign, assignment]
    return count


@pytest_twisted.ensureDeferred
async def test_each_absence_is_logged_once() -> None:
    """The first failure after a start or after the target was there is a line of the log; those after it are not."""
    async with house({"OLLAMA_URL": "http://127.0.0.1:9"}, wait=False) as here:
        inventory, said = here.foreman._inventory, list[str]()
        inventory._tick.stop()  # no probe but ours
        inventory._log = type("Log", (), {"warn": lambda _, __, error: said.append(str(error)), "info": Mock()})()
        inventory.last_error = None  # as at a start
        for reason in "abc":
            inventory.unreachable(NotReachable(reason))
        assert [said, inventory.last_error] == [["a"], "c"]
        inventory.up = True
        for reason in "de":
            inventory.unreachable(NotReachable(reason))
        assert [said, inventory.last_error] == [["a", "d"], "e"]
        inventory._tick.start()


@pytest_twisted.ensureDeferred
async def test_a_target_that_is_away_is_probed_with_doubling_up_to_the_poll_interval() -> None:
    """Nobody waits: foreman asks after 1, 2, 4, 8 … s, and then every FOREMAN_POLL_INTERVAL."""
    async with house({"POLL_INTERVAL": "10s"}) as here:
        inventory = here.foreman._inventory
        inventory._tick.stop()  # no beat but ours
        await go_away(here)
        await eventually(lambda: inventory._probing is None)
        now = [inventory._clock.seconds()]
        clock = type("Clock", (), {"seconds": lambda _: now[0]})()
        inventory._clock = clock
        probed, count = list[int](), count_probes(inventory)
        for second in range(40):
            before = count[0]
            inventory._beat(slept=False)
            probed += [second] if count[0] > before else []
            now[0] += 1.0
        assert probed == [0, 1, 3, 7, 15, 25, 35]


@pytest_twisted.ensureDeferred
async def test_a_target_that_is_away_is_probed_every_second_while_jobs_wait() -> None:
    """A call waits: foreman asks at every beat."""
    async with house() as here:
        await go_away(here)
        client = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: here.foreman._store.backlog.queued == 1)
        await eventually(lambda: here.foreman._inventory._probing is None)
        count = count_probes(here.foreman._inventory)
        beat(here, 20)
        assert count == [20]
        client.leave()


@pytest_twisted.ensureDeferred
async def test_foremans_own_sleep_is_followed_by_a_look() -> None:
    """Foreman's machine slept: what it knew of the target is old, so it asks at once."""
    async with house({"POLL_INTERVAL": "10m"}) as here:
        await eventually(lambda: here.foreman._inventory._polling is None)
        before = here.foreman._inventory.polls_answered
        beat(here, 3)
        assert here.foreman._inventory._polling is None
        here.foreman._tick._last -= 3600
        beat(here, 1)
        await eventually(lambda: here.foreman._inventory.polls_answered == before + 1)


# -- warnings ----------------------------------------------------------------------------------------------------------


async def warnings(here: House) -> list[str]:
    """What /healthz warns of after a poll."""
    await here.foreman._inventory.refresh()
    return (await here.ask("GET", "/healthz")).document["warnings"]  # type: ignore[no-any-return]


@pytest_twisted.ensureDeferred
async def test_a_model_that_lost_the_gpu_is_warned_of() -> None:
    """The laptop woke without its GPU: /healthz names the model that runs on the CPU now, until it no longer does."""
    async with house(gpu=True) as here:
        await here.ask("POST", "/api/chat", chat("tiny-a"))
        assert await warnings(here) == []
        here.fake.gpu = False
        [warning] = await warnings(here)
        assert warning.startswith("tiny-a:latest has 0 of ")
        here.fake.gpu = True
        assert await warnings(here) == []


@pytest_twisted.ensureDeferred
async def test_a_model_that_never_was_on_a_gpu_is_not_warned_of() -> None:
    """A machine without a GPU is no trouble."""
    async with house(gpu=False) as here:
        await here.ask("POST", "/api/chat", chat("tiny-a"))
        assert await warnings(here) == []


@pytest_twisted.ensureDeferred
async def test_an_embedder_that_was_pushed_out_is_warned_of() -> None:
    """With one slot only a worker model evicts the embedder: /healthz says so, and names the setting."""
    async with house({"EMBED_MODEL": "tiny-embed"}, slots=1) as here:
        await eventually(lambda: here.foreman._embedder._warming is None)  # type: ignore[union-attr]
        assert await warnings(here) == []
        await ask(here.fake.url, "POST", "/api/generate", {"model": "tiny-a"})
        [warning] = await warnings(here)
        assert "tiny-a:latest pushed the embedder tiny-embed out" in warning
        assert "OLLAMA_MAX_LOADED_MODELS=2" in warning
