"""The client's values: made of the very examples that docs/openapi.yaml has, and of what a newer foreman may say."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import foreman.job
from foreman.client import (
    Artifact,
    Chunk,
    Health,
    History,
    JobInfo,
    JobState,
    NotForeman,
    Pause,
    Queue,
    submission,
)
from foreman.client.documents import read

DESCRIPTION = yaml.safe_load((Path(__file__).parents[2] / "docs" / "openapi.yaml").read_text())


def example(method: str, path: str, status: str = "200") -> Any:
    """The example of an answer."""
    return DESCRIPTION["paths"][path][method]["responses"][status]["content"]["application/json"]["example"]


def test_a_job_is_read() -> None:
    """A finished job as the description shows it: moments with their zone, lengths in seconds, text at hand."""
    job = read(JobInfo, example("get", "/jobs/{job_id}"))
    assert job.state is JobState.DONE
    assert job.created_at == datetime(2026, 11, 21, 10, 24, tzinfo=UTC)
    assert (job.timings.load_seconds, job.timings.queued_seconds, job.timings.tokens_per_second) == (3.0, 0.01, 15.2)
    assert job.text == "Because of Rayleigh."
    assert job.webhook is not None
    assert job.webhook.delivered == 4
    assert job.metadata == {"ticket": 7}
    assert job.error is None
    cancelled = read(JobInfo, example("post", "/jobs/{job_id}/cancel"))
    assert cancelled.error is not None
    assert (cancelled.error.code, cancelled.timings.run_seconds) == ("cancelled", None)


def test_the_other_documents_are_read() -> None:
    """History, queue, pause and health as the description shows them."""
    history = read(History, example("get", "/jobs/{job_id}/events"))
    assert history.events[0].delivery is not None
    assert history.events[0].delivery.next_at == datetime(2026, 11, 21, 10, 24, 1, 100000, tzinfo=UTC)
    assert (history.events[0].previous_state, history.deliveries[0].status) == (None, 502)
    assert read(Queue, example("get", "/queue")).next == ()
    assert read(Pause, example("post", "/queue/pause")).paused_until == datetime(2026, 11, 21, 10, 54, tzinfo=UTC)
    health = read(Health, example("get", "/healthz"))
    assert (health.uptime_seconds, health.target.resident, health.queue.oldest_seconds) == (3600, "tiny-a", 0)


def test_a_full_queue_is_read() -> None:
    """What runs and what waits."""
    queue = read(
        Queue,
        {
            "queued": 2,
            "models": [{"model": "m", "queued": 2, "oldest_s": 5}],
            "running": {"job_id": "J0", "model": "m", "state": "loading", "attempt": 1, "seconds": 0.5},
            "next": [{"position": 1, "job_id": "J1", "model": "m", "waited_s": 4}],
        },
    )
    assert queue.models[0].oldest_seconds == 5
    assert queue.running is not None
    assert (queue.running.state, queue.running.seconds) == (JobState.LOADING, 0.5)
    assert queue.next[0].waited_seconds == 4


def fields(schema: str) -> set[str]:
    """What the description says a document has."""
    return set(DESCRIPTION["components"]["schemas"][schema]["properties"])


@pytest.mark.parametrize(
    ("kind", "schema"), [(JobInfo, "Job"), (Health, "Health"), (Pause, "Pause"), (Artifact, "Artifact")]
)
def test_no_field_is_forgotten(kind: Any, schema: str) -> None:
    """Everything that foreman says is in the values."""
    ours = {each.name for each in kind.__attrs_attrs__}
    assert {name.replace("_s", "_seconds") if name == "uptime_s" else name for name in fields(schema)} <= ours


def with_more(document: Any) -> Any:
    """The same from a newer foreman: a field more in every object."""
    if isinstance(document, dict):
        return {**{name: with_more(value) for name, value in document.items()}, "brand_new": [1]}
    return [with_more(each) for each in document] if isinstance(document, list) else document


def test_a_newer_foreman_is_understood() -> None:
    """Fields that this client does not know are passed over, wherever they are."""
    for kind, document in (
        (JobInfo, example("get", "/jobs/{job_id}")),
        (History, example("get", "/jobs/{job_id}/events")),
        (Health, example("get", "/healthz")),
    ):
        plain = {**document, "result": None, "metadata": None}  # which hold what callers and targets like
        assert read(kind, with_more(plain)) == read(kind, plain)


def test_values_can_be_kept_in_sets() -> None:
    """A job is frozen and can be a key, whatever is in it."""
    job = read(JobInfo, example("get", "/jobs/{job_id}"))
    assert {job: 1}[read(JobInfo, example("get", "/jobs/{job_id}"))] == 1
    with pytest.raises(AttributeError):
        job.state = JobState.QUEUED  # type: ignore[misc]


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda more: (
            st.lists(more)
            | st.dictionaries(
                st.sampled_from(
                    ["job_id", "state", "timings", "artifacts", "error", "created_at", "queued_ms", "name"]
                ),
                more,
            )
        ),
    )
)
def test_whatever_comes_is_read_or_refused(document: Any) -> None:
    """Nonsense is told as such, by one error, and nothing else is raised."""
    try:
        job = read(JobInfo, document)
    except NotForeman:
        return
    assert job.state in JobState


def test_the_states_are_foremans() -> None:
    """The client's states are those of the daemon."""
    assert [state.value for state in JobState] == [state.value for state in foreman.job.JobState]
    assert {state.value for state in JobState if state.is_over} == {each.value for each in foreman.job.TERMINAL}


@pytest.mark.parametrize(
    "result",
    [
        {"embeddings": [[1.0, 2.0], [3.0, 4.0]]},
        {"data": [{"embedding": [1.0, 2.0]}, {"embedding": [3.0, 4.0]}]},
    ],
)
def test_embeddings_are_vectors(result: Any) -> None:
    """Whichever route made them, embeddings are lists of numbers."""
    assert JobInfo(job_id="J", state=JobState.DONE, result=result).embeddings == [[1.0, 2.0], [3.0, 4.0]]
    assert JobInfo(job_id="J", state=JobState.DONE, result={"embedding": [1.0]}).embeddings == [[1.0]]
    assert JobInfo(job_id="J", state=JobState.DONE, result={"response": "x"}).embeddings == []
    assert JobInfo(job_id="J", state=JobState.QUEUED).embeddings == []


def test_a_chunk_prints_shortly() -> None:
    """A chunk shows what it tells, without the line it was read from."""
    assert "model" not in repr(Chunk(text="Be", document={"model": "m"}))


MESSAGES = [{"role": "user", "content": "Why?"}]


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (submission("m", "Why?"), {"endpoint": "/api/generate", "prompt": "Why?"}),
        (submission("m", MESSAGES), {"endpoint": "/api/chat", "messages": MESSAGES}),
        (submission("m", messages=MESSAGES), {"endpoint": "/api/chat", "messages": MESSAGES}),
        (submission("m", prompt="Why?"), {"endpoint": "/api/generate", "prompt": "Why?"}),
        (submission("m", input=["a"]), {"endpoint": "/api/embed", "input": ["a"]}),
        (submission("m", "a", endpoint="/api/embed"), {"endpoint": "/api/embed", "input": "a"}),
        (submission("m", "Why?", endpoint="/api/chat"), {"endpoint": "/api/chat", "messages": MESSAGES}),
        (
            submission("m", "Why?", endpoint="/v1/chat/completions", temperature=0),
            {"endpoint": "/v1/chat/completions", "messages": MESSAGES, "temperature": 0},
        ),
        (submission("m", "Why?", endpoint="/v1/responses"), {"endpoint": "/v1/responses", "input": "Why?"}),
        (
            submission("m", "Why?", expires_in=0.5, run_timeout=60, state_webhook_url="http://h/", metadata={}),
            {
                "endpoint": "/api/generate",
                "prompt": "Why?",
                "expires_in": "500ms",
                "timeout": "60000ms",
                "state_webhook_url": "http://h/",
                "metadata": {},
            },
        ),
    ],
)
def test_a_submission_is_the_document_that_one_would_write(made: Any, wanted: Any) -> None:
    """Messages, prompts and inputs find their endpoint, and a text the field that the endpoint has for it."""
    assert made == {"model": "m", **wanted}


def test_every_endpoint_can_be_asked() -> None:
    """Whatever endpoint takes jobs, a plain text can be given to it."""
    for endpoint in DESCRIPTION["components"]["schemas"]["Submission"]["properties"]["endpoint"]["enum"]:
        made = submission("m", "Why?", endpoint=endpoint)
        assert len({"messages", "prompt", "input"} & set(made)) == 1
        assert made["endpoint"] == endpoint
