"""What the store promises of async jobs: repeated requests, results, webhooks, lists and forgetting."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve

from foreman.errors import KeyGone, KeyReused, QueueFull
from foreman.job import Artifact, Ending, ErrorCode, IdempotencyKey, Job, JobError, JobState, Runner, Submission
from foreman.record import Delivery, DeliveryState, DeliveryTry
from foreman.test.strategies import RUNNERS, new_job
from foreman.test.test_store import House
from foreman.work.archive import Archive
from foreman.work.deliveries import Deliveries

QWEN, _, GEMMA, _ = RUNNERS
KEY = IdempotencyKey("key", b"digest")
HOOK = "http://user@Hooks.example:8000/path?a=b"
BROKE = JobError(ErrorCode.TARGET_ERROR, "connection reset")


class Office(House):
    """A store with its archive and its outbox."""

    def __init__(self, path: Path, *, max_queue: int = 1000) -> None:
        super().__init__(path, max_queue=max_queue)
        self.archive = Archive(self.database, inline_max=10)
        self.deliveries = Deliveries(self.store, self.database)

    def submit(self, number: int = 0, *, runner: Runner = QWEN, webhook: str | None = None) -> Job:
        """An async job."""
        submission = Submission(body=b"{}", webhook=webhook, metadata='{"a":1}')
        [job] = self.run(self.store.accept([new_job(number, runner=runner, submission=submission)]))
        return job

    def finish(self, *artifacts: Artifact) -> Job:
        """The next job is done."""
        job = self.take(QWEN, warm=True)
        if job.state is JobState.LOADING:
            job = self.run(self.store.work(job)) or job
        assert self.run(self.store.end(job, Ending(error=None, at=self.now, artifacts=artifacts)))
        return job

    def due(self, under_way: list[Delivery] | None = None, *, limit: int = 100, per_host: int = 2) -> list[Delivery]:
        """What is to be sent now."""
        return self.run(self.deliveries.due(self.now, limit=limit, per_host=per_host, under_way=under_way or ()))

    def tried(self, delivery: Delivery, state: DeliveryState, next_at: int | None = None) -> None:
        """An attempt has ended."""
        error = None if state is DeliveryState.DELIVERED else "refused"
        outcome = DeliveryTry(sequence=delivery.event.sequence, at=self.now, status=None, error=error)
        self.run(self.deliveries.tried(delivery, outcome, state, next_at))

    def states(self, job: Job) -> list[str | None]:
        """What became of the job's webhooks."""
        history = self.run(self.archive.history(job.id))
        assert history is not None
        return [event.delivery and event.delivery.value for event in history.events]


@pytest.fixture
def office(tmp_path: Path) -> Office:
    """An office with an empty queue."""
    return Office(tmp_path / "foreman.db")


# -- repeated requests -------------------------------------------------------------------------------------------------


def test_a_repeat_is_no_second_job(office: Office) -> None:
    """The same key and request give the same ids with their current states; another request with it is refused."""
    first = office.run(office.store.accept_once([new_job(1), new_job(2)], KEY))
    assert not first.repeated
    office.finish()
    again = office.run(office.store.accept_once([new_job(3), new_job(4)], KEY))
    assert (again.repeated, again.ids) == (True, first.ids)
    assert [job and job.state for job in again.jobs] == [JobState.DONE, JobState.QUEUED]
    with pytest.raises(KeyReused):
        office.run(office.store.accept_once([new_job(5)], evolve(KEY, digest=b"other")))
    assert office.store.backlog.queued == 1


def test_a_repeat_is_answered_though_the_queue_is_full(tmp_path: Path) -> None:
    """A repeat never gets a refusal for want of room, and a new request still does."""
    office = Office(tmp_path / "foreman.db", max_queue=1)
    office.run(office.store.accept_once([new_job(1)], KEY))
    assert office.run(office.store.accept_once([new_job(2)], KEY)).repeated
    with pytest.raises(QueueFull):
        office.run(office.store.accept_once([new_job(2)], IdempotencyKey("new", b"")))
    office.finish()
    office.run(office.store.accept_once([new_job(2)], IdempotencyKey("new", b"")))


def test_a_repeat_after_a_restart(tmp_path: Path, office: Office) -> None:
    """Keys survive a crash."""
    office.run(office.store.accept_once([new_job(1)], KEY))
    again = Office(office.database.snapshot(tmp_path / "after"))
    assert again.run(again.store.accept_once([new_job(2)], KEY)).ids == (new_job(1).id,)


def test_a_repeat_of_what_was_deleted(office: Office) -> None:
    """Once all its jobs were deleted, a repeat is told so; when that is as old as a record may be, it is forgotten."""
    office.run(office.store.accept_once([new_job(1), new_job(2)], KEY))
    office.run(office.store.delete(new_job(1).id))
    assert [job is None for job in office.run(office.store.accept_once([], KEY)).jobs] == [True, False]
    office.run(office.store.delete(new_job(2).id))
    with pytest.raises(KeyGone):
        office.run(office.store.accept_once([new_job(3)], KEY))
    office.run(office.store.prune(office.now + 1, 10))
    assert not office.run(office.store.accept_once([new_job(3)], KEY)).repeated


def test_a_key_goes_with_its_jobs(office: Office) -> None:
    """When the jobs of a key are pruned it can be used anew."""
    office.run(office.store.accept_once([new_job(1)], KEY))
    office.finish()
    assert office.run(office.store.prune(office.now + 1, 10)) == 1
    assert not office.run(office.store.accept_once([new_job(2)], KEY)).repeated


# -- results -----------------------------------------------------------------------------------------------------------


def test_the_record_of_a_job(office: Office) -> None:
    """A record has what the job brought, what it left and where its time went; small blobs stand in it."""
    job = office.submit(webhook=HOOK)
    pick = office.run(office.store.take(resident=QWEN, warm=True, aside=()))
    assert pick is not None
    assert pick.submission == Submission(body=b"{}", webhook=HOOK, metadata='{"a":1}')
    artifacts = (
        Artifact(name="completion", content_type="application/json", body=b'{"long": true}'),
        Artifact(name="content", content_type="text/plain; charset=utf-8", body=b"short"),
    )
    ending = Ending(
        error=None,
        at=1010,
        first_byte_at=110,
        prompt_tokens=3,
        output_tokens=8,
        output_ms=400,
        unreachable_ms=5,
        waited_for=("gemma", "qwen"),
        artifacts=artifacts,
    )
    office.run(office.store.end(pick.job, ending))
    record = office.run(office.archive.record(job.id))
    assert record is not None
    assert (record.metadata, record.webhook, record.deliveries) == ('{"a":1}', HOOK, {DeliveryState.PENDING: 4})
    assert [(each.name, each.size, each.inline) for each in record.artifacts.values()] == [
        ("completion", 14, None),
        ("content", 5, b"short"),
    ]
    assert record.artifacts["content"].sha256.startswith("f9b0078b5df596d2")
    receipt = record.receipt
    assert (receipt.queued_ms, receipt.load_ms, receipt.first_token_ms, receipt.run_ms) == (9, 0, 100, 1000)
    assert (receipt.tokens_per_second, receipt.waited_for, receipt.target_unreachable_ms) == (
        20.0,
        ("gemma", "qwen"),
        5,
    )
    assert office.run(office.database.read(lambda cursor: cursor.execute("SELECT * FROM bodies").fetchone())) is None
    assert office.run(office.archive.record("nobody")) is None


def test_reading_in_pieces(office: Office) -> None:
    """An artifact is read piece by piece, to its end and no further."""
    job = office.submit()
    office.finish(Artifact(name="content", content_type="text/plain", body=bytes(range(256)) * 40))
    read = office.archive.read_artifact
    assert office.run(read(job.id, "content", 250, 10)) == bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3])
    assert office.run(read(job.id, "content", 10_230, 100)) == bytes(range(246, 256))
    assert office.run(read(job.id, "content", 99_999, 100)) == b""
    assert office.run(read(job.id, "other", 0, 1)) is None
    reference = office.run(office.archive.artifact(job.id, "content"))
    assert reference is not None
    assert (reference.size, reference.inline) == (10_240, None)
    assert office.run(office.archive.artifact(job.id, "other")) is None


def test_lists(office: Office) -> None:
    """Lists are newest first, by state and by model in any spelling, page by page, with the jobs of both doors."""
    jobs = [office.submit(number, runner=(QWEN, GEMMA)[number % 2]) for number in range(6)]
    jobs += office.accept(QWEN, sync=True, first=6)
    office.finish()
    names = [job.id for job in reversed(jobs)]
    listed = office.archive.jobs

    def ids(*, state: JobState | None = None, model: str | None = None, after: str | None = None) -> list[str]:
        return [job.id for job in office.run(listed(state=state, model=model, after=after, limit=3))]

    assert ids() == names[:3]
    assert ids(after=names[2]) == names[3:6]
    assert ids(after=names[5]) == names[6:]
    assert ids(model="QWEN") == [names[0], names[2], names[4]]
    assert ids(model="qwen:latest", after=names[2]) == [names[4], names[6]]
    assert ids(state=JobState.DONE) == [names[6]]
    assert ids(state=JobState.QUEUED, model="gemma") == [names[1], names[3], names[5]]
    assert ids(after="nobody") == []


# -- webhooks ----------------------------------------------------------------------------------------------------------


def test_events_are_sent_in_order(office: Office) -> None:
    """A job's next event is due once the one before it was tried; a retry holds nothing back."""
    job = office.submit(webhook=HOOK)
    office.finish()
    [first] = office.due()
    assert (first.event.sequence, first.host, first.url) == (1, "http://hooks.example:8000", HOOK)
    assert office.due([first]) == []
    office.tried(first, DeliveryState.PENDING, next_at=office.now + 1000)
    [second] = office.due()
    assert second.event.sequence == 2
    assert office.run(office.deliveries.next_at()) == office.now
    office.tried(second, DeliveryState.DELIVERED)
    assert [delivery.event.sequence for delivery in office.due()] == [3]
    office.now += 1000
    assert [delivery.event.sequence for delivery in office.due()] == [3, 1]
    history = office.run(office.archive.history(job.id))
    assert history is not None
    assert [(each.sequence, each.error) for each in history.tries] == [(1, "refused"), (2, None)]


def test_the_final_event_drops_what_is_pending(office: Office) -> None:
    """Once the end has been told, retries of what came before are dropped."""
    job = office.submit(webhook=HOOK)
    office.finish()
    for _ in range(3):
        office.tried(office.due()[0], DeliveryState.PENDING, next_at=office.now + 9999)
    office.tried(office.due()[0], DeliveryState.DELIVERED)
    assert office.states(job) == ["superseded"] * 3 + ["delivered"]
    assert office.run(office.deliveries.next_at()) is None


def test_a_dead_receiver_is_told_the_end_first(office: Office) -> None:
    """Of a host that does not answer, what was never tried is dropped in favour of the final event, if there is one."""
    job = office.submit(webhook=HOOK)
    [first] = office.due()
    assert office.run(office.deliveries.skip_to_final(first)) == 0
    office.finish()
    office.tried(first, DeliveryState.PENDING, next_at=office.now + 9999)
    assert office.run(office.deliveries.skip_to_final(first)) == 2
    assert office.states(job) == ["pending", "superseded", "superseded", "pending"]
    assert [delivery.event.sequence for delivery in office.due()] == [4]


def test_a_receiver_that_wants_no_more(office: Office) -> None:
    """After a 410 nothing more of the job is sent, what is still to come included, until somebody asks for it."""
    job = office.submit(webhook=HOOK)
    office.tried(office.due()[0], DeliveryState.GONE)
    office.finish()
    assert office.states(job) == ["gone"] * 4
    assert office.due() == []
    assert office.run(office.deliveries.redeliver(job.id, office.now))
    [again] = office.due()
    assert (again.event.sequence, again.event.tries) == (4, 0)


def test_what_cannot_be_sent_again(office: Office) -> None:
    """Only a final event with a webhook can be sent again."""
    waiting, silent = office.submit(1, webhook=HOOK), office.submit(2)
    assert not office.run(office.deliveries.redeliver(waiting.id, office.now))
    office.finish()
    office.finish()
    assert not office.run(office.deliveries.redeliver(silent.id, office.now))
    assert not office.run(office.deliveries.redeliver("nobody", office.now))


def test_a_dead_host_holds_up_no_other(office: Office) -> None:
    """Each host has its own share of what is sent, those under way included, however much waits for another."""
    for number in range(50):
        office.submit(number, webhook="http://dead.example/")
    office.now += 1
    live = office.submit(50, webhook="http://live.example/")
    due = office.due()
    assert [delivery.host for delivery in due] == ["http://dead.example:80"] * 2 + ["http://live.example:80"]
    assert [delivery.job_id for delivery in office.due(due[:2])] == [live.id]
    assert len(office.due(due[:1])) == 2
    assert len(office.due(limit=1)) == 1
    assert office.run(office.deliveries.counts())[DeliveryState.PENDING] == 51


def test_a_delivery_of_a_job_that_was_deleted(office: Office) -> None:
    """A delivery may end after its job was deleted; nothing comes of it."""
    job = office.submit(webhook=HOOK)
    [first] = office.due()
    office.run(office.store.delete(job.id))
    office.tried(first, DeliveryState.DELIVERED)
    assert office.run(office.archive.history(job.id)) is None


# -- forgetting --------------------------------------------------------------------------------------------------------


def test_nothing_is_pruned_that_somebody_is_to_be_told_of(office: Office) -> None:
    """A job with a pending delivery stays until that has come to an end; then it goes with all that is its own."""
    office.submit(webhook=HOOK)
    office.finish(Artifact(name="content", content_type="text/plain", body=b"text"))
    assert office.run(office.store.prune(office.now + 1, 10)) == 0
    while due := office.due():
        office.tried(due[0], DeliveryState.EXHAUSTED)
    assert office.run(office.store.prune(office.now + 1, 10)) == 1
    tables = ("jobs", "events", "delivery_tries", "artifacts", "bodies")
    query = "SELECT " + ", ".join(f"(SELECT count(*) FROM {table})" for table in tables)  # noqa: S608 (ours)
    assert office.run(office.database.read(lambda cursor: cursor.execute(query).fetchone())) == (0,) * 5


def test_the_webhook_of_a_job_that_failed_for_good(office: Office) -> None:
    """The last charge leaves the final event with its error, and the text so far."""
    job = office.submit(webhook=HOOK)
    remains = Ending(error=BROKE, at=20, artifacts=(Artifact(name="partial", content_type="text/plain", body=b"so"),))
    for _ in range(3):
        taken = office.take(QWEN, warm=True)
        office.run(office.store.put_back(taken, not_before=0, charge=BROKE, remains=remains))
    history = office.run(office.archive.history(job.id))
    record = office.run(office.archive.record(job.id))
    assert history is not None
    assert record is not None
    final = history.events[-1]
    assert final.error == record.job.error
    assert (final.state, final.failures, final.at) == (JobState.FAILED, 3, 20)
    assert record.job.error is not None
    assert record.job.error.code is ErrorCode.ATTEMPTS_EXHAUSTED
    assert list(record.artifacts) == ["partial"]
