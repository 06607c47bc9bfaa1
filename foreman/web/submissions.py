"""Jobs as callers submit them: `POST /jobs` bodies, read and judged before anything is stored.

What foreman can see to be wrong is refused here, with the place where it is; what only the target can judge fails the
job when it runs.  Pure functions: whether a model exists is not asked here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson
from attrs import field, frozen

from foreman.durations import parse_duration
from foreman.job import NewJob, Runner, Submission
from foreman.ollama import requests
from foreman.ollama.bulk import TOO_MANY, is_bulky
from foreman.ollama.names import is_cloud, is_valid
from foreman.ollama.requests import TOO_DEEP, Inference, Unreadable
from foreman.ollama.routes import Kind, match
from foreman.web.errors import BadRequest
from foreman.webhooks.policy import AddressPolicy, AddressRefused, BadURL

MOST_LINES = 10_000
"""Jobs in one batch."""

MOST_METADATA = 4096
"""Bytes of `metadata`, as compact JSON."""

_LONGEST = 365 * 86400.0
"""Seconds."""

MOST_NAMED = 100
"""Bad lines of a batch that are named."""

OWN_FIELDS = ("state_webhook_url", "endpoint", "metadata", "expires_in", "timeout")
"""Foreman's own, which the target never sees."""

_LINE = re.compile(rb"\S[^\n]*")

_UNSUITABLE = ("/v1/audio/transcriptions",)
"""Routes of the queue whose body is not JSON."""


@frozen(kw_only=True)
class Draft:
    """A submission that is well formed; its model is still to be looked up.

    :ivar expires_in: seconds, None for never.
    """

    endpoint: str
    inference: Inference
    body: bytes = field(repr=False)
    metadata: str | None = field(repr=False)
    webhook: str | None = field(repr=False)
    expires_in: float | None
    timeout: float | None

    def job(self, job_id: str, *, model_key: str, now: int) -> NewJob:
        """The job it becomes.

        :param model_key: of its runner.
        :param now: milliseconds since the epoch.
        """
        return NewJob(
            id=job_id,
            endpoint=self.endpoint,
            model=self.inference.model,
            runner=Runner(model_key, self.inference.options),
            size=len(self.body),
            created_at=now,
            submission=Submission(
                body=self.body,
                metadata=self.metadata,
                webhook=self.webhook,
                expires_at=None if self.expires_in is None else now + int(self.expires_in * 1000),
                timeout=self.timeout,
            ),
        )


def numbered_lines(body: bytes) -> list[tuple[int, bytes]]:
    """The lines of a batch that hold something, each with its number from 1.

    :raise BadRequest: there are none, or too many.
    """
    lines: list[tuple[int, bytes]] = []
    number, at = 1, 0
    for line in _LINE.finditer(body):
        if len(lines) == MOST_LINES:
            raise BadRequest(f"the body holds more jobs than the {MOST_LINES} that are taken at once")
        number += body.count(b"\n", at, line.start())
        at = line.start()
        lines.append((number, line[0]))
    if not lines:
        raise BadRequest("the body holds no jobs: one JSON object a line")
    return lines


def read_object(body: bytes) -> dict[str, Any]:
    """Read a body that is a JSON object.

    :raise BadRequest: it is none, or holds more values than are looked at.
    """
    if is_bulky(body):
        raise BadRequest(TOO_MANY)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise BadRequest("the body must be an object")
    return document


def read(body: bytes, policy: AddressPolicy) -> Draft:
    """Read one submission.

    :raise BadRequest: the text begins with the place that is wrong.
    """
    document = read_object(body)
    own = {name: document.pop(name) for name in OWN_FIELDS if name in document}
    endpoint = _endpoint(own.get("endpoint"))
    # What came without fields of foreman's goes on as it came.
    native = _dumped(document) if own else body
    inference = requests.read(endpoint, native)
    _check_model(document, inference)
    _check_native(endpoint, document)
    if isinstance(inference, Unreadable):
        raise BadRequest(inference.reason)
    if inference.is_unload:
        raise BadRequest(f"keep_alive: a request that only unloads is not a job; send it to {endpoint}")
    return Draft(
        endpoint=endpoint,
        inference=inference,
        body=native,
        metadata=_metadata(own.get("metadata")),
        webhook=_webhook(own.get("state_webhook_url"), policy),
        expires_in=_duration("expires_in", own.get("expires_in")),
        timeout=_duration("timeout", own.get("timeout")),
    )


# -- foreman's own fields: null is the same as absent ------------------------------------------------------------------


def _dumped(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:  # what was read can be written, up to a depth
        raise BadRequest(TOO_DEEP) from None


def _endpoint(value: object) -> str:
    if value is None:
        return "/api/chat"
    if isinstance(value, str) and value not in _UNSUITABLE:
        route = match(b"POST", value.encode())
        if route.kind in (Kind.QUEUE, Kind.EMBED) and route.path == value:
            return value
    raise BadRequest("endpoint: must be an inference or embedding route that takes JSON, such as /api/chat")


def _metadata(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise BadRequest("metadata: must be an object")
    text = _dumped(value)
    if len(text) > MOST_METADATA:
        raise BadRequest(f"metadata: must be at most {MOST_METADATA} bytes of JSON, not {len(text)}")
    if _has_large_number(value):
        raise BadRequest("metadata: must not hold numbers beyond 64 bits, they would not come back exactly (use text)")
    return text.decode()


def _has_large_number(value: object) -> bool:
    """Whether there may be an integer that was read as the nearest float, as those are that need more than 64 bits."""
    if isinstance(value, dict):
        return any(map(_has_large_number, value.values()))
    if isinstance(value, list):
        return any(map(_has_large_number, value))
    return isinstance(value, float) and abs(value) >= 2**63


def _webhook(value: object, policy: AddressPolicy) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadRequest("state_webhook_url: must be a string")
    try:
        policy.check_url(value)
    except (BadURL, AddressRefused) as error:
        raise BadRequest(f"state_webhook_url: {error}") from None
    return value


def _duration(name: str, value: object) -> float | None:
    if value is None:
        return None
    try:
        seconds = parse_duration(value) if isinstance(value, str) else 0.0
    except ValueError:
        seconds = 0.0
    if not 0.001 <= seconds <= _LONGEST:
        raise BadRequest(f"{name}: must be a duration such as 90s, 30m or 7d, of at most 365d")
    return seconds


# -- the target's fields -----------------------------------------------------------------------------------------------


def _check_model(document: Mapping[str, Any], read: Inference | Unreadable) -> None:
    if not read.model:
        given = document.get("model")
        if isinstance(read, Unreadable) and isinstance(given, str) and given:
            raise BadRequest(read.reason)
        raise BadRequest("model: missing" if given in (None, "") else "model: must be a string")
    if not is_valid(read.model):
        raise BadRequest("model: not a valid model name")
    if is_cloud(read.model):
        raise BadRequest("model: cloud models need no queue and take no jobs; call the endpoint itself")


def _check_native(endpoint: str, document: Mapping[str, Any]) -> None:
    """Check the shapes that every target of any version insists on."""
    _check(document, "stream", bool, "true or false")
    if endpoint in ("/api/chat", "/v1/chat/completions", "/v1/messages"):
        _check_messages(document.get("messages"), native=endpoint == "/api/chat")
    elif endpoint in ("/api/generate", "/api/embeddings"):
        _check(document, "prompt", str, "a string")
    if endpoint.startswith("/api/"):
        _check(document, "options", dict, "an object")
        _check(document, "keep_alive", (str, int, float), "a duration or a number of seconds")


def _check_messages(messages: object, *, native: bool) -> None:
    if messages is None and native:
        return  # a request that only loads
    if not isinstance(messages, list):
        raise BadRequest("messages: must be a list")
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        if not isinstance(message, dict):
            raise BadRequest(f"{place}: must be an object")
        fields = {name.lower(): value for name, value in message.items()} if native else message
        if not isinstance(fields.get("role"), str) or not fields["role"]:
            raise BadRequest(f"{place}.role: must be a string such as user, assistant, system or tool")
        if native:
            _check(fields, "content", str, "a string", place)
            _check(fields, "thinking", str, "a string", place)
            _check(fields, "images", list, "a list", place)
            _check(fields, "tool_calls", list, "a list", place)


def _check(fields: Mapping[str, Any], name: str, kind: type | tuple[type, ...], allowed: str, place: str = "") -> None:
    value = fields.get(name)
    boolean = isinstance(value, bool) and kind is not bool
    if value is not None and (boolean or not isinstance(value, kind)):
        raise BadRequest(f"{place}.{name}: must be {allowed}" if place else f"{name}: must be {allowed}")


def unknown_model(name: str) -> str:
    """What is said of a model that the target has not; Ollama's own words."""
    return f"model '{name}' not found"


def faults_document(faults: Mapping[int, str], lines: int) -> dict[str, Any]:
    """The answer to a batch with faults, which are given by line number; the first `MOST_NAMED` are named."""
    first = sorted(faults.items())[:MOST_NAMED]
    return {
        "error": f"{len(faults)} of {lines} lines cannot be accepted, so none was",
        "lines": [{"line": number, "error": text} for number, text in first],
    }
