"""Answers of the target: their ends, their numbers, their errors, and streams folded into one answer."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreman.errors import TargetError, TooLarge
from foreman.ollama.replies import FinalWatch, Folder, LineSplitter, Tail, Verdict, error_text, is_validation_error
from foreman.ollama.routes import Api

DATA = Path(__file__).parent / "data"


@cache
def chunks(name: str) -> list[bytes]:
    """The chunks of a recorded answer."""
    recorded = json.loads((DATA / f"{name}.json").read_text())
    return [chunk["data"].encode() for chunk in recorded["response"]["chunks"]]


def recut(data: bytes, cuts: list[int]) -> list[bytes]:
    """The same bytes cut elsewhere."""
    places = sorted({min(cut, len(data)) for cut in cuts})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


CUTS = st.lists(st.integers(0, 5000), max_size=30)


# -- the end of an answer --------------------------------------------------------------------------------------------


def watched(api: Api, streamed: bool, pieces: list[bytes], limit: int = 2**23) -> Verdict:
    """The verdict on an answer that has passed by."""
    watch = FinalWatch(api, streamed, limit)
    for piece in pieces:
        watch.feed(piece)
    return watch.verdict()


COMPLETE = [
    ("chat-stream-tiny-a", Api.NATIVE, True, (6, 27)),
    ("chat-plain-tiny-a", Api.NATIVE, False, (6, 27)),
    ("generate-stream", Api.NATIVE, True, (6, 27)),
    ("generate-plain", Api.NATIVE, False, (6, 27)),
    ("chat-load", Api.NATIVE, True, (None, None)),
    ("chat-unload", Api.NATIVE, True, (None, None)),
    ("embed-one", Api.NATIVE, False, (3, None)),
    ("embed-one", Api.NATIVE, True, (3, None)),
    ("embeddings-old", Api.NATIVE, False, (None, None)),
    ("v1-chat-stream", Api.OPENAI, True, (6, 27)),
    ("v1-chat-plain", Api.OPENAI, False, (6, 27)),
    ("v1-completions-stream", Api.OPENAI, True, (None, None)),
    ("v1-completions-plain", Api.OPENAI, False, (6, 27)),
    ("v1-responses-stream", Api.OPENAI, True, (6, 27)),
    ("v1-responses-plain", Api.OPENAI, False, (6, 27)),
    ("v1-messages-stream", Api.ANTHROPIC, True, (6, 27)),
    ("v1-messages-plain", Api.ANTHROPIC, False, (6, 27)),
    ("v1-embeddings", Api.OPENAI, False, (3, None)),
]


# A loop and not `parametrize`, here and below: pytest-twisted wraps hypothesis' inner function once for each parameter.
@given(CUTS)
def test_complete_answers(cuts: list[int]) -> None:
    """An answer that has its endpoint's end mark is complete and tells its tokens, however it was cut into chunks."""
    for name, api, streamed, tokens in COMPLETE:
        verdict = watched(api, streamed, recut(b"".join(chunks(name)), cuts))
        assert verdict.complete, name
        assert verdict.error is None, name
        assert (verdict.prompt_tokens, verdict.output_tokens) == tokens, name


@pytest.mark.parametrize(
    ("name", "api"),
    [
        ("chat-stream-tiny-a", Api.NATIVE),
        ("generate-stream", Api.NATIVE),
        ("v1-chat-stream", Api.OPENAI),
        ("v1-completions-stream", Api.OPENAI),
        ("v1-responses-stream", Api.OPENAI),
        ("v1-messages-stream", Api.ANTHROPIC),
    ],
)
def test_cut_streams(name: str, api: Api) -> None:
    """A stream that ends before its end mark is incomplete, wherever it ends."""
    data = b"".join(chunks(name)).rstrip()
    for length in range(len(data)):
        assert not watched(api, True, [data[:length]]).complete


def test_repetition_stop() -> None:
    """Ollama's silent stop at endless repetition is told from a complete answer, streamed or not."""
    for name, streamed in (("chat-stream-tiny-rep", True), ("chat-plain-tiny-rep", False)):
        verdict = watched(Api.NATIVE, streamed, chunks(name))
        assert not verdict.complete
        assert verdict.error is None


def test_times() -> None:
    """The final line tells how long loading and answering took."""
    final = json.loads(chunks("chat-stream-tiny-a")[-1])
    verdict = watched(Api.NATIVE, True, chunks("chat-stream-tiny-a"))
    assert verdict.load_ms == pytest.approx(final["load_duration"] / 1e6)
    assert verdict.output_ms == pytest.approx(final["eval_duration"] / 1e6)


@pytest.mark.parametrize(
    ("api", "streamed", "body", "error"),
    [
        (Api.NATIVE, True, b'{"message":{"content":"a"},"done":false}\n{"error":"unexpected EOF"}\n', "unexpected EOF"),
        (Api.NATIVE, True, b'{"error":"no"}', "no"),
        (Api.NATIVE, False, b'{"error":"no"}', "no"),
        (Api.OPENAI, True, b'{"error":{"message":"no","type":"api_error","param":null,"code":null}}\n', "no"),
        (Api.OPENAI, False, b'{"error":{"message":"no","type":"api_error","param":null,"code":null}}\n', "no"),
        (Api.OPENAI, True, b'data: {"choices":[]}\n\ndata: {"error":{"message":"no"}}\n\n', "no"),
        (Api.OPENAI, True, b'data: {"type":"response.failed","response":{"error":{"message":"no"}}}\n\n', "no"),
        (Api.ANTHROPIC, True, b'event: error\ndata: {"type":"error","error":{"type":"x","message":"no"}}\n\n', "no"),
    ],
)
def test_error_answers(api: Api, streamed: bool, body: bytes, error: str) -> None:
    """An error, as the whole answer or as the last line of a stream, is never a complete answer."""
    assert watched(api, streamed, [body]) == Verdict(complete=False, error=error)


@pytest.mark.parametrize("body", [b"", b"\n", b"data: [DONE", b"garbage", b"{}", b"\xff", b"[1]", b'{"done":false}\n'])
@pytest.mark.parametrize("api", list(Api))
def test_odd_streams(api: Api, body: bytes) -> None:
    """What is no stream of Ollama's is not taken for a complete one."""
    assert not watched(api, True, [body]).complete


@given(st.sampled_from(list(Api)), st.booleans(), st.lists(st.binary(max_size=50)), st.integers(1, 60))
def test_any_answer_is_judged(api: Api, streamed: bool, pieces: list[bytes], limit: int) -> None:
    """No bytes whatever make the watch raise: it stands in the way of no answer."""
    watched(api, streamed, pieces, limit)


def test_text_that_looks_like_an_end() -> None:
    """What a model says is never taken for what the target says."""
    said = json.dumps({"message": {"content": '\n"done":true,"eval_count":9}\ndata: [DONE]'}})
    body = said[:-1].encode() + b',"done":false}\n'
    assert not watched(Api.NATIVE, True, [body]).complete
    assert not watched(Api.NATIVE, False, [body], limit=40).complete
    assert watched(Api.NATIVE, False, [body], limit=40).output_tokens is None


@pytest.mark.parametrize(
    ("name", "api", "complete"),
    [
        ("chat-plain-tiny-a", Api.NATIVE, True),
        ("chat-plain-tiny-rep", Api.NATIVE, False),
        ("v1-chat-plain", Api.OPENAI, True),
        ("v1-messages-plain", Api.ANTHROPIC, True),
    ],
)
def test_long_unstreamed_answers(name: str, api: Api, complete: bool) -> None:
    """An unstreamed answer too long to keep is judged by its end, with the same result."""
    whole = watched(api, False, chunks(name))
    data = b"".join(chunks(name))
    assert watched(api, False, recut(data, list(range(0, len(data), 10))), limit=250) == whole
    assert whole.complete is complete


def test_a_long_stream_leaves_only_its_last_lines() -> None:
    """While 20 MB of lines pass by, a few of them are in memory, and the last is known at the end."""
    tail = Tail(lines=12)
    kept = 0
    for number in range(10_000):
        tail.feed(b'{"n": %d, "x": "%s"}\n' % (number, b"x" * 2000))
        kept = max(kept, len(tail.data()))
    assert kept < 200_000
    assert (tail.last_line() or b"").startswith(b'{"n": 9999,')
    assert len(tail.last_lines(12)) == 12


def test_tail_is_bounded() -> None:
    """However much passes by, little of it is kept, and the last line is found in it."""
    tail = Tail(100)
    for number in range(10_000):
        tail.feed(b"line %d\n" % number)
    assert len(tail.data()) <= 200  # twice the limit at most
    assert not tail.whole
    assert tail.last_line() == b"line 9999"
    tail.feed(b"x" * 200)
    assert tail.last_line() is None


@given(st.lists(st.sampled_from([b"a", b"bb\n", b"\n", b"c\nd", b"\r\n", b"", b" "])))
def test_tail_finds_the_last_line(pieces: list[bytes]) -> None:
    """The last line that says something is found, wherever the chunks are cut."""
    tail = Tail()
    for piece in pieces:
        tail.feed(piece)
    lines = [line.strip() for line in b"".join(pieces).split(b"\n") if line.strip()]
    last = tail.last_line()
    assert (None if last is None else last.strip()) == (lines[-1] if lines else None)


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":"model is required"}', "model is required"),
        (b'{"error":{"message":"EOF","type":"invalid_request_error","param":null,"code":null}}', "EOF"),
        (b'{"type":"error","error":{"type":"not_found_error","message":"gone"},"request_id":"r"}', "gone"),
        (b'{"error":{"code":5}}', '{"code":5}'),
        (b"404 page not found\n", "404 page not found"),
        (b'{"error":""}', '{"error":""}'),
        (b"\xff", "\ufffd"),
        (b"", ""),
    ],
)
def test_error_text(body: bytes, text: str) -> None:
    """The text of an error is found in each dialect's shape."""
    assert error_text(body) == text


def test_error_text_is_clipped() -> None:
    """A page of HTML from some proxy does not become the error of a job."""
    assert len(error_text(b"<html>" * 1000)) == 500


@pytest.mark.parametrize(
    ("name", "validation"),
    [("err-chat-option-type", True), ("err-chat-format", True), ("err-chat-stream-type", False)],
)
def test_validation_errors(name: str, validation: bool) -> None:
    """A 500 that is the request's own fault is told from one that is the target's."""
    status = json.loads((DATA / f"{name}.json").read_text())["response"]["status"]
    assert is_validation_error(status, error_text(b"".join(chunks(name)))) is validation
    assert not is_validation_error(500, "an error was encountered while running the model: unexpected EOF")
    assert not is_validation_error(400, 'option "num_ctx" must be of type integer')


# -- a stream as one answer ------------------------------------------------------------------------------------------

PAIRS = sorted(path.stem for path in DATA.glob("*-stream*.json") if path.stem.startswith(("chat-", "generate-")))


def folded(pieces: list[bytes], limit: int = 2**20) -> Folder:
    """A stream, folded."""
    folder = Folder(limit)
    for piece in pieces:
        folder.feed(piece)
    folder.close()
    return folder


def agreed(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer without what differs from one run to the next."""
    for call in answer.get("message", {}).get("tool_calls", ()):
        call["id"] = "call"
    return {key: 0 if key == "created_at" or key.endswith("_duration") else value for key, value in answer.items()}


@pytest.mark.parametrize("name", PAIRS)
def test_folding_as_recorded(name: str) -> None:
    """A folded stream is the answer that Ollama itself gives unstreamed, down to the order of the keys."""
    answer = agreed(json.loads(folded(chunks(name)).answer()))
    plain = agreed(json.loads(b"".join(chunks(name.replace("-stream", "-plain")))))
    assert json.dumps(answer) == json.dumps(plain)


@given(CUTS)
def test_folding_is_blind_to_chunks(cuts: list[int]) -> None:
    """Where the network cuts a stream makes no difference to the result."""
    for name in PAIRS:
        data = b"".join(chunks(name))
        one, other = folded([data]), folded(recut(data, cuts))
        assert one.answer() == other.answer(), name
        assert one.verdict() == other.verdict() == watched(Api.NATIVE, True, [data]), name


def test_partial_text() -> None:
    """What a model has said and thought so far can be read at any time."""
    folder = Folder(2**20)
    for chunk in chunks("chat-stream-tiny-think")[:6]:
        folder.feed(chunk)
    assert folder.thinking.startswith("hmm let me see")
    assert not folder.verdict().complete
    assert json.loads(folder.answer())["message"]["content"] == folder.content


def test_error_in_mid_stream() -> None:
    """An error line ends a stream with its text, and what was said before is kept."""
    error = b'{"error":"an error was encountered while running the model: unexpected EOF"}\n'
    folder = folded([*chunks("chat-stream-tiny-a")[:2], error])
    assert folder.verdict().error == "an error was encountered while running the model: unexpected EOF"
    assert folder.content == " alpha bravo"


def test_load_answers_fold() -> None:
    """The one object that answers a load request is its own folded answer, without an end of line too."""
    for name in ("chat-load", "generate-load"):
        folder = folded(chunks(name))
        assert folder.answer() == chunks(name)[0]
        assert folder.verdict().complete


def line(**fields: Any) -> bytes:
    """One line of a chat stream."""
    return json.dumps({"message": {"content": "12345"}, "done": False, **fields}).encode() + b"\n"


def test_result_limit() -> None:
    """A result larger than its limit is refused when it becomes so, and the text so far is kept."""
    folder = Folder(12)
    folder.feed(line() * 2)
    with pytest.raises(TooLarge):
        folder.feed(line())
    assert folder.content.startswith("1234512345")
    with pytest.raises(TooLarge):
        Folder(200).feed(line(logprobs=[{"token": "x" * 100}]) * 2)
    with pytest.raises(TooLarge):
        Folder(200).feed(line(message={"tool_calls": [{"id": "x" * 100}]}) * 2)


def test_line_limit() -> None:
    """A line without end is refused before it fills the memory."""
    folder = Folder(2**20, line_limit=100)
    folder.feed(b"x" * 100)
    with pytest.raises(TooLarge):
        folder.feed(b"x")
    with pytest.raises(TooLarge):
        Folder(2**20, line_limit=10).feed(line())


@pytest.mark.parametrize("data", [b"<html>\n", b"[1]\n", b"5\n", b"\xff\n", b"{}\n"])
def test_foreign_lines(data: bytes) -> None:
    """A line that Ollama would never send is an error of the target's, not an empty answer."""
    with pytest.raises(TargetError):
        Folder(2**20).feed(data)


def test_blank_lines() -> None:
    """Filler between the lines is no part of the answer."""
    stream = chunks("chat-stream-tiny-c")
    assert folded([b" \n\n  ", *stream, b"\n"]).answer() == folded(stream).answer()


@given(st.lists(st.binary(max_size=10)))
def test_splitting(pieces: list[bytes]) -> None:
    """Lines come out whole and in order, wherever the chunks are cut."""
    splitter = LineSplitter()
    lines = [each for piece in pieces for each in splitter.feed(piece)]
    assert b"\n".join([*lines, splitter.rest()]) == b"".join(pieces)
    assert not any(b"\n" in each for each in lines)
