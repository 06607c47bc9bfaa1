"""A proxy that passes everything on as it came, but for one thing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from attrs import field, frozen

from foreman.verify.wire import BrokenOff, Exchange, NotReached, Place, begin

Headers = tuple[tuple[str, str], ...]


def _same(value: Any) -> Any:
    return value


def _one_for_one(piece: bytes) -> list[bytes]:
    return [piece]


@frozen(kw_only=True)
class Lie:
    """What is not passed on as it came.

    :ivar late: seconds after which each request is passed on, the first ones' first.
    :ivar chunk: what becomes of a piece of a body.
    :ivar holds: a body is sent when it is whole, chunk by chunk.
    :ivar clings: an answer is read to its end though the client has left.
    """

    late: Iterator[float] = field(factory=lambda: iter(()))
    status: Callable[[int], int] = _same
    headers: Callable[[Headers], Headers] = _same
    chunk: Callable[[bytes], list[bytes]] = _one_for_one
    holds: bool = False
    clings: bool = False


@contextmanager
def lying(target: str, lie: Lie) -> Iterator[str]:
    """A proxy in front of `target`; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if self.raw_requestline and self.parse_request():
                _pass(self, Place(url=target), lie)
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _pass(handler: BaseHTTPRequestHandler, target: Place, lie: Lie) -> None:
    length = handler.headers.get("content-length")
    body = None if length is None else handler.rfile.read(int(length))
    origin = {name: value for name, value in handler.headers.items() if name.lower().startswith(("origin", "access-"))}
    time.sleep(next(lie.late, 0.0))
    with suppress(NotReached), begin(target, handler.command, handler.path, body, origin) as exchange:
        if not lie.clings:
            threading.Thread(target=_watch, args=(handler.connection, exchange), daemon=True).start()
        exchange.head()
        _relay(handler, exchange, lie)


def _relay(handler: BaseHTTPRequestHandler, exchange: Exchange, lie: Lie) -> None:
    """Pass an answer on; where the target's body breaks off, so does ours."""
    chunked = ("transfer-encoding", "chunked") in exchange.headers

    def write(data: bytes) -> None:
        with suppress(OSError):  # the client has left
            handler.wfile.write(data)

    headers = "".join(f"{name}: {value}\r\n" for name, value in lie.headers(exchange.headers))
    write(f"HTTP/1.1 {lie.status(exchange.status)} Whatever\r\n{headers}\r\n".encode("latin-1"))
    with suppress(BrokenOff):
        pieces = exchange.pieces()
        for piece in list(pieces) if lie.holds else pieces:
            for data in lie.chunk(piece.data):
                write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
        if chunked and handler.command != "HEAD":
            write(b"0\r\n\r\n")


def _watch(client: socket.socket, exchange: Exchange) -> None:
    """Leave the target when the client leaves us."""
    with suppress(OSError, ValueError):
        if not client.recv(1, socket.MSG_PEEK):
            exchange.leave()
