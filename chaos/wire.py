"""HTTP/1.1 from the client's side over plain sockets, so that a client can stop, dawdle and leave wherever it likes.

Every exchange ends in a plain dict, its *entry* in the log: what was asked, what came, how it ended and when.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from chaos.plan import Manner

Entry = dict[str, Any]

GONE = (ConnectionError, asyncio.IncompleteReadError, OSError)
"""What a connection that ends raises."""

DAWDLE = 0.1
"""Seconds a slow reader rests after every piece."""

PIECE = 16 * 1024
"""Bytes after which a slow reader rests, and which it keeps unread at most."""


class Leaves(Exception):
    """The client has had enough."""


async def exchange(
    port: int,
    method: str,
    path: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    manner: Manner = Manner.STAYS,
    pause: float = 0.0,
    entry: Entry | None = None,
) -> Entry:
    """Make one request in a connection of its own.

    :param pause: seconds until a client leaves that leaves while it waits.
    :param entry: what to add to; it is true at any time.
    :return: the entry.  `end`: `whole`, `cut` (by the server, before the answer was whole), `refused`, or `left`.
    """
    entry = {} if entry is None else entry
    entry |= {
        "method": method,
        "path": path,
        "manner": manner,
        "sent_at": time.time(),
        "end": "open",
        "size": len(body),
    }
    own = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": str(len(body))}
    head = _head(method, path, own | dict(headers or {}))
    writer = None
    try:
        reader, writer = await _connected(port, slow=manner is Manner.SLOW)
        entry["connected"] = True
        leaving = asyncio.timeout(pause if manner is Manner.LEAVES_WAITING else None)
        async with leaving:
            await _send(writer, head, body, manner)
            await _receive(reader, entry, manner)
        entry["end"] = "whole"
    except (Leaves, TimeoutError):
        entry["end"] = "left"
    except GONE as error:
        entry["end"] = "cut" if entry.get("connected") else "refused"
        entry["error"] = repr(error)
    finally:
        entry["ended_at"] = time.time()
        if writer is not None:
            writer.transport.abort()
    return entry


async def _connected(port: int, *, slow: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    plain = socket.socket()
    plain.setblocking(False)
    if slow:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE)
    try:
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
    except OSError:
        plain.close()
        raise
    return await asyncio.open_connection(sock=plain, limit=PIECE if slow else 2**20)


def _head(method: str, path: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


async def _send(writer: asyncio.StreamWriter, head: bytes, body: bytes, manner: Manner) -> None:
    if manner is Manner.LEAVES_MID_BODY:
        writer.write(head + body[: len(body) // 2])
        await writer.drain()
        raise Leaves
    writer.write(head + body)
    await writer.drain()
    if manner is Manner.HALF_CLOSES:
        writer.write_eof()


async def _receive(reader: asyncio.StreamReader, entry: Entry, manner: Manner) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    entry |= {"status": int(head[0].split()[1]), "head_at": time.time(), "type": headers.get("content-type", "")}
    for name, key in (("x-foreman-job", "job"), ("retry-after", "retry_after")):
        if name in headers:
            entry[key] = headers[name]
    if manner is Manner.LEAVES_AT_HEAD:
        raise Leaves
    if entry["status"] in (204, 304):
        return
    body, rests = bytearray(), 0
    try:
        async for piece in _pieces(reader, headers):
            body += piece
            if manner is Manner.LEAVES_MID_STREAM:
                raise Leaves
            if manner is Manner.SLOW and len(body) // PIECE > rests:
                rests += 1
                await asyncio.sleep(DAWDLE)
    finally:
        note_body(entry, bytes(body))


async def _pieces(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    else:
        left = int(headers["content-length"])
        while left:
            piece = await reader.read(min(left, PIECE))
            if not piece:
                raise ConnectionError("short body")
            left -= len(piece)
            yield piece


def note_body(entry: Entry, body: bytes) -> None:
    """Note what an answer's body was, without the filler of a held line."""
    bare = body.lstrip(b" ")
    while bare.startswith(b": \n\n"):
        bare = bare[4:]
    entry |= {"held": len(body) - len(bare), "bytes": len(bare), "crc": zlib.crc32(bare)}
    last = bare.rstrip().rpartition(b"\n")[2]
    entry["done"] = _is_final(last)
    if len(bare) < 4096 and (entry["status"] >= 300 or not entry["done"]):
        entry["text"] = bare.decode("utf-8", "replace")
    if entry["type"].startswith("application/json"):
        with suppress(ValueError):
            entry["document"] = json.loads(bare)


def _is_final(line: bytes) -> bool:
    """Whether a last line, or a whole answer, says that it is complete."""
    if line in (b"data: [DONE]", b'data: {"type":"message_stop"}'):
        return True
    try:
        document = json.loads(line)
    except ValueError:
        return False
    if not isinstance(document, dict):
        return False
    kind = document.get("object", document.get("type"))
    return document.get("done") is True or kind in ("chat.completion", "message")
