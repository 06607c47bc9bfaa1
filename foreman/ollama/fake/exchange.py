"""One request and its answer as Go's HTTP server has them: records, framing, and what never reaches a route.

Source: ollama-wire §1 (router), §2 (headers, hosts, origins).
"""

# ruff: noqa: D102 - what Twisted calls is told there
# mypy: disallow-untyped-calls=False
# Twisted's HTTP classes are hardly typed.
from __future__ import annotations

import ipaddress
import posixpath
import socket
import zlib
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote_to_bytes

from attrs import define
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.server import Request, Site

from .faults import Rule

if TYPE_CHECKING:
    from .server import FakeOllama

CHUNKED_FROM = 2048
"""Go sends the length of smaller answers and chunks larger ones."""

_ORIGINS = (
    *(
        f"{scheme}://{host}{port}"
        for scheme in ("http", "https")
        for host in ("localhost", "127.0.0.1", "0.0.0.0")  # noqa: S104 - an origin, not an address to bind
        for port in ("", ":*")
    ),
    "app://*",
    "file://*",
    "tauri://*",
    "vscode-webview://*",
    "vscode-file://*",
)
_PREFLIGHT = (
    (
        b"Access-Control-Allow-Headers",
        (
            b"Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,X-Stainless-Async,"
            b"X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,"
            b"X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,"
            b"X-Stainless-Runtime-Version,X-Stainless-Timeout"
        ),
    ),
    (b"Access-Control-Allow-Methods", b"GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"),
)
_VARY = (b"Origin", b"Access-Control-Request-Method", b"Access-Control-Request-Headers")
_TEXT = b"text/plain"


@define(eq=False)
class Record:
    """A request as it was seen, kept for tests.

    :ivar peer: the client's `host:port`: the same for requests on one connection.
    :ivar headers: lower-case name to the last value.
    :ivar connected_at: seconds on the clock when the whole request was there; `ended_at`: when it was over.
    :ivar outcome: `open`, `answered`, `left` (the client went away) or `cut` (a fault closed the connection).
    :ivar sent: bytes of the answer's body that were written, and `crc`: their CRC-32.
    :ivar fault: what struck it, or lay in wait for it; None for nothing.
    """

    peer: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connected_at: float
    first_byte_at: float | None = None
    ended_at: float | None = None
    outcome: str = "open"
    status: int | None = None
    sent: int = 0
    crc: int = 0
    fault: str | None = None

    @property
    def left_at(self) -> float | None:
        """When the client left; None if it did not."""
        return self.ended_at if self.outcome == "left" else None


class Channel(HTTPChannel):
    """A connection, known to its FakeOllama so that it can freeze with it."""

    fake: FakeOllama
    totalHeadersSize = MAX_LENGTH = 1 << 20  # noqa: N815 - Twisted's names; the size is Go's

    def connectionMade(self) -> None:
        super().connectionMade()
        self.fake = self.factory.fake
        self.fake.connections.add(self)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.fake.connections.discard(self)
        super().connectionLost(reason)

    def freeze(self) -> None:
        """Read and write nothing."""
        self._tcp.stopReading()
        self._tcp.stopWriting()

    def thaw(self) -> None:
        """Go on reading and writing."""
        self._tcp.startReading()
        self._tcp.startWriting()

    def abort(self) -> None:
        """Close at once, whatever is on its way."""
        self._tcp.abortConnection()

    @property
    def _tcp(self) -> Any:
        return self.transport


class Exchange(Request):
    """A request with the answers Ollama gives before and below its routes.

    :ivar rule: the fault this request meets in the middle of its answer, if any.
    """

    fake: FakeOllama
    record: Record
    rule: Rule | None = None
    route_path: str = ""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more, parsePOSTFormSubmission=False)  # Twisted's fails on odd ones

    def process(self) -> None:
        channel: Any = self.channel
        self.site = channel.site
        self.fake = channel.fake
        address = self.client
        headers = {
            name.decode("latin-1").lower(): values[-1].decode("latin-1")
            for name, values in self.requestHeaders.getAllRawHeaders()
        }
        self.route_path = self._decoded_path()
        self.record = Record(
            f"{getattr(address, 'host', '')}:{getattr(address, 'port', '')}",
            self.method.decode("latin-1"),
            self.route_path,
            headers,
            b"" if self.route_path.startswith("/api/blobs/") else self._content(),
            self.fake.clock.seconds(),
        )
        self.fake.requests.append(self.record)
        if not self._answered_early(headers):
            self.fake.serve(self)

    def _content(self) -> bytes:
        content: Any = self.content
        return bytes(content.read())

    @property
    def body(self) -> bytes:
        """The request's body, whole."""
        return self.record.body

    def _decoded_path(self) -> str:
        path: bytes = self.path
        if b"://" in path[:8]:  # the absolute form
            path = b"/" + path.split(b"://", 1)[1].partition(b"/")[2]
        return unquote_to_bytes(path).decode("utf-8", "replace")

    # -- before the routes -------------------------------------------------------------------------------------------

    def _answered_early(self, headers: dict[str, str]) -> bool:
        host, origin = headers.get("host", ""), headers.get("origin")
        path, method = self.route_path, self.record.method
        if not _is_ours(host):
            self.reply(403)
        elif origin and not self._origin_passes(origin, host, path):
            pass
        elif (clean := _cleaned(path)) != path:
            self._redirect(clean, 307)
        elif (methods := self.fake.methods_of(path)) is None:
            shorter = path.rstrip("/")
            if path != "/" and self.fake.methods_of(shorter):
                self._redirect(shorter, 301 if method == "GET" else 307)
            else:
                self.reply(404, b"404 page not found", _TEXT)
        elif method not in methods:
            if method == "OPTIONS" and not origin and not _is_address(host):
                self.reply(204)
            else:
                self.reply(405, b"405 method not allowed", _TEXT, ((b"Allow", ", ".join(methods).encode()),))
        else:
            return False
        return True

    def _origin_passes(self, origin: str, host: str, path: str) -> bool:
        if origin in (f"http://{host}", f"https://{host}"):
            return True
        if not any(fnmatch(origin, allowed) for allowed in _ORIGINS):
            self.reply(403)
            return False
        if self.method == b"OPTIONS":
            for name, value in (*_PREFLIGHT, (b"Access-Control-Allow-Origin", origin.encode())):
                self.setHeader(name, value)
            self.setHeader(b"Access-Control-Max-Age", b"43200")
            self.setHeader(b"Allow", ", ".join(self.fake.methods_of(path) or ()).encode())
            self.responseHeaders.setRawHeaders(b"Vary", _VARY)
            self.reply(204)
            return False
        self.setHeader(b"Access-Control-Allow-Origin", origin.encode())
        self.setHeader(b"Vary", b"Origin")
        return True

    def _redirect(self, path: str, status: int) -> None:
        query = self.uri.partition(b"?")[2]
        location = quote(path, safe="/:@!$&'()*+,;=~").encode() + (b"?" + query if query else b"")
        self.setHeader(b"Location", location)
        if self.method != b"GET":
            self.reply(status)
            return
        words = b"Moved Permanently" if status == 301 else b"Temporary Redirect"
        self.reply(status, b'<a href="%b">%b</a>.\n\n' % (location, words), b"text/html; charset=utf-8")

    # -- answering ---------------------------------------------------------------------------------------------------

    def head(self, status: int, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Set status and headers; they go out with the first byte."""
        self.setResponseCode(status)
        for name, value in headers:
            self.setHeader(name, value)
        self.setHeader(b"Date", self.fake.http_date())

    def reply(
        self,
        status: int,
        body: bytes = b"",
        content_type: bytes | None = None,
        headers: Iterable[tuple[bytes, bytes]] = (),
        *,
        chunked: bool = False,
    ) -> None:
        """A whole answer, framed as Go frames one of its size, and the end of it."""
        if content_type is not None:
            self.setHeader(b"Content-Type", content_type)
        self.head(status, headers)
        if status != 204 and not chunked and len(body) < CHUNKED_FROM:
            self.setHeader(b"Content-Length", b"%d" % len(body))
        self.write(body)
        self.finish()

    def cut(self) -> None:
        """Close the connection after what has been written, without a proper end."""
        self._ended("cut")
        if self.channel is not None:
            self.channel.loseConnection()

    def write(self, data: bytes) -> None:
        if self.record.first_byte_at is None:
            self.record.first_byte_at = self.fake.clock.seconds()
            self.record.status = self.code
            self.defaultContentType = None
        self.record.sent += len(data)
        self.record.crc = zlib.crc32(data, self.record.crc)
        super().write(data)

    def finish(self) -> None:
        if self.record.first_byte_at is None:
            self.write(b"")
        self._ended("answered")
        super().finish()

    def connectionLost(self, reason: Failure) -> None:
        self._ended("left")
        super().connectionLost(reason)

    def _ended(self, outcome: str) -> None:
        record: Record | None = getattr(self, "record", None)  # a request may be lost before it was whole
        if record is not None and record.outcome == "open":
            record.outcome = outcome
            record.ended_at = self.fake.clock.seconds()


class Front(Site):
    """The factory of the stand-in's connections: no Server header, no time limits, no access log."""

    protocol = Channel  # type: ignore[assignment]
    requestFactory = Exchange  # noqa: N815 - the name is Twisted's

    def __init__(self, fake: FakeOllama, resource: Any, reactor: Any) -> None:
        super().__init__(resource, timeout=None, reactor=reactor)
        self.fake = fake

    def log(self, request: object) -> None:
        """Records say it all."""


def _cleaned(path: str) -> str:
    """The path as Go cleans it: a trailing slash stays."""
    if not path.startswith("/"):
        path = "/" + path
    clean = "/" + posixpath.normpath(path).lstrip("/")
    return clean + "/" if path.endswith("/") and clean != "/" else clean


def _bare(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(_bare(host))
    except ValueError:
        return False
    return True


def _is_ours(host: str) -> bool:
    """Whether a server bound to loopback answers for this Host (ollama-wire §2)."""
    bare = _bare(host).lower()
    if not bare or bare in ("localhost", socket.gethostname().lower()):
        return True
    if bare.endswith((".localhost", ".local", ".internal")):
        return True
    if not _is_address(host):
        return False
    address = ipaddress.ip_address(bare)
    return address.is_loopback or address.is_private or address.is_unspecified
