"""Who reads along while an async job runs: what has been produced so far, then live, to any number of readers.

Nothing of a stream is kept for readers who may come: one who joins late gets what was produced so far as one line, as
the recorder has folded it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Protocol

from foreman.job import TERMINAL
from foreman.work.moves import Move

SLACK = 1024 * 1024
"""Bytes that may wait for a slow reader, beyond what had been produced when it joined, before it is cut."""


class TailSink(Protocol):
    """Where a reader's bytes go."""

    def write(self, data: bytes) -> None:
        """The next bytes: native NDJSON, not cut at lines."""

    def finish(self) -> None:
        """The attempt is over, or the job has ended without one.  Nothing comes after it."""

    def cut(self) -> None:
        """The reader has fallen too far behind.  Nothing comes after it."""


class Reader:
    """One who reads along, at its own pace."""

    def __init__(self, sink: TailSink, leave: Callable[[Reader], None]) -> None:
        self._sink = sink
        self._leave = leave
        self._paused = False
        self._ended = False
        self._waiting = bytearray()

    def pause(self) -> None:
        """Take no more for now."""
        self._paused = True

    def resume(self) -> None:
        """Take more."""
        self._paused = False
        if self._waiting:
            data, self._waiting = bytes(self._waiting), bytearray()
            self._sink.write(data)
        self._finish_if_drained()

    def leave(self) -> None:
        """Read no more; harmless when it is over."""
        self._waiting.clear()
        self._leave(self)

    def feed(self, data: bytes) -> None:
        """The next bytes, from the recorder."""
        if not self._paused:
            self._sink.write(data)
            return
        self._waiting += data
        if len(self._waiting) > SLACK:
            self.leave()
            self._sink.cut()

    def end(self) -> None:
        """There is no more, from the recorder."""
        self._ended = True
        self._leave(self)
        self._finish_if_drained()

    def _finish_if_drained(self) -> None:
        if self._ended and not self._paused and not self._waiting:
            self._ended = False
            self._sink.finish()


class Tails:
    """The readers by job id, and what is running for them."""

    def __init__(self) -> None:
        self._readers: defaultdict[str, set[Reader]] = defaultdict(set)
        self._so_far: dict[str, Callable[[], bytes]] = {}

    def join(self, job_id: str, sink: TailSink) -> Reader:
        """Read along from now on: at once what the running attempt has produced so far, as one line, then live.

        A job that waits may be joined: it is then the next attempt that is read.  For a job that is over nothing ever
        comes, so ask for its state *after* joining.
        """

        def leave(reader: Reader) -> None:
            self._readers[job_id].discard(reader)
            if not self._readers[job_id]:
                del self._readers[job_id]

        reader = Reader(sink, leave)
        self._readers[job_id].add(reader)
        if job_id in self._so_far and (produced := self._so_far[job_id]()):
            sink.write(produced)
        return reader

    # -- the recorder's side -------------------------------------------------------------------------------------

    def open(self, job_id: str, so_far: Callable[[], bytes]) -> None:
        """An attempt begins; `so_far` gives what it has produced whenever it is asked."""
        self._so_far[job_id] = so_far

    def feed(self, job_id: str, data: bytes) -> None:
        """It has produced more."""
        for reader in list(self._readers.get(job_id, ())):
            reader.feed(data)

    def close(self, job_id: str) -> None:
        """It is over."""
        self._so_far.pop(job_id, None)
        for reader in list(self._readers.get(job_id, ())):
            reader.end()

    def follow(self, move: Move) -> None:
        """A job has moved; who waits for one that has ended without an attempt waits no longer."""
        if move.job.state in TERMINAL and move.job.id not in self._so_far and move.job.id in self._readers:
            self.close(move.job.id)
