"""What foreman's answers say, as small frozen values: jobs, their history, the queue, health, webhooks.

Made of the documents that docs/openapi.yaml describes.  Fields that are not known here are passed over, so that a newer
foreman can be talked to.  Moments are aware datetimes; lengths of time are float seconds, and their names end so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum
from functools import cache, partial
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import attrs
from attrs import field, frozen

from foreman.client.errors import NotForeman

V = TypeVar("V")


# -- reading -----------------------------------------------------------------------------------------------------------


def read(kind: type[V], document: object, **more: Any) -> V:
    """Make a value of a JSON object, by the types of its fields.

    A field `x_seconds` is found as `x_s` or, in milliseconds, as `x_ms` too.  Null is the same as absent.

    :param more: fields that are not in the document.
    :raise NotForeman: it is no object, or lacks what foreman always says.
    """
    if not isinstance(document, Mapping):
        raise NotForeman(f"an answer is not what foreman says: {str(document)[:200]!r}")
    found = {}
    try:
        for name, reader in _readers(kind).items():  # type: ignore[arg-type]  # a type can be hashed
            stem = name.removesuffix("_seconds")
            if (value := document.get(name)) is not None:
                found[name] = reader(value)
            elif stem != name and (value := document.get(f"{stem}_s")) is not None:
                found[name] = value
            elif stem != name and (value := document.get(f"{stem}_ms")) is not None:
                found[name] = value / 1000
        return kind(**found, **more)
    except (TypeError, ValueError, AttributeError) as error:
        raise NotForeman(f"an answer is not what foreman says: {error}") from error


@cache
def _readers(kind: type) -> Mapping[str, Callable[[Any], Any]]:
    """For each public field, what makes its value of JSON."""
    hints = get_type_hints(kind)
    fields = attrs.fields(cast("type[attrs.AttrsInstance]", kind))
    return {each.name: _reader(hints[each.name]) for each in fields if not each.name.startswith("_")}


def _reader(hint: Any) -> Callable[[Any], Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType:  # with None, and nothing else
        return _reader(arguments[0])
    if origin is tuple:
        return lambda given: tuple(map(_reader(arguments[0]), given))
    if hint is datetime:
        return datetime.fromisoformat
    if isinstance(hint, type) and attrs.has(hint):
        return partial(read, hint)
    return hint if isinstance(hint, type) and issubclass(hint, StrEnum) else lambda given: given


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
    :ivar is_last: the answer is whole.
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


# -- the queue and foreman itself --------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Pause:
    """Whether the queue stands still, and until when.

    :ivar unloaded: whether the target's memory was freed; None if that was not asked for, or is not known yet.
    """

    paused: bool
    paused_until: datetime | None = None
    unloaded: bool | None = None


@frozen(kw_only=True)
class ModelQueue:
    """What waits for a model."""

    model: str
    queued: int
    oldest_seconds: float = 0.0


@frozen(kw_only=True)
class RunningJob:
    """The job that the worker has picked.

    :ivar seconds: since then.
    """

    job_id: str
    model: str
    state: JobState
    attempt: int = 0
    seconds: float = 0.0


@frozen(kw_only=True)
class QueuedJob:
    """A job that waits."""

    position: int
    job_id: str
    model: str
    waited_seconds: float = 0.0


@frozen(kw_only=True)
class Queue:
    """What waits, what runs, and what runs next.

    :ivar models: the depth by model.
    :ivar next: the order of the next 50.
    """

    queued: int
    paused: bool = False
    paused_until: datetime | None = None
    unloaded: bool | None = None
    models: tuple[ModelQueue, ...] = ()
    running: RunningJob | None = None
    next: tuple[QueuedJob, ...] = ()


@frozen(kw_only=True)
class TargetHealth:
    """How the Ollama behind foreman is.

    :ivar state: `up`, `down` or `wedged`.
    :ivar url: None to those who bring no token, like the names of models.
    :ivar resident: the model in its memory.
    """

    state: str
    version: str | None = None
    last_poll: datetime | None = None
    url: str | None = None
    last_error: str | None = None
    resident: str | None = None
    embedder: str | None = None


@frozen(kw_only=True)
class QueueHealth:
    """The queue in short."""

    queued: int = 0
    running: int = 0
    oldest_seconds: float = 0.0
    paused: bool = False


@frozen(kw_only=True)
class WebhooksHealth:
    """How many deliveries are pending, and how many were given up."""

    pending: int = 0
    exhausted: int = 0


@frozen(kw_only=True)
class Health:
    """How foreman is; docs/operations.md says what the warnings mean.

    :ivar degraded: the target is down: work waits.
    """

    status: str
    degraded: bool
    version: str
    uptime_seconds: float
    target: TargetHealth
    queue: QueueHealth = field(factory=QueueHealth)
    webhooks: WebhooksHealth = field(factory=WebhooksHealth)
    warnings: tuple[str, ...] = ()


# -- webhooks ----------------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class WebhookEvent:
    """What a webhook says: a transition of a job.

    :ivar webhook_id: the same for each try of an event, different for any two events; empty if it was not told.
    :ivar sequence: 1, 2, … within the job.
    :ivar timestamp: when the transition was.
    :ivar result: the endpoint's unstreamed answer on `done`; None if it is long, then ask for the job.
    :ivar timings: on `done` and `failed`.
    """

    webhook_id: str = ""
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
