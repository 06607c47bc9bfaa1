"""The `litellm` package as a library: its three ways to Ollama, and embeddings."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import litellm

from foreman.test.clients.acting import ANSWER, perform, raised

MESSAGES = [{"role": "user", "content": "hi"}]


def calls(url: str) -> None:
    """Make every call, and those that must fail."""
    ways: tuple[tuple[str, dict[str, Any]], ...] = (
        ("ollama", {"api_base": url}),
        ("ollama_chat", {"api_base": url}),
        ("openai", {"api_base": f"{url}/v1", "api_key": "unused"}),
    )
    for way, where in ways:
        name = f"{way}/tiny-a"
        answer = litellm.completion(name, MESSAGES, **where)
        assert answer.choices[0].message.content == ANSWER
        assert answer.choices[0].finish_reason == "stop"
        parts = litellm.completion(name, MESSAGES, stream=True, **where)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == ANSWER
        answer = asyncio.run(litellm.acompletion(name, MESSAGES, **where))
        assert answer.choices[0].message.content == ANSWER
        error = raised(litellm.NotFoundError, partial(litellm.completion, f"{way}/nope", MESSAGES, **where))
        assert error.status_code == 404
    embedded = litellm.embedding("ollama/tiny-embed", input=["one", "two"], api_base=url)
    assert [len(item["embedding"]) for item in embedded.data] == [64, 64]


if __name__ == "__main__":
    perform(calls)
