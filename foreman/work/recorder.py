"""The caller of an async job: nobody waits, so the answer is recorded, and shown to who reads along.

Native chat and generate are streamed to foreman whatever their bodies say, so that silence can be judged and readers
have something to read, and folded into the one answer that `stream: false` would have given; `/v1` runs unstreamed.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve

from foreman.errors import TooLarge
from foreman.job import CLIENT_LEFT, Artifact, Job, Submission
from foreman.ollama import requests
from foreman.ollama.exchange import Flow, Head
from foreman.ollama.replies import Folder
from foreman.ollama.requests import Inference
from foreman.ollama.routes import Api, match
from foreman.ollama.texts import Texts, texts_of
from foreman.work.switchboard import Errand
from foreman.work.tails import Tails

_TEXT = "text/plain; charset=utf-8"
_JSON = "application/json"


def errand_of(job: Job, submission: Submission) -> Errand:
    """What goes to the target for an async job."""
    route = match(b"POST", job.endpoint.encode())
    body = submission.body
    read = requests.read(route.path, body, submission.content_type)
    inference = read if isinstance(read, Inference) else None
    if route.streams:
        streamed = route.api is Api.NATIVE
        body = requests.with_stream(body, streamed)
        inference = None if inference is None else evolve(inference, stream=streamed)
    return Errand(
        route=route,
        path=route.target,
        headers=((b"content-type", submission.content_type.encode("latin-1")),),
        body=lambda: body,
        inference=inference,
    )


class Recorder:
    """Records one attempt of an async job (`foreman.work.switchboard.Caller`).

    :ivar begun: never: what was recorded can be thrown away, and tried again.
    """

    begun = False
    closed = False
    parting = CLIENT_LEFT  # which never happens: there is none

    def __init__(self, job: Job, submission: Submission, tails: Tails, *, max_run: float, max_result: int) -> None:
        self.job: Job | None = job
        self.errand = errand_of(job, submission)
        self.limit: float | None = max_run if submission.timeout is None else submission.timeout
        self.on_gone: Callable[[], None] | None = None
        self._id = job.id
        self._tails = tails
        self._max_result = max_result
        self._folder: Folder | None = None
        self._good = False  # the answer is none of an error
        self._body = bytearray()
        tails.open(job.id, self._so_far)

    def begin(self, head: Head, flow: Flow) -> None:
        """The answer's head: what is a stream is folded, and what is an error is not kept."""
        self._good = head.status < 300
        content_type = head.header(b"content-type") or b""
        if self._good and content_type.startswith(b"application/x-ndjson"):
            self._folder = Folder(self._max_result)

    def write(self, data: bytes) -> None:
        """The next bytes of the answer.

        :raise TooLarge: there are too many; what came before is kept.
        :raise TargetError: they are not what Ollama sends.
        """
        if self._folder is not None:
            self._folder.feed(data)
            self._tails.feed(self._id, data)
        elif self._good:
            if len(self._body) + len(data) > self._max_result:
                raise TooLarge(f"an answer of more than {self._max_result} bytes")
            self._body += data

    def finish(self) -> None:
        """The answer is whole; one that did not stream is shown now, as one line."""
        if self._folder is None and self._good:
            self._tails.feed(self._id, bytes(self._body).strip() + b"\n")
        self._tails.close(self._id)

    def fail(self, error: Exception) -> None:
        """There will be no answer, or no more of it."""
        self._tails.close(self._id)

    def put_back(self) -> None:
        """The job waits again, and who reads along has read of a try that does not count."""
        self._tails.close(self._id)

    def keep(self, *, done: bool) -> tuple[Artifact, ...]:
        """What is to be kept of the attempt: all of it if the job is `done`, else the texts so far."""
        texts = self._texts()
        if not done:
            return (*_text("partial", texts.content), *_text("thinking", texts.thinking))
        completion = Artifact(name="completion", content_type=_JSON, body=self._answer())
        return (completion, *_text("content", texts.content), *_text("thinking", texts.thinking))

    def _answer(self) -> bytes:
        return bytes(self._body) if self._folder is None else self._folder.answer()

    def _texts(self) -> Texts:
        if self._folder is not None:
            return Texts(content=self._folder.content, thinking=self._folder.thinking)
        return texts_of(self.errand.route.path, bytes(self._body))

    def _so_far(self) -> bytes:
        """What a reader who comes late has missed: one line, and what has come of the next."""
        if self._folder is None or not self._folder.begun:
            return b"" if self._folder is None else self._folder.pending
        return self._folder.answer() + b"\n" + self._folder.pending


def _text(name: str, text: str) -> list[Artifact]:
    return [Artifact(name=name, content_type=_TEXT, body=text.encode())] if text else []
