"""The Ollama face through the whole house: what passes at once, what waits, what needs FOREMAN_MODEL_ADMIN."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import pytest_twisted

from foreman.ollama.fake import Fault, default_models
from foreman.ollama.fake.models import FakeModel
from foreman.test.harness import House, RawClient, ask, chat, eventually, house, unhurried

SLOW = default_models(token_rate=20.0)
ADMIN = {"MODEL_ADMIN": "on"}


def status(client: RawClient) -> int:
    """The status of its answer."""
    assert client.head is not None
    return client.head[0]


async def busy(here: House) -> RawClient:
    """A call whose answer is coming, slowly."""
    client = await here.send("POST", "/api/chat", chat("tiny-a"))
    await eventually(lambda: client.chunks)
    return client


# -- at once, or in turn -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gpt-oss:cloud", "gpt-oss:20b-cloud"])
@pytest_twisted.ensureDeferred
async def test_cloud_models_are_proxied_at_once(model: str) -> None:
    """They use no local memory: while a job runs they go to the target, and there is no row of them."""
    async with house(models=(*SLOW, FakeModel(name=model)), slots=2) as here:
        running = await busy(here)
        assert here.foreman._inventory.find(model) is not None
        with unhurried(here.fake):
            answer = await here.ask("POST", "/api/chat", chat(model))
        assert (status(answer), "cloud is disabled" in answer.document["error"]) == (403, True)  # Ollama's own word
        assert not running.ended
        assert len(await here.rows()) == 1
        running.leave()


@pytest_twisted.ensureDeferred
async def test_a_body_that_only_ollama_can_read_waits_its_turn() -> None:
    """Foreman cannot tell what it will load, so it waits like any other; the answer is Ollama's own."""
    async with house(models=SLOW) as here:
        running = await busy(here)
        with unhurried(here.fake):
            odd = await here.send("POST", "/api/chat", b'{"model": "tiny-a", "messages": [')
            await eventually(lambda: here.foreman._store.backlog.queued == 1)
            assert not odd.ended
        await eventually(lambda: running.ended and odd.ended)
        direct = await ask(here.fake.url, "POST", "/api/chat", b'{"model": "tiny-a", "messages": [')
        assert (status(odd), odd.body) == (status(direct), direct.body)
        row = (await here.rows())[1]
        assert (row["model"], row["runner_model"], row["attempt"]) == ("", "", 1)
        running.leave()
        odd.leave()


@pytest_twisted.ensureDeferred
async def test_an_embedding_on_a_connection_that_had_died_is_asked_again() -> None:
    """The target had closed an idle connection: the client of an embedding call does not notice."""
    async with house({"EMBED_MODEL": "tiny-embed"}, slots=2) as here:
        call = ("POST", "/api/embed", {"model": "tiny-embed", "input": "x"})
        first = await here.ask(*call)
        here.fake.faults.next("/api/embed", Fault.DROP)
        second = await here.ask(*call)
        assert (status(first), status(second)) == (200, 200)
        assert not here.fake.faults.rules
        assert second.document["embeddings"] == first.document["embeddings"]


@pytest_twisted.ensureDeferred
async def test_bodies_that_wait_are_bounded_in_all() -> None:
    """Sixteen of the largest bodies may wait; the next call gets 503, and one that leaves makes room."""
    async with house({"MAX_BODY": "1KiB"}, models=default_models(token_rate=2.0)) as here:
        running = await busy(here)
        held = here.foreman._site.bodies.held
        room = len(json.dumps(chat("tiny-b", "")))
        full = [await here.send("POST", "/api/chat", chat("tiny-b", "x" * (1024 - room))) for _ in range(15)]
        full.append(await here.send("POST", "/api/chat", chat("tiny-b", "x" * (1024 - room - held))))
        await eventually(lambda: here.foreman._store.backlog.queued == 16)
        refused = await here.ask("POST", "/api/chat", chat("tiny-b"))
        assert status(refused) == 503
        assert refused.head is not None
        assert int(refused.head[1]["retry-after"]) > 0
        assert "error" in refused.document
        full.pop().leave()
        await eventually(lambda: here.foreman._store.backlog.queued == 15)
        late = await here.send("POST", "/api/chat", chat("tiny-b"))
        await eventually(lambda: here.foreman._store.backlog.queued == 16)
        for client in (*full, late, running):
            client.leave()


# -- what changes the target -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/pull"),
        ("POST", "/api/push"),
        ("POST", "/api/create"),
        ("POST", "/api/copy"),
        ("DELETE", "/api/delete"),
        ("POST", f"/api/blobs/sha256:{'0' * 64}"),
        ("HEAD", f"/api/blobs/sha256:{'0' * 64}"),
        ("POST", "/api/me"),
        ("POST", "/api/signout"),
        ("GET", "/api/experimental/aliases"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_without_the_setting_nothing_that_changes_the_target_is_carried(method: str, path: str) -> None:
    """The answer is 403, and tells which setting allows it; the target is not asked."""
    async with house() as here:
        answer = await here.ask(method, path, {"model": "tiny-a"})
        assert status(answer) == 403
        if method != "HEAD":
            assert "FOREMAN_MODEL_ADMIN=on" in answer.document["error"]
        assert not any(record.path == path for record in here.fake.requests)


@pytest_twisted.ensureDeferred
async def test_a_pull_is_streamed_and_the_new_model_known_at_its_end() -> None:
    """Each line of progress is a chunk of its own; when the answer has ended, the model can be used."""
    async with house(ADMIN, pullable=[FakeModel(name="new-one")]) as here:
        client = await here.send("POST", "/api/pull", {"model": "new-one"})
        await eventually(lambda: client.ended)
        assert here.foreman._inventory.find("new-one") is not None
        lines: list[Any] = [json.loads(chunk) for chunk in client.chunks if chunk]
        assert len(lines) > 4
        assert lines[-1] == {"status": "success"}
        client.leave()
        assert status(await here.ask("POST", "/api/chat", chat("new-one"))) == 200
        assert [row["model"] for row in await here.rows()] == ["new-one"]


@pytest_twisted.ensureDeferred
async def test_progress_is_seen_while_the_pull_goes_on() -> None:
    """Lines are not kept back: all are there before the answer's end, which waits for the list of models."""
    async with house(ADMIN, pullable=[FakeModel(name="new-one")]) as here:
        here.fake.faults.next("/api/tags", Fault.HANG)
        client = await here.send("POST", "/api/pull", {"model": "new-one"})
        await eventually(lambda: b'{"status":"success"}' in client.body)
        await eventually(lambda: here.fake.requests[-1].path == "/api/tags")
        assert not client.ended
        here.fake.cut()
        await eventually(lambda: client.ended)
        client.leave()


@pytest_twisted.ensureDeferred
async def test_a_blob_larger_than_any_other_body_is_carried() -> None:
    """FOREMAN_MAX_BODY does not bound blobs: one goes through foreman's disk to the target, byte for byte."""
    blob = bytes(range(256)) * 2000
    digest = hashlib.sha256(blob).hexdigest()
    async with house({**ADMIN, "MAX_BODY": "1KiB"}) as here:
        path = f"/api/blobs/sha256:{digest}"
        assert status(await here.ask("HEAD", path)) == 404
        assert status(await here.ask("POST", path, blob)) == 201
        assert here.fake.blobs == {digest}
        assert status(await here.ask("HEAD", path)) == 200
        assert status(await here.ask("POST", "/api/chat", blob)) == 413


@pytest_twisted.ensureDeferred
async def test_copies_and_deletions_are_known_when_they_are_answered() -> None:
    """What was copied can be used at once, what was deleted is gone at once; the answers are Ollama's own."""
    async with house(ADMIN) as here:
        copied = await here.ask("POST", "/api/copy", {"source": "tiny-a", "destination": "tiny-z"})
        assert (status(copied), copied.body) == (200, b"")
        assert here.foreman._inventory.find("tiny-z") is not None
        assert status(await here.ask("DELETE", "/api/delete", {"model": "tiny-z"})) == 200
        assert here.foreman._inventory.find("tiny-z") is None
        assert status(await here.ask("POST", "/api/me")) == 401
