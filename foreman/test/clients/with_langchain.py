"""The `langchain-ollama` package: chat model, plain model, embeddings."""

from __future__ import annotations

import asyncio

from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
from ollama import ResponseError

from foreman.test.clients.acting import ANSWER, perform, raised


def calls(url: str) -> None:
    """Make every call, and those that must fail."""
    chat = ChatOllama(model="tiny-a", base_url=url, validate_model_on_init=True)
    assert chat.invoke("hi").content == ANSWER
    assert "".join(str(part.content) for part in chat.stream("hi")) == ANSWER
    assert [answer.content for answer in chat.batch(["hi", "ho"])] == [ANSWER, ANSWER]

    async def asynchronous() -> None:
        assert (await chat.ainvoke("hi")).content == ANSWER
        assert "".join([str(part.content) async for part in chat.astream("hi")]) == ANSWER

    asyncio.run(asynchronous())

    plain = OllamaLLM(model="tiny-a", base_url=url)
    assert plain.invoke("hi") == ANSWER
    assert "".join(plain.stream("hi")) == ANSWER

    embeddings = OllamaEmbeddings(model="tiny-embed", base_url=url)
    assert [len(vector) for vector in embeddings.embed_documents(["one", "two"])] == [64, 64]
    assert len(embeddings.embed_query("one")) == 64

    assert raised(ResponseError, lambda: ChatOllama(model="nope", base_url=url).invoke("hi")).status_code == 404


if __name__ == "__main__":
    perform(calls)
