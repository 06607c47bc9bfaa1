"""Who reads along while an async job runs: what has been produced so far, then live, to any number of readers."""

from __future__ import annotations

from typing import Protocol

SLACK = 1024 * 1024
"""Bytes that may wait for a slow reader before it is cut."""


class TailSink(Protocol):
    """Where a reader's bytes go."""

    def write(self, data: bytes) -> None:
        """The next bytes: native NDJSON, not cut at lines."""

    def finish(self) -> None:
        """The attempt is over, or the job has ended without one.  Nothing comes after it."""

    def cut(self) -> None:
        """The reader has fallen too far behind.  Nothing comes after it."""


class Reader:
    """One who reads along."""

    def pause(self) -> None:
        """Take no more for now."""
        raise NotImplementedError

    def resume(self) -> None:
        """Take more."""
        raise NotImplementedError

    def leave(self) -> None:
        """Read no more; harmless when it is over."""
        raise NotImplementedError


class Tails:
    """The readers by job id, and what is running for them."""

    def join(self, job_id: str, sink: TailSink) -> Reader:
        """Read along from now on: at once what the running attempt has produced so far, as one line, then live.

        A job that waits may be joined: it is then the next attempt that is read.  For a job that is over nothing ever
        comes, so ask for its state *after* joining.
        """
        raise NotImplementedError
