"""`/jobs` over loopback: submitting, repeating, looking, waiting, cancelling and deleting."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import LoopingCall, deferLater

from foreman.ollama.fake import default_models
from foreman.test.harness import House, RawClient, chat, eventually, house, reactor, request_bytes, unhurried
from foreman.web import submissions

SLOW = default_models(token_rate=20.0)
NDJSON = {"Content-Type": "application/x-ndjson"}


async def submit(here: House, document: Any, **headers: str) -> RawClient:
    """Submit one job."""
    return await here.ask("POST", "/jobs", document, headers=headers)


async def job(here: House, job_id: str, query: str = "") -> Any:
    """The document of a job."""
    answer = await here.ask("GET", f"/jobs/{job_id}{query}")
    assert answer.head is not None
    assert answer.head[0] == 200, answer.body
    return answer.document


def status(client: RawClient) -> int:
    """The status of an answer."""
    assert client.head is not None
    return client.head[0]


def lines(*documents: Any) -> bytes:
    """A batch."""
    return b"".join(json.dumps(document).encode() + b"\n" for document in documents)


async def pause(here: House) -> None:
    """Have jobs wait."""
    assert status(await here.ask("POST", "/queue/pause", {"for": "1h"})) == 200


# -- submitting --------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_job_is_taken_and_its_result_is_read_later() -> None:
    """A job id at once; later the native answer, the texts, the receipt."""
    async with house() as here:
        answer = await submit(here, {**chat("tiny-a"), "metadata": {"ticket": [1, 2.5]}})
        taken = answer.document
        assert status(answer) == 202
        assert set(taken) == {"job_id", "state", "position", "swaps_ahead", "eta_seconds"}
        assert (taken["state"], taken["position"], taken["eta_seconds"]) == ("queued", 1, None)
        assert answer.head is not None
        assert answer.head[1]["location"] == f"/jobs/{taken['job_id']}"
        done = await job(here, taken["job_id"], "?wait=10")
        native = (await here.ask("POST", "/api/chat", chat("tiny-a", stream=False))).document
        assert done["result"]["message"] == native["message"]
        assert set(done) == {
            *("job_id", "state", "sync", "model", "endpoint", "attempt", "failures", "max_attempts", "created_at"),
            *("started_at", "completed_at", "error", "result", "artifacts", "metadata", "webhook", "timings"),
        }
        assert (done["state"], done["sync"], done["attempt"], done["failures"]) == ("done", False, 1, 0)
        assert (done["metadata"], done["webhook"], done["error"]) == ({"ticket": [1, 2.5]}, None, None)
        completion, content = done["artifacts"]
        assert (completion["name"], content["name"]) == ("completion", "content")
        assert json.loads(completion["inline"]) == done["result"]
        assert content["inline"] == native["message"]["content"]
        assert done["timings"]["output_tokens"] == native["eval_count"]


@pytest_twisted.ensureDeferred
async def test_a_large_result_is_not_in_the_document() -> None:
    """A result over the inline limit is null there, and its URL tells where it is."""
    async with house({"ARTIFACT_INLINE_MAX": "100"}) as here:
        done = (await submit(here, chat("tiny-a"), Prefer="wait=10")).document
        assert done["result"] is None
        assert [artifact["inline"] for artifact in done["artifacts"]] == [None, None]
        blob = await here.ask("GET", done["artifacts"][0]["url"])
        assert blob.document["done"] is True


@pytest_twisted.ensureDeferred
async def test_prefer_wait_gives_the_finished_job() -> None:
    """Whoever waits long enough gets `200` and the job; who does not gets `202` and comes again."""
    async with house(models=SLOW) as here:
        with unhurried(here.fake):
            short = await submit(here, chat("tiny-a"), Prefer="wait=0.05")
        assert (status(short), short.document["state"] in ("queued", "loading", "working")) == (202, True)
        enough = await submit(here, chat("tiny-a", options={"num_predict": 1}), Prefer="wait=10")
        assert (status(enough), enough.document["state"]) == (200, "done")


@pytest_twisted.ensureDeferred
async def test_an_unknown_model_is_refused_in_ollamas_words() -> None:
    """A model the target has not is `404` as Ollama says it, and nothing is stored."""
    async with house() as here:
        native = await here.ask("POST", "/api/chat", chat("nope"))
        answer = await submit(here, chat("nope"))
        assert (status(answer), answer.document) == (404, native.document)
        assert await here.rows() == []


@pytest_twisted.ensureDeferred
async def test_any_model_is_taken_while_the_target_is_down() -> None:
    """While the laptop sleeps nobody can say what it has: the job is taken, and judged when it runs."""
    async with house() as here:
        here.fake.sleep()
        here.foreman._inventory.unreachable(OSError("asleep"))
        answer = await submit(here, chat("nope"))
        assert status(answer) == 202
        here.fake.wake()
        failed = await job(here, answer.document["job_id"], "?wait=15")
        assert (failed["state"], failed["error"]["code"]) == ("failed", "model_not_found")


@pytest_twisted.ensureDeferred
async def test_too_large_is_413() -> None:
    """A body over FOREMAN_MAX_BODY is refused as such."""
    async with house({"MAX_BODY": "1000"}) as here:
        answer = await submit(here, chat("tiny-a", "x" * 2000))
        assert status(answer) == 413
        assert await here.rows() == []


@pytest_twisted.ensureDeferred
async def test_a_full_queue_is_503_with_retry_after() -> None:
    """When FOREMAN_MAX_QUEUE jobs wait the next is told to come again, and nothing of it is stored."""
    async with house({"MAX_QUEUE": "2"}) as here:
        await pause(here)
        first = await submit(here, chat("tiny-a"), **{"Idempotency-Key": "one"})
        both = await here.ask("POST", "/jobs", lines(chat("tiny-a"), chat("tiny-a")), headers=NDJSON)
        assert status(both) == 503
        assert both.head is not None
        assert int(both.head[1]["retry-after"]) > 0
        assert len(await here.rows()) == 1
        assert status(await submit(here, chat("tiny-a"))) == 202
        assert status(await submit(here, chat("tiny-a"))) == 503
        repeat = await submit(here, chat("tiny-a"), **{"Idempotency-Key": "one"})
        assert (status(repeat), repeat.document["job_id"]) == (200, first.document["job_id"])


@pytest_twisted.ensureDeferred
async def test_jobs_are_taken_while_paused() -> None:
    """A paused foreman takes jobs all the same, with `respond-async` too; they run when it goes on."""
    async with house() as here:
        await pause(here)
        taken = (await submit(here, chat("tiny-a"))).document
        other = await here.ask("POST", "/api/chat", chat("tiny-a"), headers={"Prefer": "respond-async"})
        assert status(other) == 202
        waiting = await job(here, taken["job_id"], "?wait=0.1")
        assert (waiting["state"], waiting["position"], waiting["eta_seconds"]) == ("queued", 1, None)
        await here.ask("POST", "/queue/resume")
        assert (await job(here, other.document["job_id"], "?wait=10"))["state"] == "done"


@pytest_twisted.ensureDeferred
async def test_a_webhook_that_the_policy_refuses_is_refused() -> None:
    """With FOREMAN_WEBHOOK_ALLOW only what it names may be told."""
    async with house({"WEBHOOK_ALLOW": "hooks.example"}) as here:
        answer = await submit(here, {**chat("tiny-a"), "state_webhook_url": "http://other.example/"})
        assert status(answer) == 400
        assert answer.document["error"].startswith("state_webhook_url: other.example is not in")
        await pause(here)
        taken = await submit(here, {**chat("tiny-a"), "state_webhook_url": "http://hooks.example/"})
        webhook = (await job(here, taken.document["job_id"]))["webhook"]
        assert webhook == {
            "url": "http://hooks.example/",
            "pending": 1,
            "delivered": 0,
            "exhausted": 0,
            "superseded": 0,
            "gone": 0,
        }


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_batch_is_taken_in_its_order() -> None:
    """One job a line; the ids come in the order of the lines."""
    async with house() as here:
        await pause(here)
        batch = lines(*(chat(f"tiny-{letter}") for letter in "aba"))
        answer = await here.ask("POST", "/jobs", batch, headers=NDJSON)
        assert status(answer) == 202
        rows = await here.rows()
        assert [row["model"] for row in rows] == ["tiny-a", "tiny-b", "tiny-a"]
        assert answer.document == {"jobs": [{"job_id": row["id"], "state": "queued"} for row in rows]}


@pytest_twisted.ensureDeferred
async def test_of_a_bad_batch_nothing_is_taken() -> None:
    """Every bad line is named, the unknown models too, and no line is accepted."""
    async with house() as here:
        body = lines(chat("tiny-a"), chat("nope"), {}, chat("tiny-a")) + b"{bad\n"
        polls = here.foreman._inventory.polls_answered
        answer = await here.ask("POST", "/jobs", body, headers=NDJSON)
        assert status(answer) == 400
        assert answer.document["error"] == "3 of 5 lines cannot be accepted, so none was"
        assert [fault["line"] for fault in answer.document["lines"]] == [2, 3, 5]
        assert answer.document["lines"][0]["error"] == "model 'nope' not found"
        assert answer.document["lines"][1]["error"] == "model: missing"
        assert await here.rows() == []
        assert here.foreman._inventory.polls_answered == polls + 1


@pytest_twisted.ensureDeferred
async def test_a_large_batch_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """While ten thousand jobs are read, others have their turn every hundred lines, and are answered."""
    lines_in = [0]  # each turn of the reactor
    asked_at, answered_at = 0, 0  # lines read by then
    read = submissions.read

    def counted(*arguments: Any) -> submissions.Draft:
        lines_in[-1] += 1
        return read(*arguments)

    monkeypatch.setattr(submissions, "read", counted)
    async with house() as here:
        await pause(here)
        other = await here.send("GET", "/healthz")
        await eventually(lambda: other.ended)
        other.received.clear()

        def turn() -> None:
            nonlocal asked_at, answered_at
            if not asked_at and (asked_at := sum(lines_in)):
                assert other.transport is not None
                other.transport.write(request_bytes("GET", "/healthz"))
            elif asked_at and not answered_at and other.ended:
                answered_at = sum(lines_in)
            lines_in.append(0)

        turns = LoopingCall(turn)
        turning = turns.start(0)
        sending = await here.send("POST", "/jobs", lines(chat("tiny-a")) * 10_000, headers=NDJSON)
        await eventually(lambda: sending.ended, within=60)
        turns.stop()
        await turning
        assert max(lines_in) <= 100
        assert 0 < asked_at < answered_at < 10_000
        assert status(sending) == 202
        assert len(sending.document["jobs"]) == 10_000
        for client in (sending, other):
            client.leave()
            await client.closed


# -- repeating ---------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_repeated_request_is_the_same_job() -> None:
    """Same key and request: the same id, `200`, the current state.  Another request: `422`.  After `DELETE`: `410`."""
    async with house() as here:
        key = {"Idempotency-Key": "k-1"}
        first = await submit(here, chat("tiny-a"), **key)
        job_id = first.document["job_id"]
        await job(here, job_id, "?wait=10")
        again = await submit(here, chat("tiny-a"), **key)
        assert (status(again), again.document) == (200, {"job_id": job_id, "state": "done"})
        waited = await submit(here, chat("tiny-a"), **key, Prefer="wait=5")
        assert (status(waited), waited.document["result"]["done"]) == (200, True)
        other = await submit(here, chat("tiny-b"), **key)
        assert status(other) == 422
        assert len(await here.rows()) == 1
        assert status(await here.ask("DELETE", f"/jobs/{job_id}")) == 204
        assert status(await submit(here, chat("tiny-a"), **key)) == 410


@pytest_twisted.ensureDeferred
async def test_a_repeat_is_answered_though_its_model_is_gone() -> None:
    """What was accepted once is not judged again."""
    async with house() as here:
        key = {"Idempotency-Key": "k-2"}
        first = await submit(here, chat("tiny-a"), **key)
        await job(here, first.document["job_id"], "?wait=10")
        del here.fake.models["tiny-a:latest"]
        await here.foreman._inventory.refresh()
        assert status(await submit(here, chat("tiny-a"))) == 404
        again = await submit(here, chat("tiny-a"), **key)
        assert (status(again), again.document["job_id"]) == (200, first.document["job_id"])


@pytest_twisted.ensureDeferred
async def test_batches_can_be_repeated() -> None:
    """A batch whose answer was lost is sent again, and costs nothing."""
    async with house() as here:
        await pause(here)
        headers = {**NDJSON, "Idempotency-Key": "k-3"}
        first = await here.ask("POST", "/jobs", lines(chat("tiny-a"), chat("tiny-b")), headers=headers)
        again = await here.ask("POST", "/jobs", lines(chat("tiny-a"), chat("tiny-b")), headers=headers)
        assert (status(first), status(again)) == (202, 200)
        assert first.document == again.document
        [gone, _] = first.document["jobs"]
        await here.ask("DELETE", f"/jobs/{gone['job_id']}")
        third = await here.ask("POST", "/jobs", lines(chat("tiny-a"), chat("tiny-b")), headers=headers)
        assert [each["state"] for each in third.document["jobs"]] == [None, "queued"]


@pytest_twisted.ensureDeferred
async def test_a_refused_request_leaves_its_key_free() -> None:
    """A request that was wrong can be put right under the same key."""
    async with house() as here:
        key = {"Idempotency-Key": "k-4"}
        assert status(await submit(here, {}, **key)) == 400
        assert status(await submit(here, chat("tiny-a"), **key)) == 202


# -- looking -----------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_list_is_newest_first_in_pages() -> None:
    """Pages follow one another by cursor; filters hold by state and by model in any spelling; sync calls are listed."""
    async with house() as here:
        await here.ask("POST", "/api/chat", chat("tiny-b"))
        await pause(here)
        batch = lines(*[chat("tiny-a"), chat("TINY-B:latest")] * 3)
        ids = [each["job_id"] for each in (await here.ask("POST", "/jobs", batch, headers=NDJSON)).document["jobs"]]
        found: list[str] = []
        after = ""
        while True:
            page = (await here.ask("GET", f"/jobs?limit=3{after}")).document
            found += [each["job_id"] for each in page["jobs"]]
            if page["next"] is None:
                break
            after = f"&after={page['next']}"
        assert found[:6] == ids[::-1]
        assert len(found) == 7
        sync = (await here.ask("GET", "/jobs?state=done")).document["jobs"]
        assert [(each["job_id"], each["sync"]) for each in sync] == [(found[6], True)]
        assert "result" not in sync[0]
        queued = (await here.ask("GET", "/jobs?model=tiny-b&state=queued&limit=9999")).document["jobs"]
        assert [each["job_id"] for each in queued] == [ids[5], ids[3], ids[1]]


@pytest.mark.parametrize("query", ["state=ready", "limit=0", "limit=x", "limit=-1", "limit=1.5"])
@pytest_twisted.ensureDeferred
async def test_a_mistyped_filter_is_refused(query: str) -> None:
    """A filter that cannot be is `400` with its name, not an empty list."""
    async with house(wait=False) as here:
        answer = await here.ask("GET", f"/jobs?{query}")
        assert status(answer) == 400
        assert answer.document["error"].startswith(query.partition("=")[0] + ":")


@pytest_twisted.ensureDeferred
async def test_many_wait_for_one_job_without_asking() -> None:
    """Long polls wake with the commit, all of them, and read the job a few times only."""
    async with house() as here:
        await pause(here)
        job_id = (await submit(here, chat("tiny-a"))).document["job_id"]
        reads = []
        read = here.foreman._archive.record
        here.foreman._archive.record = lambda name: reads.append(name) or read(name)  # type: ignore[method-assign, assignment, func-returns-value]
        polls = [await here.send("GET", f"/jobs/{job_id}", headers={"Prefer": "wait=20"}) for _ in range(20)]
        await eventually(lambda: len(reads) == 20)
        await deferLater(reactor, 0.3)
        assert len(reads) == 20
        await here.ask("POST", "/queue/resume")
        await eventually(lambda: all(poll.ended for poll in polls))
        assert {poll.document["state"] for poll in polls} == {"done"}
        for poll in polls:
            poll.leave()
            await poll.closed


@pytest_twisted.ensureDeferred
async def test_who_leaves_while_waiting_leaves_nothing_behind() -> None:
    """A client that hangs up during its long poll costs nothing from then on."""
    async with house() as here:
        await pause(here)
        job_id = (await submit(here, chat("tiny-a"))).document["job_id"]
        lookout = here.foreman._jobs.lookout
        poll = await here.send("GET", f"/jobs/{job_id}?wait=60")
        await eventually(lambda: lookout._waiting)
        poll.leave()
        await poll.closed
        await eventually(lambda: not lookout._waiting)


@pytest_twisted.ensureDeferred
async def test_the_history_of_a_job() -> None:
    """Every transition is there with its time."""
    async with house() as here:
        job_id = (await submit(here, chat("tiny-a"), Prefer="wait=10")).document["job_id"]
        past = (await here.ask("GET", f"/jobs/{job_id}/events")).document
        assert [event["state"] for event in past["events"]] == ["queued", "loading", "working", "done"]
        assert [event["previous_state"] for event in past["events"]] == [None, "queued", "loading", "working"]
        assert [event["sequence"] for event in past["events"]] == [1, 2, 3, 4]
        assert {event["delivery"] for event in past["events"]} == {None}
        assert past["deliveries"] == []


MISSING = [
    ("GET", ""),
    ("DELETE", ""),
    ("GET", "/events"),
    ("GET", "/stream"),
    ("HEAD", "/stream"),
    ("GET", "/artifacts/completion"),
    ("POST", "/cancel"),
    ("POST", "/redeliver"),
    ("GET", "?wait=5"),
    ("GET", "/nothing"),
]


@pytest_twisted.ensureDeferred
async def test_an_unknown_job_is_404() -> None:
    """Whatever is asked of a job that is not there, the answer is a JSON `404`, at once."""
    async with house(wait=False) as here:
        for method, below in MISSING:
            answer = await here.ask(method, f"/jobs/01ARZ3NDEKTSV4RRFFQ69G5FAV{below}")
            assert status(answer) == 404, (method, below)
            assert answer.head is not None
            assert answer.head[1]["content-type"].startswith("application/json")


# -- changing ----------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_cancelling() -> None:
    """A queued and a working job fail as cancelled, whoever waits for them is told; one that is over is `409`."""
    async with house(models=SLOW) as here:
        works = (await submit(here, chat("tiny-a"))).document["job_id"]
        waits = (await submit(here, chat("tiny-b"))).document["job_id"]
        await eventually(lambda: here.fake.requests and here.fake.requests[-1].path == "/api/chat")
        with unhurried(here.fake):
            poll = await here.send("GET", f"/jobs/{waits}?wait=20")
            for job_id in (waits, works):
                answer = await here.ask("POST", f"/jobs/{job_id}/cancel")
                assert status(answer) == 200
                assert (answer.document["state"], answer.document["error"]["code"]) == ("failed", "cancelled")
                assert status(await here.ask("POST", f"/jobs/{job_id}/cancel")) == 409
            await eventually(lambda: poll.ended)
        assert poll.document["error"]["code"] == "cancelled"
        poll.leave()
        await poll.closed


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest_twisted.ensureDeferred
async def test_who_waits_for_a_cancelled_sync_call_is_told(method: str) -> None:
    """A sync call that somebody cancels or deletes in the queue is answered at once; it would wait for ever."""
    async with house(models=SLOW) as here:
        first = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: here.fake.requests and here.fake.requests[-1].path == "/api/chat")
        with unhurried(here.fake):
            call = await here.send("POST", "/api/chat", chat("tiny-b"))
            while len(rows := await here.rows()) < 2:
                pass
            answer = await here.ask(method, f"/jobs/{rows[1]['id']}" + ("/cancel" if method == "POST" else ""))
            assert status(answer) in (200, 204)
            await eventually(lambda: call.ended)
        assert (status(call), call.document["error"][:8]) == (502, "The job ")
        for client in (first, call):
            client.leave()
            await client.closed


@pytest_twisted.ensureDeferred
async def test_deleting() -> None:
    """`DELETE` cancels a running job if needed and leaves nothing of it."""
    async with house(models=SLOW) as here:
        job_id = (await submit(here, chat("tiny-a"))).document["job_id"]
        await eventually(lambda: here.fake.requests and here.fake.requests[-1].path == "/api/chat")
        with unhurried(here.fake):
            poll = await here.send("GET", f"/jobs/{job_id}?wait=20")
            answer = await here.ask("DELETE", f"/jobs/{job_id}")
            assert (status(answer), answer.body) == (204, b"")
            await eventually(lambda: poll.ended)
        assert status(poll) == 404
        assert await here.rows() == []
        poll.leave()
        await poll.closed


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_redelivered() -> None:
    """A job without a webhook, and one that is not over, have no final event to send: `409`."""
    async with house() as here:
        plain = (await submit(here, chat("tiny-a"), Prefer="wait=10")).document["job_id"]
        await pause(here)
        told = {**chat("tiny-a"), "state_webhook_url": "http://127.0.0.1:1/"}
        waiting = (await submit(here, told)).document["job_id"]
        answers = [await here.ask("POST", f"/jobs/{job_id}/redeliver") for job_id in (plain, waiting)]
        assert [(status(each), each.document["error"]) for each in answers] == [
            (409, "the job has no webhook"),
            (409, "the job is not over"),
        ]


@pytest_twisted.ensureDeferred
async def test_waiting_ends_when_foreman_stops() -> None:
    """A stop is not held up by long polls: they are told how the job is; whoever comes now gets `503`."""
    async with house() as here:
        await pause(here)
        job_id = (await submit(here, chat("tiny-a"))).document["job_id"]
        poll = await here.send("GET", f"/jobs/{job_id}?wait=60")
        follower = await here.send("GET", f"/jobs/{job_id}/stream")
        await eventually(lambda: follower.head)
        late = await here.send("GET", "/healthz")
        await eventually(lambda: late.ended)
        here.foreman._jobs.stop()
        await eventually(lambda: poll.ended and follower.ended)
        assert poll.document["state"] == "queued"
        assert follower.document == {"error": "foreman is stopping"}
        assert status(await here.ask("GET", f"/jobs/{job_id}")) == 503
        for client in (poll, follower, late):
            client.leave()
            await client.closed
