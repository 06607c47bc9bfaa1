"""Reading along: over drops, restarts and new attempts the answer is told once, and told whole."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from foreman.client import Chunk, JobFailed, JobInfo, JobState, WaitTimeout
from foreman.client.asking import PARTING, Asking
from foreman.client.calls import Calls
from foreman.client.documents import read
from foreman.client.steps import Give, Lost, NextLine, Reply, Return, Send, Sleep, advance


def line(text: str, *, done: bool = False, thinking: str = "", chat: bool = True, **more: Any) -> bytes:
    """A line of a native stream."""
    said = {"content" if chat else "response": text, **({"thinking": thinking} if thinking else {}), **more}
    return json.dumps({"model": "m", **({"message": said} if chat else said), "done": done}).encode()


CUT = None
"""Where a connection breaks."""


@define
class Stage:
    """A foreman that plays connections: for each the lines that come, and where it breaks.

    :ivar connections: a connection that does not break ends by itself; a number is so many seconds of silence.
    :ivar job: what is said of the job when it is asked for; `before` has what is said earlier.
    """

    connections: list[list[bytes | float | None]]
    job: dict[str, Any] = field(factory=lambda: {"job_id": "J", "state": "done", "created_at": "2026-11-21T10:24:00Z"})
    before: list[dict[str, Any]] = field(factory=list)
    endpoint: str = "/api/chat"
    now: float = 0.0
    slept: list[float] = field(factory=list)

    def read(self, timeout: float | None = None) -> list[Chunk]:
        """Read along to the end."""
        asking = Asking(patience=60, clock=lambda: self.now, chance=lambda: 0.5)
        calls = Calls(lambda document: read(JobInfo, document), asking)
        submitted = JobInfo(job_id="J", state=JobState.QUEUED, endpoint=self.endpoint)
        call = calls.stream(submitted, timeout=timeout)
        chunks, lines, bound = [], iter(list[bytes | float | None]()), 0.0
        step = advance(call)
        while not isinstance(step, Return):
            self.now += 0.01
            match step:
                case Give(chunk):
                    chunks.append(chunk)
                    step = advance(call)
                case Sleep(seconds):
                    self.slept.append(seconds)
                    self.now += seconds
                    step = advance(call)
                case Send(follow=True, silence=bound):
                    lines = iter([*self.connections.pop(0), b"end"] if self.connections else [b"end"])
                    step = advance(call, Reply(status=200))
                case Send():
                    step = advance(
                        call,
                        Reply(status=200, body=json.dumps(self.before.pop(0) if self.before else self.job).encode()),
                    )
                case NextLine():
                    following = next(lines)
                    if isinstance(following, float):
                        self.now += min(following, bound)
                        following = next(lines) if following < bound else CUT
                    if following is CUT:
                        step = advance(call, error=Lost("reset"))
                    else:
                        step = advance(call, None if following == b"end" else following)
        return chunks


def told(chunks: list[Chunk]) -> tuple[str, str]:
    """The text and the thinking, put together as the documentation says."""
    text = thinking = ""
    for chunk in chunks:
        if chunk.is_restart:
            text = thinking = ""
        text += chunk.text
        thinking += chunk.thinking
    return text, thinking


def test_a_stream_is_told_as_it_comes() -> None:
    """Without any trouble each line is a chunk, and the last one says so."""
    chunks = Stage([[b" ", line("Be"), line("cause"), line("", done=True)]]).read()
    assert [(chunk.text, chunk.is_last, chunk.is_restart) for chunk in chunks] == [
        ("Be", False, False),
        ("cause", False, False),
        ("", True, False),
    ]


def test_what_was_told_is_not_told_again() -> None:
    """After a drop foreman repeats what there is in one line: only what is new is told."""
    chunks = Stage([[line("Be"), line("cau"), CUT], [line("Because"), line(" of"), line("", done=True)]]).read()
    assert [chunk.text for chunk in chunks] == ["Be", "cau", "se", " of", ""]
    assert not any(chunk.is_restart for chunk in chunks)


@pytest.mark.parametrize("timeout", [0.0, 3.0, 40.0, 64.0, 100.0])
@pytest.mark.parametrize("silence", [0.1, 1.0, 30.0, 1000.0])
def test_the_callers_time_is_kept_whatever_comes(timeout: float, silence: float) -> None:
    """Blanks that hold the line, a model that speaks on and on and one that is silent: time is over when it is."""
    for line_ in (b"", line("on and on")):
        stage = Stage([[silence, line_] * 2000] * 100, job={"job_id": "J", "state": "working"})
        with pytest.raises(WaitTimeout):
            stage.read(timeout)
        assert timeout <= stage.now <= timeout + PARTING + 0.5
        assert len(stage.connections) >= 80, "it is not asked too often"


def test_a_line_that_repeats_and_no_more_tells_nothing() -> None:
    """Coming back before anything new was said is no chunk at all."""
    chunks = Stage([[line("Be"), CUT], [line("Be"), CUT], [line("Be", done=True)]]).read()
    assert [(chunk.text, chunk.is_last) for chunk in chunks] == [("Be", False), ("", True)]


def test_pauses_grow_until_something_is_told() -> None:
    """A stream that breaks again and again is opened less and less often, and at once again when there was news."""
    stage = Stage([[CUT], [CUT], [line("Be"), CUT], [line("Be"), CUT], [line("Be", done=True)]])
    stage.read()
    assert stage.slept == [0.25, 0.5, 0.25, 0.5]


def test_another_attempt_is_a_restart() -> None:
    """When the attempt has failed and another says something else, the chunk tells to throw away what was said."""
    first = [line("Be"), line("cause"), b'{"error": "the attempt has failed and the job waits again"}']
    stage = Stage([[*first], [line("Wh"), line("y?"), line("", done=True)]])
    chunks = stage.read()
    assert [chunk.is_restart for chunk in chunks] == [False, False, True, False, False]
    assert told(chunks) == ("Why?", "")


def test_another_thought_is_a_restart() -> None:
    """An attempt that says the same so far, but thinks something else, is another; after it, drops are no restarts."""
    stage = Stage(
        [
            [line("", thinking="Hm."), line("Be"), CUT],
            [line("Be", thinking="Ah."), line("cause"), CUT],
            [line("Because of", thinking="Ah.", done=True)],
        ]
    )
    chunks = stage.read()
    assert [chunk.is_restart for chunk in chunks] == [False, False, True, False, False, False]
    assert told(chunks) == ("Because of", "Ah.")


def test_an_answer_is_whole_when_foreman_has_it() -> None:
    """A foreman killed between the last line and its own disk runs the job again: only the second end is the last."""
    stage = Stage(
        [[line("Be"), line("cause", done=True)], [line("Wh"), line("y?", done=True)]],
        before=[{"job_id": "J", "state": "queued"}],
    )
    chunks = stage.read()
    assert [(chunk.text, chunk.is_restart, chunk.is_last) for chunk in chunks] == [
        ("Be", False, False),
        ("cause", False, False),
        ("Wh", True, False),
        ("y?", False, False),
        ("", False, True),
    ]
    assert chunks[-1].document["done"] is True


def test_tool_calls_are_told_once() -> None:
    """Calls of tools are not repeated after a drop either."""
    one, two = {"function": {"name": "one"}}, {"function": {"name": "two"}}
    chunks = Stage(
        [[line("", tool_calls=[one]), CUT], [line("", tool_calls=[one, two]), line("", done=True)]],
    ).read()
    assert [chunk.tool_calls for chunk in chunks] == [(one,), (two,), ()]


def test_what_a_failed_job_had_said_is_whole() -> None:
    """The error of a failed job that was read along has its text, however long that is, as with `wait`."""
    partial = {"name": "partial", "content_type": "text/plain", "size": 99, "sha256": ""}
    failed = {"job_id": "J", "state": "failed", "error": {"code": "timeout", "message": "x"}, "artifacts": [partial]}
    stage = Stage([[]], before=[failed], job={"the": "artifact"})
    with pytest.raises(JobFailed) as caught:
        stage.read()
    assert caught.value.job.text == '{"the": "artifact"}'


def test_a_job_that_fails_raises_at_the_end() -> None:
    """What came is told, then the error says how the job failed."""
    failed = {"job_id": "J", "state": "failed", "error": {"code": "timeout", "message": "Too long."}}
    stage = Stage([[line("Be"), b'{"error": "Too long."}']], job=failed)
    with pytest.raises(JobFailed, match="Too long"):
        stage.read()


def test_what_does_not_stream_comes_in_one_piece() -> None:
    """A `/v1` job's answer is one chunk, with its text."""
    artifacts = [{"name": "content", "content_type": "t", "size": 1, "sha256": "", "inline": "Because."}]
    document = {"state": "done", "created_at": "2026-11-21T10:24:00Z", "result": {"id": 1}, "artifacts": artifacts}
    stage = Stage([], job={"job_id": "J", **document}, endpoint="/v1/chat/completions")
    [chunk] = stage.read()
    assert (chunk.text, chunk.is_last, chunk.document) == ("Because.", True, {"id": 1})


def test_a_stream_keeps_the_callers_time() -> None:
    """With a `timeout`, a job that is not over by then ends the reading."""
    working = {"job_id": "J", "state": "working"}
    stage = Stage([[line("Be"), CUT]] * 1000, job=working)
    with pytest.raises(WaitTimeout):
        stage.read(timeout=30)
    assert 30 <= stage.now < 31


pieces = st.lists(st.text("ab", max_size=3), min_size=1, max_size=6)
"""Few letters, so that attempts begin alike."""


@st.composite
def performances(draw: st.DrawFn) -> tuple[list[list[bytes | float | None]], str, str, bool]:
    """Connections as foreman would have them: over some attempts, each read in some connections.

    Gives the last attempt's text and thinking too, and whether it is a chat.
    """
    chat = draw(st.booleans())
    connections: list[list[bytes | float | None]] = []
    attempts = draw(st.lists(st.tuples(pieces, pieces), min_size=1, max_size=3))
    for number, (said, thought) in enumerate(attempts):
        parts = [("", each) for each in thought] + [(each, "") for each in said]
        cuts = sorted(draw(st.lists(st.integers(0, len(parts)), max_size=4)))
        for at, until in pairwise([0, *cuts, len(parts)]):
            texts, thoughts = ("".join(each) for each in (zip(*parts[:at], strict=True) if at else ("", "")))
            so_far = [line(texts, thinking=thoughts, chat=chat)] if at else []
            lines = [line(text, thinking=thinking, chat=chat) for text, thinking in parts[at:until]]
            connections.append([*so_far, *lines, CUT])
        if number == len(attempts) - 1:
            connections[-1][-1] = line("", done=True, chat=chat)
        elif draw(st.booleans()):
            connections[-1][-1] = b'{"error": "the attempt has failed"}'
        # Else the attempt ends while nobody reads.
    said, thought = attempts[-1]
    return connections, "".join(said), "".join(thought), chat


@given(performances())
def test_however_it_is_cut_the_last_attempt_is_told_whole(
    performance: tuple[list[list[bytes | float | None]], str, str, bool],
) -> None:
    """Cut anywhere, over any number of attempts, seen or not: put together, the chunks are the answer."""
    connections, text, thinking, chat = performance
    stage = Stage(connections, endpoint="/api/chat" if chat else "/api/generate")
    chunks = stage.read()
    assert told(chunks) == (text, thinking)
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert stage.connections == []
