"""What happened to each job, as a plain list, and what it holds against foreman.

The ledger is no second implementation: it is told what callers, target and time did, hears each move that foreman says
it has made, and judges it by the contract.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from attrs import evolve

from foreman.errors import Unwritable
from foreman.job import Job, JobState, Runner
from foreman.test.engine import ARROWS, MAX_ATTEMPTS, OVER, RUNNING, Engine, Look, Row
from foreman.test.engine_target import BEFORE_THE_HEAD, DIGESTS, ENDS, NO_ANSWER, Ask, End, ScriptedTarget
from foreman.work.moves import Move, Taken

Judge = TypeVar("Judge", bound=Callable[..., Any])


def judge(method: Judge) -> Judge:
    """Foreman calls it, and must not swallow what it finds: that is raised after the step."""

    @wraps(method)
    def judged(ledger: Ledger, *arguments: Any) -> Any:
        try:
            return method(ledger, *arguments)
        except AssertionError as found:
            ledger.found.append(found)
            return None

    return judged  # type: ignore[return-value]


class Ledger:
    """The list, over all lives of foreman on one file.

    :ivar rows: the jobs there are, in the order of their acceptance; `drafts`: those that were brought, by id.
    :ivar promised: the ids that an async caller was told.
    :ivar picked: the job that the worker took last.
    :ivar belief: the runner that foreman has reason to believe resident.
    :ivar found: what is wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[AssertionError] = []
        self.target = ScriptedTarget()
        self.target.on_load = self.loads
        self.target.on_generation = self.generates
        self.target.on_cut = self.is_cut
        self.target.on_unload = self.unloads
        self.target.on_away = self.is_away
        self.rows: list[Row] = []
        self.drafts: dict[str, Row] = {}
        self.promised: set[str] = set()
        self.paused_until = 0
        self.prunable: set[str] = set()
        self.lives: list[Engine] = []

    def find(self, job_id: str) -> Row:
        """What is known of that job; nobody may have heard of it yet."""
        return next((row for row in self.rows if row.id == job_id), self.drafts[job_id])

    def has(self, *states: str) -> bool:
        """Whether there is a job in one of these states."""
        return any(row.state in states for row in self.rows)

    # -- lives -------------------------------------------------------------------------------------------------------

    def live(self, now: int) -> None:
        """Start on the file there is."""
        self.engine = Engine(self.path, self.target, now)
        self.lives.append(self.engine)  # the dead are kept: one that is collected says a last word
        self.engine.store.on_move.append(self.moved)
        self.stopping = False
        self.picked: Row | None = None
        self.look: Look | None = None
        self.belief: Runner | None = None
        self.warm_until = 0.0
        self.aside: dict[Runner, float] = {}
        self.busy_until, self.busies = 0.0, 0
        self.charges: list[int] = []
        self.wedged, self.trials = False, 0
        self.lifted: dict[int, int] = {}
        self.pause_begun: set[str] = set()
        self.engine.open()
        self.observer = sqlite3.connect(self.path, isolation_level=None)
        self.unwritten: set[str] = set()
        self.watch("end")
        self.watch("put_back")
        self.watch("lift")
        take = self.engine.store.take

        async def asked(*, resident: Runner | None, warm: bool, aside: Collection[Runner]) -> Taken | None:
            self.asks(resident, warm)
            return await take(resident=resident, warm=warm, aside=aside)

        self.engine.store.take = asked  # type: ignore[method-assign]
        self.adopt()
        self.engine.inventory.on_poll.append(self.polled)
        self.engine.pause.unload = self.clears
        identify = self.engine.store.backlog.identify

        def identified(runner: Runner, digest: str) -> None:
            identify(runner, digest)
            self.identified(runner, digest)

        self.engine.store.backlog.identify = identified  # type: ignore[method-assign]
        self.engine.begin()

    def watch(self, name: str) -> None:
        """See what the worker could not write yet, by the call with which it writes that."""
        write = getattr(self.engine.store, name)

        async def watched(first: Any, *arguments: Any, **more: Any) -> Any:
            key = f"{name} {getattr(first, 'id', '')}"
            try:
                result = await write(first, *arguments, **more)
            except Unwritable:
                self.unwritten.add(key)
                raise
            self.unwritten.discard(key)
            return result

        setattr(self.engine.store, name, watched)

    def bury(self) -> None:
        """Foreman is dead; kill it if it is not."""
        if self.lives:
            self.observer.close()
            self.engine.die()

    def live_again(self) -> None:
        """Start on what the last foreman has left."""
        self.target.forget()
        self.read_the_last_will()
        for row in self.rows:
            row.cancels = row.cancels and row.never  # who was not told has to ask again
        self.live(self.engine.now() + 1000)

    def adopt(self) -> None:
        """Hold what a start has made of the file against what it should have, crash or not."""
        stored = {row[0]: row for row in self.stored()}
        for row in self.rows:
            if row.state in RUNNING or (row.sync and row.state == "queued"):
                self.recover(row)
            assert row.id in stored, f"{row.id} is lost"

    def recover(self, row: Row) -> None:
        """What the contract says of a job whose foreman is gone."""
        if row.sync:
            row.become("failed")
            row.code, row.not_before = "interrupted", 0
            return
        row.orphaned += 1
        state = row.charge() if row.orphaned >= 3 else "queued"
        row.become(state)
        row.not_before = 0
        if state == "failed":
            row.code = "attempts_exhausted"

    def read_the_last_will(self) -> None:
        """Take over what the last foreman wrote without telling anybody."""
        observer = sqlite3.connect(self.path, isolation_level=None)
        query = "SELECT id, seq, state, attempt, failures, error_code, not_before, runner_model FROM jobs ORDER BY seq"
        stored = {row[0]: row for row in observer.execute(query)}
        events: dict[int, list[str]] = {}
        for seq, state in observer.execute("SELECT seq, state FROM events ORDER BY seq, sequence"):
            events.setdefault(seq, []).append(state)
        observer.close()
        known = {row.id for row in self.rows}
        for job_id in stored:
            if job_id not in known:
                self.rows.append(evolve(self.drafts[job_id], seq=stored[job_id][1]))
        for row in [row for row in self.rows if row.id not in stored]:
            self.forget(row)
        for row in self.rows:
            _, seq, state, attempt, failures, code, not_before, model = stored[row.id]
            row.runner = evolve(row.runner, model=model)
            if failures == max(0, row.failures - self.lifted.get(seq, 0)):
                row.failures = failures
            if (state, attempt) == (row.state, row.attempt):
                continue
            assert row.state not in OVER, "what was over has moved"
            if not row.sync:
                assert events[seq][: len(row.moves)] == row.moves
                row.moves = events[seq]
            row.state, row.attempt, row.failures, row.code, row.not_before = state, attempt, failures, code, not_before
            if state == "queued" or code == "attempts_exhausted":
                row.orphaned = 0
        assert self.promised <= {row.id for row in self.rows}, "an acknowledged job is lost"

    def forget(self, row: Row) -> None:
        """A row is gone; somebody must have wanted it."""
        assert row.deletes or row.id in self.prunable, f"{row.id} is gone"
        self.rows.remove(row)
        self.promised.discard(row.id)

    # -- what callers were told --------------------------------------------------------------------------------------

    @judge
    def was_deleted(self, row: Row) -> None:
        """The caller has been told that the job is gone."""
        row.never = True
        self.is_left_alone(row)
        found = self.observer.execute("SELECT 1 FROM jobs WHERE id = ?", (row.id,)).fetchone()
        assert found is None, "a deleted job is still there"

    def is_left_alone(self, row: Row) -> None:
        """Its request is not at the target."""
        generation = self.target.generation
        assert generation is None or generation.prompt != row.id, "the target works for nobody"

    @judge
    def was_cancelled(self, row: Row, done: bool | None) -> None:
        """The caller has been told whether the job was cancelled."""
        found = self.observer.execute("SELECT state, error_code FROM jobs WHERE id = ?", (row.id,)).fetchone()
        if done:
            row.never = True
            self.is_left_alone(row)
            assert found in (("failed", "cancelled"), None)
        elif done is False:
            assert found is None or found[0] in OVER

    # -- judging the worker ------------------------------------------------------------------------------------------

    @judge
    def asks(self, resident: Runner | None, warm: bool) -> None:
        """The worker asks for a job."""
        engine, seconds = self.engine, self.engine.clock.seconds()
        assert not self.stopping, "a stopping foreman takes a job"
        assert engine.now() >= self.paused_until, "a paused foreman takes a job"
        assert seconds >= self.busy_until, "the target was to be left alone"
        assert self.target.generation is None
        assert resident == (self.belief and self.known(self.belief)), "that runner is not resident"
        assert not warm or (resident is not None and seconds < self.warm_until), "taken for warm"
        assert not self.unwritten, "a job is taken while an end cannot be written"
        aside = frozenset(self.known(runner) for runner, until in self.aside.items() if until > seconds)
        self.look = Look(engine.now(), seconds, resident, warm, aside)

    def known(self, runner: Runner) -> Runner:
        """A runner by its model's digest, if foreman has a list."""
        if not self.engine.inventory.models:
            return runner
        return evolve(runner, model=DIGESTS.get(runner.model, runner.model))

    @judge
    def moved(self, move: Move) -> None:
        """Foreman says that a job has moved."""
        job = move.job
        if move.was is None:
            assert job.seq > max((row.seq for row in self.rows), default=0)
            self.rows.append(evolve(self.drafts[job.id], seq=job.seq))
            return
        row = self.find(job.id)
        assert move.was == row.state
        assert job.state in ARROWS[row.state]
        match job.state:
            case JobState.LOADING:
                self.is_picked(row, job)
            case JobState.WORKING:
                assert row is self.picked
                assert not row.never
                row.warm = row.load is None
            case JobState.DONE:
                assert row.outcome == End(None), "done, but not by the target"
            case JobState.QUEUED:
                self.is_put_back(row, job)
            case JobState.FAILED:
                self.has_failed(row, job)
        row.become(job.state)

    @judge
    def identified(self, runner: Runner, digest: str) -> None:
        """A job that waits under a model's name has its digest now."""
        assert DIGESTS[runner.model] == digest
        stored = {row[0]: row[-1] for row in self.stored()}
        for row in self.rows:
            if row.runner == runner and stored.get(row.id) == digest:
                assert row.state == "queued"
                row.runner = Runner(digest, runner.options)

    def is_picked(self, row: Row, job: Job) -> None:
        """It must be the first in line."""
        look = self.look
        assert look is not None
        ready = [
            each
            for each in self.rows
            if each.state == "queued" and each.not_before <= look.now and each.runner not in look.aside
        ]

        def place(each: Row) -> tuple[bool, bool, int]:
            resident = look.resident
            return each.runner != resident, resident is None or each.runner.model != resident.model, each.seq

        assert row.id == min(ready, key=place).id, "not the first in line"
        assert job.attempt == row.attempt + 1
        self.lift(row, job.failures)
        assert not row.never
        row.attempt += 1
        row.not_before = 0
        row.warm, row.load, row.renewed, row.cut, row.outcome = False, None, False, False, None
        row.paused = self.engine.now() < self.paused_until
        self.picked = row

    def is_put_back(self, row: Row, job: Job) -> None:
        """Its try has failed, or never was."""
        row.orphaned = 0
        row.not_before = 0
        if row.outcome is None:
            assert job.failures == row.failures, "charged for nothing"
            stopped = self.stopping and not row.sync
            assert stopped or (row.state == "loading" and row.paused), "put back for nothing"
            return
        assert row.outcome.again
        assert job.failures == row.failures + row.outcome.charged
        if row.outcome.charged:
            row.not_before = row.due
        row.failures = job.failures
        assert row.failures < MAX_ATTEMPTS, "tried too often"

    def backoff(self, row: Row) -> int:
        """Milliseconds."""
        return int(2 ** (row.failures + 1)) * 1000

    def has_failed(self, row: Row, job: Job) -> None:
        """Somebody must have wanted that, or the target."""
        assert job.error is not None
        row.code = code = job.error.code.value
        end = row.outcome
        match code:
            case "cancelled":
                assert row.cancels or row.deletes
            case "client_disconnected":
                assert row.left
            case "interrupted":
                assert row.sync
                assert self.stopping
            case "expired":
                assert row.state == "queued"
                assert row.expires_at <= self.engine.now()
            case "timeout" if row.cut:
                assert self.engine.clock.seconds() >= row.began + row.timeout
            case "attempts_exhausted":
                assert end is not None
                assert end.again
                assert end.charged
                assert job.failures == row.failures + 1 == MAX_ATTEMPTS
                row.orphaned = 0
            case _:
                assert end is not None
                assert code == end.code
                assert row.sync or not end.again, "given up too early"
                assert job.failures == row.failures + (end.again and end.charged)
        if code in ("cancelled", "client_disconnected", "expired"):
            assert end is None or end.again or row.state != "working", "ended otherwise than it did"
        row.failures, row.not_before = job.failures, 0

    # -- what the target sees ----------------------------------------------------------------------------------------

    @judge
    def loads(self, ask: Ask) -> None:
        """A load request: for the job in hand, or to make its runner outlive it, or to pay what is owed for that."""
        row = self.picked
        assert self.target.load is None, "two loads at once"
        assert row is not None
        in_hand = row.outcome is None and not row.cut and not row.warm and row.load is None
        if self.target.generation is not None or not in_hand:
            assert ask.body["keep_alive"] in (-1, "1m")
            return
        assert (ask.model, ask.options) == (row.name, row.runner.options)
        assert set(self.target.memory) <= {ask.model}, "loaded beside another"
        row.load = "asked"
        self.belief = None

    @judge
    def is_away(self) -> None:
        """The target could not be reached for a job, or for what else the worker wanted of it."""
        row = self.picked
        if row is not None and row.outcome is None and not row.cut and self.target.generation is None:
            self.ends(row, ENDS["away"], whole=False, begun=False, load=False)

    @judge
    def unloads(self, name: str) -> None:
        """An unload request."""
        assert self.target.generation is None, "unloaded under a job"

    def ends_load(self, ask: Ask, how: str) -> None:
        """A load request is over."""
        how = how if self.target.there or how in NO_ANSWER else "asleep"
        row = self.picked
        assert row is not None
        if row.load != "asked":
            if how == "ok" and ask.body["keep_alive"] == -1:
                row.renewed = True
                if row.outcome == End(None):
                    self.warm_until = self.engine.clock.seconds() + 2.0
            self.target.end_load(ask, how)
            return
        row.load = how
        if how == "ok":
            self.belief = row.runner
        elif not (row.sync and how not in NO_ANSWER):
            end = ENDS[how]
            self.ends(row, end, whole=False, begun=False, load=True)
        self.target.end_load(ask, how)

    @judge
    def generates(self, ask: Ask) -> None:
        """A generation begins."""
        assert self.target.generation is None, "two generations at once"
        row = self.picked
        assert row is not None
        assert row.id == ask.prompt
        assert row.state == "working"
        assert self.target.load is None or row.warm
        assert not row.never, "a cancelled job runs"
        assert not (row.sync and self.engine.clients[row.id].closed), "a job runs for nobody"
        assert self.engine.now() >= self.paused_until or row.id in self.pause_begun, "a paused foreman works"
        stored = self.observer.execute("SELECT state, attempt FROM jobs WHERE id = ?", (row.id,)).fetchone()
        assert stored == ("working", row.attempt), "the target was asked before that was written"
        if row.load is None:
            assert self.look is not None
            assert self.look.warm
        else:
            assert row.load == "ok" or row.sync
        row.began = self.engine.clock.seconds()

    @judge
    def is_cut(self, ask: Ask) -> None:
        """Foreman has closed a connection to the target."""
        row = self.picked
        assert row is not None
        if ask.sink is None:
            return
        row.cut = True
        self.warm_until = 0.0
        is_late = self.engine.clock.seconds() >= row.began + row.timeout
        assert row.left or row.cancels or row.deletes or self.stopping or is_late, "cut for nothing"

    def ends_generation(self, ask: Ask, how: str) -> None:
        """A generation is over."""
        if not self.target.there and how not in NO_ANSWER:
            how = "cut"
        if ask.begun and how in BEFORE_THE_HEAD:
            how = "cut"
        row = self.picked
        assert row is not None
        whole = how not in NO_ANSWER
        self.ends(row, ENDS[how], whole=whole, begun=ask.begun or whole, load=False)
        same = self.belief is not None and self.known(self.belief) == self.known(row.runner)
        if how == "done" and same and (row.renewed or "keep_alive" not in ask.body):
            self.warm_until = self.engine.clock.seconds() + 2.0
        else:
            self.warm_until = 0.0
        self.target.end_generation(ask, how)

    def ends(self, row: Row, end: End, *, whole: bool, begun: bool, load: bool) -> None:
        """What the end of a try means, for its job and for those behind it."""
        seconds = self.engine.clock.seconds()
        answered = row.sync and begun
        if load and end.again and end.charged:
            self.aside[row.runner] = seconds + self.backoff(row) / 1000
        if end.unreachable:
            self.belief, self.warm_until = None, 0.0
        if end.again and end.charged and not (answered and whole):
            end = evolve(end, charged=self.blame(row))
        if not end.again or answered:
            self.busies = 0
        elif end.busy:
            self.busies += 1
            self.busy_until = seconds + min(2.0 ** (self.busies - 1), 30.0)
        if whole and not end.again:
            self.absolve()
        row.outcome = end
        row.due = self.engine.now() + self.backoff(row)

    def blame(self, row: Row) -> bool:
        """A charged try; on a wedged target it charges nothing."""
        was_wedged = self.wedged
        if was_wedged:
            self.trials += 1
        else:
            self.charges.append(row.seq)
            self.wedged = len(self.charges) >= 3 and len(set(self.charges)) >= 2
        if self.wedged:
            self.busy_until = self.engine.clock.seconds() + min(30.0 * 2**self.trials, 300.0)
        return not was_wedged

    def absolve(self) -> None:
        """A success; the charges of a wedge are lifted from those who still wait."""
        if self.wedged:
            for seq in self.charges:
                self.lifted[seq] = self.lifted.get(seq, 0) + 1
        self.wedged, self.trials = False, 0
        self.charges.clear()

    def lift(self, row: Row, failures: int) -> None:
        """The charges of a wedge are taken back from a job that waits when that is written."""
        row.failures = max(0, row.failures - self.lifted.pop(row.seq, 0))
        assert failures == row.failures, "charged or lifted for nothing, or not lifted"

    async def clears(self) -> bool:
        """The target's memory is given back."""
        self.belief, self.warm_until = None, 0.0
        return await self.engine.residency.clear()

    @judge
    def polled(self) -> None:
        """A poll: what is not listed is not resident."""
        if self.belief is not None and self.target.load is None:
            names = [name for name, digest in DIGESTS.items() if self.belief.model in (name, digest)]
            if names[0] not in self.target.memory:
                self.belief, self.warm_until = None, 0.0

    # -- the file ----------------------------------------------------------------------------------------------------

    def stored(self) -> list[tuple[Any, ...]]:
        """The jobs in the file."""
        query = """
            SELECT id, seq, state, attempt, failures, orphaned, not_before, error_code, runner_model FROM jobs
            ORDER BY seq
        """
        return self.observer.execute(query).fetchall()

    def check(self) -> None:
        """Each job is in the file as the list has it, with an event for each of its moves."""
        if self.found:
            raise self.found[0]
        stored = {row[0]: row for row in self.stored()}
        for row in [row for row in self.rows if row.id not in stored]:
            self.forget(row)
        assert list(stored) == [row.id for row in self.rows]
        for row in self.rows:
            _, seq, state, attempt, failures, orphaned, not_before, code, model = stored[row.id]
            if state == "queued" and not self.engine.disk.waiting and not self.unwritten:
                self.lift(row, failures)
            assert (state, attempt, code) == (row.state, row.attempt, row.code)
            assert failures in (row.failures, max(0, row.failures - self.lifted.get(seq, 0)))
            assert orphaned == row.orphaned
            assert not_before in (row.not_before, 0)
            assert not_before or row.not_before <= self.engine.now()
            assert model == row.runner.model
        if self.target.generation is not None and self.picked is not None and not self.picked.sync:
            assert self.engine.clock.seconds() < self.picked.began + self.picked.timeout, "it runs for too long"
        events: dict[int, list[tuple[int, str, str | None]]] = {}
        for seq, *event in self.observer.execute("SELECT seq, sequence, state, previous FROM events ORDER BY 1, 2"):
            events.setdefault(seq, []).append(tuple(event))
        assert events == {
            row.seq: list(zip(range(1, len(row.moves) + 1), row.moves, [None, *row.moves], strict=False))
            for row in self.rows
            if not row.sync
        }
        for row in self.rows:
            assert row.state not in RUNNING or row is self.picked or row.is_over_at_the_target, "two in hand"
            assert len([state for state in row.moves if state in OVER]) <= 1, "ended twice"
