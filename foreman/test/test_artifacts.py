"""Artifacts over HTTP: ranges, conditions, digests, and large ones in pieces."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from foreman.job import Artifact, Ending, NewJob, Runner, Submission
from foreman.service import now_ms
from foreman.test.harness import House, chat, eventually, house
from foreman.web.artifacts import PIECE, Span, Unsatisfiable, span_of

RANGES: list[tuple[str | None, Span | None]] = [
    (None, None),
    ("bytes=0-0", Span(0, 1)),
    ("bytes=2-", Span(2, 10)),
    ("bytes=-3", Span(7, 10)),
    ("bytes=-99", Span(0, 10)),
    ("bytes=5-99", Span(5, 10)),
    (" BYTES = 1 - 2 ", Span(1, 3)),
    ("bytes=3-2", None),
    ("bytes=-", None),
    ("bytes=0-1,3-4", None),
    ("lines=0-1", None),
    ("nonsense", None),
]


@pytest.mark.parametrize(("header", "expected"), RANGES)
def test_ranges(header: str | None, expected: Span | None) -> None:
    """One range of bytes is given; whatever else stands there is passed over, as the RFC allows."""
    assert span_of(header, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-20", "bytes=-0"])
def test_ranges_behind_the_end(header: str) -> None:
    """Where nothing is, nothing can be given."""
    with pytest.raises(Unsatisfiable):
        span_of(header, 10)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 20))
def test_a_range_lies_within(first: int, last: int, size: int) -> None:
    """No range reads beyond the artifact, whatever is asked for."""
    data = bytes(range(size))
    try:
        span = span_of(f"bytes={first}-{last}", size)
    except Unsatisfiable:
        assert first >= size
        return
    assert span is None or data[span.start : span.end] == data[first : last + 1]


async def kept(here: House, body: bytes) -> str:
    """A job that has left a blob; gives its path."""
    store = here.foreman._store
    [job] = await store.accept(
        [
            NewJob(
                id=str(ULID()),
                endpoint="/api/chat",
                model="m",
                runner=Runner("m"),
                size=2,
                created_at=now_ms(),
                submission=Submission(body=b"{}"),
            )
        ]
    )
    taken = await store.take(resident=None, warm=False, aside=())
    assert taken is not None
    working = await store.work(taken.job)
    assert working is not None
    ending = Ending(
        error=None, at=now_ms(), artifacts=(Artifact(name="blob", content_type="application/x-blob", body=body),)
    )
    assert await store.end(working, ending)
    return f"/jobs/{job.id}/artifacts/blob"


def readings(here: House) -> list[int]:
    """The sizes of the pieces that are read of artifacts from now on."""
    pieces: list[int] = []
    read = here.foreman._archive.read_artifact

    async def counted(*args: Any) -> bytes | None:
        pieces.append(args[3])
        return await read(*args)

    here.foreman._archive.read_artifact = counted  # type: ignore[method-assign, assignment]
    return pieces


async def get(here: House, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await here.ask(method, path, headers=named)
    assert answer.head is not None
    return *answer.head, answer.body


@pytest_twisted.ensureDeferred
async def test_an_artifact_is_read_as_http_has_it() -> None:
    """Type, size, digest as ETag, ranges, conditions, HEAD."""
    async with house({"OLLAMA_URL": "http://127.0.0.1:1"}, wait=False) as here:
        body = os.urandom(1000)
        path = await kept(here, body)
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        code, headers, data = await get(here, path)
        assert (code, data, headers["etag"]) == (200, body, etag)
        assert (headers["content-type"], headers["content-length"]) == ("application/x-blob", "1000")
        assert headers["accept-ranges"] == "bytes"
        code, headers, data = await get(here, path, "HEAD")
        assert (code, data, headers["content-length"], headers["etag"]) == (200, b"", "1000", etag)
        code, headers, data = await get(here, path, Range="bytes=10-19")
        assert (code, data, headers["content-range"]) == (206, body[10:20], "bytes 10-19/1000")
        code, headers, data = await get(here, path, Range="bytes=1000-")
        assert (code, headers["content-range"]) == (416, "bytes */1000")
        assert headers["content-type"].startswith("application/json")
        assert (await get(here, path, If_None_Match=f'"x", W/{etag}'))[::2] == (304, b"")
        assert (await get(here, path, If_None_Match="*"))[0] == 304
        assert (await get(here, path, If_None_Match='"x"'))[0] == 200
        assert (await get(here, path, Range="bytes=0-0", If_Range=etag))[0] == 206
        assert (await get(here, path, Range="bytes=0-0", If_Range='"x"'))[::2] == (200, body)
        assert (await get(here, path.replace("blob", "other")))[0] == 404


@pytest_twisted.ensureDeferred
async def test_an_empty_artifact() -> None:
    """Nothing at all can be read too."""
    async with house({"OLLAMA_URL": "http://127.0.0.1:1"}, wait=False) as here:
        path = await kept(here, b"")
        assert (await get(here, path))[::2] == (200, b"")
        assert (await get(here, path, Range="bytes=0-"))[0] == 416


@pytest_twisted.ensureDeferred
async def test_a_large_artifact_is_read_at_the_readers_pace() -> None:
    """Of a large artifact only a few pieces are read for a client that does not read; the rest when it does."""
    async with house({"OLLAMA_URL": "http://127.0.0.1:1"}, wait=False) as here:
        body = os.urandom(64 * PIECE + 17)
        path, pieces = await kept(here, body), readings(here)
        client = await here.send("GET", path)
        client.transport.pauseProducing()  # type: ignore[union-attr]
        await eventually(lambda: pieces)
        before = -1
        while before != len(pieces):
            before = len(pieces)
            await here.ask("GET", "/readyz")
            await here.ask("GET", "/readyz")
        assert len(pieces) < 40
        client.transport.resumeProducing()  # type: ignore[union-attr]
        await eventually(lambda: client.ended, within=60)
        assert client.body == body
        assert max(pieces) == PIECE
        client.leave()
        await client.closed


@pytest_twisted.ensureDeferred
async def test_an_artifact_that_is_deleted_while_it_is_read_is_cut() -> None:
    """Half of an artifact never looks whole."""
    async with house({"OLLAMA_URL": "http://127.0.0.1:1"}, wait=False) as here:
        path, pieces = await kept(here, os.urandom(64 * PIECE)), readings(here)
        client = await here.send("GET", path)
        client.transport.pauseProducing()  # type: ignore[union-attr]
        await eventually(lambda: len(pieces) > 1)
        assert (await here.ask("DELETE", path.partition("/artifacts")[0])).head is not None
        client.transport.resumeProducing()  # type: ignore[union-attr]
        await eventually(lambda: client.is_closed)
        assert not client.ended


@pytest_twisted.ensureDeferred
async def test_the_digest_in_the_job_is_the_blobs() -> None:
    """What the job's document says of an artifact is true of its bytes."""
    async with house() as here:
        done = (await here.ask("POST", "/jobs", chat("tiny-uni"), headers={"Prefer": "wait=10"})).document
        for reference in done["artifacts"]:
            _, headers, body = await get(here, reference["url"])
            assert hashlib.sha256(body).hexdigest() == reference["sha256"]
            assert (len(body), headers["content-type"]) == (reference["size"], reference["content_type"])
            assert body == reference["inline"].encode()
