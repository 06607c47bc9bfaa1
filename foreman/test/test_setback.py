"""The wall clock is set back, and nobody waits for it to come round again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from foreman.errors import Unwritable
from foreman.job import ErrorCode, JobError, JobState, Submission
from foreman.test.strategies import RUNNERS, SteppedDatabase, new_job
from foreman.tick import Tick
from foreman.work.setback import Setback
from foreman.work.store import Store

HOUR = 3_600_000
BROKE = JobError(ErrorCode.TARGET_ERROR, "connection reset")


class Scene:
    """A store with one job in backoff, with a webhook that waits for its next try, and one that expires."""

    def __init__(self, path: Path) -> None:
        self.now = 10 * HOUR
        self.clock = Clock()
        self.tick = Tick(self.clock, lambda: self.now / 1000)
        self.database = SteppedDatabase(path)
        self.run = self.database.finish
        self.store = Store(self.database, lambda: self.now, 10, 3)
        self.run(self.store.start())
        self.moved = 0
        one, other = new_job(0, runner=RUNNERS[0]), new_job(1, runner=RUNNERS[1])
        told = Submission(body=b"{}", webhook="http://127.0.0.1:1/hook")
        one = evolve(one, created_at=self.now, submission=told)
        other = evolve(other, created_at=self.now, submission=evolve(told, expires_at=self.now + 9000))
        self.run(self.store.accept([one, other]))
        taken = self.run(self.store.take(resident=None, warm=False, aside=()))
        assert taken is not None
        self.run(self.store.put_back(taken.job, not_before=self.now + 2000, charge=BROKE))

    def setback(self) -> Setback:
        """What is tested, started."""
        setback = Setback(store=self.store, tick=self.tick, clock=self.clock, now_ms=lambda: self.now)
        setback.on_moved.append(self.count)
        self.run(Deferred.fromCoroutine(setback.start()))
        return setback

    def count(self) -> None:
        """Count."""
        self.moved += 1

    def pass_second(self, *, jump: int = 0) -> None:
        """A second of both clocks, and milliseconds by which the wall clock jumps."""
        self.clock.advance(1)
        self.now += 1000 + jump
        self.tick.beat()
        self.run(self.store.get("nobody"))  # what the beat wrote is written

    def plans(self) -> tuple[int, int, int]:
        """Milliseconds until the backoff ends, the job expires and the webhook is tried."""

        def read(cursor: Any) -> tuple[int, int, int]:
            found: tuple[int, int, int] = cursor.execute(
                "SELECT (SELECT max(not_before) FROM jobs), (SELECT min(expires_at) FROM jobs),"
                " (SELECT min(next_at) FROM events)"
            ).fetchone()
            return found

        backoff, expiry, delivery = self.run(self.database.read(read))
        return backoff - self.now, expiry - self.now, delivery - self.now


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A scene."""
    return Scene(tmp_path / "foreman.db")


def test_a_clock_set_back_puts_nothing_off(scene: Scene) -> None:
    """An hour back in the middle of a backoff of 2 s: it still ends in 2 s, and so with webhooks and expiry."""
    scene.setback()
    scene.pass_second()
    before = scene.plans()
    assert scene.moved == 0
    scene.pass_second(jump=-HOUR)
    assert scene.plans() == tuple(left - 1000 for left in before)
    assert scene.moved == 1
    scene.pass_second()
    assert scene.plans() == tuple(left - 2000 for left in before)
    taken = scene.run(scene.store.take(resident=None, warm=False, aside=()))
    assert taken is not None
    assert taken.job.state is JobState.LOADING


def test_a_clock_set_forward_moves_nothing(scene: Scene) -> None:
    """An hour forward, or asleep: what was planned comes early, and stays as it is."""
    scene.setback()
    before = scene.plans()
    scene.pass_second(jump=HOUR)
    assert scene.plans() == tuple(left - HOUR - 1000 for left in before)
    assert scene.moved == 0


def test_a_clock_kept_right_moves_nothing(scene: Scene) -> None:
    """Half a second now and then is how clocks are kept right."""
    scene.setback()
    before = scene.plans()
    scene.pass_second(jump=-500)
    scene.pass_second(jump=-500)
    assert scene.plans() == tuple(left - 1000 for left in before)
    assert scene.moved == 0


def test_a_clock_set_back_between_two_lives(scene: Scene) -> None:
    """It was set back while foreman was down: backoffs and webhooks move at the start, expiry does not."""
    scene.now -= HOUR
    before = scene.plans()
    assert before[0] == HOUR + 2000
    scene.setback()
    assert scene.plans() == (2000, before[1], before[2] - HOUR)


def test_a_full_disk_does_not_forget_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set back while nothing can be written: it is made good as soon as that is possible."""
    scene.setback()
    before = scene.plans()

    def unwritable(*_: object, **__: object) -> None:
        raise Unwritable("disk full")

    with monkeypatch.context() as full:
        full.setattr(scene.store, "transact", unwritable)
        scene.pass_second(jump=-HOUR)
        assert scene.moved == 0
    scene.pass_second()
    assert scene.plans() == tuple(left - 2000 for left in before)


def test_it_ends_with_the_house(scene: Scene) -> None:
    """After the stop nothing is written any more."""
    setback = scene.setback()
    setback.stop()
    scene.pass_second(jump=-HOUR)
    assert scene.moved == 0
