"""Submissions: what is refused at once, with its place, and what the target gets to see of the rest."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreman.test.harness import chat
from foreman.web.errors import BadRequest
from foreman.web.submissions import MOST_LINES, MOST_METADATA, OWN_FIELDS, faults_document, numbered_lines, read
from foreman.webhooks.policy import AddressPolicy

POLICY = AddressPolicy()


def refusal(document: Any) -> str:
    """What is said of a submission that is refused."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(BadRequest) as caught:
        read(body, POLICY)
    return str(caught.value)


REFUSED: list[tuple[Any, str]] = [
    (b"", "the body is not JSON"),
    (b"{bad", "the body is not JSON"),
    (b"\xff", "the body is not JSON"),
    (b'{"model": "m"} x', "the body is not JSON"),
    (b"[" * 100_000, "the body is not JSON"),
    ([1], "the body must be an object"),
    ("text", "the body must be an object"),
    ({}, "model: missing"),
    ({"model": ""}, "model: missing"),
    ({"model": None}, "model: missing"),
    ({"model": 5}, "model: must be a string"),
    ({"model": "a b!"}, "model: not a valid model name"),
    ({"model": "m" * 81}, "model: not a valid model name"),
    (chat("big:cloud"), "model: cloud models"),
    (chat("m", stream="no"), "stream: must be true or false"),
    (chat("m", stream=1), "stream: must be true or false"),
    (chat("m", options=[1]), "options: must be an object"),
    (chat("m", options={"num_ctx": "big"}), "options: "),
    (chat("m", keep_alive=[1]), "keep_alive: must be a duration"),
    (chat("m", keep_alive=True), "keep_alive: must be a duration"),
    (chat("m", keep_alive="soon"), "keep_alive: "),
    ({"model": "m", "messages": "no"}, "messages: must be a list"),
    ({"model": "m", "messages": ["no"]}, "messages[0]: must be an object"),
    ({"model": "m", "messages": [{"role": "user", "content": "a"}] * 2 + [{}]}, "messages[2].role: must be a string"),
    ({"model": "m", "messages": [{"role": 1}]}, "messages[0].role: must be a string"),
    ({"model": "m", "messages": [{"role": "user", "content": 1}]}, "messages[0].content: must be a string"),
    ({"model": "m", "messages": [{"role": "user", "images": "x"}]}, "messages[0].images: must be a list"),
    ({"model": "m", "endpoint": "/v1/chat/completions"}, "messages: must be a list"),
    ({"model": "m", "endpoint": "/api/generate", "prompt": 1}, "prompt: must be a string"),
    ({"model": "m", "keep_alive": 0}, "keep_alive: a request that only unloads is not a job"),
    (chat("m", endpoint="/api/tags"), "endpoint: must be"),
    (chat("m", endpoint="/api/chat?x=1"), "endpoint: must be"),
    (chat("m", endpoint="/api/../api/chat"), "endpoint: must be"),
    (chat("m", endpoint="/v1/audio/transcriptions"), "endpoint: must be"),
    (chat("m", endpoint="/jobs"), "endpoint: must be"),
    (chat("m", endpoint=7), "endpoint: must be"),
    (chat("m", metadata=[1]), "metadata: must be an object"),
    (chat("m", metadata={"a": "x" * MOST_METADATA}), "metadata: must be at most 4096 bytes"),
    (chat("m", metadata={"order": 2**64}), "metadata: must not hold numbers beyond 64 bits"),
    (chat("m", metadata={"a": [{"b": [0, -(2**63) - 1]}]}), "metadata: must not hold numbers beyond 64 bits"),
    (chat("m", expires_in="soon"), "expires_in: must be a duration"),
    (chat("m", expires_in="0"), "expires_in: must be a duration"),
    (chat("m", expires_in="366d"), "expires_in: must be a duration"),
    (chat("m", expires_in=-1), "expires_in: must be a duration"),
    (chat("m", timeout={}), "timeout: must be a duration"),
    (chat("m", state_webhook_url=1), "state_webhook_url: must be a string"),
    (chat("m", state_webhook_url="ftp://host/"), "state_webhook_url: must begin with http"),
    (chat("m", state_webhook_url="http://h/" + "x" * 2048), "state_webhook_url: must be at most"),
    (chat("m", state_webhook_url="http://169.254.169.254/latest"), "state_webhook_url: 169.254.169.254 is link-local"),
]


@pytest.mark.parametrize(("document", "expected"), REFUSED, ids=lambda each: str(each)[:40])
def test_bad_input_is_refused_with_its_place(document: Any, expected: str) -> None:
    """Whoever submits nonsense is told what is wrong, and where."""
    assert refusal(document).startswith(expected)


def test_the_target_sees_none_of_foremans_fields() -> None:
    """Foreman's fields are taken out, and what is left says what the caller wrote."""
    native = chat("m", options={"temperature": 0.5}, stream=True, tools=[])
    own = {
        "state_webhook_url": "https://example.org/hook",
        "endpoint": "/api/chat",
        "metadata": {"ticket": 7},
        "expires_in": "1h",
        "timeout": "90s",
    }
    assert sorted(own) == sorted(OWN_FIELDS)
    draft = read(json.dumps({**native, **own}).encode(), POLICY)
    job = draft.job("01", model_key="key", now=1000)
    assert json.loads(draft.body) == native
    assert job.submission is not None
    assert (job.submission.webhook, job.submission.metadata) == ("https://example.org/hook", '{"ticket":7}')
    assert (job.submission.expires_at, job.submission.timeout) == (3_601_000, 90.0)
    assert (job.size, job.runner.model) == (len(draft.body), "key")


def test_a_body_without_foremans_fields_goes_on_as_it_came() -> None:
    """What is native to the byte stays so: blanks, order, numbers as written."""
    body = b'{ "messages" : [],  "model":"m", "options": {"seed": 1e2} }'
    assert read(body, POLICY).body == body


def test_null_is_the_same_as_absent() -> None:
    """Callers that send null for what they leave out are served."""
    draft = read(json.dumps({**chat("m", stream=None), **dict.fromkeys(OWN_FIELDS)}).encode(), POLICY)
    assert (draft.endpoint, draft.webhook, draft.metadata, draft.expires_in) == ("/api/chat", None, None, None)


@pytest.mark.parametrize(
    "document",
    [
        {"MODEL": "m", "Messages": [{"Role": "user", "CONTENT": "hi"}]},
        {"model": "m"},
        {"model": "m", "messages": [{"role": "tool", "content": None, "tool_calls": []}]},
        {"model": "m", "endpoint": "/api/generate", "prompt": "hi"},
        {"model": "m", "endpoint": "/api/embed", "input": ["a", "b"]},
        {"model": "m", "endpoint": "/api/embeddings", "prompt": "a"},
        {"model": "m", "endpoint": "/v1/embeddings", "input": "a"},
        {"model": "m", "endpoint": "/v1/messages", "messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"model": "m", "endpoint": "/v1/responses", "input": "hi"},
        {"model": "m", "endpoint": "/v1/completions", "prompt": "hi"},
    ],
)
def test_what_ollama_takes_is_taken(document: Any) -> None:
    """A body that Ollama would answer is not refused for its form."""
    assert read(json.dumps(document).encode(), POLICY).inference.model == "m"


def test_load_time_options_are_the_runners() -> None:
    """Jobs of one model with different num_ctx are different runners."""
    draft = read(json.dumps(chat("m", options={"num_ctx": 512, "seed": 1})).encode(), POLICY)
    assert draft.job("01", model_key="k", now=0).runner.options == '{"num_ctx":512}'


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("model", "messages", "stream", "prompt", "keep_alive", "options", *OWN_FIELDS),
            JSON | st.sampled_from(["m", "/api/generate", "1h", "http://h/"]),
        ),
    )
)
def test_anything_is_read_or_refused(document: Any) -> None:
    """No body, however odd, makes foreman stumble."""
    with suppress(BadRequest):
        assert read(json.dumps(document).encode(), POLICY).inference.model


def test_lines_are_numbered_as_an_editor_does() -> None:
    """A bad line is named by the number it has in the caller's file, empty lines counted."""
    assert numbered_lines(b"a\n\n  \r\nb\r\n") == [(1, b"a"), (4, b"b\r")]


@pytest.mark.parametrize("body", [b"", b"\n \n"])
def test_an_empty_batch_is_refused(body: bytes) -> None:
    """A batch without jobs is a mistake, and is told to be one."""
    with pytest.raises(BadRequest, match="holds no jobs"):
        numbered_lines(body)


def test_a_batch_is_bounded() -> None:
    """At most 10,000 jobs come at once."""
    assert len(numbered_lines(b"{}\n" * MOST_LINES)) == MOST_LINES
    with pytest.raises(BadRequest, match="more jobs than the 10000"):
        numbered_lines(b"{}\n" * (MOST_LINES + 1))


def test_the_first_hundred_bad_lines_are_named() -> None:
    """A file that is wrong throughout is told so in an answer of bounded size."""
    document = faults_document(dict.fromkeys(range(500, 0, -1), "x"), 600)
    assert document["error"] == "500 of 600 lines cannot be accepted, so none was"
    assert [line["line"] for line in document["lines"]] == list(range(1, 101))
