"""The client for asyncio; `foreman.client.sync` is the same for callers that block."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import httpx
from attrs import field, frozen

from foreman.client.asking import Asking
from foreman.client.calls import Calls
from foreman.client.documents import read
from foreman.client.overview import Health, Pause, Queue
from foreman.client.submission import submission
from foreman.client.values import Chunk, History, JobInfo
from foreman.client.wire import Address, AsyncWire


@frozen(kw_only=True)
class AsyncJob(JobInfo):
    """A job, as it was when it was last asked for.  The methods ask anew; what they return is how it is then."""

    _wire: AsyncWire = field(repr=False, eq=False)
    _calls: Calls[AsyncJob] = field(repr=False, eq=False)

    async def wait(  # the parameters are the blocking client's
        self,
        timeout: float | None = None,  # noqa: ASYNC109
        *,
        cancel_on_interrupt: bool = False,
    ) -> AsyncJob:
        """Wait until the job is done, however long that takes, over restarts of foreman and dropped connections.

        :param timeout: seconds after which to wait no longer; the job goes on.
        :param cancel_on_interrupt: cancel the job when the task is cancelled.
        :raise JobFailed: it is over without an answer: failed, cancelled, expired.
        :raise WaitTimeout: it is not over yet.
        :raise NoSuchJob: it was deleted.
        """
        return await self._wire.call(self._calls.wait(self, timeout=timeout, cancel_on_interrupt=cancel_on_interrupt))

    def stream(self, timeout: float | None = None) -> AsyncIterator[Chunk]:
        """Read the answer while it is made, from its beginning.

        Nothing is told twice after a dropped connection.  A chunk that `is_restart` begins the answer anew: foreman
        has run the job again.  Jobs of endpoints below `/v1` and of embeddings come in one piece when they are done.

        :param timeout: seconds after which to wait no longer; the job goes on.
        :raise JobFailed: the job is over without an answer.
        :raise WaitTimeout: it is not over yet.
        :raise NoSuchJob: it was deleted.
        """
        return self._wire.iterate(self._calls.stream(self, timeout=timeout))

    async def refresh(self) -> AsyncJob:
        """Look at the job as it is now."""
        return await self._wire.call(self._calls.job(self.job_id))

    async def cancel(self) -> AsyncJob:
        """Cancel the job; one that is over stays as it is."""
        return await self._wire.call(self._calls.cancel(self.job_id))

    async def delete(self) -> None:
        """Erase the job with all that is kept of it, cancelling it if need be.  That it is gone already is fine."""
        await self._wire.call(self._calls.delete(self.job_id))

    async def redeliver(self) -> None:
        """Have the webhook of the job's end sent again.

        :raise Rejected: 409, the job has no webhook or is not over.
        """
        await self._wire.call(self._calls.redeliver(self.job_id))

    async def events(self) -> History:
        """Read what has happened to the job: its transitions, and the tries to deliver its webhooks."""
        return await self._wire.call(self._calls.events(self.job_id))

    async def artifact(self, name: str) -> bytes:
        """Read something the job has left.

        :param name: `completion` (the answer as JSON), `content` (its text), `thinking`, or `partial` of a failed job.
        :raise NoSuchJob: it has left nothing of that name.
        """
        return await self._wire.call(self._calls.artifact(self.job_id, name))


class AsyncForeman:
    """A foreman, for asyncio.  Tasks of one event loop may share one.

        async with AsyncForeman("http://127.0.0.1:8080") as foreman:
            print((await foreman.run("qwen3:30b", "Why is the sky blue?")).text)

    Every call is tried again, with growing pauses, while foreman is out of reach or says that it cannot now; nothing is
    ever run twice for it.  Every method may raise:

    * `NotReachable`, `Unavailable` (`QueueFull`): that has lasted for longer than `patience`;
    * `Rejected`: foreman has said no, and would again;
    * `NotForeman`: it is something else that answers.

    :param base_url: where it is.
    :param token: its FOREMAN_TOKEN, None if it has none.
    :param patience: seconds; 0 to try once.  Waiting for a job that was accepted has no such end.
    :param http: an `httpx.AsyncClient` to be used, for a proxy or a certificate; whoever made it closes it.  Unless
        said, a proxy of the environment (HTTP_PROXY, NO_PROXY, …) is used, but for this very machine.
    :raise ValueError: the address or the token cannot be right.
    :raise ImportError: the environment names a SOCKS proxy, and `httpx[socks]` is not installed.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8080",
        token: str | None = None,
        *,
        patience: float = 60.0,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        address = Address(base_url, token)
        self._closes = http is None
        self._wire = AsyncWire(address, httpx.AsyncClient(**address.settings()) if http is None else http)
        self._calls: Calls[AsyncJob] = Calls(self._job, Asking(patience=patience))

    def _job(self, document: Mapping[str, Any]) -> AsyncJob:
        return read(AsyncJob, document, wire=self._wire, calls=self._calls)

    def __repr__(self) -> str:
        return f"AsyncForeman({self._wire.address.base_url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._closes:
            await self._wire.http.aclose()

    # -- jobs --------------------------------------------------------------------------------------------------------

    async def run(
        self,
        model: str,
        ask: str | Sequence[Mapping[str, Any]] | None = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        cancel_on_interrupt: bool = False,
        idempotency_key: str | None = None,
        endpoint: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        state_webhook_url: str | None = None,
        expires_in: float | None = None,
        run_timeout: float | None = None,
        **fields: Any,
    ) -> AsyncJob:
        """Run a job and wait for its end, as if it were one call.

        It takes as long as it takes, over restarts of foreman, dropped connections and sleeping machines.

        :param ask: messages, or a prompt.  It may be left out where `fields` has it under its own name: `messages`,
            `prompt` or `input`.
        :param timeout: seconds after which to wait no longer; the job goes on.
        :param cancel_on_interrupt: cancel the job when the task is cancelled.
        :param idempotency_key: 1 to 255 printable ASCII characters; a job that was submitted with it before is waited
            for instead of another one.
        :param endpoint: the route of the target, such as `/v1/chat/completions`.  Unless said, messages are for
            `/api/chat`, a prompt is for `/api/generate`, and an `input` for `/api/embed`.
        :param metadata: comes back with the job and in its webhooks; at most 4 KiB.
        :param state_webhook_url: where every transition is told.
        :param expires_in: seconds; still queued then, the job fails as `expired`.
        :param run_timeout: seconds that a run may take.
        :param fields: the endpoint's other fields: `options`, `format`, `tools`, `think`, `keep_alive`, …
        :raise JobFailed: it is over without an answer: failed, cancelled (`JobCancelled`), expired (`JobExpired`).
        :raise WaitTimeout: it is not over yet, or not even accepted.
        """
        document = submission(
            model,
            ask,
            endpoint=endpoint,
            metadata=metadata,
            state_webhook_url=state_webhook_url,
            expires_in=expires_in,
            run_timeout=run_timeout,
            **fields,
        )
        key = idempotency_key or str(uuid4())
        return await self._wire.call(
            self._calls.run(document, key, timeout=timeout, cancel_on_interrupt=cancel_on_interrupt)
        )

    async def submit(
        self,
        model: str,
        ask: str | Sequence[Mapping[str, Any]] | None = None,
        *,
        idempotency_key: str | None = None,
        endpoint: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        state_webhook_url: str | None = None,
        expires_in: float | None = None,
        run_timeout: float | None = None,
        **fields: Any,
    ) -> AsyncJob:
        """Submit a job; it is on foreman's disk when this returns.

        The parameters are those of `run`.
        """
        document = submission(
            model,
            ask,
            endpoint=endpoint,
            metadata=metadata,
            state_webhook_url=state_webhook_url,
            expires_in=expires_in,
            run_timeout=run_timeout,
            **fields,
        )
        return await self._wire.call(self._calls.submit(document, idempotency_key or str(uuid4())))

    async def submit_many(
        self, submissions: Iterable[Mapping[str, Any]], *, idempotency_key: str | None = None
    ) -> list[AsyncJob]:
        """Submit up to 10,000 jobs at once; all are accepted, or none is.

        :param submissions: made by `foreman.client.submission`, or written by hand.
        :raise Rejected: its `lines` says what is wrong with which, counted from 1.
        """
        return await self._wire.call(self._calls.submit_many(submissions, idempotency_key or str(uuid4())))

    def as_completed(self, jobs: Iterable[AsyncJob], timeout: float | None = None) -> AsyncIterator[AsyncJob]:
        """Yield each job when it is over, done or failed, in about the order in which they end.

        :param timeout: seconds after which to wait no longer; the jobs go on.
        :raise WaitTimeout: they are not all over yet.
        :raise NoSuchJob: one was deleted.
        """
        return self._wire.iterate(self._calls.as_completed(jobs, timeout=timeout))

    async def job(self, job_id: str) -> AsyncJob:
        """Look at a job.

        :raise NoSuchJob: there is none of that id.
        """
        return await self._wire.call(self._calls.job(job_id))

    def jobs(
        self, *, state: str | None = None, model: str | None = None, limit: int | None = None
    ) -> AsyncIterator[AsyncJob]:
        """List jobs, newest first and without their results; calls of the native face too.

        :param state: only those that are `queued`, `loading`, `working`, `done` or `failed`.
        :param model: only those of that model.
        :param limit: so many at most.
        """
        return self._wire.iterate(self._calls.jobs(state=state, model=model, limit=limit))

    # -- the queue and foreman itself --------------------------------------------------------------------------------

    async def queue(self) -> Queue:
        """See what waits, what runs, and what runs next."""
        return await self._wire.call(self._calls.queue())

    async def pause(self, seconds: float, *, unload: bool = False) -> Pause:
        """Have the queue stand still once the running job is over.

        :param seconds: for how long, at most a week.
        :param unload: free the target's memory too.
        """
        return await self._wire.call(self._calls.pause(seconds, unload=unload))

    async def resume(self) -> Pause:
        """Have the queue go on."""
        return await self._wire.call(self._calls.resume())

    async def models(self) -> tuple[str, ...]:
        """List the names of the target's models, as it was last seen while it is away."""
        return await self._wire.call(self._calls.models())

    async def health(self) -> Health:
        """Ask how foreman is."""
        return await self._wire.call(self._calls.health())
