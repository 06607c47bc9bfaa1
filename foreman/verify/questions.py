"""What is asked of both sides: every kind of route that changes nothing, and every kind of error."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import field, frozen

NOBODY = "foreman-verify-no-such-model"
"""A model that nobody has."""

_SAMPLING = {"seed": 7, "temperature": 0}
_SHORT = {**_SAMPLING, "num_predict": 32}
_V1_SHORT = {**_SAMPLING, "max_tokens": 32}
_PROMPT = "Count from 1 to 20 in words."
_MESSAGES = [{"role": "user", "content": _PROMPT}]


def _encoded(body: object) -> bytes | None:
    return body if body is None or isinstance(body, bytes) else json.dumps(body).encode()


@frozen
class Question:
    """A request.

    :ivar name: what the check is called.
    :ivar body: JSON if it is not bytes.
    :ivar streams: the answer comes bit by bit, and has to come so through foreman.
    :ivar administers: foreman answers it only with FOREMAN_MODEL_ADMIN=on.
    """

    name: str
    method: str
    path: str
    body: bytes | None = field(default=None, converter=_encoded)
    headers: Mapping[str, str] = field(factory=dict)
    streams: bool = field(default=False, kw_only=True)
    administers: bool = field(default=False, kw_only=True)


def questions(model: str, embedder: str | None) -> Iterator[Question]:
    """All of them, those of one model together.

    :param model: one that chats.
    :param embedder: one that embeds; without one, `model` is asked for embeddings and what comes is compared.
    """
    yield from _listings(model)
    yield from _generations(model)
    yield from _v1_generations(model)
    yield from _refusals(model)
    yield from _router()
    yield from _embeddings(embedder or model)


def long_chat(model: str, *, stream: bool) -> bytes:
    """The body of a chat that goes on for a while."""
    messages = [{"role": "user", "content": "Count from 1 to 1000, each number on a line of its own."}]
    options = {**_SAMPLING, "num_predict": 2048}
    return json.dumps({"model": model, "messages": messages, "options": options, "stream": stream}).encode()


def _listings(model: str) -> Iterator[Question]:
    for path in ("/", "/api/version", "/api/tags"):
        yield Question(f"HEAD {path}", "HEAD", path)
    for path in ("/", "/api/version", "/api/tags", "/api/ps", "/v1/models", f"/v1/models/{model}"):
        yield Question(f"GET {path}", "GET", path)
    yield Question("GET /v1/models of an unknown model", "GET", f"/v1/models/{NOBODY}")
    yield Question("show", "POST", "/api/show", {"model": model})
    yield Question("show, by its older field", "POST", "/api/show", {"name": model})


def _generations(model: str) -> Iterator[Question]:
    yield Question("load", "POST", "/api/chat", {"model": model})
    chat = {"model": model, "messages": _MESSAGES, "options": _SHORT}
    generate = {"model": model, "prompt": _PROMPT, "options": _SHORT}
    yield Question("chat, streamed", "POST", "/api/chat", chat, streams=True)
    yield Question("chat", "POST", "/api/chat", {**chat, "stream": False})
    yield Question("generate, streamed", "POST", "/api/generate", generate, streams=True)
    yield Question("generate", "POST", "/api/generate", {**generate, "stream": False})
    odd = json.dumps({"MODEL": model, "messages": _MESSAGES, "options": _SHORT, "Stream": False}) + " trailing"
    yield Question("chat, oddly written", "POST", "/api/chat", odd.encode())


def _v1_generations(model: str) -> Iterator[Question]:
    chat = {"model": model, "messages": _MESSAGES, **_V1_SHORT}
    streamed: dict[str, Any] = {"stream": True}
    usage = {**streamed, "stream_options": {"include_usage": True}}
    completion = {"model": model, "prompt": _PROMPT, **_V1_SHORT}
    response = {"model": model, "input": _PROMPT, "temperature": 0, "max_output_tokens": 32}
    message = {"model": model, "messages": _MESSAGES, "temperature": 0, "max_tokens": 32}
    for path, body, stream in (
        ("/v1/chat/completions", chat, usage),
        ("/v1/completions", completion, streamed),
        ("/v1/responses", response, streamed),
        ("/v1/messages", message, streamed),
    ):
        yield Question(f"{path}, streamed", "POST", path, {**body, **stream}, streams=True)
        yield Question(path, "POST", path, body)


def _refusals(model: str) -> Iterator[Question]:
    for path, rest in (
        ("/api/chat", {"messages": _MESSAGES}),
        ("/api/generate", {"prompt": _PROMPT}),
        ("/api/embed", {"input": _PROMPT}),
        ("/api/show", {}),
        ("/v1/chat/completions", {"messages": _MESSAGES}),
        ("/v1/messages", {"messages": _MESSAGES, "max_tokens": 1}),
    ):
        yield Question(f"{path} of an unknown model", "POST", path, {"model": NOBODY, **rest})
        yield Question(f"{path} without a model", "POST", path, rest)
        yield Question(f"{path} of no JSON", "POST", path, b'{"model": nothing}')
        yield Question(f"{path} of cut JSON", "POST", path, b'{"model": "')
        yield Question(f"{path} without a body", "POST", path, b"")
    yield Question("a model's name that is none", "POST", "/api/chat", {"model": "a b!", "messages": _MESSAGES})
    yield Question("messages of the wrong type", "POST", "/api/chat", {"model": model, "messages": "hello"})
    yield Question(
        "stream of the wrong type", "POST", "/api/chat", {"model": model, "messages": _MESSAGES, "stream": "no"}
    )
    wrong = {"model": model, "messages": _MESSAGES, "options": {"num_predict": "many"}}
    yield Question("an option of the wrong type", "POST", "/api/chat", wrong)
    yield Question(
        "a format that is none", "POST", "/api/chat", {"model": model, "messages": _MESSAGES, "format": "xml"}
    )


def _router() -> Iterator[Question]:
    yield Question("HEAD of a route without it", "HEAD", "/api/ps")
    yield Question("a wrong method", "GET", "/api/chat")
    yield Question("a wrong method of a list", "POST", "/api/tags", {})
    yield Question("an unknown path", "GET", "/api/no-such-route")
    yield Question("a path in capitals", "GET", "/API/tags")
    yield Question("a path with a slash at its end", "GET", "/api/tags/")
    yield Question("a path to be cleaned", "GET", "/api/../api/version")
    yield Question("a path that is encoded", "GET", "/api%2Fversion")
    page = {"Origin": "http://localhost:3000"}
    yield Question("a page's question", "GET", "/api/version", None, page)
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    yield Question("a page's preflight", "OPTIONS", "/api/chat", None, {**page, **preflight})
    yield Question("a stranger's page", "GET", "/api/version", None, {"Origin": "http://pages.example"})
    yield Question("delete of an unknown model", "DELETE", "/api/delete", {"model": NOBODY}, administers=True)


def _embeddings(model: str) -> Iterator[Question]:
    yield Question("embed", "POST", "/api/embed", {"model": model, "input": ["one", "two"]})
    yield Question("embed of nothing", "POST", "/api/embed", {"model": model})
    yield Question("embed of the wrong type", "POST", "/api/embed", {"model": model, "input": 7})
    yield Question("embeddings", "POST", "/api/embeddings", {"model": model, "prompt": "one"})
    yield Question("/v1/embeddings", "POST", "/v1/embeddings", {"model": model, "input": "one"})
