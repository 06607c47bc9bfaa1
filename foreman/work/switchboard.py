"""Who waits for which job's answer: the live connections of sync calls, by job id.

Nothing here is the truth; it may be lost at any line, and the rows say what became of the jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from attrs import field, frozen

from foreman.job import Artifact, Job, JobError
from foreman.ollama.exchange import Flow, Head
from foreman.ollama.requests import Inference
from foreman.ollama.routes import Route


@frozen(kw_only=True)
class Errand:
    """What goes to the target for a job.

    :ivar path: as it came, with its query.
    :ivar headers: as they came; `foreman.ollama.target` drops what is not carried.
    :ivar body: gives the bytes, untouched; they may lie on disk until the job runs.
    :ivar inference: what foreman read in them, None if only Ollama can read them.
    """

    route: Route
    path: bytes
    headers: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    body: Callable[[], bytes] = field(repr=False)
    inference: Inference | None


class Caller(Protocol):
    """The one who waits for a job's answer, and takes it as it comes.

    :ivar job: its row, as the worker last saw it; None until it is accepted.
    :ivar closed: it takes nothing more: the client has left, or has been given an end.
    :ivar parting: why its row is to end then.
    :ivar begun: the answer's head has gone out, so no other answer can be given.
    :ivar on_gone: called once when the client leaves while the worker runs its job; the worker's to set.
    :ivar limit: seconds that the request may be at the target in all, None for any time.
    """

    errand: Errand
    job: Job | None
    begun: bool
    parting: JobError
    on_gone: Callable[[], None] | None
    limit: float | None

    @property
    def closed(self) -> bool:
        """See above."""

    def begin(self, head: Head, flow: Flow) -> None:
        """The answer's head."""

    def write(self, data: bytes) -> None:
        """The next bytes of the answer."""

    def finish(self) -> None:
        """The answer is whole."""

    def fail(self, error: Exception) -> None:
        """There will be no answer, or no more of it."""

    def put_back(self) -> None:
        """The job waits again; nothing of this try counts."""

    def keep(self, *, done: bool) -> tuple[Artifact, ...]:
        """What is to be kept of what came; all of it if the job is `done`."""


class Switchboard:
    """The callers by job id."""

    def __init__(self) -> None:
        self._callers: dict[str, Caller] = {}

    def __len__(self) -> int:
        return len(self._callers)

    def __iter__(self) -> Iterator[Caller]:
        """All callers as they are now; the board may change meanwhile."""
        return iter(list(self._callers.values()))

    def connect(self, job_id: str, caller: Caller) -> None:
        """`caller` waits for that job from now on."""
        self._callers[job_id] = caller

    def find(self, job_id: str) -> Caller | None:
        """Who waits for that job."""
        return self._callers.get(job_id)

    def disconnect(self, job_id: str) -> None:
        """Nobody waits for it any more."""
        self._callers.pop(job_id, None)
