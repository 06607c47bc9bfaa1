"""How long the target may say nothing, and whether its silence is this call's own or the whole machine's.

Silence is counted in beats of the house's heartbeat, so hearing a byte costs one assignment and clocks that jump do no
harm.  A count of n + 1 beats means that at least n whole seconds have passed, so nothing is judged early, and at most
a second late.

After ten seconds of silence the target is *probed* every ten seconds on another connection.  Answered probes say that
it is awake, and the call may be silent up to its limit; probes that stay without an answer for a minute say that it is
asleep or gone, and the call is given up long before a limit of hours.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from foreman.errors import Stalled
from foreman.tick import Tick

PROBE_EVERY = 10
"""Seconds of silence before the first probe, and between two."""

PROBE_TIMEOUT = 5.0
"""Seconds a probe may take."""

UNANSWERED = 60
"""Seconds without an answered probe, counted from the first or from the last answered one, that end the call."""

Probe = Callable[[float], Coroutine[Any, Any, bool]]
"""Asks, within so many seconds, whether the target answers."""


class Silence:
    """The silence of one call, from `start` to `stop`.

    :ivar limit: seconds the target may stay silent; may be changed at any time.
    :ivar beats: of silence so far; whoever hears a byte sets it to 0.
    :ivar held: nothing is being read, by our own choice, so the count stands still.
    """

    _log = Logger()

    def __init__(self, tick: Tick, probe: Probe, limit: float, stalled: Callable[[Stalled], None]) -> None:
        self.limit = limit
        self.beats = 0
        self.held = False
        self._tick = tick
        self._probe = probe
        self._stalled = stalled
        self._unsubscribe: Callable[[], None] | None = None
        self._flight: Deferred[Any] | None = None
        self._answered: bool | None = None
        self._unanswered_since: int | None = None

    def start(self) -> None:
        """Count from now on."""
        self._unsubscribe = self._tick.subscribe(self._beat)

    def stop(self) -> None:
        """Count no more; `stalled` is not called after this.  Harmless when not started."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        self._forget()

    @property
    def _seconds(self) -> int:
        return self.beats - 1

    def _beat(self, slept: bool) -> None:
        if slept:
            self.beats = 0
        elif self.held:
            return
        if self.beats == 0:
            self._forget()
        self.beats += 1
        if self._unanswered_since is not None and self._seconds - self._unanswered_since >= UNANSWERED:
            self._end(answered=False)
        elif self._flight is not None:
            pass  # its verdict comes, and the limit is looked at then
        elif self._seconds >= self.limit:
            if self._answered is None:
                self._ask()
            else:
                self._end(answered=self._answered)
        elif self._seconds > 0 and self._seconds % PROBE_EVERY == 0:
            self._ask()

    def _ask(self) -> None:
        if self._unanswered_since is None:
            self._unanswered_since = self._seconds
        flight = self._flight = Deferred.fromCoroutine(self._probe(PROBE_TIMEOUT))
        flight.addBoth(self._verdict, flight)

    def _verdict(self, result: bool | Failure, flight: Deferred[Any]) -> None:
        if self._flight is not flight:
            return  # of a silence that is over
        self._flight = None
        if isinstance(result, Failure):
            self._log.failure("a probe of the target failed", result)
            result = False
        self._answered = result
        if result:
            self._unanswered_since = self._seconds
        if self._seconds >= self.limit and not self.held:
            self._end(answered=result)

    def _forget(self) -> None:
        flight, self._flight = self._flight, None
        self._answered = None
        self._unanswered_since = None
        if flight is not None:
            flight.cancel()

    def _end(self, *, answered: bool) -> None:
        seconds = self._seconds
        self.stop()
        does = "answers" if answered else "does not answer"
        self._stalled(Stalled(f"silent for {seconds} s; the target {does} meanwhile", probe_answered=answered))
