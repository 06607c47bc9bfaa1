"""The client's types, as a caller's own `mypy --strict` sees them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import foreman

PROGRAM = """
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import assert_type

from foreman.client import (
    AsyncForeman, AsyncJob, Chunk, Event, Foreman, Health, Job, JobFailed, JobInfo, JobState, Queue, Receiver,
    Rejected, WaitTimeout, WebhookEvent, submission, verify,
)


def blocking() -> None:
    with Foreman("http://127.0.0.1:8080", token=None) as foreman:
        assert_type(foreman, Foreman)
        job = foreman.run("m", [{"role": "user", "content": "Why?"}], options={"seed": 1}, timeout=1.5)
        assert_type(job, Job)
        assert_type(job.text, str)
        assert_type(job.state, JobState)
        assert_type(job.created_at, datetime | None)
        assert_type(job.timings.load_seconds, float | None)
        assert_type(job.embeddings, list[list[float]])
        assert_type(foreman.submit("m", "Why?").stream(), Iterator[Chunk])
        assert_type(foreman.submit_many([submission("m", "Why?")]), list[Job])
        assert_type(next(foreman.as_completed([job])), Job)
        assert_type(foreman.jobs(state="done"), Iterator[Job])
        assert_type(foreman.queue(), Queue)
        assert_type(foreman.models(), tuple[str, ...])
        assert_type(job.events().events, tuple[Event, ...])
        assert_type(job.artifact("content"), bytes)
    try:
        job.wait(5)
    except JobFailed as failed:
        assert_type(failed.job, JobInfo)
    except WaitTimeout as late:
        assert_type(late.job, JobInfo | None)
    except Rejected as refused:
        assert_type((refused.status, refused.code), tuple[int, str])


async def asynchronous() -> None:
    async with AsyncForeman() as foreman:
        assert_type(foreman, AsyncForeman)
        assert_type(await foreman.run("m", "Why?"), AsyncJob)
        job = await foreman.submit("m", "Why?")
        assert_type(job.stream(), AsyncIterator[Chunk])
        assert_type(await job.wait(), AsyncJob)
        async for each in foreman.as_completed([job]):
            assert_type(each, AsyncJob)
        assert_type(await foreman.health(), Health)


def told(headers: dict[str, str], body: bytes) -> None:
    assert_type(verify(headers, body, "s"), WebhookEvent)
    with Receiver(secret=None) as receiver:
        assert_type(receiver.wait("J", 5), WebhookEvent)
        assert_type(iter(receiver), Iterator[WebhookEvent])
"""

MISTAKES = """
from foreman.client import AsyncForeman, Foreman, Job

Foreman(8080)
Foreman().run(model=1)
Foreman().run("m", "Why?").wait("soon")
Foreman().submit("m", "Why?").state = "done"


async def forgets_to_await() -> str:
    return AsyncForeman().run("m", "Why?").text
"""


def check(folder: Path, program: str) -> list[str]:
    """What `mypy --strict` says of a program, without any settings of ours."""
    (folder / "program.py").write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=cache", "program.py"]
    environment = {**os.environ, "MYPYPATH": str(Path(foreman.__file__).parents[1])}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    return [line for line in ran.stdout.splitlines() if ": error: " in line]


def test_a_callers_program_is_typed(tmp_path: Path) -> None:
    """Every call has its precise type, the client itself is clean, and mistakes are found where they are made."""
    assert check(tmp_path, PROGRAM) == []
    wrong = check(tmp_path, MISTAKES)
    assert {int(line.split(":")[1]) for line in wrong} == {4, 5, 6, 7, 11}, wrong
