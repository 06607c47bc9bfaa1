"""What the target holds in memory, through the whole house: loading, keep_alive, the embedder, a slow `/api/ps`."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import pytest_twisted

from foreman.ollama.fake import Fault, default_models
from foreman.test.harness import House, RawClient, ask, chat, eventually, house, send, unhurried
from foreman.test.test_moods import beat, bodies, idle, loads_asked
from foreman.work import residency

SLOW = default_models(token_rate=20.0)
EMBED = {"EMBED_MODEL": "tiny-embed"}


def short(model: str, tokens: int, **more: Any) -> dict[str, Any]:
    """The body of a chat with an answer of so many tokens."""
    return chat(model, options={"num_predict": tokens}, **more)


async def emptied(here: House) -> None:
    """Wait until the target holds nothing."""
    await eventually(lambda: not list(here.fake.scheduler.resident()))


def leave(*clients: RawClient) -> None:
    """Close their connections."""
    for client in clients:
        client.leave()


# -- a slow or broken /api/ps ------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_target_whose_ps_hangs_is_not_away() -> None:
    """`/api/ps` never answers while the probe is answered: the job is charged, the target is not called down."""
    async with house({"LOAD_TIMEOUT": "15s"}) as here:
        await eventually(lambda: here.foreman._inventory._polling is None)
        here.fake.faults.always("/api/ps", Fault.HANG)
        client = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: here.fake.requests[-1].outcome == "open")
        beat(here, 11)
        await eventually(lambda: here.fake.requests[-1].path == "/api/version")
        await eventually(lambda: here.fake.requests[-1].outcome == "answered")
        beat(here, 5)
        await eventually(lambda: here.foreman._store.backlog.queued == 1)
        [row] = await here.rows()
        assert (row["state"], row["failures"]) == ("queued", 1)
        assert here.foreman._inventory.up
        here.fake.faults.clear()
        leave(client)


@pytest_twisted.ensureDeferred
async def test_a_list_from_before_the_load_says_nothing() -> None:
    """A poll that asked before a load and hears after it that nothing is resident costs no swap."""
    async with house() as here:
        inventory, rooms = here.foreman._inventory, here.foreman._residency
        await eventually(lambda: inventory._polling is None)
        asked = inventory._clock.seconds()
        await here.ask("POST", "/api/chat", chat("tiny-a"))
        inventory.residents, inventory.residents_at = (), asked
        rooms._polled()
        assert rooms.resident is not None
        inventory.residents_at = inventory._clock.seconds()
        rooms._polled()
        assert rooms.resident is None


@pytest.mark.parametrize("loaded", ["tiny-b", "tiny-embed"])
@pytest_twisted.ensureDeferred
async def test_a_ps_that_waits_for_somebodys_load_is_awaited(loaded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody else loads, or the embedder, `/api/ps` is slow: the call waits and is served, nothing is down."""
    monkeypatch.setattr(residency, "SMALL_CALL", 0.1)
    models = [
        attrs.evolve(model, load_time=0.6) if model.name == f"{loaded}:latest" else model for model in default_models()
    ]
    settings = EMBED if loaded == "tiny-embed" else {}
    async with house(settings, slots=2, models=models) as here:
        here.fake.faults.always("/api/ps", Fault.WAIT_FOR_LOAD)
        away: list[Exception] = []
        here.foreman._inventory.unreachable = away.append  # type: ignore[method-assign, assignment]
        direct = await send(here.fake.url, "POST", "/api/embed" if settings else "/api/generate", {"model": loaded})
        await eventually(lambda: here.fake.loads)
        client = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: client.ended)
        await idle(here)
        [row] = await here.rows()
        assert (row["state"], row["attempt"]) == ("done", 1)
        assert away == []
        leave(client, direct)


@pytest_twisted.ensureDeferred
async def test_a_ps_that_fails_holds_nobody_up() -> None:
    """`/api/ps` answers 500 while another model is in memory: the call is served all the same."""
    async with house() as here:
        await ask(here.fake.url, "POST", "/api/generate", {"model": "tiny-b"})
        await here.foreman._inventory.refresh()
        here.fake.faults.always("/api/ps", Fault.ERROR_500)
        answer = await here.ask("POST", "/api/chat", chat("tiny-a"))
        assert answer.head is not None
        assert answer.head[0] == 200


# -- keep_alive --------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_keep_alive_zero_frees_the_memory() -> None:
    """With FOREMAN_KEEP_ALIVE=0 nothing stays in the target's memory when the work is done."""
    async with house({"KEEP_ALIVE": "0"}) as here:
        await here.ask("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: loads_asked(here)[-1:] == [("tiny-a", 0)])
        await emptied(here)


@pytest_twisted.ensureDeferred
async def test_a_short_keep_alive_waits_for_the_next_call_when_nothing_streams_too() -> None:
    """An answer that comes whole at its end has the model renewed while it is made: the next call needs no load."""
    async with house(models=SLOW) as here:
        await here.ask("POST", "/api/chat", short("tiny-a", 1))
        await idle(here)
        before = len(loads_asked(here))
        with unhurried(here.fake):
            first = await here.send("POST", "/api/chat", short("tiny-a", 5, stream=False, keep_alive=0))
            await eventually(lambda: len(bodies(here, "/api/chat")) == 2)
            second = await here.send("POST", "/api/chat", short("tiny-a", 5))
            await eventually(lambda: len(loads_asked(here)) > before)
        await eventually(lambda: first.ended and second.ended)
        assert loads_asked(here)[before] == ("tiny-a", -1)
        assert len(here.fake.loads) == 1
        leave(first, second)


@pytest_twisted.ensureDeferred
async def test_what_a_client_unloads_is_not_loaded_again() -> None:
    """A client's own unload ends what foreman owed another client for that runner."""
    async with house(models=SLOW) as here:
        first = await here.send("POST", "/api/chat", short("tiny-a", 15, keep_alive="1m"))
        await eventually(lambda: first.chunks)
        with unhurried(here.fake):
            second = await here.send("POST", "/api/chat", short("tiny-a", 15))
            await eventually(here.foreman._residency.owes)
        await eventually(lambda: second.chunks)
        with unhurried(here.fake):
            before = len(loads_asked(here))
            unload = await here.send("POST", "/api/generate", {"model": "tiny-a", "keep_alive": 0})
            await eventually(lambda: unload.ended)
        await eventually(lambda: second.ended)
        await idle(here)
        await emptied(here)
        assert loads_asked(here)[before:] == [("tiny-a", 0)]
        leave(first, second, unload)


@pytest_twisted.ensureDeferred
async def test_a_paused_foreman_loads_nothing_for_a_keep_alive() -> None:
    """The owner paused foreman and stopped the model: what foreman owes a client does not bring it back."""
    async with house(models=SLOW) as here:
        first = await here.send("POST", "/api/chat", short("tiny-a", 20, keep_alive="1m"))
        await eventually(lambda: first.chunks)
        with unhurried(here.fake):
            second = await here.send("POST", "/api/chat", short("tiny-a", 5))
            await eventually(here.foreman._residency.owes)
            await here.ask("POST", "/queue/pause", {"for": "5m"})
            before = len(loads_asked(here))
            await ask(here.fake.url, "POST", "/api/generate", {"model": "tiny-a", "keep_alive": 0})  # `ollama stop`
        await eventually(lambda: first.ended)
        await eventually(lambda: here.foreman._worker.running is None)
        await eventually(lambda: not here.foreman._residency.owes())
        await emptied(here)
        assert loads_asked(here)[before:] == [("tiny-a", 0)]
        leave(first, second)


# -- which model it is -------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_model_pulled_anew_while_its_jobs_wait_is_loaded_as_it_is_now() -> None:
    """Jobs accepted before the pull are served by the new model, without a fight over which of the two is resident."""
    async with house(models=SLOW) as here:
        clients = [await here.send("POST", "/api/chat", short("tiny-a", 6))]
        await eventually(lambda: clients[0].chunks)
        with unhurried(here.fake):
            clients += [await here.send("POST", "/api/chat", short("tiny-a", 6)) for _ in range(2)]
            await eventually(lambda: here.foreman._store.backlog.queued == 2)
            here.fake.models["tiny-a:latest"] = attrs.evolve(here.fake.models["tiny-a:latest"], blob="f" * 64)
        await eventually(lambda: clients[1].chunks)
        await here.foreman._inventory.refresh()
        await eventually(lambda: all(client.ended for client in clients))
        await idle(here)
        assert [row["state"] for row in await here.rows()] == ["done"] * 3
        assert len(here.fake.loads) == 2
        assert ("tiny-a", 0) not in loads_asked(here)
        leave(*clients)


@pytest_twisted.ensureDeferred
async def test_a_load_of_what_is_there_is_no_swap() -> None:
    """Unloading some other model makes foreman look again, but not count a swap that was none."""
    async with house() as here:
        await here.ask("POST", "/api/chat", chat("tiny-a"))
        await here.ask("POST", "/api/generate", {"model": "tiny-b", "keep_alive": 0})
        await here.ask("POST", "/api/chat", chat("tiny-a"))
        assert len(here.fake.loads) == here.foreman._residency.swaps.paid == 1
        assert b"foreman_swaps_total 1.0" in (await here.ask("GET", "/metrics")).body


@pytest_twisted.ensureDeferred
async def test_the_embedder_stays_pinned_whatever_a_client_says_meanwhile() -> None:
    """A call with a keep_alive of its own during the warm-up does not undo the pin: it is made once more."""
    async with house(EMBED, slots=2, models=default_models(load_time=0.3), wait=False) as here:
        with unhurried(here.fake):
            await eventually(lambda: here.foreman._inventory.models is not None and here.fake.scheduler.loading)
            client = await here.send("POST", "/api/embed", {"model": "tiny-embed", "input": "x", "keep_alive": "1m"})
            await eventually(lambda: len(bodies(here, "/api/embed")) == 2)
        await eventually(lambda: client.ended)
        client.leave()
        await eventually(lambda: here.foreman._embedder._warming is None)  # type: ignore[union-attr]
        assert [body["keep_alive"] for body in bodies(here, "/api/embed")] == [-1, "1m", -1]
