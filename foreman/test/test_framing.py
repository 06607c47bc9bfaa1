"""How answers are read (`foreman.ollama.exchange`), whatever the pieces they come in, and however hostile they are."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from foreman.errors import Lost, TargetError, Truncated
from foreman.ollama.exchange import HEAD_LIMIT, Head
from foreman.ollama.target import Target
from foreman.test.badserver import Recorder
from foreman.tick import Tick


class Transport(StringTransport):
    """A connection in memory."""

    socket = property(lambda self: self)
    aborted = False

    def setTcpNoDelay(self, enabled: bool) -> None:  # noqa: N802
        """Nothing to do; so for the other two."""

    def setTcpKeepAlive(self, enabled: bool) -> None:  # noqa: N802
        """See above."""

    def setsockopt(self, *_: Any) -> None:
        """See above."""

    def abortConnection(self) -> None:
        """Take note."""
        self.aborted = True


@define
class Call:
    """One exchange in memory, as a target's bytes are fed to it."""

    method: bytes = b"POST"
    transport: Any = field(factory=Transport)
    sink: Recorder = field(factory=Recorder)
    wire: Any = None
    ended: list[Head | Failure] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        target = Target(MemoryReactorClock(), Tick(Clock(), lambda: 0.0), url="http://127.0.0.1:1")
        target._wires._endpoint = self  # type: ignore[assignment]
        asking = target.exchange(self.method, b"/x", sink=self.sink, first_byte=10, between=10)
        Deferred.fromCoroutine(asking).addBoth(self.ended.append)

    def connect(self, factory: Any) -> Deferred[Any]:
        """Be the endpoint."""
        self.wire = factory.buildProtocol(None)
        self.wire.makeConnection(self.transport)
        return succeed(self.wire)

    def hear(self, *pieces: bytes, closed: bool = False) -> Call:
        """Let the target say this, and maybe close the connection."""
        for piece in pieces:
            if not self.transport.aborted:
                self.wire.dataReceived(piece)
        if closed and not self.transport.aborted:
            self.wire.connectionLost(Failure(ConnectionDone()))
        return self

    @property
    def end(self) -> Head | Exception:
        """How it has ended."""
        [end] = self.ended
        if isinstance(end, Failure):
            assert isinstance(end.value, Exception)
            return end.value
        return end

    @property
    def told(self) -> tuple[Any, ...]:
        """All that can be seen of it, with no regard to how the body was cut."""
        end = self.end
        shown = end if isinstance(end, Head) else type(end)
        return shown, tuple(self.sink.heads), b"".join(self.sink.pieces), self.transport.aborted


_INTERIM = st.sampled_from(
    [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2]
)
_STATUS = st.sampled_from([b"200 OK", b"204 No Content", b"304 Not Modified", b"404 Not Found", b"503 ", b"299"])
_HEADERS = st.sampled_from([b"", b"X-A: 1\r\nx-a:\t2 \r\n", b"Connection: close, X-B\r\nX-B: c\r\n", b"X-E:\r\n"])
_BODIES = st.lists(st.binary(min_size=1, max_size=40), max_size=5)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """An answer as a target may give it, cut short or not."""
    bodies = draw(_BODIES)
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    head = b"HTTP/1.1 %b\r\n%b" % (draw(_STATUS), draw(_HEADERS))
    if framing == "length":
        text = b"Content-Length: %d\r\n\r\n%b" % (len(b"".join(bodies)), b"".join(bodies))
    elif framing == "chunked":
        chunks = [b"%x%b\r\n%b\r\n" % (len(b), draw(st.sampled_from([b"", b";e=1"])), b) for b in bodies]
        trailer = draw(st.sampled_from([b"", b"X-T: 1\r\n"]))
        text = b"Transfer-Encoding: chunked\r\n\r\n%b0\r\n%b\r\n" % (b"".join(chunks), trailer)
    else:
        text = b"\r\n" + b"".join(bodies)
    whole = draw(_INTERIM) + head + text + draw(st.sampled_from([b"", b"more"]))
    return whole[: draw(st.integers(0, len(whole)))] if draw(st.booleans()) else whole


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The same bytes in pieces."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[here:there] for here, there in pairwise(edges)]


@given(answers(), st.lists(st.integers(0, 400)), st.sampled_from([b"POST", b"HEAD"]))
def test_the_cuts_do_not_matter(answer: bytes, places: list[int], method: bytes) -> None:
    """An answer that comes in arbitrary pieces is the same answer, whole or broken."""
    at_once = Call(method).hear(answer, closed=True).told
    in_bytes = Call(method).hear(*cut(answer, list(range(len(answer)))), closed=True).told
    in_pieces = Call(method).hear(*cut(answer, places), closed=True).told
    # Whether what follows the end is seen with it, or later, decides only when the connection goes.
    assert at_once[:3] == in_bytes[:3] == in_pieces[:3]


@given(st.lists(st.binary(min_size=1, max_size=60) | answers(), max_size=5))
def test_nonsense_is_a_clear_error(pieces: list[bytes]) -> None:
    """Whatever a target says, the exchange ends: with a head, or an error of the target's that has a text."""
    end = Call().hear(*pieces, closed=True).end
    assert isinstance(end, Head) or (isinstance(end, TargetError) and str(end))


_OK = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"HTTP/9.9 200 OK\r\n\r\n", Lost),
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", Lost),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", Lost),
        (_OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", Lost),
        (_OK + b"Content-Length: 1, 2\r\n\r\nab", Lost),
        (_OK + b"Content-Length: -1\r\n\r\n", Lost),
        (_OK + b"Content-Length: +1\r\n\r\na", Lost),
        (_OK + b"Content-Length: 99999999999999999999999\r\n\r\na", Lost),
        (_OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Lost),
        (_OK + b"Transfer-Encoding: gzip\r\n\r\nabc", Lost),
        (_OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", Lost),
        (_OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Lost),
        (_OK + b"X A: 1\r\n\r\n", Lost),
        (_OK + b"X-A : 1\r\n\r\n", Lost),
        (_OK + b"X-A: a\0b\r\n\r\n", Lost),
        (_OK + b"X-A: a\rb\r\n\r\n", Lost),
        (_CHUNKED + b"z\r\n", Truncated),
        (_CHUNKED + b"-1\r\n", Truncated),
        (_CHUNKED + b"0x1\r\na\r\n", Truncated),
        (_CHUNKED + b"\r\n", Truncated),
        (_CHUNKED + b"1\r\nab\r\n", Truncated),
        (_CHUNKED + b"fffffffffffffffff\r\n", Truncated),
    ],
    ids=repr,
)
def test_a_broken_answer(said: bytes, error: type[TargetError]) -> None:
    """What is not HTTP, or could be read in two ways, is refused as soon as it is seen, and the connection cut."""
    call = Call().hear(said)
    assert type(call.end) is error
    assert call.transport.aborted
    assert b"".join(call.sink.pieces) in (b"", b"a")


@pytest.mark.parametrize(
    ("start", "more", "error"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", Lost),
        (_OK, b"X-A: 1\r\n", Lost),
        (_OK + b"X-A: ", b"a", Lost),
        (_OK + b"X", b"a", Lost),
        (b"HTTP/1.1 200 ", b"a", Lost),
        (_CHUNKED + b"1;", b"a", Truncated),
        (_CHUNKED + b"0\r\n", b"X-A: 1\r\n", Truncated),
        (_CHUNKED + b"0\r\nX-A: ", b"a", Truncated),
    ],
)
def test_an_endless_head(start: bytes, more: bytes, error: type[TargetError]) -> None:
    """Heads, chunk sizes and trailers that do not end are read for 64 KiB and no further."""
    step = (more * 1000)[:1000] if len(more) == 1 else more * 40
    call = Call().hear(start)
    for fed in range(0, 2 * HEAD_LIMIT, len(step)):
        assert fed < HEAD_LIMIT + 2 * len(step)
        call.hear(step)
        if call.ended:
            break
    assert type(call.end) is error
    assert call.transport.aborted


def test_a_large_head_is_an_answer() -> None:
    """Headers of some 60 KB in all are no reason to refuse an answer."""
    head = _OK + b"".join(b"X-%d: %b\r\n" % (number, b"v" * 1000) for number in range(60))
    end = Call().hear(head, b"Content-Length: 0\r\n\r\n").end
    assert isinstance(end, Head)
    assert len(end.headers) == 61
