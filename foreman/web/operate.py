"""What operators ask and do: `/healthz`, `/readyz`, `/metrics`, `/queue`, pause and resume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson
from attrs import define, frozen
from klein import Klein

from foreman.detach import detach
from foreman.durations import parse_duration
from foreman.job import Job
from foreman.ollama.names import normalise
from foreman.times import rfc3339
from foreman.web.body import Request
from foreman.web.errors import BadRequest
from foreman.web.health import Health
from foreman.web.metrics import Metrics
from foreman.web.submissions import read_object
from foreman.work.pause import LONGEST, Pause
from foreman.work.store import Store
from foreman.work.worker import Worker

UPCOMING = 50
"""Jobs that `GET /queue` shows in the order in which they will run."""


@define
class Readiness:
    """Whether foreman takes calls: set by the service when the listener is up, cleared when it stops."""

    ready: bool = False


@define(eq=False, kw_only=True)
class OperatorFace:
    """The operators' routes.  Those of `/healthz`, `/readyz` and `/metrics` wait for nothing."""

    health: Health
    metrics: Metrics
    readiness: Readiness
    store: Store
    worker: Worker
    pause: Pause
    now_ms: Callable[[], int]

    app = Klein()

    @app.route("/healthz", methods=["GET"])
    def healthz(self, request: Request) -> bytes:
        """How everything is; always 200 while the process is well."""
        return _json(request, self.health.document(full=request.authenticated))

    @app.route("/readyz", methods=["GET"])
    def readyz(self, request: Request) -> bytes:
        """200 when calls are taken, else 503."""
        ready = self.readiness.ready and self.store.writable
        request.setResponseCode(200 if ready else 503)
        return _json(request, {"ready": ready})

    @app.route("/metrics", methods=["GET"])
    def show_metrics(self, request: Request) -> bytes:
        """The figures, for Prometheus."""
        return _answer(request, self.metrics.content_type, self.metrics.text())

    # -- the queue -----------------------------------------------------------------------------------------------

    @app.route("/queue", methods=["GET"])
    async def queue(self, request: Request) -> bytes:
        """What waits by model, what runs, and what runs next."""
        outlook = await self.store.outlook(resident=self.worker.drains, aside=self.worker.set_aside(), limit=UPCOMING)
        now = self.now_ms()
        running = self.worker.running
        depth: Counter[str] = Counter()
        for name, count in self.store.backlog.by_model().items():
            depth[normalise(name)] += count
        oldest: dict[str, int] = {}
        for name, created_at in outlook.oldest.items():
            model = normalise(name)
            oldest[model] = min(created_at, oldest.get(model, now))
        waits = sorted(((_seconds(oldest.get(model, now), now), model) for model in depth), reverse=True)
        document = {
            "queued": self.store.backlog.queued,
            **self._pause_document(),
            "models": [{"model": model, "queued": depth[model], "oldest_s": wait} for wait, model in waits],
            "running": None if running is None else _running(running, now),
            "next": [
                {"position": place, "job_id": job.id, "model": job.model, "waited_s": _seconds(job.created_at, now)}
                for place, job in enumerate(outlook.upcoming, start=1)
            ],
        }
        return _json(request, document)

    @app.route("/queue/pause", methods=["POST"])
    async def begin_pause(self, request: Request) -> bytes:
        """Give the machine back to its owner; a repeat replaces the pause there is."""
        order = read_pause(request.body())
        await detach(self.pause.begin(order.seconds, unload=order.unload))
        return _json(request, self._pause_document())

    @app.route("/queue/resume", methods=["POST"])
    async def end_pause(self, request: Request) -> bytes:
        """Go on; harmless when there is no pause."""
        await detach(self.pause.end())
        return _json(request, self._pause_document())

    def _pause_document(self) -> dict[str, Any]:
        until = self.pause.until if self.pause.active else None
        return {
            "paused": until is not None,
            "paused_until": None if until is None else rfc3339(until),
            "unloaded": self.pause.unloaded,
        }


@frozen
class PauseOrder:
    """What `POST /queue/pause` asks for."""

    seconds: float
    unload: bool


def read_pause(body: bytes) -> PauseOrder:
    """Read the body of `POST /queue/pause`, such as `{"for": "30m", "unload": true}`.

    :raise BadRequest: the text begins with the field that is wrong.
    """
    document = read_object(body)
    for name in document:
        if name not in ("for", "unload"):
            raise BadRequest(f"{name}: there is no such field; there are `for` and `unload`")
    if "for" not in document:
        raise BadRequest("for: missing; say how long, such as 30m, at most 7d")
    unload = document.get("unload", False)
    if not isinstance(unload, bool):
        raise BadRequest("unload: must be true or false")
    try:
        seconds = parse_duration(document["for"]) if isinstance(document["for"], str) else -1.0
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= LONGEST:
        raise BadRequest("for: must be a duration such as 30m or 1h30m, at most 7d")
    return PauseOrder(seconds, unload)


def _running(job: Job, now: int) -> dict[str, Any]:
    """The job in hand; its seconds count from when it was picked."""
    since = job.created_at if job.loading_at is None else job.loading_at
    return {
        "job_id": job.id,
        "model": job.model,
        "state": job.state.value,
        "attempt": job.attempt,
        "seconds": max(0, now - since) / 1000,
    }


def _seconds(since: int, now: int) -> int:
    return max(0, now - since) // 1000


def _json(request: Request, document: object) -> bytes:
    return _answer(request, b"application/json", orjson.dumps(document))


def _answer(request: Request, content_type: bytes, body: bytes) -> bytes:
    request.responseHeaders.setRawHeaders(b"content-type", [content_type])
    request.responseHeaders.setRawHeaders(b"content-length", [b"%d" % len(body)])
    return body
