"""Store, order of work and worker together, in any order of events, with crashes, stops and starts at any step.

What must hold is in `foreman.test.engine_ledger`, what there is of foreman and its target in `foreman.test.engine`.
`pytest --hypothesis-profile=long` has this run for minutes, with other examples each time.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from twisted.internet.defer import Deferred

from foreman.job import NewJob, Runner
from foreman.ollama import requests
from foreman.record import DeliveryState, DeliveryTry
from foreman.test.engine import FOR_EVER, GRACE, MAX_RUN, OVER, ROUTE, RUNNING, Engine, Row, body_of, submission_of
from foreman.test.engine_ledger import Ledger
from foreman.test.engine_target import BAD_LOADS, DIGESTS, ENDS, Ask, ScriptedTarget


class EngineMachine(RuleBasedStateMachine):
    """Callers, the target, the disk, time and crashes."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.ledger = Ledger(Path(self.folder.name) / "foreman.db")
        self.number = 0

    @property
    def engine(self) -> Engine:
        """The life of foreman that there is now."""
        return self.ledger.engine

    @property
    def target(self) -> ScriptedTarget:
        """The target, which outlives it."""
        return self.ledger.target

    @property
    def rows(self) -> list[Row]:
        """The jobs."""
        return self.ledger.rows

    # -- lives -------------------------------------------------------------------------------------------------------

    @initialize(there=st.sampled_from([True, True, False]))
    def first_start(self, there: bool) -> None:
        """An empty folder."""
        self.target.there = there
        self.ledger.live(1_000_000_000)

    @precondition(lambda self: self.ledger.has("queued", *RUNNING))
    @rule(unheard=st.booleans(), at_work=st.booleans(), times=st.sampled_from([1, 1, 1, 3]))
    def crash(self, unheard: bool, at_work: bool, times: int) -> None:
        """The process is killed, perhaps between a commit and the word of it, and starts again; perhaps repeatedly."""
        for _ in range(times):
            if at_work:
                self.ask()
            if unheard and self.engine.disk.waiting:
                self.engine.disk.step_unheard()
            self.ledger.bury()
            self.ledger.live_again()

    @precondition(lambda self: self.ledger.has("queued", *RUNNING))
    @rule(patient=st.booleans(), at_work=st.booleans())
    def stop_and_start(self, patient: bool, at_work: bool) -> None:
        """An orderly stop: the running job gets its grace, what does not end in it waits again or has failed."""
        if at_work:
            self.ask()
        self.engine.settle()
        running = [row for row in self.rows if row.state in RUNNING and not row.is_over_at_the_target]
        failures = {row.id: row.failures for row in running}
        self.ledger.stopping = True
        stopped = self.engine.stop()
        seconds = 0
        while not stopped.called or self.engine.disk.waiting:
            self.engine.settle()
            if patient and self.target.generation is not None:
                self.ledger.ends_generation(self.target.generation, "done")
            elif not stopped.called:
                self.engine.advance(1, settling=True)
                seconds += 1
            assert seconds <= GRACE + 1, "a stop takes no longer than the grace"
        self.engine.advance(1, settling=True)
        self.engine.close()
        for row in running:
            assert row.state not in RUNNING, "a stop leaves a job as if it ran"
            assert row.outcome is not None or row.failures == failures[row.id], "a stop charges nobody"
        for client in self.engine.clients.values():
            assert client.closed, "a stop leaves nobody without an answer"
        self.ledger.bury()
        self.ledger.live_again()

    # -- callers -----------------------------------------------------------------------------------------------------

    @rule(
        name=st.sampled_from(sorted(DIGESTS)),
        num_ctx=st.sampled_from([None, None, 8192]),
        sync=st.sampled_from([False, False, True]),
        told=st.booleans(),
        patience=st.sampled_from([None, None, None, 3]),
        timeout=st.sampled_from([None, None, 2.0]),
        keep_alive=st.sampled_from([None, None, None, "1m"]),
        settling=st.booleans(),
        times=st.sampled_from([1, 1, 3]),
    )
    def submit(self, *, settling: bool, times: int, **how: Any) -> None:
        """Some jobs, by either door."""
        for _ in range(times):
            self.bring(**how)
        if settling:
            self.engine.settle()

    def bring(
        self,
        *,
        name: str,
        num_ctx: int | None,
        sync: bool,
        told: bool,
        patience: int | None,
        timeout: float | None,
        keep_alive: str | None,
    ) -> None:
        """One of them."""
        self.number += 1
        job_id = f"{self.number:026d}"
        body = body_of(job_id, name, num_ctx, keep_alive)
        read = requests.read(ROUTE.path, body)
        assert isinstance(read, requests.Inference)
        found = self.engine.inventory.find(name)
        runner = Runner(name if found is None else found.key, read.options)
        now = self.engine.now()
        draft = Row(0, job_id, sync, name, runner)
        submission = None
        if not sync:
            draft.told = told
            draft.expires_at = FOR_EVER if patience is None else now + patience * 1000
            draft.timeout = timeout or MAX_RUN
            expires_at = None if patience is None else draft.expires_at
            submission = submission_of(body, told=told, expires_at=expires_at, timeout=timeout)
        self.ledger.drafts[job_id] = draft
        new = NewJob(
            id=job_id,
            endpoint=ROUTE.path,
            model=name,
            runner=runner,
            size=len(body),
            created_at=now,
            submission=submission,
        )
        accepted = self.engine.submit(new, body)
        accepted.addCallbacks(lambda _: None if sync else self.ledger.promised.add(job_id), lambda _: None)

    def choose(self, data: st.DataObject, rows: list[Row]) -> Row:
        """One of these jobs."""
        job_id = data.draw(st.sampled_from([row.id for row in rows]), label="job")
        return self.ledger.find(job_id)

    @precondition(lambda self: any(not client.closed for client in self.engine.clients.values()))
    @rule(data=st.data(), at_work=st.booleans(), settling=st.booleans())
    def leave(self, data: st.DataObject, at_work: bool, settling: bool) -> None:
        """The client of a sync call hangs up; if its request is at the target, that is closed at once."""
        ask = self.ask() if at_work else None
        if ask is not None and ask.prompt in self.engine.clients:
            self.leaves(ask.prompt)
            return
        waiting = sorted(job_id for job_id, client in self.engine.clients.items() if not client.closed)
        if not waiting:
            return
        self.leaves(data.draw(st.sampled_from(waiting), label="client"))
        if settling:
            self.engine.settle()

    def leaves(self, job_id: str) -> None:
        """That client hangs up."""
        row = self.ledger.find(job_id)
        row.left = True
        self.engine.clients[job_id].leave()
        self.ledger.is_left_alone(row)

    @precondition(lambda self: self.rows)
    @rule(
        data=st.data(),
        erase=st.booleans(),
        when=st.sampled_from(["whenever", "loading", "working"]),
        settling=st.booleans(),
    )
    def cancel(self, data: st.DataObject, erase: bool, when: str, settling: bool) -> None:
        """A job is cancelled or deleted, whatever it is doing; its load goes on."""
        ask = None if when == "whenever" else self.ask(for_load=when == "loading")
        row = self.ledger.picked
        if ask is None or row is None or row not in self.rows:
            if not self.rows:
                return
            row = self.choose(data, [row for row in self.rows if row.state not in OVER] or self.rows)
        self.is_cancelled(row, erase=erase)
        if settling:
            self.engine.settle()
            self.ledger.is_left_alone(row)
        if ask is not None and ask is self.target.load:
            self.ledger.ends_load(ask, "ok")

    def is_cancelled(self, row: Row, *, erase: bool) -> None:
        """Somebody asks for that."""
        asked: Deferred[Any]
        if erase:
            row.deletes = True
            asked = Deferred.fromCoroutine(self.engine.worker.delete(row.id))
            asked.addCallbacks(lambda _: self.ledger.was_deleted(row), lambda _: None)
        else:
            row.cancels = True
            asked = Deferred.fromCoroutine(self.engine.worker.cancel(row.id))
            asked.addCallbacks(lambda done: self.ledger.was_cancelled(row, done), lambda _: None)

    # -- operators ---------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.ledger.has("queued", *RUNNING) and not self.engine.pause.active)
    @rule(seconds=st.sampled_from([5, 60]), unload=st.booleans(), loaded=st.booleans())
    def pause(self, seconds: int, unload: bool, loaded: bool) -> None:
        """The machine's owner wants it back; what was being loaded is loaded, perhaps, and not used."""
        self.engine.settle()
        for row in self.rows:
            row.paused = True
        self.ledger.pause_begun = {row.id for row in self.rows if row.state == "working"}
        self.ledger.paused_until = self.engine.now() + seconds * 1000
        begun = Deferred.fromCoroutine(self.engine.pause.begin(seconds, unload=unload))
        begun.addBoth(lambda _: None)
        self.engine.settle()
        assert self.engine.pause.active
        if loaded and self.target.load is not None:
            self.ledger.ends_load(self.target.load, "ok")
            self.engine.settle()

    @precondition(lambda self: self.engine.pause.active)
    @rule()
    def resume(self) -> None:
        """And gives it again."""
        self.ledger.paused_until = 0
        self.engine.run(self.engine.pause.end())

    @precondition(lambda self: self.ledger.has(*OVER))
    @rule(age=st.integers(0, 5), limit=st.integers(1, 5))
    def prune(self, age: int, limit: int) -> None:
        """Ended jobs go when they are old, but none of which somebody is still to be told."""
        self.engine.advance(1, settling=True)
        self.engine.settle()
        self.ledger.check()
        before = self.engine.now() - age * 1000
        old = {
            row.id
            for row in self.rows
            if row.state in OVER
            and self.completed_at(row) < before
            and not (row.told and row.delivered < len(row.moves))
        }
        self.ledger.prunable = old
        count = self.engine.run(self.engine.store.prune(before, limit))
        assert count == min(limit, len(old))
        self.ledger.check()
        self.ledger.prunable = set()

    def completed_at(self, row: Row) -> int:
        """When it ended, as stored: what is old is not at issue here."""
        (at,) = self.ledger.observer.execute("SELECT completed_at FROM jobs WHERE id = ?", (row.id,)).fetchone()
        return int(at)

    @precondition(lambda self: any(row.told and row.delivered < len(row.moves) for row in self.rows))
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """All that a receiver is still to hear of a job, in its order."""
        self.engine.settle()
        self.ledger.check()
        told = [row for row in self.rows if row.told and row.delivered < len(row.moves)]
        if not told:
            return
        row = self.choose(data, told)
        while True:
            due = self.engine.run(self.engine.deliveries.due(FOR_EVER, limit=1000, per_host=1000))
            mine = [delivery for delivery in due if delivery.seq == row.seq]
            if not mine:
                break
            [delivery] = mine
            assert delivery.event.sequence == row.delivered + 1
            assert delivery.event.state == row.moves[row.delivered]
            outcome = DeliveryTry(sequence=delivery.event.sequence, at=self.engine.now(), status=200, error=None)
            self.engine.run(self.engine.deliveries.tried(delivery, outcome, DeliveryState.DELIVERED, None))
            row.delivered += 1
        assert row.delivered == len(row.moves), "somebody is to be told, and is not"

    # -- the target --------------------------------------------------------------------------------------------------

    def ask(self, *, for_load: bool = False) -> Ask | None:
        """What the target is asked next, if it is asked anything soon; all loads before it go well."""
        for _ in range(40):  # a wedged target is left alone for half a minute
            self.engine.settle()
            if self.target.load is not None:
                if for_load:
                    return self.target.load
                self.ledger.ends_load(self.target.load, "ok")
            elif self.target.generation is not None:
                return None if for_load else self.target.generation
            elif self.ledger.has("queued", *RUNNING):
                self.engine.advance(1, settling=True)
        return None

    @precondition(lambda self: self.ledger.has("queued", *RUNNING))
    @rule(how=st.sampled_from([*BAD_LOADS, "ok"]), then=st.sampled_from(["settle", "", "leave"]))
    def load_ends(self, how: str, then: str) -> None:
        """A load is over, well or not; and perhaps the client of its job leaves just then."""
        ask = self.ask(for_load=True)
        row = self.ledger.picked
        if ask is None or row is None:
            return
        self.ledger.ends_load(ask, how)
        if then == "leave" and row.sync and not self.engine.clients[row.id].closed:
            self.leaves(row.id)
        if then:
            self.engine.settle()

    @precondition(lambda self: self.ledger.has("queued", *RUNNING))
    @rule(
        hows=st.lists(st.sampled_from(sorted(ENDS)), min_size=1, max_size=4)
        | st.integers(3, 5).map(lambda times: ["silent"] * times + ["done"]),
        goes_on=st.booleans(),
        then=st.sampled_from(["settle", "", "refuse"]),
    )
    def generations_end(self, hows: list[str], goes_on: bool, then: str) -> None:
        """Generations are over, well or not; and perhaps the disk is full just then."""
        for how in hows:
            ask = self.ask()
            if ask is None:
                return
            if goes_on and self.target.there:
                self.target.go_on(ask)
            self.ledger.ends_generation(ask, how)
            if then == "refuse" and self.engine.disk.waiting:
                self.engine.disk.refuse()
                self.engine.worker.wake()
            if then:
                self.engine.settle()

    @precondition(lambda self: self.ledger.has("queued", *RUNNING) and self.target.there)
    @rule()
    def target_leaves(self) -> None:
        """The lid is closed."""
        self.target.leave()

    @precondition(lambda self: not self.target.there)
    @rule(forgetful=st.booleans())
    def target_returns(self, forgetful: bool) -> None:
        """The lid is opened, and the memory empty perhaps."""
        self.target.there = True
        if forgetful:
            self.target.memory.clear()

    # -- time, the disk, and both ------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 1, 3, 35]), settling=st.booleans())
    def time_passes(self, seconds: int, settling: bool) -> None:
        """Time passes, whether or not the disk keeps up."""
        self.engine.advance(seconds, settling=settling)

    @precondition(lambda self: self.engine.disk.waiting)
    @rule()
    def disk_steps(self) -> None:
        """One call of the database comes to its end."""
        self.engine.disk.step()

    @precondition(lambda self: self.engine.disk.waiting)
    @rule()
    def disk_refuses(self) -> None:
        """One call of the database finds the disk full."""
        self.engine.disk.refuse()

    @rule()
    def nobody_waits_in_vain(self) -> None:
        """In a few seconds of quiet the worker has found what there is to do."""
        self.engine.settle()
        self.engine.advance(3, settling=True)
        seconds = self.engine.clock.seconds()
        target = self.target
        if not target.there or target.load or target.generation or self.engine.now() < self.ledger.paused_until:
            return
        if seconds <= self.ledger.busy_until + 3 or any(row.is_over_at_the_target for row in self.rows):
            return
        ready = [
            row
            for row in self.rows
            if row.state == "queued"
            and row.not_before < self.engine.now() - 3000
            and self.ledger.aside.get(row.runner, 0.0) < seconds - 3
        ]
        assert not ready, f"{ready[0].id} waits for nothing"

    # -- after each step ---------------------------------------------------------------------------------------------

    @invariant()
    def the_file_is_the_list(self) -> None:
        """Each job is in the file as the list has it, and nothing was found."""
        self.ledger.check()

    def teardown(self) -> None:
        """With a healthy target and time, every job comes to its end."""
        try:
            if self.ledger.lives and self.engine.alive:
                self.drive_to_the_end()
        finally:
            self.ledger.bury()
            self.folder.cleanup()

    def drive_to_the_end(self) -> None:
        """Everything ends."""
        self.target.there = True
        for _ in range(2000):
            self.engine.settle()
            if self.target.load is not None:
                self.ledger.ends_load(self.target.load, "ok")
            elif self.target.generation is not None:
                self.ledger.ends_generation(self.target.generation, "done")
            elif self.ledger.has("queued", *RUNNING):
                self.engine.advance(1, settling=True)
            else:
                break
        self.ledger.check()
        assert not self.ledger.has("queued", *RUNNING), "a job never ends"
        for client in self.engine.clients.values():
            assert client.closed, "a client waits for ever"


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=settings().max_examples * 2, stateful_step_count=40)
