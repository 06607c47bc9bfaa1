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

from foreman.errors import TargetError
from foreman.job import CLIENT_LEFT, Artifact, ErrorCode, Job, JobError, JobState, NewJob, Runner, Submission
from foreman.ollama import requests
from foreman.ollama.exchange import Flow, Head
from foreman.ollama.inventory import Inventory
from foreman.ollama.requests import Inference, KeepAlive
from foreman.ollama.routes import match
from foreman.ollama.target import Target
from foreman.test.engine_target import End, ScriptedTarget
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


# -- what the test knows of a job ------------------------------------------------------------------------------------

ARROWS = {
    "queued": {"loading", "failed"},
    "loading": {"working", "queued", "failed"},
    "working": {"done", "queued", "failed"},
    "done": set(),
    "failed": set(),
}
OVER = ("done", "failed")
RUNNING = ("loading", "working")
FOR_EVER = 10**15


@define
class Row:
    """What the list knows of a job.

    :ivar moves: its states so far; `orphaned`: starts in a row that found it running.
    :ivar left: and `cancels`, `deletes`: its caller has asked for that.
    :ivar never: its caller has been told that it will not run any more.
    :ivar warm: and what follows: of the try in hand.
    """

    seq: int
    id: str
    sync: bool
    name: str
    runner: Runner
    told: bool = False
    expires_at: int = FOR_EVER
    timeout: float = MAX_RUN
    state: str = "queued"
    attempt: int = 0
    failures: int = 0
    orphaned: int = 0
    not_before: int = 0
    code: str | None = None
    moves: list[str] = field(factory=lambda: ["queued"])
    delivered: int = 0
    left: bool = False
    cancels: bool = False
    deletes: bool = False
    never: bool = False
    warm: bool = False
    load: str | None = None
    began: float = 0.0
    renewed: bool = False
    cut: bool = False
    outcome: End | None = None
    due: int = 0
    paused: bool = False

    def become(self, state: str) -> None:
        """Move."""
        self.state = state
        self.moves.append(state)

    def charge(self) -> str:
        """One failure more; what becomes of it."""
        self.failures += 1
        return "failed" if self.failures >= MAX_ATTEMPTS else "queued"

    @property
    def is_over_at_the_target(self) -> bool:
        """Its try has ended, and that is not written."""
        return self.state in RUNNING and (self.cut or self.outcome is not None)


@frozen
class Look:
    """What the worker went by when it asked for a job."""

    now: int
    seconds: float
    resident: Runner | None
    warm: bool
    aside: frozenset[Runner]
