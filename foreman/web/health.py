"""How foreman is, in one document: `/healthz`.  Everything in it is in memory already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import define, field

import foreman
from foreman.detach import detach
from foreman.logs import make_logger
from foreman.ollama.inventory import Inventory, TargetState
from foreman.record import DeliveryState
from foreman.tick import Tick
from foreman.times import rfc3339
from foreman.work.deliveries import Deliveries
from foreman.work.pause import Pause
from foreman.work.store import Store
from foreman.work.worker import Worker

LONG_WAIT = 3600
"""Seconds for which the oldest job may wait before `/healthz` warns."""

COUNTED = (DeliveryState.PENDING, DeliveryState.EXHAUSTED)
"""The states of deliveries that somebody may have to do something about."""


@define(eq=False, kw_only=True)
class Health:
    """What `/healthz` tells.

    :ivar webhooks: how many deliveries are pending and how many exhausted, as of the last second.
    :ivar warnings_from: each room that has something to warn of adds a function that gives its warnings of now, one
        line each; called at every question, so it must only look at what it has in memory.
    """

    store: Store
    deliveries: Deliveries
    inventory: Inventory
    worker: Worker
    pause: Pause
    tick: Tick
    seconds: Callable[[], float]
    now_ms: Callable[[], int]
    target_url: str
    embedder: str | None
    warnings_from: list[Callable[[], Iterable[str]]] = field(factory=list)
    _started: float = field(init=False)
    _oldest: int | None = field(init=False, default=None)
    webhooks: Mapping[DeliveryState, int] = field(init=False, factory=lambda: dict.fromkeys(COUNTED, 0))
    _asking: bool = field(init=False, default=False)

    _log = make_logger()

    def start(self) -> None:
        """Begin to keep the figures that cost a query."""
        self._started = self.seconds()
        self.tick.subscribe(self._beat)

    @property
    def oldest_s(self) -> int:
        """Seconds for which the longest waiting job has waited; 0 if none waits."""
        return 0 if self._oldest is None else max(0, (self.now_ms() - self._oldest) // 1000)

    def document(self, *, full: bool) -> dict[str, Any]:
        """The document; unless `full`, without whatever names the target or a model."""
        inventory, backlog = self.inventory, self.store.backlog
        target: dict[str, Any] = {
            "state": inventory.state.value,
            "version": inventory.version or None,
            "last_poll": None if inventory.last_poll is None else rfc3339(inventory.last_poll),
        }
        if full:
            target |= {
                "url": self.target_url,
                "last_error": inventory.last_error,
                "resident": self.worker.resident_name,
                "embedder": self.embedder,
            }
        return {
            "status": "ok",
            "degraded": not inventory.up,
            "version": foreman.__version__,
            "uptime_s": int(self.seconds() - self._started),
            "target": target,
            "queue": {
                "queued": backlog.queued,
                "running": 0 if self.worker.running is None else 1,
                "oldest_s": self.oldest_s,
                "paused": self.pause.active,
            },
            "webhooks": {state.value: count for state, count in self.webhooks.items()},
            "warnings": self._warnings(full=full),
        }

    def _warnings(self, *, full: bool) -> list[str]:
        warnings = []
        if self.inventory.state is not TargetState.UP:
            warnings.append(f"the target is {self.inventory.state.value}")
        if self.oldest_s > LONG_WAIT:
            warnings.append(f"the oldest job has waited for {self.oldest_s} s")
        if not self.store.writable:
            warnings.append("the store cannot write")
        others = [warning for room in self.warnings_from for warning in room()]
        if full or not others:
            return warnings + others
        return [*warnings, f"{len(others)} more, told to those who bring the token"]

    def _beat(self, slept: bool) -> None:
        if not self.store.backlog.queued:
            self._oldest = None
        if not self._asking:
            self._asking = True
            detach(self._ask()).addErrback(
                lambda failure: self._log.warn("The figures of /healthz are old: {error}", error=failure.value)
            )

    async def _ask(self) -> None:
        try:
            if self.store.backlog.queued:
                self._oldest = await self.store.oldest()
            self.webhooks = await self.deliveries.counts()
        finally:
            self._asking = False
