"""The table of paths, held against recorded traffic where Ollama has a say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from foreman.ollama.routes import Api, Kind, match, redirect_page

DATA = Path(__file__).parent / "data"

INFERENCE = [
    b"/api/chat",
    b"/api/generate",
    b"/v1/chat/completions",
    b"/v1/completions",
    b"/v1/responses",
    b"/v1/messages",
    b"/v1/audio/transcriptions",
    b"/api/embed",
    b"/api/embeddings",
    b"/v1/embeddings",
]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"GET /", Kind.ROOT),
        (b"HEAD /", Kind.ROOT),
        (b"GET /api/version", Kind.VERSION),
        (b"HEAD /api/tags", Kind.TAGS),
        (b"GET /api/ps", Kind.PS),
        (b"GET /v1/models", Kind.MODELS),
        (b"GET /v1/models/tiny-a:latest", Kind.MODELS),
        (b"POST /api/show", Kind.SHOW),
        (b"POST /api/chat", Kind.QUEUE),
        (b"POST /api/generate?x=/../y", Kind.QUEUE),
        (b"POST /v1/messages?beta=true", Kind.QUEUE),
        (b"POST /v1/audio/transcriptions", Kind.QUEUE),
        (b"POST /api%2Fchat", Kind.QUEUE),
        (b"POST /api/%63hat", Kind.QUEUE),
        (b"POST http://127.0.0.1:8080/api/chat", Kind.QUEUE),
        (b"POST /api/embed", Kind.EMBED),
        (b"POST /api/embeddings", Kind.EMBED),
        (b"POST /v1/embeddings", Kind.EMBED),
        (b"POST /api/pull", Kind.ADMIN),
        (b"DELETE /api/delete", Kind.ADMIN),
        (b"HEAD /api/blobs/sha256:00", Kind.ADMIN),
        (b"POST /api/blobs/sha256:00", Kind.ADMIN),
        (b"POST /api/me", Kind.ADMIN),
        (b"DELETE /api/user/keys/abc", Kind.ADMIN),
        (b"GET /api/experimental/model-recommendations", Kind.ADMIN),
        (b"POST /api/experimental/some/day", Kind.ADMIN),
        (b"GET /api/status", Kind.CARRY),
        (b"GET /api/chat", Kind.CARRY),
        (b"HEAD /api/ps", Kind.CARRY),
        (b"POST /api/delete", Kind.CARRY),
        (b"PUT /api/blobs/sha256:00", Kind.CARRY),
        (b"POST /v1/models/x", Kind.CARRY),
        (b"GET /v1/models/a/b", Kind.CARRY),
        (b"GET /API/tags", Kind.CARRY),
        (b"POST /API/chat", Kind.CARRY),
        (b"GET /api/nothing/", Kind.CARRY),
        (b"GET /api/chat/", Kind.CARRY),
    ],
)
def test_kinds(line: bytes, kind: Kind) -> None:
    """Each request goes where the contract's table sends it; a wrong method or an unknown path is the target's."""
    method, raw = line.split(b" ")
    assert match(method, raw).kind is kind


@pytest.mark.parametrize("path", INFERENCE)
def test_streaming(path: bytes) -> None:
    """The native generations stream unless told not to, `/v1` only when asked, embeddings and transcriptions never."""
    route = match(b"POST", path)
    assert route.default_stream is (path in (b"/api/chat", b"/api/generate"))
    assert route.streams is not (b"embed" in path or b"audio" in path)


@pytest.mark.parametrize(
    ("path", "api"),
    [
        (b"/api/chat", Api.NATIVE),
        (b"/nothing", Api.NATIVE),
        (b"/v1/responses", Api.OPENAI),
        (b"/v1/nothing", Api.OPENAI),
        (b"/v1/messages", Api.ANTHROPIC),
        (b"/v1/messages/count_tokens", Api.ANTHROPIC),
    ],
)
def test_dialects(path: bytes, api: Api) -> None:
    """Errors are told in the dialect of the path, known or not."""
    assert match(b"POST", path).api is api


@pytest.mark.parametrize("name", ["double-slash", "trailing-slash"])
def test_redirects_as_recorded(name: str) -> None:
    """A path that is not clean gets Ollama's own redirect, byte for byte."""
    recorded: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text())
    response = recorded["response"]
    route = match(recorded["request"]["method"].encode(), recorded["request"]["path"].encode())
    assert route.kind is Kind.REDIRECT
    assert route.redirect_status == response["status"]
    assert route.redirect == dict(response["headers"])["Location"].encode()
    assert redirect_page(route) == "".join(chunk["data"] for chunk in response["chunks"]).encode()


@pytest.mark.parametrize(
    ("line", "status", "location"),
    [
        (b"POST /api/chat/", 307, b"/api/chat"),
        (b"POST /api/chat/?a=1&b", 307, b"/api/chat?a=1&b"),
        (b"HEAD /api/tags/", 307, b"/api/tags"),
        (b"GET /v1/models/", 301, b"/v1/models"),
        (b"GET /v1/models/x/", 301, b"/v1/models/x"),
        (b"POST /api/../api/chat", 307, b"/api/chat"),
        (b"POST /../api/chat", 307, b"/api/chat"),
        (b"POST /api/./chat", 307, b"/api/chat"),
        (b"GET /api//nothing/", 307, b"/api/nothing/"),
        (b"POST //evil.example/api/chat", 307, b"/evil.example/api/chat"),
        (b"POST /api/%2e%2e/api/chat", 307, b"/api/chat"),
        (b"POST /api/%2E/chat", 307, b"/api/chat"),
        (b"POST http://host", 307, b"/"),
        (b"POST api/chat", 307, b"/api/chat"),
        (b"GET //%0d%0aX:%20y", 307, b"/%0D%0AX:%20y"),
        (b"GET //a?\xff", 307, b"/a?%FF"),
    ],
)
def test_redirects(line: bytes, status: int, location: bytes) -> None:
    """An inference call by a roundabout path is sent to its proper path, never past the queue."""
    method, raw = line.split(b" ", 1)
    route = match(method, raw)
    assert route.kind is Kind.REDIRECT
    assert (route.redirect_status, route.redirect) == (status, location)


def test_redirect_page_is_escaped() -> None:
    """What a caller puts in the query cannot become markup of the page."""
    route = match(b"GET", b"//x?\"<b>'&")
    assert redirect_page(route) == b'<a href="/x?&#34;&lt;b&gt;&#39;&amp;">Temporary Redirect</a>.\n\n'


@pytest.mark.parametrize(
    ("raw", "target"),
    [
        (b"/api/chat", b"/api/chat"),
        (b"/api%2Fchat?q=%20a/../b", b"/api/chat?q=%20a/../b"),
        (b"/api/chat#x", b"/api/chat%23x"),
        (b"http://elsewhere/api/tags?x", b"/api/tags?x"),
        (b"/v1/models/tiny-a:latest", b"/v1/models/tiny-a:latest"),
        (b"/a%252e", b"/a%252e"),
    ],
)
def test_what_is_forwarded_is_what_was_matched(raw: bytes, target: bytes) -> None:
    """The target is sent the path that foreman has judged, not one that others may read in another way."""
    assert match(b"POST", raw).target == target


@given(st.binary(max_size=60) | st.text(alphabet="/.%2eEfFapichtmodels?#:", max_size=30).map(str.encode))
@example(b"/api/chat%00/../x")
def test_any_path_is_safe(raw: bytes) -> None:
    """No path whatever makes foreman stumble, and none reaches the target that cleaning would turn into another."""
    route = match(b"POST", raw)
    assert route.target.startswith(b"/")
    assert all(0x20 < byte < 0x7F for byte in route.target)
    parts = unquote_to_bytes(route.target.split(b"?")[0]).split(b"/")
    assert not {b".", b".."} & set(parts)
    assert b"" not in parts[1:-1]
    assert match(b"POST", route.target).target == route.target
    if route.kind is Kind.REDIRECT:
        assert route.redirect == route.target
