"""The native answers on the wire: lines of a stream, and the whole at once (ollama-wire §4, recorded traffic)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import orjson

from .answers import Final, Piece, log_probabilities
from .asks import Ask
from .writing import go_json

Headers = tuple[tuple[bytes, bytes], ...]

DIED = "an error was encountered while running the model: unexpected EOF"


class Dialect(Protocol):
    """How one API says an answer.  Every `bytes` of a stream is one HTTP chunk.

    :ivar stream_headers: and `whole_headers`: of a streamed and of a whole answer.
    """

    stream_headers: Headers
    whole_headers: Headers

    def opening(self) -> list[bytes]:
        """What comes with the first piece, before it."""
        ...

    def piece(self, piece: Piece) -> bytes:
        """One token's chunk."""
        ...

    def closing(self, final: Final) -> list[bytes]:
        """The proper end; also of an answer without a reason to end, which gets none."""
        ...

    def died(self) -> list[bytes]:
        """The end of a stream whose runner died."""
        ...

    def whole(self, pieces: list[Piece], final: Final) -> bytes:
        """The answer that is not streamed."""
        ...


JSON = ((b"Content-Type", b"application/json; charset=utf-8"),)
NDJSON = ((b"Content-Type", b"application/x-ndjson"),)


def call_id(ask: Ask) -> str:
    """The id of a tool call: eight letters, as Ollama makes them."""
    return "call_" + "".join(chr(ord("a") + int(digit, 16)) for digit in ask.key[:8])


def native_call(ask: Ask, call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call as `/api` has it."""
    return {"id": call_id(ask), "function": {"index": 0, "name": call["name"], "arguments": call["arguments"]}}


class _Native:
    """What chat and generate have in common."""

    stream_headers: Headers = NDJSON
    whole_headers: Headers = JSON

    def __init__(self, ask: Ask, stamp: Callable[[], str]) -> None:
        """`stamp` gives `created_at`."""
        self._ask = ask
        self._stamp = stamp
        self._model = go_json(ask.name)

    def _head(self) -> bytes:
        return b'{"model":%b,"created_at":"%b",' % (self._model, self._stamp().encode())

    def _body(self, text: str, thinking: str, calls: list[dict[str, Any]]) -> bytes:
        raise NotImplementedError

    def _line(self, text: str, thinking: str, calls: list[dict[str, Any]], done: bytes) -> bytes:
        return b"%b%b,%b}" % (self._head(), self._body(text, thinking, calls), done)

    def _metrics(self, final: Final) -> bytes:
        return (
            b'"total_duration":%d,"load_duration":%d,"prompt_eval_count":%d,"prompt_eval_duration":%d,'
            b'"eval_count":%d,"eval_duration":%d'
            % (final.total, final.load, final.prompt_tokens, final.prompt, final.tokens, final.evaluation)
        )

    def _logprobs(self, pieces: list[Piece]) -> bytes:
        top = self._ask.logprobs
        if top is None:
            return b""
        return b',"logprobs":' + go_json([entry for piece in pieces for entry in log_probabilities(piece, top)])

    def _done(self, final: Final, logprobs: bytes) -> bytes:
        raise NotImplementedError

    def loaded(self, reason: str) -> bytes:
        """The answer to a load or unload request."""
        return self._line("", "", [], b'"done":true,"done_reason":"%b"' % reason.encode())

    def opening(self) -> list[bytes]:
        return []

    def piece(self, piece: Piece) -> bytes:
        calls = [native_call(self._ask, piece.call)] if piece.call is not None else []
        text, thinking = ("", piece.text) if piece.thinking else (piece.text, "")
        logprobs = self._logprobs([piece]) if self._ask.logprobs is not None else b""
        return self._line(text, thinking, calls, b'"done":false' + logprobs) + b"\n"

    def closing(self, final: Final) -> list[bytes]:
        if final.reason is None:
            return []
        return [self._line("", "", [], self._done(final, b"")) + b"\n"]

    def died(self) -> list[bytes]:
        return [go_json({"error": DIED}) + b"\n"]

    def whole(self, pieces: list[Piece], final: Final) -> bytes:
        text = "".join(piece.text for piece in pieces if not piece.thinking)
        thinking = "".join(piece.text for piece in pieces if piece.thinking)
        calls = [native_call(self._ask, piece.call) for piece in pieces if piece.call is not None]
        logprobs = self._logprobs(pieces)
        done = b'"done":false' + logprobs if final.reason is None else self._done(final, logprobs)
        return self._line(text, thinking, calls, done)


class NativeChat(_Native):
    """`/api/chat`."""

    def _body(self, text: str, thinking: str, calls: list[dict[str, Any]]) -> bytes:
        rest = b""
        if thinking:
            rest += b',"thinking":' + go_json(thinking)
        if calls:
            rest += b',"tool_calls":' + go_json(calls)
        return b'"message":{"role":"assistant","content":%b%b}' % (go_json(text), rest)

    def _done(self, final: Final, logprobs: bytes) -> bytes:
        return b'"done":true,"done_reason":"%b"%b,%b' % (
            str(final.reason).encode(),
            logprobs,
            self._metrics(final),
        )


class NativeGenerate(_Native):
    """`/api/generate`."""

    def _body(self, text: str, thinking: str, calls: list[dict[str, Any]]) -> bytes:
        rest = b',"thinking":' + go_json(thinking) if thinking else b""
        return b'"response":%b%b' % (go_json(text), rest)

    def opening(self) -> list[bytes]:
        """A thinking model opens with an empty line here, as recorded."""
        return [self._line("", "", [], b'"done":false') + b"\n"] if self._ask.think else []

    def _done(self, final: Final, logprobs: bytes) -> bytes:
        context = b""
        if not self._ask.raw:
            context = b',"context":' + orjson.dumps(list(range(259, 258 + final.prompt_tokens + final.tokens)))
        return b'"done":true,"done_reason":"%b"%b,%b%b' % (
            str(final.reason).encode(),
            context,
            self._metrics(final),
            logprobs,
        )
