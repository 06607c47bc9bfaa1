"""FakeOllama held against the recorded traffic of a real Ollama 0.32.15 (`data/`, one exchange a file)."""

# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
# Neither Twisted's endpoints nor pytest-twisted are typed.
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol

from foreman.ollama.fake import FakeOllama

DATA = Path(__file__).parent / "data"
NAMES = sorted(path.stem for path in DATA.glob("*.json"))
NOT_ONE_EXCHANGE = {"two-slots"}
PRELUDES: dict[str, list[str]] = {
    # What had happened at the recording before the exchange, as far as its answer tells.
    "ps-empty": ["generate-load-keep-forever", "unload-all-a"],
    "ps-forever": ["generate-load-keep-forever"],
    "ps-one": ["chat-plain-tiny-rep"],
    "delete": ["copy"],
}
VOLATILE = {
    "created_at", "created", "completed_at", "modified_at", "expires_at", "digest", "size",
    "id", "item_id", "request_id",
    "total_duration", "load_duration", "prompt_eval_duration", "eval_duration",
    "eval_count", "prompt_eval_count", "prompt_tokens", "total_tokens", "input_tokens",
    "logprob", "parameter_size", "quantization_level",
}  # fmt: skip
"""Fields whose values differ from run to run or from model to model; their types are compared."""


class _Reader(Protocol):
    """Collects a raw answer until the server closes."""

    def __init__(self) -> None:
        self.data = b""
        self.closed: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: object = None) -> None:
        self.closed.callback(self.data)


async def ask(port: int, method: str, path: str, body: str | None, headers: dict[str, str]) -> dict[str, Any]:
    """One request on its own connection; the answer in the form of the recordings."""
    reader = _Reader()
    await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), reader)
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    data = (body or "").encode()
    lines.append(f"Content-Length: {len(data)}")
    reader.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)  # type: ignore[union-attr]
    head, _, rest = (await reader.closed).partition(b"\r\n\r\n")
    status, *pairs = head.decode().split("\r\n")
    answer: dict[str, Any] = {"status": int(status.split()[1]), "reason": status.split(" ", 2)[2]}
    answer["headers"] = [pair.split(": ", 1) for pair in pairs if pair != "Connection: close"]
    names = dict(answer["headers"])
    chunks = []
    if names.get("Transfer-Encoding") == "chunked":
        answer["framing"] = "chunked"
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            chunks.append(rest[: int(size, 16)].decode())
            rest = rest[int(size, 16) + 2 :]
        assert chunks.pop() == ""
    else:
        answer["framing"] = "none" if method == "HEAD" or "Content-Length" not in names else "content-length"
        chunks = [rest.decode()] if answer["framing"] == "content-length" else []
    answer["chunks"] = chunks
    return answer


def recorded(name: str) -> dict[str, Any]:
    """One recorded exchange."""
    return json.loads((DATA / f"{name}.json").read_text())  # type: ignore[no-any-return]


def documents(chunk: str) -> list[Any]:
    """The JSON values of a chunk: a line, an answer, or server-sent events."""
    if "data: " in chunk:
        lines = [line for line in chunk.split("\n") if line]
        return [json.loads(line[6:]) if line.startswith("data: {") else line for line in lines]
    return [json.loads(chunk)] if chunk.startswith("{") else [chunk]


def shape(value: Any, key: str = "") -> Any:
    """A value, what is volatile replaced by its type; objects as lists of pairs: the order of keys counts."""
    if isinstance(value, dict):
        return [(name, shape(item, name)) for name, item in value.items()]
    if isinstance(value, list) and key in LONG:
        return [shape(value[0])] if value else []
    if isinstance(value, list):
        return [shape(item) for item in value]
    if key in VOLATILE or isinstance(value, float):
        return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
    return value


LONG = {"embedding", "embeddings", "context", "tensors", "models", "data", "top_logprobs", "bytes"}
"""Lists whose length is a matter of the model; the first item stands for all."""
FREE_TEXT = {
    "modelfile",
    "parameters",
    "template",
    "token",
    "shape",
    "name",
    "model",
    "general.parameter_count",
    "llama.vocab_size",
    "capabilities",
}


def without_texts(pairs: Any, keys: set[str]) -> Any:
    """The shape with the values of `keys` left out, for answers that describe another model."""
    if isinstance(pairs, list):
        return [without_texts(pair, keys) for pair in pairs]
    if isinstance(pairs, tuple):
        name, value = pairs
        return (name, type(value).__name__ if name in keys else without_texts(value, keys))
    return pairs


def comparable(answer: dict[str, Any], *, loosely: bool) -> dict[str, Any]:
    """What must be the same in two answers; `loosely` when they describe different models."""
    chunks = [[shape(document) for document in documents(chunk)] for chunk in answer["chunks"]]
    return {
        "status": answer["status"],
        "reason": answer["reason"],
        "headers": sorted(
            (name, value) for name, value in answer["headers"] if name not in ("Date", "Content-Length", "Connection")
        ),
        "framing": answer["framing"],
        "has_date": any(name == "Date" for name, _ in answer["headers"]),
        "has_length": any(name == "Content-Length" for name, _ in answer["headers"]),
        "chunks": without_texts(chunks, FREE_TEXT) if loosely else chunks,
    }


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_ONE_EXCHANGE])
@pytest_twisted.ensureDeferred
async def test_answers_as_recorded(name: str) -> None:
    """What a client gets from the stand-in is what it got from Ollama: status, headers, framing, shapes, texts."""
    fake = FakeOllama(reactor)
    port = await fake.listen()
    try:
        for step in PRELUDES.get(name, []):
            request = recorded(step)["request"]
            await ask(port, request["method"], request["path"], request["body"], {})
        exchange = recorded(name)
        request = exchange["request"]
        got = await ask(port, request["method"], request["path"], request["body"], request["headers"])
    finally:
        await fake.close()
    wanted = exchange["response"]
    wanted["chunks"] = [chunk["data"] for chunk in wanted["chunks"]]
    loosely = (
        "show" in name or "tags" in name or "logprobs" in name or name in ("ps-one", "v1-models", "origin-allowed")
    )
    assert comparable(got, loosely=loosely) == comparable(wanted, loosely=loosely)
    if wanted["status"] >= 400:
        assert [c for c in got["chunks"] if "request_id" not in c] == [
            c for c in wanted["chunks"] if "request_id" not in c
        ]
