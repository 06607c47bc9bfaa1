"""What the target has and whether it is there: the poller, the probe, and the last good answers.

Theory of operation.  The house's tick drives everything; no timer of its own.  While the target is up, `/api/version`,
`/api/tags` and `/api/ps` are polled together every poll interval and whenever a name is missing, on fresh connections,
since a pooled one may have died with the target's sleep.  A poll that fails is confirmed by a probe before the target
is called down.  While it is down it is probed: every second when jobs wait, else with doubling up to the poll interval.
When it answers, `on_up` is called first, so that the drain goes on at once, and the poll follows.

Last good answers are kept by their path, in memory and through `AnswerShelf` in the database, so that a restart while
the laptop sleeps still answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, Protocol, cast

import orjson
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from foreman.detach import detach
from foreman.errors import TargetError, Unavailable
from foreman.logs import make_logger
from foreman.ollama.listings import KeptAnswer, Model, Resident, read_models, read_residents
from foreman.ollama.names import normalise
from foreman.ollama.target import Reply, Target
from foreman.tick import Tick

POLL_TIMEOUT = 10.0
"""Seconds for each call of a poll."""

PROBE_TIMEOUT = 0.9
"""Seconds for one probe: less than a beat, so that each beat of the tick can start a probe of its own."""

SHELF_LIMIT = 1000
"""Answers kept in memory; the oldest goes first."""


class TargetState(StrEnum):
    """Whether the target can be used; the value is the wire name."""

    UP = "up"
    DOWN = "down"
    WEDGED = "wedged"


class AnswerShelf(Protocol):
    """Where answers outlive a restart (`foreman.work.store.Store`)."""

    async def keep(self, key: str, value: bytes) -> None:
        """Remember `value` under `key`."""

    async def kept(self, key: str) -> tuple[bytes, int] | None:
        """What was remembered under `key`, and when in milliseconds since the epoch."""


class Inventory:
    """The poller: models, residents, up or down.

    :ivar up: whether the target answers.
    :ivar wedged: it answers, but no job gets through; the worker's to say.
    :ivar down_since: `clock.seconds()` when it went down; meaningless while it is up.
    :ivar models: the last list of models by normalised name, None until there was one.
    :ivar residents: the last list of residents; `residents_at`: when it was asked for, by the clock.
    :ivar version: the target's version, empty until known.
    :ivar last_poll: milliseconds since the epoch of the last answered poll, None if there was none.
    :ivar last_error: what the last failed poll said, None after a good one.
    :ivar polls_answered: polls so far that reached the target; `polls_failed`: that did not.
    :ivar on_up: called, in order, whenever the target comes back; the worker's wake-up stands first.
    :ivar on_poll: called after each poll that the target answered.
    :ivar on_models: called after each list of models, whoever asked for it, the one kept from the last life included.
    :ivar jobs_waiting: asked at each beat while the target is down.
    """

    _log = make_logger()

    def __init__(
        self,
        *,
        target: Target,
        tick: Tick,
        clock: IReactorTime,
        now_ms: Callable[[], int],
        poll_interval: float,
        shelf: AnswerShelf,
    ) -> None:
        self._target = target
        self._tick = tick
        self._clock = clock
        self._now_ms = now_ms
        self._poll_interval = poll_interval
        self._shelf = shelf
        self.up = False
        self.wedged = False
        self.down_since = clock.seconds()
        self.models: Mapping[str, Model] | None = None
        self.residents: tuple[Resident, ...] = ()
        self.residents_at = -math.inf
        self.version = ""
        self.last_poll: int | None = None
        self.last_error: str | None = None
        self.polls_answered = 0
        self.polls_failed = 0
        self.on_up: list[Callable[[], None]] = []
        self.on_poll: list[Callable[[], None]] = []
        self.on_models: list[Callable[[Mapping[str, Model]], None]] = []
        self.jobs_waiting: Callable[[], bool] = lambda: False
        self._in_vram: set[str] = set()
        self._fell_back: set[str] = set()
        self._answers: dict[str, KeptAnswer] = {}
        self._next = 0.0  # clock.seconds() of the next poll or probe
        self._probe_wait = 1.0
        self._polling: Deferred[Any] | None = None
        self._waiters: list[Deferred[bool]] = []  # for the next poll
        self._probing: Deferred[Any] | None = None
        self._unsubscribe: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Read the kept answers and begin to watch; the first poll runs beside."""
        for path in ("/api/tags", "/api/version"):
            kept = await self._shelf.kept(path)
            if kept is not None:
                self._answers[path] = KeptAnswer.from_bytes(*kept)
        self._learn_models(self._answers.get("/api/tags"))
        self._learn_version(self._answers.get("/api/version"))
        self._unsubscribe = self._tick.subscribe(self._beat)
        self._beat(slept=False)

    async def stop(self) -> None:
        """Watch no more."""
        self._unsubscribe()
        for task in (self._polling, self._probing):
            if task is not None:
                task.cancel()

    # -- what it knows -------------------------------------------------------------------------------------------

    @property
    def state(self) -> TargetState:
        """The target's state as operators see it."""
        if not self.up:
            return TargetState.DOWN
        return TargetState.WEDGED if self.wedged else TargetState.UP

    def find(self, name: str) -> Model | None:
        """The model of that name, in any of its spellings, by the last list."""
        return None if self.models is None else self.models.get(normalise(name))

    async def find_now(self, name: str) -> Model | None:
        """The same, but a miss polls the target once, now; None means that the target has no such model.

        :raise Unavailable: the target cannot be asked.
        """
        model = self.find(name)
        if model is None:
            if not (self.up and await self.refresh()):
                raise Unavailable("The target's models are not known now", retry_after=5)
            model = self.find(name)
        return model

    def is_listed(self, key: str) -> bool:
        """Whether the model of that key was resident at the last look."""
        return any(resident.is_model(key) for resident in self.residents)

    # -- answers kept --------------------------------------------------------------------------------------------

    def learn(self, path: str, reply: Reply, *, durable: bool = True) -> None:
        """Keep a good answer, whoever asked for it; `durable` ones outlive a restart."""
        if reply.status != 200:
            return
        answer = KeptAnswer(reply.body, reply.header(b"content-type") or b"application/json", self._now_ms())
        before = self._answers.pop(path, None)
        self._answers[path] = answer
        if len(self._answers) > SHELF_LIMIT:
            del self._answers[next(iter(self._answers))]
        if path == "/api/tags":
            self._learn_models(answer)
        elif path == "/api/version":
            self._learn_version(answer)
        if durable and (before is None or before.body != answer.body):
            detach(self._shelf.keep(path, answer.to_bytes())).addErrback(
                lambda failure: self._log.warn("Could not keep {path}: {error}", path=path, error=failure.value)
            )

    async def kept(self, path: str) -> KeptAnswer | None:
        """The last good answer to `path`, None if there never was one."""
        answer = self._answers.get(path)
        if answer is None and (stored := await self._shelf.kept(path)) is not None:
            answer = self._answers[path] = KeptAnswer.from_bytes(*stored)
        return answer

    def _learn_models(self, answer: KeptAnswer | None) -> None:
        if answer is None:
            return
        try:
            models = read_models(answer.body)
        except (ValueError, KeyError, TypeError) as error:
            self._log.warn("The target's list of models cannot be read: {error}", error=error)
            return
        self.models = models
        for told in self.on_models:
            told(models)

    def _learn_version(self, answer: KeptAnswer | None) -> None:
        if answer is not None:
            try:
                self.version = str(orjson.loads(answer.body)["version"])
            except (ValueError, KeyError, TypeError) as error:
                self._log.warn("The target's version cannot be read: {error}", error=error)

    # -- watching ------------------------------------------------------------------------------------------------

    def unreachable(self, error: Exception) -> None:
        """Somebody could not reach the target: it is down from now on, and probed."""
        if self.up or self.last_error is None:  # or it never was up, and this is the first that is known
            self._log.warn("The target is down: {error}", error=error)
        self.last_error = str(error)
        if self.up:
            self.up = False
            self.down_since = self._clock.seconds()
            self._probe_wait = 1.0
            self._next = 0.0

    async def refresh(self) -> bool:
        """Poll, beginning now; those who ask during a poll share the one after it.

        :return: whether the list of models was read.  Never raises for the target's sake.
        """
        waiter: Deferred[bool] = Deferred()
        self._waiters.append(waiter)
        if self._polling is None:
            self._start_poll()
        return await waiter

    def _start_poll(self) -> None:
        waiters, self._waiters = self._waiters, []
        self._polling = Deferred.fromCoroutine(self._poll())
        self._polling.addBoth(self._polled, waiters)

    def _polled(self, result: bool | Failure, waiters: list[Deferred[bool]]) -> None:
        self._polling = None
        if isinstance(result, Failure):
            _unless_cancelled(result)
        for waiter in waiters:
            if not waiter.called:
                waiter.callback(result is True)
        if self._waiters and self._polling is None:
            self._start_poll()

    def _beat(self, slept: bool) -> None:
        now = self._clock.seconds()
        if slept:
            self._next = now
        if self.up:
            if now >= self._next and self._polling is None:
                self._next = now + self._poll_interval
                detach(self.refresh())
        elif self._probing is None and (now >= self._next or self.jobs_waiting()):
            self._next = now + self._probe_wait
            self._probe_wait = min(self._probe_wait * 2, self._poll_interval)
            self._probe(None)

    def suspect(self, error: Exception) -> None:
        """A call could not reach the target: if a probe cannot either, it is down."""
        if self._probing is None:
            self._probe(error)

    def _probe(self, doubt: Exception | None) -> None:
        """Ask whether the target is there, on a connection of its own, and take note."""

        def there(_: Reply) -> None:
            self._probing = None
            self._came_up()

        def away(failure: Failure) -> None:
            failure.trap(TargetError)
            self._probing = None
            self.unreachable(doubt or cast(TargetError, failure.value))

        self._probing = Deferred.fromCoroutine(self._target.version(PROBE_TIMEOUT))
        self._probing.addCallbacks(there, away).addErrback(_unless_cancelled)

    def _came_up(self) -> None:
        if self.up:
            return
        self.up = True
        self._log.info("The target is up")
        for told in self.on_up:
            told()
        self._next = self._clock.seconds() + self._poll_interval
        detach(self.refresh())

    async def _poll(self) -> bool:
        try:
            version = await self._target.version(POLL_TIMEOUT)
        except TargetError as error:
            # Slow is not down: only a probe tells.
            if not await self._target.probe(timeout=PROBE_TIMEOUT):
                self.polls_failed += 1
                self.unreachable(error)
                return False
        else:
            self.learn("/api/version", version)
        self._came_up()
        self.polls_answered += 1
        self.last_poll = self._now_ms()
        self.last_error = None
        try:
            models = await self._list("/api/tags")
            asked = self._clock.seconds()
            residents = await self._list("/api/ps")
        except TargetError as error:
            self.unreachable(error)
            return False
        if residents is not None:
            self.see_residents(residents, asked)
        for told in self.on_poll:
            told()
        return models is not None and models.status == 200

    async def _list(self, path: str) -> Reply | None:
        """Ask for a list; None if the target is there but slow, as `/api/ps` may be during a load.

        :raise TargetError: it is there no more.
        """
        try:
            reply = await self._target.call(b"GET", path.encode(), timeout=POLL_TIMEOUT, fresh=True)
        except TargetError as error:
            if not await self._target.probe(timeout=PROBE_TIMEOUT):
                raise
            self.last_error = f"{path}: {error}"
            return None
        self.learn(path, reply, durable=path != "/api/ps")
        return reply

    def see_residents(self, reply: Reply, asked: float) -> None:
        """Take note of an `/api/ps` answer to a request of that time."""
        try:
            self.residents, self.residents_at = read_residents(reply.body), asked
        except (ValueError, KeyError, TypeError) as error:
            self._log.warn("The target's list of residents cannot be read: {error}", error=error)
            return
        for resident in self.residents:
            whole = 0 < resident.size <= resident.size_vram
            if whole:
                self._in_vram.add(resident.name)
                self._fell_back.discard(resident.name)
            elif resident.name in self._in_vram and resident.name not in self._fell_back:
                self._fell_back.add(resident.name)
                self._log.warn("{model} runs on the CPU, in whole or in part; before, it did not", model=resident.name)

    def warnings(self) -> Iterable[str]:
        """What `/healthz` should warn of: models that lost the GPU, as happens when a laptop wakes."""
        return [
            f"{resident.name} has {resident.size_vram} of {resident.size} bytes in video memory; before, it had all"
            for resident in self.residents
            if resident.name in self._fell_back
        ]


def _unless_cancelled(failure: Failure) -> None:
    """Log what only a fault of foreman's own can have caused."""
    if failure.check(CancelledError) is None:
        Inventory._log.failure("Watching the target met a fault of foreman's own", failure=failure)  # noqa: SLF001
