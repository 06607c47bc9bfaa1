"""What foreman's answers say, as small frozen values: jobs, their answers, their history, webhooks.

Made of the documents that docs/openapi.yaml describes.  Fields that are not known here are passed over, so that a newer
foreman can be talked to.  Moments are aware datetimes; lengths of time are float seconds, and their names end so.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from attrs import field, frozen

# -- jobs --------------------------------------------------------------------------------------------------------------


class JobState(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    LOADING = "loading"
    WORKING = "working"
    DONE = "done"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        """Whether nothing follows."""
        return self in (JobState.DONE, JobState.FAILED)


@frozen(kw_only=True)
class Problem:
    """Why a job failed.

    :ivar code: a word for programs, such as `cancelled`, `expired`, `timeout` or `model_not_found`.
    :ivar message: for people.
    """

    code: str
    message: str


@frozen(kw_only=True)
class Timings:
    """Where a job's time went, and what was produced; None if not known, or not yet.

    :ivar waited_for: the models that were worked for while it waited.
    """

    queued_seconds: float | None = None
    waited_for: tuple[str, ...] = ()
    load_seconds: float | None = None
    first_token_seconds: float | None = None
    run_seconds: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    tokens_per_second: float | None = None
    target_unreachable_seconds: float | None = None


@frozen(kw_only=True)
class Artifact:
    """Something a job has left, by reference; `Job.artifact` gives the bytes.

    :ivar name: `completion`, `content`, `thinking` or `partial`.
    :ivar size: in bytes.
    :ivar inline: the text itself, if it is short.
    """

    name: str
    content_type: str
    size: int
    sha256: str
    inline: str | None = field(default=None, repr=False)
    url: str = ""


@frozen(kw_only=True)
class Webhook:
    """Whom a job tells, and how many of its events are in which state of delivery.

    :ivar exhausted: the last retry has failed.
    :ivar superseded: dropped in favour of the final event.
    :ivar gone: the receiver wants no more of this job.
    """

    url: str
    pending: int = 0
    delivered: int = 0
    exhausted: int = 0
    superseded: int = 0
    gone: int = 0


@frozen(kw_only=True)
class JobInfo:
    """What is known of a job: its document when it was last asked for.  Of a job just submitted that is little.

    :ivar model: as the caller wrote it.
    :ivar endpoint: the route of the target that it runs on.
    :ivar sync: somebody was waiting on the connection of a call of the native face.
    :ivar attempt: how often the worker has picked it.
    :ivar failures: the tries charged to it; at `max_attempts` it is given up.
    :ivar result: the endpoint's unstreamed answer as JSON, None unless done.
    :ivar position: how many run before it, plus one; a lower bound unless `position_exact`.
    :ivar swaps_ahead: loads before it runs, its own included.
    :ivar eta_seconds: until it is likely to be done.
    """

    job_id: str
    state: JobState
    sync: bool = False
    model: str = ""
    endpoint: str = ""
    attempt: int = 0
    failures: int = 0
    max_attempts: int = 0
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    error: Problem | None = None
    timings: Timings = field(factory=Timings)
    result: Any = field(default=None, hash=False, repr=False)
    artifacts: tuple[Artifact, ...] = ()
    metadata: Mapping[str, Any] | None = field(default=None, hash=False)
    webhook: Webhook | None = None
    position: int | None = None
    position_exact: bool = True
    swaps_ahead: int | None = None
    eta_seconds: float | None = None

    @property
    def text(self) -> str:
        """What the model said; what it had said until then if the job failed; empty if there is no text."""
        return self._inline("content") or self._inline("partial")

    @property
    def thinking(self) -> str:
        """What the model thought before it spoke; empty if it did not."""
        return self._inline("thinking")

    @property
    def embeddings(self) -> list[list[float]]:
        """The vectors of an embedding job, one for each input; empty for others."""
        result = self.result if isinstance(self.result, Mapping) else {}
        if isinstance(one := result.get("embedding"), list):  # /api/embeddings
            return [one]
        if isinstance(data := result.get("data"), list):  # /v1/embeddings
            return [each["embedding"] for each in data if isinstance(each, Mapping) and "embedding" in each]
        return result.get("embeddings") or []

    def _inline(self, name: str) -> str:
        return next((each.inline or "" for each in self.artifacts if each.name == name), "")


@frozen(kw_only=True)
class Chunk:
    """A piece of an answer, as `Job.stream` yields them.

    :ivar text: what the model said.
    :ivar thinking: what it thought.
    :ivar tool_calls: what it wants called.
    :ivar is_last: the answer is whole, and foreman has it; of what came in pieces the last one has no text.
    :ivar is_restart: the job has begun anew: throw away what came before this piece.
    :ivar document: the line this piece was read from.  After a dropped connection that line repeats, in one, what had
        come before; the other fields never do.
    """

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    is_last: bool = False
    is_restart: bool = False
    document: Mapping[str, Any] = field(factory=dict, repr=False)


# -- a job's history ---------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class EventDelivery:
    """How far the telling of an event has come.

    :ivar state: `pending`, `delivered`, `exhausted`, `superseded` or `gone`.
    :ivar next_at: of the next try; None if there will be none.
    """

    state: str
    tries: int = 0
    next_at: datetime | None = None


@frozen(kw_only=True)
class Event:
    """A transition of a job.

    :ivar sequence: 1, 2, … within the job.
    :ivar attempt: as it was then, like `failures` and `error`.
    :ivar delivery: None if nobody is told.
    """

    sequence: int
    state: JobState
    previous_state: JobState | None = None
    timestamp: datetime
    attempt: int = 0
    failures: int = 0
    error: Problem | None = None
    delivery: EventDelivery | None = None


@frozen(kw_only=True)
class DeliveryTry:
    """A try to deliver an event.

    :ivar sequence: the event's.
    :ivar status: what the receiver answered; None if it did not.
    :ivar error: what was wrong; None if it was delivered.
    """

    sequence: int
    timestamp: datetime
    status: int | None = None
    error: str | None = None


@frozen(kw_only=True)
class History:
    """All that has happened to a job, in its order."""

    job_id: str
    events: tuple[Event, ...] = ()
    deliveries: tuple[DeliveryTry, ...] = ()


# -- webhooks ----------------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class WebhookEvent:
    """What a webhook says: a transition of a job.  `job_id` and `sequence` together tell repeats.

    :ivar sequence: 1, 2, … within the job.
    :ivar timestamp: when the transition was.
    :ivar result: the endpoint's unstreamed answer on `done`; None if it is long, then ask for the job.
    :ivar timings: on `done` and `failed`.
    """

    job_id: str
    state: JobState
    previous_state: JobState | None = None
    sequence: int
    timestamp: datetime
    model: str = ""
    attempt: int = 0
    failures: int = 0
    error: Problem | None = None
    result: Any = field(default=None, hash=False, repr=False)
    artifacts: tuple[Artifact, ...] = ()
    metadata: Mapping[str, Any] | None = field(default=None, hash=False)
    timings: Timings | None = None

    @property
    def text(self) -> str:
        """What the model said, on `done`; empty if there is no text, or if it is long: then ask for the job."""
        return next((each.inline or "" for each in self.artifacts if each.name == "content"), "")
