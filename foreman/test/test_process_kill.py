"""The real process, killed at any moment: what was accepted is accounted for, and nothing runs twice in secret."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections import Counter
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest_twisted
from twisted.internet.task import deferLater

from foreman.job import NewJob, Runner, Submission
from foreman.ollama.fake import FakeOllama, default_models
from foreman.test.harness import RawClient, chat, daemon, eventually, fake_ollama, reactor, send
from foreman.work.database import Database
from foreman.work.store import Store

MODELS = [f"tiny-{letter}" for letter in "abcd"]


def generations(fake: FakeOllama) -> Counter[int]:
    """How often each call was generated for, by the size of its body, which only one call has."""
    return Counter(
        len(record.body)
        for record in fake.requests
        if record.path == "/api/chat" and json.loads(record.body).get("messages")
    )


def _has_generated(fake: FakeOllama, times: int) -> bool:
    return generations(fake).total() >= times


def _execute(statement: str, values: tuple[Any, ...], cursor: sqlite3.Cursor) -> None:
    cursor.execute(statement, values)


def is_whole(call: RawClient) -> bool:
    """Whether the client has its whole answer."""
    return call.ended and call.head is not None and call.head[0] == 200 and b'"done":true' in call.body


def check_row(row: dict[str, Any], before: dict[str, Any] | None, asked: Counter[int]) -> None:
    """One row after a restart, beside what the files held when the process was dead."""
    if before is None:
        raise AssertionError(f"a row from nowhere: {row}")
    if before["state"] in ("done", "failed"):
        assert row == before
    else:
        assert (row["state"], row["error_code"]) == ("failed", "interrupted")
        assert row["attempt"] == before["attempt"]
    # The attempt is committed before the target hears of it.
    assert asked[row["size"]] <= row["attempt"]
    assert row["state"] != "done" or asked[row["size"]] == row["attempt"]


@pytest_twisted.ensureDeferred
async def test_a_foreman_killed_again_and_again_loses_nothing(tmp_path: Path) -> None:
    """`kill -9` under load, and once more while it starts: every call is accounted for, no run is hidden."""
    random = Random(8)
    sizes = count(1)
    calls: dict[int, RawClient] = {}  # by size of the body
    states: Counter[str] = Counter()
    async with (
        fake_ollama(models=default_models(load_time=0.05, prompt_time=0.01, token_rate=2000)) as fake,
        daemon(tmp_path, fake.url) as foreman,
    ):
        for _ in range(5):
            url, before = foreman.url, generations(fake).total()
            for _ in range(40):
                document = chat(random.choice(MODELS), "x" * next(sizes))
                calls[len(json.dumps(document))] = await send(url, "POST", "/api/chat", document)
            await eventually(partial(_has_generated, fake, before + random.randrange(36)), within=60)
            await deferLater(reactor, random.uniform(0.0, 0.05))
            await foreman.end(signal.SIGKILL)
            found = {row["id"]: row for row in foreman.rows()}
            states += Counter(row["state"] for row in found.values())
            await eventually(lambda: all(call.is_closed for call in calls.values()))

            foreman.start()
            await deferLater(reactor, random.uniform(0.5, 1.0))
            await foreman.end(signal.SIGKILL)  # in the middle of its start, or just after
            foreman.start()
            url = await foreman.ready()

            rows = foreman.rows()
            asked = generations(fake)
            for row in rows:
                check_row(row, found.pop(row["id"], None), asked)
            assert not found
            assert asked.keys() <= {row["size"] for row in rows}
            assert len({row["size"] for row in rows}) == len(rows)
            by_size = {row["size"]: row for row in rows}
            for size, call in calls.items():
                if call.head is not None:
                    assert by_size[size]["id"] == call.head[1]["x-foreman-job"]
                # The end is written while its last bytes are on their way.
                assert not is_whole(call) or by_size[size]["error_code"] in (None, "interrupted")

            call = await send(url, "POST", "/api/chat", document := chat(random.choice(MODELS), "x" * next(sizes)))
            calls[len(json.dumps(document))] = call
            await eventually(partial(is_whole, call))
            call.leave()
        assert not fake.overlaps
        assert states["queued"] > 20
        assert states["done"] > 20
        assert states["working"] + states["loading"] >= 3


@pytest_twisted.ensureDeferred
async def test_async_jobs_are_back_in_the_queue_within_a_second_of_the_start(tmp_path: Path) -> None:
    """What was running when foreman died waits again, in its old place, and pays nothing."""
    async with fake_ollama() as fake, daemon(tmp_path, fake.url, start=False) as foreman:
        await fake.refuse()
        database = Database(foreman.database, reactor)
        store = Store(database, lambda: 1, max_queue=10, max_attempts=3)
        await store.start()
        jobs = [
            NewJob(
                id=f"job-{number}",
                endpoint="/api/chat",
                model="tiny-a",
                runner=Runner("tiny-a:latest"),
                size=1,
                created_at=1,
                submission=None if number == 3 else Submission(body=b"{}"),
            )
            for number in range(4)
        ]
        await store.accept(jobs)
        moving = "UPDATE jobs SET state = ?, attempt = 1, loading_at = 2, working_at = ? WHERE id = ?"
        for state, working_at, job_id in (("loading", None, "job-0"), ("working", 3, "job-1"), ("working", 3, "job-3")):
            await database.write(partial(_execute, moving, (state, working_at, job_id)), durable=True)
        await store.stop()

        foreman.start()
        await foreman.ready()
        rows = foreman.rows()
        assert [(row["state"], row["attempt"], row["failures"]) for row in rows] == [
            ("queued", 1, 0),
            ("queued", 1, 0),
            ("queued", 0, 0),
            ("failed", 1, 0),
        ]
        assert rows[3]["error_code"] == "interrupted"
