"""`/api/embed` and the old `/api/embeddings` (ollama-wire §5)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .answers import embedding
from .asks import EMBED, EMBEDDINGS, Ask, count_tokens, find, settings_of
from .exchange import Exchange
from .inference import Inference
from .models import FakeModel
from .reading import Refusal, keep_alive, read
from .writing import go_json

if TYPE_CHECKING:
    from .server import FakeOllama

_JSON = b"application/json; charset=utf-8"
_MISSING = 'model "{}" not found, try pulling it first'
_NO_EMBEDDINGS = "This server does not support embeddings. Start it with `--embeddings`"


def vectors(model: FakeModel, texts: list[str]) -> list[list[float]]:
    """One vector for each text."""
    return [embedding(text, model.embedding_length) for text in texts]


class Embedding:
    """The embedding routes."""

    def __init__(self, fake: FakeOllama, inference: Inference) -> None:
        self._fake = fake
        self._inference = inference

    def add_routes(self, route: Any) -> None:
        """Give every route to `route`."""
        route("/api/embed", self.embed_route, "POST")
        route("/api/embeddings", self.embeddings_route, "POST")

    async def embed(
        self, name: str, texts: list[str], options: Mapping[str, Any], alive: float | None
    ) -> tuple[FakeModel, int]:
        """Wait for the model and for its turn.  The model and the tokens it read.

        :raise Refusal: 404 for an unknown model, 501 for one that does not embed (found out once it is loaded).
        """
        model = find(self._fake.models, name, _MISSING if name else "model '{}' not found")
        lease = await self._inference.lease(
            Ask(model=model, name=name, settings=settings_of(model, options), keep_alive=alive)
        )
        try:
            if not texts:
                return model, 0
            if "embedding" not in model.capabilities:
                raise Refusal(_NO_EMBEDDINGS, 501)
            await lease.turn()
            await self._inference.pause(model.prompt_time)
        finally:
            lease.release()
        return model, sum(2 + count_tokens(text) for text in texts)

    async def embed_route(self, exchange: Exchange) -> None:
        """`POST /api/embed`."""
        fields = read(exchange.body, EMBED)
        alive = keep_alive(fields.get("keep_alive"))
        given = fields.get("input", [])
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise Refusal("invalid input type")
        came = self._fake.clock.seconds()
        name = fields.get("model", "")
        model, tokens = await self.embed(name, texts, fields.get("options", {}), alive)
        answer: dict[str, Any] = {"model": name, "embeddings": vectors(model, texts)}
        if texts:
            took = self._fake.duration(self._fake.clock.seconds() - came)
            answer |= {"total_duration": took, "load_duration": took, "prompt_eval_count": tokens}
        exchange.reply(200, go_json(answer), _JSON)

    async def embeddings_route(self, exchange: Exchange) -> None:
        """`POST /api/embeddings`: one vector, in doubles."""
        fields = read(exchange.body, EMBEDDINGS)
        alive = keep_alive(fields.get("keep_alive"))
        if not fields.get("model"):
            raise Refusal("model is required")
        prompt = fields.get("prompt", "")
        texts = [prompt] if prompt else []
        model, _ = await self.embed(fields["model"], texts, fields.get("options", {}), alive)
        vector = [struct.unpack("f", struct.pack("f", value))[0] for text in vectors(model, texts) for value in text]
        exchange.reply(200, go_json({"embedding": vector}), _JSON)
