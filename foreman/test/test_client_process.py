"""The client before the real daemon, as processes: whatever breaks, a call returns the right result, run once."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_twisted
from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.internet.threads import deferToThread
from twisted.protocols import portforward
from twisted.python.failure import Failure

from foreman.client import (
    AsyncForeman,
    Foreman,
    Job,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobState,
    QueueFull,
    Receiver,
    WaitTimeout,
    submission,
)
from foreman.test.harness import Child, Daemon, FakeProcess, ask, daemon, eventually, fake_process, house, reactor

QUESTION = [{"role": "user", "content": "Why? " * 400}]
"""Longer than any load request."""

ANSWER = " one two three four five six seven eight nine ten"
"""tiny-b's."""

LONG = 180.0
"""Seconds after which a client gives up, so that no thread outlives its test."""


@define(eq=False)
class Network:
    """What is between a client and its foreman; it can be cut.

    :ivar url: what the client takes for foreman.
    :ivar cuts: how many connections were cut.
    """

    port: Any
    factory: Any
    url: str
    cuts: int = 0

    def lead_to(self, url: str) -> None:
        """Go to this foreman from now on."""
        self.factory.port = urlsplit(url).port

    def cut(self) -> None:
        """Break every connection."""
        for connection in list(self.factory.connections):
            self.cuts += 1
            connection.transport.abortConnection()


class _Connection(portforward.ProxyServer):
    """A client's connection."""

    def connectionMade(self) -> None:
        connections: set[_Connection] = self.factory.connections  # type: ignore[attr-defined]
        connections.add(self)
        super().connectionMade()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.factory.connections.discard(self)  # type: ignore[attr-defined]
        super().connectionLost(reason)  # type: ignore[no-untyped-call]


@asynccontextmanager
async def network(url: str) -> AsyncIterator[Network]:
    """A `Network` that leads to a foreman."""
    factory: Any = portforward.ProxyFactory("127.0.0.1", urlsplit(url).port or 80)
    factory.protocol, factory.connections, factory.noisy = _Connection, set(), False
    factory.protocol.clientProtocolFactory = type("Quiet", (portforward.ProxyClientFactory,), {"noisy": False})
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    made = Network(port, factory, f"http://127.0.0.1:{port.getHost().port}")
    try:
        yield made
    finally:
        await port.stopListening()
        made.cut()
        await eventually(lambda: not factory.connections)


@define(eq=False)
class Stage:
    """A foreman with its fake Ollama, and a client behind a network."""

    fake: FakeProcess
    foreman: Daemon
    network: Network
    client: Foreman = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.client = Foreman(self.network.url, patience=LONG)

    def run(self, **more: Any) -> Deferred[Job]:
        """Run a job in a thread."""
        return deferToThread(self.client.run, "tiny-b", QUESTION, timeout=LONG, **more)

    async def hang(self, times: int = 1) -> None:
        """Have the next generations stop in the middle."""
        rule = {"path": "/api/chat", "fault": "hang-mid-stream", "load": False, "times": times}
        assert (await ask(self.fake.control, "POST", "/_fake/faults", rule)).head[0] == 200  # type: ignore[index]

    async def asked(self) -> int:
        """How often the target was asked the question."""
        requests = (await self.fake.state())["requests"]
        return len([request for request in requests if request["path"] == "/api/chat" and request["size"] > 2000])

    async def is_asked(self, times: int = 1) -> None:
        """Wait until the target was asked."""
        while await self.asked() < times:
            await eventually(lambda: True)

    async def reborn(self, number: int = signal.SIGKILL) -> None:
        """End foreman by a signal, and start it again after the client has noticed."""
        await self.foreman.end(number)
        self.network.cut()
        self.foreman.start()
        self.network.lead_to(await self.foreman.ready())

    async def check(self, job: Job, attempt: int) -> None:
        """The job's answer is right, it is the only one, and the target saw it as often as its `attempt` says."""
        assert (job.state, job.text, job.attempt) == ("done", ANSWER, attempt)
        assert [row["id"] for row in self.foreman.rows()] == [job.job_id]
        assert await self.asked() == attempt


@asynccontextmanager
async def stage(folder: Path, models: str = "defaults") -> AsyncIterator[Stage]:
    """A `Stage`."""
    async with (
        fake_process(folder, models) as fake,
        daemon(folder, fake.url) as foreman,
        network(foreman.url) as between,
    ):
        made = Stage(fake, foreman, between)
        try:
            yield made
        finally:
            made.client.close()


@pytest_twisted.ensureDeferred
async def test_a_foreman_killed_while_it_runs_the_job(tmp_path: Path) -> None:
    """`kill -9` in the middle of the run: the caller has the answer all the same, after a second attempt."""
    async with stage(tmp_path) as here:
        await here.hang()
        running = here.run()
        await here.is_asked()
        await here.reborn()
        await here.check(await running, attempt=2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest_twisted.ensureDeferred
async def test_a_foreman_that_restarts_while_the_job_waits(tmp_path: Path, number: int) -> None:
    """Killed or stopped while the job is queued: it runs once, after the restart."""
    async with stage(tmp_path) as here:
        await deferToThread(here.client.pause, 3600)
        running = here.run()
        await eventually(here.foreman.rows)
        await here.reborn(number)
        await here.reborn(number)
        await deferToThread(here.client.resume)
        await here.check(await running, attempt=1)


@pytest_twisted.ensureDeferred
async def test_a_foreman_that_is_not_there_yet(tmp_path: Path) -> None:
    """A call may come before its foreman: it is submitted once that is there."""
    async with stage(tmp_path) as here:
        await here.foreman.end()
        running = here.run()
        here.foreman.start()
        here.network.lead_to(await here.foreman.ready())
        await here.check(await running, attempt=1)


@pytest_twisted.ensureDeferred
async def test_a_network_that_is_cut_again_and_again(tmp_path: Path) -> None:
    """Connections cut at any moment, while submitting and while waiting: one job, one run, the right answer."""
    async with stage(tmp_path) as here:
        await deferToThread(here.client.pause, 3600)
        running = here.run()
        for _ in range(6):
            await eventually(lambda: here.network.factory.connections, within=LONG)
            here.network.cut()
        assert here.network.cuts >= 6
        await eventually(here.foreman.rows, within=LONG)
        await ask(here.foreman.url, "POST", "/queue/resume")
        await here.check(await running, attempt=1)


@pytest_twisted.ensureDeferred
async def test_a_target_that_sleeps(tmp_path: Path) -> None:
    """The laptop sleeps when the call comes, and wakes later: the call has its answer, and the target saw it once."""
    async with stage(tmp_path) as here:
        here.fake.send(signal.SIGSTOP)
        running = here.run()
        await eventually(here.foreman.rows)
        here.fake.send(signal.SIGCONT)
        await here.check(await running, attempt=1)


@pytest_twisted.ensureDeferred
async def test_a_stream_over_a_cut_and_a_kill(tmp_path: Path) -> None:
    """Reading along, the network is cut, then foreman killed in the middle: the text comes whole, and once."""
    async with stage(tmp_path) as here:
        await here.hang()
        job = await deferToThread(here.client.submit, "tiny-b", QUESTION)
        texts: list[str] = []

        def read() -> None:
            for chunk in job.stream(timeout=LONG):
                if chunk.is_restart:
                    texts.clear()
                texts.append(chunk.text)

        reading = deferToThread(read)
        await eventually(lambda: texts, within=LONG)
        here.network.cut()
        await here.is_asked()
        await here.reborn()
        await reading
        assert "".join(texts) == ANSWER
        await here.check(await deferToThread(job.wait, LONG), attempt=2)


@pytest_twisted.ensureDeferred
async def test_the_same_for_asyncio(tmp_path: Path) -> None:
    """The asyncio client through a kill in the middle of a run and a cut: the same promise."""
    async with stage(tmp_path) as here:
        await here.hang()

        async def main() -> tuple[str, str]:
            async with AsyncForeman(here.network.url, patience=LONG) as client:
                job = await client.submit("tiny-b", QUESTION)
                waiting = asyncio.ensure_future(job.wait(LONG))
                text = ""
                async for chunk in job.stream(LONG):
                    text = chunk.text if chunk.is_restart else text + chunk.text
                return text, (await waiting).text

        running = deferToThread(asyncio.run, main())
        await here.is_asked()
        here.network.cut()
        await here.reborn()
        assert await running == (ANSWER, ANSWER)
        assert await here.asked() == 2


@pytest_twisted.ensureDeferred
async def test_many_jobs_over_a_restart(tmp_path: Path) -> None:
    """A batch comes in as its jobs are completed, each once, with foreman killed in between."""
    async with stage(tmp_path) as here:
        await deferToThread(here.client.pause, 3600)
        asks = [submission(model, QUESTION) for model in ("tiny-a", "tiny-b") * 3]
        jobs = await deferToThread(here.client.submit_many, asks)
        completing = deferToThread(lambda: list(here.client.as_completed(jobs, LONG)))
        await here.reborn()
        await deferToThread(here.client.resume)
        over = await completing
        assert {job.job_id for job in over} == {job.job_id for job in jobs}
        assert [(job.state, job.attempt) for job in over] == [("done", 1)] * 6
        # The client sees those that end between two looks together: the order that is promised is foreman's.
        ended = sorted(here.foreman.rows(), key=lambda row: row["completed_at"])
        assert [row["model"] for row in ended] == ["tiny-a"] * 3 + ["tiny-b"] * 3
        assert await here.asked() == 6


PROGRAM = """
import sys
from foreman.client import Foreman
Foreman(sys.argv[1]).run("tiny-b", "Why?", cancel_on_interrupt=True)
"""


@pytest_twisted.ensureDeferred
async def test_ctrl_c_in_a_real_program(tmp_path: Path) -> None:
    """Ctrl-C in a program that waits cancels its job, and the program ends by it."""
    async with stage(tmp_path) as here:
        await deferToThread(here.client.pause, 3600)
        program = Child(tmp_path, "program", [sys.executable, "-c", PROGRAM, here.network.url])
        try:
            program.start()
            await eventually(here.foreman.rows, within=LONG)
            assert await program.end(signal.SIGINT) == -signal.SIGINT
            await eventually(lambda: [row["error_code"] for row in here.foreman.rows()] == ["cancelled"])
        finally:
            program.destroy()


# -- in one process: what foreman says, in the client's words ----------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_how_a_job_can_end() -> None:
    """Cancelled, expired, out of time, refused by the target: each is told by its own error."""
    async with house() as home:

        def calls() -> None:
            client = Foreman(home.url)
            client.pause(3600)
            job = client.submit("tiny-b", "hi", metadata={"a": 1})
            with pytest.raises(WaitTimeout) as late:
                job.wait(0.2)
            assert late.value.job is not None
            assert late.value.job.state == "queued"
            assert job.cancel().cancel().state == "failed"
            with pytest.raises(JobCancelled) as cancelled:
                job.wait(LONG)
            assert cancelled.value.job.metadata == {"a": 1}
            with pytest.raises(JobExpired):
                client.run("tiny-b", "hi", expires_in=0.01, timeout=LONG)
            client.resume()
            with pytest.raises(JobFailed, match="invalid_request"):
                client.run("tiny-b", "hi", format="nonsense", timeout=LONG)
            client.close()

        await deferToThread(calls)


@pytest_twisted.ensureDeferred
async def test_a_full_queue_is_told_from_other_troubles() -> None:
    """When as many jobs wait as may, the error says so; what was accepted before is repeated all the same."""
    async with house({"MAX_QUEUE": "1"}) as home:

        def calls() -> None:
            client = Foreman(home.url, patience=0)
            client.pause(3600)
            job = client.submit("tiny-b", "hi", idempotency_key="mine")
            with pytest.raises(QueueFull) as full:
                client.submit("tiny-b", "hi")
            assert full.value.retry_after is not None
            assert client.submit("tiny-b", "hi", idempotency_key="mine").job_id == job.job_id
            client.close()

        await deferToThread(calls)


@pytest_twisted.ensureDeferred
async def test_long_answers_come_whole() -> None:
    """A result over the inline limit is there, and so is its text, whichever way the job is waited for."""
    async with house({"ARTIFACT_INLINE_MAX": "20"}) as home:

        def calls() -> None:
            client = Foreman(home.url)
            job = client.run("tiny-b", QUESTION, timeout=LONG)
            [same] = client.as_completed([client.job(job.job_id)], LONG)
            for each in (job, same):
                assert (each.text, each.result["message"]["content"]) == (ANSWER, ANSWER)
            assert job.artifact("content").decode() == ANSWER
            client.close()

        await deferToThread(calls)


@pytest_twisted.ensureDeferred
async def test_calls_do_not_stand_in_each_others_way() -> None:
    """However many calls wait in one program, all are submitted at once, and all have their answers."""
    async with house() as home:
        many = 130

        async def main() -> list[str]:
            async with AsyncForeman(home.url) as client:
                await client.pause(3600)
                runs = [asyncio.ensure_future(client.run("tiny-b", "hi", timeout=LONG)) for _ in range(many)]
                while (await client.queue()).queued < many:
                    pass
                await client.resume()
                return [(await each).text for each in runs]

        assert await deferToThread(asyncio.run, main()) == [ANSWER] * many


@pytest_twisted.ensureDeferred
async def test_a_receiver_is_told_by_a_real_foreman() -> None:
    """Every transition of a job is told to a receiver in the program, signed, in its order."""
    async with house({"WEBHOOK_SECRET": "whsec_a2V5"}) as home:

        def calls() -> None:
            client = Foreman(home.url)
            with Receiver(secret="whsec_a2V5") as receiver:
                job = client.submit("tiny-b", QUESTION, state_webhook_url=receiver.url)
                assert receiver.wait(job.job_id, LONG).text == ANSWER
                told = iter(receiver)
                states: list[JobState] = []
                while not states or not states[-1].is_over:
                    states.append(next(told).state)
                assert states == ["queued", "loading", "working", "done"]
            client.close()

        await deferToThread(calls)
