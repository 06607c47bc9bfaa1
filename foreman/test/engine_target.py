"""A target that answers when the test says so, and what its answers mean by the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import orjson
from attrs import define, field, frozen
from twisted.internet.defer import Deferred

from foreman.errors import Lost, NotReachable, Stalled, TargetError, Truncated
from foreman.ollama import requests
from foreman.ollama.exchange import Flow, Head, Sink
from foreman.ollama.requests import Inference
from foreman.ollama.target import Reply

DIGESTS = {"qwen:latest": "1" * 64, "gemma:latest": "2" * 64, "phi:latest": "3" * 64}
"""The models that the target has."""


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
    busy: bool = False


ENDS = {
    "done": End(None),
    "incomplete": End("incomplete"),
    "400": End("invalid_request"),
    "404": End("model_not_found"),
    "error": End("target_error", again=True, charged=True),
    "500": End("target_error", again=True, charged=True),
    "503": End("target_error", again=True, busy=True),
    "cut": End("target_error", again=True, charged=True),
    "lost": End("target_error", again=True),
    "silent": End("timeout", again=True, charged=True),
    "asleep": End("target_error", again=True, unreachable=True),
    "away": End("target_error", again=True, unreachable=True),
}
BEFORE_THE_HEAD = ("400", "404", "500", "503", "lost", "away")
NO_ANSWER = ("cut", "lost", "silent", "asleep", "away")
BAD_LOADS = ("404", "500", "503", "cut", "silent", "asleep", "away")


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

    async def version(self, timeout: float) -> Reply:  # noqa: ASYNC109 - the signature is the target's
        """Its version, if it is there."""
        return await self.call(b"GET", b"/api/version")

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
