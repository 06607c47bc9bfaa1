"""What a request asks for: its fields checked in Ollama's order, with Ollama's words for what is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import isfinite
from typing import Any

import orjson
from attrs import frozen

from foreman.ollama.names import is_cloud

from .models import FakeModel, listed_name
from .reading import Refusal, Struct, keep_alive, read
from .scheduler import Settings

_COMMON = {
    "model": "string",
    "keep_alive": "",
    "options": "map[string]interface {}",
    "truncate": "bool",
}
_GENERATING = {
    **_COMMON,
    "stream": "bool",
    "format": "",
    "think": "",
    "shift": "bool",
    "logprobs": "bool",
    "top_logprobs": "int",
}
CHAT = Struct("api", "ChatRequest", {**_GENERATING, "messages": "[]api.Message", "tools": "api.Tools"})
GENERATE = Struct(
    "api",
    "GenerateRequest",
    {
        **_GENERATING,
        "prompt": "string",
        "suffix": "string",
        "system": "string",
        "template": "string",
        "context": "[]int",
        "raw": "bool",
        "images": "[]api.ImageData",
    },
)
EMBED = Struct("api", "EmbedRequest", {**_COMMON, "input": "", "dimensions": "int"})
EMBEDDINGS = Struct("api", "EmbeddingRequest", {**_COMMON, "prompt": "string"})

_OPTION_TYPES: Mapping[str, str] = {
    **dict.fromkeys(
        ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict", "num_keep", "seed"),
        "integer",
    ),
    **dict.fromkeys(("num_predict", "top_k", "repeat_last_n"), "integer"),
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p"), "float32"),
    **dict.fromkeys(("repeat_penalty", "presence_penalty", "frequency_penalty"), "float32"),
    "use_mmap": "boolean",
    "stop": "array",
}
_LOAD_TIME: Mapping[str, object] = {
    "num_ctx": 4096,
    "num_batch": 512,
    "num_gpu": -1,
    "main_gpu": 0,
    "num_thread": 0,
    "use_mmap": None,
    "draft_num_predict": 0,
}


@frozen(kw_only=True)
class Ask:
    """A generation or an embedding, ready to be scheduled.

    :ivar name: the model as the request wrote it, echoed in the answer.
    :ivar keep_alive: seconds, `inf` for ever, None when the request names none.
    :ivar prompt: the last text of the request; `prompt_tokens`: how many tokens all of it counts for.
    :ivar format: as the request has it, checked late.
    :ivar empty: no prompt or messages: a load or unload request.
    :ivar logprobs: how many alternatives a token is listed with; None for no log probabilities.
    :ivar limit: tokens after which the answer ends with `length`; None for none.
    :ivar key: hex digits that are the same for equal bodies; ids in the answer are made of it.
    """

    model: FakeModel
    name: str
    settings: Settings
    keep_alive: float | None = None
    stream: bool = True
    prompt: str = ""
    prompt_tokens: int = 0
    empty: bool = False
    options: Mapping[str, Any] = {}
    think: bool = False
    tools: tuple[Mapping[str, Any], ...] = ()
    format: object = None
    raw: bool = False
    truncate: bool = True
    logprobs: int | None = None
    limit: int | None = None
    key: str = ""


@frozen
class Glance:
    """What a fault's rule needs to know of a body, read leniently.

    :ivar model: as listed, empty when there is none; `load`: no prompt, messages or input.
    """

    model: str = ""
    load: bool = False

    @classmethod
    def at(cls, body: bytes) -> Glance:
        """A glance at `body`; what is no JSON object looks like nothing."""
        try:
            fields = orjson.loads(body)
        except orjson.JSONDecodeError:
            return cls()
        if not isinstance(fields, dict):
            return cls()
        name = fields.get("model")
        load = not any(fields.get(key) for key in ("prompt", "messages", "input"))
        return cls(listed_name(name) or "" if isinstance(name, str) else "", load)


def find(models: Mapping[str, FakeModel], name: str, missing: str = "model '{}' not found") -> FakeModel:
    """The model a request names.

    :raise Refusal: 400 for what is no name, 403 for a cloud model, 404 with `missing` for an unknown one.
    """
    if not name:
        raise Refusal(missing.replace("{}", name), 404)
    listed = listed_name(name)
    if listed is None:
        raise Refusal("invalid model name")
    if is_cloud(name):
        raise Refusal("ollama cloud is disabled: remote model is unavailable", 403)
    model = models.get(listed)
    if model is None:
        raise Refusal(missing.replace("{}", name), 404)
    return model


def settings_of(model: FakeModel, options: Mapping[str, Any], *, shift: bool = True) -> Settings:
    """The load-time options a request asks for, defaults filled in (ollama-wire §7).

    :raise Refusal: 500 for an option of the wrong type: Ollama finds out that late.
    """
    for key, value in options.items():
        _check_option(key, value)
    wanted = {key: options.get(key) if options.get(key) is not None else usual for key, usual in _LOAD_TIME.items()}
    wanted["num_ctx"] = max(4, min(int(float(str(wanted["num_ctx"]))), model.context_length))
    return (*wanted.items(), ("shift", shift))


def _check_option(key: str, value: object) -> None:
    kind = _OPTION_TYPES.get(key)
    if kind is None or value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "integer": number,
        "float32": number,
        "boolean": isinstance(value, bool),
        "array": isinstance(value, list),
    }[kind]
    if number and not isfinite(float(str(value))):
        raise Refusal("json: cannot unmarshal number into Go struct field ChatRequest.options of type float64")
    if not fits:
        raise Refusal(f'option "{key}" must be of type {kind}', 500)
    if kind == "array" and not all(isinstance(item, str) for item in value):  # type: ignore[attr-defined]
        raise Refusal(f'option "{key}" must be of an array of strings', 500)


def count_tokens(text: str) -> int:
    """How many tokens a text counts for here: its words."""
    return len(text.split())


def _thinks(value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    if value in ("low", "medium", "high", "max"):
        return True
    if isinstance(value, str):
        raise Refusal(
            f'invalid think value: "{value}" (must be "high", "medium", "low", "max", true, or false)', early=True
        )
    raise Refusal('think must be a boolean or string ("high", "medium", "low", "max", true, or false)', early=True)


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a chat message, of the API's plain form or of a list of parts."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))


def chat(models: Mapping[str, FakeModel], body: bytes) -> Ask:
    """The ask of a `/api/chat` body."""
    fields = read(body, CHAT)
    messages = fields.get("messages", [])
    for message in messages:
        _check_message(message)
    texts = [message_text({key.lower(): value for key, value in message.items()}) for message in messages]
    return generation(models, fields, texts, empty=not messages, body=body, does="chat")


def _check_message(message: object) -> None:
    if not isinstance(message, dict):
        raise Refusal("json: cannot unmarshal string into Go struct field ChatRequest.messages of type api.Message")
    for key, value in message.items():
        if key.lower() in ("role", "content", "thinking") and not isinstance(value, str | None):
            raise Refusal(
                f"json: cannot unmarshal {'array' if isinstance(value, list) else 'object'} into Go struct field "
                f"Alias.{key.lower()} of type string",
                early=True,
            )


def generate(models: Mapping[str, FakeModel], body: bytes) -> Ask:
    """The ask of a `/api/generate` body."""
    fields = read(body, GENERATE)
    prompt = fields.get("prompt", "")
    return generation(models, fields, [prompt], empty=not prompt, body=body, does="generate")


def generation(
    models: Mapping[str, FakeModel],
    fields: Mapping[str, Any],
    texts: list[str],
    *,
    empty: bool,
    body: bytes,
    does: str,
) -> Ask:
    """The ask of a generation's fields, under their native names.

    :param texts: the prompt or the messages' texts; `empty`: there are none, so it is a load or unload request.
    :param does: what it wants of the model, for the complaint that it cannot.
    :raise Refusal: as Ollama refuses, in its order.
    """
    alive = keep_alive(fields.get("keep_alive"))
    think = _thinks(fields.get("think"))
    name = fields.get("model", "")
    if does == "chat" and not name:
        raise Refusal("model is required")
    model = find(models, name)
    unload = empty and alive == 0  # which Ollama does before it looks at what the model can do
    if not model.is_worker and not unload:
        raise Refusal(f'"{name}" does not support {does}')
    if think and "thinking" not in model.capabilities:
        raise Refusal(f'"{name}" does not support thinking')
    tools = tuple(fields.get("tools", ()))
    if tools and "tools" not in model.capabilities:
        raise Refusal(f"{_full_name(model)} does not support tools")
    options = fields.get("options", {})
    limit = options.get("num_predict")
    return Ask(
        model=model,
        name=name,
        settings=settings_of(model, options, shift=fields.get("shift", True)),
        keep_alive=alive,
        stream=fields.get("stream", True),
        prompt=texts[-1] if texts else "",
        prompt_tokens=3 + sum(2 + count_tokens(text) for text in texts),
        empty=empty,
        options=options,
        think="thinking" in model.capabilities if think is None else think,
        tools=tools,
        format=fields.get("format") or None,
        raw=fields.get("raw", False),
        truncate=fields.get("truncate", True),
        logprobs=fields.get("top_logprobs", 0) if fields.get("logprobs") else None,
        limit=int(limit) if limit is not None and limit > 0 else None,
        key=hashlib.sha256(body).hexdigest(),
    )


def _full_name(model: FakeModel) -> str:
    """The name with the parts that are usually left out."""
    usual = ("registry.ollama.ai", "library")
    return "/".join((*usual[: max(0, 2 - model.name.count("/"))], model.name))


def check_late(ask: Ask) -> None:
    """Complain as the runner does, once it is loaded.

    :raise Refusal: 500 for a `format` that is neither `json`, a schema nor nothing; 400 for a prompt longer than the
        context that may not be truncated, in llama-server's JSON as a text.
    """
    if ask.format not in (None, "json") and not isinstance(ask.format, dict):
        shown = orjson.dumps(orjson.dumps(ask.format).decode()).decode()
        raise Refusal(f'invalid format: {shown}; expected "json" or a valid JSON Schema object', 500, late=True)
    context = int(str(dict(ask.settings)["num_ctx"]))
    if not ask.truncate and ask.prompt_tokens > context:
        error = {
            "code": 400,
            "message": f"request ({ask.prompt_tokens} tokens) exceeds the available context size ({context} tokens), "
            "try increasing it",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": ask.prompt_tokens,
            "n_ctx": context,
        }
        raise Refusal(orjson.dumps({"error": error}).decode())
