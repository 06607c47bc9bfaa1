"""Which writes wait for each other, so that they cost one commit, and how long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from foreman.job import Ending
from foreman.test.strategies import RUNNERS, SteppedDatabase, new_job, start
from foreman.work.store import COMPANY, Store

QWEN = RUNNERS[0]


class Office:
    """A store whose reactor is a clock, and whose thread the test steps."""

    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.database = SteppedDatabase(path)
        self.store = Store(self.database, lambda: 10, max_queue=1000, max_attempts=3)
        self.database.finish(self.store.start())
        self.commits: list[int] = []
        self.database.on_commit = lambda _seconds, writes: self.commits.append(writes)
        self.database._reactor = self.clock

    def write(self, *, within: float = 0.0) -> Deferred[None]:
        """Ask for a write."""
        return start(self.database.write(lambda _cursor: None, durable=False, within=within))

    def commit(self, after: float = 0.0) -> list[int]:
        """Let so many seconds pass, and the thread do what there is; gives how many writes each commit had so far."""
        self.clock.advance(after)
        while self.database._calls:
            self.database.step()
            self.clock.advance(0)
        return self.commits

    def take(self) -> list[Any]:
        """Ask for the next job; what comes of it is put into the list."""
        taken: list[Any] = []
        start(self.store.take(resident=QWEN, warm=True, aside=())).addCallback(taken.append)
        return taken


@pytest.fixture
def office(tmp_path: Path) -> Office:
    """An empty store."""
    return Office(tmp_path / "foreman.db")


def test_a_write_that_has_time_costs_no_commit_of_its_own(office: Office) -> None:
    """It shares the next one, whoever asks for that."""
    waiting = office.write(within=0.005)
    assert office.commit(after=0.004) == []
    urgent = office.write()
    assert office.commit() == [2]
    assert waiting.called
    assert urgent.called
    assert office.commit(after=1.0) == [2]


def test_a_write_that_has_time_is_made_by_then(office: Office) -> None:
    """Without company it is committed when its time is over, and what came with it."""
    office.write(within=0.005)
    office.clock.advance(0.003)
    office.write(within=0.005)
    assert office.commit(after=0.001) == []
    assert office.commit(after=0.001) == [2]


def test_a_write_that_comes_while_another_commits_keeps_its_time(office: Office) -> None:
    """The end of a commit hurries nobody, and forgets nobody."""
    office.write()
    office.clock.advance(0)
    office.write(within=0.005)
    assert office.commit() == [1]
    assert office.commit(after=0.005) == [1, 1]


def test_closing_waits_for_nobodys_time(office: Office) -> None:
    """A write that had time is made all the same when foreman stops, and at once."""
    waiting = office.write(within=60.0)
    closing = start(office.store.stop())
    office.commit()
    assert waiting.called
    assert closing.called


def test_an_idle_worker_takes_in_the_commit_of_the_accept(office: Office) -> None:
    """A call that meets an idle foreman is stored and picked with one commit, which its first byte waits for."""
    takes: list[list[Any]] = []
    office.store.on_coming = lambda: takes.append(office.take())
    accepted = start(office.store.accept([new_job(1, sync=True)]))
    assert office.store.expecting
    assert office.commit() == [2]
    assert accepted.called
    assert [taken.job.id for [taken] in takes] == [new_job(1).id]
    assert not office.store.expecting


def test_while_a_job_runs_the_rows_of_calls_have_time(office: Office) -> None:
    """Calls that have to wait anyway share the commit of the job's end and the next pick."""
    start(office.store.accept([new_job(1)]))
    office.commit()
    running = office.take()
    office.commit()
    office.commits.clear()
    for number in (2, 3):
        start(office.store.accept([new_job(number, sync=True)]))
        assert office.commit(after=COMPANY / 4) == []
    start(office.store.end(running[0].job, Ending(error=None, at=20)))
    assert office.commit() == [3]
    start(office.store.accept([new_job(4, sync=True)]))
    assert office.commit() == [3, 1]  # nothing runs any more: at once


def test_who_posts_a_job_is_not_made_to_wait(office: Office) -> None:
    """The row of an async job is committed at once, whatever runs: its `202` comes only then."""
    start(office.store.accept([new_job(1)]))
    office.commit()
    office.take()
    assert office.commit() == [1, 1]
    start(office.store.accept([new_job(2)]))
    assert office.commit() == [1, 1, 1]


def test_a_job_on_its_way_is_expected(office: Office) -> None:
    """Between the call and its commit the worker knows that there will be something to take."""
    nothing_yet = office.store.expecting
    accepting = start(office.store.accept([new_job(1)]))
    assert office.store.expecting
    office.commit()
    assert accepting.called
    assert (nothing_yet, office.store.expecting) == (False, True)
