"""What the target says of its models, read; and a good answer of it, kept."""

from __future__ import annotations

from typing import Any

import orjson
from attrs import field, frozen

from foreman.ollama.names import normalise


@frozen
class Model:
    """A model the target has, as `/api/tags` lists it.

    :ivar name: normalised.
    :ivar digest: 64 hex digits, or empty if the target named none.
    """

    name: str
    digest: str

    @property
    def key(self) -> str:
        """What tells this model from others: its digest, else its name."""
        return self.digest or self.name


@frozen
class Resident:
    """A model in the target's memory, as `/api/ps` lists it; sizes in bytes."""

    name: str
    digest: str
    size: int
    size_vram: int

    def is_model(self, key: str) -> bool:
        """Whether this is the model of that key (a digest or a normalised name)."""
        return key in (self.digest, normalise(self.name))


@frozen
class KeptAnswer:
    """A good answer of the target's, kept.

    :ivar at: milliseconds since the epoch when it was given.
    """

    body: bytes = field(repr=False)
    content_type: bytes
    at: int

    def to_bytes(self) -> bytes:
        """The form it has in the database: the content type, a line feed, the body."""
        return self.content_type + b"\n" + self.body

    @classmethod
    def from_bytes(cls, value: bytes, at: int) -> KeptAnswer:
        """Read what `to_bytes` made."""
        content_type, _, body = value.partition(b"\n")
        return cls(body, content_type, at)


def read_models(body: bytes) -> dict[str, Model]:
    """The models of an `/api/tags` answer by normalised name; ValueError when it is not one."""
    models = [Model(normalise(entry["name"]), entry.get("digest") or "") for entry in _entries(body)]
    return {model.name: model for model in models}


def read_residents(body: bytes) -> tuple[Resident, ...]:
    """The residents of an `/api/ps` answer; ValueError when it is not one."""
    return tuple(
        Resident(
            name=entry["name"],
            digest=entry.get("digest") or "",
            size=int(entry.get("size") or 0),
            size_vram=int(entry.get("size_vram") or 0),
        )
        for entry in _entries(body)
    )


def _entries(body: bytes) -> list[dict[str, Any]]:
    document = orjson.loads(body)
    entries = document.get("models") if isinstance(document, dict) else None
    if entries is None:
        entries = []
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("name"), str) for e in entries
    ):
        raise ValueError("not a list of models")
    return entries
