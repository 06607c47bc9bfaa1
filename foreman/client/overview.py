"""What foreman says of its queue and of itself, as small frozen values."""

from __future__ import annotations

from datetime import datetime

from attrs import field, frozen

from foreman.client.values import JobState


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
