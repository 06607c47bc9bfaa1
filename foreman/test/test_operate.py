"""What operators see of a running foreman, and what their orders must look like."""

from __future__ import annotations

import re
import threading
from functools import partial
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from foreman import __version__
from foreman.errors import TargetError
from foreman.ollama.fake import default_models
from foreman.test.harness import House, RawClient, chat, eventually, house, unhurried
from foreman.test.test_sync_calls import generations
from foreman.web.errors import BadRequest
from foreman.web.operate import PauseOrder, read_pause

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
SLOW = default_models(token_rate=20.0)


async def health(here: House, **headers: str) -> dict[str, Any]:
    """The document of `/healthz`."""
    document: dict[str, Any] = (await here.ask("GET", "/healthz", headers=headers)).document
    return document


def status(client: RawClient) -> int:
    """The answer's status."""
    assert client.head is not None
    return client.head[0]


def waiting(here: House, count: int) -> bool:
    """Whether so many jobs wait."""
    return here.foreman._store.backlog.queued == count


# -- /healthz ----------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_healthz_tells_how_everything_is() -> None:
    """`/healthz` has exactly the promised fields, with what is true."""
    async with house({"EMBED_MODEL": "tiny-embed"}) as here:
        await here.ask("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: here.foreman._inventory.last_poll)
        document = await health(here)
        assert MOMENT.fullmatch(document["target"].pop("last_poll"))
        assert isinstance(document.pop("uptime_s"), int)
        assert document == {
            "status": "ok",
            "degraded": False,
            "version": __version__,
            "target": {
                "state": "up",
                "url": here.fake.url,
                "version": here.foreman._inventory.version,
                "last_error": None,
                "resident": "tiny-a",
                "embedder": "tiny-embed",
            },
            "queue": {"queued": 0, "running": 0, "oldest_s": 0, "paused": False},
            "webhooks": {"pending": 0, "exhausted": 0},
            "warnings": [],
        }


@pytest_twisted.ensureDeferred
async def test_healthz_before_the_first_poll() -> None:
    """A target that has never answered is down, was never polled, and is warned of; why is told."""
    async with house({"OLLAMA_URL": "http://127.0.0.1:9"}, wait=False) as here:
        await eventually(lambda: here.foreman._inventory.last_error)
        document = await health(here)
        assert document["degraded"] is True
        assert (document["target"]["state"], document["target"]["last_poll"]) == ("down", None)
        assert "refused" in document["target"]["last_error"]
        assert document["warnings"] == ["the target is down"]


@pytest_twisted.ensureDeferred
async def test_strangers_learn_no_names() -> None:
    """With a token set, who does not bring it sees neither the target's address nor a model's name."""
    async with house({"TOKEN": "sesame", "EMBED_MODEL": "tiny-embed"}) as here:
        bearer = {"Authorization": "Bearer sesame"}
        await here.ask("POST", "/api/chat", chat("tiny-a"), headers=bearer)
        here.foreman._inventory.last_error = f"cannot connect to {here.fake.url}"
        here.foreman._health.warnings_from.append(lambda: ["tiny-a runs on the CPU"])
        stranger = await here.ask("GET", "/healthz")
        assert status(stranger) == 200
        assert b"tiny" not in stranger.body
        assert b"127.0.0.1" not in stranger.body
        assert set(stranger.document["target"]) == {"state", "version", "last_poll"}
        assert stranger.document["warnings"] == ["1 more, told to those who bring the token"]
        full = await health(here, **bearer)
        assert full["target"]["url"] == here.fake.url
        assert full["target"]["resident"] == "tiny-a"
        assert full["warnings"] == ["tiny-a runs on the CPU"]


@pytest_twisted.ensureDeferred
async def test_healthz_warns() -> None:
    """A job that has waited for more than an hour, a store that cannot write and whatever a room adds are warned of."""
    async with house() as here:
        foreman = here.foreman
        foreman._tick.stop()  # which would find out that the store can write
        now = foreman._health.now_ms()
        foreman._health.now_ms = lambda: now
        foreman._health._oldest = now - 3_601_000
        foreman._store.writable = False
        foreman._health.warnings_from.append(lambda: ["the roof leaks"])
        document = await health(here)
        assert document["warnings"] == [
            "the oldest job has waited for 3601 s",
            "the store cannot write",
            "the roof leaks",
        ]
        assert document["queue"]["oldest_s"] == 3601
        assert document["status"] == "ok"
        foreman._tick.start()


@pytest_twisted.ensureDeferred
async def test_a_disk_that_does_not_answer_is_tried_once() -> None:
    """Tries to write do not pile up behind one that hangs; after it comes the next."""
    async with house() as here:
        foreman = here.foreman
        foreman._tick.stop()
        tries: list[Deferred[None]] = []

        async def hang() -> None:
            tries.append(Deferred())
            await tries[-1]

        foreman._store.writable, foreman._store.try_writing = False, hang  # type: ignore[method-assign]
        for _ in range(3):
            foreman._beat(slept=False)
        assert len(tries) == 1
        tries[0].callback(None)
        foreman._beat(slept=False)
        assert len(tries) == 2
        tries[1].callback(None)
        foreman._tick.start()


@pytest_twisted.ensureDeferred
async def test_healthz_counts_the_wait_of_the_oldest() -> None:
    """`oldest_s` follows the queue, within a second or so."""
    async with house(models=SLOW) as here:
        running = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: running.head)
        with unhurried(here.fake):
            waiting = await here.send("POST", "/api/chat", chat("tiny-b"))
            await eventually(lambda: here.foreman._store.backlog.queued)
            document = await health(here)
            assert (document["queue"]["queued"], document["queue"]["running"]) == (1, 1)
            here.foreman._tick.beat()
            await eventually(lambda: here.foreman._health._oldest)
            [_, row] = await here.rows()
            assert here.foreman._health._oldest == row["created_at"]
            waiting.leave()
            await eventually(lambda: not here.foreman._store.backlog.queued)
            here.foreman._tick.beat()
            assert here.foreman._health.oldest_s == 0
        running.leave()


@pytest_twisted.ensureDeferred
async def test_nothing_is_waited_for() -> None:
    """`/healthz`, `/readyz` and `/metrics` answer while the database is stuck and the target is silent."""
    async with house() as here:
        here.fake.sleep()
        free = threading.Event()
        database = here.foreman._store._database
        stuck = [
            Deferred.fromCoroutine(database.read(lambda _: free.wait())),
            Deferred.fromCoroutine(database.write(lambda _: free.wait(), durable=False)),
        ]
        try:
            for path in ("/healthz", "/readyz", "/metrics"):
                assert status(await here.ask("GET", path)) == 200
            assert not any(work.called for work in stuck)
        finally:
            free.set()
            here.fake.wake()
            for work in stuck:
                await work


# -- /readyz -----------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_readyz_says_whether_calls_are_taken() -> None:
    """200 while foreman serves; 503 while it starts or stops, and while the store cannot write."""
    async with house() as here:
        assert status(await here.ask("GET", "/readyz")) == 200
        here.foreman._tick.stop()
        here.foreman._store.writable = False
        client = await here.ask("GET", "/readyz")
        assert (status(client), client.document) == (503, {"ready": False})
        here.foreman._store.writable = True
        here.foreman._readiness.ready = False
        assert status(await here.ask("GET", "/readyz")) == 503
        here.foreman._tick.start()


# -- methods and paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/queue"])
@pytest_twisted.ensureDeferred
async def test_head_works(path: str) -> None:
    """HEAD tells what GET would, without the body."""
    async with house() as here:
        get, head = await here.ask("GET", path), await here.ask("HEAD", path)
        assert get.head is not None
        assert head.head is not None
        assert head.head[0] == get.head[0] == 200
        assert head.head[1]["content-type"] == get.head[1]["content-type"]
        assert head.body == b""
        if path in ("/readyz", "/queue"):
            assert head.head[1]["content-length"] == str(len(get.body))


@pytest.mark.parametrize(
    ("method", "path", "expected", "allow"),
    [
        ("POST", "/healthz", 405, "GET, HEAD"),
        ("DELETE", "/queue", 405, "GET, HEAD"),
        ("GET", "/queue/pause", 405, "POST"),
        ("PUT", "/queue/resume", 405, "POST"),
        ("GET", "/queue/", 404, None),
        ("GET", "/queue/nothing", 404, None),
        ("POST", "/queue/pause/", 404, None),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_not_there(method: str, path: str, expected: int, allow: str | None) -> None:
    """Unknown paths and wrong methods are told in JSON; a 405 says what is allowed."""
    async with house() as here:
        client = await here.ask(method, path)
        assert client.head is not None
        assert client.head[0] == expected
        assert client.head[1].get("allow") == allow
        assert isinstance(client.document["error"], str)


@pytest.mark.parametrize(("method", "path"), [("GET", "/queue"), ("GET", "/metrics"), ("POST", "/queue/pause")])
@pytest_twisted.ensureDeferred
async def test_the_token_guards_the_rest(method: str, path: str) -> None:
    """With a token set, only `/healthz` and `/readyz` answer without it."""
    async with house({"TOKEN": "sesame"}) as here:
        assert status(await here.ask(method, path, {"for": "1s"})) == 401


# -- /queue ------------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_an_empty_queue() -> None:
    """With nothing to do every field is there."""
    async with house() as here:
        assert (await here.ask("GET", "/queue")).document == {
            "queued": 0,
            "paused": False,
            "paused_until": None,
            "unloaded": None,
            "models": [],
            "running": None,
            "next": [],
        }


@pytest_twisted.ensureDeferred
async def test_the_queue_tells_the_order_to_come() -> None:
    """`GET /queue` shows depth and wait by model, the running job, and the order in which the next will run."""
    async with house(models=SLOW) as here:
        clients = [await here.send("POST", "/api/chat", chat("tiny-a"))]
        await eventually(lambda: clients[0].head)
        with unhurried(here.fake):
            for place, model in enumerate(("tiny-b", "TINY-A", "tiny-c", "tiny-b:latest", "tiny-a"), start=1):
                clients.append(await here.send("POST", "/api/chat", chat(model)))
                await eventually(partial(waiting, here, place))
            document = (await here.ask("GET", "/queue")).document
            rows = await here.rows()
        running = document["running"]
        assert 0 <= running.pop("seconds") < 60
        assert running == {"job_id": rows[0]["id"], "model": "tiny-a", "state": "working", "attempt": 1}
        assert document["queued"] == 5
        by_model = {row["model"]: row for row in document["models"]}
        assert {name: row["queued"] for name, row in by_model.items()} == {
            "tiny-a:latest": 2,
            "tiny-b:latest": 2,
            "tiny-c:latest": 1,
        }
        assert all(0 <= row["oldest_s"] < 60 for row in document["models"])
        told = [(row["position"], row["model"]) for row in document["next"]]
        assert told == [(1, "TINY-A"), (2, "tiny-a"), (3, "tiny-b"), (4, "tiny-b:latest"), (5, "tiny-c")]
        by_id = {row["id"]: row["model"] for row in rows}
        assert [by_id[row["job_id"]] for row in document["next"]] == [model for _, model in told]
        assert all(0 <= row["waited_s"] < 60 for row in document["next"])
        await eventually(lambda: all(client.ended for client in clients))
        assert generations(here) == ["tiny-a", *(model for _, model in told)]
        for client in clients:
            client.leave()


@pytest_twisted.ensureDeferred
async def test_the_queue_tells_of_the_pause() -> None:
    """`GET /queue` shows whether foreman is paused, and until when; so do the answers to the orders themselves."""
    async with house() as here:
        paused = (await here.ask("POST", "/queue/pause", {"for": "30m"})).document
        assert paused["paused"] is True
        assert MOMENT.fullmatch(paused["paused_until"])
        queue = (await here.ask("GET", "/queue")).document
        assert {name: queue[name] for name in paused} == paused
        resumed = await here.ask("POST", "/queue/resume")
        assert (status(resumed), resumed.document) == (
            200,
            {"paused": False, "paused_until": None, "unloaded": None},
        )


# -- orders ------------------------------------------------------------------------------------------------------------


def test_good_orders() -> None:
    """`for` is a duration of at most seven days; `unload` is false unless it is said."""
    assert read_pause(b'{"for": "30m", "unload": true}') == PauseOrder(1800.0, unload=True)
    assert read_pause(b'{"for": "7d"}') == PauseOrder(7 * 86_400.0, unload=False)
    assert read_pause(b'{"for": "1h30m", "unload": false}') == PauseOrder(5400.0, unload=False)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"[]", "the body must be an object"),
        (b"{}", "for: missing"),
        (b'{"unload": true}', "for: missing"),
        (b'{"for": "soon"}', "for: must be a duration"),
        (b'{"for": 1800}', "for: must be a duration"),
        (b'{"for": null}', "for: must be a duration"),
        (b'{"for": "0"}', "for: must be a duration"),
        (b'{"for": "-5m"}', "for: must be a duration"),
        (b'{"for": "7d1s"}', "for: must be a duration such as 30m or 1h30m, at most 7d"),
        (b'{"for": "30m", "unload": "yes"}', "unload: must be true or false"),
        (b'{"for": "30m", "unlaod": true}', "unlaod: there is no such field"),
    ],
)
def test_bad_orders(body: bytes, text: str) -> None:
    """What is wrong with an order is told, with the place."""
    with pytest.raises(BadRequest, match=f"^{re.escape(text)}"):
        read_pause(body)


@pytest_twisted.ensureDeferred
async def test_a_bad_order_changes_nothing() -> None:
    """A bad order gets 400 in JSON, and foreman is not paused."""
    async with house() as here:
        client = await here.ask("POST", "/queue/pause", {"for": "8d"})
        assert status(client) == 400
        assert client.document["error"].startswith("for: ")
        assert not here.foreman._pause.active


@pytest_twisted.ensureDeferred
async def test_a_target_that_goes_down_is_seen() -> None:
    """When the target goes away `/healthz` is 200 and degraded, with the reason."""
    async with house() as here:
        here.foreman._tick.stop()  # which would find out that it is there
        here.foreman._inventory.unreachable(TargetError("no route to host"))
        client = await here.ask("GET", "/healthz")
        assert status(client) == 200
        assert client.document["degraded"] is True
        assert client.document["target"]["last_error"] == "no route to host"
