"""FakeOllama: the stand-in itself, its routes, its listener and its sleep."""

# mypy: disallow-untyped-calls=False
# Twisted's HTTP classes are hardly typed.
from __future__ import annotations

import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

from klein import Klein
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IListeningPort, IReactorTime
from twisted.internet.task import deferLater
from twisted.web.http import datetimeToString
from zope.interface import implementer

from .admin import Admin
from .catalogue import Catalogue
from .dialects import DIED
from .embedding import Embedding
from .exchange import Channel, Exchange, Front, Record
from .faults import BEFORE, Fault, Faults
from .inference import BUSY, Inference, refuse
from .models import FakeModel, default_models
from .reading import Refusal
from .scheduler import Load, Overlap, Scheduler
from .v1 import V1
from .writing import nanoseconds, rfc3339

_FROZEN = 1795224078.017214264
_LONG = 1e9
_KEPT = 100_000
"""Records kept; older ones are forgotten."""

Handler = Callable[..., Awaitable[None]]
Refuser = Callable[[Exchange, Refusal], None]


@implementer(IReactorTime)
class _SleepyTime:
    """A clock whose timers stand still during sleep and go on with what was left of them.

    It is only a view: the calls it gives out are the real clock's own.
    """

    def __init__(self, time: IReactorTime) -> None:
        self._time = time
        self._calls: list[IDelayedCall] = []
        self._held: list[tuple[IDelayedCall, float]] | None = None
        self._tidy_at = 1024

    def seconds(self) -> float:
        """The real clock's time; it goes on."""
        return self._time.seconds()

    def callLater(self, delay: float, callable: Callable[..., Any], *args: object, **kw: object) -> IDelayedCall:  # noqa: A002, N802 - the interface's
        """Schedule a call; during sleep it is held at once."""
        call = self._time.callLater(delay, callable, *args, **kw)
        self._calls.append(call)
        if self._held is not None:
            self._held.append(self._hold(call))
        if len(self._calls) > self._tidy_at:
            self._calls = self.getDelayedCalls()
            self._tidy_at = max(1024, 2 * len(self._calls))
        return call

    def getDelayedCalls(self) -> list[IDelayedCall]:  # noqa: N802 - the interface's
        """The calls that are still to come."""
        return [call for call in self._calls if call.active()]

    def sleep(self) -> None:
        """Hold every timer."""
        if self._held is None:
            self._held = [self._hold(call) for call in self.getDelayedCalls()]

    def wake(self) -> None:
        """Let the timers go on."""
        held, self._held = self._held or [], None
        for call, left in held:
            if call.active():
                call.reset(left)

    def _hold(self, call: IDelayedCall) -> tuple[IDelayedCall, float]:
        """Put it off; what was left of it."""
        left = max(0.0, call.getTime() - self._time.seconds())
        call.delay(_LONG)
        return call, left


class FakeOllama:
    """A faithful stand-in for Ollama 0.32.15 on loopback.

    :param reactor: what it listens on; `clock`: its time, the reactor's by default.
    :param models: what `/api/tags` lists; the models of the recorded traffic by default.
    :param slots: OLLAMA_MAX_LOADED_MODELS; `max_queue`: OLLAMA_MAX_QUEUE; `parallel`: OLLAMA_NUM_PARALLEL.
    :param gpu: whether `/api/ps` says that models are in video memory; may be set at any time.
    :param frozen: times and durations in answers are constants, so that equal requests get equal bytes.
    :param pullable: models that `/api/pull` can fetch.
    :ivar requests: a Record for each request, the oldest first.
    :ivar faults: what is planned to go wrong.
    :ivar max_at_once: the most worker generations that were ever there at once, waiting ones included.
    """

    def __init__(
        self,
        reactor: Any,
        models: Iterable[FakeModel] | None = None,
        *,
        clock: IReactorTime | None = None,
        slots: int = 1,
        max_queue: int = 512,
        parallel: int = 1,
        gpu: bool = False,
        frozen: bool = False,
        version: str = "0.32.15",
        unload_time: float = 0.03,
        pullable: Iterable[FakeModel] = (),
    ) -> None:
        self._reactor = reactor
        self.clock = _SleepyTime(clock or reactor)
        self.models = {model.name: model for model in (default_models() if models is None else models)}
        self.pullable = {model.name: model for model in pullable}
        self.blobs: set[str] = set()
        self.gpu = gpu
        self.frozen = frozen
        self.version = version
        self.scheduler = Scheduler(
            self.clock, slots=slots, max_queue=max_queue, parallel=parallel, unload_time=unload_time
        )
        self.faults = Faults()
        self.requests: deque[Record] = deque(maxlen=_KEPT)
        self.connections: set[Channel] = set()
        self.at_once = 0
        self.max_at_once = 0
        self._port: IListeningPort | None = None
        self._number = 0
        self._kept: socket.socket | None = None  # has the port while nobody listens there
        self._asleep = False
        self._date: tuple[int, bytes] = (0, b"")
        self._methods: dict[str, tuple[str, ...]] = {}
        self._refusers: dict[str, Refuser] = {}
        self._app = Klein()
        self._add_routes()
        self._front = Front(self, self._app.resource(), reactor)
        self._resource = self._front.resource

    # -- routes ------------------------------------------------------------------------------------------------------

    def _add_routes(self) -> None:
        inference = Inference(self)
        embedding = Embedding(self, inference)
        for family in (inference, embedding, V1(self, inference, embedding), Catalogue(self), Admin(self)):
            family.add_routes(self._route)

    def _route(
        self,
        path: str,
        handler: Handler,
        *methods: str,
        refuse: Refuser = refuse,
    ) -> None:
        """Serve `path`; a last segment `<name>` is given to the handler."""

        async def guarded(exchange: Exchange, **names: str) -> None:
            try:
                await handler(exchange, **names)
            except Refusal as refusal:
                refuse(exchange, refusal)

        known = self._methods.get(path, ())
        self._methods[path] = tuple(sorted({*known, *methods}))
        self._refusers[path] = refuse
        self._app.route(path, methods=list(methods), endpoint=f"{path} {methods}")(guarded)

    def methods_of(self, path: str) -> tuple[str, ...] | None:
        """The methods a path takes; None for a path without a route."""
        methods = self._methods.get(path)
        if methods is None and not path.endswith("/"):
            return self._methods.get(path.rpartition("/")[0] + "/<name>")
        return methods

    def serve(self, exchange: Exchange) -> None:
        """A request that has a route: meet its fault, or be handled."""
        rule = self.faults.take(exchange.route_path, exchange.body)
        exchange.record.fault = None if rule is None else rule.fault
        if rule is None or rule.fault not in BEFORE:
            exchange.rule = rule
            self._handle(exchange)
        elif rule.fault is Fault.DROP:
            exchange.cut()
        elif rule.fault is Fault.ERROR_500:
            self._refuse(exchange, Refusal(DIED, 500))
        elif rule.fault is Fault.BUSY_503:
            self._refuse(exchange, Refusal(BUSY, 503))
        elif rule.fault is Fault.WAIT_FOR_LOAD:
            waiting = Deferred.fromCoroutine(self.scheduler.loaded())
            exchange.notifyFinish().addErrback(lambda _: waiting.cancel())
            waiting.addCallbacks(lambda _: self._handle(exchange), lambda failure: failure.trap(CancelledError))

    def _handle(self, exchange: Exchange) -> None:
        exchange.prepath = []
        exchange.postpath = exchange.route_path.encode()[1:].split(b"/")
        exchange.render(self._resource)

    def _refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        self._refusers.get(exchange.route_path, refuse)(exchange, refusal)

    # -- the wire's times --------------------------------------------------------------------------------------------

    def stamp(self) -> str:
        """`created_at` for now."""
        return rfc3339(_FROZEN if self.frozen else self.clock.seconds())

    def unix_time(self) -> int:
        """`created` for now."""
        return int(_FROZEN if self.frozen else self.clock.seconds())

    def duration(self, seconds: float) -> int:
        """A duration in nanoseconds."""
        return 1_000_000 if self.frozen else nanoseconds(seconds)

    def http_date(self) -> bytes:
        """The Date header, made once a second."""
        now = int(self.clock.seconds())
        if self._date[0] != now:
            self._date = (now, cast(bytes, datetimeToString(now)))
        return self._date[1]

    def newest_first(self) -> list[FakeModel]:
        """The models in the order of `/api/tags`."""
        return sorted(self.models.values(), key=lambda model: model.modified_at, reverse=True)

    # -- what tests look at ------------------------------------------------------------------------------------------

    @property
    def loads(self) -> list[Load]:
        """Every load started."""
        return self.scheduler.loads

    @property
    def overlaps(self) -> list[Overlap]:
        """Every time two worker generations ran at once."""
        return self.scheduler.overlaps

    @property
    def leaked(self) -> int:
        """Clients that left while they waited in the FIFO."""
        return self.scheduler.leaked

    @property
    def max_waiting(self) -> int:
        """The most generations that ever waited at a semaphore at once."""
        return self.scheduler.max_waiting

    # -- listening, sleeping -----------------------------------------------------------------------------------------

    async def listen(self, port: int = 0) -> int:
        """Listen on loopback; 0 picks a port, which stays the same from then on.  Returns the port."""
        self._give_back()
        self._port = self._reactor.listenTCP(port or self._number, self._front, interface="127.0.0.1")
        address: Any = self._port.getHost()
        self._number = address.port
        return self._number

    @property
    def url(self) -> str:
        """Where it listens, `http://127.0.0.1:port`."""
        return f"http://127.0.0.1:{self._number}"

    @property
    def asleep(self) -> bool:
        """Whether it sleeps."""
        return self._asleep

    async def refuse(self, *, cut: bool = True) -> None:
        """Close the listener, and with `cut` every connection: nobody is there.  `listen` undoes it."""
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
            # Bound and not listening: else the system may give it to another process, which would be taken for us.
            self._kept = socket.socket()
            self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._kept.bind(("127.0.0.1", self._number))
        if cut:
            self.cut()

    def _give_back(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    def cut(self) -> None:
        """Close every connection at once, whatever is on its way."""
        for connection in tuple(self.connections):
            connection.abort()

    def sleep(self) -> None:
        """The lid is closed: nothing is accepted, read, written or timed until `wake`."""
        if self._asleep:
            return
        self._asleep = True
        self.clock.sleep()
        if self._port is not None:
            self._port.stopReading()  # type: ignore[attr-defined]
        for connection in self.connections:
            connection.freeze()

    def wake(self) -> None:
        """Everything goes on where it stopped."""
        if not self._asleep:
            return
        self._asleep = False
        if self._port is not None:
            self._port.startReading()  # type: ignore[attr-defined]
        for connection in self.connections:
            connection.thaw()
        self.clock.wake()

    async def close(self) -> None:
        """Stop listening, close all connections, forget all timers."""
        self.wake()
        await self.refuse()
        self._give_back()
        while self.connections:
            await deferLater(self._reactor, 0)
        for call in self.clock.getDelayedCalls():
            call.cancel()
