"""What operators look at: `/healthz` and `/readyz`.  Nothing here waits for the database or the target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from attrs import define, field
from klein import Klein
from twisted.web.server import Request

import foreman
from foreman.detach import detach
from foreman.logs import make_logger
from foreman.ollama.inventory import Inventory
from foreman.tick import Tick
from foreman.work.store import Store
from foreman.work.worker import Worker

LONG_WAIT = 3600
"""Seconds for which the oldest job may wait before `/healthz` warns."""


@define
class Readiness:
    """Whether foreman takes calls: set by the service when the listener is up, cleared when it stops."""

    ready: bool = False


@define(eq=False)
class OperatorFace:
    """The routes that tell how foreman is."""

    store: Store
    inventory: Inventory
    worker: Worker
    readiness: Readiness
    tick: Tick
    seconds: Callable[[], float]
    now_ms: Callable[[], int]
    target_url: str
    embedder: str | None
    _started: float = field(init=False)
    _oldest: int | None = field(init=False, default=None)
    _asking: bool = field(init=False, default=False)

    app = Klein()
    _log = make_logger()

    def start(self) -> None:
        """Begin to keep the figures that cost a query."""
        self._started = self.seconds()
        self.tick.subscribe(self._beat)

    def _beat(self, slept: bool) -> None:
        if not self.store.backlog.queued:
            self._oldest = None
        elif not self._asking:
            self._asking = True
            detach(self._ask_oldest()).addErrback(
                lambda failure: self._log.warn("The oldest wait is unknown: {error}", error=failure.value)
            )

    async def _ask_oldest(self) -> None:
        try:
            self._oldest = await self.store.oldest()
        finally:
            self._asking = False

    @app.route("/healthz", methods=["GET"])
    def healthz(self, request: Request) -> bytes:
        """How everything is; always 200 while the process is well."""
        return _json(request, self.health(full=getattr(request, "authenticated", False)))

    @app.route("/readyz", methods=["GET"])
    def readyz(self, request: Request) -> bytes:
        """200 when calls are taken, else 503."""
        ready = self.readiness.ready and self.store.writable
        request.setResponseCode(200 if ready else 503)
        return _json(request, {"ready": ready})

    def health(self, *, full: bool) -> dict[str, Any]:
        """The document of `/healthz`; unless `full`, without the target's address and model names."""
        inventory, backlog = self.inventory, self.store.backlog
        oldest_s = 0 if self._oldest is None else max(0, (self.now_ms() - self._oldest) // 1000)
        target: dict[str, Any] = {
            "state": self.inventory.state.value,
            "version": inventory.version or None,
            "last_poll": inventory.last_poll,
            "last_error": inventory.last_error,
        }
        if full:
            resident = self.worker.resident_name
            target |= {"url": self.target_url, "resident": resident, "embedder": self.embedder}
        return {
            "status": "ok",
            "degraded": not inventory.up,
            "version": foreman.__version__,
            "uptime_s": int(self.seconds() - self._started),
            "target": target,
            "queue": {
                "queued": backlog.queued,
                "running": 0 if self.worker.running is None else 1,
                "oldest_s": oldest_s,
                "paused": False,
            },
            "webhooks": {"pending": 0, "exhausted": 0},
            "warnings": self._warnings(oldest_s),
        }

    def _warnings(self, oldest_s: int) -> list[str]:
        warnings = []
        if oldest_s > LONG_WAIT:
            warnings.append(f"the oldest job has waited for {oldest_s} s")
        if not self.store.writable:
            warnings.append("the store cannot write")
        return warnings


def _json(request: Request, document: object) -> bytes:
    request.setHeader(b"content-type", b"application/json")
    return orjson.dumps(document)
