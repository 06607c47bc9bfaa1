"""Operations that go on to their end whatever becomes of the one who waits for them."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

T = TypeVar("T")
_log = Logger()


def detach(work: Coroutine[Deferred[Any], Any, T]) -> Deferred[T]:
    """Start `work` and return a Deferred of its result whose cancellation leaves the work alone.

    A client that hangs up cancels its handler at the `await`; what must happen all the same (commit and wake, the
    end of a job) is therefore detached.  A failure that nobody waits for any more is logged.
    """
    waiter: Deferred[T] = Deferred()
    inner = Deferred.fromCoroutine(work)

    def succeeded(result: T) -> None:
        if not waiter.called:
            waiter.callback(result)

    def failed(failure: Failure) -> None:
        if not waiter.called:
            waiter.errback(failure)
        elif failure.check(CancelledError) is None:
            _log.failure("An operation failed after its caller had left", failure=failure)

    inner.addCallbacks(succeeded, failed)
    return waiter
