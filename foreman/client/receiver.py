"""A receiver of webhooks inside a program, for those who would rather be told than ask."""

from __future__ import annotations

import secrets
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from threading import Condition, Thread
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from foreman.client.errors import InvalidSignature, NotForeman, WaitTimeout
from foreman.client.signatures import event_of, key_of, verify
from foreman.client.values import WebhookEvent

KEPT = 10_000
"""Jobs whose last event is remembered, and events that wait to be read; the oldest make room."""

MOST = 16 * 2**20
"""Bytes of a delivery: a result that is told with its event is short."""

AT_ONCE = 15
"""Seconds that a delivery may take, which is all the time that foreman gives it."""

PIECE = 65536
"""Bytes that are read of it at once."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), handler)

    def handle_error(self, *arguments: object) -> None:
        """Say nothing of connections that break: stderr is the program's, and foreman tries again."""


def _read(file: BufferedIOBase, length: int) -> bytes:
    """The body of a delivery.

    :raise TimeoutError: it drips; the server closes the connection then.
    """
    pieces, end = [], time.monotonic() + AT_ONCE
    while length > 0 and (piece := file.read1(min(length, PIECE))):
        pieces.append(piece)
        length -= len(piece)
        if time.monotonic() > end:
            raise TimeoutError
    return b"".join(pieces)


class Receiver:
    """Takes webhooks while its block runs, in a thread of its own.

        with Receiver(secret="…") as receiver, Foreman() as foreman:
            job = foreman.submit("qwen3:30b", "Why?", state_webhook_url=receiver.url)
            print(receiver.wait(job.job_id).text)

    Each event is told once, and none after a later one of the same job.  What is not read within the block is lost, so
    this is for programs that stay until their jobs are over.  Threads may share one.

    :param secret: foreman's FOREMAN_WEBHOOK_SECRET; None if it has none, then nothing is verified.
    :param host: the address to listen on.
    :param port: 0 for any that is free.
    :param url: how foreman reaches this, if not by `host` and `port`.
    :raise ValueError: the secret cannot be one, or `url` is missing where `host` stands for any address.
    :ivar url: for `state_webhook_url`; its path cannot be guessed, unless `url` was given.
    """

    def __init__(
        self, *, secret: str | bytes | None, host: str = "127.0.0.1", port: int = 0, url: str | None = None
    ) -> None:
        if url is None and host in ("", "0.0.0.0", "::"):  # noqa: S104
            raise ValueError("a receiver that listens everywhere has to be told its url")
        self._key = None if secret is None else key_of(secret)
        self._changed = Condition()
        self._last: OrderedDict[str, WebhookEvent] = OrderedDict()
        self._unread: deque[WebhookEvent] = deque(maxlen=KEPT)
        self._closed = False
        self._server = _Server(host, port, self._handler())
        place = f"[{host}]" if ":" in host else host
        self.url = url or f"http://{place}:{self._server.server_port}/{secrets.token_urlsafe(16)}"
        parts = urlsplit(self.url)
        self._path = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
        self._thread = Thread(target=self._server.serve_forever, name="foreman-receiver", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait(self, job_id: str, timeout: float | None = None) -> WebhookEvent:
        """Wait until a job is done or has failed, and return the event that says so.

        What was told of the last 10,000 jobs is remembered: who submits more has to wait for the first meanwhile.

        :param timeout: seconds after which to wait no longer.
        :raise WaitTimeout: it is not over, as far as was told.
        """

        def over() -> WebhookEvent | None:
            event = self._last.get(job_id)
            return event if event is not None and event.state.is_over else None

        with self._changed:
            self._changed.wait_for(lambda: over() or self._closed, timeout)
            event = over()
        if event is None:
            raise WaitTimeout(f"nothing was told of the end of job {job_id}")
        return event

    def __iter__(self) -> Iterator[WebhookEvent]:
        """The events as they come, of all jobs; ends with the block."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unread or self._closed)
                if not self._unread:
                    return
                event = self._unread.popleft()
            yield event

    # -- the server's side -------------------------------------------------------------------------------------------

    def _take(self, headers: dict[str, str], body: bytes) -> None:
        event = event_of(body) if self._key is None else verify(headers, body, self._key)
        with self._changed:
            last = self._last.get(event.job_id)
            if last is not None and last.sequence >= event.sequence:
                return  # a repeat, or overtaken
            self._last[event.job_id] = event
            self._last.move_to_end(event.job_id)
            if len(self._last) > KEPT:
                self._last.popitem(last=False)
            self._unread.append(event)
            self._changed.notify_all()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            timeout = AT_ONCE

            def do_POST(self) -> None:
                self.send_response(self._status())
                self.send_header("Content-Length", "0")
                self.end_headers()

            def _status(self) -> int:
                if self.path != receiver._path:
                    return 404
                length = self.headers.get("Content-Length", "")
                if not (length.isascii() and length.isdigit()):
                    return 411
                if int(length[:12]) > MOST:
                    return 413
                try:
                    receiver._take(dict(self.headers.items()), _read(self.rfile, int(length)))
                except InvalidSignature:
                    return 401
                except NotForeman:
                    return 400
                return 204

            def log_message(self, *arguments: object) -> None:
                """Say nothing of requests either."""

        return Handler
