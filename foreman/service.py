"""The object graph, read from top to bottom, and the order in which it starts and stops."""

from __future__ import annotations

import gc
import os
import random
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.application.service import IServiceCollection, Service
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError, ReactorNotRunning
from twisted.internet.interfaces import IListeningPort
from twisted.python.failure import Failure

from foreman import __version__, logs
from foreman.config import Configuration
from foreman.detach import detach
from foreman.errors import ConfigurationError, ForemanError, Unwritable
from foreman.ollama.embedder import Embedder
from foreman.ollama.inventory import Inventory
from foreman.ollama.requests import parse_keep_alive
from foreman.ollama.target import Target
from foreman.ollama.wake import WakeOnLan
from foreman.tick import Tick
from foreman.web.errors import install_error_handlers
from foreman.web.following import Following
from foreman.web.health import Health
from foreman.web.jobs import JobsFace
from foreman.web.lookout import Lookout
from foreman.web.metrics import Metrics
from foreman.web.native import Limits, NativeFace
from foreman.web.operate import OperatorFace, Readiness
from foreman.web.site import OwnFace, make_site
from foreman.webhooks.outbox import Outbox
from foreman.webhooks.policy import AddressPolicy
from foreman.webhooks.sender import Sender
from foreman.work.archive import Archive
from foreman.work.attempt import Patience
from foreman.work.database import Database
from foreman.work.deliveries import Deliveries
from foreman.work.expiry import Expiry
from foreman.work.forecasts import Forecasts
from foreman.work.moves import Move
from foreman.work.pause import Pause
from foreman.work.residency import Residency
from foreman.work.retention import Retention
from foreman.work.roster import Roster
from foreman.work.setback import Setback
from foreman.work.store import Store
from foreman.work.switchboard import Switchboard
from foreman.work.tails import Tails
from foreman.work.worker import Worker

LAST_WORDS = 0.5
"""Seconds in which a stop lets answers that are on their way reach their clients."""


def now_ms() -> int:
    """The wall clock: milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class Foreman(Service):
    """The daemon.

    :ivar port: where it listens, None before and after.
    """

    _log = logs.make_logger()

    def __init__(self, config: Configuration, reactor: Any) -> None:
        # Twisted's timers run on the wall clock, which steps; on the monotonic one a step neither fires nor stops them.
        reactor.seconds = time.monotonic
        self._config = config
        self._reactor = reactor
        self.port: IListeningPort | None = None
        self._starting, self._trial = succeed(None), succeed(None)

        self._readiness = Readiness()
        self._tick = Tick(reactor, time.time)
        database = Database(Path(config.db), reactor)
        self._store = Store(database, now_ms, max_queue=config.max_queue, max_attempts=config.max_attempts)
        self._pause = Pause(store=self._store, tick=self._tick, clock=reactor, now_ms=now_ms)
        self._retention = Retention(store=self._store, tick=self._tick, now_ms=now_ms, ttl=config.job_ttl)
        self._target = Target(
            reactor=reactor, url=config.ollama_url, token=_revealed(config.ollama_token), tick=self._tick
        )
        self._inventory = Inventory(
            target=self._target,
            tick=self._tick,
            clock=reactor,
            now_ms=now_ms,
            poll_interval=config.poll_interval,
            shelf=self._store,
        )
        self._inventory.on_models.append(Roster(self._store).listed)
        self._residency = Residency(
            target=self._target,
            inventory=self._inventory,
            clock=reactor,
            keep_alive=parse_keep_alive(config.keep_alive),
            load_timeout=config.load_timeout,
            embedder=config.embed_model,
        )
        self._switchboard = Switchboard()
        self._tails = Tails()
        self._store.on_move.append(self._tails.follow)
        self._archive = Archive(database, inline_max=config.artifact_inline_max)
        self._deliveries = Deliveries(self._store, database)
        policy = AddressPolicy(config.webhook_allow.networks, config.webhook_allow.hosts)
        self._outbox = Outbox(
            rows=self._deliveries,
            records=self._archive,
            sender=Sender(reactor, policy),
            secrets=[
                secret.reveal() for secret in (config.webhook_secret, config.webhook_secret_old) if secret is not None
            ],
            clock=reactor,
            now_ms=now_ms,
            random=random.random,
        )
        self._store.on_move.append(self._tell_outbox)
        self._worker = Worker(
            store=self._store,
            target=self._target,
            inventory=self._inventory,
            residency=self._residency,
            switchboard=self._switchboard,
            tails=self._tails,
            pause=self._pause,
            tick=self._tick,
            clock=reactor,
            now_ms=now_ms,
            random=random.random,
            patience=Patience(
                answer_timeout=config.answer_timeout,
                stall_timeout=config.stall_timeout,
                shutdown_grace=config.shutdown_grace,
                max_run=config.max_run,
                max_result=config.max_result,
            ),
        )
        self._embedder = None
        if config.embed_model is not None:
            self._embedder = Embedder(
                name=config.embed_model,
                target=self._target,
                inventory=self._inventory,
                load_timeout=config.load_timeout,
                may_load=lambda: not self._pause.active,
            )
        if config.wake is not None:
            WakeOnLan(
                reactor=reactor,
                tick=self._tick,
                mac=config.wake.mac,
                broadcast=config.wake.broadcast,
                needed=lambda: not self._inventory.up and not self._pause.active and self._store.backlog.queued > 0,
            )
        self._expiry = Expiry(store=self._store, tick=self._tick, now_ms=now_ms)
        self._setback = Setback(store=self._store, tick=self._tick, clock=reactor, now_ms=now_ms)
        self._setback.on_moved += [self._worker.wake, self._outbox.look]
        self._forecasts = Forecasts(
            store=self._store, worker=self._worker, inventory=self._inventory, pause=self._pause
        )
        self._native = NativeFace(
            store=self._store,
            target=self._target,
            inventory=self._inventory,
            residency=self._residency,
            switchboard=self._switchboard,
            pause=self._pause,
            tick=self._tick,
            clock=reactor,
            now_ms=now_ms,
            limits=Limits(answer_timeout=config.answer_timeout, sync_wait=config.sync_wait, hold_line=config.hold_line),
            model_admin=config.model_admin,
            embedder=self._embedder,
        )
        self._pause.unload = self._unload
        self._pause.on_change.append(self._pin_embedder)
        self._health = Health(
            store=self._store,
            deliveries=self._deliveries,
            inventory=self._inventory,
            worker=self._worker,
            pause=self._pause,
            tick=self._tick,
            seconds=reactor.seconds,
            now_ms=now_ms,
            target_url=config.ollama_url,
            embedder=config.embed_model,
        )
        self._health.warnings_from.append(self._inventory.warnings)
        if self._embedder is not None:
            self._health.warnings_from.append(self._embedder.warnings)
        metrics = Metrics(
            store=self._store,
            inventory=self._inventory,
            residency=self._residency,
            target=self._target,
            switchboard=self._switchboard,
            outbox=self._outbox,
            health=self._health,
        )
        self._store.on_move.append(metrics.moved)
        database.on_commit = metrics.committed
        self._operators = OperatorFace(
            health=self._health,
            metrics=metrics,
            readiness=self._readiness,
            store=self._store,
            worker=self._worker,
            pause=self._pause,
            now_ms=now_ms,
        )
        install_error_handlers(self._operators.app)
        lookout = Lookout()
        self._store.on_move += [lookout.moved, self._native.moved]
        self._jobs = JobsFace(
            store=self._store,
            archive=self._archive,
            deliveries=self._deliveries,
            worker=self._worker,
            inventory=self._inventory,
            following=Following(archive=self._archive, tails=self._tails, lookout=lookout, tick=self._tick),
            lookout=lookout,
            policy=policy,
            clock=reactor,
            now_ms=now_ms,
            max_attempts=config.max_attempts,
            forecasts=self._forecasts,
            outbox_wake=self._outbox.look,
        )
        own = OwnFace(jobs=self._jobs, operators=self._operators.app.resource())
        self._site = make_site(native=self._native, own=own, config=config, reactor=reactor)

    def setServiceParent(self, parent: IServiceCollection) -> None:
        """Join the application; its log becomes ours from the first line."""
        logs.install(parent, self._config)
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]

    # -- start and stop, in order --------------------------------------------------------------------------------

    def startService(self) -> None:
        """Start; if that fails the process ends with one line, status 74 if the database cannot be used, else 1."""
        super().startService()  # type: ignore[no-untyped-call]
        self._starting = detach(self._start())
        self._starting.addErrback(self._failed_to_start)

    async def _start(self) -> None:
        for name, value, source in self._config.effective():
            self._log.info("{name}={value} ({source})", name=name, value=value, source=source)
        try:
            recovered = await self._store.start()
        except Unwritable as error:
            raise Unwritable(f"the database {self._config.db} cannot be used: {error}") from error
        if recovered.requeued or recovered.interrupted:
            self._log.info(
                "Found {requeued} jobs to run again and {interrupted} calls cut off by the last stop",
                requeued=recovered.requeued,
                interrupted=recovered.interrupted,
            )
        await self._forecasts.start()
        self._tick.start()
        self._tick.subscribe(self._beat)
        await self._setback.start()
        await self._pause.start()
        await self._inventory.start()
        self._worker.start()
        self._native.start()
        self._health.start()
        self._retention.start()
        self._expiry.start()
        self._outbox.start()
        endpoint = serverFromString(self._reactor, self._config.addr.endpoint)
        try:
            self.port = await endpoint.listen(self._site)
        except (CannotListenError, OSError, OverflowError) as error:
            raise ConfigurationError(f"FOREMAN_ADDR is {self._config.addr.text!r}: {error}") from error
        gc.freeze()  # what is there now stays: each full collection would walk it in vain, for milliseconds
        self._readiness.ready = True
        if not self._config.addr.loopback and self._config.token is None:
            self._log.warn("Listening beyond loopback without FOREMAN_TOKEN: whoever reaches the port may use it")
        self._log.info("foreman {version} listens on {where}", version=__version__, where=_where(self.port.getHost()))

    async def _unload(self) -> bool:
        """Free the target's memory, for its owner."""
        if self._embedder is not None:
            await self._embedder.at_rest()
        return await self._residency.clear()

    def _pin_embedder(self) -> None:
        if self._embedder is not None and self._inventory.up:
            self._embedder.pin()

    def _tell_outbox(self, move: Move) -> None:
        if move.told:
            self._outbox.look()

    def _beat(self, slept: bool) -> None:
        # In a disk that does not answer one try is enough.
        if not self._store.writable and self._trial.called:
            self._trial = detach(self._store.try_writing())

    def _failed_to_start(self, failure: Failure) -> None:
        if failure.check(ForemanError, OSError):
            self._log.critical("foreman cannot start: {error}", error=failure.value)
        else:
            self._log.failure("foreman cannot start", failure=failure)
        detach(self._inventory.stop())  # what it would say of the target now is beside the point
        # A database that cannot be used may be usable later, as when the disk was full; nothing else mends itself.
        self._reactor.callWhenRunning(self._exit, os.EX_IOERR if failure.check(Unwritable) else 1)

    def _exit(self, status: int) -> None:
        self._reactor.addSystemEventTrigger("after", "shutdown", os._exit, status)
        with suppress(ReactorNotRunning):  # asked to stop meanwhile
            self._reactor.stop()

    def stopService(self) -> Deferred[None]:
        """Stop, in the reverse order, each part waited for."""
        super().stopService()  # type: ignore[no-untyped-call]
        return detach(self._stop())

    async def _stop(self) -> None:
        if self._reactor._stopped:  # noqa: SLF001 - a signal asked for this; the next would find nothing to stop, and fail
            self._reactor.stop = lambda: self._log.info("Stopping already")
        await self._starting  # half a start cannot be taken back
        ran, self._readiness.ready = self._readiness.ready, False
        if ran:
            self._log.info("foreman stops; a running job may go on for {grace} s", grace=self._config.shutdown_grace)
        deadline = self._reactor.seconds() + self._config.shutdown_grace
        if self.port is not None:
            await maybeDeferred(self.port.stopListening)
        self._native.stop()
        self._jobs.stop()
        await self._expiry.stop()
        await self._retention.stop()
        await self._worker.stop()
        # The last caller may still be taking the end of its answer.
        left = deadline - self._reactor.seconds() if len(self._switchboard) else 0.0
        await self._site.close(max(left, LAST_WORDS))
        await self._outbox.stop()
        await self._inventory.stop()
        self._pause.stop()
        self._setback.stop()
        self._tick.stop()
        self._target.close()
        await self._store.stop()
        if ran:
            self._log.info("foreman has stopped")
        # twistd would end the process by the signal that asked for this; but to stop when asked is status 0.
        self._reactor._exitSignal = None  # noqa: SLF001


def _where(address: Any) -> str:
    """An address of Twisted's as people write it."""
    match address:
        case IPv6Address():
            return f"[{address.host}]:{address.port}"
        case IPv4Address():
            return f"{address.host}:{address.port}"
        case UNIXAddress(name=bytes(name)):
            return os.fsdecode(name)
        case _:
            return str(address)


def _revealed(secret: Any) -> str:
    return "" if secret is None else secret.reveal()
