"""`GET /jobs/{id}/stream`: reading along with a job, to its end and no further."""

from __future__ import annotations

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.web.server import Request

from foreman.job import TERMINAL, Job, JobState
from foreman.record import JobRecord
from foreman.tick import Tick
from foreman.web.artifacts import Span, pieces
from foreman.web.errors import NotFound, error_body
from foreman.web.lookout import Lookout
from foreman.web.pace import Pace
from foreman.web.streams import FILL_EVERY
from foreman.work.archive import Archive
from foreman.work.tails import Reader, Tails


class _Page(Pace):
    """A reader's answer: takes an attempt's bytes at its client's pace (`foreman.work.tails.TailSink`).

    :ivar written: bytes of an attempt have gone out.
    :ivar over: fires when the attempt is.
    """

    def __init__(self, request: Request) -> None:
        self.written = False
        self.over: Deferred[None] = Deferred()
        self._reader: Reader | None = None
        super().__init__(request)

    def follow(self, tails: Tails, job_id: str) -> None:
        """Take the bytes of the attempt that runs, or of the next one."""
        self.over = Deferred()
        self._reader = tails.join(job_id, self)
        if self._paused:
            self._reader.pause()

    def leave(self) -> None:
        """Take no more."""
        if self._reader is not None:
            self._reader.leave()
            self._reader = None

    def write(self, data: bytes) -> None:
        """The next bytes."""
        self.written = True
        self._request.write(data)

    def finish(self) -> None:
        """The attempt is over."""
        if not self.over.called:
            self.over.callback(None)

    def cut(self) -> None:
        """The client has fallen too far behind."""
        if self._request.transport is not None:
            self._request.transport.abortConnection()  # type: ignore[attr-defined]

    def pauseProducing(self) -> None:
        """The client takes no more for now."""
        super().pauseProducing()
        if self._reader is not None:
            self._reader.pause()

    def resumeProducing(self) -> None:
        """The client takes more."""
        super().resumeProducing()
        if self._reader is not None:
            self._reader.resume()


@define(eq=False, kw_only=True)
class Following:
    """Those who read along."""

    archive: Archive
    tails: Tails
    lookout: Lookout
    tick: Tick
    _pages: set[_Page] = field(init=False, factory=set)
    _stopping: bool = field(init=False, default=False)

    def stop(self) -> None:
        """End the streams that wait: foreman stops.  A running job may still come to its end."""
        self._stopping = True
        for page in list(self._pages):
            if not page.written:
                page.finish()

    async def respond(self, request: Request, job_id: str) -> None:
        """Stream a job to a request, without finishing it.

        :raise NotFound: there is no such job, or nothing is kept of its answer.
        """
        request.responseHeaders.setRawHeaders(b"content-type", [b"application/x-ndjson"])
        if request.method == b"HEAD":
            _seen(await self.archive.record(job_id))
            return
        page = _Page(request)
        self._pages.add(page)
        try:
            await self._stream(request, job_id, page)
        finally:
            self._pages.discard(page)
            page.leave()
            page.close()

    async def _stream(self, request: Request, job_id: str, page: _Page) -> None:
        while True:
            page.follow(self.tails, job_id)
            # After joining: an attempt that ends in between is then over for this reader too.
            record = _seen(await self.archive.record(job_id))
            if record.job.state in TERMINAL:
                break
            request.write(b"")  # the head goes out now
            attempt = record.job.attempt + (record.job.state is JobState.QUEUED)
            await self._over(request, page)
            page.leave()
            if page.written:
                await self._end(request, page, await self._after(job_id, attempt))
                return
            if self._stopping:
                break
        page.leave()
        await self._end(request, page, record)

    async def _over(self, request: Request, page: _Page) -> None:
        """Wait for the attempt's end, with filler until its first byte, for the sake of proxies."""
        beats = 0

        def beat(slept: bool) -> None:
            nonlocal beats
            beats += 1
            if beats % FILL_EVERY == 0 and not page.written:
                request.write(b" ")

        unsubscribe = self.tick.subscribe(beat)
        try:
            await page.over
        finally:
            unsubscribe()

    async def _after(self, job_id: str, attempt: int) -> JobRecord | None:
        """The job once the end of that attempt is written; None if it is gone."""
        while True:
            with self.lookout.watching(job_id) as moved:
                record = await self.archive.record(job_id)
                if record is None or _is_past(record.job, attempt):
                    return record
                await moved

    async def _end(self, request: Request, page: _Page, record: JobRecord | None) -> None:
        """Write what is still to be told."""
        if record is None:
            request.write(_failure("the job was deleted"))
        elif record.job.error is not None:
            request.write(_failure(record.job.error.message))
        elif record.job.state is not JobState.DONE:
            reason = "foreman is stopping" if self._stopping else "the attempt has failed and the job waits again"
            request.write(_failure(reason))
        elif not page.written:
            completion = record.artifacts["completion"]
            async for piece in pieces(self.archive, record.job.id, completion.name, Span(0, completion.size)):
                await page.ready()
                request.write(piece.replace(b"\n", b" "))
            request.write(b"\n")


def _seen(record: JobRecord | None) -> JobRecord:
    if record is None:
        raise NotFound("there is no such job")
    if record.job.sync:
        raise NotFound("the answer of a sync call is its client's alone")
    return record


def _is_past(job: Job, attempt: int) -> bool:
    return job.state in TERMINAL or job.state is JobState.QUEUED or job.attempt > attempt


def _failure(text: str) -> bytes:
    """An error in a native stream."""
    _, body = error_body(b"", 500, text)
    return body + b"\n"
