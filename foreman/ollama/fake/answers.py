"""What a model says: the same pieces for the same request, every time."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import cycle, islice
from math import sqrt
from typing import Any

from attrs import frozen

from .asks import Ask

REPEATS = 30
"""A token that repeats the one before it more often than this ends the answer, without a word (ollama-wire §4)."""


@frozen
class Piece:
    """One token, or one whole tool call.

    :ivar thinking: it belongs to the thinking, not to the content.
    :ivar call: name and arguments of a tool call; then there is no text.
    """

    text: str
    thinking: bool = False
    call: Mapping[str, Any] | None = None


@frozen(kw_only=True)
class Final:
    """The numbers at the end of an answer; durations in nanoseconds.

    :ivar reason: `stop` or `length`; None when the answer just ended: the repetition stop.
    """

    reason: str | None
    prompt_tokens: int
    tokens: int
    total: int
    load: int
    prompt: int
    evaluation: int


class Answer(Iterator[Piece]):
    """The pieces of one answer.

    :ivar reason: why it ended, once it has; `tokens`: how many tokens it has cost so far.
    """

    def __init__(self, ask: Ask) -> None:
        self._pieces = iter(_pieces(ask))
        self._limit = ask.limit
        self._last: Piece | None = None
        self._repeats = 0
        self.tokens = 0
        self.reason: str | None = None

    def __next__(self) -> Piece:
        if self.tokens == self._limit:
            self.reason = "length"
            raise StopIteration
        piece = next(self._pieces, None)
        if piece is None:
            self.tokens += 1  # the model's own end-of-text token
            self.reason = "stop"
            raise StopIteration
        self._repeats = self._repeats + 1 if piece == self._last else 0
        if self._repeats > REPEATS:
            raise StopIteration
        self._last = piece
        self.tokens += 1
        return piece


def _pieces(ask: Ask) -> Iterator[Piece]:
    if ask.think:
        for text in ask.model.thinking:
            yield Piece(text, thinking=True)
    if ask.tools:
        yield Piece(" ")
        yield Piece("", call=_tool_call(ask))
        return
    words = map(Piece, _words(ask))
    if ask.format is None:
        yield from words
        return
    yield Piece("{")
    yield Piece('"')
    yield from words
    yield from map(Piece, ('"', ":", "1", "}"))


def _words(ask: Ask) -> Iterable[str]:
    if ask.model.answer is not None:
        return ask.model.answer(ask)
    words = ask.model.words
    seed = ask.options.get("seed")
    if seed is None or not ask.options.get("temperature", 0.8):
        return words
    return islice(cycle(words), seed % len(words), seed % len(words) + 1 + abs(seed) % len(words))


def _tool_call(ask: Ask) -> dict[str, Any]:
    """A call of the first tool, its required arguments filled with the last word of the prompt."""
    function = ask.tools[0].get("function", ask.tools[0])
    parameters = function.get("parameters") or function.get("input_schema") or {}
    word = (ask.prompt.split() or ["nothing"])[-1].strip(".,;:!?")
    return {"name": function.get("name", ""), "arguments": dict.fromkeys(parameters.get("required", ()), word)}


def log_probabilities(piece: Piece, top: int) -> list[dict[str, Any]]:
    """A token's `logprobs`: it was certain, and `top - 1` others were not."""

    def entry(text: str, value: float) -> dict[str, Any]:
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    own = entry(piece.text, 0)
    if not top:
        return [own]
    others = [entry(f" other{place}", -20.5 - place) for place in range(1, top)]
    return [{**own, "top_logprobs": [dict(own), *others]}]


def embedding(text: str, dimensions: int) -> list[float]:
    """A vector of length 1, made of the text alone, to eight places as a 32-bit float has them."""
    raw = [
        struct.unpack(">i", hashlib.sha256(f"{place} {text}".encode()).digest()[:4])[0] / 2**31
        for place in range(dimensions)
    ]
    norm = sqrt(sum(value * value for value in raw)) or 1.0
    return [round(value / norm, 8) for value in raw]
