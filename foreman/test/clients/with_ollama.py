"""The official `ollama` package for Python, `Client` and `AsyncClient`.

`web_search` and `web_fetch` are left out: whatever the host, they go to ollama.com.
"""

from __future__ import annotations

import asyncio
import inspect
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ollama import AsyncClient, Client, ResponseError
from pydantic import ValidationError

from foreman.test.clients.acting import ANSWER, REFUSED, perform, raised, together

MESSAGES = [{"role": "user", "content": "hi"}]


async def _got(answer: Any) -> Any:
    """An answer of either client; of a stream the list of its parts."""
    if inspect.isawaitable(answer):
        answer = await answer
    if hasattr(answer, "__aiter__"):
        return [part async for part in answer]
    return list(answer) if inspect.isgenerator(answer) else answer


async def _refusal(answer: Callable[[], Any]) -> ResponseError:
    try:
        await _got(answer())
    except ResponseError as error:
        return error
    raise AssertionError("no ResponseError")


async def _infer(client: Any) -> None:
    whole = await _got(client.chat("tiny-a", MESSAGES))
    assert (whole.message.content, whole.done, whole.done_reason) == (ANSWER, True, "stop")
    parts = await _got(client.chat("tiny-a", MESSAGES, stream=True))
    assert "".join(part.message.content for part in parts) == ANSWER
    assert [part.done for part in parts] == [False] * 26 + [True]
    whole = await _got(client.generate("tiny-a", "hi", options={"num_predict": 3}))
    assert (whole.response, whole.done_reason) == (" alpha bravo charlie", "length")
    parts = await _got(client.generate("tiny-a", "hi", stream=True))
    assert "".join(part.response for part in parts) == ANSWER
    thought = await _got(client.chat("tiny-think", MESSAGES, think=True))
    assert (thought.message.thinking, thought.message.content) == ("hmm let me see ", "180 Tokyo")
    loaded = await _got(client.generate("tiny-b", keep_alive="5m"))
    assert loaded.done_reason == "load"
    embedded = await _got(client.embed("tiny-embed", ["one", "two"]))
    assert [len(vector) for vector in embedded.embeddings] == [64, 64]
    assert len((await _got(client.embeddings("tiny-embed", "one"))).embedding) == 64


async def _look(client: Any) -> None:
    assert "tiny-a:latest" in [model.model for model in (await _got(client.list())).models]
    assert [model.model for model in (await _got(client.ps())).models] == ["tiny-embed:latest"]
    assert (await _got(client.show("tiny-a"))).details.family == "llama"


async def _change(client: Any, blob: Path) -> None:
    parts = await _got(client.pull("tiny-a", stream=True))
    assert (parts[0].status, parts[-1].status) == ("pulling manifest", "success")
    assert (await _got(client.push("tiny-a"))).status == "success"
    digest = await _got(client.create_blob(blob))
    assert (await _got(client.create("mine", files={"mine.gguf": digest}))).status == "success"
    assert (await _got(client.copy("mine", "ours"))).status == "success"
    assert (await _got(client.chat("ours", MESSAGES))).done  # known at once, not at the next poll
    for name in ("mine", "ours"):
        assert (await _got(client.delete(name))).status == "success"
    assert not {"mine:latest", "ours:latest"} & {model.model for model in (await _got(client.list())).models}


async def _err(client: Any) -> None:
    for call in (
        lambda: client.chat("nope", MESSAGES),
        lambda: client.chat("nope", MESSAGES, stream=True),
        lambda: client.generate("nope", "hi"),
        lambda: client.show("nope"),
        lambda: client.embed("nope", "hi"),
        lambda: client.delete("nope"),
    ):
        error = await _refusal(call)
        assert error.status_code == 404
        assert "not found" in error.error
    error = await _refusal(lambda: client.chat("tiny-a", MESSAGES, think=True))
    assert (error.status_code, error.error) == (400, '"tiny-a" does not support thinking')


def calls(url: str) -> None:
    """Make every call of both clients, and those that must fail."""

    async def make(client: Any) -> None:
        await _infer(client)
        await _look(client)
        with tempfile.NamedTemporaryFile() as blob:
            blob.write(type(client).__name__.encode())
            blob.flush()
            await _change(client, Path(blob.name))
        await _err(client)

    for client in (Client(url), AsyncClient(url)):
        asyncio.run(make(client))


def token(url: str) -> None:
    """Use the package's own way to send a token, OLLAMA_API_KEY in the environment."""
    assert Client(url).chat("tiny-a", MESSAGES).message.content == ANSWER
    error = raised(ResponseError, lambda: Client(url, headers={"authorization": "Bearer wrong"}).list())
    assert error.status_code == 401


def _ask(kind: Any, url: str, method: str, *args: Any, **more: Any) -> Any:
    return asyncio.run(_got(getattr(kind(url), method)(*args, **more)))


def held(url: str) -> None:
    """Wait on held lines; the answers are as ever."""

    def chat(kind: Any) -> None:
        assert _ask(kind, url, "chat", "tiny-a", MESSAGES).message.content == ANSWER

    def chat_streamed(kind: Any) -> None:
        parts = _ask(kind, url, "chat", "tiny-a", MESSAGES, stream=True)
        assert "".join(part.message.content for part in parts) == ANSWER

    def generate(kind: Any) -> None:
        assert _ask(kind, url, "generate", "tiny-a", "hi").response == ANSWER

    def generate_streamed(kind: Any) -> None:
        parts = _ask(kind, url, "generate", "tiny-a", "hi", stream=True)
        assert "".join(part.response for part in parts) == ANSWER

    def embed(kind: Any) -> None:
        assert len(_ask(kind, url, "embed", "tiny-embed", "hi").embeddings[0]) == 64

    _with_both(chat, chat_streamed, generate, generate_streamed, embed)


def failing(url: str) -> None:
    """Wait on held lines for failures.

    A stream raises the client's own error.  For a plain call the client looks at the status alone: chat and embed then
    miss what every answer of theirs has, and generate returns an answer in which nothing is set.
    """

    def streamed(kind: Any, method: str, given: Any) -> None:
        error = raised(ResponseError, partial(_ask, kind, url, method, "tiny-embed", given, stream=True))
        assert (error.status_code, error.error) == (-1, REFUSED.replace("chat", method))

    def chat(kind: Any) -> None:
        raised(ValidationError, partial(_ask, kind, url, "chat", "tiny-embed", MESSAGES))

    def generate(kind: Any) -> None:
        answer = _ask(kind, url, "generate", "tiny-embed", "hi")
        assert (answer.response, answer.done) == (None, None)

    def embed(kind: Any) -> None:
        raised(ValidationError, partial(_ask, kind, url, "embed", "tiny-embed", "hi", keep_alive="soon"))

    _with_both(
        partial(streamed, method="chat", given=MESSAGES),
        partial(streamed, method="generate", given="hi"),
        chat,
        generate,
        embed,
    )


def _with_both(*checks: Callable[[Any], None]) -> None:
    together(*(partial(check, kind) for check in checks for kind in (Client, AsyncClient)))


if __name__ == "__main__":
    perform(calls, token, held, failing)
