"""What is sent for an async job, and what is kept of its answer."""

from __future__ import annotations

import orjson
import pytest

from foreman.errors import TooLarge
from foreman.job import Submission
from foreman.ollama.exchange import Flow, Head
from foreman.ollama.requests import with_stream
from foreman.ollama.texts import Texts, texts_of
from foreman.test.test_forecast import job
from foreman.test.test_tails import Sink
from foreman.work.recorder import Recorder
from foreman.work.tails import Tails

NDJSON = Head(200, b"OK", ((b"Content-Type", b"application/x-ndjson"),))
JSON = Head(200, b"OK", ((b"Content-Type", b"application/json"),))


class _Flow:
    after_read = staticmethod(lambda: None)

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass


FLOW: Flow = _Flow()


def recorder(tails: Tails, *, max_result: int = 1000, timeout: float | None = None) -> Recorder:
    """A recorder of job `1`, a chat."""
    submission = Submission(body=b'{"model":"m","messages":[{}]}', timeout=timeout)
    return Recorder(job(1), submission, tails, max_run=7200.0, max_result=max_result)


def line(text: str, *, done: bool = False) -> bytes:
    """A line of a native stream."""
    message = {"role": "assistant", "content": text}
    return orjson.dumps({"model": "m", "created_at": "now", "message": message, "done": done}) + b"\n"


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b'{"model":"m","stream":false}', b'{"model":"m","stream":false,"stream":true}'),
        (b" {} rest", b'{"stream":true}'),
        (b'{"a":"}"}', b'{"a":"}","stream":true}'),
        (b'{"a":"\xff"}', '{"a":"\ufffd","stream":true}'.encode()),
        (b"[1]", b"[1]"),
        (b"nonsense", b"nonsense"),
        (b"null", b"null"),
    ],
)
def test_stream_is_set(body: bytes, sent: bytes) -> None:
    """Of a body only `stream` is changed, by a last member that wins over all before it."""
    assert with_stream(body, stream=True) == sent


def test_what_a_run_may_take() -> None:
    """A job's own timeout counts, else FOREMAN_MAX_RUN."""
    assert recorder(Tails()).limit == 7200.0
    assert recorder(Tails(), timeout=9000.0).limit == 9000.0


def test_joining_in_the_midst_of_a_line() -> None:
    """Who joins while a line is half there has whole lines only, and all of them."""
    tails, sink = Tails(), Sink()
    recording = recorder(tails)
    recording.begin(NDJSON, FLOW)
    stream = line(" one") + line(" two") + line(" three", done=True)
    cut = len(line(" one")) + 10
    recording.write(stream[:cut])
    tails.join("1", sink)
    recording.write(stream[cut:])
    recording.finish()
    lines = [orjson.loads(each) for each in b"".join(sink.got).splitlines()]
    assert [each["message"]["content"] for each in lines] == [" one", " two", " three"]
    assert [each["done"] for each in lines] == [False, False, True]
    assert sink.over == "finished"


def test_an_answer_beyond_the_limit() -> None:
    """What came before the limit is kept as far as it is text."""
    recording = recorder(Tails(), max_result=8)
    recording.begin(NDJSON, FLOW)
    recording.write(line(" one"))
    with pytest.raises(TooLarge):
        recording.write(line(" two three"))
    [partial] = recording.keep(done=False)
    assert partial.name == "partial"
    assert partial.body.startswith(b" one")
    recording.begin(JSON, FLOW)


@pytest.mark.parametrize(
    ("endpoint", "answer", "texts"),
    [
        ("/api/chat", {"message": {"content": "a", "thinking": "b"}}, Texts("a", "b")),
        ("/api/generate", {"response": "a", "thinking": "b"}, Texts("a", "b")),
        ("/v1/chat/completions", {"choices": [{"message": {"content": "a", "reasoning": "b"}}]}, Texts("a", "b")),
        ("/v1/completions", {"choices": [{"text": "a"}, {"text": "b"}]}, Texts("ab")),
        (
            "/v1/responses",
            {"output": [{"summary": [{"text": "b"}]}, {"content": [{"text": "a"}]}]},
            Texts("a", "b"),
        ),
        ("/v1/messages", {"content": [{"thinking": "b"}, {"text": "a"}, {"type": "tool_use"}]}, Texts("a", "b")),
        ("/v1/audio/transcriptions", {"text": "a"}, Texts("a")),
        ("/api/embed", {"embeddings": [[0.5]]}, Texts()),
        ("/api/chat", [], Texts()),
        ("/api/chat", {"message": {"content": None}}, Texts()),
        ("/v1/chat/completions", {"choices": [7]}, Texts()),
    ],
)
def test_the_text_of_an_answer(endpoint: str, answer: object, texts: Texts) -> None:
    """The text alone is found in every dialect; what is none is passed over."""
    assert texts_of(endpoint, orjson.dumps(answer)) == texts
    assert texts_of(endpoint, b"nonsense") == Texts()
