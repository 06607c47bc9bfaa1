"""The house's one heartbeat: a beat a second, told to whoever listens, and a word when this machine has slept.

Whatever is counted in whole seconds of silence or waiting listens here instead of keeping a timer of its own: one
timer serves thousands, and a clock that jumps moves no deadline, because only beats are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

INTERVAL = 1.0
"""Seconds between two beats."""

SLEEP = 5.0
"""A beat late by more than this many seconds of the wall clock means that the machine, or this process, slept."""

Listener = Callable[[bool], None]
"""Called at each beat with whether the machine slept just before it."""


class Tick:
    """The heartbeat.

    :ivar clock: what the beats are scheduled on; a monotonic one.
    :ivar wall: seconds since the epoch; it runs on while the machine sleeps, which a monotonic clock need not.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._last = wall()
        self._listeners: dict[object, Listener] = {}
        self._loop = LoopingCall(self.beat)
        self._loop.clock = clock

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Have `listener` called at every beat from the next one on.

        :return: call it to end that; safe at any time, during a beat and more than once too.
        """
        key = object()
        self._listeners[key] = listener
        return partial(self._unsubscribe, key)

    def _unsubscribe(self, key: object) -> None:
        self._listeners.pop(key, None)

    def start(self) -> None:
        """Beat every second, for the first time in a second."""
        self._last = self._wall()
        self._loop.start(INTERVAL, now=False)

    def stop(self) -> None:
        """Beat no more; harmless when not started."""
        if self._loop.running:
            self._loop.stop()

    def beat(self) -> None:
        """One beat.  A listener that fails is logged, and the others are called all the same."""
        now = self._wall()
        slept = now - self._last > INTERVAL + SLEEP
        self._last = now
        # A copy, because listeners come and go during the beat; one that has gone is not called any more.
        for key, listener in tuple(self._listeners.items()):
            if key in self._listeners:
                try:
                    listener(slept)
                except Exception:  # noqa: BLE001 - the heart outlives whatever listens to it
                    self._log.failure("a listener of the heartbeat failed")
