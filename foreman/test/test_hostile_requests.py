"""Requests of odd framing, byte by byte: foreman and its target never disagree about where a request ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from attrs import define, field, frozen
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol

from foreman.ollama.fake import exchange as fake_exchange
from foreman.test.front_door import Step
from foreman.test.harness import House, RawClient, eventually, house, reactor
from foreman.web.body import Request

Seen = tuple[str, str, bytes]
"""Method, target and body of a request."""

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


# -- what is on the wire to the target, read strictly ------------------------------------------------------------------

_LINE = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.1\r\n")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([^\r\n\0]*)\r\n")


@frozen
class Sent:
    """A request as the target got it."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key.lower() == name]


def strictly(data: bytes) -> Iterator[Sent]:
    """The requests of one connection; AssertionError for the least doubt about what is meant."""
    while data:
        line = _LINE.match(data)
        assert line, data
        headers, at = [], line.end()
        while header := _HEADER.match(data, at):
            headers.append((header[1].decode(), header[2].decode("latin-1")))
            at = header.end()
        assert data[at : at + 2] == b"\r\n", data[at:]
        sent = Sent(line[1].decode(), line[2].decode(), tuple(headers), b"")
        assert not sent.all("transfer-encoding")
        lengths = sent.all("content-length")
        assert len(lengths) <= 1
        assert len(sent.all("host")) == 1
        length = int(lengths[0]) if lengths else 0
        body = data[at + 2 : at + 2 + length]
        assert len(body) == length
        yield Sent(sent.method, sent.target, sent.headers, body)
        data = data[at + 2 + length :]


@define
class Wiretap:
    """All that the target was sent, by connection."""

    wires: list[bytearray] = field(factory=list)

    def take(self) -> list[Sent]:
        """What came since the last time, but for foreman's own questions."""
        wires, self.wires = self.wires, []
        return [
            sent
            for wire in wires
            for sent in strictly(bytes(wire))
            if (sent.method, sent.target) not in {("GET", "/api/version"), ("GET", "/api/ps")}
            and not (sent.target == "/api/tags" and sent.body == b"")
        ]


@pytest.fixture
def wiretap(monkeypatch: pytest.MonkeyPatch) -> Wiretap:
    """Listens to every connection of a fake target; one that goes on is a new wire each time it is looked at."""
    tap = Wiretap()
    wires: dict[int, bytearray] = {}
    received = fake_exchange.Channel.dataReceived

    def listen(channel: Any, data: bytes) -> None:
        wire = wires.get(id(channel))
        if wire is None or not any(wire is each for each in tap.wires):
            wire = wires[id(channel)] = bytearray()
            tap.wires.append(wire)
        wire += data
        received(channel, data)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(fake_exchange.Channel, "dataReceived", listen)
    return tap


async def throw(here: House, data: bytes, answers: int) -> RawClient:
    """Send bytes as they are, and wait for so many answers or the end."""
    port = int(here.url.rpartition(":")[2])
    client = RawClient("GET")
    await connectProtocol(HostnameEndpoint(reactor, "127.0.0.1", port), client)
    assert client.transport is not None
    client.transport.write(data)
    await eventually(lambda: client.is_closed or len(statuses(client.received)) >= answers)
    await eventually(lambda: client.is_closed or client.ended)
    client.leave()
    await client.closed
    return client


def statuses(data: bytes | bytearray) -> list[int]:
    """The statuses of all answers in there."""
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] ([0-9]{3}) ", data)]


# -- the table ---------------------------------------------------------------------------------------------------------


def post(*lines: str | bytes, body: bytes = SMUGGLED, start: str = "POST /carried HTTP/1.1") -> bytes:
    """A request with just these lines, and what follows them."""
    head = [line if isinstance(line, bytes) else line.encode() for line in (start, "Host: 127.0.0.1", *lines)]
    return b"\r\n".join([*head, b"", b""]) + body


def declared(*lines: str | bytes, **more: Any) -> bytes:
    """A request whose body is the smuggled one, as its length says."""
    return post(f"Content-Length: {len(SMUGGLED)}", *lines, **more)


def chunked(*pieces: bytes) -> bytes:
    """A chunked request of those bytes, sizes included, and what would be the next request."""
    return post("Transfer-Encoding: chunked", body=b"".join(pieces) + SMUGGLED)


def plain(target: str, *, method: str = "GET", host: str = "127.0.0.1") -> bytes:
    """A request without a body."""
    return f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


WHOLE = ("POST", "/carried", SMUGGLED)
NEXT = ("GET", "/smuggled", b"")

REFUSED = {
    "two lengths": post("Content-Length: 5", "Content-Length: 5"),
    "two other lengths": post("Content-Length: 5", "Content-Length: 0"),
    "a list of lengths": post("Content-Length: 5, 5"),
    "length of -1": post("Content-Length: -1"),
    "length of +5": post("Content-Length: +5"),
    "hexadecimal length": post("Content-Length: 0x5"),
    "length of blanks": post("Content-Length: 5 5"),
    "no length": post("Content-Length:"),
    "length in other digits": post("Content-Length: \uff15"),
    "length and chunks": post("Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED),
    "chunks and length": post("Transfer-Encoding: chunked", "Content-Length: 5", body=b"0\r\n\r\n" + SMUGGLED),
    "chunked twice": post("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "chunked, chunked": post("Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"),
    "identity": declared("Transfer-Encoding: identity"),
    "gzip, chunked": post("Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "xchunked": post("Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "chunked behind a tabulator": post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"),
    "blank before the colon": post("Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
    "length, blank before the colon": post("Content-Length : 5"),
    **{
        f"chunk size {size!r}": chunked(size + b"\r\nabc\r\n", b"0\r\n\r\n")
        for size in (
            *(b"-3", b"+3", b"0x3", b" 3", b"g", b"", b"3\n", b"\x003", b"3;" + b"x" * 70_000, b"f" * 70_000),
            b"3;x\ny",
        )
    },
    "a chunk longer than its size": chunked(b"2\r\nabc\r\n", b"0\r\n\r\n"),
    "a chunk that ends in LF": chunked(b"3\r\nabc\n", b"0\r\n\r\n"),
    "LF for CRLF": post("X: y").replace(b"\r\n", b"\n") + b"\r\n\r\n",
    "LF in a header": post(b"X: y\nTransfer-Encoding: chunked"),
    "CR in a header": post(b"X: y\rTransfer-Encoding: chunked"),
    "NUL in a header": post(b"X: y\0"),
    "CR in a folded header": post(b"X: y", b" z\rw"),
    "no colon": post("nothing"),
    "no name": post(": nothing"),
    "a name that is no token": post("X(y): z"),
    "a folded first header": b"GET / HTTP/1.1\r\n Host: 127.0.0.1\r\n\r\n",
    "too long a header": post("X: " + "y" * 70_000),
    "too many headers": post(*(f"X{number}: y" for number in range(600))),
    "too long a target": plain("/" + "x" * 70_000),
    "HTTP/0.9": b"GET /smuggled\r\n\r\n",
    "HTTP/1.2": b"GET /smuggled HTTP/1.2\r\nHost: 127.0.0.1\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n",
    "two blanks": b"GET  /smuggled HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a NUL in the target": b"GET /\0 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a byte that is not ASCII in the target": b"GET /\xff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a method that is no token": b"G@T /smuggled HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "authority form": plain("127.0.0.1:80", method="CONNECT"),
    "CONNECT with a path": plain("/smuggled", method="CONNECT"),
    "no form of a target": plain("smuggled"),
    "two hosts": post("Host: 127.0.0.1", "Content-Length: 0", body=b""),
}
"""Requests of two meanings, or of none: 400, and the target hears nothing."""

ANSWERED: dict[str, tuple[bytes, list[int], list[Seen]]] = {
    "a request within a body": (declared(), [404], [WHOLE]),
    "zeros before a length": (post(f"Content-Length: 00{len(SMUGGLED)}"), [404], [WHOLE]),
    "a folded length": (post("Content-Length:", f" {len(SMUGGLED)}"), [404], [WHOLE]),
    "a body of no length": (post("X: y"), [404, 404], [("POST", "/carried", b""), NEXT]),
    "chunks": (chunked(b"3\r\nabc\r\n", b"0\r\n\r\n"), [404, 404], [("POST", "/carried", b"abc"), NEXT]),
    "CHUNKED": (
        post("transfer-encoding: CHUNKED", body=b"003;x=y\r\nabc\r\n0\r\n\r\n" + SMUGGLED),
        [404, 404],
        [("POST", "/carried", b"abc"), NEXT],
    ),
    "headers behind the chunks": (
        chunked(b"3\r\nabc\r\n", b"0\r\nContent-Length: 9\r\nX: y\r\n\r\n"),
        [404, 404],
        [("POST", "/carried", b"abc"), NEXT],
    ),
    "a GET with a body": (declared(start="GET /carried HTTP/1.1"), [404], [("GET", "/carried", SMUGGLED)]),
    "a question with a body": (declared(start="GET /api/tags HTTP/1.1"), [200], [("GET", "/api/tags", SMUGGLED)]),
    "a DELETE with a body": (declared(start="DELETE /carried HTTP/1.1"), [404], [("DELETE", "/carried", SMUGGLED)]),
    "TRACE": (plain("/carried", method="TRACE"), [404], [("TRACE", "/carried", b"")]),
    "a method of one's own": (plain("/carried", method="SMUGGLE"), [404], [("SMUGGLE", "/carried", b"")]),
    "Expect": (declared("Expect: 100-continue"), [100, 404], [WHOLE]),
    "Expect something else": (declared("Expect: 200-ok"), [404], [WHOLE]),
    "one behind the other": (
        declared() + plain("/a") + declared() + plain("/b"),
        [404, 404, 404, 404],
        [WHOLE, ("GET", "/a", b""), WHOLE, ("GET", "/b", b"")],
    ),
    "one behind the last": (declared("Connection: close") + SMUGGLED, [404], [WHOLE]),
    "one behind HTTP/1.0": (declared(start="POST /carried HTTP/1.0") + SMUGGLED, [404], [WHOLE]),
    "upgrade": (declared("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA"), [404], [WHOLE]),
    "WebSocket": (
        post("Connection: Upgrade", "Upgrade: websocket", body=b"", start="GET /carried HTTP/1.1"),
        [404],
        [("GET", "/carried", b"")],
    ),
    "headers of the framing named hop-by-hop": (
        declared("Connection: content-length, host, transfer-encoding"),
        [404],
        [WHOLE],
    ),
    "absolute form": (plain("http://127.0.0.1/carried?x"), [404], [("GET", "/carried?x", b"")]),
    "absolute form of another host": (plain("http://evil.example/carried"), [403], []),
    "OPTIONS *": (plain("*", method="OPTIONS"), [200], []),
    "a NUL in the path": (plain("/%00"), [404], [("GET", "/%00", b"")]),
    "a line's end in the path": (
        plain("/a%0D%0AX:%20y%0d%0a%0d%0aGET%20/"),
        [404],
        [("GET", "/a%0D%0AX:%20y%0D%0A%0D%0AGET%20/", b"")],
    ),
    "a way up": (declared(start="POST /a/../api/chat HTTP/1.1"), [307], []),
    "a hidden way up": (declared(start="POST /a%2f..%2Fapi%2fchat HTTP/1.1"), [307], []),
    "doubled slashes": (declared(start="POST //carried HTTP/1.1"), [307], []),
}
"""Odd requests of one meaning: the statuses, and what the target is asked."""


@pytest_twisted.ensureDeferred
async def test_what_could_be_read_in_two_ways_is_refused(wiretap: Wiretap) -> None:
    """Nobody can hide a request in another: what has two meanings is a 400, and nothing of it reaches Ollama."""
    async with house() as here:
        wiretap.take()
        for name, data in REFUSED.items():
            client = await throw(here, data, 1)
            assert statuses(client.received) == [400], name
            assert wiretap.take() == [], name


@pytest_twisted.ensureDeferred
async def test_the_target_sees_the_requests_that_foreman_saw(wiretap: Wiretap) -> None:
    """However oddly a request is written, Ollama gets that one request, with that body, written plainly."""
    async with house() as here:
        wiretap.take()
        for name, (data, expected, seen) in ANSWERED.items():
            client = await throw(here, data, len(expected))
            assert statuses(client.received) == expected, name
            assert [(sent.method, sent.target, sent.body) for sent in wiretap.take()] == seen, name


@pytest_twisted.ensureDeferred
async def test_no_header_is_smuggled_in(wiretap: Wiretap) -> None:
    """What callers write in headers, model names and metadata goes out as one header, or as text, or not at all."""
    odd = "\\r\\nX-Smuggled: yes\\r\\n\\r\\nGET /smuggled HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"
    body = f'{{"model": "tiny-a", "messages": [{{"role": "user", "content": "{odd}"}}], "x": "{odd}"}}'.encode()
    named = f'{{"model": "tiny-a{odd}", "messages": []}}'.encode()
    async with house() as here:
        wiretap.take()
        for data in (
            post(
                "X: a", " X-Smuggled: yes", f"Content-Length: {len(body)}", body=body, start="POST /api/chat HTTP/1.1"
            ),
            post(b"X: \x0b\x0c\x85\xff", f"Content-Length: {len(named)}", body=named, start="POST /api/chat HTTP/1.1"),
            post(f"Content-Length: {len(named)}", body=named, start="POST /jobs HTTP/1.1"),
            post("Cookie: a", "Authorization: Bearer x", "X-Api-Key: y", "Content-Length: 0", body=b""),
        ):
            await throw(here, data, 1)
            for sent in wiretap.take():
                names = {name.lower() for name, _ in sent.headers}
                assert not names & {"x-smuggled", "cookie", "authorization", "x-api-key"}
                assert sent.target in ("/api/chat", "/api/generate", "/carried", "/api/tags")


# -- any bytes ---------------------------------------------------------------------------------------------------------

FRAGMENTS = [
    b"POST /a HTTP/1.1\r\n",
    b"GET /b HTTP/1.1\r\n",
    b"Host: 127.0.0.1\r\n",
    b"Content-Length: 3\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"X: y\r\n",
    b" folded\r\n",
    b"\r\n",
    b"\n",
    b"abc",
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"0\r\n",
    b"-1\r\n",
    SMUGGLED,
]


CHUNKS = re.compile(rb"(?:3\r\nabc\r\n)*0\r\n(?:[^\r]+\r\n)*\r\n")
"""All that is whole of a chunked body, of the fragments there are."""


def reference(data: bytes) -> Iterator[Seen]:
    """The requests that stand in there for anybody, up to the first doubt; a plain reading, not foreman's."""
    while True:
        head, end, rest = data.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        line, *lines = re.sub(rb"\r\n[ \t]+", b" ", head).split(b"\r\n")
        start = re.fullmatch(rb"([A-Za-z]+) (/\w+) HTTP/1\.1", line)
        headers = [re.fullmatch(rb"([A-Za-z-]+): (.*)", each) for each in lines]
        if not end or not start or not all(headers):
            return
        framing = [
            (each[1], each[2]) for each in headers if each and each[1] in (b"Content-Length", b"Transfer-Encoding")
        ]
        match framing:
            case []:
                body = b""
            case [(b"Content-Length", length)] if length.isdigit() and len(rest) >= int(length):
                body, rest = rest[: int(length)], rest[int(length) :]
            case [(b"Transfer-Encoding", b"chunked")] if chunks := CHUNKS.match(rest):
                body, rest = b"abc" * chunks[0].count(b"abc"), rest[chunks.end() :]
            case _:
                return
        yield start[1].decode(), start[2].decode(), body
        data = rest


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=16), st.integers(1, 40))
def test_any_bytes_are_cut_into_requests_as_anybody_would(fragments: list[bytes], at_a_time: int) -> None:
    """Whatever bytes come, in whatever pieces: foreman sees no request that a plain reader does not see there too."""
    seen: list[Seen] = []

    def take(request: Request) -> None:
        seen.append((request.method.decode(), request.uri.decode(), request.body()))
        request.finish()

    step, data = Step(take, ADDR=":8080", TOKEN=""), b"".join(fragments)
    for at in range(0, len(data), at_a_time):
        if step.open:
            step.send(data[at : at + at_a_time])
    if step.open:
        step.transport.loseConnection()
    there = reference(data)
    assert all(each in there for each in seen), (data, seen)
    assert step.site.bodies.held == 0
    assert not step.clock.getDelayedCalls()
