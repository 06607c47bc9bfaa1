"""`Prefer: respond-async`: any native call as an async job."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
import zstandard

from foreman.test.harness import House, RawClient, chat, house
from foreman.test.test_requests import FORM, form

ASYNC = {"Prefer": "respond-async"}


def status(client: RawClient) -> int:
    """The status of an answer."""
    assert client.head is not None
    return client.head[0]


async def result(here: House, taken: RawClient) -> Any:
    """The finished job."""
    assert status(taken) == 202, taken.body
    assert taken.head is not None
    assert taken.head[1]["location"] == f"/jobs/{taken.document['job_id']}"
    return (await here.ask("GET", f"/jobs/{taken.document['job_id']}?wait=20")).document


CALLS: list[tuple[str, Any, Any]] = [
    ("/api/chat", chat("tiny-a"), lambda got: got["message"]["content"]),
    ("/api/generate", {"model": "tiny-a", "prompt": "hi"}, lambda got: got["response"]),
    ("/api/embed", {"model": "tiny-embed", "input": "hi"}, lambda got: got["embeddings"]),
    ("/v1/chat/completions", chat("tiny-a", stream=True), lambda got: got["choices"][0]["message"]["content"]),
    ("/v1/messages", chat("tiny-a", max_tokens=9), lambda got: got["content"][0]["text"]),
]


@pytest.mark.parametrize(("path", "document", "pick"), CALLS, ids=[call[0] for call in CALLS])
@pytest_twisted.ensureDeferred
async def test_a_call_becomes_a_job(path: str, document: Any, pick: Any) -> None:
    """With the preference the answer is `202` and an id, and the result is the endpoint's unstreamed answer."""
    async with house() as here:
        taken = await here.ask("POST", path, document, headers=ASYNC)
        assert set(taken.document) == {"job_id"}
        done = await result(here, taken)
        assert (done["state"], done["endpoint"], done["sync"]) == ("done", path, False)
        assert pick(done["result"])


@pytest_twisted.ensureDeferred
async def test_no_field_of_foremans_is_read() -> None:
    """The body is Ollama's alone: no webhook, no metadata, and the bytes reach the target as they are."""
    async with house() as here:
        body = chat("tiny-a", state_webhook_url="http://127.0.0.1:1/", metadata={"a": 1}, endpoint="/api/tags")
        done = await result(here, await here.ask("POST", "/api/chat", body, headers=ASYNC))
        assert (done["state"], done["webhook"], done["metadata"]) == ("done", None, None)
        assert b"state_webhook_url" in here.fake.requests[-1].body


@pytest_twisted.ensureDeferred
async def test_repeats_are_the_same_job() -> None:
    """Idempotency keys hold here too, and for one route only."""
    async with house() as here:
        headers = {**ASYNC, "Idempotency-Key": "k"}
        first = await here.ask("POST", "/api/chat", chat("tiny-a"), headers=headers)
        again = await here.ask("POST", "/api/chat", chat("tiny-a"), headers=headers)
        assert (status(first), status(again)) == (202, 200)
        assert again.document["job_id"] == first.document["job_id"]
        assert status(await here.ask("POST", "/v1/chat/completions", chat("tiny-a"), headers=headers)) == 422
        assert status(await here.ask("POST", "/jobs", chat("tiny-a"), headers=headers)) == 422
        assert len(await here.rows()) == 1


@pytest_twisted.ensureDeferred
async def test_a_compressed_body_is_kept_in_clear() -> None:
    """What came with zstd on `/v1` runs later without it."""
    async with house() as here:
        body = zstandard.compress(b'{"model": "tiny-a", "messages": [{"role": "user", "content": "hi"}]}')
        headers = {**ASYNC, "Content-Encoding": "zstd", "Content-Type": "application/json"}
        done = await result(here, await here.ask("POST", "/v1/chat/completions", body, headers=headers))
        assert done["state"] == "done"


@pytest_twisted.ensureDeferred
async def test_a_transcription_becomes_a_job() -> None:
    """A form is kept with its content type."""
    async with house() as here:
        body = form(('name="model"', b"tiny-a"))
        headers = {**ASYNC, "Content-Type": FORM}
        taken = await here.ask("POST", "/v1/audio/transcriptions", body, headers=headers)
        assert status(taken) == 202
        rows = await here.rows()
        assert [row["endpoint"] for row in rows] == ["/v1/audio/transcriptions"]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (chat("nope"), 404),
        ({"messages": []}, 400),
        (b"", 400),
        (b"{bad", 400),
        ({"model": "tiny-a", "keep_alive": 0}, 200),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_no_job_is_answered_at_once(document: Any, expected: int) -> None:
    """What only Ollama can refuse it refuses, and an unload is done: the preference changes nothing."""
    async with house() as here:
        answer = await here.ask("POST", "/api/chat", document, headers=ASYNC)
        assert status(answer) == expected
        assert [row for row in await here.rows() if not row["sync"]] == []
