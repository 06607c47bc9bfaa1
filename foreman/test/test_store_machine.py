"""The store against a plain model of it, in any order of calls, with restarts and crashes at any step."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import pytest
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from foreman.errors import KeyGone, KeyReused, QueueFull
from foreman.job import Artifact, Ending, ErrorCode, IdempotencyKey, Job, JobError, Runner, Submission
from foreman.record import DeliveryState, DeliveryTry
from foreman.test.strategies import RUNNERS, SteppedDatabase, new_job, runners
from foreman.work.deliveries import Deliveries
from foreman.work.moves import Transaction, ended
from foreman.work.recovery import Recovered
from foreman.work.store import Store

T = TypeVar("T")

MAX_QUEUE = 12
MAX_ATTEMPTS = 2
INFINITY = 10**15
arrivals = st.tuples(runners, st.sampled_from([False, False, True]))
"""A job's runner, and whether a client waits for it."""

ERROR = JobError(ErrorCode.TARGET_ERROR, "it broke")


@define
class Row:
    """What the model knows of a job."""

    runner: Runner
    sync: bool
    state: str = "queued"
    attempt: int = 0
    failures: int = 0
    orphaned: int = 0
    not_before: int = 0
    completed_at: int | None = None
    code: str | None = None
    expires_at: int | None = None
    told: bool = False
    key: str | None = None
    events: list[str] = field(factory=lambda: ["queued"])
    kept: list[str] = field(factory=list)
    seen: list[Job] = field(factory=list)

    def become(self, state: str) -> None:
        """One transition, which leaves an event."""
        self.state = state
        self.events.append(state)

    def fail(self, code: str, now: int) -> None:
        """Fail for good."""
        self.become("failed")
        self.code, self.completed_at, self.not_before = code, now, 0

    def charge(self, now: int) -> None:
        """Charge one failure."""
        self.failures += 1
        if self.failures >= MAX_ATTEMPTS:
            self.fail("attempts_exhausted", now)
        else:
            self.become("queued")


@define
class Known:
    """What the model knows of a request with a key."""

    digest: bytes
    ids: tuple[str, ...]
    gone_at: int | None = None


class StoreMachine(RuleBasedStateMachine):
    """Every call the worker, the web and a crash can make."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.lives = 0
        self.now = 1_000_000
        self.number = 0
        self.wakes = 0
        self.rows: dict[int, Row] = {}
        self.keys: dict[str, Known] = {}
        self.heard: dict[int, int] = {}
        self.kept: tuple[bytes, int] | None = None

    def teardown(self) -> None:
        """Leave nothing behind."""
        self.database.finish(self.store.stop())
        self.folder.cleanup()

    def run(self, work: Awaitable[T]) -> T:
        """The result of a call."""
        return self.database.finish(work)

    @initialize(chosen=st.lists(arrivals, min_size=3, max_size=6))
    def first_start(self, chosen: list[tuple[Runner, bool]]) -> None:
        """An empty folder, and some jobs to begin with."""
        self.open(Path(self.folder.name) / "foreman.db")
        self.accept_all(chosen)

    def open(self, path: Path) -> None:
        """Start on what is there, as the model says it should."""
        self.path = path
        self.database = SteppedDatabase(path)
        self.store = Store(self.database, lambda: self.now, MAX_QUEUE, MAX_ATTEMPTS)
        self.deliveries = Deliveries(self.store, self.database)
        recovered = self.run(self.store.start())
        self.store.on_wake = self.wake
        requeued = interrupted = exhausted = 0
        for row in self.rows.values():
            if row.sync and row.state in ("queued", "loading", "working"):
                row.fail("interrupted", self.now)
                interrupted += 1
            elif row.state in ("loading", "working"):
                row.orphaned += 1
                if row.orphaned >= 3:
                    row.charge(self.now)
                else:
                    row.become("queued")
                requeued += row.state == "queued"
                exhausted += row.state == "failed"
        assert recovered == Recovered(requeued=requeued, interrupted=interrupted, exhausted=exhausted)

    def wake(self) -> None:
        """Count a wake-up, at which the counters are already right."""
        self.wakes += 1

    def in_state(self, *states: str) -> list[int]:
        """The jobs in these states."""
        return [seq for seq, row in self.rows.items() if row.state in states]

    # -- callers -----------------------------------------------------------------------------------------------------

    @rule(chosen=st.lists(arrivals, min_size=1, max_size=6))
    def accept(self, chosen: list[tuple[Runner, bool]]) -> None:
        """All are stored, or the queue is full and none is."""
        self.accept_all(chosen)

    def accept_all(self, chosen: list[tuple[Runner, bool]]) -> None:
        """Jobs of these runners, sync or not."""
        new = [
            new_job(self.number + place, runner=runner, sync=sync, created_at=self.now)
            for place, (runner, sync) in enumerate(chosen)
        ]
        wakes = self.wakes
        if len(self.in_state("queued")) + len(new) > MAX_QUEUE:
            with pytest.raises(QueueFull):
                self.run(self.store.accept(new))
            assert self.wakes == wakes
            return
        jobs = self.run(self.store.accept(new))
        assert self.wakes == wakes + 1
        self.number += len(new)
        assert [job.id for job in jobs] == [each.id for each in new]
        for job in jobs:
            assert job.seq > max(self.rows, default=0)
            self.rows[job.seq] = Row(job.runner, job.sync, seen=[job])

    @precondition(lambda self: self.in_state("queued", "loading", "working"))
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        """A queued or loading job fails; the state it was in is told."""
        seq = data.draw(st.sampled_from([*self.in_state("loading", "working"), *sorted(self.rows)]))
        row = self.rows[seq]
        assert self.run(self.store.abandon(seq, JobError(ErrorCode.CANCELLED, "left"))) == row.state
        if row.state in ("queued", "loading"):
            row.fail("cancelled", self.now)

    @rule(
        chosen=st.lists(runners, min_size=1, max_size=3),
        key=st.sampled_from(["a", "b", "c"]),
        digest=st.sampled_from([b"1", b"2"]),
        told=st.booleans(),
        patience=st.none() | st.sampled_from([1, 20]),
    )
    def accept_once(self, chosen: list[Runner], key: str, digest: bytes, told: bool, patience: int | None) -> None:
        """A repeated request gives the same ids, even when the queue is full; another one with its key is refused."""
        expires_at = None if patience is None else self.now + patience
        submission = Submission(body=b"{}", webhook="http://example.net/hook" if told else None, expires_at=expires_at)
        new = [
            new_job(self.number + place, runner=runner, created_at=self.now, submission=submission)
            for place, runner in enumerate(chosen)
        ]
        accepting = self.store.accept_once(new, IdempotencyKey(key, digest))
        known = self.keys.get(key)
        if known is not None and known.digest != digest:
            with pytest.raises(KeyReused):
                self.run(accepting)
            return
        if known is not None and known.gone_at is not None:
            with pytest.raises(KeyGone):
                self.run(accepting)
            return
        if known is not None:
            accepted = self.run(accepting)
            assert (accepted.repeated, accepted.ids) == (True, known.ids)
            left = {job.id for job in accepted.jobs if job is not None}
            assert left == {row.seen[0].id for row in self.rows.values() if row.key == key}
            return
        if len(self.in_state("queued")) + len(new) > MAX_QUEUE:
            with pytest.raises(QueueFull):
                self.run(accepting)
            return
        accepted = self.run(accepting)
        self.number += len(new)
        assert (accepted.repeated, accepted.ids) == (False, tuple(each.id for each in new))
        self.keys[key] = Known(digest, accepted.ids)
        for job in accepted.jobs:
            assert job is not None
            self.rows[job.seq] = Row(job.runner, sync=False, expires_at=expires_at, told=told, key=key, seen=[job])

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """A job goes with all that is its own, unless it is at the target; of its request a tombstone stays."""
        seq = data.draw(st.sampled_from(sorted(self.rows)))
        row = self.rows[seq]
        assert self.run(self.store.delete(row.seen[0].id)) == row.state
        if row.state == "working":
            return
        del self.rows[seq]
        if row.key is not None and not any(other.key == row.key for other in self.rows.values()):
            self.keys[row.key].gone_at = self.now

    @rule()
    def expire(self) -> None:
        """Who has waited too long has failed."""
        expired = [
            self.rows[seq] for seq in self.in_state("queued") if (self.rows[seq].expires_at or INFINITY) <= self.now
        ]
        assert self.run(self.store.expire()) == len(expired)
        for row in expired:
            row.fail("expired", self.now)

    @precondition(lambda self: any(row.told for row in self.rows.values()))
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """Whoever is to be told of a job is told of everything, one after another."""
        told = [seq for seq, row in self.rows.items() if row.told]
        seq = data.draw(st.sampled_from(told))
        heard = []
        while due := self.run(self.deliveries.due(INFINITY, limit=100, per_host=100)):
            mine = [delivery for delivery in due if delivery.seq == seq]
            if not mine:
                break
            [delivery] = mine
            heard.append(delivery.event.state.value)
            outcome = DeliveryTry(sequence=delivery.event.sequence, at=self.now, status=200, error=None)
            self.run(self.deliveries.tried(delivery, outcome, DeliveryState.DELIVERED, None))
        row = self.rows[seq]
        assert heard == row.events[len(row.events) - len(heard) :]
        self.heard[seq] = len(row.events)

    # -- the worker --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.in_state("queued"))
    @rule(resident=st.none() | runners, warm=st.booleans(), aside=st.sets(runners, max_size=2))
    def take(self, resident: Runner | None, warm: bool, aside: set[Runner]) -> None:
        """The first in line of those that may run."""
        for row in self.rows.values():
            if row.not_before <= self.now:
                row.not_before = 0
        ready = [
            self.rows[seq].seen[-1]
            for seq in self.in_state("queued")
            if self.rows[seq].not_before == 0 and self.rows[seq].runner not in aside
        ]
        taken = self.run(self.store.take(resident=resident, warm=warm, aside=aside))
        if not ready:
            assert taken is None
            return

        def place(each: Job) -> tuple[bool, bool, int]:  # the contract's words; `order_key` is what is tested
            return each.runner != resident, resident is None or each.runner.model != resident.model, each.seq

        expected = min(ready, key=place)
        assert taken is not None
        job = taken.job
        assert job.seq == expected.seq
        row = self.rows[job.seq]
        row.attempt += 1
        row.become("loading")
        if warm and row.runner == resident:
            row.become("working")
        assert job.loading_at == self.now
        assert job.working_at == (self.now if row.state == "working" else None)
        row.seen.append(job)

    def held(self, data: st.DataObject, *states: str) -> tuple[Job, Row]:
        """A job in one of these states, as the worker holds it."""
        row = self.rows[data.draw(st.sampled_from(self.in_state(*states)))]
        return row.seen[-1], row

    @precondition(lambda self: self.in_state("loading"))
    @rule(data=st.data())
    def work(self, data: st.DataObject) -> None:
        """From loading to working."""
        job, row = self.held(data, "loading")
        working = self.run(self.store.work(job))
        assert working is not None
        assert working.working_at == self.now
        row.become("working")
        row.seen.append(working)

    @precondition(lambda self: self.in_state("working"))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """From working to done."""
        job, row = self.held(data, "working")
        artifacts = () if row.sync else (Artifact(name="completion", content_type="application/json", body=b"{}"),)
        ending = Ending(error=None, at=self.now, output_tokens=7, artifacts=artifacts)
        assert self.run(self.store.end(job, ending))
        row.become("done")
        row.completed_at, row.kept = self.now, [artifact.name for artifact in artifacts]

    @precondition(lambda self: self.in_state("loading", "working"))
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """From loading or working to failed."""
        job, row = self.held(data, "loading", "working")
        assert self.run(self.store.end(job, Ending(error=ERROR, at=self.now)))
        row.fail("target_error", self.now)

    @precondition(lambda self: self.in_state("loading", "working"))
    @rule(data=st.data(), delay=st.sampled_from([0, 5, 50]), charge=st.booleans())
    def put_back(self, data: st.DataObject, delay: int, charge: bool) -> None:
        """Queued again, or failed when that was its last chance."""
        job, row = self.held(data, "loading", "working")
        not_before = self.now + delay if delay else 0
        wakes = self.wakes
        artifacts = () if row.sync else (Artifact(name="partial", content_type="text/plain", body=b"so far"),)
        remains = Ending(error=ERROR, at=self.now, artifacts=artifacts)
        after = self.run(
            self.store.put_back(job, not_before=not_before, charge=ERROR if charge else None, remains=remains)
        )
        assert after is not None
        row.not_before, row.orphaned = not_before, 0
        if charge:
            row.charge(self.now)
        else:
            row.become("queued")
        if row.state == "failed":
            row.kept = [artifact.name for artifact in artifacts]
        assert (after.error is None) == (row.state == "queued")
        assert self.wakes - wakes == (row.state == "queued" and delay == 0)
        row.seen.append(after)

    @rule(data=st.data(), charge=st.none() | st.just(ERROR))
    def too_late(self, data: st.DataObject, charge: JobError | None) -> None:
        """Somebody with an old view of a job changes nothing."""
        old = [
            job
            for row in self.rows.values()
            for job in row.seen
            if job.state in ("loading", "working") and (job.state, job.attempt) != (row.state, row.attempt)
        ]
        if not old:
            return
        job = data.draw(st.sampled_from(old))
        assert not self.run(self.store.end(job, Ending(error=ERROR, at=self.now)))
        assert self.run(self.store.put_back(job, not_before=0, charge=charge)) is None
        assert job.state == "working" or self.run(self.store.work(job)) is None

    # -- the rest ----------------------------------------------------------------------------------------------------

    @rule(by=st.sampled_from([1, 5, 60, -3]))
    def time_passes(self, by: int) -> None:
        """A clock may step back, too."""
        self.now += by

    @precondition(lambda self: self.in_state("done", "failed"))
    @rule(age=st.integers(0, 100), limit=st.integers(1, 3))
    def prune(self, age: int, limit: int) -> None:
        """The oldest ended jobs go, others stay."""
        before = self.now - age
        old = sorted(
            (row.completed_at, seq)
            for seq, row in self.rows.items()
            if row.completed_at is not None
            and row.completed_at < before
            and (not row.told or self.heard.get(seq) == len(row.events))
        )
        assert self.run(self.store.prune(before, limit)) == min(len(old), limit)
        left = set(self.run(self.database.read(lambda cursor: cursor.execute("SELECT seq FROM jobs").fetchall())))
        gone = [seq for _at, seq in old if (seq,) not in left]
        # Which of those that ended in the same millisecond went is nobody's business.
        assert [self.rows[seq].completed_at for seq in gone] == [at for at, _seq in old[:limit]]
        for seq in gone:
            key = self.rows.pop(seq).key
            if key is not None and not any(other.key == key for other in self.rows.values()):
                del self.keys[key]
        self.keys = {key: known for key, known in self.keys.items() if known.gone_at is None or known.gone_at >= before}

    @rule(how=st.sampled_from(["stop", "kill", "kill while writing"]), value=st.binary(max_size=8))
    def restart(self, how: str, value: bytes) -> None:
        """Remember an answer, end in one way or another, and start on the same files."""
        self.run(self.store.keep("tags", value))
        self.kept = (value, self.now)
        match how:
            case "stop":
                path = self.path
                self.run(self.store.stop())
            case "kill":
                path = self.snapshot()
                self.database.drop()
            case _:
                path = self.killed_while_writing()
                self.database.drop()
        self.open(path)

    def snapshot(self) -> Path:
        """The files as they are now, in a new place."""
        self.lives += 1
        return self.database.snapshot(Path(self.folder.name) / str(self.lives))

    def killed_while_writing(self) -> Path:
        """The files in the midst of a transaction: its caller was told nothing, and nothing of it may be found."""
        copies: list[Path] = []

        def die(cursor: sqlite3.Cursor) -> None:
            cursor.execute("PRAGMA cache_size = 1")  # have unfinished work reach the files
            transaction = Transaction(cursor, self.now)
            transaction.accept(new_job(99_999))
            for seq in self.in_state("queued"):
                job = transaction.at(seq)
                assert job is not None
                transaction.move(job, ended(job, Ending(error=ERROR, at=self.now)))
            copies.append(self.snapshot())
            raise SystemError("killed")

        with pytest.raises(SystemError):
            self.run(self.database.write(die, durable=True))
        return copies[0]

    def all_of(self, query: str) -> list[tuple[object, ...]]:
        """What a query gives."""
        return self.run(self.database.read(lambda cursor: cursor.execute(query).fetchall()))

    @invariant()
    def the_store_is_the_model(self) -> None:
        """Every row, every counter and every question about them agree with the model."""
        query = """
            SELECT seq, sync, state, attempt, failures, orphaned, not_before, completed_at, error_code
            FROM jobs ORDER BY seq
        """
        stored = self.run(self.database.read(lambda cursor: cursor.execute(query).fetchall()))
        expected = []
        for seq, row in sorted(self.rows.items()):
            progress = (row.attempt, row.failures, row.orphaned)
            expected.append((seq, row.sync, row.state, *progress, row.not_before, row.completed_at, row.code))
        assert stored == expected
        asyncs = {seq: row for seq, row in self.rows.items() if not row.sync}
        events = self.all_of("SELECT seq, state, previous FROM events ORDER BY seq, sequence")
        assert events == [
            (seq, state, previous)
            for seq, row in sorted(asyncs.items())
            for state, previous in zip(row.events, [None, *row.events], strict=False)
        ]
        assert self.all_of("SELECT seq FROM bodies ORDER BY seq") == [
            (seq,) for seq, row in sorted(asyncs.items()) if row.completed_at is None
        ]
        assert self.all_of("SELECT seq, name FROM artifacts ORDER BY seq") == [
            (seq, name) for seq, row in sorted(asyncs.items()) for name in row.kept
        ]
        assert self.all_of("SELECT key, gone_at FROM idempotency ORDER BY key") == sorted(
            (key, known.gone_at) for key, known in self.keys.items()
        )
        queued = [self.rows[seq] for seq in self.in_state("queued")]
        backlog = self.store.backlog
        assert backlog.queued == len(queued)
        assert backlog.running == len(self.in_state("loading", "working"))
        for runner in RUNNERS:
            assert backlog.of(runner) == sum(row.runner == runner for row in queued)
        models = [f"{row.runner.model}:latest" for row in queued]
        assert backlog.by_model() == {model: models.count(model) for model in models}
        assert self.run(self.store.next_due()) == min(filter(None, (row.not_before for row in queued)), default=None)
        oldest = min(self.in_state("queued"), default=None)
        assert self.run(self.store.oldest()) == (None if oldest is None else self.rows[oldest].seen[0].created_at)
        assert self.run(self.store.kept("tags")) == self.kept


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=80, stateful_step_count=40)
