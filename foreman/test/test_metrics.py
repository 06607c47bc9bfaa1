"""The figures of `/metrics`: right, bounded, and written down."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest_twisted
from prometheus_client.parser import text_string_to_metric_families

import foreman
from foreman.job import TERMINAL
from foreman.ollama.fake import default_models
from foreman.test.harness import House, chat, eventually, house, unhurried

OPERATIONS = Path(foreman.__file__).parent.parent / "docs" / "operations.md"


async def figures(here: House) -> dict[tuple[Any, ...], float]:
    """Every sample by its name and its labels' values, in the order of the labels' names."""
    client = await here.ask("GET", "/metrics")
    assert client.head is not None
    assert client.head[0] == 200
    assert client.head[1]["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(client.body.decode())
        for sample in family.samples
    }


@pytest_twisted.ensureDeferred
async def test_a_job_is_counted_once_it_has_ended() -> None:
    """A finished job is counted with its model, its tokens and the length of each of its stages."""
    async with house(models=default_models(load_time=0.2, token_rate=500.0)) as here:
        client = await here.ask("POST", "/api/chat", chat("TINY-A"))
        last = json.loads(client.body.splitlines()[-1])
        await eventually(lambda: here.foreman._store.backlog.running == 0)
        [row] = await here.rows()
        now = await figures(here)
        assert now["foreman_jobs_ended_total", "tiny-a:latest", "done"] == 1
        assert now["foreman_prompt_tokens_total", "tiny-a:latest"] == last["prompt_eval_count"]
        assert now["foreman_output_tokens_total", "tiny-a:latest"] == last["eval_count"]
        assert now["foreman_output_timed_tokens_total", "tiny-a:latest"] == last["eval_count"]
        assert now["foreman_output_seconds_total", "tiny-a:latest"] == round(last["eval_duration"] / 1e6) / 1000
        assert now["foreman_swaps_total",] == 1
        for stage, since, until in (
            ("queue", "created_at", "loading_at"),
            ("load", "loading_at", "working_at"),
            ("first_token", "working_at", "first_byte_at"),
            ("run", "working_at", "completed_at"),
        ):
            assert now[f"foreman_job_{stage}_seconds_count",] == 1
            assert now[f"foreman_job_{stage}_seconds_sum",] == (row[until] - row[since]) / 1000
        assert now["foreman_job_load_seconds_bucket", "0.1"] == 0
        assert now["foreman_job_load_seconds_bucket", "86400.0"] == 1


@pytest_twisted.ensureDeferred
async def test_the_speed_is_of_answers_that_tell_it() -> None:
    """What comes by `/v1` counts as tokens, but not for the speed: such an answer does not say how long it took."""
    async with house(models=default_models(token_rate=500.0)) as here:
        client = await here.ask("POST", "/v1/chat/completions", chat("tiny-a"))
        await eventually(lambda: here.foreman._store.backlog.running == 0)
        now = await figures(here)
        assert now["foreman_output_tokens_total", "tiny-a:latest"] == client.document["usage"]["completion_tokens"]
        assert now["foreman_output_seconds_total", "tiny-a:latest"] == 0
        assert now["foreman_output_timed_tokens_total", "tiny-a:latest"] == 0


@pytest_twisted.ensureDeferred
async def test_the_swaps_that_were_saved() -> None:
    """Of eight jobs of three models, mixed as they come, four loads are saved; the embedder's do not count."""
    models = default_models(token_rate=500.0)
    async with house({"EMBED_MODEL": "tiny-embed"}, models=models, slots=2) as here:
        await here.ask("POST", "/queue/pause", {"for": "1m"})
        for model in ("tiny-a", "tiny-b", "tiny-a", "tiny-a", "tiny-think", "tiny-a", "tiny-b", "tiny-think"):
            await here.ask("POST", "/jobs", chat(model))
            await here.ask("POST", "/jobs", {"model": "tiny-embed", "input": "x", "endpoint": "/api/embed"})
        assert (await figures(here))["foreman_arrival_swaps_total",] == 0
        await here.ask("POST", "/queue/resume")
        await eventually(lambda: here.foreman._store.backlog.queued + here.foreman._store.backlog.running == 0)
        now = await figures(here)
        assert now["foreman_swaps_total",] == 3
        assert now["foreman_arrival_swaps_total",] == 7


@pytest_twisted.ensureDeferred
async def test_counts_begin_at_zero() -> None:
    """Before a model's first job its counts are there: Prometheus sees no increase in a count that appears."""
    async with house() as here:
        now = await figures(here)
        ended = [now["foreman_jobs_ended_total", name, end] for name in ("tiny-a:latest", "other") for end in TERMINAL]
        assert ended == [0, 0, 0, 0]
        counted = ("prompt_tokens", "output_tokens", "output_timed_tokens", "output_seconds")
        assert [now[f"foreman_{what}_total", "tiny-a:latest"] for what in counted] == [0, 0, 0, 0]


@pytest_twisted.ensureDeferred
async def test_jobs_that_nobody_worked_on_are_counted_too() -> None:
    """A client that leaves the queue makes a failed job, whose stages nobody can measure."""
    async with house(models=default_models(token_rate=20.0)) as here:
        running = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: running.head)
        with unhurried(here.fake):
            waiting = await here.send("POST", "/api/chat", chat("tiny-b"))
            await eventually(lambda: here.foreman._store.backlog.queued)
            now = await figures(here)
            assert now["foreman_sync_callers",] == 2
            waiting.leave()
            await eventually(lambda: not here.foreman._store.backlog.queued)
            now = await figures(here)
            assert now["foreman_jobs_running",] == 1
            assert now["foreman_jobs_ended_total", "tiny-b:latest", "failed"] == 1
            assert now["foreman_job_queue_seconds_count",] == 0
            running.leave()
        await eventually(lambda: here.foreman._store.backlog.running == 0)
        now = await figures(here)
        assert now["foreman_jobs_ended_total", "tiny-a:latest", "failed"] == 1
        assert now["foreman_job_run_seconds_count",] == 1
        assert now["foreman_sync_callers",] == 0


@pytest_twisted.ensureDeferred
async def test_an_earlier_try_is_not_measured() -> None:
    """Of a job that was picked, put back and left by its client, no stage is measured: it did not end at the target."""
    async with house() as here:
        here.foreman._tick.stop()  # or the client would be refused within a second
        with unhurried(here.fake):
            client = await here.send("POST", "/api/chat", chat("tiny-a"))
            await eventually(lambda: here.fake.scheduler.loading)
            await here.ask("POST", "/queue/pause", {"for": "1m"})
        await eventually(lambda: here.foreman._store.backlog.queued)
        client.leave()
        await eventually(lambda: not here.foreman._store.backlog.queued)
        now = await figures(here)
        assert now["foreman_jobs_ended_total", "tiny-a:latest", "failed"] == 1
        assert now["foreman_job_queue_seconds_count",] == 0


@pytest_twisted.ensureDeferred
async def test_callers_cannot_make_labels() -> None:
    """Names that the target does not have are counted together, so nobody can fill the monitoring's disk."""
    async with house(models=default_models(token_rate=20.0)) as here:
        running = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: running.head)
        spellings = [chat(name) for name in ("tiny-b", "TINY-B", "library/tiny-b:latest")]
        unreadable = b'{"model": "tiny-a", "mess'
        with unhurried(here.fake):
            callers = [running, *[await here.send("POST", "/api/chat", body) for body in (unreadable, *spellings)]]
            await eventually(lambda: here.foreman._store.backlog.queued == 4)
            now = await figures(here)
            depth = {labels[0]: value for (name, *labels), value in now.items() if name == "foreman_queue_depth"}
            assert depth == {"tiny-b:latest": 3, "other": 1}
            for client in callers:
                client.leave()
        await eventually(lambda: here.foreman._store.backlog.queued + here.foreman._store.backlog.running == 0)
        ended = {
            labels[0]: value
            for (name, *labels), value in (await figures(here)).items()
            if name == "foreman_jobs_ended_total" and value
        }
        assert ended == {"tiny-a:latest": 1, "tiny-b:latest": 3, "other": 1}


@pytest_twisted.ensureDeferred
async def test_the_state_of_the_target_and_of_foreman() -> None:
    """The target's state, its polls and bytes, commits and the pause can be watched."""
    async with house() as here:
        before = await figures(here)
        assert [before["foreman_target_state", state] for state in ("up", "down", "wedged")] == [1, 0, 0]
        assert before["foreman_polls_total", "answered"] >= 1
        assert before["foreman_polls_total", "failed"] == 0
        assert before["foreman_commit_seconds_count",] > 0
        assert before["foreman_paused",] == 0
        assert before["foreman_store_writable",] == 1
        await here.ask("GET", "/api/tags")
        await here.ask("POST", "/queue/pause", {"for": "1m"})
        here.foreman._inventory.wedged = True
        here.foreman._tick.stop()  # or the store would try again within a second
        here.foreman._store.writable = False
        after = await figures(here)
        assert after["foreman_target_bytes_total",] > before["foreman_target_bytes_total",]
        assert [after["foreman_target_state", state] for state in ("up", "down", "wedged")] == [0, 0, 1]
        assert after["foreman_paused",] == 1
        assert after["foreman_store_writable",] == 0
        here.foreman._tick.start()
        await here.fake.refuse()
        await here.foreman._inventory.refresh()
        last = await figures(here)
        assert [last["foreman_target_state", state] for state in ("up", "down", "wedged")] == [0, 1, 0]
        assert last["foreman_polls_total", "failed"] == 1


@pytest_twisted.ensureDeferred
async def test_the_oldest_wait() -> None:
    """The oldest wait is that of `/healthz`."""
    async with house() as here:
        here.foreman._tick.stop()
        now = here.foreman._health.now_ms()
        here.foreman._health.now_ms = lambda: now
        here.foreman._health._oldest = now - 5_500
        assert (await figures(here))["foreman_queue_oldest_seconds",] == 5
        here.foreman._tick.start()


@pytest_twisted.ensureDeferred
async def test_every_figure_is_documented_and_every_documented_one_exists() -> None:
    """The table in docs/operations.md is complete and has nothing that is not there."""
    async with house() as here:
        await here.ask("POST", "/api/chat", chat("tiny-a"))
        text = (await here.ask("GET", "/metrics")).body.decode()
    given = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    documented = set(re.findall(r"^\| `(foreman_\w+)", OPERATIONS.read_text(), re.MULTILINE))
    if not any(name.startswith("foreman_process_") for name in given):  # not on every system
        documented = {name for name in documented if not name.startswith("foreman_process_")}
    assert given == documented
    assert all(name.startswith("foreman_") for name in given)
