"""The Ollama face: inference through the queue, metadata live or as last seen, the rest carried.

Routing is `foreman.ollama.routes`' table over the path as it came, not Klein's: Ollama's own redirects, 404 and 405 are
the target's to give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET
from ulid import ULID

from foreman.detach import detach
from foreman.errors import Forbidden, Lost, NotReachable, TargetError, Unavailable
from foreman.job import ErrorCode, JobError, JobState, NewJob, Runner
from foreman.logs import make_logger
from foreman.ollama import requests
from foreman.ollama.embedder import Embedder
from foreman.ollama.exchange import Sink
from foreman.ollama.inventory import POLL_TIMEOUT, Inventory
from foreman.ollama.listings import KeptAnswer
from foreman.ollama.names import is_cloud, is_valid, normalise
from foreman.ollama.requests import Inference, Unreadable
from foreman.ollama.routes import Kind, Route, match, redirect_page
from foreman.ollama.target import Target
from foreman.tick import Tick
from foreman.web import asks, respond_async
from foreman.web.errors import respond_error
from foreman.web.site import Request
from foreman.web.streams import Outflow, UnendedOutflow, WaitingCaller
from foreman.work.moves import Move
from foreman.work.pause import Pause
from foreman.work.residency import Residency
from foreman.work.store import Store
from foreman.work.switchboard import Errand, Switchboard

LIVE_BUDGET = 1.0
"""Seconds that a live answer to a metadata question may take before the last good one is given."""

UNKNOWN_RUNNER = Runner("")
"""The runner of a body that only Ollama can read."""


@frozen(kw_only=True)
class Limits:
    """How long things may take, in seconds; the settings of the same names."""

    answer_timeout: float
    sync_wait: float
    hold_line: float


@define(eq=False)
class NativeFace:
    """Every path that is not foreman's own."""

    store: Store
    target: Target
    inventory: Inventory
    residency: Residency
    switchboard: Switchboard
    pause: Pause
    tick: Tick
    clock: IReactorTime
    now_ms: Callable[[], int]
    limits: Limits
    model_admin: bool
    embedder: Embedder | None
    _unsubscribe: Callable[[], None] = field(init=False, default=lambda: None)
    _stopping: bool = field(init=False, default=False)

    _log = make_logger()

    def start(self) -> None:
        """Begin to watch over those who wait."""
        self._unsubscribe = self.tick.subscribe(self._beat)

    def stop(self) -> None:
        """Tell everyone who still waits in the queue that foreman stops, and those who come from now on."""
        self._stopping = True
        self._unsubscribe()
        for caller in self.switchboard:
            if isinstance(caller, WaitingCaller) and caller.waits:
                self._give_up(caller, _stopping(), ErrorCode.INTERRUPTED)

    def render(self, request: Request) -> int:
        """Answer one request; the path is the one that came, percent-decoded by `match`."""
        served = Deferred.fromCoroutine(self._serve(request, match(request.method, request.uri)))
        served.addErrback(_answer_failure, request)
        return NOT_DONE_YET

    async def _serve(self, request: Request, route: Route) -> None:
        if self._stopping:
            raise _stopping()
        match route.kind:
            case Kind.QUEUE | Kind.EMBED:
                await self._infer(request, route)
            case Kind.ROOT | Kind.VERSION | Kind.TAGS | Kind.PS | Kind.MODELS:
                _, _, name = route.path.partition("/v1/models/")
                key = f"/v1/models/{normalise(name)}" if name else route.path
                await self._live_or_kept(request, route, key, durable=route.kind is not Kind.PS)
            case Kind.SHOW:
                await self._show(request, route)
            case Kind.ADMIN:
                await self._administer(request, route)
            case Kind.REDIRECT:
                _redirect(request, route)
            case Kind.CARRY:
                await self._carry(request, route)

    # -- carried -------------------------------------------------------------------------------------------------

    async def _carry(self, request: Request, route: Route) -> None:
        """Send the request on as it is; the target's answer is the answer."""
        outflow = Outflow(request, self.tick)
        try:
            try:
                await self._exchange(request, route, outflow, outflow)
            except Lost as error:
                # An idle connection had died.  What changes nothing is asked again.
                if not error.reused or (request.method not in (b"GET", b"HEAD") and route.kind is not Kind.EMBED):
                    raise
                await self._exchange(request, route, outflow, outflow, fresh=True)
        except TargetError as error:
            if isinstance(error, NotReachable):
                self.inventory.suspect(error)
            outflow.fail(error)
        else:
            outflow.finish()

    async def _administer(self, request: Request, route: Route) -> None:
        """Carry what changes the target; its answer ends when foreman knows of the change."""
        if not self.model_admin:
            raise Forbidden(f"{route.path} changes the target; it is carried with FOREMAN_MODEL_ADMIN=on only")
        outflow = Outflow(request, self.tick)
        sink = UnendedOutflow(outflow)
        try:
            await self._exchange(request, route, outflow, sink)
        except TargetError as error:
            outflow.fail(error)
        finally:
            # Also if the client has left: what it asked for may have been done.
            self.residency.disturbed()
            await detach(self.inventory.refresh())
        sink.finish()

    async def _exchange(
        self, request: Request, route: Route, outflow: Outflow, sink: Sink, *, fresh: bool = False
    ) -> None:
        request.content.seek(0)
        exchange = Deferred.fromCoroutine(
            self.target.exchange(
                request.method,
                route.target,
                headers=_headers(request),
                body=request.content,
                sink=sink,
                first_byte=self.limits.answer_timeout,
                between=self.limits.answer_timeout,
                fresh=fresh,
            )
        )
        outflow.over.addCallback(lambda _: exchange.cancel())
        await exchange

    # -- metadata ------------------------------------------------------------------------------------------------

    async def _show(self, request: Request, route: Route) -> None:
        name = requests.plain_show(request.body())
        model = None if name is None else self.inventory.find(name)
        if model is None:
            # Unknown names and odd questions are the target's alone.
            await self._carry(request, route)
        else:
            await self._live_or_kept(request, route, f"/api/show {model.name} {model.digest}", durable=True)

    async def _live_or_kept(self, request: Request, route: Route, key: str, *, durable: bool) -> None:
        """Answer live, else with the last good answer."""
        kept = await self.inventory.kept(key)
        if kept is None and route.kind is Kind.ROOT and self.inventory.version:
            kept = KeptAnswer(b"Ollama is running", b"text/plain; charset=utf-8", self.inventory.last_poll or 0)
        # Without anything to fall back on, the target gets the time it needs.
        timeout = POLL_TIMEOUT if kept is None and self.inventory.up else LIVE_BUDGET
        try:
            reply = await self.target.call(
                request.method,
                route.target,
                body=request.body(),
                headers=_headers(request),
                timeout=timeout,
                fresh=True,  # an idle connection may have died with the target's sleep
            )
        except TargetError as error:
            self.inventory.suspect(error)
            if kept is None:
                raise Unavailable(f"The target does not answer: {error}", retry_after=5) from error
            age = b"%d" % max(0, (self.now_ms() - kept.at) // 1000)
            headers = ((b"content-type", kept.content_type), (b"age", age), (b"x-foreman-degraded", b"true"))
            _answer(request, 200, headers, kept.body)
        else:
            if request.method != b"HEAD":
                self.inventory.learn(key, reply, durable=durable)
            _answer(request, reply.status, reply.headers, reply.body)

    # -- inference -----------------------------------------------------------------------------------------------

    async def _infer(self, request: Request, route: Route) -> None:
        body = request.body()
        submits = asks.preferences(request).respond_async
        key = asks.key_of(request, body) if submits else None
        if key is not None and (repeated := await self.store.repeated(key)) is not None:
            respond_async.answer(request, repeated)
            return
        content_type, encoding = request.getHeader("content-type"), request.getHeader("content-encoding")
        read = requests.read(route.path, body, content_type, encoding, query=request.uri.partition(b"?")[2])
        if isinstance(read, Unreadable):
            if read.empty:
                await self._carry(request, route)
            else:
                await self._queue(request, route, body, None, UNKNOWN_RUNNER)
            return
        if await self._passes(request, route, read):
            return
        runner = await self._runner(read)
        if runner is None:
            await self._carry(request, route)
        elif request.channel is None:
            return  # the client has left
        elif submits:
            if self._stopping:
                raise _stopping()  # while its model was looked up
            new = respond_async.new_job(request, route, body, read, runner, now=self.now_ms())
            respond_async.answer(request, await self.store.accept_once([new], key))
        else:
            await self._queue(request, route, body, read, runner)

    async def _passes(self, request: Request, route: Route, read: Inference) -> bool:
        """Answer a call that never queues; False if this is none."""
        if not is_valid(read.model) or is_cloud(read.model):
            await self._carry(request, route)
        elif route.kind is Kind.EMBED and self.embedder is not None and self.embedder.is_named(read.model):
            await self._embed(request, route, read, self.embedder)
        elif read.is_unload:
            self.residency.disturbed()
            await self._carry(request, route)
            self.residency.disturbed()
        else:
            return False
        return True

    async def _runner(self, read: Inference) -> Runner | None:
        """The runner that a call needs, None if the target has no such model."""
        try:
            model = await self.inventory.find_now(read.model)
        except Unavailable:
            # Without a list nothing is known to be unknown: it waits its turn.
            return Runner(normalise(read.model), read.options)
        return None if model is None else Runner(model.key, read.options)

    async def _embed(self, request: Request, route: Route, read: Inference, embedder: Embedder) -> None:
        """Carry a call to the pinned embedder when its turn comes: no queue, no row."""
        self.pause.check()
        if not self.inventory.up:
            raise Unavailable("The target cannot be reached", retry_after=5)
        turn = embedder.turns.acquire()
        request.notifyFinish().addErrback(lambda _: turn.cancel())
        try:
            await turn
        except CancelledError:
            return  # the client has left
        try:
            self.pause.check()
            await self._carry(request, route)
        finally:
            embedder.turns.release()
            if read.keep_alive is not None and read.keep_alive.seconds < inf:
                embedder.pin()  # Ollama keeps the last keep_alive it was given

    async def _queue(
        self, request: Request, route: Route, body: bytes, inference: Inference | None, runner: Runner
    ) -> None:
        """Make a row of the call and let the worker answer it."""
        if self._stopping:
            raise _stopping()  # while its model was looked up
        self.pause.check()
        errand = Errand(
            route=route, path=route.target, headers=_headers(request), body=request.body, inference=inference
        )
        job_id = str(ULID())
        caller = WaitingCaller(request, self.tick, errand, since=self.clock.seconds(), job_id=job_id)
        caller.on_left = lambda: self._end_row(caller)
        new = NewJob(
            id=job_id,
            endpoint=route.path,
            model="" if inference is None else inference.model,
            runner=runner,
            size=len(body),
            created_at=self.now_ms(),
        )
        self.switchboard.connect(job_id, caller)
        try:
            await detach(self._admit(new, caller))
            await caller.over
        finally:
            self.switchboard.disconnect(job_id)

    async def _admit(self, new: NewJob, caller: WaitingCaller) -> None:
        """Commit the row, to the end, whether or not the client still waits."""
        try:
            [job] = await self.store.accept([new])
        except Exception as error:  # noqa: BLE001 (the client is told, whatever it was)
            caller.fail(error)
            return
        if caller.job is None:
            caller.job = job
        if caller.closed:
            self._end_row(caller)

    def _give_up(self, caller: WaitingCaller, error: Exception, code: ErrorCode) -> None:
        """Answer a waiting client with an error, and end its row."""
        caller.parting = JobError(code, str(error))
        caller.fail(error)
        self._end_row(caller)

    def _end_row(self, caller: WaitingCaller) -> None:
        """End the row of a caller that takes nothing more, unless it is at the target: that is the worker's."""
        if caller.job is None:
            return  # not accepted yet; `_admit` will see that it is closed
        detach(self.store.abandon(caller.job.seq, caller.parting)).addErrback(
            lambda failure: self._log.warn("A row was not ended: {error}", error=failure.value)
        )

    def moved(self, move: Move) -> None:
        """A row that nobody works on has ended: somebody cancelled or deleted it; for `Store.on_move`."""
        job = move.job
        if job.sync and job.error is not None and move.was in (JobState.QUEUED, JobState.LOADING):
            caller = self.switchboard.find(job.id)
            if isinstance(caller, WaitingCaller) and caller.waits:
                caller.fail(TargetError(job.error.message))

    # -- while they wait -----------------------------------------------------------------------------------------

    def _beat(self, slept: bool) -> None:
        now, limits = self.clock.seconds(), self.limits
        down_for = 0.0 if self.inventory.up else now - self.inventory.down_since
        for caller in self.switchboard:
            if not isinstance(caller, WaitingCaller):
                continue
            if self.pause.active and caller.waits:
                self._give_up(caller, self.pause.refusal(), ErrorCode.CANCELLED)
                continue
            waited = now - caller.since
            if min(down_for, waited) >= limits.sync_wait and caller.waits:
                error = Unavailable("The target cannot be reached", retry_after=30)
                self._give_up(caller, error, ErrorCode.TIMEOUT)
            elif limits.hold_line and waited >= limits.hold_line:
                caller.hold_line(now)


def _stopping() -> Unavailable:
    return Unavailable("foreman is stopping", retry_after=5)


def _answer_failure(failure: Failure, request: Request) -> None:
    respond_error(request, failure.value or RuntimeError("a failure without a value"))


def _headers(request: Request) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name, value) for name, values in request.requestHeaders.getAllRawHeaders() for value in values)


def _answer(request: Request, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
    """Give a whole answer as the target gave it."""
    if request.finished or request.channel is None:
        return  # the client has left
    request.setResponseCode(status)
    for name, value in headers:
        request.responseHeaders.addRawHeader(name, value)
    request.write(body)
    request.finish()


def _redirect(request: Request, route: Route) -> None:
    """Send the client to the clean path, as Ollama does."""
    body = redirect_page(route) if request.method == b"GET" else b""
    headers = [(b"location", route.redirect or b""), (b"content-length", b"%d" % len(body))]
    if body:
        headers.append((b"content-type", b"text/html; charset=utf-8"))
    _answer(request, route.redirect_status, headers, body)
