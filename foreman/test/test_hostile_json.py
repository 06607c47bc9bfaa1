"""Bodies meant to confuse, stall or fill foreman: it reads what its target reads, at once, or says what is wrong."""

from __future__ import annotations

import json
import time
from typing import Any

import orjson
import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st

from foreman.errors import TargetError
from foreman.ollama import bulk, requests
from foreman.ollama.bulk import MOST_VALUES, TOO_MANY, is_bulky
from foreman.ollama.replies import Folder, error_text
from foreman.ollama.requests import TOO_DEEP, Inference, Unreadable
from foreman.test.harness import House, RawClient, ask, house
from foreman.web.errors import BadRequest
from foreman.web.operate import read_pause
from foreman.web.submissions import MOST_LINES, numbered_lines, read
from foreman.webhooks.policy import AddressPolicy

FORM = "multipart/form-data; boundary=b"


def seconds(work: Any) -> float:
    """The processor time that something takes; others who use the machine do not count."""
    since = time.process_time()
    work()
    return time.process_time() - since


def status(answer: RawClient) -> int:
    """The status of an answer."""
    assert answer.head is not None
    return answer.head[0]


# -- one meaning -------------------------------------------------------------------------------------------------------

A, B = '"model": "tiny-a"', '"model": "tiny-b"'
SAID = '"messages": [{"role": "user", "content": "hi"}], "stream": false'

TWO_FACED = {
    "the last of two": (f"{{{B}, {A}, {SAID}}}", "tiny-a"),
    "the last of two in other cases": (f'{{{B}, "MODEL": "tiny-a", {SAID}}}', "tiny-a"),
    "the last, though another is written plainly": (f'{{"Model": "tiny-b", {A}, "mOdEl": "tiny-a", {SAID}}}', "tiny-a"),
    "none between": (f'{{{A}, "MODEL": null, {SAID}}}', "tiny-a"),
    "escaped": (f'{{"\\u006dodel": "tiny\\u002da", {SAID}}}', "tiny-a"),
    "within another": (f'{{{A}, {SAID}, "x": {{{B}}}, "options": {{{B}}}}}', "tiny-a"),
    "behind the end": (f"{{{A}, {SAID}}} {{{B}}}", "tiny-a"),
    "behind rubbish": (f"{{{A}, {SAID}}}]]] {{{B}}}", "tiny-a"),
    "bytes that are no UTF-8": (f'{{"x": "\udcff", {A}, {SAID}}}', "tiny-a"),
    "other names of it": (f'{{"name": "tiny-b", "Model ": "tiny-b", "model\\u0000": "tiny-b", {A}, {SAID}}}', "tiny-a"),
}
"""Bodies that name two models, and the one that is meant."""


@pytest_twisted.ensureDeferred
async def test_foreman_and_the_target_see_one_model() -> None:
    """However a body names its model, the one that foreman loads and writes down is the one that Ollama runs."""
    async with house() as here:
        for name, (body, model) in TWO_FACED.items():
            raw = body.encode(errors="surrogateescape")
            direct = await ask(here.fake.url, "POST", "/api/chat", raw)
            here.fake.requests.clear()
            through = await here.ask("POST", "/api/chat", raw)
            assert direct.document["model"] == through.document["model"] == model, name
            assert (await here.rows())[-1]["model"] == model, name
            loads = [json.loads(record.body) for record in here.fake.requests if record.path == "/api/generate"]
            assert {load["model"] for load in loads if load.get("keep_alive") != 0} <= {model}, name


def test_a_model_in_the_query_of_a_form() -> None:
    """A transcription's model may stand in the query, where Go looks first; the first of several counts."""
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n'
    for query, model in ((b"", "m"), (b"x=1", "m"), (b"model=q&model=r", "q"), (b"model=%71", "q"), (b"model=", "")):
        result = requests.read("/v1/audio/transcriptions", form, FORM, query=query)
        assert isinstance(result, Inference)
        assert result.model == model


ENCODINGS = {
    "nothing": (b"", 400),
    "blanks": (b" \r\n\t ", 400),
    "BOM": (b"\xef\xbb\xbf%s", 400),
    "UTF-16": (None, 400),
    "cut": (b'{"model": "tiny-a", "messages": [', 400),
    "NaN": (b'{"model": "tiny-a", "x": NaN}', 400),
    "Infinity": (b'{"model": "tiny-a", "x": -Infinity}', 400),
    "1e400": (b'{"model": "tiny-a", "options": {"num_ctx": 1e400}}', 400),
    "5000 digits": (b'{"model": "tiny-a", "options": {"num_ctx": ' + b"9" * 5000 + b"}}", 400),
    "a leading zero": (b'{"model": "tiny-a", "x": 01}', 400),
    "a NUL": (b'{"model": "tiny-a", "x": "\0"}', 400),
    "a list": (b"[]", 400),
    "a text": (b'"tiny-a"', 400),
    "one quote": (b'"', 400),
    "a comment": (b'{"model": "tiny-a"} // x', 400),
    "null": (b"null", 400),
    "half a pair": (b'{"model": "tiny-\\ud800a", "messages": []}', 400),
}
"""Bodies that are no JSON, or none that anybody should take, and what `/jobs` says to them."""


@pytest_twisted.ensureDeferred
async def test_bodies_that_are_hardly_json() -> None:
    """What is no JSON is a 400 of foreman's own on its own routes; on Ollama's it is answered just as by Ollama."""
    plain = json.dumps({"model": "tiny-a", "messages": []}).encode()
    async with house(frozen=True) as here:
        for name, (body, expected) in ENCODINGS.items():
            raw = plain.decode().encode("utf-16") if body is None else body.replace(b"%s", plain)
            for path, headers in (("/jobs", {}), ("/jobs", {"Content-Type": "application/x-ndjson"})):
                answer = await here.ask("POST", path, raw, headers=headers)
                assert status(answer) == expected, name
                assert answer.document["error"], name
            assert status(await here.ask("POST", "/queue/pause", raw)) == 400, name
            direct = await ask(here.fake.url, "POST", "/api/chat", raw)
            through = await here.ask("POST", "/api/chat", raw)
            assert (status(through), through.body) == (status(direct), direct.body), name


NUMBERS = ("-1", "0", "-0", "-0.0", "1e-400", "4096.5", "1e300", "-1e300", "9" * 300, "1e400", '"5"', "true", "[]")


NUMBERED = (
    *('"keep_alive": %s', '"options": {"num_ctx": %s}', '"options": {"use_mmap": %s}', '"options": %s', '"stream": %s'),
    *('"expires_in": %s', '"timeout": %s', '"metadata": {"x": %s}', '"metadata": %s', '"priority": %s'),
)


@pytest.mark.parametrize("place", NUMBERED)
def test_numbers_out_of_range(place: str) -> None:
    """A number beyond reason, or something else in its place, is taken or refused by name."""
    for number in NUMBERS:
        try:
            read(f'{{{A}, "messages": [{{"role": "user"}}], {place % number}}}'.encode(), AddressPolicy())
        except BadRequest as error:
            assert str(error).startswith((place[1 : place.index('"', 1)], "the body is not JSON"))  # noqa: PT017


@pytest_twisted.ensureDeferred
async def test_numbers_that_ollama_judges() -> None:
    """What is odd about numbers in a call to Ollama is Ollama's to say; a load for such a call does no harm either."""
    async with house() as here:
        for place in NUMBERED[:2]:
            for number in NUMBERS:
                body = f'{{{A}, "messages": [{{"role": "user", "content": "x"}}], {place % number}}}'.encode()
                direct = await ask(here.fake.url, "POST", "/api/chat", body)
                assert status(await here.ask("POST", "/api/chat", body)) == status(direct), place % number[:20]
        for number in NUMBERS:
            assert status(await here.ask("POST", "/queue/pause", f'{{"for": {number}}}'.encode())) == 400, number
        for text in ("-1s", "1e9s", "9" * 300 + "s", "1" * 500 + "s", "0", "0s", "366d", "1ns", "\u0661s", " 1s"):
            for field in ("expires_in", "timeout"):
                submission = {"model": "tiny-a", "messages": [], field: text}
                assert status(await here.ask("POST", "/jobs", submission)) == 400, text


# -- deep --------------------------------------------------------------------------------------------------------------

DEPTHS = (253, 254, 255, 990, 1024, 10_000, 1_000_000)


def nested(place: str, depth: int, bracket: str = "[]") -> bytes:
    """A submission with so deep a value in one of its fields."""
    opening, closing = ('{"a":', "}") if bracket == "{}" else ("[", "]")
    deep = opening * depth + "0" + closing * depth
    return f'{{{A}, "messages": [{{"role": "user", "content": "x"}}], {place % deep}}}'.encode()


@pytest_twisted.ensureDeferred
async def test_depth() -> None:
    """However deep a body is nested, it is taken or refused by name, on every route that takes one."""
    places = ('"x": %s', '"x": %s, "timeout": "9s"', '"metadata": {"x": %s}', '"options": {"x": %s}', '"tools": %s')
    async with house() as here:
        for depth in DEPTHS:
            assert status(await here.ask("POST", "/queue/pause", nested('"x": %s', depth))) == 400
            assert status(await here.ask("POST", "/api/chat", nested('"x": %s', depth))) in (200, 400)
        await here.ask("POST", "/queue/pause", {"for": "1h"})
        for depth in DEPTHS:
            for number, place in enumerate(places):
                body = nested(place, depth, ("[]", "{}")[number % 2])
                for content_type in ("application/json", "application/x-ndjson"):
                    answer = await here.ask("POST", "/jobs", body, headers={"Content-Type": content_type})
                    assert status(answer) in (202, 400), (depth, place)
                    assert "must be a string" not in str(answer.document), (depth, place)


def test_deep_bodies_are_called_so() -> None:
    """Who nests too deeply hears that, and not of a field that is right."""
    policy = AddressPolicy()
    for place, depth in (('"x": %s, "timeout": "9s"', 300), ('"metadata": {"x": %s}', 300), ('"x": %s', 1000)):
        with pytest.raises(BadRequest, match=TOO_DEEP):
            read(nested(place, depth), policy)
    for path in ("/api/chat", "/v1/chat/completions"):
        result = requests.read(path, nested('"x": %s', 5000))
        assert isinstance(result, Unreadable)
        assert result.reason == TOO_DEEP


@pytest.mark.parametrize("place", ["message", "tool_calls", "logprobs", "x", "error"])
def test_a_target_that_nests_too_deeply(place: str) -> None:
    """A line that could not be written again fails its try; it does not get stuck in foreman."""
    deep = "[" * 300 + "]" * 300
    message = f'{{"role": "assistant", "tool_calls": {deep if place == "tool_calls" else "[]"}}}'
    line = f'{{"message": {deep if place == "message" else message}, "done": true'
    line += f', "{place}": {deep}}}\n' if place in ("logprobs", "x", "error") else "}\n"
    folder = Folder(10**6)
    with pytest.raises(TargetError, match="too deeply"):
        folder.feed(line.encode())
    assert orjson.loads(folder.answer()) == {"response": ""}
    assert error_text(f'{{"error": {{"x": {deep}}}}}'.encode()) == "an error that is nested too deeply"


# -- much --------------------------------------------------------------------------------------------------------------

MUCH = 16 * 2**20
MANY = {
    "lists": b"[],",
    "objects": b'{"":0},',
    "numbers": b"0,",
    "texts": b'"",',
    "quotes": b'"',
    "escapes": b'\\"',
    "backslashes": b"\\",
    "brackets": b"[",
    "texts of commas": b'",,,,",',
    "lines": b"\n",
    "short lines": b"0\n",
    "blank lines": b" \n",
}


@pytest.mark.parametrize("filling", MANY.values(), ids=MANY)
def test_much_of_nothing_is_refused_in_no_time(filling: bytes) -> None:
    """A body of millions of values keeps foreman from nobody else's while it is read, and fills no memory."""
    head = b'{"model":"tiny-a","messages":[{"role":"user","content":"x"}],"x":['
    body = head + filling * (MUCH // len(filling))
    policy = AddressPolicy()

    def submit() -> None:
        with pytest.raises(BadRequest):
            read(body, policy)
        with pytest.raises(BadRequest):
            read_pause(body)
        with pytest.raises(BadRequest):
            read(numbered_lines(filling * (MUCH // len(filling)) + b"\n[]")[0][1], policy)

    assert seconds(submit) < 6
    assert seconds(lambda: requests.read("/api/chat", body)) < 2


def test_a_long_prompt_is_not_many_values() -> None:
    """Commas and brackets in a text cost nothing, so they are no reason to refuse a long one."""
    content = ",[{" * MOST_VALUES
    body = orjson.dumps({"model": "tiny-a", "messages": [{"role": "user", "content": content}]})
    assert not is_bulky(body)
    assert read(body, AddressPolicy()).inference.model == "tiny-a"
    assert is_bulky(body.replace(b'"role"', b'"x": [' + b"0," * MOST_VALUES + b'0], "role"'))


def test_a_body_of_too_many_values_waits_its_turn() -> None:
    """What foreman does not read, Ollama may: the call is a job of an unknown runner."""
    result = requests.read("/api/chat", b'{"model": "tiny-a", "x": [' + b"0," * MOST_VALUES + b"0]}")
    assert isinstance(result, Unreadable)
    assert (result.reason, result.empty) == (TOO_MANY, False)


@settings(max_examples=50)
@given(
    st.recursive(
        st.none() | st.integers(0, 9) | st.text(alphabet='a,[{"\\', max_size=8),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='b,[{"\\', max_size=3), inner),
        max_leaves=12,
    ),
    st.integers(1, 30),
)
def test_values_are_counted_as_they_stand(value: Any, most: int) -> None:
    """A body is called bulky only if it holds more values than are taken, and always if it holds many more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "MOST_VALUES", most)
        verdict = is_bulky(orjson.dumps(value))
    values = _values(value)
    if verdict:
        assert values * 3 > most
    else:
        assert values <= most + 1


def _values(value: Any) -> int:
    """How many values there are in a value, itself included."""
    if isinstance(value, dict):
        return 1 + sum(map(_values, value.values()))
    return 1 + sum(map(_values, value)) if isinstance(value, list) else 1


@given(st.binary(max_size=200) | st.text(alphabet='",[{\\ x', max_size=100).map(str.encode), st.integers(1, 20))
def test_any_bytes_are_counted(body: bytes, most: int) -> None:
    """Counting needs no well-formed body."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "MOST_VALUES", most)
        if is_bulky(body):
            assert sum(map(body.count, (b",", b"[", b"{"))) > most


@given(st.lists(st.sampled_from([b"\n", b" ", b"\r", b"{}", b"\0", b"\xff", b"\x0b", b"x"]), max_size=30))
def test_lines_of_any_batch(pieces: list[bytes]) -> None:
    """The lines of a batch are those that hold something, by the numbers that an editor shows."""
    body = b"".join(pieces)
    expected = [(number, line.strip()) for number, line in enumerate(body.split(b"\n"), start=1) if line.strip()]
    if not expected:
        with pytest.raises(BadRequest):
            numbered_lines(body)
    else:
        assert [(number, line.strip()) for number, line in numbered_lines(body)] == expected
    assert len(expected) <= MOST_LINES


def test_a_form_of_many_parts() -> None:
    """A form of more parts than Go reads is not read here either, but waits its turn."""
    part = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n'
    form = part * 1000 + b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n'
    assert isinstance(requests.read("/v1/audio/transcriptions", form, FORM), Unreadable)
    assert isinstance(requests.read("/v1/audio/transcriptions", form.removeprefix(part), FORM), Inference)
    assert seconds(lambda: requests.read("/v1/audio/transcriptions", part * 300_000, FORM)) < 2


@pytest_twisted.ensureDeferred
async def test_a_model_name_is_no_place_for_a_book() -> None:
    """A name that cannot be one is Ollama's to refuse, even while it is away: it is kept nowhere."""
    async with house({"SYNC_WAIT": "1h", "HOLD_LINE": "0"}) as here:
        for model in ("m" * 1_000_000, "tiny-a\r\nX: y", "\ud83d\ude00", "a b", "../../etc"):
            body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
            assert status(await here.ask("POST", "/api/chat", body)) == 400
            assert status(await here.ask("POST", "/jobs", body)) == 400
        await _goes(here)
        for path in ("/api/chat", "/v1/chat/completions", "/api/embed"):
            assert status(await here.ask("POST", path, {"model": "m" * 1_000_000, "input": "x"})) == 503
        assert await here.rows() == []


async def _goes(here: House) -> None:
    """Have the target go away, and foreman notice."""
    await here.fake.close()
    assert status(await here.ask("POST", "/api/chat", {"model": "no such name"})) == 503
