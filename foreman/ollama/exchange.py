"""One request to the target and its answer, with every way in which that can go wrong.

An `Exchange` takes a connection, sends the request on it in one write, and reads the answer with llhttp, which is
strict.  It hands head and pieces to a sink as they come, and ends exactly once: with the head, or with one of the
target's errors of `foreman.errors`.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from typing import BinaryIO

from attrs import frozen
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from foreman.errors import Lost, NotReachable, Stalled, Truncated
from foreman.ollama.silence import Silence
from foreman.ollama.wire import Wire, Wires

if typing.TYPE_CHECKING:
    from foreman.ollama.target import Target

HEAD_LIMIT = 65536
"""Bytes of an answer's head, or of anything else that comes without a byte of its body between."""

_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"te", b"trailer", b"trailers", b"transfer-encoding", b"upgrade"}
)


@frozen
class Head:
    """Status line and headers of an answer.

    :ivar phrase: the reason phrase, maybe empty.
    :ivar headers: as they came, hop-by-hop ones left out.
    """

    status: int
    phrase: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    def header(self, name: bytes) -> bytes | None:
        """Give the first header of that name, in any case."""
        return header_of(self.headers, name)

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait, None if the target names none (or names a date)."""
        return seconds_of(self.header(b"retry-after"))


def header_of(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """Give the first header of that name, in any case."""
    return next((value for key, value in headers if key.lower() == name.lower()), None)


def seconds_of(value: bytes | None) -> float | None:
    """Read `Retry-After`; None if there is none, or it is a date."""
    return float(value) if value is not None and value.isdigit() else None


class Flow(typing.Protocol):
    """The tap of an answer's body.  What has been read already (at most 64 KiB) still arrives after a pause.

    :ivar after_read: called when the sink has had all that one reading from the connection brought.
    """

    after_read: Callable[[], None]

    def pause(self) -> None:
        """Read no more for now; the silence clock stands still."""

    def resume(self) -> None:
        """Read on."""


class Sink(typing.Protocol):
    """Where an answer goes.  What it raises ends the exchange, closes the connection, and is what `exchange` raises."""

    def begin(self, head: Head, flow: Flow) -> None:
        """The head has come; called once, before any `write`."""

    def write(self, data: bytes) -> None:
        """One piece of the body has come."""


class Exchange:
    """One request and its answer: the user of a wire, and what llhttp calls.

    :ivar done: fires with the head when the body has ended, or with what went wrong; cancelling it cuts the line.
    """

    def __init__(
        self,
        target: Target,
        request: tuple[bytes, bytes | BinaryIO],
        sink: Sink,
        first_byte: float,
        between: float,
        *,
        watched: bool = True,
    ) -> None:
        self.done: Deferred[Head] = Deferred(lambda _: self._close())
        self.after_read: Callable[[], None] = _nothing
        self._target = target
        self._request = request
        self._sink = sink
        self._silence = Silence(target.tick, target.probe, first_byte, self.fail)
        self._between = between
        self._watched = watched
        self._over = False
        self._fresh = False
        self._connecting: Deferred[None] | None = None
        self._wire: Wire | None = None
        self._parser = HttpResponseParser(self)
        self._unbroken = 0  # bytes that have come since the last of a body
        self._phrase = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head: Head | None = None
        self._framed = False  # the body has an end of its own
        self._whole = False
        self._keep = False

    # -- the request -------------------------------------------------------------------------------------------------

    def start(self, wires: Wires, *, fresh: bool) -> None:
        """Take a connection, an idle one if there is one and it need not be `fresh`, and send the request."""
        self._fresh = fresh
        wire = None if fresh else wires.idle()
        if wire is not None:
            self._send(wire)
        else:
            self._connecting = wires.connect().addCallbacks(self._send, self._unconnected)

    def _send(self, wire: Wire) -> None:
        """Send it; from here on silence counts."""
        self._wire = wire
        if self._watched:
            self._silence.start()
        try:
            wire.send(self, *self._request)
        except Exception as error:  # noqa: BLE001 - a body that cannot be read; raised to the caller of the exchange
            self.fail(error)

    def _unconnected(self, failure: Failure) -> None:
        if not self._over:
            self.fail(NotReachable(f"cannot connect to {self._target.name}: {failure.getErrorMessage()}"))

    # -- the answer --------------------------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Read what has come.  This is the hot path."""
        self._unbroken += len(data)
        broken: Exception | None = None
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            broken = error
        if self._over:
            return
        if self._head is not None and self._whole:
            self._end(self._head, keep=self._keep and broken is None)
        elif broken is not None:
            self._break(f"broken: {broken}")
        elif self._unbroken > HEAD_LIMIT:
            self._break(f"more than {HEAD_LIMIT} bytes long")
        self.after_read()

    def lost(self, reason: Failure) -> None:
        """The connection has ended, and with it the answer: it is complete, or was cut."""
        if self._head is not None and not self._framed and reason.check(ConnectionDone):
            self._end(self._head, keep=False)
        elif self._head is not None:
            self.fail(Truncated(f"the answer was cut short: {reason.getErrorMessage()}"))
        elif self._unbroken:
            self._break(f"broken: {reason.getErrorMessage()}")
        else:
            text = f"the connection broke before the answer: {reason.getErrorMessage()}"
            self.fail(Lost(text, reused=self._wire is not None and self._wire.reused))

    def _break(self, how: str) -> None:
        if self._head is None:
            self.fail(Lost(f"the answer's head is {how}", reused=False))
        else:
            self.fail(Truncated(f"the answer's framing is {how}"))

    # -- what llhttp calls -------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A byte has come that may belong to an answer."""
        if self._whole:
            self._keep = False  # and nobody asked for another one

    def on_status(self, phrase: bytes) -> None:
        """The reason phrase, or a piece of it."""
        self._phrase += phrase

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or trailer."""
        self._headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """A head is complete: hand it on, unless it is an interim one."""
        if self._over or self._whole:
            return
        status, headers, phrase = self._parser.get_status_code(), self._headers, self._phrase
        self._headers, self._phrase = [], b""
        if status < 200:  # llhttp itself ends at a change of protocols
            return
        codings = [value.lower() for name, value in headers if name.lower() == b"transfer-encoding"]
        if codings not in ([], [b"chunked"]):
            self._break("broken: there is an unknown transfer coding")
            return
        self._framed = bool(codings) or header_of(headers, b"content-length") is not None
        self._silence.limit = self._between
        self._silence.beats = 0
        self._head = Head(status, phrase, _end_to_end(headers))
        if self._request[0].startswith(b"HEAD "):
            self._whole, self._keep = True, self._parser.should_keep_alive()
        try:
            self._sink.begin(self._head, self)
        except Exception as error:  # noqa: BLE001 - raised to the caller of the exchange
            self.fail(error)

    def on_body(self, data: bytes) -> None:
        """Pass one piece of the body on."""
        if self._over:
            return
        if self._whole:
            self._keep = False
            return
        self._unbroken = 0
        self._silence.beats = 0
        self._target.bytes_in += len(data)
        try:
            self._sink.write(data)
        except Exception as error:  # noqa: BLE001 - raised to the caller of the exchange
            self.fail(error)

    def on_message_complete(self) -> None:
        """The body is complete, or there is none."""
        if self._head is not None and not self._whole and not self._over:
            self._whole, self._keep = True, self._parser.should_keep_alive()

    # -- what others may do with it ----------------------------------------------------------------------------------

    def pause(self) -> None:
        """See `Flow`."""
        if self._wire is not None and not self._over:
            self._silence.held = True
            self._wire.transport.pauseProducing()

    def resume(self) -> None:
        """See `Flow`."""
        if self._wire is not None and not self._over:
            self._silence.held = False
            self._wire.transport.resumeProducing()

    def expire(self, timeout: float) -> None:
        """End, because the time for the whole call is over."""
        if self._wire is None:
            self.fail(NotReachable(f"no connection to {self._target.name} within {timeout:g} s"))
        else:
            self.fail(Stalled(f"no whole answer within {timeout:g} s", probe_answered=False))

    def fail(self, error: BaseException) -> None:
        """End with this error and cut the line; nothing once it has ended."""
        if not self._over:
            self._close()
            self.done.errback(error)

    def _end(self, head: Head, *, keep: bool) -> None:
        """End well."""
        if self._silence.held:
            self.resume()
        self._close(keep=keep)
        self.done.callback(head)

    def _close(self, *, keep: bool = False) -> None:
        self._over = True
        self._silence.stop()
        if self._wire is None:
            if self._connecting is not None:
                self._connecting.cancel()
        elif keep and self._wire.sent and not self._fresh:
            self._wire.keep()
        else:
            self._wire.cut()


def _nothing() -> None:
    pass


def _end_to_end(headers: Sequence[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    """Those that are not between the target and foreman only."""
    dropped = named_by_connection([value for name, value in headers if name.lower() == b"connection"])
    return tuple(
        (name, value)
        for name, value in headers
        if not is_hop_by_hop(lowered := name.lower()) and lowered not in dropped
    )


def is_hop_by_hop(name: bytes) -> bool:
    """Whether a header of that name (in lower case) is between two neighbours only (RFC 9110, 7.6.1)."""
    return name in _HOP_BY_HOP or name.startswith(b"proxy-")


def named_by_connection(values: Sequence[bytes]) -> frozenset[bytes]:
    """The headers that `Connection` headers name, in lower case: hop-by-hop too."""
    return frozenset(token.strip().lower() for value in values for token in value.split(b","))
