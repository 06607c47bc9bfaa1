"""Webhooks from end to end: foreman, FakeOllama and a receiver with the reference library, and as real processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest_twisted
from attrs import define, field
from standardwebhooks.webhooks import Webhook
from twisted.web.resource import Resource
from twisted.web.server import Site

from foreman.test.harness import House, ask, chat, daemon, eventually, fake_ollama, house, reactor

SECRET = "whsec_dGhpcnR5LXR3byBieXRlcyBvZiBhIHRlc3Qgc2VjcmV0"


@define(eq=False)
class Receiver(Resource):
    """A receiver that takes what the reference library takes for genuine.

    :ivar status: what it answers.
    :ivar received: the documents, by `webhook-id` in the order of their coming.
    """

    isLeaf = True
    status: int = 200
    url: str = ""
    received: list[tuple[str, Any]] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def render_POST(self, request: Any) -> bytes:  # noqa: N802
        """Check it, keep it, answer."""
        headers = {name: request.getHeader(name) for name in ("webhook-id", "webhook-timestamp", "webhook-signature")}
        document = Webhook(SECRET).verify(request.content.read(), headers)
        self.received.append((headers["webhook-id"], document))
        request.setResponseCode(self.status)
        return b""

    def states(self) -> list[str]:
        """What it was told."""
        return [document["state"] for _, document in self.received]


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver on loopback."""
    made = Receiver()
    port = reactor.listenTCP(0, Site(made), interface="127.0.0.1")
    made.url = f"http://127.0.0.1:{port.getHost().port}/hook"
    try:
        yield made
    finally:
        await port.stopListening()


async def submit(here: House, url: str) -> str:
    """Have a job with a webhook accepted; gives its id."""
    answer = await here.ask("POST", "/jobs", chat("tiny-a", state_webhook_url=url, metadata={"mine": 1}))
    assert answer.head is not None
    assert answer.head[0] == 202
    return str(answer.document["job_id"])


@pytest_twisted.ensureDeferred
async def test_a_job_from_end_to_end() -> None:
    """A caller of `POST /jobs` is told of every state, genuinely, and the last one brings the result."""
    async with receiver() as hook, house({"WEBHOOK_SECRET": SECRET}) as here:
        job_id = await submit(here, hook.url)
        await eventually(lambda: "done" in hook.states())
        assert hook.states() == ["queued", "loading", "working", "done"]
        assert [webhook_id for webhook_id, _ in hook.received] == [f"{job_id}-{n}" for n in (1, 2, 3, 4)]
        document = hook.received[-1][1]
        assert document["metadata"] == {"mine": 1}
        answer = await here.ask("GET", f"/jobs/{job_id}")
        await eventually(lambda: here.foreman._outbox.attempts["delivered"] == 4)
        for key in ("result", "artifacts", "timings", "model"):
            assert document[key] == answer.document[key]
        metrics = (await here.ask("GET", "/metrics")).body.decode()
        assert 'foreman_webhook_attempts_total{outcome="delivered"} 4.0' in metrics


@pytest_twisted.ensureDeferred
async def test_a_job_without_a_webhook_costs_the_outbox_nothing() -> None:
    """Nobody looks for deliveries on account of a job that has nobody to tell."""
    async with receiver() as hook, house({"WEBHOOK_SECRET": SECRET}) as here:
        looks: list[str] = []
        here.foreman._outbox.look = lambda: looks.append("")  # type: ignore[method-assign]
        await here.ask("POST", "/jobs", chat("tiny-a"), headers={"Prefer": "wait=10"})
        assert looks == []
        await submit(here, hook.url)
        assert looks != []


@pytest_twisted.ensureDeferred
async def test_health_counts_what_is_pending() -> None:
    """`/healthz` and `/metrics` tell how many webhooks wait for a receiver that is not well."""
    async with receiver() as hook, house({"WEBHOOK_SECRET": SECRET}) as here:
        hook.status = 500
        await submit(here, hook.url)
        await eventually(lambda: "done" in hook.states())
        await eventually(lambda: any(here.foreman._health.webhooks.values()))
        document = (await here.ask("GET", "/healthz")).document
        assert document["webhooks"].keys() == {"pending", "exhausted"}
        assert document["webhooks"]["pending"] >= 1
        assert 'foreman_webhooks{state="pending"}' in (await here.ask("GET", "/metrics")).body.decode()


@pytest_twisted.ensureDeferred
async def test_redelivered() -> None:
    """`POST /jobs/{id}/redeliver` sends the final event again at once, under the same id."""
    async with receiver() as hook, house({"WEBHOOK_SECRET": SECRET}) as here:
        job_id = await submit(here, hook.url)
        await eventually(lambda: "done" in hook.states())
        await eventually(lambda: here.foreman._outbox.attempts["delivered"] == 4)
        await here.ask("POST", f"/jobs/{job_id}/redeliver")
        await eventually(lambda: len(hook.received) == 5)
        assert hook.received[3] == hook.received[4]


@pytest_twisted.ensureDeferred
async def test_killed_in_the_midst_of_a_schedule(tmp_path: Path) -> None:
    """After a `kill -9` the next start sends what the receiver did not take, under the same ids."""
    settings = {"WEBHOOK_SECRET": SECRET}
    async with receiver() as hook, fake_ollama() as fake, daemon(tmp_path, fake.url, settings) as foreman:
        hook.status = 500
        answer = await ask(foreman.url, "POST", "/jobs", chat("tiny-a", state_webhook_url=hook.url))
        assert answer.head is not None
        assert answer.head[0] == 202
        await eventually(lambda: "done" in hook.states())
        await foreman.end(9)
        refused = dict(hook.received)
        hook.received.clear()
        hook.status = 200
        foreman.start()
        await eventually(lambda: "done" in hook.states(), within=30)
        assert dict(hook.received).items() <= refused.items()
        assert await foreman.end(15) == 0
