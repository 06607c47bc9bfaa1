"""Reading along with a job: from its beginning or late, by many, to its final line."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import succeed

from foreman.ollama.fake import Fault, default_models
from foreman.test.harness import House, RawClient, chat, eventually, house, unhurried

SLOW = default_models(token_rate=20.0)


async def submit(here: House, document: Any) -> str:
    """The id of a new job."""
    return str((await here.ask("POST", "/jobs", document)).document["job_id"])


def documents(client: RawClient) -> list[Any]:
    """The lines that have come."""
    return [json.loads(line) for line in client.body.splitlines() if line.strip()]


def text(client: RawClient) -> str:
    """What the lines say."""
    return "".join(line["message"]["content"] for line in documents(client))


async def ended(*clients: RawClient) -> None:
    """Wait until all have their whole answers, and leave."""
    await eventually(lambda: all(client.ended or client.is_closed for client in clients))
    for client in clients:
        if not client.is_closed:
            client.leave()
            await client.closed


@pytest_twisted.ensureDeferred
async def test_many_read_along_and_each_gets_all() -> None:
    """Who comes early, in the middle and after the end all read the same text, with a final line."""
    async with house(models=SLOW) as here:
        job_id = await submit(here, chat("tiny-a", options={"num_predict": 12}))
        early = [await here.send("GET", f"/jobs/{job_id}/stream") for _ in range(3)]
        await eventually(lambda: len(documents(early[0])) >= 4)
        late = await here.send("GET", f"/jobs/{job_id}/stream")
        await ended(*early, late)
        after = await here.ask("GET", f"/jobs/{job_id}/stream")
        assert len({text(client) for client in (*early, late, after)}) == 1
        assert all(documents(client)[-1]["done"] is True for client in (*early, late, after))
        assert len(documents(early[0])) == 12 + 1
        assert len(documents(late)) < 12
        assert len(documents(after)) == 1
        assert late.head is not None
        assert late.head[1]["content-type"] == "application/x-ndjson"


@pytest_twisted.ensureDeferred
async def test_a_waiting_job_can_be_followed() -> None:
    """A reader of a queued job has its head at once, and the lines when they come."""
    async with house() as here:
        await here.ask("POST", "/queue/pause", {"for": "1h"})
        job_id = await submit(here, chat("tiny-a"))
        reader = await here.send("GET", f"/jobs/{job_id}/stream")
        await eventually(lambda: reader.head)
        assert reader.body == b""
        await here.ask("POST", "/queue/resume")
        await ended(reader)
        assert documents(reader)[-1]["done"] is True


@pytest_twisted.ensureDeferred
async def test_an_openai_job_gives_its_answer_as_one_line() -> None:
    """Jobs of `/v1` run unstreamed; their stream is the answer."""
    async with house() as here:
        job_id = await submit(here, chat("tiny-a", endpoint="/v1/chat/completions", stream=True))
        reader = await here.send("GET", f"/jobs/{job_id}/stream")
        await ended(reader)
        [line] = documents(reader)
        assert line["object"] == "chat.completion"
        assert documents(await here.ask("GET", f"/jobs/{job_id}/stream")) == [line]


@pytest_twisted.ensureDeferred
async def test_a_job_that_fails_ends_its_stream_with_the_error() -> None:
    """A native client reading along sees an error line, as Ollama's streams have it; so does who comes later."""
    async with house(models=SLOW) as here:
        job_id = await submit(here, chat("tiny-a"))
        reader = await here.send("GET", f"/jobs/{job_id}/stream")
        await eventually(lambda: documents(reader))
        with unhurried(here.fake):
            await here.ask("POST", f"/jobs/{job_id}/cancel")
            await ended(reader)
        assert documents(reader)[-1] == {"error": "The job was cancelled."}
        assert documents(await here.ask("GET", f"/jobs/{job_id}/stream")) == [{"error": "The job was cancelled."}]


@pytest_twisted.ensureDeferred
async def test_a_deleted_job_ends_its_stream() -> None:
    """Who reads along when a job is erased is told so."""
    async with house(models=SLOW) as here:
        job_id = await submit(here, chat("tiny-a"))
        reader = await here.send("GET", f"/jobs/{job_id}/stream")
        await eventually(lambda: documents(reader))
        with unhurried(here.fake):
            await here.ask("DELETE", f"/jobs/{job_id}")
            await ended(reader)
        assert documents(reader)[-1] == {"error": "the job was deleted"}


@pytest_twisted.ensureDeferred
async def test_a_broken_attempt_is_not_spliced_with_the_next() -> None:
    """When a try breaks midway its stream ends with an error line; the next try is another stream."""
    async with house(models=SLOW) as here:
        here.fake.faults.next("/api/chat", Fault.CUT)
        job_id = await submit(here, chat("tiny-a", options={"num_predict": 12}))
        reader = await here.send("GET", f"/jobs/{job_id}/stream")
        await ended(reader)
        assert documents(reader)[-1] == {"error": "the attempt has failed and the job waits again"}
        again = await here.send("GET", f"/jobs/{job_id}/stream")
        await ended(again)
        assert documents(again)[-1]["done"] is True


@pytest_twisted.ensureDeferred
async def test_a_reader_that_does_not_read_slows_nobody() -> None:
    """A suspended reader does not hold up the job nor other readers."""
    async with house() as here:
        await here.ask("POST", "/queue/pause", {"for": "1h"})
        job_id = await submit(here, chat("tiny-a"))
        stuck = await here.send("GET", f"/jobs/{job_id}/stream")
        stuck.transport.pauseProducing()  # type: ignore[union-attr]
        reader = await here.send("GET", f"/jobs/{job_id}/stream")
        await here.ask("POST", "/queue/resume")
        await ended(reader)
        assert (await here.ask("GET", f"/jobs/{job_id}")).document["state"] == "done"
        stuck.transport.resumeProducing()  # type: ignore[union-attr]
        await ended(stuck)
        assert text(stuck) == text(reader)


@pytest_twisted.ensureDeferred
async def test_who_leaves_is_forgotten() -> None:
    """A reader that hangs up leaves nothing behind, and the job goes on."""
    async with house(models=SLOW) as here:
        job_id = await submit(here, chat("tiny-a", options={"num_predict": 12}))
        reader = await here.send("GET", f"/jobs/{job_id}/stream")
        await eventually(lambda: len(documents(reader)) > 1)
        reader.leave()
        await reader.closed
        await eventually(lambda: not here.foreman._jobs.following._pages)
        assert (await here.ask("GET", f"/jobs/{job_id}?wait=20")).document["state"] == "done"


@pytest_twisted.ensureDeferred
async def test_a_silent_stream_gets_filler() -> None:
    """Proxies cut what is silent: a reader of a waiting job gets a blank now and then, before the first line only."""
    async with house() as here:
        await here.ask("POST", "/queue/pause", {"for": "1h"})
        job_id = await submit(here, chat("tiny-a"))
        reader = await here.send("GET", f"/jobs/{job_id}/stream")
        await eventually(lambda: reader.head)
        for _ in range(60):
            here.foreman._tick.beat()
        await eventually(lambda: reader.body == b"  ")
        await here.ask("POST", "/queue/resume")
        await ended(reader)
        assert documents(reader)[-1]["done"] is True


@pytest_twisted.ensureDeferred
async def test_a_sync_call_cannot_be_followed() -> None:
    """The answer of a sync call is its client's alone, and not kept."""
    async with house() as here:
        call = await here.ask("POST", "/api/chat", chat("tiny-a"))
        assert call.head is not None
        answer = await here.ask("GET", f"/jobs/{call.head[1]['x-foreman-job']}/stream")
        assert answer.head is not None
        assert answer.head[0] == 404


@pytest.mark.parametrize("grace", ["5s", "0s"])
@pytest_twisted.ensureDeferred
async def test_a_stop_ends_a_stream_at_its_end(grace: str) -> None:
    """A running job that comes to its end within the grace is read to its final line; else the stream says why."""
    async with house({"SHUTDOWN_GRACE": grace}, models=SLOW) as here:
        job_id = await submit(here, chat("tiny-a", options={"num_predict": 12}))
        reader = await here.send("GET", f"/jobs/{job_id}/stream")
        await eventually(lambda: documents(reader))
        with unhurried(here.fake):
            stopped = here.foreman.stopService()
            here.foreman.stopService = lambda: succeed(None)  # type: ignore[method-assign]
            if grace == "0s":
                await stopped
        await stopped
        await ended(reader)
        last = documents(reader)[-1]
        assert last.get("done") is True if grace == "5s" else last == {"error": "foreman is stopping"}
