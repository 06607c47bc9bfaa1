"""Reading along with a job: what the model says as it says it, and until then what the job is waiting for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from rich.text import Text

from foreman.client import ForemanError, Job, JobState
from foreman.command.screen import Screen, printable, seconds

LOOK = 1.0
"""Seconds between two looks at a job that waits."""


def read_along(screen: Screen, job: Job, timeout: float | None = None) -> None:
    """Print a job's answer while it is made; thoughts go beside it.

    :raise ForemanError: as `Job.stream`.
    """
    ended_in = "\n"
    chunks = job.stream(timeout)
    with _progress(screen, job):
        chunk = next(chunks, None)
    while chunk is not None:
        if chunk.is_restart:
            screen.remark("\n(foreman has begun the answer anew)")
        if chunk.thinking and screen.errors.is_terminal:
            screen.remark(chunk.thinking, end="")
        if chunk.text:
            screen.piece(chunk.text)
            ended_in = chunk.text[-1]
        for call in chunk.tool_calls:
            screen.document(call.get("function", call))
        chunk = next(chunks, None)
    if ended_in != "\n":
        screen.piece("\n")


@contextmanager
def _progress(screen: Screen, job: Job) -> Iterator[None]:
    """Say beside the answer what the job is waiting for, if somebody is looking."""
    if not screen.errors.is_terminal or not screen.is_live:
        yield
        return
    over = Event()
    with screen.errors.status(_waiting_for(job)) as status:

        def look() -> None:
            while not over.wait(LOOK):
                try:
                    status.update(_waiting_for(job.refresh()))
                except ForemanError as error:
                    status.update(Text(printable(str(error))))
                except RuntimeError:
                    return  # the answer was there first, and the client is closed

        looking = Thread(target=look, daemon=True)
        looking.start()
        try:
            yield
        finally:
            over.set()


def _waiting_for(job: Job) -> str:
    if job.state is not JobState.QUEUED or job.position is None:
        return str(job.state)
    more = "" if job.position_exact else " or later"
    loads = f", {job.swaps_ahead} loads" if job.swaps_ahead else ""
    eta = f", done in about {seconds(job.eta_seconds)}" if job.eta_seconds is not None else ""
    return f"queued, number {job.position}{more}{loads}{eta}"
