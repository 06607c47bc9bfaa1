"""The two processes of a round: foreman, which lives several lives on one database, and FakeOllama, which lives one."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from chaos import clocked
from chaos.plan import MODELS
from chaos.wire import exchange

ROOT = Path(__file__).parents[1]

START = 60.0
"""Seconds a process has to listen after its start, and to end when asked to, on a machine with other things to do."""


class Silent(Exception):
    """A process does not do what it must, within its time."""


class Child:
    """A process whose output is read, so that no limit on its files stops its log.

    :ivar log: the lines it has printed, over all its lives.
    :ivar lives: for each start when it was, when it listened, when it was asked to end, and when and how it ended; None
        for what was not.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], listens: str, *, lines: int = 1) -> None:
        """:param listens: what stands in a line of its log once it listens, or in so many `lines`."""
        self.log: list[str] = []
        self.lives: list[dict[str, Any]] = []
        self._command = command
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FOREMAN_")}
        self._environment = {**clean, "PYTHONPATH": str(ROOT), **environment}
        self._listens = listens
        self._lines = lines
        self._process: Process | None = None
        self._listening = asyncio.Event()
        self._readers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start it; `ready` waits until it listens."""
        self._listening = asyncio.Event()
        started_at = time.time()
        self.lives.append(
            {"started_at": started_at, "ready_at": None, "asked_at": None, "ended_at": None, "status": None}
        )
        process = self._process = await asyncio.create_subprocess_exec(
            *self._command, env=self._environment, stdout=PIPE, stderr=PIPE, start_new_session=True
        )
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers = [
            asyncio.create_task(self._read(process.stdout, "")),
            asyncio.create_task(self._read(process.stderr, "stderr: ")),
            asyncio.create_task(self._watch(process, self.lives[-1])),
        ]

    async def _read(self, stream: asyncio.StreamReader, prefix: str) -> None:
        listening = 0
        while line := await stream.readline():
            self.log.append(prefix + line.decode("utf-8", "replace").rstrip("\n"))
            listening += self._listens in self.log[-1]
            if listening == self._lines and not self._listening.is_set():
                self.lives[-1]["ready_at"] = time.time()
                self._listening.set()

    async def _watch(self, process: Process, life: dict[str, Any]) -> None:
        life["status"] = await process.wait()
        life["ended_at"] = time.time()
        self._listening.set()

    async def ready(self) -> bool:
        """Wait until it listens, or has ended; whether it listens.

        :raise Silent: it does neither.
        """
        try:
            async with asyncio.timeout(START):
                await self._listening.wait()
        except TimeoutError:
            raise Silent(f"{self._command[0]} does not listen after {START} s") from None
        return self.alive

    @property
    def alive(self) -> bool:
        """Whether there is such a process."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def send(self, number: int) -> None:
        """Send it a signal, if it is there."""
        if self.alive and self._process is not None:
            self._process.send_signal(number)

    async def end(self, number: int) -> None:
        """End it by a signal and wait until it is gone.

        :raise Silent: it does not end.
        """
        assert self._process is not None
        if self.alive:
            self.lives[-1]["asked_at"] = time.time()
        self.send(number)
        try:
            async with asyncio.timeout(START):
                await asyncio.gather(*self._readers)
        except TimeoutError:
            self.send(signal.SIGCONT)
            self.send(signal.SIGKILL)
            raise Silent(f"{self._command[0]} does not end {START} s after signal {number}") from None


class Foreman(Child):
    """The real `twistd foreman`, on one port and one database.

    :ivar database: its file.
    :ivar clock: the file by which its wall clock is put off.
    """

    def __init__(self, folder: Path, target: str, settings: Mapping[str, str]) -> None:
        self.port = _free_port()
        self.database = folder / "foreman.db"
        self.clock = folder / "clock"
        clocked.write(self.clock, 0)
        environment = {"OLLAMA_URL": target, "ADDR": f"127.0.0.1:{self.port}", "DB": str(self.database), **settings}
        super().__init__(
            [sys.executable, "-m", "chaos.clocked", str(self.clock), "--nodaemon", "--pidfile=", "foreman"],
            {f"FOREMAN_{name}": value for name, value in environment.items()},
            "listens on",
        )

    def descriptors(self) -> int:
        """How many file descriptors it has."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    async def ask(self, path: str) -> dict[str, Any]:
        """The document of a page, empty if there is none to be had."""
        entry = await exchange(self.port, "GET", path)
        return entry.get("document") or {}


class Ollama(Child):
    """FakeOllama with its control routes.

    :ivar url: where it serves, in every life.
    """

    def __init__(self) -> None:
        port, self._control = _free_port(), _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._states: list[dict[str, Any]] = []
        self._turn = asyncio.Lock()
        spec = ";".join(f"{name},{made}" for name, made in MODELS.items())
        options = {"--models": spec, "--slots": "2", "--port": str(port), "--control-port": str(self._control)}
        command = [sys.executable, "-m", "foreman.ollama.fake", *chain(*options.items())]
        super().__init__(command, {}, "http://", lines=2)

    async def die(self, seconds: float) -> None:
        """Cut off everybody, note what it has seen, and be killed; be back after so many seconds, remembering nothing.

        :raise Silent: it does not answer, end or listen.
        """
        async with self._turn:
            await self._ask("POST", "refuse")
            await self._ask("POST", "cut")
            self._states.append(await self._ask("GET", "state?bodies=1"))
            await self.end(signal.SIGKILL)
            await asyncio.sleep(seconds)
            await self.start()
            await self.ready()

    async def refuse(self, seconds: float) -> None:
        """Do not listen for so many seconds; nor be killed meanwhile: who comes back from that listens.

        :raise Silent: it does not answer.
        """
        async with self._turn:
            await self._ask("POST", "refuse")
            await asyncio.sleep(seconds)
            await self._ask("POST", "accept")

    async def seen(self) -> dict[str, Any]:
        """What it has seen in all its lives: `requests`, `loads`.

        :raise Silent: there was no answer.
        """
        states = [*self._states, await self.control("GET", "state?bodies=1")]
        return {what: [thing for state in states for thing in state[what]] for what in ("requests", "loads")}

    async def control(self, method: str, path: str, document: Any = None) -> Any:
        """Ask its control routes, once it is there.

        :raise Silent: there was no answer.
        """
        async with self._turn:
            return await self._ask(method, path, document)

    async def _ask(self, method: str, path: str, document: Any = None) -> Any:
        port = self._control
        body = b"" if document is None else json.dumps(document).encode()
        entry = await exchange(port, method, f"/_fake/{path}", body)
        if entry["end"] != "whole" or entry["status"] != 200:
            raise Silent(f"FakeOllama: {method} {path}: {entry}")
        return entry["document"]


def _free_port() -> int:
    """A port that is free now, below those that the system gives to others meanwhile."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
