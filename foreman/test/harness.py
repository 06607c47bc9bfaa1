"""What whole-house tests stand on: foreman and FakeOllama in this process over loopback, and as real processes.

`House` is foreman's service with all its parts over real sockets in the test's own reactor; `Daemon` is the real
`twistd foreman` as a child, which can be killed.  `RawClient` speaks HTTP/1.1 plainly and shows what came when.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from foreman.config import Configuration
from foreman.ollama.fake import FakeOllama
from foreman.service import Foreman

reactor: Any = _reactor


async def eventually(condition: Callable[[], Any], *, within: float = 10.0) -> Any:
    """Wait until `condition()` is true and return its value; AssertionError after `within` seconds."""
    clock: IReactorTime = reactor
    deadline = clock.seconds() + within
    while not (value := condition()):
        assert clock.seconds() < deadline, f"not within {within} s"
        await deferLater(clock, 0.005)
    return value


@define(eq=False)
class RawClient(Protocol):
    """One connection to an HTTP server, byte by byte.

    :ivar method: of the request.
    :ivar received: everything that has come.
    :ivar closed: fires when the server has closed the connection.
    """

    method: str
    received: bytearray = field(factory=bytearray)
    closed: Deferred[None] = field(factory=Deferred)
    is_closed: bool = False

    def dataReceived(self, data: bytes) -> None:
        """Take note of what came."""
        self.received += data

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Take note of the end."""
        self.is_closed = True
        self.closed.callback(None)

    @property
    def head(self) -> tuple[int, dict[str, str]] | None:
        """The status and the headers (names in lower case) of the answer, None until they are whole."""
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return None
        lines = self.received[:end].decode("latin-1").split("\r\n")
        return int(lines[0].split()[1]), {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }

    @property
    def chunks(self) -> list[bytes]:
        """The whole chunks of a chunked answer so far; an empty one ends it."""
        found, at = [], self.received.find(b"\r\n\r\n") + 4
        while at > 3 and (end := self.received.find(b"\r\n", at)) >= 0:
            length = int(self.received[at:end], 16)
            at = end + 2 + length + 2
            if len(self.received) < at:
                break
            found.append(bytes(self.received[end + 2 : at - 2]))
        return found

    @property
    def ended(self) -> bool:
        """Whether the answer is whole by its own framing."""
        if self.head is None:
            return False
        headers = self.head[1]
        if headers.get("transfer-encoding") == "chunked":
            return self.received.endswith(b"\r\n0\r\n\r\n")
        length = 0 if self.method == "HEAD" else int(headers.get("content-length", "0"))
        return len(self.received) >= self.received.find(b"\r\n\r\n") + 4 + length

    @property
    def body(self) -> bytes:
        """The answer's body so far."""
        if self.head is not None and self.head[1].get("transfer-encoding") == "chunked":
            return b"".join(self.chunks)
        return bytes(self.received.partition(b"\r\n\r\n")[2])

    @property
    def document(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def leave(self) -> None:
        """Close the connection at once."""
        assert self.transport is not None
        self.transport.abortConnection()  # type: ignore[attr-defined]


def request_bytes(method: str, path: str, document: Any = None, headers: Mapping[str, str] | None = None) -> bytes:
    """An HTTP/1.1 request as bytes; `document` is JSON, or bytes that go as they are."""
    body = document if isinstance(document, bytes) else b"" if document is None else json.dumps(document).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def send(
    url: str, method: str, path: str, document: Any = None, headers: Mapping[str, str] | None = None
) -> RawClient:
    """Open a connection, send one request and return without waiting for the answer."""
    host, _, port = url.removeprefix("http://").partition(":")
    client = await connectProtocol(HostnameEndpoint(reactor, host, int(port)), RawClient(method))
    client.transport.write(request_bytes(method, path, document, headers))
    return client  # type: ignore[no-any-return]


async def ask(
    url: str,
    method: str,
    path: str,
    document: Any = None,
    headers: Mapping[str, str] | None = None,
    within: float = 20.0,
) -> RawClient:
    """Send one request and wait for the whole answer, then leave."""
    client = await send(url, method, path, document, headers)
    await eventually(lambda: client.ended or client.is_closed, within=within)
    if not client.is_closed:
        client.leave()
        await client.closed
    return client


def chat(model: str, text: str = "hi", **more: Any) -> dict[str, Any]:
    """The body of a chat."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


@define(eq=False)
class House:
    """foreman and FakeOllama in this process."""

    foreman: Foreman
    fake: FakeOllama
    url: str
    folder: Path

    async def ask(self, method: str, path: str, document: Any = None, **more: Any) -> RawClient:
        """Ask foreman."""
        return await ask(self.url, method, path, document, **more)

    async def send(self, method: str, path: str, document: Any = None, **more: Any) -> RawClient:
        """Ask foreman without waiting."""
        return await send(self.url, method, path, document, **more)

    async def rows(self) -> list[dict[str, Any]]:
        """All jobs as the database has them, by seq."""
        store = self.foreman._store

        def read(cursor: Any) -> list[dict[str, Any]]:
            cursor.execute("SELECT * FROM jobs ORDER BY seq")
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

        return await store._database.read(read)


@asynccontextmanager
async def house(
    settings: Mapping[str, str] | None = None, *, wait: bool = True, **fake_settings: Any
) -> AsyncIterator[House]:
    """A running `House`, taken down with the block.

    :param settings: FOREMAN_… names without the prefix.
    :param wait: until foreman knows the target's models.
    :param fake_settings: FakeOllama's own.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fake = FakeOllama(reactor, **fake_settings)
        await fake.listen(0)
        environment = {"OLLAMA_URL": fake.url, "ADDR": "127.0.0.1:0", "DB": str(folder / "foreman.db")}
        environment |= settings or {}
        config = Configuration.from_environment({f"FOREMAN_{key}": value for key, value in environment.items()})
        foreman = Foreman(config, reactor)
        foreman.startService()
        try:
            await eventually(lambda: foreman.port is not None)
            port = foreman.port.getHost().port  # type: ignore[union-attr]
            if wait:
                await eventually(lambda: foreman._inventory.up and foreman._inventory.models is not None)
            yield House(foreman, fake, f"http://127.0.0.1:{port}", folder)
        finally:
            await foreman.stopService()
            await fake.close()


@define(eq=False)
class Daemon:
    """The real `twistd foreman` as a child process."""

    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; `ready` says when it takes calls."""
        twistd = Path(sys.executable).with_name("twistd")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [twistd, "--nodaemon", "--pidfile=", "foreman"],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
                cwd=self.log.parent,
            )

    def end(self, signal: int) -> int:
        """Send a signal and wait for the end; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(signal)
        return self.process.wait(timeout=60)
