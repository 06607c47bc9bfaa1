"""The heartbeat of the house (`foreman.tick`)."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.task import Clock
from twisted.logger import LogEvent

from foreman.tick import Tick


class Wall:
    """A wall clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now


def test_a_beat_a_second() -> None:
    """Once started, everyone who listens hears one beat a second, until it is stopped."""
    clock, heard = Clock(), list[bool]()
    tick = Tick(clock, lambda: 1_700_000_000.0 + clock.seconds())
    tick.subscribe(heard.append)
    tick.start()
    assert heard == []
    clock.pump([1.0] * 3)
    assert heard == [False] * 3
    tick.stop()
    clock.pump([1.0] * 3)
    assert len(heard) == 3
    assert not clock.getDelayedCalls()


def test_stopping_twice_or_before_the_start_is_harmless() -> None:
    """A service may stop the heart without asking whether it beats."""
    tick = Tick(Clock(), Wall())
    tick.stop()
    tick.start()
    tick.stop()
    tick.stop()


def test_a_sleep_is_told_once() -> None:
    """When the machine slept, the first beat afterwards says so, and the next one does not."""
    wall, heard = Wall(), list[bool]()
    tick = Tick(Clock(), wall)
    tick.subscribe(heard.append)
    for step in (1.0, 6.0, 6.1, 1.0, 3600.0, 1.0):
        wall.now += step
        tick.beat()
    assert heard == [False, False, True, False, True, False]


def test_a_wall_clock_set_back_is_no_sleep() -> None:
    """Setting the clock back an hour is not taken for a sleep."""
    wall, heard = Wall(), list[bool]()
    tick = Tick(Clock(), wall)
    tick.subscribe(heard.append)
    wall.now -= 3600
    tick.beat()
    wall.now += 1
    tick.beat()
    assert heard == [False, False]


def test_the_time_before_the_start_is_no_sleep() -> None:
    """A house that takes long to start does not begin its life by believing that it slept."""
    clock, wall, heard = Clock(), Wall(), list[bool]()
    tick = Tick(clock, wall)
    tick.subscribe(heard.append)
    wall.now += 60
    tick.start()
    wall.now += 1
    clock.advance(1)
    assert heard == [False]
    tick.stop()


def test_a_failing_listener_stops_nobody_else(logged_errors: list[LogEvent]) -> None:
    """A bug in one listener is logged; the others, and the beats after it, go on."""
    clock, heard = Clock(), list[str]()

    def fails(slept: bool) -> None:
        raise ZeroDivisionError

    tick = Tick(clock, clock.seconds)
    tick.subscribe(lambda _: heard.append("before"))
    tick.subscribe(fails)
    tick.subscribe(lambda _: heard.append("after"))
    tick.start()
    clock.pump([1.0, 1.0])
    tick.stop()
    assert heard == ["before", "after"] * 2
    assert [event["log_failure"].type for event in logged_errors] == [ZeroDivisionError] * 2
    logged_errors.clear()


def test_leaving_during_a_beat() -> None:
    """A listener may end its own subscription, or another's, in the middle of a beat: who has left is not called."""
    tick, heard, leave = Tick(Clock(), Wall()), list[str](), list[Callable[[], None]]()

    def first(slept: bool) -> None:
        heard.append("first")
        for unsubscribe in leave:
            unsubscribe()

    leave.append(tick.subscribe(first))
    leave.append(tick.subscribe(lambda _: heard.append("second")))
    tick.subscribe(lambda _: heard.append("third"))
    tick.beat()
    tick.beat()
    assert heard == ["first", "third", "third"]
    for unsubscribe in leave:
        unsubscribe()  # once more: nothing happens


def test_joining_during_a_beat() -> None:
    """Who subscribes in the middle of a beat hears the next one."""
    tick, heard = Tick(Clock(), Wall()), list[str]()

    def joins(slept: bool) -> None:
        tick.subscribe(lambda _: heard.append("late"))

    unsubscribe = tick.subscribe(joins)
    tick.beat()
    assert heard == []
    unsubscribe()
    tick.beat()
    assert heard == ["late"]


def test_one_callable_may_listen_twice() -> None:
    """Two subscriptions of the same function are two: ending one leaves the other."""
    tick, heard = Tick(Clock(), Wall()), list[bool]()
    unsubscribe = tick.subscribe(heard.append)
    tick.subscribe(heard.append)
    unsubscribe()
    tick.beat()
    assert len(heard) == 1
