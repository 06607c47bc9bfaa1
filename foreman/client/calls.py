"""Every operation of the client, once: what is asked, what is made of the answers, when to try again, when to give up.

An operation is a generator that does nothing itself.  It yields steps (send this, pause so long, the next line please)
and is sent what came of them, as httpx's own authentication flows are; `foreman.client.wire` does the steps, with
threads or with asyncio.  So both clients do the same, and tests need neither sockets nor time.
"""

from __future__ import annotations

import json
import math
import random
import re
import time
from asyncio import CancelledError
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from typing import Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote

from attrs import evolve, field, frozen

from foreman.client.errors import (
    JobCancelled,
    JobExpired,
    JobFailed,
    NoSuchJob,
    NotForeman,
    NotReachable,
    QueueFull,
    Rejected,
    Unavailable,
    WaitTimeout,
)
from foreman.client.stream import Told
from foreman.client.submission import STREAMED
from foreman.client.values import Chunk, Health, History, JobInfo, JobState, Pause, Queue, read

T = TypeVar("T")
V = TypeVar("V")
J = TypeVar("J", bound=JobInfo)

SILENCE = 30.0
"""Seconds for which an answer may keep us waiting, beyond what we have asked it to."""

POLL = 30.0
"""Seconds of a long poll: shorter than the minute after which many a proxy cuts what is silent."""

LOOK = 15.0
"""Seconds after which a look is taken at all of many jobs, at the latest."""

FILLED = 65.0
"""Seconds of silence on a stream, where a waiting one gets a blank every 30 s."""

PARTING = 5.0
"""Seconds that the cancelling of an interrupted call may take."""

PAGE = 500
"""Jobs in a page of a list."""


# -- steps -------------------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Send:
    """Send a request; what comes back is a `Reply`.

    :ivar silence: seconds for which the answer may keep us waiting.
    :ivar follow: leave the body of a good answer to `NextLine`.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(factory=dict)
    headers: Mapping[str, str] = field(factory=dict)
    body: bytes | None = None
    silence: float = SILENCE
    follow: bool = False


@frozen
class NextLine:
    """What comes back is the next line of the body that is followed, as bytes; None at its end."""


@frozen
class Sleep:
    """Do nothing for so many seconds."""

    seconds: float


@frozen
class Give(Generic[V]):
    """Give the caller a value, and go on when it wants more."""

    value: V


@frozen
class Return(Generic[T]):
    """The operation is over; yielded by `advance`, never by an operation."""

    value: T


class Lost(Exception):
    """What a step is answered with when the network fails it; the text says how."""


@frozen(kw_only=True)
class Reply:
    """An answer.

    :ivar headers: by their names in lower case.
    """

    status: int
    headers: Mapping[str, str] = field(factory=dict)
    body: bytes = b""

    @property
    def document(self) -> Any:
        """The body as JSON.

        :raise NotForeman: it is none.
        """
        try:
            return json.loads(self.body)
        except ValueError:
            raise NotForeman(f"an answer is no JSON: {self.body[:200]!r}") from None


Step: TypeAlias = Send | NextLine | Sleep
Call: TypeAlias = Generator[Step, Any, T]
"""An operation that ends in a value."""
Giving: TypeAlias = Generator[Step | Give[V], Any, None]
"""An operation that gives values as it goes."""


def advance(
    call: Generator[Step | Give[V], Any, T], answer: object = None, error: BaseException | None = None
) -> Step | Give[V] | Return[T]:
    """Tell an operation what came of its last step, and get the next one."""
    try:
        return call.send(answer) if error is None else call.throw(error)
    except StopIteration as stop:
        return Return(stop.value)


# -- operations --------------------------------------------------------------------------------------------------------


class Calls(Generic[J]):
    """The operations.

    :param make: makes a job of its document.
    :param patience: seconds for which foreman may be out of reach, or unable, before a call gives up.  Waiting for a
        job that was accepted goes on for as long as the caller wants.
    :param clock: seconds, from anywhere.
    :param chance: a number from 0 to 1, for jitter.
    """

    def __init__(
        self,
        make: Callable[[Mapping[str, Any]], J],
        *,
        patience: float,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._make = make
        self._patience = patience
        self._clock = clock
        self._chance = chance

    # -- one job -----------------------------------------------------------------------------------------------------

    def submit(self, document: Mapping[str, Any], key: str, *, timeout: float | None = None) -> Call[J]:
        """Have foreman accept a job, once however often it takes to be heard."""
        return (yield from self._submit(_submitting(document, key), document, self._deadline(timeout)))

    def run(
        self, document: Mapping[str, Any], key: str, *, timeout: float | None, cancel_on_interrupt: bool
    ) -> Call[J]:
        """Submit a job and wait for its end."""
        request = _submitting(document, key)
        deadline = self._deadline(timeout)
        job: J | None = None
        try:
            job = yield from self._submit(request, document, deadline)
            return (yield from self._finish(job, deadline))
        except (KeyboardInterrupt, CancelledError):
            if cancel_on_interrupt:
                yield from self._part(job, request)
            raise

    def wait(self, job: J, *, timeout: float | None, cancel_on_interrupt: bool) -> Call[J]:
        """Wait for a job's end; at once if that is known already."""
        try:
            return (yield from self._finish(job, self._deadline(timeout)))
        except (KeyboardInterrupt, CancelledError):
            if cancel_on_interrupt:
                yield from self._part(job, None)
            raise

    def job(self, job_id: str) -> Call[J]:
        """Look at a job."""
        return self._make((yield from self._answer(Send(method="GET", path=_path(job_id)))).document)

    def cancel(self, job_id: str) -> Call[J]:
        """Cancel a job, unless it is over."""
        try:
            reply = yield from self._answer(Send(method="POST", path=_path(job_id, "cancel")))
        except Rejected as error:
            if error.status != 409:
                raise
            # It is over: perhaps by an earlier try of ours, whose answer was lost.
            return (yield from self.job(job_id))
        return self._make(reply.document)

    def delete(self, job_id: str) -> Call[None]:
        """Erase a job; that there is none (any more) is fine."""
        with suppress(NoSuchJob):
            yield from self._answer(Send(method="DELETE", path=_path(job_id)))

    def redeliver(self, job_id: str) -> Call[None]:
        """Have a job's final event sent again."""
        yield from self._answer(Send(method="POST", path=_path(job_id, "redeliver")))

    def events(self, job_id: str) -> Call[History]:
        """Read what has happened to a job."""
        reply = yield from self._answer(Send(method="GET", path=_path(job_id, "events")))
        return read(History, reply.document)

    def artifact(self, job_id: str, name: str) -> Call[bytes]:
        """Read what a job has left."""
        return (yield from self._answer(Send(method="GET", path=_path(job_id, "artifacts", name)))).body

    def stream(self, job: J, *, timeout: float | None) -> Giving[Chunk]:
        """Read along with a job, from its beginning to its end, whatever happens to the connection."""
        deadline = self._deadline(timeout)
        if not job.endpoint:
            job = yield from self._look(job, deadline)
        if job.endpoint not in STREAMED:
            job = yield from self._finish(job, deadline)
            document = job.result if isinstance(job.result, dict) else {}
            yield Give(Chunk(text=job.text, thinking=job.thinking, is_last=True, document=document))
            return
        told = Told()
        tries = 0
        while True:
            cause: Exception | None = None
            try:
                yield from self._once(
                    Send(method="GET", path=_path(job.job_id, "stream"), silence=FILLED, follow=True), deadline
                )
                told.begin()
                while (line := (yield from _next_line())) is not None:
                    if (chunk := told.line(line)) is not None:
                        tries = 0
                        yield Give(chunk)
            except (NotReachable, Unavailable) as error:
                cause = error
            else:
                # It has ended by itself: the job is over, or its attempt, and it waits again.
                job = yield from self._look(job, deadline)
                if job.state is JobState.FAILED or (job.state is JobState.DONE and told.is_whole):
                    _verdict(job)
                    return
            yield from self._pause(tries, cause, deadline, job)
            tries += 1

    # -- many jobs ---------------------------------------------------------------------------------------------------

    def submit_many(self, documents: Iterable[Mapping[str, Any]], key: str) -> Call[list[J]]:
        """Have foreman accept all of them, or none."""
        given = list(documents)
        if not given:
            return []
        body = b"".join(_json(document) + b"\n" for document in given)
        request = Send(method="POST", path="/jobs", headers=_headers("application/x-ndjson", key), body=body)
        jobs = (yield from self._answer(request)).document["jobs"]
        return [self._taken(job, document) for job, document in zip(jobs, given, strict=True)]

    def jobs(self, *, state: str | None, model: str | None, limit: int | None) -> Giving[J]:
        """List jobs, newest first."""
        query = {name: value for name, value in {"state": state, "model": model}.items() if value is not None}
        left = math.inf if limit is None else limit
        while left > 0:
            asked = Send(method="GET", path="/jobs", query={**query, "limit": str(int(min(left, PAGE)))})
            page = _page((yield from self._answer(asked)))
            for document in page["jobs"]:
                yield Give(self._make(document))
            left -= len(page["jobs"])
            if page["next"] is None:
                return
            query["after"] = page["next"]

    def as_completed(self, jobs: Iterable[J], *, timeout: float | None) -> Giving[J]:
        """Give each job when it is over, done or failed."""
        deadline = self._deadline(timeout)
        pending = {job.job_id: job for job in jobs}
        while pending:
            over = yield from self._over(pending, deadline)
            for job_id in over:
                job = yield from self._look(pending.pop(job_id), deadline)
                yield Give((yield from self._fill(job, deadline)))
            if pending and not over:
                # foreman runs one at a time: whoever is first will most likely end first.
                first = yield from self._first(pending, deadline)
                yield from self._poll(pending[first], min(deadline, self._clock() + LOOK))
                self._check(deadline, pending[first])

    def _over(self, pending: Mapping[str, J], deadline: float) -> Call[list[str]]:
        """Those that are over, in the order in which they ended; those that are gone too."""
        unseen, over = set(pending), {}
        query: dict[str, str] = {"limit": str(PAGE)}
        while unseen:
            page = _page((yield from self._await(Send(method="GET", path="/jobs", query=query), deadline)))
            for document in page["jobs"]:
                job_id = document["job_id"]
                if job_id in unseen and JobState(document["state"]).is_over:
                    over[job_id] = document["completed_at"] or ""
                unseen.discard(job_id)
            if page["next"] is None:
                break
            query = {**query, "after": page["next"]}
        return [*sorted(over, key=over.__getitem__), *unseen]

    def _first(self, pending: Mapping[str, J], deadline: float) -> Call[str]:
        queue = read(Queue, (yield from self._await(Send(method="GET", path="/queue"), deadline)).document)
        order = [queue.running.job_id] if queue.running else []
        order += [job.job_id for job in queue.next]
        return next((job_id for job_id in order if job_id in pending), next(iter(pending)))

    # -- the queue and foreman itself --------------------------------------------------------------------------------

    def queue(self) -> Call[Queue]:
        """See what waits."""
        return read(Queue, (yield from self._answer(Send(method="GET", path="/queue"))).document)

    def pause(self, seconds: float, *, unload: bool) -> Call[Pause]:
        """Have the queue stand still after the running job."""
        body = _json({"for": f"{math.ceil(seconds * 1000)}ms", "unload": unload})
        request = Send(method="POST", path="/queue/pause", headers=_headers("application/json"), body=body)
        return read(Pause, (yield from self._answer(request)).document)

    def resume(self) -> Call[Pause]:
        """Have the queue go on."""
        return read(Pause, (yield from self._answer(Send(method="POST", path="/queue/resume"))).document)

    def health(self) -> Call[Health]:
        """Ask how foreman is."""
        return read(Health, (yield from self._answer(Send(method="GET", path="/healthz"))).document)

    # -- submitting and waiting --------------------------------------------------------------------------------------

    def _submit(self, request: Send, document: Mapping[str, Any], deadline: float) -> Call[J]:
        try:
            reply = yield from self._tries(request, min(self._clock() + self._patience, deadline))
        except (NotReachable, Unavailable) as error:
            if self._clock() >= deadline:
                raise WaitTimeout(f"the time given is over, and no job was accepted: {error}") from error
            raise
        return self._taken(reply.document, document)

    def _taken(self, answer: Any, document: Mapping[str, Any]) -> J:
        """The job that has become of what was submitted."""
        if not isinstance(answer, dict):
            raise NotForeman("an answer is no job")
        if answer.get("state") is None:  # a repeated batch has the ids of jobs that were deleted since
            answer = {**answer, "state": "failed", "error": {"code": "deleted", "message": "The job was deleted."}}
        told = {name: document.get(name) for name in ("model", "metadata")}
        return self._make({**told, "endpoint": document.get("endpoint") or "/api/chat", **answer})

    def _finish(self, job: J, deadline: float) -> Call[J]:
        while not job.state.is_over:
            job = yield from self._poll(job, deadline)
            if not job.state.is_over:
                self._check(deadline, job)
        if job.created_at is None:  # told by the answer to a repeat, which has no more than that
            job = yield from self._look(job, deadline)
        job = yield from self._fill(job, deadline)
        return _verdict(job)

    def _poll(self, job: J, until: float) -> Call[J]:
        """The job when it is over, or as it is when the time has come."""
        tries = 0
        while True:
            asked = self._clock()
            wait = min(POLL, max(0.0, until - asked))
            cause: Exception | None = None
            request = Send(method="GET", path=_path(job.job_id), query={"wait": f"{wait:.3f}"}, silence=wait + SILENCE)
            try:
                job = self._make((yield from self._once(request, until)).document)
            except (NotReachable, Unavailable) as error:
                cause = error
            if job.state.is_over or self._clock() >= until:
                return job
            # An answer before its time comes from a foreman that stops.
            early = cause is not None or self._clock() - asked < wait / 2
            tries = tries + 1 if early else 0
            if early:
                yield Sleep(min(self._backoff(tries - 1, cause), max(0.0, until - self._clock())))

    def _look(self, job: J, deadline: float) -> Call[J]:
        """The job as it is now, however long it takes to ask."""
        reply = yield from self._await(Send(method="GET", path=_path(job.job_id)), deadline, job)
        return self._make(reply.document)

    def _fill(self, job: J, deadline: float) -> Call[J]:
        """The job with what was too long to be told with it."""
        changes: dict[str, Any] = {}
        artifacts = []
        for artifact in job.artifacts:
            text = artifact
            if artifact.inline is None and (artifact.name != "completion" or job.result is None):
                request = Send(method="GET", path=_path(job.job_id, "artifacts", artifact.name))
                body = (yield from self._await(request, deadline, job)).body
                if artifact.name == "completion":
                    with suppress(ValueError):  # what is no JSON can be had as an artifact
                        changes["result"] = json.loads(body)
                else:
                    text = evolve(artifact, inline=body.decode(errors="replace"))
            artifacts.append(text)
        return evolve(job, artifacts=tuple(artifacts), **changes)

    def _part(self, job: J | None, request: Send | None) -> Call[None]:
        """Cancel a job on the way out, as far as that can be done quickly."""
        with suppress(NotReachable, Unavailable, Rejected, NotForeman):
            if job is None and request is not None:
                # It may have been accepted without our knowing: the key tells, and its repeat does no harm.
                job = self._make((yield from self._once(evolve(request, silence=PARTING))).document)
            if job is not None:
                yield from self._once(Send(method="POST", path=_path(job.job_id, "cancel"), silence=PARTING))

    # -- asking ------------------------------------------------------------------------------------------------------

    def _answer(self, request: Send) -> Call[Reply]:
        """A good answer, however many tries it takes, as long as we are patient.

        :raise NotReachable: there was none.
        :raise Unavailable: foreman could not, all the time.
        :raise Rejected: it would not.
        """
        return (yield from self._tries(request, self._clock() + self._patience))

    def _await(self, request: Send, deadline: float, job: J | None = None) -> Call[Reply]:
        """A good answer, however long it takes, until the caller's time is over.

        :raise WaitTimeout: it is.
        :raise Rejected: foreman would not.
        """
        try:
            return (yield from self._tries(request, deadline))
        except (NotReachable, Unavailable) as error:
            raise _too_late(job) from error

    def _tries(self, request: Send, until: float) -> Call[Reply]:
        tries = 0
        while True:
            try:
                return (yield from self._once(request, until))
            except (NotReachable, Unavailable) as error:
                left = until - self._clock()
                if left <= 0:
                    raise
                yield Sleep(min(self._backoff(tries, error), left))
            tries += 1

    def _once(self, request: Send, until: float = math.inf) -> Call[Reply]:
        """The answer to one try."""
        left = max(0.0, until - self._clock())
        try:
            reply: Reply = yield evolve(request, silence=min(request.silence, left + PARTING))
        except Lost as error:
            raise NotReachable(f"foreman cannot be reached: {error}") from error
        if reply.status >= 300:
            raise _refusal(request, reply)
        return reply

    def _backoff(self, tries: int, cause: Exception | None) -> float:
        """Seconds until the next try: from a quarter to some thirty, half of it by chance, or as foreman wishes."""
        pause = min(30.0, 0.25 * 2.0 ** min(tries, 10)) * (0.5 + self._chance())
        wish = cause.retry_after if isinstance(cause, Unavailable) else None
        return pause if wish is None else max(pause, wish * (1 + 0.2 * self._chance()))

    def _pause(self, tries: int, cause: Exception | None, deadline: float, job: J) -> Call[None]:
        self._check(deadline, job)
        yield Sleep(min(self._backoff(tries, cause), deadline - self._clock()))

    def _deadline(self, timeout: float | None) -> float:
        return math.inf if timeout is None else self._clock() + timeout

    def _check(self, deadline: float, job: J) -> None:
        if self._clock() >= deadline:
            raise _too_late(job)


def _next_line() -> Call[bytes | None]:
    try:
        line: bytes | None = yield NextLine()
    except Lost as error:
        raise NotReachable(f"the stream was lost: {error}") from error
    return line


# -- requests and answers ----------------------------------------------------------------------------------------------


def _page(reply: Reply) -> dict[str, Any]:
    page = reply.document
    if not isinstance(page, dict) or not {"jobs", "next"} <= set(page):
        raise NotForeman("an answer is no list of jobs")
    return page


def _path(job_id: str, *more: str) -> str:
    return "/".join(["/jobs", *(quote(part, safe="") for part in (job_id, *more))])


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, allow_nan=False).encode()


def _headers(content_type: str, key: str | None = None) -> dict[str, str]:
    return {"Content-Type": content_type, **({} if key is None else {"Idempotency-Key": key})}


def _submitting(document: Mapping[str, Any], key: str) -> Send:
    """The same bytes for every try: the key goes with them."""
    return Send(method="POST", path="/jobs", headers=_headers("application/json", key), body=_json(document))


_FULL = re.compile(r"\d+ jobs are waiting, at most \d+ may")


def _refusal(request: Send, reply: Reply) -> Exception:
    message, lines = _said(reply)
    if reply.status < 400:
        return NotForeman(f"{request.path} is answered with a redirect")
    if reply.status == 429 or reply.status >= 500:
        wish = reply.headers.get("retry-after", "")
        kind = QueueFull if _FULL.match(message) else Unavailable
        return kind(message, status=reply.status, retry_after=float(wish) if re.fullmatch(r"\d{1,6}", wish) else None)
    if reply.status == 404 and request.path.startswith("/jobs/"):
        return NoSuchJob(404, message)
    return Rejected(reply.status, message, lines)


def _said(reply: Reply) -> tuple[str, Mapping[int, str]]:
    """What an answer says went wrong, and in which lines."""
    text = f"HTTP status {reply.status}"
    try:
        document = json.loads(reply.body)
        lines = {int(line["line"]): str(line["error"]) for line in document.get("lines", ())}
        return str(document.get("error", text)), lines
    except (ValueError, TypeError, KeyError, AttributeError):
        return text, {}


def _verdict(job: J) -> J:
    """The job if it is done.

    :raise JobFailed: it is not.
    """
    if job.state is not JobState.FAILED:
        return job
    kinds = {"cancelled": JobCancelled, "expired": JobExpired}
    raise kinds.get(job.error.code if job.error else "", JobFailed)(job)


def _too_late(job: JobInfo | None) -> WaitTimeout:
    return WaitTimeout("the time given is over" + (f"; job {job.job_id} is {job.state}" if job else ""), job)
