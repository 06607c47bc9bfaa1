"""The pinned embedder: a small model that stays loaded beside the rotating worker, and whose calls pass at once.

It is warmed with `keep_alive: -1` when the target comes (at start-up and whenever it returns), by a request that no
client can cut.  Calls that name it need no queue and no row; at most `AT_ONCE` of them are at the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.internet.defer import Deferred, DeferredSemaphore

from foreman.detach import detach
from foreman.errors import TargetError
from foreman.logs import make_logger
from foreman.ollama.inventory import Inventory
from foreman.ollama.names import normalise
from foreman.ollama.replies import error_text
from foreman.ollama.target import Target

AT_ONCE = 16
"""Embedding calls at the target at once; further ones wait their turn."""


class Embedder:
    """The pinned embedder.

    :ivar name: as the setting has it.
    :ivar turns: one for each call that may be at the target; acquired by whoever carries one.
    """

    _log = make_logger()

    def __init__(
        self,
        *,
        name: str,
        target: Target,
        inventory: Inventory,
        load_timeout: float,
        may_load: Callable[[], bool],
    ) -> None:
        self.name = name
        self.turns = DeferredSemaphore(AT_ONCE)
        self._key = normalise(name)
        self._target = target
        self._inventory = inventory
        self._load_timeout = load_timeout
        self._may_load = may_load
        self._warming: Deferred[None] | None = None
        self._again = False
        self._resting: list[Deferred[None]] = []
        self._was_listed = False
        self._workers: frozenset[str] = frozenset()
        self._pushed_out: str | None = None
        inventory.on_up.append(self.pin)
        inventory.on_poll.append(self._polled)

    def is_named(self, model: str) -> bool:
        """Whether that name, in any of its spellings, is the embedder's."""
        return normalise(model) == self._key

    def pin(self) -> None:
        """Have it loaded for ever, beside whatever else goes on."""
        if not self._may_load():
            return
        if self._warming is None:
            self._warming = detach(self._warm())
            self._warming.addBoth(self._warmed)
        else:
            self._again = True  # what made us pin it may come after the warm-up under way

    async def at_rest(self) -> None:
        """Return when no warming is under way: what Ollama loads it does not unload."""
        if self._warming is not None:
            resting: Deferred[None] = Deferred()
            self._resting.append(resting)
            await resting

    def _warmed(self, result: object) -> object:
        self._warming = None
        if self._again:
            self._again = False
            self.pin()
        if self._warming is None:
            resting, self._resting = self._resting, []
            for rester in resting:
                rester.callback(None)
        return result

    async def _warm(self) -> None:
        body = {"model": self.name, "input": "warm", "keep_alive": -1}
        try:
            reply = await self._target.call(
                b"POST", b"/api/embed", json=body, timeout=self._load_timeout, probing=True, fresh=True
            )
        except TargetError as error:
            self._log.warn("The embedder could not be warmed: {error}", error=error, model=self.name)
            return
        if reply.status != 200:
            self._log.warn("The embedder was not loaded: {error}", error=error_text(reply.body), model=self.name)

    def _polled(self) -> None:
        residents = self._inventory.residents
        listed = any(normalise(resident.name) == self._key for resident in residents)
        workers = frozenset(r.name for r in residents if normalise(r.name) != self._key)
        if self._was_listed and not listed and workers:
            self._push(f"{', '.join(sorted(workers))} pushed the embedder {self.name} out of the target's memory")
        elif listed and not self._was_listed and self._workers and not workers:
            self._push(f"the embedder {self.name} pushed {', '.join(sorted(self._workers))} out of the target's memory")
        elif listed and workers:
            self._pushed_out = None
        self._was_listed, self._workers = listed, workers

    def _push(self, what: str) -> None:
        self._pushed_out = f"{what}; is OLLAMA_MAX_LOADED_MODELS=2 set there?"
        self._log.warn("{what}", what=self._pushed_out)

    def warnings(self) -> Iterable[str]:
        """What `/healthz` should warn of."""
        return () if self._pushed_out is None else (self._pushed_out,)
