"""The text alone of a whole unstreamed answer, and what was thought before it, in each endpoint's dialect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson
from attrs import field, frozen


@frozen
class Texts:
    """What an answer says; empty if nothing."""

    content: str = field(default="", repr=False)
    thinking: str = field(default="", repr=False)


def texts_of(endpoint: str, answer: bytes) -> Texts:
    """The texts in an answer of that route; those of embeddings have none."""
    find = _FINDERS.get(endpoint)
    if find is None:
        return Texts()
    try:
        document = orjson.loads(answer)
    except orjson.JSONDecodeError:
        return Texts()
    found = list(find(document))
    return Texts(
        content="".join(text for thought, text in found if not thought and isinstance(text, str)),
        thinking="".join(text for thought, text in found if thought and isinstance(text, str)),
    )


_Found = Iterator[tuple[bool, object]]  # whether it is a thought, and the text if it is one


def _objects(value: object, name: str) -> Iterator[Mapping[str, Any]]:
    """The objects in an object's list of that name."""
    each = value.get(name) if isinstance(value, Mapping) else None
    return (item for item in (each if isinstance(each, list) else ()) if isinstance(item, Mapping))


def _message(message: object) -> _Found:
    if isinstance(message, Mapping):
        yield False, message.get("content")
        yield True, message.get("thinking")  # native
        yield True, message.get("reasoning")  # OpenAI's


def _chat(answer: Any) -> _Found:
    yield from _message(answer.get("message") if isinstance(answer, Mapping) else None)


def _generate(answer: Any) -> _Found:
    if isinstance(answer, Mapping):
        yield False, answer.get("response")
        yield True, answer.get("thinking")


def _chat_completions(answer: Any) -> _Found:
    for choice in _objects(answer, "choices"):
        yield from _message(choice.get("message"))


def _completions(answer: Any) -> _Found:
    for choice in _objects(answer, "choices"):
        yield False, choice.get("text")


def _responses(answer: Any) -> _Found:
    for item in _objects(answer, "output"):
        for part in _objects(item, "content"):
            yield False, part.get("text")
        for part in _objects(item, "summary"):
            yield True, part.get("text")


def _messages(answer: Any) -> _Found:
    for block in _objects(answer, "content"):
        yield False, block.get("text")
        yield True, block.get("thinking")


def _transcription(answer: Any) -> _Found:
    if isinstance(answer, Mapping):
        yield False, answer.get("text")


_FINDERS: Mapping[str, Callable[[Any], _Found]] = {
    "/api/chat": _chat,
    "/api/generate": _generate,
    "/v1/chat/completions": _chat_completions,
    "/v1/completions": _completions,
    "/v1/responses": _responses,
    "/v1/messages": _messages,
    "/v1/audio/transcriptions": _transcription,
}
