"""Forgetting old jobs, a few at a time."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from foreman.errors import Unwritable
from foreman.job import Ending
from foreman.test.strategies import RUNNERS, SteppedDatabase, new_job
from foreman.tick import Tick
from foreman.work import retention
from foreman.work.retention import Retention
from foreman.work.store import Store

DAY_MS = 86_400_000


class Shelf:
    """A store whose answers to `prune` the test gives."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.answers: deque[Deferred[int]] = deque()

    def prune(self, before_ms: int, limit: int) -> Deferred[int]:
        """Take note."""
        self.asked.append((before_ms, limit))
        self.answers.append(Deferred())
        return self.answers[-1]


def at_rest() -> tuple[Retention, Shelf, Tick]:
    """A retention that has begun, with the clock at ten days."""
    shelf, tick = Shelf(), Tick(Clock(), lambda: 0.0)
    keeper = Retention(store=cast(Store, shelf), tick=tick, now_ms=lambda: 10 * DAY_MS, ttl=7 * 86_400.0)
    keeper.start()
    return keeper, shelf, tick


def beat(tick: Tick, times: int) -> None:
    """So many seconds pass."""
    for _ in range(times):
        tick.beat()


def test_every_minute_what_is_older_than_the_setting() -> None:
    """Once a minute, jobs that ended longer ago than FOREMAN_JOB_TTL are looked for."""
    _, shelf, tick = at_rest()
    beat(tick, 59)
    assert shelf.asked == []
    beat(tick, 1)
    assert shelf.asked == [(3 * DAY_MS, retention.BATCH)]
    shelf.answers[0].callback(3)
    beat(tick, 59)
    assert len(shelf.asked) == 1
    beat(tick, 1)
    assert len(shelf.asked) == 2


def test_many_go_in_batches_with_room_between() -> None:
    """While there is more to delete a batch goes each second, never two at once, so that accepting is not held up."""
    _, shelf, tick = at_rest()
    beat(tick, 60)
    beat(tick, 70)
    assert len(shelf.asked) == 1  # the first is still under way
    shelf.answers[0].callback(retention.BATCH)
    assert len(shelf.asked) == 1
    beat(tick, 1)
    assert len(shelf.asked) == 2


def test_a_disk_in_trouble_is_tried_again() -> None:
    """A store that cannot write now is asked again in a minute."""
    _, shelf, tick = at_rest()
    beat(tick, 60)
    shelf.answers[0].errback(Unwritable("disk full"))
    beat(tick, 60)
    assert len(shelf.asked) == 2


def test_stopping_waits_for_the_batch_under_way() -> None:
    """The store is not closed under a batch, and no other begins."""
    keeper, shelf, tick = at_rest()
    beat(tick, 60)
    stopped: list[Any] = []
    Deferred.fromCoroutine(keeper.stop()).addBoth(stopped.append)
    assert stopped == []
    shelf.answers[0].callback(retention.BATCH)
    assert stopped == [None]
    beat(tick, 120)
    assert len(shelf.asked) == 1


def test_the_file_becomes_smaller(tmp_path: Path) -> None:
    """Old jobs are gone a little later, and the file has given their space back; young ones stay."""
    path = tmp_path / "foreman.db"
    database = SteppedDatabase(path)
    now = 10 * DAY_MS
    store = Store(database, lambda: now, 10_000, 3)
    database.finish(store.start())
    database.finish(store.accept([new_job(n) for n in range(2600)]))
    for number in range(2600):
        taken = database.finish(store.take(resident=RUNNERS[0], warm=True, aside=()))
        assert taken is not None
        ended = now if number >= 2500 else DAY_MS + number
        database.finish(store.end(taken.job, Ending(error=None, at=ended)))
    database.finish(store.stop())
    before = path.stat().st_size
    database.finish(store.start())
    tick = Tick(Clock(), lambda: 0.0)
    keeper = Retention(store=store, tick=tick, now_ms=lambda: now, ttl=7 * 86_400.0)
    keeper.start()
    beat(tick, 59)
    for _ in range(8):
        tick.beat()
        while database._calls:
            database.step()
    left = database.finish(database.read(lambda cursor: cursor.execute("SELECT count(*) FROM jobs").fetchone()))
    assert left == (100,)
    database.finish(store.stop())
    assert path.stat().st_size < before / 5
