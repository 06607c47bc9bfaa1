"""The real process on a disk without room: nothing is promised, nothing is run again, and all goes on with the room.

The disk is not really full: the kernel is told (RLIMIT_FSIZE, Linux) that the process may make no file longer than
the database's log already is, so that every write at its end fails as on a full disk.  Its limit is lifted again while
it runs.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from foreman.ollama.fake import FakeModel, FakeOllama, default_models
from foreman.test.harness import Daemon, RawClient, ask, chat, daemon, eventually, fake_ollama, midway, reactor, send

pytestmark = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit")


def fill(foreman: Daemon) -> None:
    """Take away its room."""
    size = foreman.database.with_name("foreman.db-wal").stat().st_size
    assert size > 100_000  # more than its output has
    resource.prlimit(foreman.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def free(foreman: Daemon) -> None:
    """Give it room again."""
    resource.prlimit(foreman.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@asynccontextmanager
async def pair(folder: Path, **settings: str) -> AsyncIterator[tuple[FakeOllama, Daemon]]:
    """FakeOllama and a foreman process whose database's log is longer than its output."""
    slow = FakeModel(name="slow", words=(" one", " two"), token_rate=1.5)
    async with fake_ollama(models=(slow, *default_models())) as fake, daemon(folder, fake.url, settings) as foreman:
        for _ in range(10):
            assert (await ask(foreman.url, "POST", "/api/chat", chat("tiny-a"))).head is not None
        yield fake, foreman


async def accepted(foreman: Daemon) -> RawClient:
    """Another, which waits."""
    waiting = await send(foreman.url, "POST", "/api/chat", chat("tiny-b"))
    await eventually(lambda: foreman.rows()[-1]["model"] == "tiny-b")
    return waiting


async def status(foreman: Daemon, method: str, path: str, document: Any = None) -> int:
    """The status of an answer."""
    client = await ask(foreman.url, method, path, document)
    assert client.head is not None
    return client.head[0]


def chats(fake: FakeOllama) -> int:
    """How many chats the target has had, the first ten apart."""
    return len([record for record in fake.requests if record.path == "/api/chat"]) - 10


@pytest_twisted.ensureDeferred
async def test_a_full_disk_is_told_and_survived(tmp_path: Path) -> None:
    """New calls get 503 and Retry-After, the running one its answer, nothing runs twice; all recovers by itself."""
    async with pair(tmp_path) as (fake, foreman):
        running = await send(foreman.url, "POST", "/api/chat", chat("slow"))
        async with midway(fake, running):
            waiting = await accepted(foreman)
            fill(foreman)
        refused = await ask(foreman.url, "POST", "/api/chat", chat("tiny-c"))
        assert refused.head is not None
        assert refused.head[0] == 503
        assert int(refused.head[1]["retry-after"]) > 0
        assert "error" in refused.document
        await eventually(lambda: any("The store cannot write: " in line for line in foreman.lines("error")))
        assert await status(foreman, "GET", "/readyz") == 503
        health = await ask(foreman.url, "GET", "/healthz")
        assert health.head is not None
        assert health.head[0] == 200
        assert any("write" in warning for warning in health.document["warnings"])
        assert await status(foreman, "GET", "/api/tags") == 200

        await eventually(lambda: running.ended)
        assert b'"done":true' in running.body
        await deferLater(reactor, 1.5)  # its end is tried again and again
        assert chats(fake) == 1  # the waiting one is not begun
        assert foreman.rows()[-2]["state"] == "working"
        assert not waiting.ended

        free(foreman)
        freed = reactor.seconds()
        await eventually(lambda: waiting.ended)
        assert waiting.head is not None
        assert waiting.head[0] == 200
        await eventually(lambda: {row["state"] for row in foreman.rows()} == {"done"})
        while await status(foreman, "GET", "/readyz") == 503:
            assert reactor.seconds() < freed + 30
        await eventually(lambda: "The store can write again" in foreman.output)
        assert await status(foreman, "POST", "/api/chat", chat("tiny-c")) == 200
        rows = foreman.rows()
        assert [(row["model"], row["attempt"]) for row in rows[10:]] == [("slow", 1), ("tiny-b", 1), ("tiny-c", 1)]
        assert chats(fake) == 3
        assert not fake.overlaps


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_a_full_disk(tmp_path: Path) -> None:
    """A call that was given up while the disk was full never reaches the target afterwards."""
    async with pair(tmp_path) as (fake, foreman):
        running = await send(foreman.url, "POST", "/api/chat", chat("slow"))
        async with midway(fake, running):
            waiting = await accepted(foreman)
            fill(foreman)
        waiting.leave()
        await eventually(lambda: running.ended)
        free(foreman)
        await eventually(lambda: {row["state"] for row in foreman.rows()} <= {"done", "failed"})
        last = foreman.rows()[-1]
        assert (last["state"], last["error_code"]) == ("failed", "client_disconnected")
        assert chats(fake) == 1


@pytest_twisted.ensureDeferred
async def test_a_stop_on_a_full_disk(tmp_path: Path) -> None:
    """SIGTERM ends the process all the same, with status 0; the next start accounts for what could not be written."""
    async with pair(tmp_path, SHUTDOWN_GRACE="1h") as (fake, foreman):
        running = await send(foreman.url, "POST", "/api/chat", chat("slow"))
        async with midway(fake, running):
            waiting = await accepted(foreman)
            fill(foreman)
        assert await foreman.end(signal.SIGTERM) == 0
        await running.closed
        await waiting.closed
        assert b'"done":true' in running.body
        assert waiting.head is not None
        assert waiting.head[0] == 503
        foreman.start()
        await foreman.ready()
        rows = foreman.rows()
        assert [row["state"] for row in rows[:10]] == ["done"] * 10
        assert [(row["state"], row["error_code"]) for row in rows[10:]] == [("failed", "interrupted")] * 2
