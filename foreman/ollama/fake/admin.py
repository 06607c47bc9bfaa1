"""The routes that change what is there: pull, push, create, copy, delete, blobs, and the account (ollama-wire §5)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from attrs import evolve
from twisted.internet.defer import Deferred

from .asks import find
from .exchange import Exchange
from .faults import Fault
from .models import FakeModel, listed_name
from .reading import Refusal, Struct, read
from .writing import go_json

if TYPE_CHECKING:
    from .server import FakeOllama

_JSON = b"application/json; charset=utf-8"
_NAMED = {"model": "string", "name": "string", "insecure": "bool", "stream": "bool"}
_PULL = Struct("api", "PullRequest", _NAMED)
_PUSH = Struct("api", "PushRequest", _NAMED)
_DELETE = Struct("api", "DeleteRequest", _NAMED)
_COPY = Struct("api", "CopyRequest", {"source": "string", "destination": "string"})
_CREATE = Struct(
    "api",
    "CreateRequest",
    {
        **_NAMED,
        "from": "string",
        "files": "map[string]string",
        "template": "string",
        "system": "string",
        "parameters": "map[string]interface {}",
        "quantize": "string",
    },
)
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})\Z")
_STEPS = 4


class Admin:
    """The routes that change the list of models."""

    def __init__(self, fake: FakeOllama) -> None:
        self._fake = fake
        self._came: dict[str, int] = {}
        """Bytes of each blob whose pull was cut: the next one goes on there."""

    def add_routes(self, route: Any) -> None:
        """Give every route to `route`."""
        route("/api/pull", self.pull, "POST")
        route("/api/push", self.push, "POST")
        route("/api/create", self.create, "POST")
        route("/api/copy", self.copy, "POST")
        route("/api/delete", self.delete, "DELETE")
        route("/api/blobs/<name>", self.has_blob, "HEAD")
        route("/api/blobs/<name>", self.put_blob, "POST")
        route("/api/me", self.me, "POST")

    async def _progress(self, exchange: Exchange, fields: dict[str, Any], lines: Iterable[dict[str, Any]]) -> None:
        """A streamed progress, which a fault may end, or only its last line."""
        if not fields.get("stream", True):
            last = list(lines)[-1]
            exchange.reply(500 if "error" in last else 200, go_json(last), _JSON)
            return
        exchange.head(200, ((b"Content-Type", b"application/x-ndjson"),))
        rule = exchange.rule
        for number, line in enumerate(lines, 1):
            exchange.write(go_json(line) + b"\n")
            if rule is not None and number == rule.after:
                if rule.fault is Fault.ERROR_LINE:
                    exchange.write(go_json({"error": "max retries exceeded: unexpected EOF"}) + b"\n")
                    break
                if rule.fault is not Fault.HANG_MID_STREAM:
                    exchange.cut()
                await Deferred()  # until the client is gone
        exchange.finish()

    def _named(self, fields: dict[str, Any]) -> str:
        """The listed name of a model that need not exist yet."""
        name = listed_name(fields.get("model") or fields.get("name", ""))
        if name is None:
            raise Refusal("invalid model name")
        return name

    async def pull(self, exchange: Exchange) -> None:
        """`POST /api/pull`: what is there already, and what the registry has."""
        fields = read(exchange.body, _PULL)
        name = self._named(fields)
        await self._progress(exchange, fields, self._pulled(name))

    def _pulled(self, name: str) -> Iterator[dict[str, Any]]:
        yield {"status": "pulling manifest"}
        model = self._fake.models.get(name) or self._fake.pullable.get(name)
        if model is None:
            yield {"error": "pull model manifest: file does not exist"}
            return
        layer = {"status": f"pulling {model.blob[:12]}", "digest": f"sha256:{model.blob}", "total": model.size}
        came = self._came.get(model.blob, 0)
        yield {**layer, "completed": came} if came else layer
        for step in range(1, _STEPS + 1):
            if (size := model.size * step // _STEPS) > came:
                self._came[model.blob] = size
                yield {**layer, "completed": size}
        yield {"status": "verifying sha256 digest"}
        yield {"status": "writing manifest"}
        self._came.pop(model.blob, None)
        self._fake.models[name] = model
        yield {"status": "success"}

    async def push(self, exchange: Exchange) -> None:
        """`POST /api/push`."""
        fields = read(exchange.body, _PUSH)
        name = fields.get("model") or fields.get("name", "")
        if not name:
            raise Refusal("model is required")
        find(self._fake.models, name)
        steps = ("retrieving manifest", "pushing manifest", "success")
        await self._progress(exchange, fields, [{"status": step} for step in steps])

    async def create(self, exchange: Exchange) -> None:
        """`POST /api/create`: from a model that is there, or from blobs."""
        fields = read(exchange.body, _CREATE)
        name = self._named(fields)
        lines: list[dict[str, Any]] = []
        if source := fields.get("from"):
            wanted = listed_name(source) or source
            if wanted not in self._fake.models:
                lines = list(self._pulled(wanted))
            model = self._fake.models.get(wanted)
            if model is None:
                await self._progress(exchange, fields, lines)
                return
            model = evolve(model, name=name)
        elif files := fields.get("files"):
            blob = str(next(iter(files.values()))).removeprefix("sha256:")
            model = FakeModel(name=name, blob=blob)
        else:
            raise Refusal("neither 'from' or 'files' was specified")
        self._add(name, model)
        layer = {"status": f"using existing layer sha256:{model.blob}"}
        await self._progress(exchange, fields, [*lines, layer, {"status": "writing manifest"}, {"status": "success"}])

    def _add(self, name: str, model: FakeModel) -> None:
        self._fake.models[name] = evolve(model, name=name, modified_at=self._fake.clock.seconds())

    async def copy(self, exchange: Exchange) -> None:
        """`POST /api/copy`: the copy shares the blob, and so the runner."""
        fields = read(exchange.body, _COPY)
        source, destination = fields.get("source", ""), fields.get("destination", "")
        for name in (source, destination):
            if listed_name(name) is None:
                kind = "source" if name == source else "destination"
                raise Refusal(f'{kind} "{name}" is invalid')
        model = find(self._fake.models, source, 'model "{}" not found')
        self._add(self._named({"model": destination}), model)
        exchange.reply(200)

    async def delete(self, exchange: Exchange) -> None:
        """`DELETE /api/delete`: a runner stays until it expires."""
        fields = read(exchange.body, _DELETE)
        model = find(self._fake.models, fields.get("model") or fields.get("name", ""))
        del self._fake.models[model.name]
        exchange.reply(200)

    async def has_blob(self, exchange: Exchange, name: str) -> None:
        """`HEAD /api/blobs/sha256:…`."""
        digest = _digest(name)
        if digest not in self._fake.blobs and all(model.blob != digest for model in self._fake.models.values()):
            path = f"blobs/sha256-{digest}"
            raise Refusal(f'blob "{path}" not found', 404)
        exchange.reply(200)

    async def put_blob(self, exchange: Exchange, name: str) -> None:
        """`POST /api/blobs/sha256:…`."""
        digest = _digest(name)
        if digest in self._fake.blobs:
            exchange.reply(200)
            return
        content: Any = exchange.content
        found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != digest:
            raise Refusal(f'digest mismatch, expected "sha256:{digest}", got "sha256:{found}"')
        self._fake.blobs.add(digest)
        exchange.reply(201)

    async def me(self, exchange: Exchange) -> None:
        """`POST /api/me`: nobody is signed in."""
        exchange.reply(401, go_json({"error": "unauthorized", "signin_url": "https://ollama.com/connect"}), _JSON)


def _digest(name: str) -> str:
    found = _DIGEST.match(name)
    if found is None:
        raise Refusal("invalid digest format")
    return found[1]
