"""What can go wrong, for those who call foreman.

Each error says in its text what a person wants to read; those about a job carry it, so that it can be looked at, waited
for again or cancelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foreman.client.values import JobInfo


class ForemanError(Exception):
    """Whatever this client raises on purpose."""


class NotReachable(ForemanError):
    """foreman could not be reached for as long as the client is patient."""


class NotForeman(ForemanError):
    """What answers at this address does not speak as foreman does; perhaps the URL is wrong."""


class Unavailable(ForemanError):
    """foreman, or what stands before it, said for as long as the client is patient that it cannot: 5xx or 429.

    :ivar status: the HTTP status.
    :ivar retry_after: seconds after which to come again, None if that was not said.
    """

    def __init__(self, message: str, *, status: int, retry_after: float | None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class QueueFull(Unavailable):
    """As many jobs wait as may.  Nothing was stored."""


class Rejected(ForemanError):
    """foreman has said no, and would again.

    :ivar status: the HTTP status, 400 to 499.
    :ivar code: its name, such as `bad_request`, `unauthorized` or `not_found`.
    :ivar message: what was wrong, and where.
    :ivar lines: of a batch, what was wrong with which line, counted from 1; the first 100 of them.
    """

    def __init__(self, status: int, message: str, lines: Mapping[int, str] = MappingProxyType({})) -> None:
        super().__init__(message)
        self.status = status
        self.code = HTTPStatus(status).name.lower() if status in set(HTTPStatus) else str(status)
        self.message = message
        self.lines = lines


class NoSuchJob(Rejected):
    """There is no such job, or not any more, or nothing of that name is kept of it."""


class WaitTimeout(ForemanError, TimeoutError):
    """The time the caller gave is over; the job goes on, if it was accepted.

    :ivar job: as it was last seen; None if foreman has not accepted it, as far as is known.
    """

    def __init__(self, message: str, job: JobInfo | None = None) -> None:
        super().__init__(message)
        self.job = job


class JobFailed(ForemanError):
    """The job ended without an answer.

    :ivar job: as it ended; `job.text` has what had come by then.
    :ivar code: why, such as `timeout`, `model_not_found` or `attempts_exhausted`.
    """

    def __init__(self, job: JobInfo) -> None:
        self.code = job.error.code if job.error else ""
        super().__init__(f"job {job.job_id} failed: " + (f"{self.code}: {job.error.message}" if job.error else "?"))
        self.job = job


class JobCancelled(JobFailed):
    """Somebody has cancelled the job."""


class JobExpired(JobFailed):
    """The job was still queued when its `expires_in` was over."""


class InvalidSignature(ForemanError):
    """A webhook that does not prove that it comes from foreman, or not that it is fresh."""
