"""Every operation of the client, once (see `foreman.client.steps`): what is asked, and what is made of the answers."""

from __future__ import annotations

import json
import math
import re
from asyncio import CancelledError
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from attrs import evolve

from foreman.client.asking import PARTING, Asking
from foreman.client.documents import read
from foreman.client.errors import (
    ForemanError,
    JobCancelled,
    JobExpired,
    JobFailed,
    NoSuchJob,
    NotForeman,
    NotReachable,
    Rejected,
    Unavailable,
    WaitTimeout,
)
from foreman.client.overview import Health, Pause, Queue
from foreman.client.steps import SILENCE, Call, Give, Giving, Reply, Send
from foreman.client.stream import Told
from foreman.client.submission import STREAMED
from foreman.client.values import Chunk, History, JobInfo, JobState

J = TypeVar("J", bound=JobInfo)

POLL = 30.0
"""Seconds of a long poll: shorter than the minute after which many a proxy cuts what is silent."""

LOOK = (1.0, 15.0)
"""Seconds after which a look is taken at all of many jobs: no sooner than, and at the latest."""

LOOKING = 10
"""How many times longer than a look took there is none: the list of many jobs is long, and foreman has other work."""

FILLED = 65.0
"""Seconds of silence on a stream, where a waiting one gets a blank every 30 s."""

PAGE = 500
"""Jobs in a page of a list."""


class Calls(Generic[J]):
    """The operations.

    :param make: makes a job of its document.
    """

    def __init__(self, make: Callable[[Mapping[str, Any]], J], asking: Asking) -> None:
        self._make = make
        self._ask = asking

    # -- one job -----------------------------------------------------------------------------------------------------

    def submit(self, document: Mapping[str, Any], key: str) -> Call[J]:
        """Have foreman accept a job, once however often it takes to be heard."""
        return self._taken((yield from self._ask.answer(_submitting(document, key))).document, document)

    def run(
        self, document: Mapping[str, Any], key: str, *, timeout: float | None, cancel_on_interrupt: bool
    ) -> Call[J]:
        """Submit a job and wait for its end."""
        request = _submitting(document, key)
        deadline = self._ask.deadline(timeout)
        job: J | None = None
        try:
            end = min(self._ask.deadline(self._ask.patience), deadline)
            job = self._taken((yield from self._ask.until(end, request, deadline)).document, document)
            return (yield from self._finish(job, deadline))
        except (NotReachable, Unavailable) as error:
            if self._ask.clock() < deadline:
                raise
            raise WaitTimeout(f"the time given is over, and no job was accepted: {error}") from error
        except (KeyboardInterrupt, CancelledError):
            if cancel_on_interrupt:
                yield from self._part(job, request)
            raise

    def wait(self, job: J, *, timeout: float | None, cancel_on_interrupt: bool) -> Call[J]:
        """Wait for a job's end; at once if that is known already."""
        try:
            return (yield from self._finish(job, self._ask.deadline(timeout)))
        except (KeyboardInterrupt, CancelledError):
            if cancel_on_interrupt:
                yield from self._part(job)
            raise

    def job(self, job_id: str) -> Call[J]:
        """Look at a job."""
        return self._make((yield from self._ask.answer(_get(job_id))).document)

    def cancel(self, job_id: str) -> Call[J]:
        """Cancel a job, unless it is over."""
        try:
            reply = yield from self._ask.answer(Send(method="POST", path=_path(job_id, "cancel")))
        except Rejected as error:
            if error.status != 409:
                raise
            # It is over: perhaps by an earlier try of ours, whose answer was lost.
            return (yield from self.job(job_id))
        return self._make(reply.document)

    def delete(self, job_id: str) -> Call[None]:
        """Erase a job; that there is none (any more) is fine, as after a try of ours whose answer was lost."""
        with suppress(NoSuchJob):
            yield from self._ask.answer(Send(method="DELETE", path=_path(job_id)))

    def redeliver(self, job_id: str) -> Call[None]:
        """Have a job's final event sent again."""
        yield from self._ask.answer(Send(method="POST", path=_path(job_id, "redeliver")))

    def events(self, job_id: str) -> Call[History]:
        """Read what has happened to a job."""
        return read(History, (yield from self._ask.answer(_get(job_id, "events"))).document)

    def artifact(self, job_id: str, name: str) -> Call[bytes]:
        """Read what a job has left."""
        return (yield from self._ask.answer(_get(job_id, "artifacts", name))).body

    def stream(self, job: J, *, timeout: float | None) -> Giving[Chunk]:
        """Read along with a job, from its beginning to its end, whatever happens to the connection."""
        deadline = self._ask.deadline(timeout)
        if job.endpoint not in STREAMED:
            job = yield from self._finish(job, deadline)
            document = job.result if isinstance(job.result, dict) else {}
            yield Give(Chunk(text=job.text, thinking=job.thinking, is_last=True, document=document))
            return
        told = Told()
        tries = 0
        while True:
            cause: Exception | None = None
            begun = self._ask.clock()
            silence = _silence(deadline - begun)
            try:
                yield from self._ask.once(evolve(_get(job.job_id, "stream"), silence=silence, follow=True), deadline)
                told.begin()
                while (line := (yield from self._ask.next_line())) is not None:
                    if (chunk := told.line(line)) is not None:
                        tries = 0
                        yield Give(chunk)
                    if self._ask.clock() > deadline - (silence - PARTING):
                        break
            except (NotReachable, Unavailable) as error:
                cause = error
                if self._ask.clock() - begun >= PARTING:
                    tries = 0  # it has been there
            if cause is None and line is None:
                # It has ended by itself: the job is over, or its attempt, and it waits again.
                job = yield from self._unfailed(job, deadline)
                if job.state is JobState.DONE and told.last is not None:
                    yield Give(Chunk(is_last=True, document=told.last))
                    return
            self._ask.check(deadline, job)
            yield self._ask.pause(tries, cause, deadline)
            tries += 1

    # -- many jobs ---------------------------------------------------------------------------------------------------

    def submit_many(self, documents: Iterable[Mapping[str, Any]], key: str) -> Call[list[J]]:
        """Have foreman accept all of them, or none."""
        given = list(documents)
        if not given:
            return []
        body = b"".join(_json(document) + b"\n" for document in given)
        request = Send(method="POST", path="/jobs", headers=_headers("application/x-ndjson", key), body=body)
        answer = (yield from self._ask.answer(request)).document
        jobs = answer.get("jobs") if isinstance(answer, dict) else None
        if not isinstance(jobs, list) or len(jobs) != len(given):
            raise NotForeman("an answer does not name the jobs of a batch")
        return [self._taken(job, document) for job, document in zip(jobs, given, strict=True)]

    def jobs(self, *, state: str | None, model: str | None, limit: int | None) -> Giving[J]:
        """List jobs, newest first."""
        query = {name: value for name, value in {"state": state, "model": model}.items() if value is not None}
        left = math.inf if limit is None else limit
        while left > 0:
            asked = Send(method="GET", path="/jobs", query={**query, "limit": str(int(min(left, PAGE)))})
            page = _page((yield from self._ask.answer(asked)))
            for document in page["jobs"]:
                yield Give(self._make(document))
            left -= len(page["jobs"])
            if page["next"] is None:
                return
            query["after"] = page["next"]

    def as_completed(self, jobs: Iterable[J], *, timeout: float | None) -> Giving[J]:
        """Give each job when it is over, done or failed."""
        deadline = self._ask.deadline(timeout)
        pending = {job.job_id: job for job in jobs}
        look = -math.inf
        while pending:
            if (begun := self._ask.clock()) >= look:
                over = yield from self._over(pending, deadline)
                look = self._ask.clock() + max(LOOK[0], LOOKING * (self._ask.clock() - begun))
                for job_id in over:
                    job = yield from self._look(pending.pop(job_id), deadline)
                    yield Give((yield from self._fill(job, deadline)))
            if pending:
                # foreman runs one at a time: whoever is first will most likely end first.
                first = yield from self._first(pending, deadline)
                job = yield from self._poll(first, min(deadline, self._ask.deadline(LOOK[1])))
                if job.state.is_over:
                    del pending[job.job_id]
                    yield Give((yield from self._fill(job, deadline)))
                else:
                    self._ask.check(deadline, job)

    def _over(self, pending: Mapping[str, J], deadline: float) -> Call[list[str]]:
        """Those that are over, in the order in which they ended; those that are gone too."""
        unseen, over = set(pending), {}
        query = {"limit": str(PAGE)}
        while unseen:
            page = _page((yield from self._ask.insist(Send(method="GET", path="/jobs", query=query), deadline)))
            for job in map(self._make, page["jobs"]):
                if job.job_id in unseen and job.completed_at is not None:
                    over[job.job_id] = job.completed_at
                unseen.discard(job.job_id)
            if page["next"] is None:
                break
            query = {**query, "after": page["next"]}
        return [*sorted(over, key=over.__getitem__), *unseen]

    def _first(self, pending: Mapping[str, J], deadline: float) -> Call[J]:
        """The one whose turn is, or comes, first."""
        reply = yield from self._ask.insist(Send(method="GET", path="/queue"), deadline)
        queue = read(Queue, reply.document)
        order = [queue.running.job_id] if queue.running else []
        order += [job.job_id for job in queue.next]
        return next((pending[job_id] for job_id in order if job_id in pending), next(iter(pending.values())))

    # -- the queue and foreman itself --------------------------------------------------------------------------------

    def queue(self) -> Call[Queue]:
        """See what waits."""
        return read(Queue, (yield from self._ask.answer(Send(method="GET", path="/queue"))).document)

    def pause(self, seconds: float, *, unload: bool) -> Call[Pause]:
        """Have the queue stand still after the running job."""
        body = _json({"for": f"{math.ceil(seconds * 1000)}ms", "unload": unload})
        request = Send(method="POST", path="/queue/pause", headers=_headers("application/json"), body=body)
        return read(Pause, (yield from self._ask.answer(request)).document)

    def resume(self) -> Call[Pause]:
        """Have the queue go on."""
        return read(Pause, (yield from self._ask.answer(Send(method="POST", path="/queue/resume"))).document)

    def models(self) -> Call[tuple[str, ...]]:
        """List the models of foreman's target."""
        answer = (yield from self._ask.answer(Send(method="GET", path="/api/tags"))).document
        try:
            return tuple(str(model["name"]) for model in answer["models"])
        except (KeyError, TypeError) as error:
            raise NotForeman(f"an answer is no list of models: {error!r}") from error

    def health(self) -> Call[Health]:
        """Ask how foreman is."""
        return read(Health, (yield from self._ask.answer(Send(method="GET", path="/healthz"))).document)

    # -- waiting -----------------------------------------------------------------------------------------------------

    def _taken(self, answer: Any, document: Mapping[str, Any]) -> J:
        """The job that has become of what was submitted."""
        if not isinstance(answer, dict):
            raise NotForeman("an answer is no job")
        if answer.get("state") is None:  # a repeated batch has the ids of jobs that were deleted since
            answer = {**answer, "state": "failed", "error": {"code": "deleted", "message": "The job was deleted."}}
        told = {name: document.get(name) for name in ("model", "metadata")}
        return self._make({**told, "endpoint": document.get("endpoint") or "/api/chat", **answer})

    def _finish(self, job: J, deadline: float) -> Call[J]:
        """The job, done and whole."""
        while not job.state.is_over:
            job = yield from self._poll(job, deadline)
            if not job.state.is_over:
                self._ask.check(deadline, job)
        if job.created_at is None and (job.error is None or job.error.code != "deleted"):
            job = yield from self._look(job, deadline)  # the answer to a repeat has no more than the state
        return _verdict((yield from self._fill(job, deadline)))

    def _poll(self, job: J, end: float) -> Call[J]:
        """The job when it is over, or as it is at that time."""
        tries = 0
        while True:
            asked = self._ask.clock()
            wait = min(POLL, max(0.0, end - asked))
            cause: Exception | None = None
            request = evolve(_get(job.job_id), query={"wait": f"{wait:.3f}"}, silence=wait + SILENCE)
            try:
                job = self._make((yield from self._ask.once(request, end)).document)
            except (NotReachable, Unavailable) as error:
                cause = error
            if job.state.is_over or self._ask.clock() >= end:
                return job
            # An answer before its time comes from a foreman that stops.
            if cause is not None or self._ask.clock() - asked < wait / 2:
                yield self._ask.pause(tries, cause, end)
                tries += 1
            else:
                tries = 0

    def _look(self, job: J, deadline: float) -> Call[J]:
        """The job as it is now, however long it takes to ask."""
        return self._make((yield from self._ask.insist(_get(job.job_id), deadline, job)).document)

    def _unfailed(self, job: J, deadline: float) -> Call[J]:
        """The job as it is now.

        :raise JobFailed: it has; the error's job is whole.
        """
        job = yield from self._look(job, deadline)
        return job if job.state is not JobState.FAILED else _verdict((yield from self._fill(job, deadline)))

    def _fill(self, job: J, deadline: float) -> Call[J]:
        """The job with what was too long to be told with it."""
        result, artifacts = job.result, []
        for artifact in job.artifacts:
            if artifact.inline is not None or (artifact.name == "completion" and result is not None):
                artifacts.append(artifact)
                continue
            body = (yield from self._ask.insist(_get(job.job_id, "artifacts", artifact.name), deadline, job)).body
            if artifact.name == "completion":
                with suppress(ValueError):  # what is no JSON can be had as an artifact
                    result = json.loads(body)
                artifacts.append(artifact)
            else:
                artifacts.append(evolve(artifact, inline=body.decode(errors="replace")))
        return evolve(job, result=result, artifacts=tuple(artifacts))

    def _part(self, job: J | None, submitting: Send | None = None) -> Call[None]:
        """Cancel a job on the way out, as far as that can be done quickly."""
        with suppress(ForemanError):
            if job is None and submitting is not None:
                # It may have been accepted without our knowing: its key tells.
                job = self._make((yield from self._ask.once(evolve(submitting, silence=PARTING))).document)
            if job is not None:
                yield from self._ask.once(Send(method="POST", path=_path(job.job_id, "cancel"), silence=PARTING))


# -- requests and answers ----------------------------------------------------------------------------------------------


def _path(job_id: str, *more: str) -> str:
    if not {".", ".."}.isdisjoint((job_id, *more)):  # they mean another place in any URL
        raise NoSuchJob(404, "there is no such job")
    return "/".join(["/jobs", *(quote(part, safe="") for part in (job_id, *more))])


def _get(job_id: str, *more: str) -> Send:
    return Send(method="GET", path=_path(job_id, *more))


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, allow_nan=False).encode()


def _headers(content_type: str, key: str | None = None) -> dict[str, str]:
    if key is None:
        return {"Content-Type": content_type}
    if not re.fullmatch("[!-~](?:[ -~]{0,253}[!-~])?", key):
        raise ValueError(f"an idempotency key is 1 to 255 printable ASCII characters, not {key!r}")
    return {"Content-Type": content_type, "Idempotency-Key": key}


def _silence(left: float) -> float:
    """For how long a stream may be silent; all reads of a connection have the same bound, so the last are short."""
    return FILLED if left > FILLED else PARTING


def _submitting(document: Mapping[str, Any], key: str) -> Send:
    """The same bytes for every try: foreman compares what comes under a key."""
    return Send(method="POST", path="/jobs", headers=_headers("application/json", key), body=_json(document))


def _page(reply: Reply) -> dict[str, Any]:
    page = reply.document
    if not isinstance(page, dict) or not isinstance(page.get("jobs"), list) or "next" not in page:
        raise NotForeman("an answer is no list of jobs")
    return page


def _verdict(job: J) -> J:
    """The job if it is done.

    :raise JobFailed: it is not.
    """
    if job.state is not JobState.FAILED:
        return job
    kinds = {"cancelled": JobCancelled, "expired": JobExpired}
    raise kinds.get(job.error.code if job.error else "", JobFailed)(job)
