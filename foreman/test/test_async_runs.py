"""Async jobs from end to end: accepted by the store, run at FakeOllama, and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_twisted
from attrs import define, field
from twisted.internet.task import deferLater
from ulid import ULID

from foreman.errors import Unwritable
from foreman.job import ErrorCode, Job, JobState, NewJob, Runner, Submission
from foreman.ollama import requests
from foreman.ollama.fake import default_models
from foreman.ollama.fake.faults import Fault
from foreman.ollama.names import normalise
from foreman.ollama.requests import Inference
from foreman.record import DeliveryState, JobRecord
from foreman.service import now_ms
from foreman.test.harness import House, chat, daemon, eventually, fake_ollama, house, reactor, unhurried
from foreman.work.archive import Archive
from foreman.work.database import Database
from foreman.work.store import Store
from foreman.work.worker import CANCELLED

SLOW = default_models(token_rate=20.0)


def brought(document: Any, *, endpoint: str = "/api/chat", house: House | None = None, **more: Any) -> NewJob:
    """A job as the web face brings it."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    read = requests.read(endpoint, body)
    assert isinstance(read, Inference)
    model = None if house is None else house.foreman._inventory.find(read.model)
    return NewJob(
        id=str(ULID()),
        endpoint=endpoint,
        model=read.model,
        runner=Runner(normalise(read.model) if model is None else model.key, read.options),
        size=len(body),
        created_at=now_ms(),
        submission=Submission(body=body, **more),
    )


async def submit(here: House, document: Any, **more: Any) -> Job:
    """Have a job accepted."""
    [job] = await here.foreman._store.accept([brought(document, house=here, **more)])
    return job


async def over(here: House, job: Job) -> JobRecord:
    """The record of a job that has ended."""
    ended: list[Job] = []

    def follow(move: Any) -> None:
        if move.job.id == job.id and move.job.state in (JobState.DONE, JobState.FAILED):
            ended.append(move.job)

    here.foreman._store.on_move.append(follow)
    found = await here.foreman._store.get(job.id)
    assert found is not None
    if found.state not in (JobState.DONE, JobState.FAILED):
        await eventually(lambda: ended)
    here.foreman._store.on_move.remove(follow)
    record = await here.foreman._archive.record(job.id)
    assert record is not None
    return record


def text_of(record: JobRecord, name: str) -> str:
    """An artifact that is small enough to stand in its reference."""
    inline = record.artifacts[name].inline
    assert inline is not None
    return inline.decode()


def generations(here: House, path: str = "/api/chat") -> int:
    """How many requests to generate have come to the target."""
    return sum(each.path == path and b"tiny" in each.body and b"hi" in each.body for each in here.fake.requests)


async def states(here: House, job: Job) -> list[str]:
    """The states that the job's events tell of, whose numbers must have no gap and whose chain no break."""
    history = await here.foreman._archive.history(job.id)
    assert history is not None
    assert [event.sequence for event in history.events] == list(range(1, len(history.events) + 1))
    assert [event.previous_state for event in history.events] == [None, *(each.state for each in history.events[:-1])]
    return [event.state.value for event in history.events]


async def working(here: House, job: Job) -> None:
    """Wait until the target has the job's request."""
    await eventually(
        lambda: here.foreman._worker._attempts._exchange is not None and here.foreman._worker.running is not None
    )
    assert here.foreman._worker.running is not None
    assert here.foreman._worker.running.id == job.id


async def spoken(here: House, job: Job) -> None:
    """Wait until the target has begun to answer."""
    listener = Heard()
    here.foreman._tails.join(job.id, listener)
    await eventually(lambda: listener.data)


async def left(here: House, table: str) -> int:
    """How many rows a table has."""
    rows = await here.foreman._store._database.read(
        lambda cursor: cursor.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
    )
    return int(rows[0])


@pytest_twisted.ensureDeferred
async def test_a_chat_is_streamed_folded_and_kept() -> None:
    """An async chat gives the answer that an unstreamed call would have given, its text, and a receipt."""
    async with house() as here:
        job = await submit(here, chat("tiny-a", stream=False))
        record = await over(here, job)
        assert record.job.state is JobState.DONE
        assert list(record.artifacts) == ["completion", "content"]
        completion = orjson.loads(record.artifacts["completion"].inline or b"")
        assert completion["done"] is True
        assert record.artifacts["content"].inline == completion["message"]["content"].encode()
        [sent] = [each for each in here.fake.requests if each.path == "/api/chat" and b"messages" in each.body]
        assert json.loads(sent.body)["stream"] is True
        assert record.receipt.output_tokens == completion["eval_count"]
        assert record.receipt.run_ms is not None


@pytest.mark.parametrize(
    ("endpoint", "document", "content"),
    [
        ("/api/generate", {"model": "tiny-a", "prompt": "hi", "stream": False}, "response"),
        ("/api/embed", {"model": "tiny-embed", "input": "hi"}, None),
        ("/v1/chat/completions", chat("tiny-a", stream=True), "choices"),
        ("/v1/embeddings", {"model": "tiny-embed", "input": "hi"}, None),
    ],
)
@pytest_twisted.ensureDeferred
async def test_every_endpoint(endpoint: str, document: dict[str, Any], content: str | None) -> None:
    """Every endpoint's answer is kept as the unstreamed one, its text beside it when there is one."""
    async with house() as here:
        record = await over(here, await submit(here, document, endpoint=endpoint))
        assert record.job.state is JobState.DONE
        completion = orjson.loads(text_of(record, "completion"))
        assert ("content" in record.artifacts) == (content is not None)
        assert content is None or content in completion
        assert await states(here, record.job) == ["queued", "loading", "working", "done"]
        assert await left(here, "bodies") == 0


@pytest_twisted.ensureDeferred
async def test_a_load_request_is_a_job_too() -> None:
    """A chat without messages only loads; its answer has no text."""
    async with house() as here:
        record = await over(here, await submit(here, {"model": "tiny-a"}))
        assert record.job.state is JobState.DONE
        assert orjson.loads(text_of(record, "completion"))["done_reason"] == "load"
        assert list(record.artifacts) == ["completion"]


@pytest.mark.parametrize("fault", [Fault.CUT_MID_LINE, Fault.ERROR_LINE, Fault.ERROR_500])
@pytest_twisted.ensureDeferred
async def test_a_try_that_broke_is_repeated(fault: Fault) -> None:
    """Nobody has seen what came, so the job is tried again after its backoff; nothing of the first try is kept."""
    async with house() as here:
        here.fake.faults.next("/api/chat", fault, load=False)
        record = await over(here, await submit(here, chat("tiny-a")))
        assert (record.job.state, record.job.attempt, record.job.failures) == (JobState.DONE, 2, 1)
        assert list(record.artifacts) == ["completion", "content"]
        assert await states(here, record.job) == [
            "queued",
            "loading",
            "working",
            "queued",
            "loading",
            "working",
            "done",
        ]


@pytest_twisted.ensureDeferred
async def test_a_busy_target_charges_nothing() -> None:
    """A 503 is waited out."""
    async with house() as here:
        here.fake.faults.next("/api/chat", Fault.BUSY_503, load=False)
        record = await over(here, await submit(here, chat("tiny-a")))
        assert (record.job.state, record.job.attempt, record.job.failures) == (JobState.DONE, 2, 0)


@pytest_twisted.ensureDeferred
async def test_the_last_failure_keeps_the_text() -> None:
    """A job whose tries are used up tells the last cause, and keeps the text that had come."""
    async with house({"MAX_ATTEMPTS": "1"}) as here:
        here.fake.faults.always("/api/chat", Fault.CUT, after=3)
        record = await over(here, await submit(here, chat("tiny-a")))
        assert record.job.error is not None
        assert record.job.error.code is ErrorCode.ATTEMPTS_EXHAUSTED
        assert list(record.artifacts) == ["partial"]
        assert len(text_of(record, "partial").split()) == 3
        assert record.job.first_byte_at is not None
        assert await left(here, "bodies") == 0


@pytest.mark.parametrize(
    ("fault", "document", "code"),
    [
        (Fault.NO_DONE, chat("tiny-a"), ErrorCode.INCOMPLETE),
        (None, chat("tiny-a", options={"temperature": "hot"}), ErrorCode.INVALID_REQUEST),
        (None, chat("tiny-embed"), ErrorCode.INVALID_REQUEST),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_no_repetition_helps(fault: Fault | None, document: dict[str, Any], code: ErrorCode) -> None:
    """A refused request and an incomplete answer fail at once, with the target's own text, and the drain goes on."""
    async with house() as here:
        if fault is not None:
            here.fake.faults.next("/api/chat", fault, load=False)
        job = await submit(here, document)
        after = await submit(here, chat("tiny-b"))
        record = await over(here, job)
        assert record.job.error is not None
        assert (record.job.error.code, record.job.attempt) == (code, 1)
        assert (await over(here, after)).job.state is JobState.DONE


@pytest_twisted.ensureDeferred
async def test_a_load_that_fails_sets_its_runner_aside() -> None:
    """A runner that would not load is left alone for the backoff while others go on, and the job pays for it."""
    async with house() as here:
        here.fake.faults.next("/api/generate", Fault.ERROR_500, model="tiny-a:latest", load=True)
        both = [brought(chat(model), house=here) for model in ("tiny-a", "tiny-b")]
        broken, other = await here.foreman._store.accept(both)
        record = await over(here, broken)
        assert (record.job.state, record.job.failures) == (JobState.DONE, 1)
        assert (await over(here, other)).job.state is JobState.DONE
        chats = [json.loads(each.body)["model"] for each in here.fake.requests if each.path == "/api/chat"]
        assert chats == ["tiny-b", "tiny-a"]
        assert record.job.waited_for == ("tiny-a", "tiny-b")


@pytest_twisted.ensureDeferred
async def test_a_model_that_was_unknown_all_along() -> None:
    """What was accepted while nobody knew the models is checked when it runs."""
    async with house() as here:
        record = await over(here, await submit(here, chat("no-such-model")))
        assert record.job.error is not None
        assert record.job.error.code is ErrorCode.MODEL_NOT_FOUND
        assert here.fake.requests[-1].path != "/api/chat"


# -- interrupted -----------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_cancelled_at_work() -> None:
    """Cancelling a working job closes the target's connection first, keeps the text so far, and the drain goes on."""
    async with house(models=SLOW) as here:
        job, after = await submit(here, chat("tiny-a")), await submit(here, chat("tiny-a"))
        await spoken(here, job)
        with unhurried(here.fake):
            assert await here.foreman._worker.cancel(job.id) is True
            [first] = [each for each in here.fake.requests if each.path == "/api/chat"]
            await eventually(lambda: first.outcome == "left")
        record = await over(here, job)
        assert record.job.error == CANCELLED
        assert text_of(record, "partial")
        assert await here.foreman._worker.cancel(job.id) is False
        assert await here.foreman._worker.cancel("nobody") is None
        assert (await over(here, after)).job.state is JobState.DONE


@pytest_twisted.ensureDeferred
async def test_cancelled_before_it_works() -> None:
    """A queued job never reaches the target; for a loading one the load goes on, for whoever comes next."""
    async with house() as here:
        with unhurried(here.fake):
            loading, queued = await submit(here, chat("tiny-a")), await submit(here, chat("tiny-b"))
            await eventually(lambda: here.fake.scheduler.loading)
            assert await here.foreman._worker.cancel(loading.id) is True
            assert await here.foreman._worker.cancel(queued.id) is True
            for job in (loading, queued):
                assert (await over(here, job)).job.error == CANCELLED
        await eventually(lambda: here.foreman._worker.running is None)
        assert here.foreman._residency.resident == loading.runner
        assert generations(here) == 0


@pytest.mark.parametrize("when", ["queued", "working", "done"])
@pytest_twisted.ensureDeferred
async def test_deleted(when: str) -> None:
    """Deleting a job leaves nothing of it, whatever state it was in, and nothing is sent of it any more."""
    async with house(models=SLOW) as here:
        first = await submit(here, chat("tiny-b"))
        job = await submit(here, chat("tiny-a", options={"num_predict": 5}), webhook="http://127.0.0.1:9/")
        if when == "working":
            await over(here, first)
            await working(here, job)
        elif when == "done":
            await over(here, job)
        assert await here.foreman._worker.delete(job.id) is True
        assert await here.foreman._archive.record(job.id) is None
        assert await here.foreman._deliveries.due(now_ms() + 10**9, limit=9, per_host=9) == []
        assert await here.foreman._worker.delete(job.id) is False
        await over(here, first)
        await eventually(lambda: here.foreman._worker.running is None)
        for table in ("bodies", "delivery_tries"):
            assert await left(here, table) == 0


@pytest_twisted.ensureDeferred
async def test_a_run_that_takes_too_long() -> None:
    """A job's own `timeout` bounds its run; the text so far is kept, and it is not tried again."""
    async with house(models=SLOW) as here:
        before = reactor.seconds()
        job = await submit(here, chat("tiny-a"), timeout=600.0)
        await spoken(here, job)
        [limit] = [call for call in reactor.getDelayedCalls() if call.func == here.foreman._worker._attempts.cut_off]
        assert before <= limit.getTime() - 600 <= reactor.seconds()
        limit.reset(0)
        record = await over(here, job)
        assert record.job.error is not None
        assert (record.job.error.code, record.job.attempt) == (ErrorCode.TIMEOUT, 1)
        assert text_of(record, "partial")


@pytest.mark.parametrize("endpoint", ["/api/chat", "/v1/chat/completions"])
@pytest_twisted.ensureDeferred
async def test_a_result_that_is_too_large(endpoint: str) -> None:
    """An answer beyond FOREMAN_MAX_RESULT ends the run."""
    async with house({"MAX_RESULT": "20"}) as here:
        record = await over(here, await submit(here, chat("tiny-a"), endpoint=endpoint))
        assert record.job.error is not None
        assert record.job.error.code is ErrorCode.RESULT_TOO_LARGE
        assert ("partial" in record.artifacts) == (endpoint == "/api/chat")


@pytest_twisted.ensureDeferred
async def test_the_target_goes_away_in_the_midst_of_a_job() -> None:
    """A laptop that is gone charges nothing once nobody answers; the job runs again when it is back."""
    async with house(models=SLOW) as here:
        job = await submit(here, chat("tiny-a"))
        await spoken(here, job)
        await here.fake.refuse()
        await eventually(lambda: not here.foreman._inventory.up)
        later = await submit(here, chat("tiny-b"))
        await deferLater(reactor, 0.1)
        await here.fake.listen()
        record = await over(here, job)
        assert record.job.state is JobState.DONE
        assert record.job.attempt > 1
        assert (await over(here, later)).receipt.target_unreachable_ms


@pytest_twisted.ensureDeferred
async def test_a_disk_that_is_full_at_the_end() -> None:
    """A result that cannot be written waits in memory until it can; nothing is run twice for that."""
    async with house(models=SLOW) as here:
        ends = []
        real = here.foreman._store.end
        here.foreman._store.end = lambda *each: ends.append(each) or _unwritable()  # type: ignore[method-assign,func-returns-value]
        job = await submit(here, chat("tiny-a", options={"num_predict": 4}))
        await working(here, job)
        database = here.foreman._store._database
        limit = "PRAGMA max_page_count = {}"
        pages = "CREATE TABLE filler AS SELECT zeroblob(4096) FROM (VALUES (1), (2))"
        await database.write(lambda cursor: cursor.execute(pages), durable=False)
        await database.write(lambda cursor: cursor.execute(limit.format(1)).close(), durable=False)
        await eventually(lambda: ends)
        assert not here.foreman._worker._may_take()
        here.foreman._store.end = real  # type: ignore[method-assign]
        await database.write(lambda cursor: cursor.execute(limit.format(100_000)).close(), durable=False)
        record = await over(here, job)
        assert (record.job.state, record.job.attempt, generations(here)) == (JobState.DONE, 1, 1)


async def _unwritable() -> bool:
    raise Unwritable("no room")


# -- stopping and starting ---------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_stopped_in_the_midst_of_a_job(tmp_path: Path) -> None:
    """A job that outlasts the grace waits again, uncharged, and runs at the next start."""
    async with house({"DB": str(tmp_path / "foreman.db"), "SHUTDOWN_GRACE": "100ms"}, models=SLOW) as here:
        job = await submit(here, chat("tiny-a"))
        await working(here, job)
    async with house({"DB": str(tmp_path / "foreman.db")}) as here:
        record = await over(here, job)
        assert (record.job.state, record.job.attempt, record.job.failures) == (JobState.DONE, 2, 0)
        assert (await states(here, job))[2:5] == ["working", "queued", "loading"]


@pytest_twisted.ensureDeferred
async def test_finished_within_the_grace(tmp_path: Path) -> None:
    """A job that is nearly done when foreman stops is finished, and its result is there afterwards."""
    async with house({"DB": str(tmp_path / "foreman.db")}, models=SLOW) as here:
        job = await submit(here, chat("tiny-a", options={"num_predict": 6}))
        await working(here, job)
    async with house({"DB": str(tmp_path / "foreman.db")}) as here:
        record = await over(here, job)
        assert (record.job.state, record.job.attempt) == (JobState.DONE, 1)
        assert "content" in record.artifacts


@pytest_twisted.ensureDeferred
async def test_killed_in_the_midst_of_a_job(tmp_path: Path) -> None:
    """After a `kill -9` the job waits again, uncharged, and its second run leaves the result."""
    models = default_models(token_rate=20.0)
    async with fake_ollama(models=models) as fake, daemon(tmp_path, fake.url, start=False) as foreman:
        database = Database(foreman.database, reactor)
        store = Store(database, now_ms, max_queue=10, max_attempts=3)
        await store.start()
        [job] = await store.accept([brought(chat("tiny-a"), webhook="http://127.0.0.1:9/")])
        await store.stop()
        foreman.start()
        await eventually(lambda: any(each.path == "/api/chat" for each in fake.requests), within=30)
        with unhurried(fake):
            await foreman.end(9)
        foreman.start()
        await eventually(lambda: foreman.rows()[0]["state"] == "done", within=30)
        assert (foreman.rows()[0]["attempt"], foreman.rows()[0]["failures"]) == (2, 0)
        assert await foreman.end(15) == 0
        await database.open()
        history = await Archive(database, inline_max=0).history(job.id)
        await database.close()
        assert history is not None
        walk = ["queued", "loading", "working", "queued", "loading", "working", "done"]
        assert [event.state.value for event in history.events] == walk
        assert {event.delivery for event in history.events} == {DeliveryState.PENDING}


@pytest_twisted.ensureDeferred
async def test_expired() -> None:
    """A job that is still queued when its time is over has failed, and nothing else has."""
    async with house() as here:
        await here.fake.refuse()
        while here.foreman._inventory.up:
            await here.foreman._inventory.refresh()
        stays = await submit(here, chat("tiny-a"), expires_at=now_ms() + 3_600_000)
        goes = await submit(here, chat("tiny-a"), expires_at=now_ms() + 300)
        record = await over(here, goes)
        assert record.job.error is not None
        assert record.job.error.code is ErrorCode.EXPIRED
        assert (await here.foreman._store.get(stays.id)) == stays


# -- reading along -----------------------------------------------------------------------------------------------------


@define
class Heard:
    """One who reads along."""

    data: bytearray = field(factory=bytearray)
    ended: bool = False

    def write(self, data: bytes) -> None:
        """Listen."""
        assert not self.ended
        self.data += data

    def finish(self) -> None:
        """It is over."""
        self.ended = True

    def cut(self) -> None:
        """Never here."""
        raise AssertionError("cut")

    @property
    def text(self) -> str:
        """What was said, by whole lines."""
        lines = [json.loads(line) for line in self.data.splitlines()]
        assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
        return "".join(line["message"]["content"] for line in lines)


@pytest_twisted.ensureDeferred
async def test_reading_along() -> None:
    """Whoever joins, before, early or late, has the same text as the result in the end."""
    async with house(models=SLOW) as here:
        tails = here.foreman._tails
        readers = [Heard() for _ in range(3)]
        first = await submit(here, chat("tiny-b", options={"num_predict": 5}))
        job = await submit(here, chat("tiny-a"))
        tails.join(job.id, readers[0])
        await over(here, first)
        await working(here, job)
        tails.join(job.id, readers[1])
        await eventually(lambda: readers[0].data.count(b"\n") > 4)
        tails.join(job.id, readers[2])
        record = await over(here, job)
        assert all(reader.ended for reader in readers)
        assert {reader.text for reader in readers} == {text_of(record, "content")}


@pytest_twisted.ensureDeferred
async def test_reading_along_what_does_not_stream() -> None:
    """A `/v1` job's stream is its answer, as one line."""
    async with house() as here:
        reader = Heard()
        new = brought(chat("tiny-a"), endpoint="/v1/chat/completions", house=here)
        here.foreman._tails.join(new.id, reader)
        [job] = await here.foreman._store.accept([new])
        record = await over(here, job)
        assert reader.ended
        assert orjson.loads(reader.data) == orjson.loads(text_of(record, "completion"))


@pytest_twisted.ensureDeferred
async def test_the_forecast_of_a_queue() -> None:
    """A queued job knows its place, the swaps before it and, once loads and runs were seen, the seconds."""
    async with house(models=SLOW) as here:
        for model in ("tiny-a", "tiny-b"):
            await over(here, await submit(here, chat(model, options={"num_predict": 3})))
        running = await submit(here, chat("tiny-b"))
        await working(here, running)
        with unhurried(here.fake):
            line = [await submit(here, chat(model)) for model in ("tiny-a", "tiny-b", "tiny-a")]
            forecasts = [await here.foreman._forecasts.of(job) for job in line]
            assert [each and (each.position, each.position_exact, each.swaps_ahead) for each in forecasts] == [
                (2, True, 1),
                (1, True, 0),
                (3, True, 1),
            ]
            # The answer to a new job says the same, without having asked for it.
            accepted = await here.foreman._store.accept_once([brought(chat("tiny-a"), house=here)], None)
            [new] = accepted.jobs
            assert new is not None
            assert accepted.firsts is not None
            assert here.foreman._forecasts.of_new(new, accepted.firsts) == await here.foreman._forecasts.of(new)
            line.append(new)
            done = await here.foreman._store.get(running.id)
            assert done is not None
            assert await here.foreman._forecasts.of(done) is None
            for job in line:
                await here.foreman._worker.cancel(job.id)
            await here.foreman._worker.cancel(running.id)
