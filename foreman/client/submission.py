"""What callers submit, as the document that `POST /jobs` takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

STREAMED = ("/api/chat", "/api/generate")
"""The endpoints whose jobs can be read while they run."""

_ASKED_IN: Mapping[str, str] = MappingProxyType(
    {
        "/api/chat": "messages",
        "/api/generate": "prompt",
        "/api/embed": "input",
        "/api/embeddings": "prompt",
        "/v1/chat/completions": "messages",
        "/v1/completions": "prompt",
        "/v1/responses": "input",
        "/v1/messages": "messages",
        "/v1/embeddings": "input",
    }
)
"""For each endpoint, the field that holds what is asked."""


def submission(
    model: str,
    ask: str | Sequence[Mapping[str, Any]] | None = None,
    *,
    endpoint: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    state_webhook_url: str | None = None,
    expires_in: float | None = None,
    run_timeout: float | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Make what `submit_many` takes: the endpoint's own body, with foreman's fields beside it.

    :param ask: messages, or a prompt.  It may be left out where `fields` has it under its own name: `messages`,
        `prompt` or `input`.
    :param endpoint: the route of the target, such as `/v1/chat/completions`.  Unless said, messages are for
        `/api/chat`, a prompt is for `/api/generate`, and an `input` for `/api/embed`.
    :param metadata: comes back with the job and in its webhooks; at most 4 KiB.
    :param state_webhook_url: where every transition is told.
    :param expires_in: seconds; still queued then, the job fails as `expired`.
    :param run_timeout: seconds that a run may take.
    :param fields: the endpoint's other fields: `options`, `format`, `tools`, `think`, `keep_alive`, …
    """
    if endpoint is None:
        endpoint = "/api/generate" if isinstance(ask, str) or "prompt" in fields else "/api/chat"
        endpoint = "/api/embed" if "input" in fields else endpoint
    own = {
        "endpoint": endpoint,
        "metadata": metadata,
        "state_webhook_url": state_webhook_url,
        "expires_in": None if expires_in is None else _duration(expires_in),
        "timeout": None if run_timeout is None else _duration(run_timeout),
    }
    document: dict[str, Any] = {"model": model}
    if ask is not None:
        name = _ASKED_IN.get(endpoint, "messages")
        document[name] = [{"role": "user", "content": ask}] if name == "messages" and isinstance(ask, str) else ask
    return {**document, **fields, **{name: value for name, value in own.items() if value is not None}}


def _duration(seconds: float) -> str:
    return f"{math.ceil(seconds * 1000)}ms"
