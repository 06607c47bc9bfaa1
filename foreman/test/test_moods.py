"""The target's moods through the whole house: away, asleep, slow, used by others; and keep_alive."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted

from foreman.ollama.fake import Fault, default_models
from foreman.test.harness import House, ask, chat, eventually, house, unhurried
from foreman.work import residency

LOADING = default_models(load_time=0.15)
SLOW = default_models(token_rate=40.0)


def bodies(house: House, path: str) -> list[dict[str, Any]]:
    """The bodies of the requests the target got on that path, in order."""
    return [json.loads(record.body or b"{}") for record in house.fake.requests if record.path == path]


def loads_asked(house: House) -> list[tuple[str, Any]]:
    """Foreman's own load and unload requests: model and keep_alive."""
    asked = [body for body in bodies(house, "/api/generate") if "prompt" not in body]
    return [(body["model"], body.get("keep_alive")) for body in asked]


async def idle(house: House) -> None:
    """Wait until no job waits or runs."""
    backlog = house.foreman._store.backlog
    await eventually(lambda: backlog.queued == backlog.running == 0 and house.foreman._worker.running is None)


async def go_away(house: House) -> None:
    """Close the target's door, and wait until foreman knows."""
    await house.fake.refuse()
    while house.foreman._inventory.up:
        await house.foreman._inventory.refresh()


def beat(house: House, times: int) -> None:
    """Let so many seconds of the tick pass."""
    for _ in range(times):
        house.foreman._tick.beat()


async def stand_still(house: House) -> None:
    """Have no second of the tick pass but by `beat`, and nobody ask any more whether the target is there."""
    house.foreman._tick.stop()
    await eventually(lambda: house.foreman._inventory._probing is None)


# -- away --------------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_call_waits_while_nobody_is_there() -> None:
    """Target refusing, a call comes, target returns: answered at the next beat, a second away, nothing charged."""
    async with house() as here:
        await go_away(here)
        client = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: here.foreman._store.backlog.queued == 1)
        await stand_still(here)
        await here.fake.listen()
        beat(here, 1)
        await eventually(lambda: client.ended)
        assert client.head is not None
        assert client.head[0] == 200
        await idle(here)
        [row] = await here.rows()
        assert (row["state"], row["attempt"], row["failures"]) == ("done", 1, 0)
        client.leave()


@pytest_twisted.ensureDeferred
async def test_a_refusal_noticed_by_the_job_itself_charges_nothing() -> None:
    """The worker meets the closed door before the poller does: the job goes back, uncharged."""
    async with house() as here:
        await here.fake.refuse()
        client = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: not here.foreman._inventory.up)
        await here.fake.listen()
        await eventually(lambda: client.ended)
        await idle(here)
        [row] = await here.rows()
        assert (row["state"], row["failures"]) == ("done", 0)
        client.leave()


@pytest_twisted.ensureDeferred
async def test_a_call_waits_so_long_and_no_longer() -> None:
    """With the target away a sync call gets 503 and Retry-After after FOREMAN_SYNC_WAIT."""
    async with house({"SYNC_WAIT": "1s"}) as here:
        await go_away(here)
        client = await here.ask("POST", "/api/chat", chat("tiny-a"))
        assert client.head is not None
        assert client.head[0] == 503
        assert int(client.head[1]["retry-after"]) > 0
        assert "error" in client.document
        await idle(here)
        [row] = await here.rows()
        assert (row["state"], row["error_code"], row["attempt"]) == ("failed", "timeout", 0)


@pytest_twisted.ensureDeferred
async def test_what_was_seen_is_answered_while_the_target_is_away() -> None:
    """tags, version, ps, show and the root answer from memory, marked as old; so do they after a restart."""
    async with house() as here:
        paths: list[tuple[str, str, Any]] = [
            ("GET", "/api/tags", None),
            ("GET", "/api/version", None),
            ("GET", "/api/ps", None),
            ("GET", "/", None),
            ("GET", "/v1/models", None),
            ("POST", "/api/show", {"model": "tiny-a"}),
        ]
        live = [await here.ask(*question) for question in paths]
        await here.fake.refuse()
        kept = [await here.ask(*question) for question in paths]
        for before, after in zip(live, kept, strict=True):
            assert after.head is not None
            assert after.body == before.body
            assert after.head[1]["x-foreman-degraded"] == "true"
            assert int(after.head[1]["age"]) >= 0
        unseen = await here.ask("POST", "/api/show", {"model": "tiny-b"})
        assert unseen.head is not None
        assert unseen.head[0] == 503
        await eventually(lambda: not here.foreman._inventory.up)
        health = (await here.ask("GET", "/healthz")).document
        assert health["degraded"] is True
        assert health["target"]["state"] == "down"


# -- asleep ------------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_sleep_in_the_middle_of_a_job() -> None:
    """The target falls asleep before the first byte: the job is not charged, and goes on after the return."""
    async with house(models=default_models(prompt_time=0.3)) as here:
        client = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: len(bodies(here, "/api/chat")) == 1)
        here.fake.sleep()
        beat(here, 75)
        await eventually(lambda: not here.foreman._inventory.up)
        await eventually(lambda: here.foreman._store.backlog.queued == 1)
        await stand_still(here)
        here.fake.wake()
        beat(here, 1)
        await eventually(lambda: client.ended)
        assert client.head is not None
        assert client.head[0] == 200
        await idle(here)
        [row] = await here.rows()
        assert (row["state"], row["attempt"], row["failures"]) == ("done", 2, 0)
        client.leave()


@pytest_twisted.ensureDeferred
async def test_our_own_sleep_starts_all_silence_afresh() -> None:
    """Foreman's own machine slept: a call that was silent before is not judged by that."""
    async with house({"ANSWER_TIMEOUT": "20s"}, models=default_models(prompt_time=3600)) as here:
        client = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: len(bodies(here, "/api/chat")) == 1)
        beat(here, 15)
        here.foreman._tick._last -= 3600  # the wall clock went on without us
        beat(here, 15)
        assert here.foreman._worker.running is not None
        assert here.foreman._store.backlog.running == 1
        client.leave()


@pytest_twisted.ensureDeferred
async def test_a_silent_job_on_a_target_that_is_awake_is_charged() -> None:
    """Silence past FOREMAN_ANSWER_TIMEOUT while the probe is answered charges the job, and it is tried again."""
    async with house({"ANSWER_TIMEOUT": "15s"}) as here:
        here.fake.faults.next("/api/chat", Fault.HANG)
        client = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: len(bodies(here, "/api/chat")) == 1)
        beat(here, 11)
        await eventually(lambda: here.fake.requests[-1].path == "/api/version")
        await eventually(lambda: here.fake.requests[-1].outcome == "answered")
        beat(here, 5)
        await eventually(lambda: client.ended)
        assert client.head is not None
        assert client.head[0] == 200
        await idle(here)
        [row] = await here.rows()
        assert (row["state"], row["attempt"], row["failures"]) == ("done", 2, 1)
        client.leave()


@pytest_twisted.ensureDeferred
async def test_a_slow_ps_during_a_load_is_not_down() -> None:
    """`/api/ps` that waits for a load says nothing about the target."""
    async with house(models=default_models(load_time=0.5)) as here:
        here.fake.faults.always("/api/ps", Fault.WAIT_FOR_LOAD)
        client = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: here.fake.loads)
        await here.foreman._inventory.refresh()
        assert here.foreman._inventory.up
        await eventually(lambda: client.ended)
        client.leave()


# -- busy and broken ---------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_attempts_are_exhausted() -> None:
    """A call whose every try breaks before the head gets an error after FOREMAN_MAX_ATTEMPTS failures."""
    async with house({"MAX_ATTEMPTS": "2"}) as here:
        here.fake.faults.always("/api/chat", Fault.DROP)
        client = await here.ask("POST", "/api/chat", chat("tiny-a"))
        assert client.head is not None
        assert client.head[0] == 502
        assert "error" in client.document
        await idle(here)
        [row] = await here.rows()
        assert (row["state"], row["error_code"], row["failures"]) == ("failed", "attempts_exhausted", 2)


@pytest_twisted.ensureDeferred
async def test_a_load_that_breaks_sets_its_runner_aside() -> None:
    """While a runner that would not load waits its backoff, other runners go on."""
    async with house() as here:
        here.fake.faults.next("/api/generate", Fault.DROP, model="tiny-a:latest", load=True)
        here.fake.sleep()  # until all three are there
        calls, backlog = [], here.foreman._store.backlog
        for model in ("tiny-a", "tiny-a", "tiny-b"):
            calls.append(await here.send("POST", "/api/chat", chat(model, stream=False)))
            await eventually(lambda: backlog.queued + backlog.running == len(calls))
        here.fake.wake()
        await eventually(lambda: all(call.ended for call in calls))
        assert [body["model"] for body in bodies(here, "/api/chat")] == ["tiny-b", "tiny-a", "tiny-a"]
        for call in calls:
            call.leave()


# -- residents and keep_alive ------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_old_worker_is_unloaded_before_the_next_is_loaded() -> None:
    """With two slots the pinned embedder is never evicted: the old worker goes first."""
    async with house({"EMBED_MODEL": "tiny-embed"}, models=LOADING, slots=2) as here:
        await ask(here.fake.url, "POST", "/api/embed", {"model": "tiny-embed", "input": "x", "keep_alive": -1})
        for model in ("tiny-a", "tiny-b", "tiny-a"):
            await here.ask("POST", "/api/chat", chat(model, stream=False))
        resident = [model["name"] for model in (await ask(here.fake.url, "GET", "/api/ps")).document["models"]]
        assert sorted(resident) == ["tiny-a:latest", "tiny-embed:latest"]
        assert [load.model for load in here.fake.loads].count("tiny-embed:latest") == 1
        assert ("tiny-a", 0) in [(name.removesuffix(":latest"), keep) for name, keep in loads_asked(here)]


@pytest_twisted.ensureDeferred
async def test_a_model_deleted_while_loaded_holds_nobody_up() -> None:
    """What was deleted stays in memory and can no longer be unloaded by its name; the next model does not wait."""
    async with house() as here:
        await here.ask("POST", "/api/chat", chat("tiny-a"))
        await ask(here.fake.url, "DELETE", "/api/delete", {"model": "tiny-a"})
        answer = await here.ask("POST", "/api/chat", chat("tiny-b", stream=False))
        assert answer.document["done"] is True


@pytest_twisted.ensureDeferred
async def test_jobs_that_name_no_keep_alive_get_foremans() -> None:
    """The load request carries FOREMAN_KEEP_ALIVE, and bodies are never edited."""
    async with house({"KEEP_ALIVE": "15m"}) as here:
        await here.ask("POST", "/api/chat", chat("tiny-a"))
        assert loads_asked(here) == [("tiny-a", "15m")]
        assert bodies(here, "/api/chat") == [chat("tiny-a")]


@pytest_twisted.ensureDeferred
async def test_a_short_keep_alive_waits_until_the_queue_of_its_runner_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that says `keep_alive: 0` does not cost the next one a load, and gets its way in the end."""
    monkeypatch.setattr(residency, "RENEW_AFTER", 3600.0)  # but at its answer's head, when the target surely has it
    async with house(models=default_models(load_time=0.1, token_rate=20.0)) as here:
        calls, backlog = [], here.foreman._store.backlog
        with unhurried(here.fake):
            for keep_alive in (0, None, 0, None):
                more: dict[str, Any] = {} if keep_alive is None else {"keep_alive": keep_alive}
                calls.append(await here.send("POST", "/api/chat", chat("tiny-a", **more)))
                await eventually(lambda: backlog.queued + backlog.running == len(calls))
        await eventually(lambda: all(call.ended for call in calls))
        await idle(here)
        assert len(here.fake.loads) == 1
        await eventually(lambda: loads_asked(here)[-1] == ("tiny-a", 0))
        for call in calls:
            call.leave()


@pytest_twisted.ensureDeferred
async def test_a_load_request_is_a_job_and_an_unload_request_is_not() -> None:
    """A load swaps, so it queues; an unload is carried at once, and the resident is unknown after it."""
    async with house(models=LOADING) as here:
        await here.ask("POST", "/api/generate", {"model": "tiny-a"})
        assert len(await here.rows()) == 1
        assert here.foreman._worker.resident_name == "tiny-a"
        await here.ask("POST", "/api/generate", {"model": "tiny-a", "keep_alive": 0})
        assert len(await here.rows()) == 1
        assert here.foreman._worker.resident_name is None


@pytest.mark.parametrize("path", ["/api/tags", "/api/version", "/api/ps", "/", "/api/status"])
@pytest_twisted.ensureDeferred
async def test_questions_are_answered_while_a_job_runs(path: str) -> None:
    """What clients ask at start-up never waits in the queue."""
    async with house(models=SLOW) as here:
        client = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: client.chunks)
        with unhurried(here.fake):
            answer = await here.ask("GET", path)
            assert answer.head is not None
            assert answer.head[0] == 200
            assert not client.ended
        client.leave()
