"""What a job is: its identity, its states and the one table of transitions.  Knows neither SQL nor HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from attrs import field, frozen
from attrs.validators import ge, max_len


class JobState(StrEnum):
    """Where a job is in its life; the value is the wire name."""

    QUEUED = "queued"
    LOADING = "loading"
    WORKING = "working"
    DONE = "done"
    FAILED = "failed"


TRANSITIONS: Mapping[JobState, frozenset[JobState]] = MappingProxyType(
    {
        JobState.QUEUED: frozenset({JobState.LOADING, JobState.FAILED}),
        JobState.LOADING: frozenset({JobState.WORKING, JobState.QUEUED, JobState.FAILED}),
        JobState.WORKING: frozenset({JobState.DONE, JobState.QUEUED, JobState.FAILED}),
        JobState.DONE: frozenset(),
        JobState.FAILED: frozenset(),
    }
)
"""From each state, where a job may go next."""

TERMINAL = frozenset(state for state, onward in TRANSITIONS.items() if not onward)


class ErrorCode(StrEnum):
    """Why a job failed; the value is the wire name."""

    CANCELLED = "cancelled"
    CLIENT_DISCONNECTED = "client_disconnected"
    EXPIRED = "expired"
    TIMEOUT = "timeout"
    INVALID_REQUEST = "invalid_request"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_LOAD_FAILED = "model_load_failed"
    TARGET_ERROR = "target_error"
    INCOMPLETE = "incomplete"
    RESULT_TOO_LARGE = "result_too_large"
    INTERRUPTED = "interrupted"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"


def _clipped(message: str) -> str:
    """An error text short enough to keep in every answer and event."""
    return message if len(message) <= 2000 else message[:1999] + "…"


@frozen
class JobError:
    """Why a job failed.

    :ivar message: for a person; at most 2,000 characters, longer ones are clipped.
    """

    code: ErrorCode
    message: str = field(converter=_clipped)


CLIENT_LEFT = JobError(ErrorCode.CLIENT_DISCONNECTED, "The client left before its answer was complete.")


@frozen
class Runner:
    """What Ollama really keeps loaded: a model with its load-time options.

    :ivar model: the model's digest, else its normalised name.
    :ivar options: the load-time options the request names as canonical JSON (sorted keys, no blanks), `{}` for none.
    """

    model: str
    options: str = "{}"


@frozen(kw_only=True)
class Submission:
    """What an async job brings beyond what every job has.

    :ivar body: what goes to the target, without foreman's fields and without content coding; `stream` is set when it
        is sent.
    :ivar content_type: of the body.
    :ivar metadata: the JSON text of an object, None for none.
    :ivar webhook: the `state_webhook_url`, None for none.
    :ivar expires_at: milliseconds since the epoch; still queued then, the job has failed.
    :ivar timeout: seconds that a run may take, None for FOREMAN_MAX_RUN.
    """

    body: bytes = field(repr=False)
    content_type: str = "application/json"
    metadata: str | None = field(default=None, repr=False)
    webhook: str | None = field(default=None, repr=False)
    expires_at: int | None = None
    timeout: float | None = None


@frozen(kw_only=True)
class NewJob:
    """A job as its caller brings it, before the store has given it a place.

    :ivar id: a ULID, 26 characters.
    :ivar endpoint: the route, such as `/api/chat`.
    :ivar model: as the caller wrote it.
    :ivar size: of the body, in bytes.
    :ivar created_at: milliseconds since the epoch.
    :ivar submission: of an async job; None if a client is waiting on the connection, whose row keeps no body.
    """

    id: str = field(validator=max_len(26))
    endpoint: str
    model: str
    runner: Runner
    size: int = field(validator=ge(0))
    created_at: int
    submission: Submission | None = None

    @property
    def sync(self) -> bool:
        """Whether a client is waiting on the connection."""
        return self.submission is None


@frozen
class IdempotencyKey:
    """What makes a repeated request the same one.

    :ivar key: the header's value.
    :ivar digest: SHA-256 of the request.
    """

    key: str
    digest: bytes


@frozen(kw_only=True)
class Job:
    """One row of the queue as it was when it was read.  Times are milliseconds since the epoch, None if not yet.

    :ivar seq: the order of acceptance; also the row's key.
    :ivar attempt: how often the worker has picked it.
    :ivar failures: the tries charged to it.
    :ivar loading_at: when it was picked last; `working_at`: when its request went to the target last.
    :ivar output_ms: what the target says it took to produce the output.
    :ivar unreachable_ms: for how long of its life the target could not be reached.
    :ivar waited_for: the models that were worked for while it waited, in their order.
    """

    seq: int
    id: str
    sync: bool
    endpoint: str
    model: str
    runner: Runner
    size: int
    state: JobState
    attempt: int
    failures: int
    created_at: int
    loading_at: int | None = None
    working_at: int | None = None
    first_byte_at: int | None = None
    completed_at: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    output_ms: int | None = None
    unreachable_ms: int | None = None
    waited_for: tuple[str, ...] = ()
    error: JobError | None = None


@frozen(kw_only=True)
class Artifact:
    """A named blob that a job leaves.

    :ivar name: `completion`, `content`, `thinking` or `partial`.
    """

    name: str
    content_type: str
    body: bytes = field(repr=False)


@frozen(kw_only=True)
class Ending:
    """How a job ended.

    :ivar error: None when it is done.
    :ivar first_byte_at: milliseconds since the epoch, None if no byte came.
    :ivar prompt_tokens: and `output_tokens`, `output_ms`: from the final chunk, None if it named none.
    :ivar unreachable_ms: and `waited_for`: as in `Job`.
    :ivar artifacts: what is kept of the answer; of async jobs only.
    """

    error: JobError | None
    at: int
    first_byte_at: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    output_ms: int | None = None
    unreachable_ms: int | None = None
    waited_for: tuple[str, ...] = ()
    artifacts: tuple[Artifact, ...] = ()

    @property
    def state(self) -> JobState:
        """The terminal state this ending leads to."""
        return JobState.DONE if self.error is None else JobState.FAILED
