"""`Prefer: respond-async` (RFC 7240): a native call that becomes an async job, of whose body nothing is foreman's."""

from __future__ import annotations

import orjson
from ulid import ULID

from foreman.job import NewJob, Runner, Submission
from foreman.ollama import requests
from foreman.ollama.requests import Inference
from foreman.ollama.routes import Route
from foreman.web.body import Request
from foreman.work.keys import Accepted


def new_job(request: Request, route: Route, body: bytes, read: Inference, runner: Runner, *, now: int) -> NewJob:
    """The job that a call becomes.

    :param read: its `body`, as foreman reads it.
    :param now: milliseconds since the epoch.
    """
    clear = requests.in_clear(route.path, body, request.getHeader("content-encoding"))
    return NewJob(
        id=str(ULID()),
        endpoint=route.path,
        model=read.model,
        runner=runner,
        size=len(clear),
        created_at=now,
        submission=Submission(body=clear, content_type=request.getHeader("content-type") or "application/json"),
    )


def answer(request: Request, accepted: Accepted) -> None:
    """Tell where the job is, unless the client has left."""
    if request.finished or request.channel is None:
        return
    [job_id], [job] = accepted.ids, accepted.jobs
    document = {"job_id": job_id}
    if accepted.repeated and job is not None:
        document["state"] = job.state
    body = orjson.dumps(document)
    request.setResponseCode(200 if accepted.repeated else 202)
    request.responseHeaders.setRawHeaders(b"location", [f"/jobs/{job_id}".encode()])
    request.responseHeaders.setRawHeaders(b"content-type", [b"application/json"])
    request.responseHeaders.setRawHeaders(b"content-length", [b"%d" % len(body)])
    request.write(body)
    request.finish()
