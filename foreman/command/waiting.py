"""`foreman wait`: jobs that are waited for, in a table that moves if somebody is looking."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from threading import Thread

import click
from rich.live import Live
from rich.text import Text

from foreman.client import ForemanError, Job, JobState, NotReachable, Unavailable, WaitTimeout
from foreman.command.inputs import Duration
from foreman.command.screen import STYLES, printable, seconds, speed, state, table
from foreman.command.talking import Desk, Exit, talks

LOOK = 1.0
"""Seconds between two looks at the jobs that are shown."""

COLUMNS = ("ID", "MODEL", "STATE", "POSITION", "TOKENS/S", "DONE IN")


@click.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--timeout", type=Duration(), help="Wait no longer than, say, 30m; the jobs go on.")
@talks
def wait(desk: Desk, ids: Sequence[str], timeout: float | None) -> None:
    """Wait until all these jobs are over; ends with 1 if one has failed."""
    sys.exit(wait_for(desk, [desk.foreman.job(job_id) for job_id in dict.fromkeys(ids)], timeout))


def wait_for(desk: Desk, jobs: Sequence[Job], timeout: float | None) -> int:
    """Wait for jobs and print each when it is over; gives 0, or `Exit.FAILED` if one has failed.

    :raise WaitTimeout: they are not all over yet.
    """
    if desk.screen.is_live:
        return _watch(desk, list(jobs), timeout)
    failed = False
    for job in desk.foreman.as_completed(jobs, timeout):
        failed |= job.state is JobState.FAILED
        if desk.screen.as_json:
            desk.screen.document(job)
        else:
            desk.screen.line(f"{job.job_id}\t{state(job)}")
    return Exit.FAILED if failed else 0


# -- for those who look on ---------------------------------------------------------------------------------------------


class _Pulse:
    """How fast a job speaks, counted on its stream: Ollama sends a piece for each token, more or less."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._count = 0
        self._first = self._last = 0.0
        Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with suppress(ForemanError, RuntimeError):  # how the job ends is seen elsewhere, perhaps sooner
            for chunk in self._job.stream():
                self._last = time.monotonic()
                # What comes first is all that came before we listened.
                if self._count == 0 or chunk.is_restart:
                    self._count, self._first = 0, self._last
                self._count += 1

    @property
    def shown(self) -> str:
        """Tokens a second, once there is something to count."""
        took = self._last - self._first
        return f"{(self._count - 1) / took:.1f}" if self._count > 2 and took > 0 else ""


class _Watch:
    """Jobs that are watched.

    :ivar pending: those that are not over, as they were last seen.
    :ivar failed: whether one has.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.pending = {job.job_id: job for job in jobs}
        self.failed = False
        self._pulses: dict[str, _Pulse] = {}

    def look(self, most: int) -> Iterator[Job]:
        """Look at the first of them, as many as can be shown; gives those that are over now.

        :raise NotReachable: foreman is away; what is pending stays so.
        """
        for job_id in list(self.pending)[:most]:
            job = self.pending[job_id] = self.pending[job_id].refresh()
            if job.state is JobState.WORKING and job_id not in self._pulses:
                self._pulses[job_id] = _Pulse(job)
            if job.state.is_over:
                del self.pending[job_id]
                self.failed |= job.state is JobState.FAILED
                yield job

    def rows(self, most: int) -> Iterator[tuple[str, ...]]:
        """What is to be shown of the first of them."""
        for job_id, job in list(self.pending.items())[:most]:
            pulse = self._pulses.get(job_id)
            position = "" if job.position is None else f"{job.position}{'' if job.position_exact else '+'}"
            yield (job_id, job.model, state(job), position, pulse.shown if pulse else "", seconds(job.eta_seconds))


def _watch(desk: Desk, jobs: Sequence[Job], timeout: float | None) -> int:
    """As `wait_for`, with a table of those that are not over."""
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    watch = _Watch(jobs)
    console = desk.screen.console
    most = max(1, console.height - 3)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            remark = ""
            over: list[Text] = []
            try:
                for job in watch.look(most):
                    rate = f", {speed(job)} tokens/s" if speed(job) else ""
                    over.append(Text(printable(f"{job.job_id}  {state(job)}  {job.model}{rate}"), STYLES[job.state]))
            except (NotReachable, Unavailable) as error:
                remark = str(error)
            finally:
                if over:
                    console.print(*over, sep="\n")
            if not watch.pending:
                return Exit.FAILED if watch.failed else 0
            if time.monotonic() >= deadline:
                raise WaitTimeout(f"the time given is over; jobs that are not: {len(watch.pending)}")
            more = len(watch.pending) - most
            drawn = table(COLUMNS, watch.rows(most))
            drawn.caption = remark or (f"and {more} more" if more > 0 else None)
            live.update(drawn, refresh=True)
            if not over:  # else those that were not shown may be over, too
                time.sleep(LOOK)
