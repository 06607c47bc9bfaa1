"""Producers: an answer of the target's on its way to a client, at the client's pace.

Bytes go out as they come, one write for one chunk.  When the client is slow they are buffered, up to `BUFFER`; then
the reading from the target is paused, and its silence clock with it.  A client that accepts no byte for `CLIENT_STALL`
seconds while data waits is cut, so that a suspended phone does not hold the only worker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from foreman.job import CLIENT_LEFT, Artifact, Job
from foreman.ollama.exchange import Flow, Head
from foreman.ollama.routes import Api
from foreman.tick import Tick
from foreman.web.body import Request
from foreman.web.errors import error_body, message_of, respond_error, status_of
from foreman.web.pace import CLIENT_STALL, unsent
from foreman.work.switchboard import Errand

BUFFER = 1024 * 1024
"""Bytes of an answer that may wait for a slow client before the target is made to wait."""

FILL_EVERY = 30.0
"""Seconds between two bytes of filler on a held line."""


@implementer(IPushProducer)
class Outflow:
    """The sink of an answer: writes it to a request with backpressure.

    :ivar begun: the head has gone out.
    :ivar gone: the client has left, or was cut.
    :ivar over: fires with None once nothing more will be written, for whatever reason.
    """

    def __init__(self, request: Request, tick: Tick) -> None:
        self.begun = False
        self.gone = False
        self.over: Deferred[None] = Deferred()
        self._request = request
        self._tick = tick
        self._flow: Flow | None = None
        self._paused = False
        self._reading_paused = False  # the target is made to wait
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._finished = False
        self._unwatch: Callable[[], None] | None = None
        self._stalled_for = 0
        self._unsent = 0
        if request.channel is None:  # it has left before anybody could listen for that
            self.gone = True
            self._close()
        else:
            request.notifyFinish().addErrback(self._lost)

    @property
    def closed(self) -> bool:
        """Whether it takes nothing more: the client has left, or has been given an end."""
        return self.gone or bool(self.over.called)

    # -- the sink ------------------------------------------------------------------------------------------------

    def begin(self, head: Head, flow: Flow) -> None:
        """Send the head as it came."""
        if self.gone:
            return
        self.begun = True
        self._flow = flow
        flow.after_read = self.flush
        request = self._request
        request.setResponseCode(head.status, head.phrase)
        for name in {name for name, _ in head.headers}:
            request.responseHeaders.removeHeader(name)
        for name, value in head.headers:
            request.responseHeaders.addRawHeader(name, value)
        request.registerProducer(self, streaming=True)  # type: ignore[no-untyped-call]
        request.write(b"")  # whatever comes or not, the head goes out now

    def write(self, data: bytes) -> None:
        """Take the next bytes, which go out with `flush`."""
        if not self.gone:
            self._waiting.append(data)
            self._waiting_bytes += len(data)

    def flush(self) -> None:
        """Send what waits, or keep it until the client takes more."""
        if self.gone:
            return
        if not self._paused:
            pieces, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
            self._request.push(pieces)
        elif self._waiting_bytes + self._backlog() > BUFFER and not self._reading_paused and self._flow is not None:
            self._reading_paused = True
            self._flow.pause()

    def finish(self) -> None:
        """The answer is whole: end it as soon as the client has taken what waits."""
        self._finished = True
        if not self._paused:
            self._end()

    def fail(self, error: Exception) -> None:
        """There will be no answer but this error; if the head is out, the connection is cut."""
        if not self.gone and not self.over.called:
            if self.begun:
                self.flush()
                self._request.unregisterProducer()  # type: ignore[no-untyped-call]
            respond_error(self._request, error)
        self._close()

    # -- the client's side ---------------------------------------------------------------------------------------

    def pauseProducing(self) -> None:
        """The client takes no more for now."""
        self._paused = True
        if self._unwatch is None:
            self._stalled_for, self._unsent = 0, self._backlog()
            self._unwatch = self._tick.subscribe(self._beat)

    def resumeProducing(self) -> None:
        """The client takes more."""
        self._paused = False
        while self._waiting and not self._paused:
            data = self._waiting.popleft()
            self._waiting_bytes -= len(data)
            self._request.push([data])
        if self._paused:
            return
        self._stop_watching()
        if self._reading_paused and self._flow is not None:
            self._reading_paused = False
            self._flow.resume()
        if self._finished:
            self._end()

    def stopProducing(self) -> None:
        """The connection is gone; `notifyFinish` tells the rest."""

    def _backlog(self) -> int:
        return unsent(self._request)

    def _beat(self, slept: bool) -> None:
        unsent = self._backlog()
        self._stalled_for = 0 if slept or unsent < self._unsent else self._stalled_for + 1
        self._unsent = unsent
        if self._stalled_for >= CLIENT_STALL:
            transport: Any = self._request.transport
            transport.abortConnection()

    def _lost(self, failure: Failure) -> None:
        self.gone = True
        if not self.over.called:
            self._close()
            self.left()

    def left(self) -> None:
        """The client has gone before the end."""

    def _end(self) -> None:
        if not self.closed:
            self._request.unregisterProducer()  # type: ignore[no-untyped-call]
            self._request.finish(self._waiting)
            self._close()

    def _stop_watching(self) -> None:
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    def _close(self) -> None:
        self._stop_watching()
        self._waiting.clear()
        if not self.over.called:
            self.over.callback(None)


class UnendedOutflow:
    """A sink for an `Outflow` that keeps the client from seeing the answer's end before `finish`.

    A chunked answer ends with its last chunk, which `finish` sends.  One of a known length would end with its last
    byte; it is short, and held back whole.
    """

    def __init__(self, outflow: Outflow) -> None:
        self._outflow = outflow
        self._kept: tuple[Head, Flow, list[bytes]] | None = None

    def begin(self, head: Head, flow: Flow) -> None:
        """The head; kept if it names a length."""
        if any(name.lower() == b"content-length" for name, _ in head.headers):
            self._kept = (head, flow, [])
        else:
            self._outflow.begin(head, flow)

    def write(self, data: bytes) -> None:
        """The next bytes."""
        if self._kept is None:
            self._outflow.write(data)
        else:
            self._kept[2].append(data)

    def finish(self) -> None:
        """Send what was kept, and end the answer; nothing happens if it has failed."""
        if self._outflow.closed:
            return
        if self._kept is not None:
            head, flow, pieces = self._kept
            self._outflow.begin(head, flow)
            for piece in pieces:
                self._outflow.write(piece)
        self._outflow.finish()


class WaitingCaller(Outflow):
    """A sync call's client: an `Outflow` that waits in the queue first (`foreman.work.switchboard.Caller`).

    Holding the line: clients and proxies give up after minutes without a byte, so one that has waited long gets its
    `200` and content type early, and filler between that no parser minds (measured with the official clients).  From
    then on a failure can only be told in the body.

    :ivar since: `clock.seconds()` when the call came.
    :ivar job: its row as the worker last saw it, None until it is accepted.
    :ivar on_gone: the worker's, while it runs the job.
    :ivar on_left: the native face's, told once when the client leaves early while the worker does not run its job.
    :ivar parting: why its row is to end, once it takes nothing more.
    """

    def __init__(self, request: Request, tick: Tick, errand: Errand, *, since: float, job_id: str) -> None:
        super().__init__(request, tick)
        self.errand = errand
        self.since = since
        self.job: Job | None = None
        self.on_gone: Callable[[], None] | None = None
        self.limit: float | None = None
        self.on_left: Callable[[], None] = lambda: None
        self.parting = CLIENT_LEFT
        self._job_id = job_id
        self._line: Line | None = None
        self._filled_at = 0.0
        self._error: list[bytes] | None = None  # the pieces of an error answer that must go into the body

    def hold_line(self, now: float) -> None:
        """Send the head early, and filler every `FILL_EVERY` seconds until the answer begins."""
        if self.begun or self.closed or self._paused:
            return
        if self._line is None:
            self._line = Line.of(self.errand)
            headers = self._request.responseHeaders
            headers.setRawHeaders(b"content-type", [self._line.content_type])
            headers.setRawHeaders(b"x-foreman-job", [self._job_id.encode()])
            self._request.registerProducer(self, streaming=True)  # type: ignore[no-untyped-call]
        elif now - self._filled_at < FILL_EVERY:
            return
        self._filled_at = now
        self._request.write(self._line.filler)

    def begin(self, head: Head, flow: Flow) -> None:
        """Send the head with what foreman knows of the job; on a held line only the body is still to come."""
        if self.gone:
            return
        if self._line is not None:
            self.begun = True
            self._flow = flow
            if head.status >= 300:
                self._error = []
            return
        job, headers = self.job, self._request.responseHeaders
        headers.setRawHeaders(b"x-foreman-job", [self._job_id.encode()])
        if job is not None and job.loading_at is not None and job.working_at is not None:
            queued, loaded = job.loading_at - job.created_at, job.working_at - job.loading_at
            headers.setRawHeaders(b"server-timing", [b"queue;dur=%d, load;dur=%d" % (queued, loaded)])
        super().begin(head, flow)

    def write(self, data: bytes) -> None:
        """Send the next bytes; those of an error on a held line when it is whole."""
        if self._error is None:
            super().write(data)
        elif sum(map(len, self._error)) < BUFFER:
            self._error.append(data)

    def finish(self) -> None:
        """The answer is whole."""
        if self._error is not None and self._line is not None:
            body, self._error = b"".join(self._error), None
            self.write(self._line.failure(body))
        super().finish()

    def fail(self, error: Exception) -> None:
        """There will be no answer but this error, told in the body if the line is held."""
        if self.closed:
            return
        if self._line is None or self.begun:
            if not self.begun:
                self._request.responseHeaders.setRawHeaders(b"x-foreman-job", [self._job_id.encode()])
            super().fail(error)
            return
        self.begun = True
        _, body = error_body(self._request.path, status_of(error), message_of(error))
        self.write(self._line.failure(body))
        super().finish()

    @property
    def waits(self) -> bool:
        """Whether its job is not at the target, and its answer not on its way."""
        return self.on_gone is None and not self.begun and not self.closed

    def put_back(self) -> None:
        """Wait on; nothing has gone out."""

    def keep(self, *, done: bool) -> tuple[Artifact, ...]:
        """Keep nothing: the client has it."""
        return ()

    def left(self) -> None:
        """Tell the worker, which closes its connection to the target, or the face, which ends the row."""
        if self.on_gone is not None:
            self.on_gone()
        else:
            self.on_left()


@frozen
class Line:
    """How a line is held: what is sent early and between, and the form of a failure afterwards.

    :ivar failing: makes what stands in the stream for an error out of the error's JSON document.
    """

    content_type: bytes
    filler: bytes
    failing: bytes

    @classmethod
    def of(cls, errand: Errand) -> Line:
        """The line of a call, by its dialect and whether it streams."""
        route = errand.route
        streamed = route.streams and (route.default_stream if errand.inference is None else errand.inference.stream)
        if not streamed:
            return cls(b"application/json", b" ", b"%s")
        if route.api is Api.NATIVE:
            return cls(b"application/x-ndjson", b" ", b"%s\n")
        event = b"event: error\n" if route.api is Api.ANTHROPIC else b""
        return cls(b"text/event-stream", b": \n\n", event + b"data: %s\n\n")

    def failure(self, document: bytes) -> bytes:
        """What to send for a failure whose JSON document is this."""
        return self.failing % document.strip()
