"""Ollama's scheduler: which models are loaded, who waits for a load, who generates and what goes when (ollama-wire §7).

A request for a loaded model goes straight to its runner.  Any other joins one FIFO served one at a time: the first
waits, with everybody behind it, until there is room, then for its load.  A runner lets `parallel` generations run,
the others wait at its semaphore.  Nothing here knows HTTP; time is an argument, so `task.Clock` drives it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from math import inf

from attrs import define, frozen
from twisted.internet.defer import Deferred, DeferredSemaphore, ensureDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from .models import FakeModel

_log = Logger()

DEFAULT_KEEP_ALIVE = 300.0

Settings = tuple[tuple[str, object], ...]
"""A runner's load-time options, defaults filled in; requests that differ in them need a reload."""


class Busy(Exception):
    """The FIFO is full."""


@frozen
class Load:
    """A load that was started.

    :ivar at: seconds on the clock; `settings`: the load-time options.
    """

    at: float
    model: str
    settings: Settings


@frozen
class Overlap:
    """Two generations of worker models that ran at once.

    :ivar models: those running already, and last the one that joined them.
    """

    at: float
    models: tuple[str, ...]


FOREVER = 2**63 / 1e9
"""Seconds of the longest duration Go has; what `/api/ps` makes of "for ever"."""


class RunnerState(Enum):
    """Where a runner is in its life."""

    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"


@define(eq=False)
class Runner:
    """A model in memory, or on its way in or out.

    :ivar keep_alive: seconds after the last request, `inf` for ever; sticky.
    :ivar expires_at: set when the last request ends and stale while another runs; None before the first has ended.
    :ivar users: requests that hold it, running or waiting at `turns`.
    """

    model: FakeModel
    settings: Settings
    keep_alive: float
    turns: DeferredSemaphore
    state: RunnerState = RunnerState.LOADING
    expires_at: float | None = None
    users: int = 0
    expiry: IDelayedCall | None = None

    def fits(self, settings: Settings) -> bool:
        """Whether a request with these settings can use it as it is."""
        return self.state is RunnerState.READY and self.settings == settings

    def stop_expiry(self) -> None:
        """Forget the planned unload."""
        if self.expiry is not None and self.expiry.active():
            self.expiry.cancel()
        self.expiry = None


@define(eq=False)
class _Ticket:
    """A place in the FIFO."""

    model: FakeModel
    settings: Settings
    keep_alive: float | None
    granted: Deferred[Lease]
    gone: bool = False
    loading: Deferred[None] | None = None


class Lease:
    """A request's hold on a runner; `release` it whatever happens."""

    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        self.runner = runner
        self._scheduler = scheduler
        self._running = False
        self._released = False

    async def turn(self) -> None:
        """Wait until this request may generate."""
        await self._scheduler._wait_for_turn(self.runner)  # noqa: SLF001 - one thing in two classes
        self._running = True
        self._scheduler._begun(self.runner.model)  # noqa: SLF001

    def release(self) -> None:
        """Give back the turn and the runner; a second call does nothing."""
        if self._released:
            return
        self._released = True
        if self._running:
            self._scheduler._ended(self.runner.model)  # noqa: SLF001
            self.runner.turns.release()
        self._scheduler._released(self.runner)  # noqa: SLF001


class Scheduler:
    """The one scheduler of a FakeOllama.

    :ivar loads: every load started; `overlaps`: every time two worker generations ran at once.
    :ivar aborted_loads: loads whose client left before they ended.
    :ivar leaked: clients that left while they waited in the FIFO: Ollama never notices, and keeps their sockets.
    :ivar max_waiting: the most generations that ever waited at a semaphore at once.
    """

    def __init__(
        self,
        clock: IReactorTime,
        *,
        slots: int = 1,
        max_queue: int = 512,
        parallel: int = 1,
        unload_time: float = 0.03,
        complain: Callable[[str], object] = sys.stderr.write,
    ) -> None:
        self._clock = clock
        self._slots = slots
        self._max_queue = max_queue
        self._parallel = parallel
        self._unload_time = unload_time
        self._complain = complain
        self._runners: dict[str, Runner] = {}
        self._fifo: deque[_Ticket] = deque()
        self._serving = False
        self._changes: list[Deferred[None]] = []
        self._generating: list[str] = []
        self._waiting = 0
        self.loads: list[Load] = []
        self.overlaps: list[Overlap] = []
        self.aborted_loads = 0
        self.leaked = 0
        self.max_waiting = 0

    # -- what requests ask for ---------------------------------------------------------------------------------------

    async def lease(self, model: FakeModel, settings: Settings, keep_alive: float | None) -> Lease:
        """Hold a runner of `model`, loaded if need be.  Cancelling is the client's leaving.

        :raise Busy: the FIFO is full.
        """
        while self._is_loading(model.blob):
            await self._change()
        runner = self._runners.get(model.blob)
        if runner is not None and runner.fits(settings):
            return self._use(runner, keep_alive)
        if len(self._fifo) >= self._max_queue:
            raise Busy
        ticket = _Ticket(model, settings, keep_alive, Deferred(lambda _: self._left(ticket)))
        self._fifo.append(ticket)
        self._serve_fifo()
        return await ticket.granted

    def expire(self, model: FakeModel) -> None:
        """An unload request: passed over while loading, kept for later while busy."""
        runner = self._runners.get(model.blob)
        if runner is not None and runner.state is RunnerState.READY:
            runner.expires_at = self._clock.seconds()
            self._retire(runner)

    def resident(self) -> Iterable[tuple[Runner, float]]:
        """The loaded runners and when each expires, the latest first; a loading one is not among them."""
        now = self._clock.seconds()
        listed = [
            (runner, now + min(runner.keep_alive, FOREVER) if runner.expires_at is None else runner.expires_at)
            for runner in self._runners.values()
            if runner.state is not RunnerState.LOADING
        ]
        return sorted(listed, key=lambda pair: pair[1], reverse=True)

    @property
    def loading(self) -> bool:
        """Whether a load is in progress."""
        return any(runner.state is RunnerState.LOADING for runner in self._runners.values())

    @property
    def queued(self) -> int:
        """How many places of the FIFO are taken, the clients that left included."""
        return len(self._fifo)

    @property
    def generating(self) -> tuple[str, ...]:
        """The worker models generating now."""
        return tuple(self._generating)

    async def loaded(self) -> None:
        """Wait until no load is in progress."""
        while self.loading:
            await self._change()

    # -- the FIFO ----------------------------------------------------------------------------------------------------

    def _serve_fifo(self) -> None:
        if not self._serving:
            self._serving = True
            ensureDeferred(self._serve()).addErrback(lambda failure: _log.failure("the FIFO ended", failure))

    async def _serve(self) -> None:
        while self._fifo:
            ticket = self._fifo.popleft()
            if not ticket.gone:
                await self._serve_one(ticket)
        self._serving = False

    async def _serve_one(self, ticket: _Ticket) -> None:
        """Head of the line: everybody behind waits for whatever this one waits for."""
        while True:
            runner = self._runners.get(ticket.model.blob)
            if runner is not None and runner.fits(ticket.settings):
                if not ticket.gone:
                    ticket.granted.callback(self._use(runner, ticket.keep_alive))
                return
            if runner is None and len(self._runners) < self._slots:
                break
            self._retire(runner or self._victim())
            await self._change()
        # A client that left while its turn was being prepared is noticed now: its eviction has happened all the same.
        if not ticket.gone:
            await self._load(ticket)

    async def _load(self, ticket: _Ticket) -> None:
        model = ticket.model
        keep_alive = DEFAULT_KEEP_ALIVE if ticket.keep_alive is None else ticket.keep_alive
        # Embeddings are never parallel (ollama-wire §7).
        turns = DeferredSemaphore(self._parallel if model.is_worker else 1)
        runner = Runner(model, ticket.settings, keep_alive, turns)
        self._runners[model.blob] = runner
        self.loads.append(Load(self._clock.seconds(), model.name, ticket.settings))
        ticket.loading = Deferred()
        timer = self._clock.callLater(model.load_time, ticket.loading.callback, None)
        await ticket.loading
        if ticket.gone:
            timer.cancel()
            self.aborted_loads += 1
            del self._runners[model.blob]
            self._changed()
            return
        runner.state = RunnerState.READY
        lease = self._use(runner, ticket.keep_alive)
        self._changed()
        ticket.granted.callback(lease)

    def _left(self, ticket: _Ticket) -> None:
        ticket.gone = True
        if ticket in self._fifo:
            self.leaked += 1
        elif ticket.loading is not None:
            ticket.loading.callback(None)

    # -- runners -----------------------------------------------------------------------------------------------------

    def _is_loading(self, blob: str) -> bool:
        runner = self._runners.get(blob)
        return runner is not None and runner.state is RunnerState.LOADING

    def _use(self, runner: Runner, keep_alive: float | None) -> Lease:
        runner.users += 1
        runner.stop_expiry()
        if keep_alive is not None:
            runner.keep_alive = keep_alive
        return Lease(self, runner)

    def _victim(self) -> Runner:
        """Whom to evict: the idle runner with the shortest keep-alive, else of all; of equal ones the oldest.

        Ollama picks any of equal ones; the oldest is the embedder that somebody meant to pin.
        """
        return min(self._runners.values(), key=lambda runner: (runner.users > 0, runner.keep_alive))

    def _retire(self, runner: Runner) -> None:
        """Unload it, now or when its last user has gone."""
        if runner.state is not RunnerState.READY:
            return
        runner.keep_alive = 0.0
        runner.stop_expiry()
        if not runner.users:
            self._unload(runner)

    def _released(self, runner: Runner) -> None:
        runner.users -= 1
        if runner.users or runner.state is not RunnerState.READY:
            return
        runner.expires_at = self._clock.seconds() + min(runner.keep_alive, FOREVER)
        if runner.keep_alive <= 0:
            self._unload(runner)
        elif runner.keep_alive < inf:
            runner.expiry = self._clock.callLater(runner.keep_alive, self._unload, runner)

    def _unload(self, runner: Runner) -> None:
        """Stop the runner: it stays listed until its process has gone, and takes no more requests."""
        runner.state = RunnerState.UNLOADING

        def gone() -> None:
            del self._runners[runner.model.blob]
            self._changed()

        self._clock.callLater(self._unload_time, gone)

    def _change(self) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()
        self._changes.append(waiter)
        return waiter

    def _changed(self) -> None:
        """Something was loaded or unloaded: whoever waits looks again."""
        waiters, self._changes = self._changes, []
        for waiter in waiters:
            if not waiter.called:
                waiter.callback(None)

    # -- generations -------------------------------------------------------------------------------------------------

    async def _wait_for_turn(self, runner: Runner) -> None:
        waits = runner.model.is_worker and not runner.turns.tokens
        self._waiting += waits
        self.max_waiting = max(self.max_waiting, self._waiting)
        try:
            await runner.turns.acquire()
        finally:
            self._waiting -= waits

    def _begun(self, model: FakeModel) -> None:
        if not model.is_worker:
            return
        if self._generating:
            overlap = Overlap(self._clock.seconds(), (*self._generating, model.name))
            self.overlaps.append(overlap)
            self._complain(f"FakeOllama: OVERLAP of worker generations: {', '.join(overlap.models)}\n")
        self._generating.append(model.name)

    def _ended(self, model: FakeModel) -> None:
        if model.is_worker:
            self._generating.remove(model.name)
