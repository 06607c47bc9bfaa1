"""The async face: `/jobs`.  A job id at once, the result later.

Reading and judging what is submitted is `foreman.web.submissions`', the documents are `foreman.documents`'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import orjson
from attrs import define, field
from klein import Klein
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.web.server import NOT_DONE_YET
from ulid import ULID

from foreman import documents
from foreman.detach import detach
from foreman.errors import KeyGone, Unavailable
from foreman.job import TERMINAL, IdempotencyKey, Job, JobState, NewJob
from foreman.ollama.inventory import Inventory
from foreman.ollama.names import normalise
from foreman.record import JobRecord
from foreman.web import artifacts, asks, submissions
from foreman.web.body import Request
from foreman.web.errors import BadRequest, Conflict, NotFound, install_error_handlers, respond_error
from foreman.web.following import Following
from foreman.web.lookout import Lookout
from foreman.web.submissions import Draft
from foreman.webhooks.policy import AddressPolicy
from foreman.work.archive import PAGE, Archive
from foreman.work.deliveries import Deliveries
from foreman.work.forecast import Forecast
from foreman.work.forecasts import Forecasts
from foreman.work.keys import Accepted
from foreman.work.store import Store
from foreman.work.worker import Worker

T = TypeVar("T")

NO_SUCH_JOB = "there is no such job"

PAGE_UNLESS_SAID = 100
"""Jobs in a list whose caller names no limit."""

AT_A_TIME = 100_000
"""Bytes of a batch that are read before others have their turn; `PER_LINE`: what a line counts for beside its own."""

PER_LINE = 2_000


class UnknownModel(NotFound):
    """The target has no such model."""


@define(eq=False, kw_only=True)
class JobsFace:
    """The routes of `/jobs`.

    :ivar forecasts: what can be said of queued jobs.
    :ivar outbox_wake: there is a delivery to look at.
    """

    store: Store
    archive: Archive
    deliveries: Deliveries
    worker: Worker
    inventory: Inventory
    following: Following
    lookout: Lookout
    policy: AddressPolicy
    clock: IReactorTime
    now_ms: Callable[[], int]
    max_attempts: int
    forecasts: Forecasts
    outbox_wake: Callable[[], None]
    _stopping: bool = field(init=False, default=False)

    app = Klein()
    install_error_handlers(app)

    def render(self, request: Request) -> Any:
        """Answer a request, as long as foreman does not stop."""
        if self._stopping:
            respond_error(request, Unavailable("foreman is stopping", retry_after=5))
            return NOT_DONE_YET
        return self.app.resource().render(request)

    def stop(self) -> None:
        """Take no more calls, and answer those that only wait."""
        self._stopping = True
        self.lookout.release()
        self.following.stop()

    # -- submitting ----------------------------------------------------------------------------------------------

    @app.route("/jobs", methods=["POST"])
    async def submit(self, request: Request) -> bytes:
        """Take in one job, or a batch of them, one a line."""
        body = request.body()
        key = asks.key_of(request, body)
        accepted = None if key is None else await self.store.repeated(key)
        if _is_batch(request):
            return await self._submit_batch(request, body, key, accepted)
        if accepted is None:
            draft = submissions.read(body, self.policy)
            keys = await self._model_keys([draft])
            if draft.inference.model not in keys:
                raise UnknownModel(submissions.unknown_model(draft.inference.model))
            accepted = await self.store.accept_once(self._jobs([draft], keys), key)
        return await self._accepted(request, accepted)

    async def _accepted(self, request: Request, accepted: Accepted) -> bytes:
        """Answer with the one job that there is now, when the caller has waited for it as long as it likes to."""
        [job_id], [job] = accepted.ids, accepted.jobs
        wait = asks.preferences(request).wait
        record = await self._when_ended(job_id, wait) if wait else None
        job = job if record is None else record.job
        if job is None:
            raise KeyGone("the job of this idempotency key was deleted")
        request.responseHeaders.setRawHeaders(b"location", [f"/jobs/{job_id}".encode()])
        if record is not None and job.state in TERMINAL:
            return await self._job(request, record)
        if record is None and accepted.firsts is not None:
            known = _told(self.forecasts.of_new(job, accepted.firsts))
        else:
            known = await self._forecast(job)
        return answer(request, 200 if accepted.repeated else 202, {**_brief(job), **known})

    async def _submit_batch(
        self, request: Request, body: bytes, key: IdempotencyKey | None, accepted: Accepted | None
    ) -> bytes:
        """Take in all jobs of a batch, or none."""
        if accepted is None:
            lines = submissions.numbered_lines(body)
            drafts, faults = await self._read_lines(lines)
            keys = await self._model_keys(drafts.values())
            for number, draft in drafts.items():
                if draft.inference.model not in keys:
                    faults[number] = submissions.unknown_model(draft.inference.model)
            if faults:
                return answer(request, 400, submissions.faults_document(faults, len(lines)))
            accepted = await self.store.accept_once(self._jobs(drafts.values(), keys), key)
        jobs = [
            {"job_id": job_id, "state": None} if job is None else _brief(job)
            for job_id, job in zip(accepted.ids, accepted.jobs, strict=True)
        ]
        return answer(request, 200 if accepted.repeated else 202, {"jobs": jobs})

    async def _read_lines(self, lines: list[tuple[int, bytes]]) -> tuple[dict[int, Draft], dict[int, str]]:
        """The good lines and what is wrong with the others, by their numbers."""
        drafts: dict[int, Draft] = {}
        faults: dict[int, str] = {}
        read = 0
        for number, line in lines:
            try:
                drafts[number] = submissions.read(line, self.policy)
            except BadRequest as error:
                faults[number] = str(error)
            read += len(line) + PER_LINE
            if read > AT_A_TIME:
                read = 0
                await deferLater(self.clock, 0)
        return drafts, faults

    async def _model_keys(self, drafts: Iterable[Draft]) -> Mapping[str, str]:
        """The runners' models by the names that the drafts use; a name the target does not know is left out.

        What is missing is asked for once.  While the target cannot tell, any name will do.
        """
        names = {draft.inference.model for draft in drafts}
        missing = [name for name in names if self.inventory.find(name) is None]
        told = bool(missing) and self.inventory.up and await self.inventory.refresh()
        keys = {}
        for name in names:
            model = self.inventory.find(name)
            if model is not None:
                keys[name] = model.key
            elif not told:
                keys[name] = normalise(name)
        return keys

    def _jobs(self, drafts: Iterable[Draft], keys: Mapping[str, str]) -> list[NewJob]:
        if self._stopping:
            raise Unavailable("foreman is stopping", retry_after=5)  # while the models were looked up
        now = self.now_ms()
        return [draft.job(str(ULID()), model_key=keys[draft.inference.model], now=now) for draft in drafts]

    # -- looking -------------------------------------------------------------------------------------------------

    @app.route("/jobs", methods=["GET"])
    async def list_jobs(self, request: Request) -> bytes:
        """A page of jobs, newest first."""
        state, limit = asks.parameter(request, "state"), asks.parameter(request, "limit")
        if state is not None and state not in set(JobState):
            raise BadRequest(f"state: must be one of {', '.join(JobState)}")
        if limit is not None and not (limit.isascii() and limit.isdigit() and int(limit[:9]) > 0):
            raise BadRequest(f"limit: must be a number from 1 to {PAGE}")
        most = PAGE_UNLESS_SAID if limit is None else min(int(limit[:9]), PAGE)
        jobs = await self.archive.jobs(
            state=None if state is None else JobState(state),
            model=asks.parameter(request, "model"),
            after=asks.parameter(request, "after"),
            limit=most,
        )
        page = {
            "jobs": [documents.summary(job, max_attempts=self.max_attempts) for job in jobs],
            "next": jobs[-1].id if len(jobs) == most else None,
        }
        return answer(request, 200, page)

    @app.route("/jobs/<job_id>", methods=["GET"])
    async def show(self, request: Request, job_id: str) -> bytes:
        """One job, at its end if the caller waits for that."""
        record = await self._when_ended(job_id, asks.wait_of(request))
        return await self._job(request, _found(record))

    @app.route("/jobs/<job_id>/events", methods=["GET"])
    async def events(self, request: Request, job_id: str) -> bytes:
        """All that happened to a job."""
        return answer(request, 200, documents.history(job_id, _found(await self.archive.history(job_id))))

    @app.route("/jobs/<job_id>/stream", methods=["GET"])
    async def stream(self, request: Request, job_id: str) -> bytes:
        """What a job produces, as it comes."""
        await self.following.respond(request, job_id)
        return b""

    @app.route("/jobs/<job_id>/artifacts/<name>", methods=["GET"])
    async def artifact(self, request: Request, job_id: str, name: str) -> bytes:
        """A blob that a job has left."""
        reference = await self.archive.artifact(job_id, name)
        if reference is None:
            raise NotFound("there is no such artifact")
        return await artifacts.respond(request, self.archive, job_id, reference)

    async def _when_ended(self, job_id: str, seconds: float) -> JobRecord | None:
        """The job when it has ended, or as it is after so many seconds; None if there is none (any more)."""
        until = self.clock.seconds() + seconds
        while True:
            with self.lookout.watching(job_id) as moved:
                record = await self.archive.record(job_id)
                left = until - self.clock.seconds()
                if record is None or record.job.state in TERMINAL or left <= 0 or self._stopping:
                    return record
                try:
                    await moved.addTimeout(left, self.clock)
                except TimedOut:
                    continue  # for how it is now

    # -- changing ------------------------------------------------------------------------------------------------

    @app.route("/jobs/<job_id>/cancel", methods=["POST"])
    async def cancel(self, request: Request, job_id: str) -> bytes:
        """Have a job fail as cancelled."""
        if not _found(await detach(self.worker.cancel(job_id))):
            raise Conflict("the job is over")
        return await self._job(request, _found(await self.archive.record(job_id)))

    @app.route("/jobs/<job_id>", methods=["DELETE"])
    async def delete(self, request: Request, job_id: str) -> bytes:
        """Erase a job with all that is kept of it."""
        if not await detach(self.worker.delete(job_id)):
            raise NotFound(NO_SUCH_JOB)
        request.setResponseCode(204)
        return b""

    @app.route("/jobs/<job_id>/redeliver", methods=["POST"])
    async def redeliver(self, request: Request, job_id: str) -> bytes:
        """Send a job's final event again."""
        job = _found(await self.archive.record(job_id))
        if not await self.deliveries.redeliver(job_id, self.now_ms()):
            raise Conflict("the job has no webhook" if job.webhook is None else "the job is not over")
        self.outbox_wake()
        return answer(request, 202, _brief(job.job))

    # -- answering -----------------------------------------------------------------------------------------------

    async def _job(self, request: Request, record: JobRecord) -> bytes:
        document = documents.whole(record, max_attempts=self.max_attempts)
        return answer(request, 200, {**document, **await self._forecast(record.job)})

    async def _forecast(self, job: Job) -> dict[str, Any]:
        return _told(await self.forecasts.of(job)) if job.state is JobState.QUEUED else {}


def _told(forecast: Forecast | None) -> dict[str, Any]:
    if forecast is None:
        return {"position": None, "swaps_ahead": None, "eta_seconds": None}
    known = {"position": forecast.position, "swaps_ahead": forecast.swaps_ahead, "eta_seconds": forecast.eta_seconds}
    return known if forecast.position_exact else {**known, "position_exact": False}


def _found(thing: T | None) -> T:
    if thing is None:
        raise NotFound(NO_SUCH_JOB)
    return thing


def _brief(job: Job) -> dict[str, Any]:
    return {"job_id": job.id, "state": job.state}


def _is_batch(request: Request) -> bool:
    content_type = request.getHeader("content-type") or ""
    return content_type.partition(";")[0].strip().lower() == "application/x-ndjson"


def answer(request: Request, status: int, document: object) -> bytes:
    """Set the head of an answer in JSON; gives its body."""
    body = orjson.dumps(document)
    request.setResponseCode(status)
    request.responseHeaders.setRawHeaders(b"content-type", [b"application/json"])
    request.responseHeaders.setRawHeaders(b"content-length", [b"%d" % len(body)])
    return body
