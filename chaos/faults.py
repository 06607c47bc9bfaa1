"""The faults, by lane: what each does to whom, and how it is taken back."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from attrs import define, field

from chaos import clocked
from chaos.plan import Lanes, Span, Strike
from chaos.processes import Foreman, Ollama
from chaos.receivers import ANSWERS, REFUSES, Receiver
from chaos.wire import exchange

AGAIN = 0.3
"""Seconds between two tries of whoever ends a pause."""

TRIES = 200
"""How often that is tried: foreman may be dead, or its disk full, just then."""

INFINITY = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

INFERENCE = ("/api/chat", "/api/generate", "/v1/chat/completions", "/v1/messages", "/api/embed", "/v1/embeddings")


@define(eq=False, kw_only=True)
class Faults:
    """Strikes foreman, its target and its receivers as the plan says.

    :ivar log: what was done, from when to when.
    """

    foreman: Foreman
    ollama: Ollama
    receivers: list[Receiver]
    log: list[dict[str, Any]] = field(factory=list)

    async def run(self, strikes: Sequence[Strike]) -> None:
        """Strike as planned; those of one lane wait for each other."""
        lanes: dict[str, list[Strike]] = {lane: [] for lane in LANES}
        for strike in strikes:
            lanes[lane_of(strike.fault)].append(strike)

        async def lane(strikes: list[Strike]) -> None:
            for strike in strikes:
                await asyncio.sleep(strike.peace)
                entry: dict[str, Any] = {"fault": strike.fault, "at": time.time(), "until": None}
                self.log.append(entry)
                entry["note"] = await ACTS[strike.fault](self, strike)
                entry["until"] = time.time()

        await asyncio.gather(*map(lane, lanes.values()))

    # -- foreman ---------------------------------------------------------------------------------------------------

    async def kill(self, strike: Strike) -> str:
        """`kill -9`, some time in the dark, a new life; sometimes once more while that begins."""
        await self.foreman.end(signal.SIGKILL)
        await asyncio.sleep(strike.seconds)
        await self.foreman.start()
        if strike.chance < 0.25:
            await asyncio.sleep(4 * strike.chance)
            await self.foreman.end(signal.SIGKILL)
            await self.foreman.start()
        await self.foreman.ready()
        return ""

    async def terminate(self, strike: Strike) -> str:
        """SIGTERM, and a new life."""
        await self.foreman.end(signal.SIGTERM)
        await asyncio.sleep(strike.seconds)
        await self.foreman.start()
        await self.foreman.ready()
        return ""

    async def freeze(self, strike: Strike) -> str:
        """The machine of foreman sleeps."""
        self.foreman.send(signal.SIGSTOP)
        await asyncio.sleep(strike.seconds)
        self.foreman.send(signal.SIGCONT)
        return ""

    async def fill(self, strike: Strike) -> str:
        """The disk is full: no file may become longer than the database's log is."""
        log = self.foreman.database.with_name("foreman.db-wal")
        return await self._limited(resource.RLIMIT_FSIZE, log.stat().st_size if log.exists() else 0, strike.seconds)

    async def protect(self, strike: Strike) -> str:
        """The file can be read only: no write to any file succeeds."""
        return await self._limited(resource.RLIMIT_FSIZE, 0, strike.seconds)

    async def starve(self, strike: Strike) -> str:
        """There are hardly any file descriptors left."""
        open_ones = self.foreman.descriptors()
        return await self._limited(resource.RLIMIT_NOFILE, open_ones + int(strike.chance * 6), strike.seconds)

    async def _limited(self, what: int, limit: int, seconds: float) -> str:
        pid = self.foreman.pid
        before = resource.prlimit(pid, what)
        resource.prlimit(pid, what, (limit, before[1]))
        await asyncio.sleep(seconds)
        resource.prlimit(pid, what, before)
        return str(limit)

    async def lock(self, strike: Strike) -> str:
        """Somebody else holds the database's write lock."""
        with closing(sqlite3.connect(self.foreman.database, timeout=5, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            await asyncio.sleep(strike.seconds)
            connection.execute("ROLLBACK")
        return ""

    async def jump(self, strike: Strike) -> str:
        """The wall clock of foreman jumps, and mostly jumps back later."""
        seconds = JUMPS[int(strike.chance * len(JUMPS))]
        clocked.write(self.foreman.clock, seconds)
        await asyncio.sleep(strike.seconds)
        back = seconds > 0 or strike.chance % 0.1 < 0.05
        if back:
            clocked.write(self.foreman.clock, 0)
        return f"{seconds} s" if back else f"{seconds} s for good"

    # -- the target --------------------------------------------------------------------------------------------------

    async def sleep(self, strike: Strike) -> str:
        """The laptop sleeps."""
        self.ollama.send(signal.SIGSTOP)
        await asyncio.sleep(strike.seconds)
        self.ollama.send(signal.SIGCONT)
        return ""

    async def refuse(self, strike: Strike) -> str:
        """Nobody listens."""
        await self.ollama.refuse(strike.seconds)
        return ""

    async def cut(self, _: Strike) -> str:
        """Every connection is closed."""
        await self.ollama.control("POST", "cut")
        return ""

    async def storm(self, strike: Strike) -> str:
        """503 to everything that is work."""
        for path in INFERENCE:
            await self.ollama.control("POST", "faults", {"path": path, "fault": "busy-503", "times": None})
        await asyncio.sleep(strike.seconds)
        await self.ollama.control("DELETE", "faults")
        return ""

    async def fault(self, strike: Strike, *, kind: str, load: bool) -> str:
        """The next request, or load, of any sort meets FakeOllama's fault of that name."""
        for path in INFERENCE:
            rule = {"path": path, "fault": kind, "load": load, "after": int(1 + strike.chance * 8), "times": 1}
            await self.ollama.control("POST", "faults", rule)
        await asyncio.sleep(strike.seconds)
        await self.ollama.control("DELETE", "faults")
        return ""

    async def kill_target(self, strike: Strike) -> str:
        """The target's process dies, and another is there later."""
        await self.ollama.die(strike.seconds)
        return ""

    # -- its owner ---------------------------------------------------------------------------------------------------

    async def pause(self, strike: Strike) -> str:
        """The owner of the machine wants it back for a while; sometimes models are to be unloaded."""
        port, order = self.foreman.port, {"for": "1h", "unload": strike.chance < 0.5}
        await exchange(port, "POST", "/queue/pause", json.dumps(order).encode())
        await asyncio.sleep(strike.seconds)
        for tries in range(1, 1 + TRIES):
            if (await exchange(port, "POST", "/queue/resume")).get("status") == 200:
                return f"ended at once: {tries == 1}"
            await asyncio.sleep(AGAIN)
        return "never ended"

    # -- the receivers -----------------------------------------------------------------------------------------------

    async def mislead(self, strike: Strike, *, mood: str) -> str:
        """A receiver answers as it should not."""
        receiver = self._faulty(strike)
        receiver.mood = mood
        await asyncio.sleep(strike.seconds)
        receiver.mood = "well"
        return receiver.url

    async def die(self, strike: Strike) -> str:
        """A receiver is gone."""
        receiver = self._faulty(strike)
        await receiver.stop()
        await asyncio.sleep(strike.seconds)
        await receiver.start()
        return receiver.url

    def _faulty(self, strike: Strike) -> Receiver:
        return self.receivers[1 + int(strike.chance * (len(self.receivers) - 1))]


JUMPS = (-86_400, -3600, -60, -3, 3, 60, 3600, 86_400)
"""Seconds by which a clock jumps."""

Lane = Mapping[str, Span]

FOREMAN: Lane = {
    "kill -9": Span(0.0, 1.0, 6.0),
    "SIGTERM": Span(0.0, 0.5),
    "foreman sleeps": Span(0.5, 8.0, 0.5),
    "disk full": Span(0.5, 3.0),
    "database read-only": Span(0.5, 3.0),
    "database locked": Span(0.5, 3.0),
    "no descriptors": Span(0.5, 3.0),
    "clock jumps": Span(0.5, 4.0),
}
TARGET: Lane = {
    "target sleeps": Span(0.5, 9.0),
    "target refuses": Span(0.5, 6.0),
    "target's connections cut": Span(0.0, 0.0),
    "503 storm": Span(0.5, 3.0),
    "hangs before headers": Span(1.0, 4.0),
    "hangs mid-stream": Span(1.0, 4.0),
    "drops before headers": Span(1.0, 4.0),
    "cuts mid-line": Span(1.0, 4.0),
    "truncates a stream": Span(1.0, 4.0),
    "error mid-stream": Span(1.0, 4.0),
    "ends without done": Span(1.0, 4.0),
    "500": Span(1.0, 4.0),
    "load fails": Span(1.0, 4.0),
    "load hangs": Span(1.0, 4.0),
    "load dropped": Span(1.0, 4.0),
}
HOOKS: Lane = {
    **{f"receiver {mood}": Span(1.0, 5.0) for mood in ANSWERS if mood not in ("well", *REFUSES)},
    "receiver hangs": Span(1.0, 5.0),
    "receiver dies": Span(1.0, 5.0),
}
DEATHS: Lane = {"target killed": Span(0.2, 4.0)}
OWNER: Lane = {"paused": Span(0.5, 4.0)}
REFUSALS: Lane = {f"receiver {mood}": Span(0.5, 2.0) for mood in REFUSES}
LANES: Lanes = {
    "foreman": FOREMAN,
    "target": TARGET,
    "receivers": HOOKS,
    "deaths": DEATHS,
    "owner": OWNER,
    "refusals": REFUSALS,
}
"""Every fault there is, by lane."""


def lane_of(fault: str) -> str:
    """The lane that a fault belongs to."""
    return next(lane for lane, faults in LANES.items() if fault in faults)


def _kind(kind: str, *, load: bool = False) -> Callable[[Faults, Strike], Awaitable[str]]:
    return partial(Faults.fault, kind=kind, load=load)


ACTS: Mapping[str, Callable[[Faults, Strike], Awaitable[str]]] = {
    "kill -9": Faults.kill,
    "SIGTERM": Faults.terminate,
    "foreman sleeps": Faults.freeze,
    "disk full": Faults.fill,
    "database read-only": Faults.protect,
    "database locked": Faults.lock,
    "no descriptors": Faults.starve,
    "clock jumps": Faults.jump,
    "target sleeps": Faults.sleep,
    "target refuses": Faults.refuse,
    "target's connections cut": Faults.cut,
    "target killed": Faults.kill_target,
    "paused": Faults.pause,
    "503 storm": Faults.storm,
    "hangs before headers": _kind("hang"),
    "hangs mid-stream": _kind("hang-mid-stream"),
    "drops before headers": _kind("drop"),
    "cuts mid-line": _kind("cut-mid-line"),
    "truncates a stream": _kind("cut"),
    "error mid-stream": _kind("error-line"),
    "ends without done": _kind("no-done"),
    "500": _kind("error-500"),
    "load fails": _kind("error-500", load=True),
    "load hangs": _kind("hang", load=True),
    "load dropped": _kind("drop", load=True),
    **{f"receiver {mood}": partial(Faults.mislead, mood=mood) for mood in (*ANSWERS, "hangs") if mood != "well"},
    "receiver dies": Faults.die,
}
"""Who strikes."""
