"""Which runner the target holds for foreman, and bringing it the next one: the load shield and keep_alive.

The load shield: a runner is loaded by a request of foreman's own, without a prompt, on a connection that no client can
cut, so that nobody's timeout aborts a load (Ollama aborts a load whose first client leaves).  Whatever worker model is
in memory is unloaded by name, and seen gone, before another is loaded: with two slots Ollama would else evict the
pinned embedder as readily as the old worker.

keep_alive: Ollama keeps the last value it was given when a request names none, so bodies are never edited.  A job that
names a shorter one than foreman's, while more work of its runner waits, is followed *while it runs* by a load request
with foreman's value (`renew`); what its client asked for stays owed, and is paid when that runner's queue is empty
(`settle`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater

from foreman.errors import TargetError
from foreman.job import Runner
from foreman.logs import make_logger
from foreman.ollama.inventory import Inventory
from foreman.ollama.listings import Resident
from foreman.ollama.names import is_cloud, normalise
from foreman.ollama.replies import error_text
from foreman.ollama.requests import KeepAlive
from foreman.ollama.routes import Kind
from foreman.ollama.target import Target
from foreman.work import outcome
from foreman.work.swaps import Swaps

WARM_FOR = 2.0
"""Seconds after foreman's own last generation for which its runner is taken to be there without a load request."""

RENEW_AFTER = 0.03
"""Seconds after a request has gone out at which the target surely has it, so that a renewal comes second."""

CLEAR_TIMEOUT = 10.0
"""Seconds within which the target's memory must be seen empty when it is given back."""

UNLOAD_AGAIN = 5.0
"""Seconds after which an unload request is repeated: Ollama ignores one that comes while the model loads."""

SMALL_CALL = 10.0
"""Seconds for a call that Ollama answers in milliseconds."""


@frozen(kw_only=True)
class Load:
    """What it takes to load a job's runner.

    :ivar name: the model as the job names it; `kind` decides between `/api/generate` and `/api/embed`.
    :ivar fields: the load-time options and `shift` as they stand in a body, such as `{"options": {"num_ctx": 512}}`.
    :ivar keep_alive: the job's own, None if it names none.
    """

    runner: Runner
    name: str
    kind: Kind
    fields: Mapping[str, Any]
    keep_alive: KeepAlive | None


@frozen
class _Debt:
    """A client's keep_alive that foreman has overridden and still has to apply."""

    load: Load
    keep_alive: KeepAlive


class Residency:
    """The runner that the target holds, as far as foreman knows.

    :ivar resident_name: the model as its last job named it; means nothing while `resident` is None.
    :ivar swaps: the loads that were paid, and those that the order of work has saved.
    """

    _log = make_logger()

    def __init__(
        self,
        *,
        target: Target,
        inventory: Inventory,
        clock: IReactorTime,
        keep_alive: KeepAlive,
        load_timeout: float,
        embedder: str | None,
    ) -> None:
        self._target = target
        self._inventory = inventory
        self._clock = clock
        self._keep_alive = keep_alive
        self._load_timeout = load_timeout
        self._embedder = None if embedder is None else normalise(embedder)
        self._resident: Runner | None = None
        self.resident_name: str | None = None
        self.swaps = Swaps()
        self._warm_until = 0.0
        self._debt: _Debt | None = None
        self._loading = False
        self._loaded_at = -math.inf
        inventory.on_poll.append(self._polled)

    # -- what is resident ----------------------------------------------------------------------------------------

    @property
    def resident(self) -> Runner | None:
        """The runner of foreman's last generation while the target still lists its model, else None."""
        return None if self._resident is None else self.known(self._resident)

    def known(self, runner: Runner) -> Runner:
        """A runner as the queue calls it now: one that had a name for want of a list has a digest with the list."""
        model = (self._inventory.models or {}).get(runner.model)
        return runner if model is None else Runner(model.key, runner.options)

    def is_warm(self) -> bool:
        """Whether the resident runner needs no load request now."""
        return self._resident is not None and self._clock.seconds() < self._warm_until

    def disturbed(self) -> None:
        """Something was carried that may have unloaded the resident."""
        self._resident = None
        self._warm_until = 0.0
        self._debt = None

    def _polled(self) -> None:
        # During a load the target lists nothing, which says nothing, also if that is heard only after it.
        if self._loading or self._inventory.residents_at < self._loaded_at:
            return
        if self.resident is not None and not self._inventory.is_listed(self.resident.model):
            self.disturbed()

    def ran(self, load: Load, *, well: bool, renewed: bool) -> None:
        """The generation has ended, if not `well` perhaps its runner too.

        Unless `renewed`, the keep_alive the job named itself rules now.  FOREMAN_KEEP_ALIVE=0 cannot be given with a
        load, which it would make an unload; it is owed instead.
        """
        if self.resident != self.known(load.runner):
            return  # disturbed meanwhile
        if load.keep_alive is None and self._keep_alive.seconds == 0:
            self._debt = self._debt or _Debt(load, self._keep_alive)
        elif load.keep_alive is not None and not renewed:
            self._debt = None
        lasting = renewed or load.keep_alive is None or load.keep_alive >= self._keep_alive
        self._warm_until = self._clock.seconds() + WARM_FOR if well and lasting else 0.0

    # -- loading -------------------------------------------------------------------------------------------------

    async def ensure(self, load: Load) -> None:
        """Have that runner resident.

        :raise TargetError: it could not be loaded; `Answered` carries Ollama's own status and text.
        """
        self._loading = True
        try:
            if self.resident != self.known(load.runner):
                if not await self._make_room(load):
                    self.swaps.load(self.known(load.runner))
                self._debt = None
            self._warm_until = 0.0
            self._resident = None
            keep_alive = load.keep_alive or self._keep_alive
            await self._request(load, keep_alive if keep_alive.seconds > 0 else None, self._load_timeout)
            self._resident, self.resident_name = load.runner, load.name
            self._loaded_at = self._clock.seconds()
        finally:
            self._loading = False

    async def renew(self, load: Load) -> bool:
        """Make the runner outlive its job's own shorter keep_alive; the job is running.  True if it will."""
        assert load.keep_alive is not None  # noqa: S101 (see `must_renew`)
        lasting = self._keep_alive if self._keep_alive.seconds > 0 else KeepAlive(seconds=300.0, wire=300)
        try:
            await self._request(load, lasting, SMALL_CALL)
        except TargetError as error:
            self._log.warn("Could not renew the keep_alive: {error}", error=error, model=load.name)
            return False
        self._debt = _Debt(load, load.keep_alive)
        return True

    def must_renew(self, load: Load) -> bool:
        """Whether the job's own keep_alive would let the runner go before foreman's."""
        return load.keep_alive is not None and load.keep_alive < self._keep_alive

    def owes(self) -> Runner | None:
        """The runner whose client's keep_alive is still to be applied."""
        return None if self._debt is None else self.known(self._debt.load.runner)

    async def settle(self, *, may_load: bool) -> None:
        """Apply the keep_alive that is owed; one that is not 0 takes a load request, which must find its runner."""
        debt, self._debt = self._debt, None
        if debt is None:
            return
        self._warm_until = 0.0
        try:
            if debt.keep_alive.seconds == 0:
                await self._unload(debt.load.name, SMALL_CALL)
                self._resident = None
            elif may_load and self.resident == self.known(debt.load.runner):
                await self._request(debt.load, debt.keep_alive, SMALL_CALL)
        except TargetError as error:
            self._log.warn("Could not apply a client's keep_alive: {error}", error=error, model=debt.load.name)

    async def _request(self, load: Load, keep_alive: KeepAlive | None, timeout: float) -> None:  # noqa: ASYNC109
        path = b"/api/embed" if load.kind is Kind.EMBED else b"/api/generate"
        body = {"model": load.name, **load.fields}
        if keep_alive is not None:
            body["keep_alive"] = keep_alive.wire
        reply = await self._target.call(b"POST", path, json=body, timeout=timeout, probing=True, fresh=True)
        if reply.status >= 400:
            raise outcome.of_body(reply.status, reply.body, reply.retry_after)

    # -- unloading -----------------------------------------------------------------------------------------------

    async def clear(self) -> bool:
        """Unload whatever the target holds, the embedder too; whether `/api/ps` then shows that all of it is gone."""
        self._debt = None
        self.disturbed()
        try:
            left = await self._unload_all(lambda _: True, CLEAR_TIMEOUT)
        except TargetError as error:
            self._log.warn("The target's memory could not be freed: {error}", error=error)
            return False
        for resident in left:
            self._log.warn("{model} does not unload", model=resident.name)
        return not left

    async def _make_room(self, load: Load) -> bool:
        """Unload every worker model but the wanted one, and see them gone, for at most the load timeout.

        :return: whether the wanted one is there.
        """
        for other in await self._unload_all(lambda r: self._is_other(r, load), self._load_timeout):
            self._log.warn("{model} does not unload; loading beside it", model=other.name)
        return any(resident.is_model(load.runner.model) for resident in self._inventory.residents)

    async def _unload_all(self, unwanted: Callable[[Resident], bool], within: float) -> list[Resident]:
        """Unload the unwanted and see them gone; gives those that are still there after so many seconds.

        A model that was deleted stays in memory until it expires, and its name can no longer be used to unload it: it
        is not waited for.
        """
        deadline = self._clock.seconds() + within
        asked: dict[str, float] = {}
        deleted: set[str] = set()
        pause = 0.02
        while others := [resident for resident in await self._residents(within) if unwanted(resident)]:
            now = self._clock.seconds()
            if now > deadline or deleted.issuperset(other.name for other in others):
                return others
            for other in others:
                if other.name not in deleted and now >= asked.get(other.name, 0.0):
                    asked[other.name] = now + UNLOAD_AGAIN
                    if not await self._unload(other.name, within):
                        deleted.add(other.name)
            await deferLater(self._clock, pause)
            pause = min(pause * 2, 0.5)
        return []

    def is_beside(self, name: str) -> bool:
        """Whether a model takes nobody's place: it runs elsewhere, or is the pinned embedder."""
        return is_cloud(name) or (self._embedder is not None and normalise(name) == self._embedder)

    def _is_other(self, resident: Resident, load: Load) -> bool:
        wanted, name = self.known(load.runner), normalise(resident.name)
        if self.is_beside(name):
            return False
        if not resident.is_model(wanted.model) and name != normalise(load.name):
            return True
        # The wanted model with other load-time options is in the way too, if foreman knows that it is.
        return self.resident is not None and self.resident.model == wanted.model and self.resident != wanted

    async def _residents(self, timeout: float) -> tuple[Resident, ...]:  # noqa: ASYNC109 (of silence, while probing)
        """What the target holds now; a target that is busy loading may take its time to say it."""
        asked = self._clock.seconds()
        reply = await self._target.call(b"GET", b"/api/ps", timeout=timeout, probing=True, fresh=True)
        if reply.status != 200:
            raise outcome.of_body(reply.status, reply.body, reply.retry_after)
        self._inventory.see_residents(reply, asked)
        return self._inventory.residents

    async def _unload(self, name: str, timeout: float) -> bool:  # noqa: ASYNC109
        """Ask the target to unload a model; False if it has no model of that name (any more)."""
        body = {"model": name, "keep_alive": 0}
        reply = await self._target.call(b"POST", b"/api/generate", json=body, timeout=timeout, probing=True, fresh=True)
        if reply.status not in (200, 404):
            self._log.warn("{model} was not unloaded: {error}", model=name, error=error_text(reply.body))
        return reply.status != 404


@define
class Renewal:
    """The renewal of one running job's keep_alive: sent at most once, when it is due and there is reason for it.

    :ivar wanted: whether more work of the job's runner is queued now.
    """

    _residency: Residency
    _load: Load
    _wanted: Callable[[], bool]
    _clock: IReactorTime
    _due: bool = False
    _timer: IDelayedCall | None = None
    _request: Deferred[bool] | None = None

    def start(self) -> None:
        """The job's request goes out now."""
        if self._residency.must_renew(self._load):
            self._timer = self._clock.callLater(RENEW_AFTER, self.due)

    def due(self) -> None:
        """The target has the job's request: a renewal would come after it."""
        if self._timer is not None:
            self._due = True
            self.consider()

    def consider(self) -> None:
        """Send the renewal, if work is waiting that needs it."""
        if self._due and self._request is None and self._wanted():
            self._request = Deferred.fromCoroutine(self._residency.renew(self._load))

    async def end(self, *, ran: bool) -> bool:
        """The job's request is over; True if its runner outlives it.  Unless it `ran`, nothing is waited for."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._request is None:
            return False
        if not ran:
            self._request.addErrback(lambda _: False)
            self._request.cancel()
        return await self._request
