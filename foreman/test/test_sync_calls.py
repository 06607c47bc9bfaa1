"""Sync calls through the whole house: foreman and FakeOllama over loopback."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import ollama
import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from foreman.ollama.fake import Fault, default_models, streaming_model
from foreman.test.harness import House, RawClient, ask, chat, eventually, house, unhurried

LOADING = default_models(load_time=0.15)
SLOW = default_models(token_rate=20.0)


def generations(house: House) -> list[str]:
    """The models that were asked to generate (not just to load or unload), in order."""
    found = []
    for record in house.fake.requests:
        if record.path in ("/api/chat", "/api/generate"):
            body = json.loads(record.body)
            if body.get("messages") or body.get("prompt"):
                found.append(body["model"])
    return found


IDENTICAL: list[tuple[str, str, Any]] = [
    ("POST", "/api/chat", chat("tiny-a")),
    ("POST", "/api/chat", chat("tiny-a", stream=False)),
    ("POST", "/api/chat", chat("tiny-uni")),
    ("POST", "/api/chat", chat("tiny-uni", stream=False)),
    ("POST", "/api/chat", chat("TINY-A", options={"num_predict": 3})),
    ("POST", "/api/chat", chat("tiny-rep")),
    ("POST", "/api/chat", chat("tiny-rep", stream=False)),
    ("POST", "/api/chat", chat("tiny-think", think=True)),
    ("POST", "/api/chat", {"model": "tiny-a", "messages": []}),
    ("POST", "/api/chat", {"model": "tiny-a", "messages": [], "keep_alive": 0}),
    ("POST", "/api/generate", {"model": "tiny-a", "prompt": "hi"}),
    ("POST", "/api/generate", {"model": "tiny-a", "prompt": "hi", "stream": False}),
    ("POST", "/api/generate", {"model": "tiny-a", "prompt": "hi", "raw": True}),
    ("POST", "/api/generate", {"model": "tiny-a"}),
    ("POST", "/api/chat", b'{"MODEL":"tiny-a","Messages":[{"role":"user","content":"hi"}]} trailing'),
    ("POST", "/api/chat", chat("nope")),
    ("POST", "/api/generate", {"model": "nope", "prompt": "hi"}),
    ("POST", "/api/chat", {"messages": []}),
    ("POST", "/api/generate", {"prompt": "hi"}),
    ("POST", "/api/chat", chat("a b!")),
    ("POST", "/api/chat", b""),
    ("POST", "/api/chat", b"{bad"),
    ("POST", "/api/chat", b'{"model": "tiny-a", "mess'),
    ("POST", "/api/chat", b"[1]"),
    ("POST", "/api/chat", {"model": "tiny-a", "messages": "no"}),
    ("POST", "/api/chat", chat("tiny-a", stream="no")),
    ("POST", "/api/chat", chat("tiny-a", keep_alive="10")),
    ("POST", "/api/chat", chat("tiny-a", options={"num_ctx": "x"})),
    ("POST", "/api/chat", chat("tiny-a", format="xml")),
    ("POST", "/api/chat", chat("tiny-a", think=True)),
    ("POST", "/api/chat", chat("tiny-embed")),
    ("GET", "/", None),
    ("HEAD", "/", None),
    ("GET", "/api/tags", None),
    ("HEAD", "/api/tags", None),
    ("GET", "/api/version", None),
    ("GET", "/api/ps", None),
    ("HEAD", "/api/ps", None),
    ("POST", "/api/show", {"model": "tiny-a"}),
    ("POST", "/api/show", {"name": "tiny-a"}),
    ("POST", "/api/show", {"model": "nope"}),
    ("GET", "/api/status", None),
    ("GET", "/nothing", None),
    ("GET", "/api/tags/", None),
    ("POST", "/api/chat/", chat("tiny-a")),
    ("GET", "//api/tags", None),
    ("GET", "/api/../api/version", None),
    ("GET", "/api%2Fversion", None),
    ("GET", "/API/tags", None),
    ("GET", "/api/chat", None),
    ("DELETE", "/api/tags", None),
]

VOLATILE = {"date", "x-foreman-job", "server-timing"}


def seen(client: RawClient) -> tuple[Any, ...]:
    """What a client can tell: status, headers, chunk boundaries, bytes."""
    assert client.head is not None
    status, headers = client.head
    chunked = headers.get("transfer-encoding") == "chunked"
    body = re.sub(
        rb'"expires_at":"[^"]+"', b"", client.body
    )  # of /api/ps; moves with every call, and so does its length
    if body != client.body:
        headers.pop("content-length")
    kept = {name: value for name, value in headers.items() if name not in VOLATILE}
    return status, kept, client.chunks if chunked else body


@pytest.mark.parametrize(("method", "path", "document"), IDENTICAL, ids=lambda value: str(value)[:60])
@pytest_twisted.ensureDeferred
async def test_answers_are_the_targets_byte_for_byte(method: str, path: str, document: Any) -> None:
    """Status, headers, chunk boundaries and bytes are the same through foreman as direct."""
    async with house(frozen=True) as here:
        await ask(here.fake.url, "POST", "/api/generate", {"model": "tiny-a"})  # resident both times
        through = seen(await here.ask(method, path, document))
        await ask(here.fake.url, "POST", "/api/generate", {"model": "tiny-a"})
        direct = seen(await ask(here.fake.url, method, path, document))
        assert through == direct
        assert not here.fake.overlaps


@pytest_twisted.ensureDeferred
async def test_a_chat_says_its_job_and_how_long_it_waited() -> None:
    """The answer's head names the job, and the time in the queue and of the load in milliseconds."""
    async with house(models=LOADING) as here:
        client = await here.ask("POST", "/api/chat", chat("tiny-a"))
        [row] = await here.rows()
        assert client.head is not None
        headers = client.head[1]
        assert headers["x-foreman-job"] == row["id"]
        timings = dict(part.split(";dur=") for part in headers["server-timing"].split(", "))
        assert int(timings["load"]) == row["working_at"] - row["loading_at"] >= 140
        assert int(timings["queue"]) == row["loading_at"] - row["created_at"]


@pytest_twisted.ensureDeferred
async def test_a_chats_record_has_times_and_counts_and_no_words() -> None:
    """The row of a sync call keeps timings and token counts, and nothing that was said."""
    async with house() as here:
        client = await here.ask("POST", "/api/chat", chat("tiny-a", "a secret question"))
        last = json.loads(client.body.splitlines()[-1])
        await eventually(lambda: here.foreman._store.backlog.running == 0)
        [row] = await here.rows()
        assert row["state"] == "done"
        assert row["attempt"] == 1
        assert row["failures"] == 0
        assert (row["prompt_tokens"], row["output_tokens"]) == (last["prompt_eval_count"], last["eval_count"])
        assert (
            row["created_at"] <= row["loading_at"] <= row["working_at"] <= row["first_byte_at"] <= row["completed_at"]
        )
        files = [path.read_bytes() for path in here.folder.iterdir() if path.name.startswith("foreman.db")]
        assert not any(b"secret question" in data or b"alpha" in data for data in files)


def accepted(here: House) -> int:
    """How many jobs are in the database and not over."""
    backlog = here.foreman._store.backlog
    return backlog.queued + backlog.running


@pytest_twisted.ensureDeferred
async def test_the_queue_is_drained_by_model() -> None:
    """`A B A A C A B C` costs three loads."""
    async with house(models=LOADING) as here:
        calls = []
        with unhurried(here.fake):
            for letter in "abaacabc":
                calls.append(await here.send("POST", "/api/chat", chat(f"tiny-{letter}", stream=False)))
                await eventually(lambda: accepted(here) == len(calls))
        await eventually(lambda: all(call.ended for call in calls))
        assert generations(here) == [f"tiny-{letter}" for letter in "aaaabbcc"]
        assert len(here.fake.loads) == 3
        assert not here.fake.overlaps
        for call in calls:
            call.leave()


@pytest_twisted.ensureDeferred
async def test_two_context_lengths_of_one_model_are_drained_apart() -> None:
    """Jobs of one model with different `num_ctx` do not reload it in turns."""
    async with house(models=LOADING) as here:
        calls = []
        with unhurried(here.fake):
            for context in (512, 1024, 512, 1024, 512, 1024):
                body = chat("tiny-a", stream=False, options={"num_ctx": context})
                calls.append(await here.send("POST", "/api/chat", body))
                await eventually(lambda: accepted(here) == len(calls))
        await eventually(lambda: all(call.ended for call in calls))
        assert len(here.fake.loads) == 2
        for call in calls:
            call.leave()


# -- leaving -----------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_the_queue_never_reaches_the_target() -> None:
    """Leave while queued: the row says so and the target hears nothing of it."""
    async with house(models=SLOW) as here:
        first = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: first.head)
        with unhurried(here.fake):
            second = await here.send("POST", "/api/chat", chat("tiny-b"))
            await eventually(lambda: here.foreman._store.backlog.queued == 1)
            second.leave()
            await eventually(lambda: here.foreman._store.backlog.queued == 0)
        await eventually(lambda: first.ended)
        rows = await here.rows()
        assert (rows[1]["state"], rows[1]["error_code"], rows[1]["attempt"]) == ("failed", "client_disconnected", 0)
        assert generations(here) == ["tiny-a"]
        first.leave()


@pytest_twisted.ensureDeferred
async def test_a_load_survives_the_client_that_wanted_it() -> None:
    """Leave while loading: the load goes on, and the next call finds the model warm."""
    async with house(models=LOADING) as here:
        with unhurried(here.fake):
            first = await here.send("POST", "/api/chat", chat("tiny-a"))
            await eventually(lambda: here.fake.loads)
            first.leave()
            await eventually(lambda: not len(here.foreman._switchboard))
        second = await here.ask("POST", "/api/chat", chat("tiny-a"))
        assert second.head is not None
        assert second.head[0] == 200
        assert len(here.fake.loads) == 1
        assert generations(here) == ["tiny-a"]
        rows = await here.rows()
        assert (rows[0]["state"], rows[0]["error_code"]) == ("failed", "client_disconnected")


@pytest.mark.parametrize("stream", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_stops_the_generation(stream: bool) -> None:
    """Leave while working, streamed or not, first byte or not: the target is left too, in the middle of its work."""
    async with house(models=SLOW) as here:
        client = await here.send("POST", "/api/chat", chat("tiny-a", stream=stream))
        await eventually(lambda: generations(here))
        if stream:
            await eventually(lambda: client.chunks)
        record = here.fake.requests[-1]
        with unhurried(here.fake):
            client.leave()
            await eventually(lambda: record.left_at)
        await eventually(lambda: here.foreman._store.backlog.running == 0)
        [row] = await here.rows()
        assert (row["state"], row["error_code"]) == ("failed", "client_disconnected")


@pytest_twisted.ensureDeferred
async def test_half_closing_counts_as_leaving() -> None:
    """A client that closes its side after the request has left, as with Ollama."""
    async with house(models=SLOW) as here:
        client = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: client.chunks)
        with unhurried(here.fake):
            client.transport.loseWriteConnection()  # type: ignore[union-attr]
            await eventually(lambda: here.fake.requests[-1].left_at)


@pytest_twisted.ensureDeferred
async def test_a_client_that_takes_nothing_for_a_minute_is_cut() -> None:
    """A suspended phone does not hold the only worker: 60 s without a byte accepted, and it is cut."""
    models = (streaming_model("big", tokens=20_000, token_bytes=2000), *default_models())
    async with house(models=models) as here:
        client = await here.send("POST", "/api/chat", chat("big"))
        await eventually(lambda: client.chunks)
        client.transport.pauseProducing()  # type: ignore[union-attr]
        await eventually(lambda: here.foreman._worker.running is not None)
        caller = await eventually(lambda: next(iter(here.foreman._switchboard)))
        await eventually(lambda: caller._reading_paused)
        second = await here.send("POST", "/api/chat", chat("tiny-a"))
        for _ in range(59):
            here.foreman._tick.beat()
        assert not caller.gone
        for _ in range(3):
            here.foreman._tick.beat()
        await eventually(lambda: second.ended)
        rows = await here.rows()
        assert rows[0]["error_code"] == "client_disconnected"
        client.transport.resumeProducing()  # type: ignore[union-attr]
        second.leave()


@pytest_twisted.ensureDeferred
async def test_a_slow_client_slows_the_target_and_gets_every_byte() -> None:
    """Backpressure: at most about a mebibyte waits in foreman; nothing is lost."""
    models = (streaming_model("big", tokens=10_000, token_bytes=2000), *default_models())
    async with house(models=models, frozen=True) as here:
        direct = await ask(here.fake.url, "POST", "/api/chat", chat("big"))
        client = await here.send("POST", "/api/chat", chat("big"))
        await eventually(lambda: client.chunks)
        client.transport.pauseProducing()  # type: ignore[union-attr]
        caller = await eventually(lambda: next(iter(here.foreman._switchboard)))
        await eventually(lambda: caller._reading_paused)
        assert caller._waiting_bytes < 1_300_000
        client.transport.resumeProducing()  # type: ignore[union-attr]
        await eventually(lambda: client.ended, within=30)
        assert client.body == direct.body
        client.leave()


# -- the target's faults -----------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_cut_before_the_head_is_tried_again() -> None:
    """As long as no head has come, the client never sees a broken try."""
    async with house() as here:
        here.fake.faults.next("/api/chat", Fault.DROP)
        client = await here.ask("POST", "/api/chat", chat("tiny-a"))
        assert client.head is not None
        assert client.head[0] == 200
        await eventually(lambda: here.foreman._store.backlog.running == 0)
        [row] = await here.rows()
        assert (row["state"], row["attempt"]) == ("done", 2)


@pytest.mark.parametrize("fault", [Fault.CUT_MID_LINE, Fault.CUT])
@pytest_twisted.ensureDeferred
async def test_a_cut_stream_is_cut_for_the_client_too(fault: Fault) -> None:
    """A stream cut at the target never looks whole to the client, and what came before is delivered."""
    async with house() as here:
        here.fake.faults.next("/api/chat", fault)
        client = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: client.is_closed)
        assert client.chunks
        assert b"" not in client.chunks
        await eventually(lambda: here.foreman._store.backlog.running == 0)
        [row] = await here.rows()
        assert (row["state"], row["error_code"], row["attempt"]) == ("failed", "target_error", 1)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault.ERROR_500, 500, "target_error"),
        (Fault.BUSY_503, 503, "target_error"),
        (Fault.ERROR_LINE, 200, "target_error"),
        (Fault.NO_DONE, 200, "incomplete"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_whole_answers_are_carried_whatever_they_say(fault: Fault, status: int, code: str) -> None:
    """A complete error answer is the client's as it is, and is never tried again."""
    async with house(frozen=True) as here:
        here.fake.faults.next("/api/chat", fault, times=2)
        through = await here.ask("POST", "/api/chat", chat("tiny-a"))
        direct = await ask(here.fake.url, "POST", "/api/chat", chat("tiny-a"))
        assert seen(through) == seen(direct)
        assert through.head is not None
        assert through.head[0] == status
        await eventually(lambda: here.foreman._store.backlog.running == 0)
        [row] = await here.rows()
        assert (row["state"], row["error_code"], row["attempt"]) == ("failed", code, 1)


@pytest_twisted.ensureDeferred
async def test_a_failed_load_is_answered_in_ollamas_own_words() -> None:
    """When the load request is refused, the call's own request is sent once, and its answer is the client's."""
    async with house() as here:
        here.fake.faults.next("/api/generate", Fault.ERROR_500, load=True)
        here.fake.faults.next("/api/chat", Fault.ERROR_500)
        client = await here.ask("POST", "/api/chat", chat("tiny-a"))
        assert client.head is not None
        assert client.head[0] == 500
        assert "error was encountered" in client.document["error"]
        assert generations(here) == ["tiny-a"]


# -- the official client -----------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_official_python_client() -> None:
    """ollama-python works against foreman with nothing but its base URL changed."""

    def use(url: str) -> None:
        client = ollama.Client(host=url)
        assert any(model.model == "tiny-a:latest" for model in client.list().models)
        messages = [{"role": "user", "content": "hi"}]
        whole = client.chat(model="tiny-a", messages=messages)
        streamed = list(client.chat(model="tiny-a", messages=messages, stream=True))
        assert "".join(part.message.content or "" for part in streamed) == whole.message.content
        assert streamed[-1].done
        assert (
            client.generate(model="tiny-b", prompt="hi").response == " one two three four five six seven eight nine ten"
        )
        assert len(list(client.generate(model="tiny-b", prompt="hi", stream=True))) == 11
        assert [model.model for model in client.ps().models] == ["tiny-b:latest"]
        assert client.show("tiny-a").details is not None
        with pytest.raises(ollama.ResponseError) as caught:
            client.chat(model="nope", messages=messages)
        assert caught.value.status_code == 404

    async def use_async(url: str) -> None:
        client = ollama.AsyncClient(host=url)
        messages = [{"role": "user", "content": "hi"}]
        whole = await client.chat(model="tiny-a", messages=messages)
        parts = [part async for part in await client.chat(model="tiny-a", messages=messages, stream=True)]
        assert "".join(part.message.content or "" for part in parts) == whole.message.content
        assert (await client.generate(model="tiny-b", prompt="hi")).done
        assert (await client.list()).models
        assert (await client.ps()).models
        assert (await client.show("tiny-a")).details is not None

    async with house() as here:
        await deferToThread(use, here.url)
        await deferToThread(asyncio.run, use_async(here.url))
