"""Sleep, the target's and foreman's own: nothing is lost, nothing charged, and work goes on at once.

Real sleep of real processes (SIGSTOP) where seconds are enough; where a minute of silence is needed the heartbeat is
beaten by hand.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from foreman.ollama.fake import FakeModel, Fault, default_models
from foreman.test.harness import (
    House,
    RawClient,
    chat,
    daemon,
    eventually,
    fake_ollama,
    fake_process,
    house,
    midway,
    reactor,
)
from foreman.test.harness import send as send_to

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals stop processes")


def is_whole(client: RawClient) -> bool:
    """Whether the client has its whole streamed answer."""
    return client.ended and json.loads(client.body.splitlines()[-1]).get("done") is True


def facts(rows: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
    """What became of the jobs, and what they were charged."""
    return {(row["state"], row["attempt"], row["failures"]) for row in rows}


# -- the target, as a process ------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_calls_wait_for_a_target_that_sleeps(tmp_path: Path, record_property: Any) -> None:
    """The laptop sleeps when foreman starts and calls come: all are served once it wakes, and nothing is charged."""
    async with fake_process(tmp_path) as fake:
        fake.send(signal.SIGSTOP)
        async with daemon(tmp_path, fake.url) as foreman:
            calls = [await send_to(foreman.url, "POST", "/api/chat", chat(f"tiny-{letter}")) for letter in "abcab"]
            await eventually(lambda: len(foreman.rows()) == len(calls))
            await deferLater(reactor, 3.5)  # probes come and go unanswered
            assert facts(foreman.rows()) == {("queued", 0, 0)}
            woken = time.time()
            fake.send(signal.SIGCONT)
            await eventually(lambda: all(is_whole(call) for call in calls))
            chats = [request for request in (await fake.state())["requests"] if request["path"] == "/api/chat"]
            record_property("first_generation_s", chats[0]["connected_at"] - woken)
            await eventually(lambda: facts(foreman.rows()) == {("done", 1, 0)})
            assert len(chats) == len(calls)
            for call in calls:
                call.leave()


@pytest_twisted.ensureDeferred
async def test_a_nap_in_the_middle_of_a_stream_costs_nothing(tmp_path: Path) -> None:
    """The lid is closed for some seconds while one call streams and others wait: all have their whole answers."""
    async with fake_process(tmp_path, "defaults,rate=20") as fake, daemon(tmp_path, fake.url) as foreman:
        calls = [await send_to(foreman.url, "POST", "/api/chat", chat("tiny-a")) for _ in range(2)]
        await eventually(lambda: any(call.chunks for call in calls))
        fake.send(signal.SIGSTOP)
        later = await send_to(foreman.url, "POST", "/api/chat", chat("tiny-b"))
        calls.append(later)
        await deferLater(reactor, 2)
        assert not later.ended
        fake.send(signal.SIGCONT)
        await eventually(lambda: all(is_whole(call) for call in calls))
        await eventually(lambda: facts(foreman.rows()) == {("done", 1, 0)})
        assert len([request for request in (await fake.state())["requests"] if request["path"] == "/api/chat"]) == 3
        for call in calls:
            call.leave()


@pytest_twisted.ensureDeferred
async def test_calls_wait_for_a_target_that_is_gone(tmp_path: Path, record_property: Any) -> None:
    """Nobody listens, and calls come: none is lost or charged, and all are served after the return."""
    async with fake_ollama() as fake, daemon(tmp_path, fake.url) as foreman:
        await eventually(lambda: "The target is up" in foreman.output)
        await fake.refuse()
        calls = [await send_to(foreman.url, "POST", "/api/chat", chat(f"tiny-{letter}")) for letter in "aba"]
        await eventually(lambda: "The target is down" in foreman.output)
        await deferLater(reactor, 2.5)
        assert not any(call.head for call in calls)
        assert not foreman.lines("error", "critical")
        back = reactor.seconds()
        await fake.listen()
        await eventually(lambda: all(is_whole(call) for call in calls))
        chats = [record for record in fake.requests if record.path == "/api/chat"]
        record_property("first_generation_s", chats[0].connected_at - back)
        await eventually(lambda: {(row["state"], row["failures"]) for row in foreman.rows()} == {("done", 0)})
        assert len(chats) == 3
        for call in calls:
            call.leave()


@pytest_twisted.ensureDeferred
async def test_a_target_that_goes_before_its_models_are_known() -> None:
    """While there is no list of models yet no model is unknown: the call is a job, and waits like any other."""
    async with house() as here:
        here.foreman._inventory.models = None
        here.fake.faults.always("/api/tags", Fault.DROP)
        here.fake.faults.next("/api/chat", Fault.DROP)
        client = await here.ask("POST", "/api/chat", chat("tiny-a"))
        assert is_whole(client)
        [row] = await here.rows()
        assert (row["state"], row["attempt"]) == ("done", 2)


async def looks(here: House, beats: int) -> int:
    """How often foreman looks for the target in so many seconds of the heartbeat."""
    found = 0
    for _ in range(beats):
        here.foreman._tick.beat()
        found += here.foreman._inventory._probing is not None
        await eventually(lambda: here.foreman._inventory._probing is None)
    return found


@pytest_twisted.ensureDeferred
async def test_a_target_that_calls_wait_for_is_looked_for_every_second() -> None:
    """So the first call is served within two seconds of its return; where nobody waits it is looked for more seldom."""
    async with house() as here:
        here.foreman._tick.stop()
        await here.fake.refuse()
        while here.foreman._inventory.up:
            await here.foreman._inventory.refresh()
        client = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: here.foreman._store.backlog.queued == 1)
        assert await looks(here, 5) == 5
        client.leave()
        await eventually(lambda: here.foreman._store.backlog.queued == 0)
        assert await looks(here, 5) < 5


# -- the target, for minutes -------------------------------------------------------------------------------------------


def beat(here: House, times: int) -> None:
    """Let so many seconds of the heartbeat pass."""
    for _ in range(times):
        here.foreman._tick.beat()


@pytest_twisted.ensureDeferred
async def test_a_minute_of_sleep_in_the_middle_of_a_stream() -> None:
    """A stream that has begun cannot be tried again: its client is cut, never left with a seeming whole."""
    async with house(models=default_models(token_rate=20.0)) as here:
        streaming = await here.send("POST", "/api/chat", chat("tiny-a"))
        async with midway(here.fake, streaming):
            waiting = await here.send("POST", "/api/chat", chat("tiny-b"))
            await eventually(lambda: here.foreman._store.backlog.queued == 1)
        here.fake.sleep()
        beat(here, 60)
        assert not streaming.is_closed
        beat(here, 15)
        await eventually(lambda: streaming.is_closed)
        assert not streaming.ended
        await eventually(lambda: not here.foreman._inventory.up)
        assert not waiting.is_closed

        here.fake.wake()
        await eventually(lambda: is_whole(waiting))
        await eventually(lambda: here.foreman._store.backlog.running == 0)
        rows = await here.rows()
        assert [(row["state"], row["error_code"], row["failures"]) for row in rows] == [
            ("failed", "target_error", 0),
            ("done", None, 0),
        ]
        assert not here.fake.overlaps
        waiting.leave()


@pytest_twisted.ensureDeferred
async def test_less_than_a_minute_of_sleep_in_the_middle_of_a_stream() -> None:
    """The connection outlives a sleep that TCP outlives: the stream goes on where it stopped."""
    async with house(models=default_models(token_rate=20.0)) as here:
        client = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: client.chunks)
        here.fake.sleep()
        beat(here, 55)
        here.fake.wake()
        await eventually(lambda: is_whole(client))
        await eventually(lambda: here.foreman._store.backlog.running == 0)
        assert facts(await here.rows()) == {("done", 1, 0)}
        client.leave()


@pytest_twisted.ensureDeferred
async def test_a_stream_that_stalls_on_a_target_that_is_awake() -> None:
    """Silence in a stream past FOREMAN_STALL_TIMEOUT, the target answering meanwhile: the client is cut, in time."""
    async with house({"STALL_TIMEOUT": "12s"}) as here:
        here.fake.faults.next("/api/chat", Fault.HANG_MID_STREAM)
        client = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: client.chunks)
        beat(here, 11)
        await eventually(lambda: here.fake.requests[-1].outcome == "answered")  # the probe
        for _ in range(20):
            beat(here, 1)
            await deferLater(reactor, 0.02)
        await eventually(lambda: client.is_closed)
        assert not client.ended
        assert here.foreman._inventory.up
        await eventually(lambda: here.foreman._store.backlog.running == 0)
        [row] = await here.rows()
        assert (row["state"], row["error_code"]) == ("failed", "timeout")


# -- foreman itself ----------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_foremans_own_sleep_in_the_middle_of_a_stream(tmp_path: Path) -> None:
    """Foreman's machine slept 7 s in a silence of 19 s: the stream goes on, since silence is counted afresh."""
    models = (FakeModel(name="slow", words=(" one",), token_rate=1 / 19), *default_models())
    async with (
        fake_ollama(models=models) as fake,
        daemon(tmp_path, fake.url, {"STALL_TIMEOUT": "10s"}) as foreman,
    ):
        client = await send_to(foreman.url, "POST", "/api/chat", chat("slow"))
        await eventually(lambda: client.chunks)
        await deferLater(reactor, 6)
        foreman.send(signal.SIGSTOP)
        await deferLater(reactor, 7)
        assert len(client.chunks) == 1
        foreman.send(signal.SIGCONT)
        await eventually(lambda: client.ended or client.is_closed)
        assert is_whole(client)
        await eventually(lambda: facts(foreman.rows()) == {("done", 1, 0)})
        client.leave()
