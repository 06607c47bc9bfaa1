"""What happens to those who wait: the held line, the wedge, the embedder that passes at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted

from foreman.ollama.fake import Fault, default_models
from foreman.test.harness import House, RawClient, ask, chat, eventually, house, unhurried

SLOW = default_models(token_rate=20.0)
PATIENT = {"HOLD_LINE": "10m", "SYNC_WAIT": "1m"}


async def held(here: House, path: str, document: Any) -> RawClient:
    """Send a call to a target that hangs, and let ten minutes pass for it."""
    here.fake.faults.next(path, Fault.HANG)
    client = await here.send("POST", path, document)
    await eventually(lambda: here.foreman._worker.running)
    await eventually(lambda: any(record.path == path for record in here.fake.requests))
    caller = next(iter(here.foreman._switchboard))
    caller.since -= 600  # type: ignore[attr-defined]
    here.foreman._tick.beat()
    await eventually(lambda: client.head)
    return client


HELD: list[tuple[str, Any, str, bytes]] = [
    ("/api/chat", chat("tiny-a"), "application/x-ndjson", b" "),
    ("/api/chat", chat("tiny-a", stream=False), "application/json", b" "),
    ("/v1/chat/completions", chat("tiny-a", stream=True), "text/event-stream", b": \n\n"),
    ("/v1/chat/completions", chat("tiny-a"), "application/json", b" "),
    ("/v1/messages", chat("tiny-a", stream=True, max_tokens=50), "text/event-stream", b": \n\n"),
]


@pytest.mark.parametrize(("path", "document", "content_type", "filler"), HELD)
@pytest_twisted.ensureDeferred
async def test_a_line_is_held_and_the_answer_follows(
    path: str, document: Any, content_type: str, filler: bytes
) -> None:
    """A long wait gets its head and one filler early; then comes the answer, as it is direct."""
    async with house(PATIENT, frozen=True) as here:
        client = await held(here, path, document)
        assert client.head is not None
        assert client.head[0] == 200
        assert client.head[1]["content-type"] == content_type
        assert "x-foreman-job" in client.head[1]
        assert client.chunks == [filler]
        here.foreman._tick.beat()
        here.fake.cut()  # the hanging try breaks, and is made again
        await eventually(lambda: client.ended, within=20)
        direct = await ask(here.fake.url, "POST", path, document)
        assert client.body == filler + direct.body
        client.leave()


@pytest.mark.parametrize(
    ("path", "document", "failure"),
    [
        (
            "/api/chat",
            chat("tiny-a"),
            b'{"error":"an error was encountered while running the model: unexpected EOF"}\n',
        ),
        ("/api/chat", chat("tiny-a", stream=False), b'{"error":"an error was encountered while running the model: '),
        ("/v1/chat/completions", chat("tiny-a", stream=True), b'data: {"error":{"message":"an error was'),
        ("/v1/messages", chat("tiny-a", stream=True, max_tokens=9), b'event: error\ndata: {"type":"error","error":{'),
    ],
)
@pytest_twisted.ensureDeferred
async def test_after_the_line_is_held_a_failure_is_in_the_body(path: str, document: Any, failure: bytes) -> None:
    """The target's error answer comes in the stream's own form."""
    async with house(PATIENT) as here:
        client = await held(here, path, document)
        here.fake.faults.next(path, Fault.ERROR_500)
        here.fake.cut()
        await eventually(lambda: client.ended, within=20)
        assert client.body.lstrip(b" :\n").startswith(failure)
        client.leave()


@pytest_twisted.ensureDeferred
async def test_foremans_own_errors_are_in_the_body_of_a_held_line() -> None:
    """A held call that cannot be served any more says so and ends properly."""
    async with house(PATIENT) as here:
        client = await held(here, "/api/chat", chat("tiny-a"))
        await here.fake.refuse()
        here.fake.cut()
        await eventually(lambda: not here.foreman._inventory.up)
        here.foreman._inventory.down_since -= 600
        here.foreman._tick.beat()
        await eventually(lambda: client.ended)
        assert json.loads(client.body) == {"error": "The target cannot be reached"}
        client.leave()


@pytest_twisted.ensureDeferred
async def test_filler_comes_every_half_minute() -> None:
    """Once held, the line gets a byte every 30 s and not more."""
    async with house(PATIENT) as here:
        client = await held(here, "/api/chat", chat("tiny-a"))
        caller = next(iter(here.foreman._switchboard))
        for _ in range(5):
            here.foreman._tick.beat()
        caller._filled_at -= 31  # type: ignore[attr-defined]
        for _ in range(5):
            here.foreman._tick.beat()
        await eventually(lambda: len(client.chunks) == 2)
        client.leave()


# -- the wedge ---------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_wedged_target_costs_nobody_their_job() -> None:
    """Three broken tries over two jobs: it is the target. Trials are rare and free, and a success lifts the charges."""
    async with house({"MAX_ATTEMPTS": "3"}) as here:
        here.fake.faults.always("/api/chat", Fault.DROP)
        calls = [await here.send("POST", "/api/chat", chat(model, stream=False)) for model in ("tiny-a", "tiny-b")]
        await eventually(lambda: here.foreman._inventory.wedged, within=20)
        assert (await here.ask("GET", "/healthz")).document["target"]["state"] == "wedged"
        worker = here.foreman._worker
        assert 0 < worker._aftermath.busy_until - worker._clock.seconds() <= 30
        worker._aftermath.busy_until = 0.0
        worker.wake()
        await eventually(lambda: worker._aftermath.busy_until)
        assert 30 < worker._aftermath.busy_until - worker._clock.seconds() <= 60
        assert sum(row["failures"] for row in await here.rows()) == 3
        here.fake.faults.clear()
        worker._aftermath.busy_until = 0.0
        worker.wake()
        await eventually(lambda: all(call.ended for call in calls), within=20)
        assert not here.foreman._inventory.wedged
        rows = await here.rows()
        assert [row["state"] for row in rows] == ["done", "done"]
        assert sum(row["failures"] for row in rows) < 3
        for call in calls:
            call.leave()


# -- embeddings --------------------------------------------------------------------------------------------------------


EMBED = {"EMBED_MODEL": "tiny-embed"}


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/api/embed", {"model": "Tiny-Embed:latest", "input": "x"}),
        ("/api/embeddings", {"model": "tiny-embed", "prompt": "x"}),
        ("/v1/embeddings", {"model": "tiny-embed", "input": "x"}),
    ],
)
@pytest_twisted.ensureDeferred
async def test_calls_that_name_the_embedder_pass_at_once(path: str, document: Any) -> None:
    """While a chat runs, embeddings of the pinned embedder are answered, without a row."""
    async with house(EMBED, models=SLOW, slots=2) as here:
        client = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: client.chunks)
        with unhurried(here.fake):
            answer = await here.ask("POST", path, document)
        assert answer.head is not None
        assert answer.head[0] == 200
        assert not client.ended
        assert len(await here.rows()) == 1
        client.leave()


@pytest_twisted.ensureDeferred
async def test_the_embedder_is_pinned_at_start_and_when_the_target_returns() -> None:
    """It is warmed with keep_alive -1 without being asked for, and again after the target was away."""
    async with house(EMBED, slots=2) as here:

        def pins() -> int:
            return sum(
                json.loads(record.body) == {"model": "tiny-embed", "input": "warm", "keep_alive": -1}
                for record in here.fake.requests
                if record.path == "/api/embed"
            )

        await eventually(lambda: pins() == 1)
        await here.fake.refuse()
        while here.foreman._inventory.up:
            await here.foreman._inventory.refresh()
        refused = await here.ask("POST", "/api/embed", {"model": "tiny-embed", "input": "x"})
        assert refused.head is not None
        assert refused.head[0] == 503
        await here.fake.listen()
        await eventually(lambda: pins() == 2)


@pytest_twisted.ensureDeferred
async def test_other_embedding_models_wait_in_the_queue() -> None:
    """An embedding call for any other model would swap, so it is a job."""
    async with house() as here:
        answer = await here.ask("POST", "/api/embed", {"model": "tiny-embed", "input": "x"})
        assert answer.head is not None
        assert answer.head[0] == 200
        [row] = await here.rows()
        assert (row["endpoint"], row["model"]) == ("/api/embed", "tiny-embed")


@pytest_twisted.ensureDeferred
async def test_at_most_sixteen_embeddings_are_at_the_target() -> None:
    """Further ones wait their turn, and one that leaves makes room."""
    async with house(EMBED, slots=2) as here:
        await eventually(lambda: here.fake.loads)
        here.fake.faults.always("/api/embed", Fault.HANG)
        calls = [await here.send("POST", "/api/embed", {"model": "tiny-embed", "input": "x"}) for _ in range(20)]

        def at_target() -> int:
            return sum(record.path == "/api/embed" and record.outcome == "open" for record in here.fake.requests)

        await eventually(lambda: at_target() == 16)
        for call in calls[:6]:
            call.leave()
        await eventually(lambda: at_target() == 14)
        for call in calls[6:]:
            call.leave()
        await eventually(lambda: at_target() == 0)
