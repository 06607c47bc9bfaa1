"""The real process is asked to stop (SIGTERM): who is answered, what is finished, dropped, and left behind."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest_twisted
from twisted.internet.task import deferLater

from foreman.ollama.fake import FakeModel, FakeOllama, default_models, streaming_model
from foreman.test.harness import (
    Daemon,
    RawClient,
    ask,
    chat,
    daemon,
    eventually,
    fake_ollama,
    midway,
    reactor,
    request_bytes,
    send,
)


@asynccontextmanager
async def pair(
    folder: Path, models: tuple[FakeModel, ...] = default_models(), **settings: str
) -> AsyncIterator[tuple[FakeOllama, Daemon]]:
    """FakeOllama and a foreman process that knows its models."""
    async with fake_ollama(models=models) as fake, daemon(folder, fake.url, settings) as foreman:
        await eventually(lambda: "The target is up" in foreman.output)
        yield fake, foreman


NO_HURRY = "1h"
"""A grace that no test outlasts: what ends sooner did not wait for it."""


async def stopped(foreman: Daemon) -> None:
    """What holds after every stop that was asked for."""
    assert await foreman.exit_status() == 0
    with socket.socket() as asking:
        assert asking.connect_ex(("127.0.0.1", urlsplit(foreman.url).port)) != 0
    assert not foreman.database.with_name("foreman.db-wal").exists()
    assert foreman.lines("warn", "error", "critical") == []


def outcome(row: dict[str, Any]) -> tuple[Any, ...]:
    """How a row ended."""
    return row["state"], row["error_code"]


def is_503(client: RawClient) -> bool:
    """Whether the client was told to come again."""
    return client.head is not None and client.head[0] == 503 and int(client.head[1]["retry-after"]) > 0


@pytest_twisted.ensureDeferred
async def test_an_idle_foreman_stops_at_once(tmp_path: Path) -> None:
    """SIGTERM when idle: status 0, with no grace for clients that keep connections open; the log says both ends."""
    async with pair(tmp_path, SHUTDOWN_GRACE=NO_HURRY) as (_, foreman):
        await ask(foreman.url, "POST", "/api/chat", chat("tiny-a"))
        client = await send(foreman.url, "GET", "/healthz")
        await eventually(lambda: client.ended)
        foreman.send(15)
        await stopped(foreman)
        assert foreman.output.index("foreman stops; a running job may go on for") < foreman.output.index("has stopped")
        await client.closed


@pytest_twisted.ensureDeferred
async def test_the_running_call_is_finished_and_the_waiting_ones_are_told(tmp_path: Path) -> None:
    """The running call has its whole answer, the waiting ones a 503 at once, later ones on old connections too."""
    models = (FakeModel(name="slow", words=(" one", " two"), token_rate=1.0), *default_models())
    async with pair(tmp_path, models) as (fake, foreman):
        kept_alive = await send(foreman.url, "GET", "/readyz")
        await eventually(lambda: kept_alive.ended)
        running = await send(foreman.url, "POST", "/api/chat", chat("slow"))
        async with midway(fake, running):
            waiting = [await send(foreman.url, "POST", path, chat("tiny-b")) for path in ("/api/chat", "/v1/messages")]
            waiting.append(await send(foreman.url, "POST", "/api/chat", chat("slow")))
            await eventually(lambda: len(foreman.rows()) == 4)

            foreman.send(15)
            await eventually(lambda: all(client.ended for client in waiting))
            assert all(is_503(client) for client in waiting)
            for method, path, document in (
                ("POST", "/api/chat", chat("slow")),
                ("GET", "/api/tags", None),
                ("POST", "/api/embed", {"model": "tiny-embed", "input": "hi"}),
                ("GET", "/readyz", None),
            ):
                kept_alive.received.clear()
                if kept_alive.is_closed:
                    break
                kept_alive.transport.write(request_bytes(method, path, document))  # type: ignore[union-attr]
                await eventually(lambda: kept_alive.ended or kept_alive.is_closed)
                assert kept_alive.head is not None
                assert kept_alive.head[0] == 503
            assert not running.ended

        await stopped(foreman)
        await running.closed
        assert running.ended
        assert json.loads(running.body.splitlines()[-1])["done"] is True
        assert [outcome(row) for row in foreman.rows()] == [("done", None)] + [("failed", "interrupted")] * 3
        assert len([record for record in fake.requests if b"messages" in record.body]) == 1


@pytest_twisted.ensureDeferred
async def test_a_call_that_outlasts_the_grace_is_cut(tmp_path: Path) -> None:
    """After FOREMAN_SHUTDOWN_GRACE the running call is cut, at the target too, and its row says so."""
    models = (FakeModel(name="slow", words=(" word",) * 20, token_rate=5.0), *default_models())
    async with pair(tmp_path, models, SHUTDOWN_GRACE="1s") as (fake, foreman):
        client = await send(foreman.url, "POST", "/api/chat", chat("slow"))
        async with midway(fake, client):
            asked = reactor.seconds()
            foreman.send(15)
            await stopped(foreman)
        assert reactor.seconds() - asked > 0.9
        await client.closed
        assert not client.ended
        await eventually(lambda: fake.requests[-1].outcome == "left")
        assert [outcome(row) for row in foreman.rows()] == [("failed", "interrupted")]


@pytest_twisted.ensureDeferred
async def test_who_asks_twice_is_told_that_it_stops_already(tmp_path: Path) -> None:
    """An impatient operator sends SIGTERM again: a line says so, and the running call still has its grace."""
    models = (FakeModel(name="slow", words=(" one", " two"), token_rate=1.0), *default_models())
    async with pair(tmp_path, models) as (fake, foreman):
        client = await send(foreman.url, "POST", "/api/chat", chat("slow"))
        async with midway(fake, client):
            waiting = await send(foreman.url, "POST", "/api/chat", chat("tiny-b"))
            await eventually(lambda: len(foreman.rows()) == 2)
            foreman.send(15)
            await eventually(lambda: waiting.ended)
            foreman.send(15)
            await eventually(lambda: "Stopping already" in foreman.output)
        await stopped(foreman)
        await client.closed
        assert client.ended


@pytest_twisted.ensureDeferred
async def test_a_call_without_a_byte_after_the_grace_is_told(tmp_path: Path) -> None:
    """A running call that has no byte of its answer yet gets 503 at the end of the grace, not a cut."""
    models = (FakeModel(name="slow", prompt_time=60), *default_models())
    async with pair(tmp_path, models, SHUTDOWN_GRACE="1s") as (fake, foreman):
        client = await send(foreman.url, "POST", "/api/chat", chat("slow"))
        await eventually(lambda: fake.at_once == 1)
        foreman.send(15)
        await stopped(foreman)
        await client.closed
        assert is_503(client)
        await eventually(lambda: fake.requests[-1].outcome == "left")
        assert [outcome(row) for row in foreman.rows()] == [("failed", "interrupted")]


@pytest_twisted.ensureDeferred
async def test_a_load_in_progress_is_dropped(tmp_path: Path) -> None:
    """A load may take minutes; a stop does not wait for it, and its caller is told."""
    async with pair(tmp_path, default_models(load_time=3600), SHUTDOWN_GRACE=NO_HURRY) as (fake, foreman):
        client = await send(foreman.url, "POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: fake.loads)
        foreman.send(15)
        await stopped(foreman)
        await client.closed
        assert is_503(client)
        assert [outcome(row) for row in foreman.rows()] == [("failed", "interrupted")]
        assert not [record for record in fake.requests if b"messages" in record.body]


@pytest_twisted.ensureDeferred
async def test_a_slow_reader_gets_the_end_of_its_answer(tmp_path: Path, socket_file: Path) -> None:
    """What foreman still holds of a finished answer is delivered within the grace, not lost with the process."""
    # The system holds some 200 KB of a unix socket's; the rest of a megabyte is with foreman.
    models = (streaming_model("big", tokens=90, token_bytes=10_000), *default_models())
    async with pair(tmp_path, models, ADDR=f"unix:{socket_file}") as (_, foreman):
        client = await send(foreman.url, "POST", "/api/chat", chat("big"))
        client.transport.pauseProducing()  # type: ignore[union-attr]
        await eventually(lambda: [outcome(row) for row in foreman.rows()] == [("done", None)])
        foreman.send(15)
        await deferLater(reactor, 1.0)
        assert not foreman.ended, (len(client.received), foreman.output[-3000:])
        client.transport.resumeProducing()  # type: ignore[union-attr]
        await eventually(lambda: client.ended or client.is_closed)
        assert client.ended
        assert json.loads(client.body.splitlines()[-1])["done"] is True
        assert await foreman.exit_status() == 0


@pytest_twisted.ensureDeferred
async def test_a_stop_while_the_target_sleeps(tmp_path: Path) -> None:
    """A silent target holds no stop up: who waits is told, and the process is gone without its grace."""
    async with pair(tmp_path, POLL_INTERVAL="1s", SHUTDOWN_GRACE=NO_HURRY) as (fake, foreman):
        await ask(foreman.url, "POST", "/api/chat", chat("tiny-a"))
        fake.sleep()
        clients = [await send(foreman.url, "POST", "/api/chat", chat(model)) for model in ("tiny-b", "tiny-c")]
        clients.append(await send(foreman.url, "GET", "/api/tags"))
        await eventually(lambda: len(foreman.rows()) == 3)
        await deferLater(reactor, 1.2)  # a poll has begun
        foreman.send(15)
        await stopped(foreman)
        for client in clients[:2]:
            await client.closed
            assert is_503(client)
        assert [outcome(row) for row in foreman.rows()][1:] == [("failed", "interrupted")] * 2
