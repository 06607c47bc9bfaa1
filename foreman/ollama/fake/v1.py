"""The `/v1` routes: OpenAI's and Anthropic's APIs.  `options` and `keep_alive` are not read there (ollama-wire §5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import zstandard

from foreman.ollama.forms import model_of

from . import anthropic, asks, openai
from .answers import Final, Piece
from .asks import Ask
from .catalogue import not_found
from .dialects import Headers
from .embedding import Embedding, vectors
from .exchange import Exchange
from .inference import Inference
from .models import FakeModel
from .openai import ChatCompletion, Completion
from .reading import Refusal, Struct, read
from .responses import Response
from .writing import go_json

if TYPE_CHECKING:
    from .server import FakeOllama

_SAMPLING = {"stream": "bool", "temperature": "float64", "top_p": "float64", "model": "string"}
_CHAT = Struct(
    "openai",
    "ChatCompletionRequest",
    {
        **_SAMPLING,
        "messages": "[]openai.Message",
        "stream_options": "openai.StreamOptions",
        "max_tokens": "int",
        "seed": "int",
        "tools": "[]api.Tool",
        "response_format": "openai.ResponseFormat",
        "reasoning_effort": "string",
    },
)
_COMPLETION = Struct(
    "openai",
    "CompletionRequest",
    {
        **_SAMPLING,
        "prompt": "string",
        "suffix": "string",
        "stream_options": "openai.StreamOptions",
        "max_tokens": "int",
        "seed": "int",
    },
)
_EMBEDDING = Struct("openai", "EmbedRequest", {"model": "string", "input": "", "dimensions": "int"})
_RESPONSES = Struct(
    "openai",
    "ResponsesRequest",
    {**_SAMPLING, "input": "", "instructions": "string", "max_output_tokens": "int", "tools": "[]openai.ResponsesTool"},
)
_MESSAGES = Struct(
    "anthropic",
    "MessagesRequest",
    {
        **_SAMPLING,
        "messages": "[]anthropic.MessageParam",
        "max_tokens": "int",
        "system": "",
        "tools": "[]anthropic.Tool",
        "thinking": "anthropic.ThinkingConfig",
    },
)


class V1:
    """The `/v1` routes."""

    def __init__(self, fake: FakeOllama, inference: Inference, embedding: Embedding) -> None:
        self._fake = fake
        self._inference = inference
        self._embedding = embedding

    def add_routes(self, route: Any) -> None:
        """Give every route to `route`."""
        route("/v1/chat/completions", self.chat, "POST", refuse=openai.refuse)
        route("/v1/completions", self.completion, "POST", refuse=openai.refuse)
        route("/v1/embeddings", self.embeddings, "POST", refuse=openai.refuse)
        route("/v1/responses", self.responses, "POST", refuse=openai.refuse)
        route("/v1/audio/transcriptions", self.transcription, "POST", refuse=openai.refuse)
        route("/v1/models", self.models, "GET", refuse=openai.refuse)
        route("/v1/models/<name>", self.model, "GET", refuse=openai.refuse)
        route("/v1/messages", self.messages, "POST", refuse=anthropic.refuse)

    def _read(self, exchange: Exchange, struct: Struct) -> dict[str, Any]:
        body = exchange.body
        if exchange.record.headers.get("content-encoding") == "zstd":
            body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
        return read(body, struct, empty="EOF")

    def _ask(self, exchange: Exchange, fields: Mapping[str, Any], texts: list[str], limit: object, **more: Any) -> Ask:
        """The ask of a `/v1` body: `fields` as the native routes would have them."""
        options = {"temperature": fields.get("temperature", 1.0), "num_predict": limit, "seed": fields.get("seed")}
        native = {
            "model": fields.get("model", ""),
            "stream": fields.get("stream", False),
            "tools": fields.get("tools", ()),
            "options": {key: value for key, value in options.items() if value is not None},
            **more,
        }
        return asks.generation(self._fake.models, native, texts, empty=not texts, body=exchange.body, does="chat")

    async def chat(self, exchange: Exchange) -> None:
        """`POST /v1/chat/completions`."""
        fields = self._read(exchange, _CHAT)
        messages = fields.get("messages", [])
        if not messages:
            raise Refusal("[] is too short - 'messages'", early=True)
        response_format = fields.get("response_format", {}).get("type")
        ask = self._ask(
            exchange,
            fields,
            [asks.message_text(message) for message in messages],
            fields.get("max_tokens"),
            format="json" if response_format in ("json_object", "json_schema") else None,
        )
        dialect = ChatCompletion(ask, self._fake.unix_time(), with_usage=_wants_usage(fields))
        await self._inference.answer(exchange, ask, dialect)

    async def completion(self, exchange: Exchange) -> None:
        """`POST /v1/completions`; an empty prompt loads the model."""
        fields = self._read(exchange, _COMPLETION)
        prompt = fields.get("prompt", "")
        ask = self._ask(exchange, fields, [prompt] if prompt else [], fields.get("max_tokens"))
        dialect = Completion(ask, self._fake.unix_time(), with_usage=_wants_usage(fields))
        if ask.empty:
            (await self._inference.lease(ask)).release()
            final = Final(reason="load", prompt_tokens=0, tokens=0, total=1, load=1, prompt=1, evaluation=1)
            exchange.reply(200, dialect.whole([], final), headers=dialect.whole_headers)
            return
        await self._inference.answer(exchange, ask, dialect)

    async def responses(self, exchange: Exchange) -> None:
        """`POST /v1/responses`."""
        fields = self._read(exchange, _RESPONSES)
        given = fields.get("input", "")
        texts = [given] if isinstance(given, str) else [asks.message_text(item) for item in given]
        limit = fields.get("max_output_tokens")
        ask = self._ask(exchange, fields, texts, limit)
        await self._inference.answer(exchange, ask, Response(ask, self._fake.unix_time(), limit))

    async def messages(self, exchange: Exchange) -> None:
        """`POST /v1/messages`."""
        fields = self._read(exchange, _MESSAGES)
        if not fields.get("model"):
            raise Refusal("model is required", early=True)
        if fields.get("max_tokens", 0) <= 0:
            raise Refusal("max_tokens is required and must be positive", early=True)
        messages = fields.get("messages", [])
        if not messages:
            raise Refusal("messages is required", early=True)
        thinking = {"enabled": True, "disabled": False}.get(fields.get("thinking", {}).get("type"))
        texts = [asks.message_text(message) for message in messages]
        ask = self._ask(exchange, fields, texts, fields["max_tokens"], think=thinking)
        await self._inference.answer(exchange, ask, anthropic.Message(ask))

    async def transcription(self, exchange: Exchange) -> None:
        """`POST /v1/audio/transcriptions`: the model's words, whatever was said."""
        try:
            model = model_of(
                exchange.body, exchange.record.headers.get("content-type", ""), exchange.uri.partition(b"?")[2]
            )
        except ValueError:
            model = ""
        fields = {"model": model}
        ask = self._ask(exchange, fields, ["transcribe"], None)
        await self._inference.answer(exchange, ask, _Transcription())

    async def embeddings(self, exchange: Exchange) -> None:
        """`POST /v1/embeddings`."""
        fields = self._read(exchange, _EMBEDDING)
        given = fields.get("input", "")
        if not given:
            raise Refusal("invalid input")
        texts = [given] if isinstance(given, str) else [str(text) for text in given]
        model, tokens = await self._embedding.embed(fields.get("model", ""), texts, {}, None)
        data = [
            {"object": "embedding", "embedding": vector, "index": place}
            for place, vector in enumerate(vectors(model, texts))
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        body = go_json({"object": "list", "data": data, "model": fields.get("model", ""), "usage": usage})
        exchange.reply(200, body + b"\n", b"application/json")

    async def models(self, exchange: Exchange) -> None:
        """`GET /v1/models`."""
        data = [_described(model, model.name) for model in self._fake.newest_first()]
        exchange.reply(200, go_json({"object": "list", "data": data}) + b"\n", b"application/json")

    async def model(self, exchange: Exchange, name: str) -> None:
        """`GET /v1/models/{id}`."""
        model = asks.find(self._fake.models, name, not_found(name))
        exchange.reply(200, go_json(_described(model, name)) + b"\n", b"application/json")


class _Transcription:
    """`/v1/audio/transcriptions`: only the text."""

    stream_headers: Headers = openai.SSE
    whole_headers: Headers = openai.JSON

    def opening(self) -> list[bytes]:
        return []

    def piece(self, piece: Piece) -> bytes:
        return openai.event({"type": "transcript.text.delta", "delta": piece.text})

    def closing(self, final: Final) -> list[bytes]:
        return [openai.event({"type": "transcript.text.done"})]

    def died(self) -> list[bytes]:
        return []

    def whole(self, pieces: list[Piece], final: Final) -> bytes:
        return go_json({"text": openai.said(pieces)[0]}) + b"\n"


def _wants_usage(fields: Mapping[str, Any]) -> bool:
    return bool(fields.get("stream_options", {}).get("include_usage"))


def _described(model: FakeModel, shown: str) -> dict[str, Any]:
    return {"id": shown, "object": "model", "created": int(model.modified_at), "owned_by": "library"}
