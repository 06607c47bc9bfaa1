"""What can be read back of a job: its record, its receipt, its events and what became of their webhooks.

Values only; `foreman.work.archive` and `foreman.work.deliveries` read them.  Times are milliseconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from attrs import field, frozen

from foreman.job import Job, JobError, JobState


@frozen(kw_only=True)
class ArtifactReference:
    """A blob that a job has left.

    :ivar size: in bytes.
    :ivar sha256: 64 hex digits.
    :ivar inline: the bytes themselves if there are few enough, else None.
    """

    name: str
    content_type: str
    size: int
    sha256: str
    inline: bytes | None


class DeliveryState(StrEnum):
    """What became of an event's webhook; the value is the wire name."""

    PENDING = "pending"
    DELIVERED = "delivered"
    EXHAUSTED = "exhausted"
    """The last retry has failed."""
    SUPERSEDED = "superseded"
    """Dropped: the final event is there, or its receiver is not."""
    GONE = "gone"
    """The receiver wants no more of this job (410)."""


@frozen(kw_only=True)
class Event:
    """One transition of an async job.

    :ivar sequence: 1, 2, … within the job.
    :ivar previous_state: None for the first.
    :ivar attempt: and `failures`, `error`: as they were then.
    :ivar delivery: what became of its webhook, None if nobody is to be told.
    :ivar tries: how often its delivery was tried since it was last asked for.
    :ivar next_at: when it is tried next; None if it is not pending, or waits for the event before it.
    """

    sequence: int
    previous_state: JobState | None
    state: JobState
    at: int
    attempt: int
    failures: int
    error: JobError | None
    delivery: DeliveryState | None
    tries: int
    next_at: int | None


@frozen(kw_only=True)
class DeliveryTry:
    """One attempt to deliver an event.

    :ivar sequence: the event's.
    :ivar status: of the answer, None if there was none.
    :ivar error: what went wrong, None if it was delivered.
    """

    sequence: int
    at: int
    status: int | None
    error: str | None


@frozen(kw_only=True)
class Delivery:
    """An event that is to be sent now.

    :ivar seq: the job's key; with `event.sequence` it is the delivery's.
    :ivar host: `scheme://host:port` of the URL, in lower case.
    :ivar model: and `metadata` (JSON text): the job's.
    """

    seq: int
    job_id: str
    url: str = field(repr=False)
    host: str
    model: str
    metadata: str | None = field(repr=False)
    event: Event

    @property
    def key(self) -> tuple[int, int]:
        """What tells this delivery from all others."""
        return self.seq, self.event.sequence


@frozen(kw_only=True)
class History:
    """All that happened to an async job: both in the order in which it happened."""

    events: tuple[Event, ...]
    tries: tuple[DeliveryTry, ...]


@frozen(kw_only=True)
class Receipt:
    """Where a job's time went, and what it produced.  What is not known, or not yet, is None.

    :ivar queued_ms: from its acceptance until it was picked last, earlier tries included.
    :ivar waited_for: the models that were worked for while it waited.
    :ivar load_ms: and `first_token_ms`, `run_ms`: of the last try.
    :ivar target_unreachable_ms: for how long of its life the target could not be reached.
    """

    queued_ms: int | None
    waited_for: tuple[str, ...]
    load_ms: int | None
    first_token_ms: int | None
    run_ms: int | None
    prompt_tokens: int | None
    output_tokens: int | None
    tokens_per_second: float | None
    target_unreachable_ms: int | None

    @classmethod
    def of(cls, job: Job) -> Receipt:
        """The receipt of a job, as far as it has come."""
        speed = job.output_tokens / job.output_ms * 1000 if job.output_tokens and job.output_ms else None
        return cls(
            queued_ms=_between(job.created_at, job.loading_at),
            waited_for=job.waited_for,
            load_ms=_between(job.loading_at, job.working_at),
            first_token_ms=_between(job.working_at, job.first_byte_at),
            run_ms=_between(job.working_at, job.completed_at),
            prompt_tokens=job.prompt_tokens,
            output_tokens=job.output_tokens,
            tokens_per_second=None if speed is None else round(speed, 2),
            target_unreachable_ms=job.unreachable_ms,
        )


def _between(start: int | None, end: int | None) -> int | None:
    """Milliseconds; a clock may have stepped back meanwhile."""
    return None if start is None or end is None else max(0, end - start)


@frozen(kw_only=True)
class JobRecord:
    """One job with everything that is kept of it.

    :ivar metadata: JSON text, None for none.
    :ivar webhook: the `state_webhook_url`, None for none.
    :ivar deliveries: how many of its events are in which state; empty without a webhook.
    :ivar artifacts: by name: `completion` (the native answer), `content`, `thinking`; `partial` of a failed job.
    """

    job: Job
    metadata: str | None = field(repr=False)
    webhook: str | None = field(repr=False)
    expires_at: int | None
    deliveries: Mapping[DeliveryState, int]
    artifacts: Mapping[str, ArtifactReference]

    @property
    def receipt(self) -> Receipt:
        """The job's `timings`."""
        return Receipt.of(self.job)
