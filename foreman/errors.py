"""The domain's exceptions: what can go wrong in the words of the house.  No HTTP status, no SQL.

`foreman.web.errors` is the one table that turns these into answers; `foreman.work.outcome` decides what each
one charges a job.
"""

from __future__ import annotations


class ForemanError(Exception):
    """Whatever foreman itself raises on purpose."""


class ConfigurationError(ForemanError):
    """A setting that cannot be used; the text is one line naming the variable, the value and what is allowed."""


# -- the target ------------------------------------------------------------------------------------------------------


class TargetError(ForemanError):
    """A call to the target that did not end in a complete answer, or ended in one that says no."""


class NotReachable(TargetError):
    """No connection: refused, no route, no such name, connect timeout.  Nothing was sent."""


class Lost(TargetError):
    """The connection broke before the first byte of the answer.

    :ivar reused: the connection had carried an earlier call, so the target may simply have closed it while idle.
    """

    def __init__(self, message: str, *, reused: bool) -> None:
        super().__init__(message)
        self.reused = reused


class Truncated(TargetError):
    """The connection broke, or the framing ended, after the head and before the end of the body."""


class Stalled(TargetError):
    """The target stayed silent for longer than it may.

    :ivar probe_answered: it answered `/api/version` on another connection meanwhile, so it is awake and the
        silence is this call's own.
    """

    def __init__(self, message: str, *, probe_answered: bool) -> None:
        super().__init__(message)
        self.probe_answered = probe_answered


class TooLarge(TargetError):
    """The answer is larger than the caller's limit in bytes; the connection was closed."""


class Answered(TargetError):
    """The target gave a whole answer whose status is an error.

    :ivar status: the HTTP status, 400 to 599.
    :ivar body: the body's bytes as they came.
    :ivar retry_after: seconds, from the target's own header, or None.
    """

    def __init__(self, message: str, *, status: int, body: bytes = b"", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.retry_after = retry_after


class Refused(Answered):
    """4xx: the request itself is at fault."""


class Failed(Answered):
    """5xx: the target is at fault, or says so."""


class Busy(Answered):
    """503 or 429: not now."""


# -- the store -------------------------------------------------------------------------------------------------------


class StoreError(ForemanError):
    """The durable queue could not do what was asked."""


class StoreLocked(StoreError):
    """Another foreman holds the database; the text names its pid."""


class SchemaTooNew(StoreError):
    """The database was written by a newer foreman."""


class Unwritable(StoreError):
    """The database cannot be written now: disk full, read-only, I/O error.  Nothing was stored."""


class NotCopied(StoreError):
    """The database was not copied; the text says why.  What was there is as it was."""


class Damaged(NotCopied):
    """What was to be copied is not sound."""


class QueueFull(StoreError):
    """FOREMAN_MAX_QUEUE jobs are waiting.  Nothing was stored."""


class KeyReused(StoreError):
    """An idempotency key has come before, with another request."""


class KeyGone(StoreError):
    """An idempotency key has come before, and its jobs were deleted."""


# -- callers ---------------------------------------------------------------------------------------------------------


class Unavailable(ForemanError):
    """foreman cannot serve this call now, but will later.

    :ivar retry_after: seconds after which to come again.
    """

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Forbidden(ForemanError):
    """A setting forbids this; the text names it."""
