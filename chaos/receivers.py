"""Webhook receivers: they verify and log every delivery, and answer well, wrongly, garbage, or not at all."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
import zlib
from typing import Any

from chaos.wire import GONE

SECRET = "chaos-of-a-seeded-kind"  # noqa: S105
"""What foreman signs with in every round."""

ANSWERS = {
    "well": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "wrong status": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
    "redirects": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    "garbage": b"\x00\xff this is not HTTP\r\n\r\n\r\n" * 50,
    "short": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nok",
    "endless head": b"HTTP/1.1 200 OK\r\n" + b"X-More: and more\r\n" * 20_000,
    "cuts": b"",
    "gone": b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n",
    "busy": b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 4\r\nContent-Length: 0\r\n\r\n",
}
"""What a receiver sends, by its mood, before it closes the connection; one that `hangs` sends nothing and waits."""

REFUSES = ("gone", "busy")
"""Moods in which it says what is to be done: come no more, or later."""

TAKES = ("well", "short")
"""Moods whose answer has begun with a whole head that says 2xx."""


class Receiver:
    """One receiver.

    :ivar mood: how it answers from now on: a key of `ANSWERS`, or `hangs`.
    :ivar log: every delivery that came whole, as plain dicts.
    """

    def __init__(self, number: int) -> None:
        self.mood = "well"
        self.log: list[dict[str, Any]] = []
        self._number = number
        self._port = 0
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it takes deliveries."""
        return f"http://127.0.0.1:{self._port}/hook"

    async def start(self) -> None:
        """Listen, on the same port every time."""
        if self._server is None:
            self._server = await asyncio.start_server(self._talk, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listen no more, and cut whoever is there."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for talk in tuple(self._talks):
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        try:
            while await self._take(reader, writer):
                pass
        except (*GONE, asyncio.CancelledError):
            pass
        finally:
            self._talks.discard(task)
            writer.transport.abort()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Take one delivery and answer it; whether the connection is good for another."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        body = await reader.readexactly(int(headers["content-length"]))
        mood = self.mood
        entry = delivery(headers, body) | {"receiver": self._number, "at": time.time(), "mood": mood, "taken": False}
        self.log.append(entry)
        if mood == "hangs":
            await reader.read()  # until the sender gives up
            return False
        writer.write(ANSWERS[mood])
        await writer.drain()
        entry["taken"] = mood in TAKES
        return mood == "well"


def delivery(headers: dict[str, str], body: bytes) -> dict[str, Any]:
    """What a delivery says, and whether it is signed as it must be."""
    document = json.loads(body)
    key, stamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    digest = hmac.digest(SECRET.encode(), f"{key}.{stamp}.".encode() + body, hashlib.sha256)
    signed = (
        headers.get("webhook-signature") == "v1," + base64.b64encode(digest).decode()
        and headers.get("x-foreman-signature") == "sha256=" + hmac.digest(SECRET.encode(), body, hashlib.sha256).hex()
    )
    return {
        "id": key,
        "stamp": int(stamp or 0),
        "signed": signed,
        "crc": zlib.crc32(body),
        "job": document.get("job_id"),
        "sequence": document.get("sequence"),
        "state": document.get("state"),
        "metadata": document.get("metadata"),
    }
