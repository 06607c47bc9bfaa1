"""What tests draw from, and threads that run when the test says so."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from foreman.job import NewJob, Runner, Submission
from foreman.work.database import SCHEMA, Database

T = TypeVar("T")

RUNNERS = (
    Runner("qwen", "{}"),
    Runner("qwen", '{"num_ctx":8192}'),
    Runner("gemma", "{}"),
    Runner("phi", '{"num_ctx":2048}'),
)
"""Few enough to meet often; two share a model."""

runners = st.sampled_from(RUNNERS)


def new_job(
    number: int,
    *,
    runner: Runner = RUNNERS[0],
    sync: bool = False,
    created_at: int = 1,
    submission: Submission = Submission(body=b"{}"),  # noqa: B008 - a constant
) -> NewJob:
    """A job with an id of its own."""
    return NewJob(
        id=f"{number:026d}",
        endpoint="/api/chat",
        model=f"{runner.model}:latest",
        runner=runner,
        size=300,
        created_at=created_at,
        submission=None if sync else submission,
    )


class _Reactor:
    """As much of a reactor as adbapi and the database touch."""

    _now = 0.0

    def callWhenRunning(self, call: Callable[[], object]) -> None:  # noqa: N802
        call()

    def addSystemEventTrigger(self, *_args: object) -> object:  # noqa: N802
        return self

    def removeSystemEventTrigger(self, _trigger: object) -> None:  # noqa: N802
        pass

    def callFromThread(self, call: Callable[..., object], *args: object) -> None:  # noqa: N802
        call(*args)

    def seconds(self) -> float:
        return self._now

    def callLater(self, seconds: float, call: Callable[..., object]) -> None:  # noqa: N802
        self._now += seconds  # there are no turns here
        call()


class _Threads:
    """A thread pool whose calls wait until somebody steps."""

    def __init__(self, calls: deque[Callable[[], None]]) -> None:
        self._calls = calls

    def callInThreadWithCallback(  # noqa: N802
        self, on_result: Callable[[bool, object], None], call: Callable[..., object], *args: object, **kw: object
    ) -> None:
        def run() -> None:
            try:
                result = call(*args, **kw)
            except Exception:  # noqa: BLE001 - as a thread pool does
                on_result(False, Failure())
            else:
                on_result(True, result)

        self._calls.append(run)

    def stop(self) -> None:
        pass


class SteppedDatabase(Database):
    """The database itself over real files, but without threads: `step` runs what the next thread would."""

    def __init__(self, path: Path, schema: Path = SCHEMA) -> None:
        super().__init__(path, _Reactor(), schema)
        self._path = path
        self._calls: deque[Callable[[], None]] = deque()

    def _pool(self, pragmas: Sequence[str]) -> Any:
        pool = super()._pool(pragmas)
        pool.threadpool.stop()
        pool.threadpool = _Threads(self._calls)
        return pool

    def step(self) -> None:
        """Run the call that has waited longest."""
        self._calls.popleft()()

    def finish(self, work: Awaitable[T]) -> T:
        """Step until `work` has its result, and return or raise it."""
        outcome: list[Any] = []
        start(work).addBoth(outcome.append)
        while not outcome:
            self.step()
        if isinstance(outcome[0], Failure):
            outcome[0].raiseException()
        return cast(T, outcome[0])

    def snapshot(self, into: Path) -> Path:
        """What a `kill -9` now would leave, as files in a new folder; gives the database's path there."""
        into.mkdir()
        for file in self._path.parent.glob(f"{self._path.name}*"):
            shutil.copy(file, into)
        return into / self._path.name

    def drop(self) -> None:
        """Let go of the files without an orderly close."""
        self._release()


def start(work: Awaitable[T]) -> Deferred[T]:
    """Begin `work` and go on."""

    async def run() -> T:
        return await work

    return Deferred.fromCoroutine(run())


def failure_of(work: Deferred[Any]) -> BaseException:
    """What `work` has failed with, by now."""
    failures: list[Failure] = []
    work.addErrback(failures.append)
    return cast(BaseException, failures[0].value)
