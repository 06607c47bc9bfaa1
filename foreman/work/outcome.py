"""What a try's end means for its job: done, failed for good, or once more, and who pays.  Pure.

The rules are the contract's ("Failures, and what charges the job"); the worker applies what is decided here.
"""

from __future__ import annotations

from attrs import Factory, evolve, field, frozen

from foreman.errors import Answered, Busy, Failed, Lost, NotReachable, Refused, Stalled, TargetError, TooLarge
from foreman.job import ErrorCode, JobError
from foreman.ollama.replies import Verdict, error_text, is_validation_error


@frozen
class Done:
    """The answer was complete."""


@frozen
class Fail:
    """The job has failed for good."""

    error: JobError


@frozen(kw_only=True)
class Retry:
    """The job goes back to the queue.

    :ivar cause: what went wrong.
    :ivar logged: the same for the log, without words of the target's that may quote a prompt or an answer.
    :ivar charged: the job pays, and waits its backoff.
    :ivar unreachable: the target is away: nothing is tried until it is back.
    :ivar busy: the target is there but will not: wait `retry_after` seconds, or the usual steps when None.
    """

    cause: JobError
    logged: str = field(default=Factory(lambda self: self.cause.message, takes_self=True))
    charged: bool
    unreachable: bool = False
    busy: bool = False
    retry_after: float | None = None


Outcome = Done | Fail | Retry


def of_error(error: TargetError) -> Fail | Retry:
    """What a call's failure means, its own or its load's."""
    cause = JobError(ErrorCode.TARGET_ERROR, str(error))
    match error:
        case NotReachable():
            return Retry(cause=cause, charged=False, unreachable=True)
        case Stalled(probe_answered=False):
            return Retry(cause=cause, charged=False, unreachable=True)
        case Stalled():
            return Retry(cause=JobError(ErrorCode.TIMEOUT, str(error)), charged=True)
        case Lost(reused=True):
            return Retry(cause=cause, charged=False)
        case Busy(status=status, retry_after=seconds):
            return Retry(cause=cause, logged=_answer_of(status), charged=False, busy=True, retry_after=seconds)
        case Refused(status=status):
            code = ErrorCode.MODEL_NOT_FOUND if status == 404 else ErrorCode.INVALID_REQUEST
            return Fail(JobError(code, str(error)))
        case Failed(status=status) if is_validation_error(status, str(error)):
            return Fail(JobError(ErrorCode.INVALID_REQUEST, str(error)))
        case Failed(status=status):
            return Retry(cause=cause, logged=_answer_of(status), charged=True)
        case TooLarge():
            return Fail(JobError(ErrorCode.RESULT_TOO_LARGE, str(error)))
        case _:
            return Retry(cause=cause, charged=True)


def _answer_of(status: int) -> str:
    return f"the target answered {status}"


def of_load_error(error: TargetError) -> Fail | Retry:
    """What it means that a job's runner could not be loaded."""
    result = of_error(error)
    if isinstance(error, Failed) and isinstance(result, Retry):
        # A load request has no prompt that its error could quote, and the operator wants to know.
        return evolve(result, cause=JobError(ErrorCode.MODEL_LOAD_FAILED, str(error)), logged=str(error))
    return result


def of_answer(status: int, verdict: Verdict, retry_after: float | None = None) -> Outcome:
    """What an answer that ended as HTTP says it should means, by its status and by what was in it."""
    if status < 300:
        if verdict.error is not None:
            cause = JobError(ErrorCode.TARGET_ERROR, verdict.error)
            return Retry(cause=cause, logged="the answer ended in an error", charged=True)
        if verdict.complete:
            return Done()
        return Fail(JobError(ErrorCode.INCOMPLETE, "The answer ended without its end marker."))
    return of_error(answered(status, verdict.error or f"status {status}", retry_after=retry_after))


def answered(status: int, text: str, *, body: bytes = b"", retry_after: float | None = None) -> Answered:
    """The error that an answer of that status is."""
    if status in (429, 503):
        return Busy(text, status=status, body=body, retry_after=retry_after)
    if status >= 500:
        return Failed(text, status=status, body=body)
    return Refused(text, status=status, body=body)


def of_body(status: int, body: bytes, retry_after: float | None) -> Answered:
    """The error that a whole answer is, with Ollama's own text."""
    return answered(status, error_text(body), body=body, retry_after=retry_after)
