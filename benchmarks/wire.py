"""HTTP/1.1 from the client's side with as little work as possible: prebuilt requests over plain sockets.

`Connection` makes one call after another and takes times; `Crowd` keeps many connections busy from one thread.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from types import TracebackType
from typing import Any

from attrs import frozen

TIMEOUT = 60.0
"""Seconds of silence after which a call has failed."""


def request(
    method: str, path: str, body: bytes = b"", content_type: str = "application/json", *, token: str | None = None
) -> bytes:
    """An HTTP/1.1 request as bytes."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n"
    if token is not None:
        head += f"Authorization: Bearer {token}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def chat(model: str, **more: Any) -> bytes:
    """A small chat as bytes."""
    document = {"model": model, "messages": [{"role": "user", "content": "Say something."}], **more}
    return request("POST", "/api/chat", json.dumps(document).encode())


def lines_model(count: int, *, interval: int = 0, size: int = 140, delay: int = 0) -> str:
    """The name of a stub's model: so many lines of `size` bytes, `interval` ms apart, the first after `delay` ms."""
    return f"chunks-{count}-{interval}-{size}-{delay}"


@frozen
class Timing:
    """How long one call took, in seconds."""

    first_byte: float
    total: float


class Connection:
    """One connection to a server on loopback, kept alive from call to call."""

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave."""
        self.socket.close()

    def receive(self) -> bytes:
        """The next bytes; ConnectionError when there will be none."""
        data = self.socket.recv(262144)
        if not data:
            raise ConnectionError("the server has closed the connection")
        return data

    def pieces(self) -> Iterator[bytes]:
        """The bytes of a chunked answer as they come, head and framing included."""
        tail = b""
        while not tail.endswith(b"\r\n0\r\n\r\n"):
            data = self.receive()
            yield data
            tail = (tail + data)[-7:]

    def timed(self, wanted: bytes) -> Timing:
        """Make a call whose answer is chunked, and take its times."""
        started = time.perf_counter()
        self.socket.sendall(wanted)
        pieces = self.pieces()
        head = next(pieces)
        first = time.perf_counter()
        must_be_ok(head)
        for _ in pieces:
            pass
        return Timing(first - started, time.perf_counter() - started)


def must_be_ok(head: bytes) -> None:
    """RuntimeError when an answer does not begin with a status of success."""
    if not head.startswith(b"HTTP/1.1 2"):
        raise RuntimeError(head.decode("latin-1"))


def ask(
    port: int, method: str, path: str, body: bytes = b"", content_type: str = "application/json"
) -> tuple[int, bytes]:
    """Status and body of one answer, at leisure."""
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request(method, path, body, {"Content-Type": content_type})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def get(port: int, path: str) -> bytes:
    """The body of a page; ValueError when it is not 200."""
    status, body = ask(port, "GET", path)
    if status != 200:
        raise ValueError(f"{path}: {status}")
    return body


class Crowd:
    """Many clients in one thread, each with one call at a time whose answer is chunked.

    :ivar finished: calls whose answers are whole.
    """

    def __init__(self, port: int, clients: int) -> None:
        self.connections = [Connection(port) for _ in range(clients)]
        self.finished = 0
        self._selector = selectors.EpollSelector()
        self._tails: dict[int, bytes] = {}
        for connection in self.connections:
            connection.socket.setblocking(False)
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._selector.close()
        for connection in self.connections:
            connection.close()

    def send(self, wanted: bytes) -> None:
        """Everybody makes this call."""
        for connection in self.connections:
            connection.socket.send(wanted)

    def run(
        self,
        until: Callable[[], bool],
        *,
        again: bytes | None = None,
        on_data: Callable[[bytes], None] = lambda data: None,
    ) -> None:
        """Read answers until it is enough.

        :param again: what a client sends when its answer is whole; None for nothing more.
        """
        while not until():
            events = self._selector.select(TIMEOUT)
            if not events:
                raise TimeoutError("no client hears anything")
            for key, _ in events:
                connection: Connection = key.data
                data = connection.receive()
                on_data(data)
                tail = self._tails.get(key.fd, b"")
                if not tail:
                    must_be_ok(data)
                self._tails[key.fd] = tail = (tail + data)[-7:]
                if tail.endswith(b"\r\n0\r\n\r\n"):
                    self.finished += 1
                    self._tails[key.fd] = b""
                    if again is not None:
                        connection.socket.send(again)
