"""The real process under weight: a large answer past a slow reader, and a crowd of clients that leaves at once.

Figures are read from `/proc`, so these tests run on Linux.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from attrs import define
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from foreman.ollama.fake import FakeModel, default_models
from foreman.test.harness import (
    Daemon,
    ask,
    chat,
    daemon,
    eventually,
    fake_ollama,
    fake_process,
    reactor,
    request_bytes,
)
from foreman.test.harness import send as send_to

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")

MEBIBYTE = 1024 * 1024
CROWD = 1000


@define(eq=False)
class Counting(Protocol):
    """A client that counts what comes and keeps only the end."""

    received: int = 0
    filling: int = 0
    tail: bytes = b""
    is_closed: bool = False

    def dataReceived(self, data: bytes) -> None:
        """Count."""
        self.received += len(data)
        self.filling += data.count(b"x")
        self.tail = (self.tail + data)[-400:]

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Take note of the end."""
        self.is_closed = True

    def has(self, megabytes: int) -> bool:
        """Whether so much has come."""
        return self.received > megabytes * 1_000_000


@pytest_twisted.ensureDeferred
async def test_a_slow_reader_of_a_large_answer_costs_no_memory(tmp_path: Path, record_property: Any) -> None:
    """200 MB past a client that stalls and reads on: every byte arrives, and foreman grows by a few MiB only."""
    tokens, token_bytes = 6_250, 32_000
    async with (
        fake_process(tmp_path, f"big,tokens={tokens},token_bytes={token_bytes};defaults") as fake,
        daemon(tmp_path, fake.url) as foreman,
    ):
        await ask(foreman.url, "POST", "/api/chat", chat("tiny-a"))  # what is loaded once and kept
        idle = foreman.memory()
        port = int(foreman.url.rpartition(":")[2])
        client = await connectProtocol(HostnameEndpoint(reactor, "127.0.0.1", port), Counting())
        client.transport.write(request_bytes("POST", "/api/chat", chat("big")))
        for megabytes in (20, 90):
            await eventually(partial(client.has, megabytes), within=60)
            client.transport.pauseProducing()
            await deferLater(reactor, 1.5)
            assert foreman.memory() - idle < 8 * MEBIBYTE
            client.transport.resumeProducing()
        await eventually(lambda: client.tail.endswith(b"\r\n0\r\n\r\n") or client.is_closed, within=120)
        assert b'"done":true' in client.tail
        assert client.filling >= tokens * (token_bytes - len(" 0000000"))
        grown = foreman.memory("VmHWM") - idle
        record_property("grown_mib", grown / MEBIBYTE)
        assert grown < 12 * MEBIBYTE
        client.transport.abortConnection()
        await eventually(lambda: client.is_closed)


@pytest.fixture
def _many_descriptors() -> Iterator[None]:
    """Room for the crowd in this process and its children."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * CROWD:
        pytest.skip(f"needs {2 * CROWD} descriptors, {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * CROWD), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def queued(foreman: Daemon) -> int:
    """How many jobs wait, by `/healthz`, which answers whatever goes on."""
    return int((await ask(foreman.url, "GET", "/healthz")).document["queue"]["queued"])


@pytest.mark.usefixtures("_many_descriptors")
@pytest_twisted.ensureDeferred
async def test_a_thousand_clients_leave_at_once(tmp_path: Path, record_property: Any) -> None:
    """A crowd that waits and leaves: foreman answers meanwhile, every row says so, and no descriptor is kept."""
    models = (FakeModel(name="slow", prompt_time=3600), *default_models())
    async with fake_ollama(models=models) as fake, daemon(tmp_path, fake.url) as foreman:
        await eventually(lambda: "The target is up" in foreman.output)
        running = await send_to(foreman.url, "POST", "/api/chat", chat("slow"))
        await eventually(lambda: fake.at_once == 1)
        assert await queued(foreman) == 0
        descriptors = foreman.descriptors()

        models_wanted = [f"tiny-{'abcd'[number % 4]}" for number in range(CROWD)]
        crowd = [await send_to(foreman.url, "POST", "/api/chat", chat(model)) for model in models_wanted]
        deadline = reactor.seconds() + 60
        while await queued(foreman) < CROWD:
            assert reactor.seconds() < deadline
        assert foreman.descriptors() >= CROWD

        left = reactor.seconds()
        for client in crowd:
            client.leave()
        while await queued(foreman):
            assert reactor.seconds() < left + 60
        record_property("gone_s", reactor.seconds() - left)
        await eventually(lambda: foreman.descriptors() <= descriptors + 2)  # those to the target come and go
        rows = [row for row in foreman.rows() if row["model"] != "slow"]
        assert {(row["state"], row["error_code"], row["attempt"]) for row in rows} == {
            ("failed", "client_disconnected", 0)
        }
        assert len(rows) == CROWD
        assert len([record for record in fake.requests if record.path == "/api/chat"]) == 1

        running.leave()
        after = await ask(foreman.url, "POST", "/api/chat", chat("tiny-a"))
        assert after.head is not None
        assert after.head[0] == 200
