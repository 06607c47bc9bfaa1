"""The `anthropic` package, `Anthropic` and `AsyncAnthropic`, of today and from before version 1."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from anthropic import Anthropic, APIStatusError, AsyncAnthropic, AuthenticationError, NotFoundError

from foreman.test.clients.acting import ANSWER, REFUSED, perform, raised, together

ASK: Any = {"model": "tiny-a", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}


def _client(url: str, key: str = "unused") -> Anthropic:
    return Anthropic(base_url=url, api_key=key)


def _whole(client: Anthropic) -> None:
    answer = client.messages.create(**ASK)
    assert (answer.content[0].text, answer.stop_reason) == (ANSWER, "end_turn")
    assert answer.usage.output_tokens == 27  # the end is one too


def _streamed(client: Anthropic) -> None:
    events = list(client.messages.create(**ASK, stream=True))
    assert (events[0].type, events[-1].type) == ("message_start", "message_stop")
    texts = [event.delta.text for event in events if event.type == "content_block_delta"]
    assert "".join(texts) == ANSWER


def _gathered(client: Anthropic) -> None:
    with client.messages.stream(**ASK) as stream:
        assert "".join(stream.text_stream) == ANSWER
        assert stream.get_final_message().stop_reason == "end_turn"


async def _asynchronous(url: str) -> None:
    async with AsyncAnthropic(base_url=url, api_key="unused") as client:
        answer, stream = await asyncio.gather(client.messages.create(**ASK), client.messages.create(**ASK, stream=True))
        assert answer.content[0].text == ANSWER
        assert "".join([event.delta.text async for event in stream if event.type == "content_block_delta"]) == ANSWER


CALLS = (_whole, _streamed, _gathered)


def calls(url: str) -> None:
    """Make every call, and those that must fail."""
    client = _client(url)
    for call in CALLS:
        call(client)
    asyncio.run(_asynchronous(url))
    for more in ({}, {"stream": True}):
        error = raised(NotFoundError, partial(client.messages.create, **{**ASK, **more, "model": "nope"}))
        assert "not found" in error.message


def token(url: str) -> None:
    """Send FOREMAN_TOKEN as the API key, which older versions send as `x-api-key`, and as the token."""
    _whole(_client(url, "secret"))
    _streamed(_client(url, "secret"))
    _whole(Anthropic(base_url=url, api_key=None, auth_token="secret"))
    raised(AuthenticationError, lambda: _whole(_client(url, "wrong")))


def held(url: str) -> None:
    """Wait on held lines; the answers are as ever."""
    client = _client(url)
    together(*(partial(call, client) for call in CALLS), lambda: asyncio.run(_asynchronous(url)))


def failing(url: str) -> None:
    """Wait on held lines for failures.

    A stream raises the client's own error.  For a whole answer the client looks at the status alone: what it makes of
    the error's document has the error, and nothing of an answer.
    """
    client = _client(url)
    ask = {**ASK, "model": "tiny-embed"}

    def whole() -> None:
        answer: Any = client.messages.create(**ask)
        assert answer.type == "error"
        assert answer.content is None
        assert answer.stop_reason is None
        assert answer.error["message"] == REFUSED

    def streamed() -> None:
        error = raised(APIStatusError, lambda: list(client.messages.create(**ask, stream=True)))
        assert REFUSED in error.message

    def gathered() -> None:
        with client.messages.stream(**ask) as stream:
            error = raised(APIStatusError, stream.get_final_message)
        assert REFUSED in error.message

    together(whole, streamed, gathered)


if __name__ == "__main__":
    perform(calls, token, held, failing)
