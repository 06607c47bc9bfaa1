"""The pause: the owner gets the machine back, and nothing that waits is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from foreman.errors import Unavailable, Unwritable
from foreman.ollama.fake import Fault, default_models
from foreman.test.harness import House, RawClient, chat, eventually, house, unhurried
from foreman.test.strategies import SteppedDatabase, start
from foreman.test.test_sync_calls import generations
from foreman.tick import Tick
from foreman.work import residency
from foreman.work.pause import UNLOAD_WAIT, Pause
from foreman.work.store import Store

HOUR_MS = 3_600_000


class Room:
    """A pause over a real file, with a clock that the test sets."""

    def __init__(self, path: Path, now: int = 0) -> None:
        self.now = now
        self.clock = Clock()
        self.tick = Tick(self.clock, lambda: 0.0)
        self.database = SteppedDatabase(path / "foreman.db")
        self.store = Store(self.database, lambda: self.now, 100, 3)
        self.run = self.database.finish
        self.run(self.store.start())
        self.pause = Pause(store=self.store, tick=self.tick, clock=self.clock, now_ms=lambda: self.now)
        self.changes: list[bool] = []
        self.pause.on_change.append(lambda: self.changes.append(self.pause.active))
        self.run(self.pause.start())

    def again(self, path: Path) -> Room:
        """The same after a restart."""
        self.pause.stop()
        self.run(self.store.stop())
        return Room(path, self.now)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    """A room in which nothing is paused."""
    return Room(tmp_path)


def test_a_pause_ends_by_itself(room: Room) -> None:
    """When the time is over foreman goes on, within a second."""
    assert not room.pause.active
    room.pause.check()
    assert room.run(room.pause.begin(3600, unload=False)) is None
    assert room.pause.active
    room.now = HOUR_MS - 1000
    room.tick.beat()
    with pytest.raises(Unavailable, match=r"paused until 1970-01-01T01:00:00\.000Z") as refused:
        room.pause.check()
    assert refused.value.retry_after == 1
    assert room.changes == [True]
    room.now = HOUR_MS
    assert not room.pause.active
    room.tick.beat()
    assert room.changes == [True, False]
    assert room.pause.until is None


def test_a_pause_survives_a_restart(room: Room, tmp_path: Path) -> None:
    """A pause goes on after a restart, to the moment that was promised."""
    room.run(room.pause.begin(3600, unload=False))
    room.now = HOUR_MS - 1
    room = room.again(tmp_path)
    assert room.pause.active
    assert room.pause.until == HOUR_MS
    room.now = HOUR_MS
    assert not room.again(tmp_path).pause.active


def test_resuming_survives_a_restart(room: Room, tmp_path: Path) -> None:
    """What was resumed stays so; resuming what is not paused does no harm."""
    room.run(room.pause.end())
    room.run(room.pause.begin(3600, unload=False))
    room.run(room.pause.end())
    assert room.changes == [False, True, False]
    assert not room.again(tmp_path).pause.active


def test_a_repeat_replaces_the_pause(room: Room) -> None:
    """Pausing again counts from now, longer or shorter."""
    room.run(room.pause.begin(3600, unload=False))
    room.now = 1000
    room.run(room.pause.begin(60, unload=False))
    assert room.pause.until == 61_000


def test_a_pause_that_cannot_be_kept_is_none(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the store cannot write nobody is told that foreman is paused."""

    async def full(*_args: object, **_more: object) -> None:
        raise Unwritable("disk full")

    monkeypatch.setattr(room.store, "keep", full)
    with pytest.raises(Unwritable):
        room.run(room.pause.begin(3600, unload=False))
    assert not room.pause.active


class Target:
    """A target that is being freed."""

    def __init__(self, pause: Pause) -> None:
        self.unloads: list[Deferred[bool]] = []
        pause.unload = self.unload

    def unload(self) -> Deferred[bool]:
        """Take note."""
        self.unloads.append(Deferred())
        return self.unloads[-1]


@pytest.mark.parametrize("success", [True, False])
def test_unloading_when_the_worker_is_at_rest(room: Room, tmp_path: Path, success: bool) -> None:
    """The answer tells whether the memory was seen free; it is freed once, not again after a restart."""
    target = Target(room.pause)
    begun = start(room.pause.begin(3600, unload=True))
    room.database.step()
    assert room.pause.active
    assert not begun.called
    freed = start(room.pause.free())
    target.unloads[0].callback(success)
    assert room.run(begun) is success
    room.run(freed)
    assert room.pause.unloaded is success
    room.run(room.pause.free())
    room = room.again(tmp_path)
    target = Target(room.pause)
    room.run(room.pause.free())
    assert target.unloads == []


def test_a_restart_before_the_unloading_forgets_nothing(room: Room, tmp_path: Path) -> None:
    """If foreman is restarted while the last job runs, the memory is freed afterwards."""
    start(room.pause.begin(3600, unload=True))
    room.database.step()
    room = room.again(tmp_path)
    target = Target(room.pause)
    start(room.pause.free())
    assert len(target.unloads) == 1


def test_an_answer_does_not_wait_for_a_long_job(room: Room) -> None:
    """If the last job goes on, the answer comes soon and says that it is not known yet."""
    begun = start(room.pause.begin(3600, unload=True))
    room.database.step()
    room.clock.advance(UNLOAD_WAIT)
    assert room.run(begun) is None


def test_unloading_stops_being_wanted(room: Room) -> None:
    """After a resume nothing is unloaded any more, and who waited is told that it was not."""
    target = Target(room.pause)
    begun = start(room.pause.begin(3600, unload=True))
    room.database.step()
    room.run(room.pause.end())
    assert room.run(begun) is None
    room.run(room.pause.free())
    assert target.unloads == []


# -- the whole house ---------------------------------------------------------------------------------------------------

EMBEDDER = {"EMBED_MODEL": "tiny-embed"}


async def pause(here: House, **more: Any) -> Any:
    """Pause for half an hour."""
    client = await here.ask("POST", "/queue/pause", {"for": "30m", **more})
    assert client.head is not None
    assert client.head[0] == 200
    return client.document


async def resident(here: House) -> list[str]:
    """What the target holds, as `/api/ps` says."""
    here.fake.requests.clear()
    document = (await here.ask("GET", "/api/ps")).document
    return sorted(model["name"] for model in document["models"])


def refused(client: RawClient) -> None:
    """It was told to come back in half an hour."""
    assert client.head is not None
    assert client.head[0] == 503
    assert 1790 < int(client.head[1]["retry-after"]) <= 1800
    assert "paused until" in str(client.document["error"])


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/api/chat", chat("tiny-a")),
        ("/api/generate", {"model": "tiny-a"}),
        ("/v1/chat/completions", chat("tiny-a", stream=True)),
        ("/v1/messages", chat("tiny-a", max_tokens=9)),
        ("/api/embed", {"model": "tiny-embed", "input": "x"}),
        ("/api/embed", {"model": "tiny-a", "input": "x"}),
        ("/v1/embeddings", {"model": "tiny-embed", "input": "x"}),
        ("/api/chat", b'{"model": "tiny-a", "mess'),
    ],
)
@pytest_twisted.ensureDeferred
async def test_calls_are_refused_for_the_rest(path: str, document: Any) -> None:
    """While foreman is paused, sync and embedding calls get 503 with the rest in `Retry-After`, and reach nobody."""
    async with house(EMBEDDER) as here:
        await eventually(lambda: any(record.path == "/api/embed" for record in here.fake.requests))
        await pause(here)
        here.fake.requests.clear()
        refused(await here.ask("POST", path, document))
        assert await here.rows() == []
        assert not [record for record in here.fake.requests if record.method == "POST"]


@pytest_twisted.ensureDeferred
async def test_everything_else_is_served() -> None:
    """While foreman is paused, questions are answered and a model can be unloaded; afterwards all is as before."""
    async with house() as here:
        await pause(here)
        for method, path, document in (
            ("GET", "/api/tags", None),
            ("POST", "/api/show", {"model": "tiny-a"}),
            ("POST", "/api/generate", {"model": "tiny-a", "keep_alive": 0}),
            ("GET", "/healthz", None),
            ("POST", "/queue/resume", None),
            ("POST", "/api/chat", chat("tiny-a")),
        ):
            client = await here.ask(method, path, document)
            assert client.head is not None
            assert client.head[0] == 200


@pytest_twisted.ensureDeferred
async def test_the_running_job_is_finished_and_then_the_machine_is_free() -> None:
    """A running answer goes on to its end; who waits behind it is refused; worker and embedder leave the memory."""
    async with house(EMBEDDER, models=default_models(token_rate=40.0), slots=2) as here:
        await eventually(lambda: list(here.fake.scheduler.resident()))
        running = await here.send("POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: running.head)
        with unhurried(here.fake):
            assert await resident(here) == ["tiny-a:latest", "tiny-embed:latest"]
            waiting = await here.send("POST", "/api/chat", chat("tiny-b"))
            await eventually(lambda: here.foreman._store.backlog.queued)
            pausing = Deferred.fromCoroutine(pause(here, unload=True))
            await eventually(lambda: here.foreman._pause.active)
        document = await pausing
        assert document["unloaded"] is True
        assert running.ended
        assert json.loads(running.body.splitlines()[-1])["done"] is True
        await eventually(lambda: waiting.ended)
        refused(waiting)
        assert await resident(here) == []
        rows = await here.rows()
        assert [(row["state"], row["error_code"]) for row in rows] == [("done", None), ("failed", "cancelled")]
        for client in (running, waiting):
            client.leave()


@pytest_twisted.ensureDeferred
async def test_without_unload_the_models_stay() -> None:
    """A pause that does not ask for the memory leaves the models where they are."""
    async with house() as here:
        await here.ask("POST", "/api/chat", chat("tiny-a"))
        assert (await pause(here))["unloaded"] is None
        assert await resident(here) == ["tiny-a:latest"]


@pytest_twisted.ensureDeferred
async def test_a_target_that_cannot_be_asked_is_not_called_free() -> None:
    """`unloaded` is true only when `/api/ps` says so."""
    async with house() as here:
        await here.fake.refuse()
        assert (await pause(here, unload=True))["unloaded"] is False


@pytest_twisted.ensureDeferred
async def test_a_model_that_stays_is_not_called_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`unloaded` is false when a model is still listed after a while."""
    monkeypatch.setattr(residency, "CLEAR_TIMEOUT", 0.1)
    async with house() as here:
        await here.ask("POST", "/api/chat", chat("tiny-a"))
        here.fake.faults.always("/api/generate", Fault.ERROR_500, load=True)
        assert (await pause(here, unload=True))["unloaded"] is False


@pytest_twisted.ensureDeferred
async def test_an_embedder_that_is_being_loaded_is_unloaded_too() -> None:
    """Ollama ignores an unload request during a load, so foreman waits until the embedder is there."""
    async with house(EMBEDDER, models=default_models(load_time=0.4), wait=False) as here:
        await eventually(lambda: here.fake.scheduler.loading)
        assert (await pause(here, unload=True))["unloaded"] is True
        assert not here.fake.scheduler.loading
        assert await resident(here) == []


@pytest_twisted.ensureDeferred
async def test_a_load_in_progress_is_awaited_and_its_job_waits_uncharged() -> None:
    """The load is not broken off; its job goes back to the queue, is not charged, and runs after the pause."""
    async with house(models=default_models(load_time=0.3)) as here:
        with unhurried(here.fake):
            client = await here.send("POST", "/api/chat", chat("tiny-a"))
            await eventually(lambda: here.fake.scheduler.loading)
            here.foreman._tick.stop()  # or the client would be refused within a second
            await pause(here)
        await eventually(lambda: here.foreman._store.backlog.running == 0)
        [row] = await here.rows()
        assert (row["state"], row["attempt"], row["failures"], row["not_before"]) == ("queued", 1, 0, 0)
        assert await resident(here) == ["tiny-a:latest"]
        assert generations(here) == []
        await here.ask("POST", "/queue/resume")
        await eventually(lambda: client.ended)
        assert client.head is not None
        assert client.head[0] == 200
        client.leave()


@pytest_twisted.ensureDeferred
async def test_the_end_of_the_pause_wakes_the_worker_and_the_embedder() -> None:
    """When the time is over the waiting job runs and the embedder is loaded again, without anybody's doing."""
    async with house(EMBEDDER, models=default_models(load_time=0.3), slots=2) as here:
        with unhurried(here.fake):
            client = await here.send("POST", "/api/chat", chat("tiny-a"))
            await eventually(lambda: here.fake.scheduler.loading)
            here.foreman._tick.stop()
            pausing = Deferred.fromCoroutine(pause(here, unload=True))
            await eventually(lambda: here.foreman._pause.active)
        assert (await pausing)["unloaded"] is True
        assert await resident(here) == []
        here.foreman._pause.until = 1  # the time is over
        here.foreman._tick.beat()
        await eventually(lambda: client.ended)
        assert generations(here) == ["tiny-a"]
        await eventually(lambda: any(record.path == "/api/embed" for record in here.fake.requests))
        client.leave()


@pytest_twisted.ensureDeferred
async def test_a_paused_foreman_starts_without_touching_the_target(tmp_path: Path) -> None:
    """After a restart within the pause nothing is loaded or warmed."""
    database = {"DB": str(tmp_path / "foreman.db"), **EMBEDDER}
    async with house(database) as here:
        await pause(here)
    async with house(database) as here:
        refused_again = await here.ask("POST", "/api/chat", chat("tiny-a"))
        assert refused_again.head is not None
        assert refused_again.head[0] == 503
        assert not [record for record in here.fake.requests if record.method == "POST"]
        assert (await here.ask("GET", "/healthz")).document["queue"]["paused"] is True
