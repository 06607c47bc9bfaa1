"""`/v1/chat/completions`, `/v1/completions` and OpenAI's error shape, as Ollama speaks them (ollama-wire §3, §4)."""

# ruff: noqa: D102 - the methods are those of a Dialect, told there
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .answers import Final, Piece
from .asks import Ask
from .dialects import Headers, call_id
from .exchange import Exchange
from .reading import Refusal
from .writing import go_json

JSON = ((b"Content-Type", b"application/json"),)
SSE = ((b"Content-Type", b"text/event-stream"),)


def refuse(exchange: Exchange, refusal: Refusal) -> None:
    """The answer of an OpenAI route that says no."""
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(refusal.status, "api_error")
    body = go_json({"error": {"message": refusal.text, "type": kind, "param": None, "code": None}})
    if refusal.early:
        exchange.reply(refusal.status, body, b"application/json; charset=utf-8")
    else:
        exchange.reply(refusal.status, body + b"\n", b"application/json")


def said(pieces: Iterable[Piece]) -> tuple[str, str, list[Piece]]:
    """Content, thinking and tool calls of an answer."""
    pieces = list(pieces)
    content = "".join(piece.text for piece in pieces if not piece.thinking)
    thinking = "".join(piece.text for piece in pieces if piece.thinking)
    return content, thinking, [piece for piece in pieces if piece.call is not None]


def event(value: object) -> bytes:
    """One unnamed server-sent event."""
    return b"data: " + go_json(value) + b"\n\n"


def _usage(final: Final) -> dict[str, int]:
    return {
        "prompt_tokens": final.prompt_tokens,
        "completion_tokens": final.tokens,
        "total_tokens": final.prompt_tokens + final.tokens,
    }


class _OpenAI:
    """What chat and plain completions have in common."""

    stream_headers: Headers = SSE
    whole_headers: Headers = JSON
    prefix = ""

    def __init__(self, ask: Ask, created: int, *, with_usage: bool) -> None:
        self._ask = ask
        # Ollama takes a random number below 999 here.
        self._head = {"id": f"{self.prefix}-{int(ask.key[:8], 16) % 999}"}
        self._created = created
        self._with_usage = with_usage

    def opening(self) -> list[bytes]:
        return []

    def _chunk(self, choices: list[Any], **more: object) -> bytes:
        raise NotImplementedError

    def _last_choice(self, reason: str) -> dict[str, Any]:
        raise NotImplementedError

    def _reason(self, final: Final) -> str:
        return str(final.reason)

    def closing(self, final: Final) -> list[bytes]:
        """The last two or three events share one chunk, as recorded."""
        if final.reason is None:
            return []
        usage = self._chunk([], usage=_usage(final)) if self._with_usage else b""
        return [self._chunk([self._last_choice(self._reason(final))]) + usage + b"data: [DONE]\n\n"]


class ChatCompletion(_OpenAI):
    """`/v1/chat/completions`."""

    prefix = "chatcmpl"

    def __init__(self, ask: Ask, created: int, *, with_usage: bool) -> None:
        super().__init__(ask, created, with_usage=with_usage)
        self._first = True
        self._called = False

    def _frame(self, kind: str, model: str) -> dict[str, Any]:
        return {
            **self._head,
            "object": kind,
            "created": self._created,
            "model": model,
            "system_fingerprint": "fp_ollama",
        }

    def _chunk(self, choices: list[Any], **more: object) -> bytes:
        return event({**self._frame("chat.completion.chunk", self._ask.name), "choices": choices, **more})

    def _last_choice(self, reason: str) -> dict[str, Any]:
        return {"index": 0, "delta": {}, "finish_reason": reason}

    def _reason(self, final: Final) -> str:
        return "tool_calls" if self._called else super()._reason(final)

    def _calls(self, pieces: Iterable[Piece]) -> list[dict[str, Any]]:
        return [
            {
                "id": call_id(self._ask),
                "index": 0,
                "type": "function",
                "function": {"name": piece.call["name"], "arguments": go_json(piece.call["arguments"]).decode()},
            }
            for piece in pieces
            if piece.call is not None
        ]

    def piece(self, piece: Piece) -> bytes:
        delta: dict[str, Any] = {"role": "assistant"} if self._first else {}
        self._first = False
        if piece.call is not None:
            self._called = True
            delta |= {"content": "", "tool_calls": self._calls([piece])}
        else:
            delta["reasoning" if piece.thinking else "content"] = piece.text
        return self._chunk([{"index": 0, "delta": delta, "finish_reason": None}])

    def died(self) -> list[bytes]:
        """The error itself is swallowed: an empty delta of no model, and no `[DONE]`."""
        choice = {"index": 0, "delta": {}, "finish_reason": None}
        return [event({**self._frame("chat.completion.chunk", ""), "choices": [choice]})]

    def whole(self, pieces: list[Piece], final: Final) -> bytes:
        content, thinking, calls = said(pieces)
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if thinking:
            message["reasoning"] = thinking
        if calls:
            message["tool_calls"] = self._calls(calls)
        reason = None if final.reason is None else "tool_calls" if calls else final.reason
        choice = {"index": 0, "message": message, "finish_reason": reason}
        frame = self._frame("chat.completion", self._ask.name)
        return go_json({**frame, "choices": [choice], "usage": _usage(final)}) + b"\n"


class Completion(_OpenAI):
    """`/v1/completions`."""

    prefix = "cmpl"

    def _chunk(self, choices: list[Any], **more: object) -> bytes:
        return event(
            {
                **self._head,
                "object": "text_completion",
                "created": self._created,
                "choices": choices,
                "model": self._ask.name,
                "system_fingerprint": "fp_ollama",
                **more,
            }
        )

    def _last_choice(self, reason: str) -> dict[str, Any]:
        return {"text": "", "index": 0, "finish_reason": reason}

    def piece(self, piece: Piece) -> bytes:
        return self._chunk([{"text": "" if piece.thinking else piece.text, "index": 0, "finish_reason": None}])

    def died(self) -> list[bytes]:
        return []

    def whole(self, pieces: list[Piece], final: Final) -> bytes:
        choice = {"text": said(pieces)[0], "index": 0, "finish_reason": final.reason}
        return (
            go_json(
                {
                    **self._head,
                    "object": "text_completion",
                    "created": self._created,
                    "model": self._ask.name,
                    "system_fingerprint": "fp_ollama",
                    "choices": [choice],
                    "usage": _usage(final),
                }
            )
            + b"\n"
        )
