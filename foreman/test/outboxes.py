"""An outbox over a real database, with time and threads that move when the test says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import define, field
from standardwebhooks.webhooks import Webhook
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from foreman.job import Artifact, Ending, ErrorCode, Job, JobError, JobState, Submission
from foreman.record import DeliveryState, DeliveryTry, History, JobRecord
from foreman.test.strategies import SteppedDatabase, new_job
from foreman.webhooks.outbox import Outbox, Poster
from foreman.webhooks.sender import Delivered
from foreman.work.archive import Archive
from foreman.work.deliveries import Deliveries
from foreman.work.store import Store

SECRET = b"thirty-two bytes of a test secret"
BEGINNING = 1_800_000_000_000
"""Milliseconds since the epoch, when the clocks stand at 0."""

URL = "http://one.test/hook"
ANSWER = b'{"done":true}'
DONE = Ending(
    error=None,
    at=BEGINNING,
    first_byte_at=BEGINNING,
    prompt_tokens=7,
    output_tokens=11,
    artifacts=(
        Artifact(name="completion", content_type="application/json", body=ANSWER),
        Artifact(name="content", content_type="text/plain; charset=utf-8", body=b"Hello"),
    ),
)
CANCELLED = JobError(ErrorCode.CANCELLED, "Not wanted.")


@define(eq=False)
class Post:
    """One try that the outbox has made.

    :ivar at: seconds since the beginning.
    :ivar end: fires as the receiver wants it.
    """

    url: str
    headers: Mapping[str, str]
    body: bytes
    at: float
    end: Deferred[Delivered] = field(factory=Deferred)

    @property
    def document(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def name(self) -> tuple[str, int]:
        """The job and the sequence."""
        return self.document["job_id"], self.document["sequence"]

    @property
    def id(self) -> str:
        """The `webhook-id`."""
        return self.headers["webhook-id"]


Answer = Callable[[Post], Delivered | Exception | None]
"""What a receiver does: None is to let the sender wait."""


def takes_it(post: Post) -> Delivered:
    """A receiver that is well."""
    return Delivered(204)


@define(eq=False)
class ScriptedPoster:
    """Sends nothing, but answers as the receivers are told to, by URL; all others are well."""

    clock: Clock
    receivers: dict[str, Answer] = field(factory=dict)
    posts: list[Post] = field(factory=list)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Delivered:
        """Take note of a try, and answer it."""
        post = Post(url, headers, body, self.clock.seconds())
        self.posts.append(post)
        answer = self.receivers.get(url, takes_it)(post)
        if isinstance(answer, Exception):
            raise answer
        return await post.end if answer is None else answer

    def to(self, url: str) -> list[Post]:
        """The tries for one URL."""
        return [post for post in self.posts if post.url == url]


class BrittleDeliveries(Deliveries):
    """The rows; a call named in `trouble` raises what stands there."""

    def __init__(self, store: Store, database: SteppedDatabase) -> None:
        super().__init__(store, database)
        self.trouble: dict[str, Exception] = {}

    def __getattribute__(self, name: str) -> Any:
        trouble = object.__getattribute__(self, "__dict__").get("trouble", {})
        if name in trouble:
            raise trouble[name]
        return super().__getattribute__(name)


class Office:
    """An outbox and all that it needs.

    :ivar receivers: and `posts`: of the `ScriptedPoster`, unless there is another.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock | None = None,
        poster: Poster | None = None,
        secrets: Sequence[bytes] = (SECRET,),
        inline_max: int = 1000,
        since: Office | None = None,
    ) -> None:
        """:param since: the office before a restart: its clock and its receivers stay."""
        self.path = path
        self.clock: Clock = clock or (since.clock if since else Clock())
        self.poster: ScriptedPoster = since.poster if since else ScriptedPoster(self.clock)
        self.receivers, self.posts = self.poster.receivers, self.poster.posts
        self.database = SteppedDatabase(path)
        self.run = self.database.finish
        self.store = Store(self.database, self.now, 100_000, 3)
        self.archive = Archive(self.database, inline_max=inline_max)
        self.rows = BrittleDeliveries(self.store, self.database)
        self.outbox = Outbox(
            rows=self.rows,
            records=self.archive,
            sender=poster or self.poster,
            secrets=secrets,
            clock=self.clock,
            now_ms=self.now,
            random=lambda: 0.5,
        )
        self.run(self.store.start())
        self.store.on_move.append(lambda _move: self.outbox.look())
        self.outbox.start()
        self.settle()

    def now(self) -> int:
        """The wall clock."""
        return BEGINNING + round(self.clock.seconds() * 1000)

    def settle(self) -> None:
        """Let the database do all it is asked."""
        while self.database._calls:
            self.database.step()

    def let(self, seconds: float) -> None:
        """Let time pass, from timer to timer."""
        until = self.clock.seconds() + seconds
        while (due := [call.getTime() for call in self.clock.getDelayedCalls()]) and min(due) <= until:
            self.clock.advance(min(due) - self.clock.seconds())
            self.settle()
        self.clock.advance(until - self.clock.seconds())
        self.settle()

    def stop(self) -> None:
        """An orderly stop."""
        self.run(self.outbox.stop())
        self.run(self.store.stop())
        assert not self.clock.getDelayedCalls()

    def restarted(self, **more: Any) -> Office:
        """Stop, and start anew over the same file."""
        self.stop()
        return Office(self.path, since=self, **more)

    def killed(self, folder: Path) -> Office:
        """What a `kill -9` now would leave, started."""
        path = self.database.snapshot(folder)
        for call in self.clock.getDelayedCalls():
            call.cancel()
        self.database.drop()
        return Office(path, since=self)

    # -- jobs --------------------------------------------------------------------------------------------------------

    def accept(self, number: int, url: str = URL, metadata: str | None = None) -> Job:
        """A new job, and all that follows from it."""
        return self.accept_all({number: url}, metadata)[0]

    def accept_all(self, urls: Mapping[int, str], metadata: str | None = None) -> list[Job]:
        """New jobs by number, in one batch."""
        new = [
            new_job(number, submission=Submission(body=b"{}", webhook=url, metadata=metadata), created_at=self.now())
            for number, url in urls.items()
        ]
        jobs = self.run(self.store.accept(new))
        self.settle()
        return jobs

    def work(self, job: Job) -> Job:
        """Bring the only waiting job to the target."""
        taken = self.run(self.store.take(resident=None, warm=False, aside=()))
        assert taken is not None
        assert taken.job.id == job.id
        working = self.run(self.store.work(taken.job))
        assert working is not None
        self.settle()
        return working

    def end(self, job: Job, ending: Ending = DONE) -> None:
        """End a job that is at the target."""
        assert self.run(self.store.end(job, ending))
        self.settle()

    def cancel(self, job: Job) -> None:
        """Have a waiting job fail."""
        assert self.run(self.store.cancel(job.id, CANCELLED)) is JobState.QUEUED
        self.settle()

    # -- what became of them -----------------------------------------------------------------------------------------

    def record(self, job: Job) -> JobRecord:
        """The job."""
        record = self.run(self.archive.record(job.id))
        assert record is not None
        return record

    def states(self, job: Job) -> list[DeliveryState | None]:
        """What became of each event."""
        return [event.delivery for event in self._history(job).events]

    def tries(self, job: Job) -> list[DeliveryTry]:
        """The attempts of a job's deliveries."""
        return list(self._history(job).tries)

    def _history(self, job: Job) -> History:
        history = self.run(self.archive.history(job.id))
        assert history is not None
        return history


def names(posts: Sequence[Post]) -> list[int]:
    """The sequences of the tries."""
    return [post.document["sequence"] for post in posts]


def is_genuine(post: Post, secret: bytes = SECRET) -> bool:
    """Whether the reference library would have signed these very bytes so, at that time."""
    timestamp = int(post.headers["webhook-timestamp"])
    assert timestamp == BEGINNING // 1000 + int(post.at)
    signature = Webhook(secret).sign(post.id, datetime.fromtimestamp(timestamp, UTC), post.body.decode())
    return signature in post.headers["webhook-signature"].split()
