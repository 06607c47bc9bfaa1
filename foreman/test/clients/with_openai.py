"""The `openai` package, `OpenAI` and `AsyncOpenAI`: chat completions, completions, responses, embeddings, models."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from openai import APIError, AsyncOpenAI, AuthenticationError, NotFoundError, OpenAI

from foreman.test.clients.acting import ANSWER, REFUSED, perform, raised, together

MESSAGES: Any = [{"role": "user", "content": "hi"}]


def _client(url: str, key: str = "unused") -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key=key)


def _chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny-a", messages=MESSAGES)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"


def _chat_streamed(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny-a", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    parts = list(stream)
    choices = [part.choices[0] for part in parts if part.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == ANSWER
    assert choices[-1].finish_reason == "stop"
    assert parts[-1].usage.completion_tokens == 27  # the end is one too


def _respond(client: OpenAI) -> None:
    answer = client.responses.create(model="tiny-a", input="hi")
    assert (answer.status, answer.output_text) == ("completed", ANSWER)


def _respond_streamed(client: OpenAI) -> None:
    events = list(client.responses.create(model="tiny-a", input="hi", stream=True))
    assert events[-1].type == "response.completed"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER


def _complete(client: OpenAI) -> None:
    assert client.completions.create(model="tiny-a", prompt="hi").choices[0].text == ANSWER


def _complete_streamed(client: OpenAI) -> None:
    parts = client.completions.create(model="tiny-a", prompt="hi", stream=True)
    assert "".join(part.choices[0].text for part in parts) == ANSWER


def _embed(client: OpenAI) -> None:
    answer = client.embeddings.create(model="tiny-embed", input=["one", "two"], encoding_format="float")
    assert [len(item.embedding) for item in answer.data] == [64, 64]


async def _asynchronous(url: str) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        answer, stream = await asyncio.gather(
            client.chat.completions.create(model="tiny-a", messages=MESSAGES),
            client.chat.completions.create(model="tiny-a", messages=MESSAGES, stream=True),
        )
        assert answer.choices[0].message.content == ANSWER
        assert "".join([part.choices[0].delta.content or "" async for part in stream]) == ANSWER


CALLS = (_chat, _chat_streamed, _respond, _respond_streamed, _complete, _complete_streamed, _embed)


def calls(url: str) -> None:
    """Make every call, and those that must fail."""
    client = _client(url)
    for call in CALLS:
        call(client)
    heard = client.audio.transcriptions.create(model="tiny-a", file=("speech.wav", b"RIFF"))
    assert heard.text == ANSWER
    assert "tiny-a:latest" in [model.id for model in client.models.list()]
    assert client.models.retrieve("tiny-a").id == "tiny-a"
    asyncio.run(_asynchronous(url))
    for unknown in (
        lambda: client.chat.completions.create(model="nope", messages=MESSAGES),
        lambda: client.chat.completions.create(model="nope", messages=MESSAGES, stream=True),
        lambda: client.responses.create(model="nope", input="hi"),
        lambda: client.embeddings.create(model="nope", input="hi"),
        lambda: client.models.retrieve("nope"),
    ):
        assert "not found" in raised(NotFoundError, unknown).message


def token(url: str) -> None:
    """Send FOREMAN_TOKEN as the API key."""
    _chat(_client(url, "secret"))
    _chat_streamed(_client(url, "secret"))
    raised(AuthenticationError, lambda: _chat(_client(url, "wrong")))


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

    def streamed(stream: Any) -> None:
        error = raised(APIError, lambda: list(stream))
        assert error.message == REFUSED
        assert type(error) is APIError

    def chat() -> None:
        answer: Any = client.chat.completions.create(model="tiny-embed", messages=MESSAGES)
        assert answer.choices is None
        assert answer.error["message"] == REFUSED

    def respond() -> None:
        answer: Any = client.responses.create(model="tiny-embed", input="hi")
        assert answer.status is None
        assert answer.output is None
        assert answer.error.message == REFUSED

    def embed() -> None:
        raised(ValueError, lambda: client.embeddings.create(model="tiny-embed", input=""))

    together(
        lambda: streamed(client.chat.completions.create(model="tiny-embed", messages=MESSAGES, stream=True)),
        lambda: streamed(client.responses.create(model="tiny-embed", input="hi", stream=True)),
        chat,
        respond,
        embed,
    )


if __name__ == "__main__":
    perform(calls, token, held, failing)
