"""What whole-house tests stand on: foreman and FakeOllama in this process over loopback, and as real processes.

`House` is foreman's service with all its parts over real sockets in the test's own reactor; `Daemon` is the real
`twistd foreman` as a child, which can be killed.  `RawClient` speaks HTTP/1.1 plainly and shows what came when.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, connectProtocol
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from foreman.config import Configuration
from foreman.ollama.fake import FakeOllama
from foreman.service import Foreman

reactor: Any = _reactor


async def eventually(condition: Callable[[], Any], *, within: float = 30.0) -> Any:
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
    """Open a connection to `http://host:port` or `unix:path`, send one request and do not wait for the answer."""
    scheme, _, place = url.partition(":")
    host, _, port = place.removeprefix("//").partition(":")
    endpoint = UNIXClientEndpoint(reactor, place) if scheme == "unix" else HostnameEndpoint(reactor, host, int(port))
    client = await connectProtocol(endpoint, RawClient(method))
    client.transport.write(request_bytes(method, path, document, headers))
    return client  # type: ignore[no-any-return]


async def ask(
    url: str,
    method: str,
    path: str,
    document: Any = None,
    headers: Mapping[str, str] | None = None,
    *,
    within: float = 30.0,
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
        """All jobs as the database has them, by seq, when what was to be written by now is."""
        store = self.foreman._store

        def read(cursor: Any) -> list[dict[str, Any]]:
            cursor.execute("SELECT * FROM jobs ORDER BY seq")
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

        await store._database.write(lambda _cursor: None, durable=False)  # the last in line
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
                await foreman._inventory.refresh()  # a whole poll, residents included
            yield House(foreman, fake, f"http://127.0.0.1:{port}", folder)
        finally:
            await foreman.stopService()
            await fake.close()


@asynccontextmanager
async def fake_ollama(**settings: Any) -> AsyncIterator[FakeOllama]:
    """A `FakeOllama` in this process, for daemons that are not."""
    fake = FakeOllama(reactor, **settings)
    await fake.listen(0)
    try:
        yield fake
    finally:
        await fake.close()


@contextmanager
def unhurried(fake: FakeOllama) -> Iterator[None]:
    """Have no load and no answer of more than a token come to its end within the block, however long that takes.

    Its time stands still, but it is awake: it is connected to, reads, and answers what takes it no time.
    """
    fake.clock.sleep()
    try:
        yield
    finally:
        fake.clock.wake()


@asynccontextmanager
async def midway(fake: FakeOllama, client: RawClient) -> AsyncIterator[None]:
    """Have the only chat that runs be in the middle of its answer within the block, and `client` know the beginning.

    The target's time is stopped at the first byte itself, not when a busy machine has brought that to the client.
    """
    await eventually(
        lambda: any(
            record.first_byte_at is not None and record.ended_at is None
            for record in fake.requests
            if record.path == "/api/chat"
        )
    )
    with unhurried(fake):
        await eventually(lambda: client.chunks)
        yield


@define(eq=False)
class Child:
    """A process of ours: what it prints is kept in its folder, and it ends with the test.

    :ivar process: None before the first start.
    """

    folder: Path
    name: str
    command: list[str]
    environment: dict[str, str] = field(factory=dict)
    before_exec: Callable[[], None] | None = None
    process: subprocess.Popen[bytes] | None = None
    _begins: dict[str, int] = field(factory=dict)

    def start(self) -> None:
        """Start it; `output` and `errors` begin anew."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FOREMAN_")}
        with self._file("out").open("ab") as output, self._file("err").open("ab") as errors:
            self._begins = {"out": output.tell(), "err": errors.tell()}
            self.process = subprocess.Popen(
                self.command,
                env={**clean, "PYTHONPATH": str(Path(__file__).parents[2]), **self.environment},
                stdout=output,
                stderr=errors,
                cwd=self.folder,
                preexec_fn=self.before_exec,  # noqa: PLW1509 - no threads of ours hold a lock then
            )

    def _file(self, ending: str) -> Path:
        return self.folder / f"{self.name}.{ending}"

    def _written(self, ending: str, since: int) -> str:
        ended, path = self.ended, self._file(ending)
        written = path.read_bytes()[since:] if path.exists() else b""
        # Of a line that is being written the beginning may be there: half a port, half a character.
        return (written if ended else written[: written.rfind(b"\n") + 1]).decode()

    @property
    def output(self) -> str:
        """What it has printed since its start."""
        return self._written("out", self._begins["out"])

    @property
    def everything(self) -> str:
        """What it has printed, over all its starts."""
        return self._written("out", 0)

    @property
    def errors(self) -> str:
        """What it has printed to stderr since its start."""
        return self._written("err", self._begins["err"])

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process is not None
        return self.process.pid

    @property
    def ended(self) -> bool:
        """Whether there is no such process (any more)."""
        return self.process is None or self.process.poll() is not None

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    async def end(self, number: int = signal.SIGTERM, *, within: float = 30.0) -> int:
        """Send it a signal and wait for its end; returns the exit status."""
        self.send(number)
        return await self.exit_status(within=within)

    async def exit_status(self, *, within: float = 30.0) -> int:
        """Wait for its end."""
        await eventually(lambda: self.ended, within=within)
        assert self.process is not None
        return self.process.returncode

    def destroy(self) -> None:
        """See that it is gone, whatever state it is in; a stopped process can be killed too."""
        if self.process is not None and not self.ended:
            self.process.kill()
            self.process.wait(30)


LISTENS = re.compile(r"listens on \S+:(\d+)")


@define(eq=False)
class Daemon(Child):
    """The real `twistd foreman` as a child process."""

    async def ready(self, *, within: float = 30.0) -> str:
        """Wait until it takes calls; returns its URL."""
        await eventually(lambda: "listens on" in self.output or self.ended, within=within)
        assert not self.ended, self.output + self.errors
        return self.url

    @property
    def url(self) -> str:
        """Where it listens: `unix:path`, or by its log."""
        address = self.environment["FOREMAN_ADDR"]
        found = LISTENS.search(self.output)
        return f"http://127.0.0.1:{found[1]}" if found else address

    @property
    def database(self) -> Path:
        """Its database."""
        return self.folder / "foreman.db"

    def lines(self, *levels: str) -> list[str]:
        """The lines of those levels in its text log since its start."""
        return [line for line in self.output.splitlines() if line.split()[1:2] and line.split()[1] in levels]

    def rows(self) -> list[dict[str, Any]]:
        """All jobs as its files have them, by seq; it may be running, or dead and not yet recovered."""
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute("SELECT * FROM jobs ORDER BY seq")]

    def memory(self, name: str = "VmRSS") -> int:
        """Bytes of its memory, by the name they have in `/proc/<pid>/status`."""
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        assert found
        return int(found[1]) * 1024

    def descriptors(self) -> int:
        """How many files and sockets it holds."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


@asynccontextmanager
async def daemon(
    folder: Path, target: str, settings: Mapping[str, str] | None = None, *, start: bool = True
) -> AsyncIterator[Daemon]:
    """A `Daemon`, gone with the block; its log must be without tracebacks and its stderr empty.

    :param target: the target's URL.
    :param settings: FOREMAN_… names without the prefix.
    :param start: wait until it takes calls.
    """
    environment = {"OLLAMA_URL": target, "ADDR": "127.0.0.1:0", "DB": "foreman.db", **(settings or {})}
    twistd = str(Path(sys.executable).with_name("twistd"))
    child = Daemon(
        folder,
        "foreman",
        [twistd, "--nodaemon", "--pidfile=", "foreman"],
        {f"FOREMAN_{name}": value for name, value in environment.items()},
    )
    try:
        if start:
            child.start()
            await child.ready()
        yield child
        if child.process is not None:
            assert child.errors == ""
            assert [line for line in child.everything.splitlines() if "Traceback" in line] == []
    finally:
        child.destroy()


@define(eq=False)
class FakeProcess(Child):
    """FakeOllama as a child process: it can be stopped by a signal, as a laptop that sleeps."""

    url: str = ""
    control: str = ""

    async def ready(self) -> None:
        """Wait until it listens."""
        await eventually(lambda: self.output.count("\n") >= 2 or self.ended, within=30)
        assert not self.ended, self.errors
        self.url, self.control = self.output.splitlines()[:2]

    async def act(self, name: str) -> None:
        """Have it `sleep`, `wake`, `cut`, `refuse` or `accept`."""
        await ask(self.control, "POST", f"/_fake/{name}")

    async def state(self) -> Any:
        """What has happened to it so far."""
        return (await ask(self.control, "GET", "/_fake/state")).document


@asynccontextmanager
async def fake_process(folder: Path, models: str = "defaults") -> AsyncIterator[FakeProcess]:
    """A `FakeProcess` that listens, gone with the block.

    :param models: as `python -m foreman.ollama.fake --models` takes them.
    """
    child = FakeProcess(folder, "ollama", [sys.executable, "-m", "foreman.ollama.fake", "--models", models])
    child.start()
    try:
        await child.ready()
        yield child
    finally:
        child.destroy()
