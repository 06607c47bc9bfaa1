"""Async jobs from end to end: accepted by the store, run at FakeOllama, and read back."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest_twisted
from ulid import ULID

from foreman.job import Job, JobState, NewJob, Runner, Submission
from foreman.ollama import requests
from foreman.ollama.names import normalise
from foreman.ollama.requests import Inference
from foreman.record import JobRecord
from foreman.service import now_ms
from foreman.test.harness import House, chat, eventually, house


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


async def over(here: House, job: Job, within: float = 15.0) -> JobRecord:
    """The record of a job that has ended."""
    ended: list[Job] = []

    def follow(move: Any) -> None:
        if move.job.id == job.id and move.job.state in (JobState.DONE, JobState.FAILED):
            ended.append(move.job)

    here.foreman._store.on_move.append(follow)
    found = await here.foreman._store.get(job.id)
    assert found is not None
    if found.state not in (JobState.DONE, JobState.FAILED):
        await eventually(lambda: ended, within=within)
    here.foreman._store.on_move.remove(follow)
    record = await here.foreman._archive.record(job.id)
    assert record is not None
    return record


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
