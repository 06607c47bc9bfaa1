"""The real process before a crowd of idle connections: it answers, it stays small, and it keeps room for itself.

Figures are read from `/proc`, so these tests run on Linux.
"""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from foreman.test.harness import Daemon, RawClient, ask, chat, daemon, eventually, fake_ollama, send

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")

CROWD = 10_000
"""Connections, or as many as this machine lets a process have."""

PER_CONNECTION = 8 * 1024
"""Bytes of memory, with half a request on it; measured: 3 KiB."""

HALF_A_HEAD = b"GET /api/tags HTTP/1.1\r\nX: "


@pytest.fixture
def crowd() -> Iterator[int]:
    """How large a crowd may be, with room for it in this process and its children."""
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CROWD * 4 // 3 + 1000
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    yield min(CROWD, most * 3 // 4 - 100)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def connect(foreman: Daemon, count: int) -> list[socket.socket]:
    """So many connections; no more at a time than the system's queue of new ones takes."""
    port = int(foreman.url.rpartition(":")[2])
    sockets: list[socket.socket] = []
    while len(sockets) < count:
        sockets += [socket.create_connection(("127.0.0.1", port)) for _ in range(min(40, count - len(sockets)))]
        await answers(foreman)
    return sockets


async def answers(foreman: Daemon) -> Any:
    """What `/healthz` says, asked on a new connection."""
    answer = await ask(foreman.url, "GET", "/healthz", within=30)
    assert answer.head is not None
    assert answer.head[0] == 200
    return answer.document


def ended(connection: socket.socket) -> bool:
    """Whether foreman has closed a connection."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest_twisted.ensureDeferred
async def test_ten_thousand_idle_connections(tmp_path: Path, crowd: int, record_property: Any) -> None:
    """While thousands hold connections and say half a word each, others are answered, and memory stays bounded."""
    async with fake_ollama() as fake, daemon(tmp_path, fake.url) as foreman:
        await ask(foreman.url, "POST", "/api/chat", chat("tiny-a"))  # what is loaded once and kept
        before = foreman.memory()
        idle = await connect(foreman, crowd)
        for connection in idle:
            connection.send(HALF_A_HEAD)
        await eventually(lambda: foreman.descriptors() >= crowd, within=60)
        await answers(foreman)
        answer = await ask(foreman.url, "POST", "/api/chat", chat("tiny-a", stream=False), within=30)
        assert answer.document["done"] is True
        grown = foreman.memory() - before
        record_property("bytes_per_connection", grown / crowd)
        assert grown < crowd * PER_CONNECTION
        for connection in idle:
            connection.close()
        await eventually(lambda: foreman.descriptors() < 100, within=60)


@pytest_twisted.ensureDeferred
async def test_a_crowd_larger_than_the_descriptors(tmp_path: Path) -> None:
    """Where descriptors are few, idle connections make room: calls are answered, and those that wait are kept."""
    limit = 256

    def few_descriptors() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    async with fake_ollama() as fake, daemon(tmp_path, fake.url, start=False) as foreman:
        foreman.before_exec = few_descriptors
        foreman.start()
        await foreman.ready()
        await ask(foreman.url, "POST", "/queue/pause", {"for": "1h"})
        job = await ask(foreman.url, "POST", "/jobs", chat("tiny-a"))
        waiting = await send(foreman.url, "GET", f"/jobs/{job.document['job_id']}?wait=300")
        await answers(foreman)  # by now the one before is seen too
        idle = await connect(foreman, 3 * limit)
        assert (await answers(foreman))["target"]["state"] == "up"
        await eventually(lambda: foreman.descriptors() < limit)
        assert not waiting.is_closed
        assert sum(map(ended, idle)) >= 2.5 * limit
        await ask(foreman.url, "POST", "/queue/resume")
        await eventually(lambda: waiting.ended, within=30)
        assert waiting.document["state"] == "done"
        assert _status(await ask(foreman.url, "POST", "/api/chat", chat("tiny-b", stream=False), within=30)) == 200
        assert foreman.lines("warn") == []
        waiting.leave()
        for connection in idle:
            connection.close()
        await waiting.closed


def _status(answer: RawClient) -> int:
    assert answer.head is not None
    return answer.head[0]
