"""The store's promises one by one, and that none of them grows slower as the queue grows longer."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError

from foreman.errors import QueueFull, StoreError, StoreLocked, Unwritable
from foreman.job import Ending, ErrorCode, Job, JobError, JobState, Runner
from foreman.test.strategies import RUNNERS, SteppedDatabase, failure_of, new_job, runners, start
from foreman.work import queries
from foreman.work.moves import Transaction
from foreman.work.recovery import Recovered
from foreman.work.schedule import order_key
from foreman.work.store import Store

QWEN, QWEN_LONG, GEMMA, PHI = RUNNERS
BROKE = JobError(ErrorCode.TARGET_ERROR, "connection reset")
DONE = Ending(error=None, at=50, first_byte_at=40, prompt_tokens=7, output_tokens=11)


class House:
    """A store on a real file, with a clock that the test sets."""

    def __init__(self, path: Path, *, max_queue: int = 1000, max_attempts: int = 3) -> None:
        self.now = 10
        self.wakes = 0
        self.levels: list[int] = []
        self.database = SteppedDatabase(path)
        self.store = Store(self.database, lambda: self.now, max_queue, max_attempts)
        self.run = self.database.finish
        self.recovered = self.run(self.store.start())
        self.store.on_wake = self.wake

    def wake(self) -> None:
        """Count."""
        self.wakes += 1

    def accept(self, *runners: Runner, sync: bool = False, first: int = 0) -> list[Job]:
        """Jobs of these runners, in this order."""
        return self.run(
            self.store.accept([new_job(first + n, runner=runner, sync=sync) for n, runner in enumerate(runners)])
        )

    def take(self, resident: Runner | None = None, *, warm: bool = False, aside: tuple[Runner, ...] = ()) -> Job:
        """The next job, which there is."""
        taken = self.run(self.store.take(resident=resident, warm=warm, aside=aside))
        assert taken is not None
        return taken.job

    def synchronous(self) -> int:
        """How the last commit was synchronised: 1 is NORMAL, 2 FULL."""
        level: int = self.run(self.database._writer.runWithConnection(_synchronous))
        return level


def _synchronous(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA synchronous").fetchone()[0])


@pytest.fixture
def house(tmp_path: Path) -> House:
    """A house with an empty queue."""
    return House(tmp_path / "foreman.db")


# -- accepting -------------------------------------------------------------------------------------------------------


def test_accepted_jobs_are_rows(house: House) -> None:
    """What is accepted can be asked for by its id, as it came, in the order it came."""
    jobs = house.accept(QWEN, GEMMA)
    assert [house.run(house.store.get(job.id)) for job in jobs] == jobs
    assert jobs[0].seq < jobs[1].seq
    assert jobs[0].runner == QWEN
    assert jobs[0].state is JobState.QUEUED
    assert house.run(house.store.get("nobody")) is None


@pytest.mark.parametrize(("syncs", "level"), [([True, True], 1), ([True, False], 2), ([False], 2)])
def test_async_jobs_are_on_the_disk(house: House, syncs: list[bool], level: int) -> None:
    """An async job is fsynced before its caller hears of it; a sync one, whose client would notice, is not."""
    house.run(house.store.keep("k", b""))
    house.run(house.store.accept([new_job(n, sync=sync) for n, sync in enumerate(syncs)]))
    assert house.synchronous() == level


def test_a_full_queue_takes_nothing(tmp_path: Path) -> None:
    """With FOREMAN_MAX_QUEUE jobs waiting, or on their way in, a batch is refused as a whole."""
    house = House(tmp_path / "foreman.db", max_queue=3)
    waiting = start(house.store.accept([new_job(1), new_job(2)]))
    with pytest.raises(QueueFull, match="at most 3"):
        house.run(house.store.accept([new_job(3), new_job(4)]))
    house.run(house.store.accept([new_job(5)]))
    assert len(waiting.result) == 2  # type: ignore[arg-type]
    with pytest.raises(QueueFull):
        house.run(house.store.accept([new_job(6)]))
    house.take()
    house.run(house.store.accept([new_job(7)]))
    assert house.store.backlog.queued == 3


def test_a_batch_is_all_or_none(house: House) -> None:
    """A batch with one job that cannot be stored stores none, holds no place, and wakes nobody."""
    house.accept(QWEN)
    for _again in range(600):
        with pytest.raises(sqlite3.IntegrityError):
            house.run(house.store.accept([new_job(7), new_job(0)]))
    assert (house.store.backlog.queued, house.wakes) == (1, 1)
    assert house.run(house.store.get(new_job(7).id)) is None


def test_hanging_up_loses_no_wake_up(house: House) -> None:
    """A client that hangs up while its job is being stored leaves a job that is stored, counted and run."""
    accepting = start(house.store.accept([new_job(1)]))
    accepting.cancel()
    assert isinstance(failure_of(accepting), CancelledError)
    assert (house.wakes, house.store.backlog.queued) == (0, 0)
    house.database.step()
    assert (house.wakes, house.store.backlog.queued) == (1, 1)
    assert house.take().id == new_job(1).id


def test_counters_are_right_at_the_wake_up(house: House) -> None:
    """Whoever is woken finds the job both in the counters and in the store."""
    seen: list[tuple[int, int]] = []
    house.store.on_wake = lambda: seen.append((house.store.backlog.queued, house.store.backlog.of(GEMMA)))
    house.accept(QWEN, GEMMA)
    assert seen == [(2, 1)]
    assert house.store.backlog.by_model() == {"qwen:latest": 1, "gemma:latest": 1}


def test_a_disk_that_is_full(house: House) -> None:
    """With the disk full a job is refused and nothing of it is stored; afterwards all is as before."""
    limit = "PRAGMA max_page_count = {}"
    house.accept(QWEN)
    house.run(house.database.write(lambda cursor: cursor.execute(limit.format(1)).close(), durable=False))
    with pytest.raises(Unwritable):
        house.run(house.store.accept([new_job(n) for n in range(100, 600)]))
    assert (house.store.backlog.queued, house.wakes) == (1, 1)
    house.run(house.database.write(lambda cursor: cursor.execute(limit.format(10_000)).close(), durable=False))
    house.run(house.store.accept([new_job(n) for n in range(100, 600)]))
    assert house.store.backlog.queued == 501


def test_a_disk_with_hardly_any_room(house: House) -> None:
    """It is not writable again before a large job fits, so that an operator's alarm does not end and begin anew."""
    limit = "PRAGMA max_page_count = {}"
    (pages,) = house.run(house.database.read(lambda cursor: cursor.execute("PRAGMA page_count").fetchone()))
    house.run(house.database.write(lambda cursor: cursor.execute(limit.format(pages + 10)).close(), durable=False))
    with pytest.raises(Unwritable):
        house.run(house.store.accept([new_job(n) for n in range(100, 600)]))
    house.accept(QWEN)
    house.run(house.store.try_writing())
    assert not house.store.writable
    house.run(house.database.write(lambda cursor: cursor.execute(limit.format(10_000)).close(), durable=False))
    house.run(house.store.try_writing())
    assert house.store.writable
    kept = house.run(house.store.kept("/written"))
    assert kept is not None
    assert kept[0] == b"", "what was written to try it is not kept"


# -- order -----------------------------------------------------------------------------------------------------------


def test_drains_before_it_swaps(house: House) -> None:
    """`A B A A C A B C` costs three loads, not seven."""
    a, b, c = QWEN, GEMMA, PHI
    house.accept(a, b, a, a, c, a, b, c)
    resident: Runner | None = None
    ran = []
    for _ in range(8):
        resident = house.take(resident).runner
        ran.append(resident)
    assert ran == [a, a, a, a, b, b, c, c]


@pytest.mark.parametrize("aside", [(), (PHI,)])
def test_a_model_before_other_models(house: House, aside: tuple[Runner, ...]) -> None:
    """When the resident runner's jobs are done, those of its model go before older ones of others."""
    house.accept(GEMMA, QWEN_LONG, QWEN)
    assert [house.take(QWEN, aside=aside).runner for _ in range(3)] == [QWEN, QWEN_LONG, GEMMA]


@settings(max_examples=60)
@given(
    queue=st.lists(runners, min_size=4, max_size=12),
    steps=st.lists(st.tuples(st.none() | runners, st.sets(runners, max_size=2)), min_size=8, max_size=8),
)
def test_the_order_is_the_policy(
    tmp_path_factory: pytest.TempPathFactory, queue: list[Runner], steps: list[tuple[Runner | None, set[Runner]]]
) -> None:
    """Whatever is queued, resident and set aside, the next job is the first of the order that may run."""
    house = House(tmp_path_factory.mktemp("order") / "foreman.db")
    waiting = house.accept(*queue)
    for resident, aside in steps:
        waiting.sort(key=lambda job: order_key(job, resident))
        expected = next((job for job in waiting if job.runner not in aside), None)
        taken = house.run(house.store.take(resident=resident, warm=False, aside=aside))
        assert (taken and taken.job.seq) == (expected and expected.seq)
        if expected is not None:
            waiting.remove(expected)
    house.run(house.store.stop())


def test_a_warm_runner_goes_to_work_at_once(house: House) -> None:
    """A job whose runner needs no load passes through `loading` in no time; every other job stops there."""
    house.accept(QWEN, QWEN, GEMMA)
    house.now = 77
    warm = house.take(QWEN, warm=True)
    assert (warm.state, warm.attempt, warm.loading_at, warm.working_at) == (JobState.WORKING, 1, 77, 77)
    cold = house.take(QWEN, warm=False)
    assert (cold.state, cold.attempt, cold.loading_at, cold.working_at) == (JobState.LOADING, 1, 77, None)
    other = house.take(QWEN, warm=True)
    assert (other.runner, other.state) == (GEMMA, JobState.LOADING)
    assert house.store.backlog.running == 3
    for job in (warm, cold, other):
        assert house.run(house.store.get(job.id)) == job


# -- running and ending ----------------------------------------------------------------------------------------------


def test_the_life_of_a_job(house: House) -> None:
    """From queued to done, with the times and token counts of its run."""
    house.accept(QWEN)
    job = house.take()
    house.now = 20
    working = house.run(house.store.work(job))
    assert working is not None
    assert house.run(house.store.end(working, DONE)) is True
    job = house.run(house.store.get(job.id)) or job
    assert (job.state, job.loading_at, job.working_at, job.first_byte_at) == (JobState.DONE, 10, 20, 40)
    assert (job.completed_at, job.prompt_tokens, job.output_tokens, job.error) == (50, 7, 11, None)
    assert (house.store.backlog.queued, house.store.backlog.running) == (0, 0)


@pytest.mark.parametrize(("sync", "level"), [(True, 1), (False, 2)])
def test_the_end_of_an_async_job_is_on_the_disk(house: House, sync: bool, level: int) -> None:
    """The end of an async job is fsynced, so that no power cut makes it run twice; its progress is not."""
    house.accept(QWEN, sync=sync)
    job = house.take(QWEN, warm=True)
    assert house.synchronous() == 1
    house.run(house.store.end(job, DONE))
    assert house.synchronous() == level


def test_a_late_writer_cannot_win(house: House) -> None:
    """Whoever holds an old view of a job changes nothing: not after its end, not in its next attempt."""
    house.accept(QWEN)
    first = house.take(QWEN, warm=True)
    house.run(house.store.put_back(first, not_before=0, charge=None))
    second = house.take(QWEN, warm=True)
    assert house.run(house.store.end(first, DONE)) is False
    assert house.run(house.store.put_back(first, not_before=0, charge=BROKE)) is None
    assert house.run(house.store.get(first.id)) == second
    house.run(house.store.end(second, DONE))
    assert house.run(house.store.end(second, Ending(error=BROKE, at=60))) is False
    assert house.run(house.store.work(evolve(second, state=JobState.LOADING))) is None
    assert house.store.backlog.running == 0


def test_no_state_is_skipped(house: House) -> None:
    """A job cannot be done without having worked, nor work without having been picked."""
    (job,) = house.accept(QWEN)
    with pytest.raises(ValueError, match="from queued to done"):
        house.run(house.store.end(job, DONE))
    with pytest.raises(ValueError, match="from queued to working"):
        house.run(house.store.work(job))


def test_backoff(house: House) -> None:
    """A job that was put back waits its time, does not count as gone, and is the next one due."""
    (job,) = house.accept(QWEN)
    house.run(house.store.put_back(house.take(), not_before=2010, charge=BROKE))
    assert house.wakes == 1
    assert house.store.backlog.of(QWEN) == 1
    assert house.run(house.store.next_due()) == 2010
    assert house.run(house.store.oldest()) == job.created_at
    assert house.run(house.store.take(resident=QWEN, warm=True, aside=())) is None
    house.now = 2010
    assert house.take().attempt == 2
    assert house.run(house.store.next_due()) is None


def test_the_times_are_those_of_the_last_attempt(house: House) -> None:
    """A job that was put back and picked again has not gone to the target yet."""
    house.accept(QWEN)
    house.run(house.store.put_back(house.take(QWEN, warm=True), not_before=0, charge=None))
    house.now = 20
    job = house.take()
    assert (job.loading_at, job.working_at) == (20, None)


def test_nobody_waiting_for_a_move(house: House) -> None:
    """When the one who asked for a move stops waiting, the counters and the wake-up follow it all the same."""
    house.accept(QWEN)
    job = house.take()
    moving = start(house.store.put_back(job, not_before=0, charge=None))
    moving.cancel()
    assert isinstance(failure_of(moving), CancelledError)
    house.database.step()
    assert (house.wakes, house.store.backlog.queued, house.store.backlog.running) == (2, 1, 0)


def test_a_charge_too_many(house: House) -> None:
    """After FOREMAN_MAX_ATTEMPTS charges a job has failed, and says what the last one was for."""
    house.accept(QWEN)
    for failures in (1, 2):
        job = house.run(house.store.put_back(house.take(), not_before=0, charge=BROKE))
        assert job is not None
        assert (job.state, job.failures) == (JobState.QUEUED, failures)
    job = house.run(house.store.put_back(house.take(), not_before=99, charge=BROKE))
    assert job is not None
    assert (job.state, job.failures, job.completed_at) == (JobState.FAILED, 3, 10)
    assert job.error == JobError(
        ErrorCode.ATTEMPTS_EXHAUSTED, "gave up after 3 failures, the last: target_error: connection reset"
    )
    assert house.run(house.store.get(job.id)) == job
    assert house.synchronous() == 2


def test_trials_that_are_not_the_jobs_fault(house: House) -> None:
    """A job can be put back any number of times for what is not its fault, and is ready at once."""
    house.accept(QWEN)
    for attempt in range(1, 8):
        job = house.take()
        assert (job.attempt, job.failures) == (attempt, 0)
        house.run(house.store.put_back(job, not_before=0, charge=None))
        assert house.wakes == attempt + 1


def test_callers_who_leave(house: House) -> None:
    """A job whose caller leaves never reaches the target, unless it is there: then the worker is to end it."""
    gone = JobError(ErrorCode.CLIENT_DISCONNECTED, "the client left")
    queued, loading, working = house.accept(QWEN, GEMMA, PHI)
    loading = house.take(GEMMA)
    working = house.take(PHI, warm=True)
    assert house.run(house.store.abandon(queued.seq, gone)) is JobState.QUEUED
    assert house.run(house.store.abandon(loading.seq, gone)) is JobState.LOADING
    assert house.run(house.store.abandon(working.seq, gone)) is JobState.WORKING
    assert house.run(house.store.abandon(queued.seq, gone)) is JobState.FAILED
    assert house.run(house.store.abandon(4711, gone)) is None
    assert house.run(house.store.work(loading)) is None
    left = house.run(house.store.get(queued.id))
    assert left is not None
    assert (left.state, left.error) == (JobState.FAILED, gone)
    assert house.run(house.store.get(working.id)) == working
    assert (house.store.backlog.queued, house.store.backlog.running) == (0, 1)


# -- starting --------------------------------------------------------------------------------------------------------


def test_a_crash_loses_no_work(tmp_path: Path, house: House) -> None:
    """After a crash, async jobs wait again, uncharged; sync ones, whose clients are gone, are `interrupted`."""
    running = house.accept(QWEN, GEMMA)
    sync = house.accept(QWEN, GEMMA, sync=True, first=10)
    house.take(QWEN, warm=True)
    house.take(QWEN)
    house.take(GEMMA)
    again = House(house.database.snapshot(tmp_path / "after"))
    assert again.recovered == Recovered(requeued=2, interrupted=2, exhausted=0)
    for job in running:
        found = again.run(again.store.get(job.id))
        assert found is not None
        assert (found.state, found.attempt, found.failures) == (JobState.QUEUED, 1, 0)
    for job in sync:
        found = again.run(again.store.get(job.id))
        assert found is not None
        assert found.error is not None
        assert found.error.code is ErrorCode.INTERRUPTED
    assert (again.store.backlog.queued, again.store.backlog.running) == (2, 0)
    assert again.take(QWEN).attempt == 2


def test_a_job_that_kills_foreman(tmp_path: Path, house: House) -> None:
    """A job found running at three starts in a row is charged at that and at each further one, until it has failed."""
    (job,) = house.accept(QWEN)
    failures = []
    for life in range(5):
        house.take()
        house = House(house.database.snapshot(tmp_path / str(life)))
        found = house.run(house.store.get(job.id))
        assert found is not None
        failures.append(found.failures)
    assert failures == [0, 0, 1, 2, 3]
    assert house.recovered == Recovered(requeued=0, interrupted=0, exhausted=1)
    assert found is not None
    assert found.error is not None
    assert found.error.code is ErrorCode.ATTEMPTS_EXHAUSTED
    assert "5 times in a row" in found.error.message


def test_a_job_that_only_met_crashes(tmp_path: Path, house: House) -> None:
    """A try that foreman lived through clears the job of the suspicion."""
    (job,) = house.accept(QWEN)
    for life in range(6):
        taken = house.take()
        if life % 2:
            house.run(house.store.put_back(taken, not_before=0, charge=None))
            house.take()
        house = House(house.database.snapshot(tmp_path / str(life)))
    found = house.run(house.store.get(job.id))
    assert found is not None
    assert (found.state, found.failures) == (JobState.QUEUED, 0)


def test_only_one_foreman(tmp_path: Path, house: House) -> None:
    """A second store on the same file does not start, and does not disturb the first."""
    house.accept(QWEN)
    with pytest.raises(StoreLocked):
        House(tmp_path / "foreman.db")
    house.run(house.store.stop())
    with pytest.raises(StoreError, match="not open"):
        house.run(house.store.get("x"))
    assert House(tmp_path / "foreman.db").store.backlog.queued == 1


# -- keeping and forgetting ------------------------------------------------------------------------------------------


def test_answers_survive_a_restart(tmp_path: Path, house: House) -> None:
    """The last of the target's answers is there after a restart, with the time it was given."""
    house.run(house.store.keep("tags", b"old"))
    house.now = 20
    house.run(house.store.keep("tags", b"new"))
    house.run(house.store.stop())
    again = House(tmp_path / "foreman.db")
    assert again.run(again.store.kept("tags")) == (b"new", 20)
    assert again.run(again.store.kept("version")) is None


def test_pruning_gives_the_space_back(tmp_path: Path) -> None:
    """Old ended jobs go in batches, the oldest first; waiting and young ones stay; the file becomes smaller."""
    path = tmp_path / "foreman.db"
    house = House(path, max_queue=2000)
    for _ in range(4):
        house.run(house.store.accept([new_job(house.now * 1000 + n) for n in range(500)]))
        house.now += 1
    for _ in range(1900):
        job = house.take(QWEN, warm=True)
        house.run(house.store.end(job, Ending(error=None, at=job.seq)))
    house.run(house.store.stop())
    before = path.stat().st_size
    house = House(path)
    deleted: list[int] = []
    while not deleted or deleted[-1] == 400:
        deleted.append(house.run(house.store.prune(1801, 400)))
    assert deleted == [400, 400, 400, 400, 200]
    assert house.store.backlog.queued == 100
    seqs = house.run(
        house.database.read(lambda cursor: cursor.execute("SELECT min(seq), count(*) FROM jobs").fetchone())
    )
    assert seqs == (1801, 200)
    house.run(house.store.stop())
    assert path.stat().st_size < before / 3


# -- depth -----------------------------------------------------------------------------------------------------------

INDEXES = {
    "MOVE": ["INTEGER PRIMARY KEY"],
    "RELEASE": ["INDEX backoff"],
    "OLDEST_OF_RUNNER": ["INDEX ready_by_runner"],
    "OLDEST_OF_MODEL": ["INDEX ready_by_model"],
    "OLDEST": ["INDEX ready"],
    "OLDEST_OF_EACH_RUNNER": ["INDEX ready_by_runner"] * 3 + ["INTEGER PRIMARY KEY"] * 2,
    "FIRSTS": ["INDEX ready_by_runner"] * 3 + ["INTEGER PRIMARY KEY"] * 2,
    "OLDER_OF_RUNNER": ["INDEX ready_by_runner"],
    "READY_OF_RUNNER": ["INDEX ready_by_runner"],
    "DUE": ["INDEX backoff"],
    "OLDEST_OF_EACH_NAME": ["INDEX depth"] * 4 + ["INTEGER PRIMARY KEY"] * 2,
    "INTERRUPTED": ["INDEX running"],
    "CLIENTS_GONE": ["INDEX waiting_clients"],
    "DEPTH": ["INDEX depth"],
    "BY_ID": ["INDEX sqlite_autoindex_jobs_1"],
    "BY_SEQ": ["INTEGER PRIMARY KEY"],
    "NEXT_DUE": ["INDEX backoff"],
    "OLDEST_CREATED": ["INDEX backoff", "INDEX ready", "INTEGER PRIMARY KEY"],
    "PRUNE": [
        "INDEX ended",
        "INDEX sqlite_autoindex_artifacts_1",
        "INTEGER PRIMARY KEY",
        "INTEGER PRIMARY KEY",
        "PRIMARY KEY",
        "PRIMARY KEY",
        "PRIMARY KEY",
    ],
    "EXPIRED": ["INDEX expiring"],
    "NEXT_EXPIRY": ["INDEX expiring"],
    "RECORD": ["INDEX sqlite_autoindex_jobs_1"],
    "LIST": ["INTEGER PRIMARY KEY"],
    "LIST_STATE": ["INDEX by_state"],
    "LIST_NAME": ["INDEX by_name"],
    "LIST_NAME_AND_STATE": ["INDEX by_name_and_state"],
    "RECENT": ["INDEX by_state"],
    "INSERT_EVENT": ["PRIMARY KEY"],
    "SUBMISSION": ["INTEGER PRIMARY KEY", "INTEGER PRIMARY KEY"],
    "ARTIFACTS": ["INDEX sqlite_autoindex_artifacts_1"],
    "ARTIFACT": ["INDEX sqlite_autoindex_artifacts_1", "INDEX sqlite_autoindex_jobs_1"],
    "EVENTS": ["PRIMARY KEY"],
    "DELIVERY_TRIES": ["PRIMARY KEY"],
    "DELIVERY_STATES": ["PRIMARY KEY"],
    "NEXT_HOST": ["INDEX due_by_host"],
    "DUE_FOR_HOST": ["INDEX due_by_host", "INTEGER PRIMARY KEY"],
    "NEXT_DELIVERY": ["INDEX due"],
    "NOTE_TRY": ["PRIMARY KEY"],
    "MARK_TRIED": ["PRIMARY KEY"],
    "SUPERSEDE": ["PRIMARY KEY"],
    "SUPERSEDE_UNTRIED": ["PRIMARY KEY"],
    "NO_MORE": ["PRIMARY KEY"],
    "FINAL_EVENT": ["PRIMARY KEY"],
    "SEND_AGAIN": ["INDEX sqlite_autoindex_jobs_1", "PRIMARY KEY"],
    "UNDELIVERED": ["INDEX undelivered"],
    "KNOWN_KEY": ["INDEX sqlite_autoindex_idempotency_1"],
    "LET_GO": ["INTEGER PRIMARY KEY"],
    "FORGET_TOMBSTONES": ["INDEX tombstones"],
}
"""What each query walks through instead of the table."""


@pytest.mark.parametrize("name", INDEXES)
def test_no_query_walks_the_table(house: House, name: str) -> None:
    """Each question is answered from an index made for it, and nothing is sorted."""
    query = getattr(queries, name)
    parameters = dict.fromkeys(re.findall(r":(\w+)", query), 0) or [0] * query.count("?")
    plan = house.run(
        house.database.read(lambda cursor: cursor.execute(f"EXPLAIN QUERY PLAN {query}", parameters).fetchall())
    )
    steps = [detail for *_ids, detail in plan]
    assert not [step for step in steps if "TEMP B-TREE" in step]
    walks = [
        step
        for step in steps
        if re.match(r"(SCAN|SEARCH) (jobs|this|bodies|artifacts|events|delivery_tries|idempotency)\b", step)
    ]
    found = [step.partition(" USING ")[2].removeprefix("COVERING ").partition(" (")[0] for step in walks]
    assert sorted(found) == INDEXES[name], steps


def effort(house: House, resident: Runner | None, aside: frozenset[Runner]) -> int:
    """SQLite's steps to choose a job."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    def choose(cursor: sqlite3.Cursor) -> None:
        cursor.connection.set_progress_handler(count, 1)
        try:
            assert Transaction(cursor, 1).choose(resident, aside) is not None
        finally:
            cursor.connection.set_progress_handler(None, 1)

    house.run(house.database.write(choose, durable=False))
    return steps


@pytest.mark.parametrize(
    ("resident", "aside"),
    [
        (None, frozenset()),
        (PHI, frozenset()),
        (QWEN, frozenset()),
        (Runner("gemma", '{"num_ctx":1}'), frozenset()),
        (Runner("none"), frozenset()),
        (None, frozenset({QWEN})),
        (QWEN, frozenset({QWEN, QWEN_LONG})),
    ],
)
def test_depth_does_not_matter(tmp_path: Path, resident: Runner | None, aside: frozenset[Runner]) -> None:
    """Choosing the next job is the same work with forty jobs queued and with four thousand."""
    house = House(tmp_path / "foreman.db", max_queue=4000)
    house.run(house.store.accept([new_job(n, runner=RUNNERS[n % 4]) for n in range(40)]))
    shallow = effort(house, resident, aside)
    house.run(house.store.accept([new_job(n, runner=RUNNERS[n % 4]) for n in range(40, 4000)]))
    assert effort(house, resident, aside) == shallow
