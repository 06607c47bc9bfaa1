"""Getting an answer out of foreman: trying again, with growing pauses, and telling what is final from what is not."""

from __future__ import annotations

import json
import math
import random
import re
import time
from collections.abc import Callable, Mapping

from attrs import evolve, frozen

from foreman.client.errors import (
    NoSuchJob,
    NotForeman,
    NotReachable,
    QueueFull,
    Rejected,
    Unavailable,
    WaitTimeout,
)
from foreman.client.steps import Call, Lost, NextLine, Reply, Send, Sleep
from foreman.client.values import JobInfo

PARTING = 5.0
"""Seconds that an answer may be late when the caller's time is over, or when it leaves."""

LONGEST_PAUSE = 30.0
"""Seconds between two tries, unless foreman wishes for more; half of it more or less by chance."""


LONGEST_WISH = 600.0
"""Seconds of a `Retry-After` beyond which nobody is believed."""


@frozen(kw_only=True)
class Asking:
    """How questions are asked.

    :ivar patience: seconds for which foreman may be out of reach, or unable, before a question is given up.
    :ivar clock: seconds, from anywhere.
    :ivar chance: a number from 0 to 1, so that callers who were cut off together do not come back together.
    """

    patience: float
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random

    def answer(self, request: Send) -> Call[Reply]:
        """A good answer, however many tries it takes, as long as we are patient.

        :raise NotReachable: there was none.
        :raise Unavailable: foreman could not, all the time.
        :raise Rejected: it would not.
        """
        return (yield from self.until(self.clock() + self.patience, request))

    def insist(self, request: Send, deadline: float, job: JobInfo | None = None) -> Call[Reply]:
        """A good answer, however long it takes, until the caller's time is over.

        :param job: what is waited for.
        :raise WaitTimeout: it is.
        :raise Rejected: foreman would not.
        """
        try:
            return (yield from self.until(deadline, request, deadline))
        except (NotReachable, Unavailable) as error:
            raise too_late(job) from error

    def until(self, end: float, request: Send, deadline: float = math.inf) -> Call[Reply]:
        """A good answer, with a last try at the end.  A try that was heard is waited for, unless the deadline comes."""
        tries = 0
        while True:
            try:
                return (yield from self.once(request, deadline))
            except (NotReachable, Unavailable) as error:
                if self.clock() >= end:
                    raise
                yield self.pause(tries, error, end)
            tries += 1

    def once(self, request: Send, end: float = math.inf) -> Call[Reply]:
        """The answer to one try, not much later than that time."""
        left = max(0.0, end - self.clock())
        try:
            reply: Reply = yield evolve(request, silence=min(request.silence, left + PARTING))
        except Lost as error:
            raise NotReachable(f"foreman cannot be reached: {error}") from error
        if reply.status >= 300:
            raise _refusal(request, reply)
        return reply

    def next_line(self) -> Call[bytes | None]:
        """The next line of what is followed, None at its end.

        :raise NotReachable: the connection has broken.
        """
        try:
            line: bytes | None = yield NextLine()
        except Lost as error:
            raise NotReachable(f"the stream was lost: {error}") from error
        return line

    def pause(self, tries: int, cause: Exception | None, end: float) -> Sleep:
        """What to do before the next try: growing pauses, or as foreman wishes, but not beyond that time."""
        seconds = min(LONGEST_PAUSE, 0.25 * 2.0 ** min(tries, 10)) * (0.5 + self.chance())
        if isinstance(cause, Unavailable) and cause.retry_after is not None:
            seconds = max(seconds, min(LONGEST_WISH, cause.retry_after) * (1 + 0.2 * self.chance()))
        return Sleep(min(seconds, max(0.0, end - self.clock())))

    def deadline(self, timeout: float | None) -> float:
        """When the caller's time is over."""
        return math.inf if timeout is None else self.clock() + timeout

    def check(self, deadline: float, job: JobInfo) -> None:
        """See that the caller's time is not over.

        :raise WaitTimeout: it is.
        """
        if self.clock() >= deadline:
            raise too_late(job)


def too_late(job: JobInfo | None) -> WaitTimeout:
    """What is raised when the caller's time is over."""
    return WaitTimeout("the time given is over" + (f"; job {job.job_id} is {job.state}" if job else ""), job)


_FULL = re.compile(r"\d+ jobs are waiting, at most \d+ may")
"""How foreman says that its queue is full; the status is that of whatever else it cannot do now."""


def _refusal(request: Send, reply: Reply) -> Exception:
    message, lines = _said(reply)
    if reply.status < 400:
        return NotForeman(f"{request.path} is answered with a redirect")
    if reply.status == 429 or reply.status >= 500:
        wish = reply.headers.get("retry-after", "")
        kind = QueueFull if _FULL.match(message) else Unavailable
        return kind(message, status=reply.status, retry_after=float(wish) if re.fullmatch(r"\d{1,6}", wish) else None)
    if reply.status == 404 and request.path.startswith("/jobs/"):
        return NoSuchJob(404, message)
    if reply.status == 404 and request.method == "GET":
        return NotForeman(f"there is no {request.path} at this address: it is not a foreman that answers")
    return Rejected(reply.status, message, lines)


def _said(reply: Reply) -> tuple[str, Mapping[int, str]]:
    """What an answer says went wrong, and in which lines."""
    text = f"HTTP status {reply.status}"
    try:
        document = json.loads(reply.body)
        lines = {int(line["line"]): str(line["error"]) for line in document.get("lines", ())}
        return str(document.get("error", text)), lines
    except (ValueError, TypeError, KeyError, AttributeError):
        return text, {}
