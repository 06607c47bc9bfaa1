"""`/v1/messages` and Anthropic's error shape, as Ollama speaks them (ollama-wire §3, recorded traffic)."""

# ruff: noqa: D102 - the methods are those of a Dialect, told there
from __future__ import annotations

import hashlib
from typing import Any

from .answers import Final, Piece
from .asks import Ask
from .dialects import Headers, call_id
from .exchange import Exchange
from .openai import JSON, said
from .reading import Refusal
from .writing import go_json

EVENTS = (
    (b"Cache-Control", b"no-cache"),
    (b"Connection", b"keep-alive"),
    (b"Content-Type", b"text/event-stream"),
)
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


def refuse(exchange: Exchange, refusal: Refusal) -> None:
    """The answer of `/v1/messages` that says no."""
    error = {"type": _KINDS.get(refusal.status, "api_error"), "message": refusal.text}
    request_id = "req_" + hashlib.sha256(exchange.body).hexdigest()[:24]
    body = go_json({"type": "error", "error": error, "request_id": request_id})
    if refusal.early:
        exchange.reply(refusal.status, body, b"application/json; charset=utf-8")
    else:
        exchange.reply(refusal.status, body + b"\n", b"application/json")


def named_event(kind: str, value: dict[str, Any]) -> bytes:
    """One named server-sent event."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), go_json(value))


def _event(kind: str, **fields: object) -> bytes:
    return named_event(kind, {"type": kind, **fields})


class Message:
    """`/v1/messages`: each run of thinking, text or tool use is a block of its own."""

    stream_headers: Headers = EVENTS
    whole_headers: Headers = JSON

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._id = f"msg_{ask.key[:24]}"
        self._open = ""
        self._index = -1
        self._called = False

    def _message(self, content: list[Any], **more: object) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._ask.name,
            "content": content,
            **more,
        }

    def _tool_use(self, piece: Piece) -> dict[str, Any]:
        call = piece.call or {}
        return {"type": "tool_use", "id": call_id(self._ask), "name": call["name"], "input": call["arguments"]}

    def opening(self) -> list[bytes]:
        usage = {"input_tokens": max(1, len(self._ask.prompt) // 4), "output_tokens": 0}
        start = [_event("message_start", message=self._message([], usage=usage))]
        return start if self._ask.think or self._ask.tools else [*start, self._enter("text")]

    def _enter(self, kind: str, **block: object) -> bytes:
        """Begin a block of this kind, the open one closed first."""
        closed = self._leave()
        self._open = kind
        self._index += 1
        blank = {"text": {"text": ""}, "thinking": {"thinking": ""}}.get(kind, block)
        return closed + _event("content_block_start", index=self._index, content_block={"type": kind, **blank})

    def _leave(self) -> bytes:
        was, self._open = self._open, ""
        return _event("content_block_stop", index=self._index) if was else b""

    def piece(self, piece: Piece) -> bytes:
        if piece.call is not None:
            self._called = True
            use = self._tool_use(piece)
            begun = self._enter("tool_use", id=use["id"], name=use["name"], input={})
            delta = {"type": "input_json_delta", "partial_json": go_json(use["input"]).decode()}
            return begun + _event("content_block_delta", index=self._index, delta=delta)
        kind = "thinking" if piece.thinking else "text"
        begun = self._enter(kind) if self._open != kind else b""
        delta = {"type": f"{kind}_delta", kind: piece.text}
        return begun + _event("content_block_delta", index=self._index, delta=delta)

    def closing(self, final: Final) -> list[bytes]:
        if final.reason is None:
            return []
        usage = {"input_tokens": final.prompt_tokens, "output_tokens": final.tokens}
        delta = {"stop_reason": self._reason(final)}
        return [
            *filter(None, [self._leave()]),
            _event("message_delta", delta=delta, usage=usage),
            _event("message_stop"),
        ]

    def _reason(self, final: Final) -> str | None:
        if self._called:
            return "tool_use"
        return {None: None, "length": "max_tokens"}.get(final.reason, "end_turn")

    def died(self) -> list[bytes]:
        """It just stops, without `message_stop`."""
        return []

    def whole(self, pieces: list[Piece], final: Final) -> bytes:
        text, thinking, calls = said(pieces)
        self._called = bool(calls)
        blocks: list[dict[str, Any]] = []
        if thinking:
            blocks.append({"type": "thinking", "thinking": thinking})
        if text:
            blocks.append({"type": "text", "text": text})
        blocks.extend(self._tool_use(piece) for piece in calls)
        usage = {"input_tokens": final.prompt_tokens, "output_tokens": final.tokens}
        return go_json(self._message(blocks, stop_reason=self._reason(final), usage=usage)) + b"\n"
