"""`/v1/responses`, as Ollama speaks it (recorded traffic)."""

# ruff: noqa: D102 - the methods are those of a Dialect, told there
from __future__ import annotations

from typing import Any

from .answers import Final, Piece
from .anthropic import EVENTS, named_event
from .asks import Ask
from .dialects import Headers, call_id
from .openai import JSON, said
from .writing import go_json


def _sorted(value: object) -> object:
    """Keys in alphabetical order all the way down: Ollama's events are Go maps."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


class Response:
    """`/v1/responses`: one message, its events numbered."""

    stream_headers: Headers = EVENTS
    whole_headers: Headers = JSON

    def __init__(self, ask: Ask, created: int, max_output_tokens: int | None) -> None:
        self._ask = ask
        self._created = created
        self._limit = max_output_tokens
        number = int(ask.key[:10], 16)
        self._id = f"resp_{number % 1_000_000}"
        self._item_id = f"msg_{number // 1_000_000 % 1_000_000}"
        self._sequence = 0
        self._pieces: list[Piece] = []

    def _event(self, kind: str, **fields: object) -> bytes:
        value = _sorted({"type": kind, "sequence_number": self._sequence, **fields})
        self._sequence += 1
        return named_event(kind, value)  # type: ignore[arg-type]

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _item(self, status: str, content: list[Any]) -> dict[str, Any]:
        return {"id": self._item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _output(self, pieces: list[Piece]) -> list[dict[str, Any]]:
        text, thinking, calls = said(pieces)
        output: list[dict[str, Any]] = []
        if thinking:
            summary = [{"type": "summary_text", "text": thinking}]
            output.append({"id": f"rs_{self._item_id[4:]}", "type": "reasoning", "summary": summary})
        if text:
            output.append(self._item("completed", [self._part(text)]))
        output.extend(
            {
                "id": f"fc_{call_id(self._ask)}",
                "type": "function_call",
                "status": "completed",
                "call_id": call_id(self._ask),
                "name": piece.call["name"],
                "arguments": go_json(piece.call["arguments"]).decode(),
            }
            for piece in calls
            if piece.call is not None
        )
        return output

    def _response(self, output: list[dict[str, Any]], final: Final | None) -> dict[str, Any]:
        cut = final is not None and final.reason == "length"
        usage = final and {
            "input_tokens": final.prompt_tokens,
            "output_tokens": final.tokens,
            "total_tokens": final.prompt_tokens + final.tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": self._created if final else None,
            "status": "incomplete" if cut else "completed" if final else "in_progress",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "model": self._ask.name,
            "previous_response_id": None,
            "instructions": None,
            "output": output,
            "error": None,
            "tools": list(self._ask.tools),
            "tool_choice": "auto",
            "truncation": "disabled",
            "parallel_tool_calls": True,
            "text": {"format": {"type": "text"}},
            "top_p": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "top_logprobs": 0,
            "temperature": 1,
            "reasoning": None,
            "usage": usage,
            "max_output_tokens": self._limit,
            "max_tool_calls": None,
            "store": False,
            "background": False,
            "service_tier": "default",
            "metadata": {},
            "safety_identifier": None,
            "prompt_cache_key": None,
        }

    def opening(self) -> list[bytes]:
        blank = self._response([], None)
        return [
            self._event("response.created", response=blank),
            self._event("response.in_progress", response=blank),
            self._event("response.output_item.added", output_index=0, item=self._item("in_progress", [])),
            self._event("response.content_part.added", **self._place, part=self._part("")),
        ]

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def piece(self, piece: Piece) -> bytes:
        self._pieces.append(piece)
        if piece.thinking:
            return self._event("response.reasoning_summary_text.delta", **self._place, delta=piece.text)
        return self._event("response.output_text.delta", **self._place, delta=piece.text, logprobs=[])

    def closing(self, final: Final) -> list[bytes]:
        if final.reason is None:
            return []
        text = said(self._pieces)[0]
        kind = "response.incomplete" if final.reason == "length" else "response.completed"
        return [
            self._event("response.output_text.done", **self._place, text=text, logprobs=[]),
            self._event("response.content_part.done", **self._place, part=self._part(text)),
            self._event("response.output_item.done", output_index=0, item=self._item("completed", [self._part(text)])),
            self._event(kind, response=self._response(self._output(self._pieces), final)),
        ]

    def died(self) -> list[bytes]:
        """It just stops, without `response.completed`."""
        return []

    def whole(self, pieces: list[Piece], final: Final) -> bytes:
        return go_json(self._response(self._output(pieces), final)) + b"\n"
