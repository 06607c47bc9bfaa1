"""Request bodies read as Ollama reads them."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from foreman.ollama.requests import Inference, KeepAlive, Misfit, Unreadable, parse_keep_alive, plain_show, read

DATA = Path(__file__).parent / "data"
JSON_PATHS = [
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/embeddings",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
]


def good(path: str, body: object, encoding: str | None = None) -> Inference:
    """The body, read without a fault."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    result = read(path, raw, "application/json", encoding)
    assert isinstance(result, Inference), result
    return result


def bad(path: str, body: object, encoding: str | None = None) -> Unreadable:
    """The body, which only Ollama can judge."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    result = read(path, raw, "application/json", encoding)
    assert isinstance(result, Unreadable), result
    return result


# -- recorded traffic ------------------------------------------------------------------------------------------------

RECORDED = [json.loads(path.read_text()) for path in sorted(DATA.glob("*.json"))]
JUDGED = [
    each
    for each in RECORDED
    if "request" in each and each["request"]["method"] == "POST" and each["request"]["path"] in JSON_PATHS
]


@pytest.mark.parametrize("exchange", JUDGED, ids=lambda exchange: exchange["name"])
def test_recorded_requests(exchange: dict[str, Any]) -> None:
    """What a real Ollama answered is readable here, and what it could not decode is not."""
    request, response = exchange["request"], exchange["response"]
    result = read(request["path"], (request["body"] or "").encode())
    answer = "".join(chunk["data"] for chunk in response["chunks"])
    refused = ("unmarshal", "invalid character", "EOF", "missing request body", "missing unit", "option ", "input type")
    assert isinstance(result, Unreadable) is any(text in answer for text in refused if response["status"] >= 400)
    if response["status"] == 200:
        assert isinstance(result, Inference)
        assert result.is_unload is ('"done_reason":"unload"' in answer)
        loaded = '"done_reason":"load"' in answer or exchange["name"] == "embed-empty"
        assert result.is_load is (loaded or result.is_unload)
        if not result.is_load:
            assert result.stream is any(kind in str(response["headers"]) for kind in ("ndjson", "event-stream"))


# -- Go's encoding/json ----------------------------------------------------------------------------------------------


def test_keys_in_any_case() -> None:
    """Keys match in any case, as Go folds it, and in no wider way."""
    result = good("/api/chat", {"MODEL": "m", "\u017ftream": False, "\u212aeep_Alive": 5, "Messages": [{}]})
    assert (result.model, result.stream, result.keep_alive) == ("m", False, KeepAlive(5, 5))
    assert not result.is_load
    assert good("/api/chat", {"model": "m", "me\u00dfages": [{}]}).is_load


@pytest.mark.parametrize(
    ("body", "model", "stream"),
    [
        (b'{"model":"a","model":"b"}', "b", True),
        (b'{"model":"a","MODEL":"b","model":"c"}', "c", True),
        (b'{"model":"a","model":null}', "a", True),
        (b'{"model":"a","\\u006dodel":"b"}', "b", True),
        (b'{"stream":false,"stream":null}', "", True),
        (b'{"stream":true,"Stream":false}', "", False),
        (b"null", "", True),
        (b" \r\n\t{} trailing", "", True),
        (b'{"model":"a"}{"model":"b"}', "a", True),
        (b'{"model":"a\xff"}', "a\ufffd", True),
        (b'{"model":"\\ud800x\\ud83d\\ude00"}', "\ufffdx\U0001f600", True),
    ],
)
def test_decoding_as_go_does(body: bytes, model: str, stream: bool) -> None:
    """Of equal keys the last wins, null changes no string, and what follows the first value is passed over."""
    result = good("/api/chat", body)
    assert (result.model, result.stream) == (model, stream)


def test_two_objects_are_merged() -> None:
    """Go decodes a second `options` into the map of the first; null empties it."""
    assert good("/api/chat", b'{"options":{"num_ctx":1,"num_gpu":2},"options":{"num_ctx":3}}').options == (
        '{"num_ctx":3,"num_gpu":2}'
    )
    assert good("/api/chat", b'{"options":{"num_ctx":1},"options":null}').options == "{}"


@pytest.mark.parametrize("body", [b"", b" \n"])
@pytest.mark.parametrize("path", JSON_PATHS)
def test_empty_bodies(path: str, body: bytes) -> None:
    """An empty body is known as such: it is the target's to answer, at once."""
    assert bad(path, body).empty


@pytest.mark.parametrize(
    "body",
    [
        b"[1]",
        b'"x"',
        b"{",
        b'{"model":"m"',
        b'{"model":"m",}',
        b'{"a":NaN}',
        b'{"a":"\n"}',
        b"\xef\xbb\xbf{}",
        b"\x1f\x8b",
        b'{"a":' + b"[" * 100_000,
        b'{"a":' + b"1" * 5000 + b"}",
    ],
)
def test_broken_bodies(body: bytes) -> None:
    """A body that is no object is nothing that foreman judges, however broken it is."""
    assert not bad("/api/chat", body).empty


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/api/chat", {"model": 1}),
        ("/api/chat", {"stream": "no"}),
        ("/api/chat", {"stream": 1}),
        ("/api/chat", {"messages": "hi"}),
        ("/api/chat", {"options": [1]}),
        ("/api/chat", {"options": {"num_ctx": "big"}}),
        ("/api/chat", {"options": {"num_ctx": True}}),
        ("/api/chat", {"options": {"use_mmap": 1}}),
        ("/api/chat", {"shift": 0}),
        ("/api/chat", {"keep_alive": "10"}),
        ("/api/generate", {"prompt": ["x"]}),
        ("/api/embed", {"input": 5}),
        ("/api/embed", {"input": ["a", 5]}),
        ("/api/embed", {"input": {}}),
        ("/v1/chat/completions", {"stream": "yes"}),
    ],
)
def test_wrong_types(path: str, fields: dict[str, Any]) -> None:
    """A value of the wrong type is for Ollama to refuse; the model is known all the same."""
    result = bad(path, {"model": "m", **fields})
    assert result.model == ("m" if "model" not in fields else "")


def test_unreadable_keeps_what_it_could_read() -> None:
    """A refused body still tells whether a stream was asked for."""
    result = bad("/api/chat", {"model": "m", "stream": False, "options": 1})
    assert (result.model, result.stream) == ("m", False)
    assert bad("/api/chat", b"{").stream
    assert not bad("/v1/messages", b"{").stream


# -- what it asks for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", JSON_PATHS)
def test_stream_defaults(path: str) -> None:
    """A native generation streams unless told not to; `/v1` streams when told to; embeddings never do."""
    assert good(path, {"model": "m"}).stream is (path in ("/api/chat", "/api/generate"))
    told = good(path, {"model": "m", "stream": True}).stream
    assert told is ("embed" not in path)
    assert not good(path, {"model": "m", "stream": False}).stream


def test_stream_null_on_v1() -> None:
    """A null after a value resets a Go pointer and leaves a plain bool alone."""
    body = b'{"stream":true,"stream":null}'
    assert good("/v1/chat/completions", body).stream
    assert not good("/v1/responses", body).stream


@pytest.mark.parametrize(
    ("path", "fields", "is_load"),
    [
        ("/api/chat", {}, True),
        ("/api/chat", {"messages": []}, True),
        ("/api/chat", {"messages": None}, True),
        ("/api/chat", {"messages": [{"role": "user"}]}, False),
        ("/api/generate", {}, True),
        ("/api/generate", {"prompt": "", "images": ["x"], "system": "s"}, True),
        ("/api/generate", {"prompt": " "}, False),
        ("/api/embed", {}, True),
        ("/api/embed", {"input": []}, True),
        ("/api/embed", {"input": ""}, True),
        ("/api/embed", {"input": [""]}, False),
        ("/api/embeddings", {"prompt": ""}, True),
        ("/v1/completions", {"prompt": ""}, True),
        ("/v1/chat/completions", {"messages": []}, False),
        ("/v1/embeddings", {}, False),
    ],
)
def test_loads_and_unloads(path: str, fields: dict[str, Any], is_load: bool) -> None:
    """A request without messages or prompt only loads, and with `keep_alive: 0` it unloads, where Ollama has that."""
    assert good(path, {"model": "m", **fields}).is_load is is_load
    assert not good(path, {"model": "m", **fields}).is_unload
    for zero in (0, 0.0, "0", "0s", "-0", 1e-10):
        unload = good(path, {"model": "m", **fields, "keep_alive": zero}).is_unload
        assert unload is (is_load and path in ("/api/chat", "/api/generate"))
    assert not good(path, {"model": "m", **fields, "keep_alive": 1e18}).is_unload


def test_options() -> None:
    """Only what is fixed at load time makes another runner, and a load request repeats just that."""
    options = {
        "num_ctx": 4096.9,
        "temperature": 0.1,
        "seed": 7,
        "num_gpu": None,
        "use_mmap": False,
        "main_gpu": 0,
        "NUM_BATCH": 1,
    }
    result = good("/api/generate", {"model": "m", "prompt": "x", "options": options, "shift": True})
    assert result.options == '{"main_gpu":0,"num_ctx":4096,"shift":true,"use_mmap":false}'
    assert result.load_fields == {"options": {"main_gpu": 0, "num_ctx": 4096, "use_mmap": False}, "shift": True}
    assert good("/api/generate", {"model": "m"}).load_fields == {}


def test_v1_ignores_native_fields() -> None:
    """On `/v1` options and keep_alive mean nothing to Ollama, so they make no other runner."""
    fields = {"model": "m", "options": {"num_ctx": 5}, "keep_alive": [], "shift": 3, "messages": 5}
    result = good("/v1/chat/completions", fields)
    assert (result.options, result.load_fields, result.keep_alive) == ("{}", {}, None)
    assert good("/api/embed", {"model": "m", "shift": False}).options == "{}"


NAMES = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict")
OPTIONS = st.dictionaries(st.sampled_from((*NAMES, "seed", "top_k")), st.integers(-(2**31), 2**31) | st.none())


@given(OPTIONS, st.randoms(use_true_random=False))
def test_options_are_order_independent(options: dict[str, Any], random: Any) -> None:
    """The same options in another order are the same runner."""
    items = list(options.items())
    random.shuffle(items)
    expected = {name: value for name, value in options.items() if name in NAMES and value is not None}
    result = good("/api/chat", {"options": dict(items)})
    assert result.options == good("/api/chat", {"options": options}).options
    assert json.loads(result.options) == expected


# -- anything at all -------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("5m"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=5,
)
KEYS = ["model", "MODEL", "stream", "keep_alive", "options", "shift", "messages", "prompt", "input", "other"]
MEMBERS = st.lists(st.tuples(st.sampled_from(KEYS), VALUES), max_size=6)


@given(st.sampled_from(JSON_PATHS), MEMBERS, st.binary(max_size=3))
def test_odd_bodies_never_raise(path: str, members: list[tuple[str, Any]], tail: bytes) -> None:
    """Whatever JSON a client sends, foreman reads it or leaves it to the target; it never stumbles."""
    body = "{" + ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in members) + "}"
    result = read(path, body.encode() + tail)
    result.model.encode()
    if isinstance(result, Inference):
        json.dumps(result.load_fields, allow_nan=False)
        assert result.options == json.dumps(json.loads(result.options), sort_keys=True, separators=(",", ":"))


@given(
    st.sampled_from([*JSON_PATHS, "/v1/audio/transcriptions"]),
    st.binary(max_size=200),
    st.none() | st.text(max_size=20) | st.just("multipart/form-data; boundary=x"),
    st.sampled_from([None, "zstd"]),
)
def test_any_bytes_never_raise(path: str, body: bytes, content_type: str | None, encoding: str | None) -> None:
    """Nor do bytes that are no JSON at all, under any header."""
    assert isinstance(read(path, body, content_type, encoding), Inference | Unreadable)


SIMPLE = st.fixed_dictionaries(
    {"model": st.text(max_size=5), "messages": st.lists(st.just({"role": "user", "content": "x"}), max_size=2)},
    optional={"stream": st.booleans(), "shift": st.booleans(), "keep_alive": st.integers(-5, 500)},
)


@given(SIMPLE)
def test_plain_bodies(body: dict[str, Any]) -> None:
    """A plain body means what it says."""
    result = good("/api/chat", body)
    assert result.model == body["model"]
    assert result.stream is body.get("stream", True)
    assert result.load_fields == {key: body[key] for key in ("shift",) if key in body}
    assert (result.keep_alive and result.keep_alive.wire) == body.get("keep_alive")
    assert result.is_load is (body["messages"] == [])
    assert result.is_unload is (result.is_load and body.get("keep_alive") == 0)


# -- keep_alive ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (300, 300),
        (0.5, 0.5),
        (0, 0),
        (-1, inf),
        (-0.5, inf),
        ("10m", 600),
        ("1h30m", 5400),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("+2m", 120),
        ("-1m", inf),
        ("0", 0),
        ("-0", 0),
        ("0s", 0),
        ("100ms", 0.1),
        ("1us", 1e-6),
        ("1µs", 1e-6),
        ("1μs", 1e-6),
        (1e18, 0),
        (10**18, 0),
    ],
)
def test_keep_alive(value: float | str, seconds: float) -> None:
    """A keep_alive is as long as Ollama takes it to be, and goes out again as it came."""
    keep_alive = parse_keep_alive(value)
    assert keep_alive.seconds == pytest.approx(seconds)
    assert keep_alive.wire == value


@pytest.mark.parametrize(
    "value",
    ["10", "-1", "", "abc", "1d", "m", ".m", "1 m", "9" * 30 + "h", "1" * 500 + "s", True, [], {}, 10**400, inf],
)
def test_keep_alive_refused(value: object) -> None:
    """What Ollama answers 400 to is not taken for a duration."""
    with pytest.raises(Misfit):
        parse_keep_alive(value)


def test_keep_alive_order() -> None:
    """Durations compare by their length, however they are written."""
    values = [0, "1m", 61, "2m", -1]
    assert sorted(map(parse_keep_alive, reversed(values))) == [parse_keep_alive(value) for value in values]
    assert parse_keep_alive("1m") == parse_keep_alive(60)
    assert parse_keep_alive("-5s") == parse_keep_alive(-1)


# -- other encodings -------------------------------------------------------------------------------------------------


def compressed(data: bytes, window_log: int = 20) -> bytes:
    """A zstd body made by a client that does not know its length beforehand."""
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=window_log)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(data) + compressor.flush()


def test_zstd() -> None:
    """A zstd body is read on `/v1`, where Ollama reads it, and nowhere else; a bomb is left to Ollama."""
    body = zstandard.compress(b'{"model":"m","stream":true}')
    result = good("/v1/chat/completions", body, "zstd")
    assert (result.model, result.stream) == ("m", True)
    bad("/v1/chat/completions", body)
    bad("/api/chat", body, "zstd")
    bad("/v1/chat/completions", b"{}", "zstd")
    bad("/v1/chat/completions", compressed(b"{}" + b" " * (20 * 2**20 - 1)), "zstd")
    assert good("/v1/messages", compressed(b"{}" + b" " * (20 * 2**20 - 2)), "zstd").model == ""
    bad("/v1/messages", compressed(b"{}" + b" " * 2**20, window_log=24), "zstd")


FORM = "multipart/form-data; boundary=XX"


def form(*parts: tuple[str, bytes]) -> bytes:
    """A form of these parts, each by the parameters of its disposition."""
    pieces = [f"--XX\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode() + data for name, data in parts]
    return b"\r\n".join([*pieces, b"--XX--\r\n"])


def test_transcriptions() -> None:
    """The model of a transcription comes from the form, wherever in it the field stands."""
    audio = ('name="file"; filename="a.wav"', b"RIFF\r\n--X" * 1000)
    decoy = ('name="model"; filename="m"', b"decoy")
    for parts in ([audio, ('name="model"', b"m")], [('name="model"', b"m"), audio], [decoy, ('name="model"', b"m")]):
        result = read("/v1/audio/transcriptions", form(*parts), FORM)
        assert isinstance(result, Inference)
        assert (result.model, result.stream, result.options) == ("m", False, "{}")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(('name="file"', b"x")), FORM),
        (form(('name="model"', b"m")), "application/json"),
        (form(('name="model"', b"m")), None),
        (form(('name="model"', b"m")), "multipart/form-data"),
        (b'{"model":"m"}', FORM),
        (b"", FORM),
    ],
)
def test_transcriptions_unreadable(body: bytes, content_type: str | None) -> None:
    """A form that foreman cannot read is left to Ollama."""
    result = read("/v1/audio/transcriptions", body, content_type)
    assert isinstance(result, Unreadable)
    assert result.empty is (body == b"")


# -- /api/show -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model":"m"}', "m"),
        (b'{"model":"","name":"m"}', "m"),
        (b'{"model":"m","name":"n","verbose":false,"system":"","options":{}}', "m"),
        (b'{"NAME":"m","unknown":1}', "m"),
        (b'{"model":"m","verbose":true}', None),
        (b'{"model":"m","template":"x"}', None),
        (b'{"model":"m","options":{"num_ctx":1}}', None),
        (b'{"model":1}', None),
        (b"{}", None),
        (b"", None),
    ],
)
def test_plain_show(body: bytes, name: str | None) -> None:
    """Only the plain question about a model can be answered from memory."""
    assert plain_show(body) == name
