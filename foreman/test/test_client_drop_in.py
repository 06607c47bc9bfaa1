"""The official Ollama package bound to a foreman."""

from __future__ import annotations

import asyncio
import sys

import ollama
import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from foreman.client import async_ollama_client, ollama_client
from foreman.test.harness import house

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest_twisted.ensureDeferred
async def test_ollamas_own_client_talks_to_foreman() -> None:
    """With the address and the token, `ollama.Client` chats through foreman; without the token it may not."""
    async with house({"TOKEN": "s3cret"}) as home:

        def chat() -> tuple[str | None, str | None]:
            async def also() -> str | None:
                answer = await async_ollama_client(home.url, "s3cret").chat("tiny-b", MESSAGES)
                return answer.message.content

            client = ollama_client(home.url, "s3cret", headers={"X-More": "1"})
            assert isinstance(client, ollama.Client)
            return client.chat("tiny-b", MESSAGES).message.content, asyncio.run(also())

        one, other = await deferToThread(chat)
        assert one == other == " one two three four five six seven eight nine ten"
        assert len(await home.rows()) == 2
        with pytest.raises(ollama.ResponseError):
            await deferToThread(ollama_client(home.url).list)


def test_without_the_package_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lacks `ollama` reads how to get it, when the drop-in is called and not before."""
    monkeypatch.setitem(sys.modules, "ollama", None)
    with pytest.raises(ModuleNotFoundError, match="pip install ollama"):
        ollama_client()
