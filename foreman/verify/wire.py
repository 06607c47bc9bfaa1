"""HTTP/1.1 over a socket of one's own: what came, in which chunks and when.

HTTP libraries join the chunks of an answer and decode what is in them; here they are what is looked at.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import BinaryIO
from urllib.parse import SplitResult, urlsplit

from attrs import define, field, frozen

CONNECT = 10.0
"""Seconds that a connection may take."""

SILENCE = 900.0
"""Seconds without a byte after which an answer is given up; a call may wait in foreman's queue behind others."""


class NotReached(Exception):
    """Nobody answers at an address, or not in HTTP; the text is for people."""


class BrokenOff(Exception):
    """A body that ended before its end; the text is for people."""


def _without_slash(url: str) -> str:
    return url.rstrip("/")


@frozen(kw_only=True)
class Place:
    """Where to ask.

    :ivar url: `http(s)://host[:port][/path]`, without a slash at its end.
    :ivar token: sent as `Authorization: Bearer`; None for none.
    :raise ValueError: the URL is another kind of one.
    """

    url: str = field(converter=_without_slash)
    token: str | None = field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        url, parts = self.url, self.parts
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.query
            or parts.fragment
            or parts.username
        ):
            raise ValueError(f"{url!r} is not the URL of an HTTP server")
        _ = parts.port  # raises ValueError too

    @property
    def parts(self) -> SplitResult:
        """The URL, taken apart."""
        return urlsplit(self.url)


@frozen(kw_only=True)
class Piece:
    """A chunk of an answer's body, or what was read at once of one that has no chunks.

    :ivar at: seconds from the request's end to this piece's.
    """

    data: bytes
    at: float


@frozen(kw_only=True)
class Answer:
    """A whole answer.

    :ivar headers: in the order they came, names in lower case.
    :ivar broken: how the body ended before its end, None if it did not.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    pieces: tuple[Piece, ...]
    broken: str | None = None

    @property
    def body(self) -> bytes:
        """The body, whole."""
        return b"".join(piece.data for piece in self.pieces)

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        return next((value for key, value in self.headers if key == name), None)


@define(eq=False)
class Exchange:
    """One request on a connection of its own, closed with the block.

    :raise NotReached: there is no connection, or no HTTP on it.
    """

    _socket: socket.socket
    _method: str
    _file: BinaryIO = field(init=False)
    _begun: float = field(init=False, factory=time.monotonic)
    status: int = field(init=False, default=0)
    headers: tuple[tuple[str, str], ...] = field(init=False, default=())

    def __attrs_post_init__(self) -> None:
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.leave()
        self._file.close()
        self._socket.close()

    def leave(self) -> None:
        """Close the connection, also for a thread that reads from it."""
        with suppress(OSError):  # the other end was first
            self._socket.shutdown(socket.SHUT_RDWR)

    def head(self) -> None:
        """Wait for the answer's head: `status` and `headers` are there then."""
        try:
            version, _, rest = self._line().partition(" ")
            if not version.startswith("HTTP/1."):
                raise NotReached(f"the answer begins with {version!r}, which is not HTTP")
            self.status = int(rest.split(" ")[0])
            headers = []
            while line := self._line():
                name, _, value = line.partition(":")
                headers.append((name.lower(), value.strip()))
            self.headers = tuple(headers)
        except (OSError, ValueError) as error:
            raise NotReached(f"there was no answer: {error}") from None

    def pieces(self) -> Iterator[Piece]:
        """The pieces of the body as they come.

        :raise BrokenOff: it ends before its end.
        """
        try:
            yield from self._framed()
        except (OSError, ValueError) as error:
            raise BrokenOff(str(error)) from None

    def _framed(self) -> Iterator[Piece]:
        headers = dict(self.headers)
        if self._method == "HEAD" or self.status in (204, 304):
            return
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self._line().partition(";")[0] or "x", 16):
                yield from self._sized(size)
                self._line()
            while self._line():
                pass
        elif "content-length" in headers:
            yield from self._sized(int(headers["content-length"]))
        else:
            yield self._piece(self._file.read())

    def _piece(self, data: bytes) -> Piece:
        return Piece(data=data, at=time.monotonic() - self._begun)

    def _sized(self, size: int) -> Iterator[Piece]:
        data = self._file.read(size)
        yield self._piece(data)
        if len(data) < size:
            raise ConnectionError(f"the connection ended {size - len(data)} bytes too early")

    def _line(self) -> str:
        line = self._file.readline(65536)
        if not line.endswith(b"\n"):
            raise ConnectionError("the connection ended in the middle of a line" if line else "the connection ended")
        return line.decode("latin-1").rstrip("\r\n")


def begin(
    place: Place, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Exchange:
    """Send a request and do not wait for the answer.

    :param path: as it stands on the request line, behind the place's own path.
    :raise NotReached: nobody is there.
    """
    parts = place.parts
    port = parts.port or (443 if parts.scheme == "https" else 80)
    all_headers = {"Host": parts.netloc, "User-Agent": "foreman-verify", **(headers or {})}
    if body is not None:
        all_headers |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    if place.token is not None:
        all_headers["Authorization"] = f"Bearer {place.token}"
    lines = [f"{method} {parts.path}{path} HTTP/1.1", *(f"{name}: {value}" for name, value in all_headers.items())]
    try:
        connection = socket.create_connection((parts.hostname, port), CONNECT)
        if parts.scheme == "https":
            connection = ssl.create_default_context().wrap_socket(connection, server_hostname=parts.hostname)
        connection.settimeout(SILENCE)
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))
    except OSError as error:
        raise NotReached(f"{place.url} cannot be reached: {error}") from None
    return Exchange(connection, method)


def ask(
    place: Place, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """Send a request and wait for the whole answer; a body that breaks off is an answer, too.

    :raise NotReached: nobody is there, or there is no answer.
    """
    pieces: list[Piece] = []
    broken = None
    with begin(place, method, path, body, headers) as exchange:
        exchange.head()
        try:
            for piece in exchange.pieces():
                pieces.append(piece)  # noqa: PERF402 - what came before a break is kept
        except BrokenOff as error:
            broken = str(error)
        return Answer(status=exchange.status, headers=exchange.headers, pieces=tuple(pieces), broken=broken)
