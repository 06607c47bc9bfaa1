"""What an inference request asks for, read as Ollama reads it, for reading only: the bytes go on as they came.

Ollama reads with Go's `encoding/json`: keys match in any case, a later value replaces an earlier one (two objects are
merged, null changes no string), whatever follows the first JSON value is passed over, invalid UTF-8 is replaced.  What
does not fit is `Unreadable`: its fault is for Ollama to name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from math import inf, isfinite
from typing import Any

import zstandard
from attrs import field, frozen

from foreman.ollama import forms
from foreman.ollama.bulk import TOO_MANY, is_bulky

TOO_DEEP = "the body is nested too deeply"

_ZSTD_LIMIT = 20 * 2**20
_ZSTD_WINDOW = 8 * 2**20


class Misfit(ValueError):
    """A value that Ollama refuses."""


# -- keep_alive ------------------------------------------------------------------------------------------------------


@frozen(order=True)
class KeepAlive:
    """How long a model is to stay loaded; compared by its length.

    :ivar seconds: `inf` for ever; 0 to unload when idle.
    :ivar wire: the JSON value as it came, to be sent again.
    """

    seconds: float
    wire: int | float | str = field(eq=False, order=False)

    @property
    def is_zero(self) -> bool:
        """Whether it was zero as written, rather than so large that Go's arithmetic overflows.

        With no prompt the first unloads; the second loads, and unloads after.
        """
        return self.seconds == 0 and (isinstance(self.wire, str) or self.wire < 1)


_UNITS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,  # U+00B5, the micro sign
    "μs": 10**3,  # U+03BC, the Greek letter
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_PART = re.compile(rf"([0-9]+\.?[0-9]*|\.[0-9]+)({'|'.join(_UNITS)})")
_DURATION = re.compile(rf"[-+]?(?:0|(?:{_PART.pattern})+)")
_OVERFLOW = 2**63


def parse_keep_alive(value: object) -> KeepAlive:
    """Read a `keep_alive` that is not null: a number of seconds or a Go duration, negative for ever.

    :raise Misfit: Ollama answers 400 to it.  Source: `Duration.UnmarshalJSON` in Ollama's `api/types.go`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Misfit("keep_alive is neither a number nor a duration")
    nanoseconds = _parse_go_duration(value) if isinstance(value, str) else _number(value) * 1e9
    if nanoseconds < 0:
        return KeepAlive(inf, value)
    # Only a number can be too large here: Go's conversion makes a negative duration of it, which ends at once.
    return KeepAlive(int(nanoseconds) / 1e9 if nanoseconds < _OVERFLOW else 0.0, value)


def _parse_go_duration(text: str) -> int:
    """Nanoseconds as Go's `time.ParseDuration` has them; Misfit for what it refuses."""
    # The bound keeps a number of a million digits from being worked out.
    if len(text) > 400 or not _DURATION.fullmatch(text):
        raise Misfit(f"keep_alive is not a duration: {text[:100]!r}")
    nanoseconds = sum(int(Fraction(number) * _UNITS[unit]) for number, unit in _PART.findall(text))
    if nanoseconds >= _OVERFLOW:
        raise Misfit("keep_alive is longer than 292 years")
    return -nanoseconds if text.startswith("-") else nanoseconds


# -- what is read ----------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Inference:
    """What an inference request asks for.

    :ivar model: as written, with unpaired surrogates replaced; "" if it names none.
    :ivar keep_alive: None if it names none, or the route ignores it.
    :ivar options: the load-time options and `shift` it names as canonical JSON, fit for `foreman.job.Runner`.
    :ivar load_fields: the same as they must stand in a load request: `{"options": {"num_ctx": 512}, "shift": false}`.
    :ivar is_load: there is nothing to answer: the model is loaded, no more.
    :ivar is_unload: the same with `keep_alive: 0`, which unloads.  Embedding routes know no such request: they load.
    """

    model: str
    stream: bool
    keep_alive: KeepAlive | None
    options: str
    load_fields: Mapping[str, Any]
    is_load: bool
    is_unload: bool


@frozen(kw_only=True)
class Unreadable:
    """A request that only Ollama can judge.

    :ivar reason: for the log; quotes nothing of the prompt.
    :ivar empty: the body holds nothing at all.
    :ivar model: and `stream`: what could be read of them, else "" and the route's default.
    """

    reason: str
    empty: bool = False
    model: str = ""
    stream: bool = False


def read(
    path: str, body: bytes, content_type: str | None = None, content_encoding: str | None = None, query: bytes = b""
) -> Inference | Unreadable:
    """Read the body of an inference or embedding route.

    :param path: the route, one of those of `Kind.QUEUE` and `Kind.EMBED`.
    :param content_type: and `content_encoding`: the headers' values; `query`: what stands behind the path's `?`.
    """
    if path == "/v1/audio/transcriptions":
        return _read_form(body, content_type or "", query)
    streams = path in ("/api/chat", "/api/generate")
    try:
        body = in_clear(path, body, content_encoding)
    except (ValueError, zstandard.ZstdError) as error:
        return Unreadable(reason=str(error), stream=streams)
    try:
        members = _members(body)
    except ValueError as error:
        return Unreadable(reason=str(error), empty=not body.strip(b" \t\r\n"), stream=streams)
    fields, faults = _fields(members, _SHAPES[path])
    options: dict[str, Any] = {}
    try:
        options = _load_options(fields.get("options", {}))
    except Misfit as error:
        faults.append(f"options: {error}")
    model = fields.get("model", "")
    stream = fields.get("stream", streams)
    if faults:
        return Unreadable(reason="; ".join(faults), model=model, stream=stream)

    shift = {"shift": fields["shift"]} if "shift" in fields else {}
    keep_alive = fields.get("keep_alive")
    is_load = path in _SUBJECT and not fields.get(_SUBJECT[path])
    return Inference(
        model=model,
        stream=stream,
        keep_alive=keep_alive,
        options=json.dumps({**options, **shift}, sort_keys=True, separators=(",", ":")),
        load_fields={**({"options": options} if options else {}), **shift},
        is_load=is_load,
        is_unload=is_load and streams and keep_alive is not None and keep_alive.is_zero,
    )


def plain_show(body: bytes) -> str | None:
    """The model that the body of `/api/show` asks for, None if it asks for anything beyond the plain answer."""
    try:
        fields, faults = _fields(_members(body), _SHOW)
    except ValueError:
        return None
    name: str = fields.pop("model", "") or fields.get("name", "")
    fields.pop("name", None)
    return None if faults or any(fields.values()) else name or None


def with_stream(body: bytes, stream: bool) -> bytes:
    """The JSON body with its `stream` set; one that is no object stays as it is.

    One more member is added behind the others, since Ollama takes the last of equal ones; all else stays as it came.
    """
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    try:
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return body
    member = ("," if value else "") + ('"stream":true}' if stream else '"stream":false}')
    return (text[: end - 1] + member).encode() if isinstance(value, tuple) else body


# -- Go's encoding/json ----------------------------------------------------------------------------------------------


def _no_such_constant(name: str) -> Any:
    raise Misfit(f"{name} is not JSON")


# An object becomes the tuple of its members, so that none is lost.
_DECODER = json.JSONDecoder(object_pairs_hook=tuple, parse_constant=_no_such_constant)


def _members(body: bytes) -> tuple[tuple[str, Any], ...]:
    """The members of the object that a body begins with; ValueError if it begins with none that can be read."""
    if is_bulky(body):
        raise Misfit(TOO_MANY)
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    try:
        value, _ = _DECODER.raw_decode(text)
    except RecursionError:
        raise Misfit(TOO_DEEP) from None
    if value is None:
        return ()
    if not isinstance(value, tuple):
        raise Misfit("the body is not an object")
    return value


def _fields(members: tuple[tuple[str, Any], ...], shape: Mapping[str, _Type]) -> tuple[dict[str, Any], list[str]]:
    """The fields of a Go struct after its members were assigned one by one, and what did not fit."""
    fields: dict[str, Any] = {}
    faults = []
    for key, value in members:
        name = _folded(key)
        if name not in shape:
            continue
        go_type = shape[name]
        if value is None:
            if go_type.clears:
                fields.pop(name, None)
            continue
        try:
            new = go_type.convert(value)
        except Misfit as error:
            faults.append(f"{name}: {error}")
            continue
        if isinstance(new, dict):
            new = {**fields.get(name, {}), **new}
        fields[name] = new
    return fields, faults


def _folded(key: str) -> str:
    """A key as Go compares it: simple case folding, so that besides K and S the Kelvin sign and the long s match."""
    return key.replace("\u017f", "s").lower()


@frozen
class _Type:
    """The Go type of a field.

    :ivar clears: null makes it absent again; else null changes nothing.
    """

    convert: Callable[[Any], Any]
    clears: bool = True


def _only(json_type: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if not isinstance(value, json_type):
            raise Misfit("not of the right JSON type")
        return value

    return convert


_to_text, _to_bool = _only(str), _only(bool)


def _to_name(value: Any) -> str:
    # Go has no unpaired surrogates, and nothing that stores or sends text takes them.
    name: str = _to_text(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return name


def _to_map(value: Any) -> dict[str, Any]:
    if not isinstance(value, tuple):
        raise Misfit("not an object")
    return dict(value)


def _to_input(value: Any) -> str | list[str]:
    """What is to be embedded: a text or a list of texts."""
    if isinstance(value, list):
        if not all(isinstance(each, str) for each in value):
            raise Misfit("not all texts")
        return value
    text: str = _to_text(value)
    return text


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Misfit("not a number")
    try:
        number = float(value)
    except OverflowError:
        number = inf
    if not isfinite(number):
        raise Misfit("a number too large for Go")
    return number


# -- the routes' bodies ----------------------------------------------------------------------------------------------

_NAME = _Type(_to_name, clears=False)
_TEXT = _Type(_to_text, clears=False)
_BOOL = _Type(_to_bool, clears=False)
_OPTIONAL_BOOL = _Type(_to_bool)
_MAP = _Type(_to_map)

_EMBED = {"model": _NAME, "keep_alive": _Type(parse_keep_alive), "options": _MAP}
_NATIVE = {**_EMBED, "stream": _OPTIONAL_BOOL, "shift": _OPTIONAL_BOOL}
_V1 = {"model": _NAME, "stream": _BOOL}

_SHAPES: Mapping[str, Mapping[str, _Type]] = {
    "/api/chat": {**_NATIVE, "messages": _Type(_only(list))},
    "/api/generate": {**_NATIVE, "prompt": _TEXT},
    "/api/embed": {**_EMBED, "input": _Type(_to_input)},
    "/api/embeddings": {**_EMBED, "prompt": _TEXT},
    "/v1/chat/completions": _V1,
    "/v1/completions": {**_V1, "prompt": _TEXT},
    "/v1/responses": {**_V1, "stream": _OPTIONAL_BOOL},
    "/v1/messages": _V1,
    "/v1/embeddings": {"model": _NAME},
}
"""The fields that foreman looks at, of Ollama's `ChatRequest`, `GenerateRequest` and so on."""

_SUBJECT = {
    "/api/chat": "messages",
    "/api/generate": "prompt",
    "/api/embed": "input",
    "/api/embeddings": "prompt",
    "/v1/completions": "prompt",
}
"""The field without which a request only loads; the other `/v1` routes answer 400 then."""

_SHOW = {"model": _NAME, "name": _NAME, "verbose": _BOOL, "system": _TEXT, "template": _TEXT, "options": _MAP}

_LOAD_TIME = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict")


def _load_options(options: Mapping[str, Any]) -> dict[str, int | bool]:
    """The options that are fixed when a model is loaded, whole numbers as Go truncates them.

    :raise Misfit: Ollama refuses the value.  Source: `Options.FromMap` in Ollama's `api/types.go`.
    """
    named: dict[str, int | bool] = {
        name: int(_number(options[name])) for name in _LOAD_TIME if options.get(name) is not None
    }
    if (use_mmap := options.get("use_mmap")) is not None:
        named["use_mmap"] = _to_bool(use_mmap)
    return named


# -- other encodings -------------------------------------------------------------------------------------------------


def in_clear(path: str, body: bytes, content_encoding: str | None) -> bytes:
    """The body without its coding, as far as Ollama undoes any; ValueError or ZstdError if it could not."""
    if content_encoding != "zstd" or not path.startswith("/v1/"):
        return body
    reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(body, read_across_frames=True)
    clear = reader.read(_ZSTD_LIMIT + 1)
    if len(clear) > _ZSTD_LIMIT:
        raise ValueError("larger than 20 MiB when decompressed")
    return clear


def _read_form(body: bytes, content_type: str, query: bytes) -> Inference | Unreadable:
    """Read a form, whose answer never streams."""
    try:
        model = forms.model_of(body, content_type, query)
    except ValueError as error:
        return Unreadable(reason=str(error), empty=not body)
    return Inference(
        model=model,
        stream=False,
        keep_alive=None,
        options="{}",
        load_fields={},
        is_load=False,
        is_unload=False,
    )
