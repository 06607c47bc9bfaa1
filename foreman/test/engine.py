"""The engine without a house around it: store and worker over real SQLite, stepped, with a target that obeys the test.

`Engine` is one life of foreman between a start and a crash.  Nothing happens by itself in it: a database call runs when
it is stepped, time passes when it is told to, and loads and generations stay unanswered until the test answers them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import orjson
from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from foreman.errors import Lost, NotReachable, Stalled, TargetError, Truncated
from foreman.job import CLIENT_LEFT, Artifact, ErrorCode, Job, JobError, JobState, NewJob, Submission
from foreman.ollama import requests
from foreman.ollama.exchange import Flow, Head, Sink
from foreman.ollama.inventory import Inventory
from foreman.ollama.requests import Inference, KeepAlive
from foreman.ollama.routes import match
from foreman.ollama.target import Reply, Target
from foreman.test.strategies import SteppedDatabase, start
from foreman.tick import Tick
from foreman.work.attempt import Patience
from foreman.work.deliveries import Deliveries
from foreman.work.expiry import Expiry
from foreman.work.moves import Move
from foreman.work.pause import Pause
from foreman.work.residency import Residency
from foreman.work.roster import Roster
from foreman.work.store import Store
from foreman.work.switchboard import Errand, Switchboard
from foreman.work.tails import Tails
from foreman.work.worker import Worker

T = TypeVar("T")

MAX_ATTEMPTS = 3
MAX_RUN = 600.0
GRACE = 5.0
ROUTE = match(b"POST", b"/api/chat")

DIGESTS = {"qwen:latest": "1" * 64, "gemma:latest": "2" * 64, "phi:latest": "3" * 64}
"""The models that the target has."""


class Disk(SteppedDatabase):
    """A database whose file system can refuse to write, and which can die before it has told what it wrote."""

    @property
    def waiting(self) -> bool:
        """Whether there is anything to step."""
        return bool(self._calls)

    def refuse(self) -> None:
        """Run the next call while nothing can be written."""
        self._read_only(1)
        self.step()
        self._read_only(0)

    def _read_only(self, value: int) -> None:
        for connection in self._writer.connections.values():
            connection.execute(f"PRAGMA query_only = {value}")

    def step_unheard(self) -> None:
        """Run the next call, and let nobody know."""
        self._reactor.callFromThread = lambda *_: None
        self.step()


# -- the target ------------------------------------------------------------------------------------------------------


@define(eq=False)
class Ask:
    """A request that the target has taken, to be answered by the test.

    :ivar sink: takes the answer's bytes; None of a small call, which is answered in one piece.
    :ivar cut: foreman has closed the connection.
    """

    body: dict[str, Any]
    sink: Sink | None
    on_cut: Callable[[Ask], None]
    begun: bool = False
    cut: bool = False
    done: Deferred[Any] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.done = Deferred(self._cut)

    def _cut(self, _: object) -> None:
        self.cut = True
        self.on_cut(self)

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.body["model"])

    @property
    def options(self) -> str:
        """The load-time options, as a runner has them."""
        read = requests.read("/api/chat", orjson.dumps(self.body))
        assert isinstance(read, Inference)
        return read.options

    @property
    def prompt(self) -> str:
        """The id of the job that is asked for."""
        return str(self.body["messages"][0]["content"])

    def answer(self, status: int = 200, *lines: dict[str, Any]) -> None:
        """Give an answer, or go on with it."""
        assert self.sink is not None
        if not self.begun:
            self.begun = True
            self.sink.begin(_head(status), cast(Flow, None))
        for line in lines:
            self.sink.write(orjson.dumps(line) + b"\n")


def _head(status: int) -> Head:
    return Head(status, b"", ((b"Content-Type", b"application/x-ndjson" if status < 300 else b"application/json"),))


def _line(text: str, **more: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}, "done": False} | more


BROKEN: dict[str, Callable[[], TargetError]] = {
    "cut": lambda: Truncated("cut"),
    "lost": lambda: Lost("lost", reused=True),
    "silent": lambda: Stalled("silent", probe_answered=True),
    "asleep": lambda: Stalled("silent", probe_answered=False),
    "away": lambda: NotReachable("away"),
}
"""Ends of a request that are no answer."""


@frozen
class End:
    """What the end of a request means, by the contract."""

    code: str | None
    again: bool = False
    charged: bool = False
    unreachable: bool = False


ENDS = {
    "done": End(None),
    "incomplete": End("incomplete"),
    "400": End("invalid_request"),
    "404": End("model_not_found"),
    "error": End("target_error", again=True, charged=True),
    "500": End("target_error", again=True, charged=True),
    "503": End("target_error", again=True),
    "cut": End("target_error", again=True, charged=True),
    "lost": End("target_error", again=True),
    "silent": End("timeout", again=True, charged=True),
    "asleep": End("target_error", again=True, unreachable=True),
    "away": End("target_error", again=True, unreachable=True),
}
BEFORE_THE_HEAD = ("400", "404", "500", "503", "lost", "away")
NO_ANSWER = ("cut", "lost", "silent", "asleep", "away")
LOADS = ("ok", "ok", "ok", "404", "500", "503", "cut", "silent", "asleep", "away")


class ScriptedTarget:
    """As much of `foreman.ollama.target.Target` as the engine uses, and of an Ollama behind it.

    :ivar there: it can be reached.
    :ivar memory: the models it holds, by name, with their load-time options.
    :ivar load: the load request it has not answered; `generation`: the generation.
    :ivar on_load: and `on_generation`: told of each as it comes; `on_cut` when foreman closes it, `on_away` when
        one cannot come.
    """

    def __init__(self) -> None:
        self.there = True
        self.memory: dict[str, str] = {}
        self.load: Ask | None = None
        self.generation: Ask | None = None
        self.on_load: Callable[[Ask], None]
        self.on_generation: Callable[[Ask], None]
        self.on_cut: Callable[[Ask], None]
        self.on_unload: Callable[[str], None]
        self.on_away: Callable[[], None]

    async def probe(self, timeout: float = 1.0) -> bool:  # noqa: ASYNC109 - the signature is the target's
        """Whether it is there."""
        return self.there

    async def call(self, method: bytes, path: bytes, json: Any = None, *, probing: bool = False, **_: Any) -> Reply:
        """Small questions and unload requests are answered at once, a load request when the test says so."""
        if not self.there:
            if probing:  # the poller's are not
                self.on_away()
            raise NotReachable("away")
        match path:
            case b"/api/version":
                return _reply({"version": "1"})
            case b"/api/tags":
                return _reply({"models": [{"name": name, "digest": digest} for name, digest in DIGESTS.items()]})
            case b"/api/ps":
                return _reply({"models": [{"name": name, "digest": DIGESTS[name]} for name in self.memory]})
        assert path == b"/api/generate"
        if json.get("keep_alive") == 0:
            self.on_unload(json["model"])
            self.memory.pop(json["model"], None)
            return _reply({"done": True, "done_reason": "unload"})
        ask = Ask(json, None, self._cut)
        self.on_load(ask)
        self.load = ask
        return cast(Reply, await ask.done)

    async def exchange(self, method: bytes, path: bytes, *, body: bytes, sink: Sink, **_: Any) -> Head:
        """A generation, answered as the test says."""
        if not self.there:
            self.on_away()
            raise NotReachable("away")
        ask = Ask(orjson.loads(body), sink, self._cut)
        self.on_generation(ask)
        self.generation = ask
        return cast(Head, await ask.done)

    def _cut(self, ask: Ask) -> None:
        self._over(ask)
        self.on_cut(ask)

    def _over(self, ask: Ask) -> None:
        if ask is self.load:
            self.load = None
        if ask is self.generation:
            self.generation = None

    def forget(self) -> None:
        """All connections are gone, and who opened them."""
        self.load = self.generation = None

    # -- what the test has it do ---------------------------------------------------------------------------------

    def end_load(self, ask: Ask, how: str) -> None:
        """End a load request: `ok`, a status, or one of `BROKEN`."""
        self._over(ask)
        if how in BROKEN:
            ask.done.errback(BROKEN[how]())
        elif how == "ok":
            self.memory[ask.model] = ask.options
            ask.done.callback(_reply({"done": True, "done_reason": "load"}))
        else:
            ask.done.callback(_reply({"error": "it does not load"}, int(how)))

    def end_generation(self, ask: Ask, how: str) -> None:
        """End a generation: `done`, `incomplete`, `error` (a line of the stream), a status, or one of `BROKEN`."""
        self._over(ask)
        if how in BROKEN:
            ask.done.errback(BROKEN[how]())
            return
        match how:
            case "done":
                ask.answer(200, _line("b", done=True, done_reason="stop", eval_count=2, eval_duration=1_000_000))
            case "incomplete":
                ask.answer(200, _line("b"))
            case "error":
                ask.answer(200, {"error": "it broke"})
            case _:
                ask.answer(int(how), {"error": "it does not run"})
        ask.done.callback(_head(200 if how in ("done", "incomplete", "error") else int(how)))

    def go_on(self, ask: Ask) -> None:
        """One more line of the answer."""
        ask.answer(200, _line("a"))

    def leave(self) -> None:
        """Go away, and answer nothing that was asked."""
        self.there = False


def _reply(document: dict[str, Any], status: int = 200) -> Reply:
    return Reply(status, ((b"content-type", b"application/json"),), orjson.dumps(document))


# -- the clients of sync calls ---------------------------------------------------------------------------------------


class Client:
    """The client of a sync call (`foreman.work.switchboard.Caller`), with what `foreman.web.native` does for it.

    :ivar ended: `whole` or `failed` once it has its answer; None before, and for ever if it left.
    """

    def __init__(self, errand: Errand, abandon: Callable[[Client], None]) -> None:
        self.errand = errand
        self.job: Job | None = None
        self.begun = False
        self.closed = False
        self.parting = CLIENT_LEFT
        self.on_gone: Callable[[], None] | None = None
        self.limit: float | None = None
        self.ended: str | None = None
        self._abandon = abandon

    def begin(self, head: Head, flow: Flow) -> None:
        """The answer's head."""
        assert not self.begun
        self.begun = True

    def write(self, data: bytes) -> None:
        """The next bytes."""
        assert self.begun
        assert self.ended is None

    def finish(self) -> None:
        """The answer is whole."""
        self._end("whole")

    def fail(self, error: Exception) -> None:
        """There will be none, or no more of it."""
        if not self.closed:
            self._end("failed")

    def _end(self, how: str) -> None:
        assert self.ended is None, "a client is answered once"
        self.ended, self.closed = how, True

    def put_back(self) -> None:
        """Wait on."""
        assert not self.begun

    def keep(self, *, done: bool) -> tuple[Artifact, ...]:
        """Keep nothing."""
        return ()

    @property
    def waits(self) -> bool:
        """Whether its job is not at the target."""
        return self.on_gone is None and not self.begun and not self.closed

    def leave(self) -> None:
        """Hang up."""
        self.closed = True
        if self.on_gone is not None:
            self.on_gone()
        else:
            self._abandon(self)

    def refuse(self, code: ErrorCode) -> None:
        """Be sent away while waiting."""
        self.parting = JobError(code, "sent away")
        self._end("failed")
        self._abandon(self)


# -- foreman ---------------------------------------------------------------------------------------------------------


class Engine:
    """One life of foreman over a file.

    :ivar disk: its database; `target`: lives longer than it.
    """

    def __init__(self, path: Path, target: ScriptedTarget, now_ms: int) -> None:
        self.clock = Clock()
        self.disk = Disk(path)
        self.target = target
        self.clients: dict[str, Client] = {}
        self._born = now_ms
        self.alive = True
        self._tick = Tick(self.clock, lambda: self.now() / 1000)
        self.store = Store(self.disk, self.now, 1000, MAX_ATTEMPTS)
        self.deliveries = Deliveries(self.store, self.disk)
        self.pause = Pause(store=self.store, tick=self._tick, clock=self.clock, now_ms=self.now)
        talks = cast(Target, target)
        self.inventory = Inventory(
            target=talks, tick=self._tick, clock=self.clock, now_ms=self.now, poll_interval=30.0, shelf=self.store
        )
        self.residency = Residency(
            target=talks,
            inventory=self.inventory,
            clock=self.clock,
            keep_alive=KeepAlive(seconds=float("inf"), wire=-1),
            load_timeout=60.0,
            embedder=None,
        )
        self.inventory.on_models.append(Roster(self.store).listed)
        self.pause.unload = self.residency.clear
        self.switchboard = Switchboard()
        self.worker = Worker(
            store=self.store,
            target=talks,
            inventory=self.inventory,
            residency=self.residency,
            switchboard=self.switchboard,
            tails=Tails(),
            pause=self.pause,
            tick=self._tick,
            clock=self.clock,
            now_ms=self.now,
            random=lambda: 0.5,
            patience=Patience(
                answer_timeout=7200.0,
                stall_timeout=300.0,
                shutdown_grace=GRACE,
                max_run=MAX_RUN,
                max_result=1 << 20,
            ),
        )
        self._expiry = Expiry(store=self.store, tick=self._tick, now_ms=self.now)
        self.store.on_move.append(self._moved)

    def now(self) -> int:
        """The wall clock in milliseconds."""
        return self._born + round(self.clock.seconds() * 1000)

    # -- its life, in the order of `foreman.service` ---------------------------------------------------------------

    def open(self) -> None:
        """Start as far as the jobs of the last life are dealt with."""
        self.disk.finish(self.store.start())

    def begin(self) -> None:
        """Start the rest."""
        self._tick.start()
        self.disk.finish(self.pause.start())
        self.disk.finish(self.inventory.start())
        self.worker.start()
        self._expiry.start()

    def stop(self) -> Deferred[None]:
        """Begin to stop in an orderly way; fires when the worker is at rest."""
        for client in self.clients.values():
            if client.waits:
                client.refuse(ErrorCode.INTERRUPTED)
        return start(self.worker.stop())

    def close(self) -> None:
        """The rest of an orderly stop."""
        self.disk.finish(self._expiry.stop())
        self.disk.finish(self.inventory.stop())
        self.pause.stop()
        self._tick.stop()
        self.disk.finish(self.store.stop())
        self.alive = False

    def die(self) -> None:
        """Be killed."""
        if self.alive:
            self.disk.drop()
        self.alive = False

    # -- callers -----------------------------------------------------------------------------------------------------

    def submit(self, new: NewJob, body: bytes) -> Deferred[list[Job]]:
        """Bring a job; of a sync one a client waits."""
        if new.sync:
            read = requests.read(ROUTE.path, body)
            assert isinstance(read, Inference)
            errand = Errand(route=ROUTE, path=b"/api/chat", headers=(), body=lambda: body, inference=read)
            client = self.clients[new.id] = Client(errand, self._abandon)
            self.switchboard.connect(new.id, client)
            return start(self._admit(new, client))
        return start(self.store.accept([new]))

    async def _admit(self, new: NewJob, client: Client) -> list[Job]:
        try:
            [job] = await self.store.accept([new])
        except Exception as error:
            client.fail(error)
            raise
        if client.job is None:
            client.job = job
        if client.closed:
            self._abandon(client)
        return [job]

    def _abandon(self, client: Client) -> None:
        if client.job is not None:
            start(self.store.abandon(client.job.seq, client.parting)).addErrback(lambda _: None)

    def _moved(self, move: Move) -> None:
        client = self.clients.get(move.job.id)
        was_waiting = move.was in (JobState.QUEUED, JobState.LOADING)
        if client is not None and client.waits and move.job.error is not None and was_waiting:
            client.fail(TargetError("it has ended"))

    # -- what happens ------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Run all database calls there are."""
        while self.disk.waiting:
            self.disk.step()

    def advance(self, seconds: int, *, settling: bool) -> None:
        """Let time pass, second by second."""
        for _ in range(seconds):
            self.clock.advance(1)
            if settling:
                self.settle()

    def run(self, work: Awaitable[T]) -> T:
        """The result of a call of the store's."""
        return self.disk.finish(work)


def body_of(job_id: str, model: str, num_ctx: int | None, keep_alive: str | None) -> bytes:
    """What a job asks of the target."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": job_id}]}
    if num_ctx is not None:
        body["options"] = {"num_ctx": num_ctx}
    if keep_alive is not None:
        body["keep_alive"] = keep_alive
    return orjson.dumps(body)


def submission_of(
    body: bytes, *, told: bool = False, expires_at: int | None = None, timeout: float | None = None
) -> Submission:
    """What an async job brings."""
    webhook = "http://hooks.example/" if told else None
    return Submission(body=body, webhook=webhook, expires_at=expires_at, timeout=timeout)
