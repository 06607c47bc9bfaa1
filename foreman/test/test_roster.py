"""What a list of the target's models means for the jobs that came before it."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted

from foreman.job import Runner
from foreman.ollama.fake import Fault, default_models
from foreman.ollama.listings import Model
from foreman.test.harness import chat, eventually, house
from foreman.test.strategies import SteppedDatabase, new_job
from foreman.test.test_moods import bodies
from foreman.work import roster
from foreman.work.roster import Roster
from foreman.work.store import Store

DIGEST = "d" * 64
MODELS = {"qwen:latest": Model("qwen:latest", DIGEST), "gemma:latest": Model("gemma:latest", "e" * 64)}
NAMED, KNOWN = Runner("qwen:latest", '{"num_ctx":512}'), Runner(DIGEST, '{"num_ctx":512}')


def open_store(path: Path) -> tuple[SteppedDatabase, Store]:
    """A store over that file."""
    database = SteppedDatabase(path)
    store = Store(database, lambda: 5, 1000, 3)
    database.finish(store.start())
    return database, store


def settle(database: SteppedDatabase) -> None:
    """Run whatever the database has to do."""
    while database._calls:
        database.step()


def test_jobs_of_one_model_are_drained_together_however_they_were_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that came before the first list of models run with those of the same model that came after it."""
    monkeypatch.setattr(roster, "BATCH", 2)
    database, store = open_store(tmp_path / "foreman.db")
    runners = [NAMED, Runner("gone:latest"), NAMED, KNOWN, NAMED, Runner(""), Runner(DIGEST)]
    database.finish(store.accept([new_job(number, runner=runner) for number, runner in enumerate(runners)]))
    Roster(store).listed(MODELS)
    settle(database)
    assert (store.backlog.of(NAMED), store.backlog.of(KNOWN), store.backlog.queued) == (0, 4, 7)
    taken = [database.finish(store.take(resident=KNOWN, warm=False, aside=())) for _ in range(4)]
    assert [each and each.job.seq for each in taken] == [1, 3, 4, 5]
    assert store.backlog.of(KNOWN) == 0
    database.finish(store.stop())
    database, store = open_store(tmp_path / "foreman.db")
    assert (store.backlog.of(NAMED), store.backlog.of(KNOWN)) == (0, 4)
    database.finish(store.stop())


def test_a_crash_between_the_list_and_the_rows_costs_nothing(tmp_path: Path) -> None:
    """Foreman dies before the rows were given the digest: the next start has a list, too."""
    database, store = open_store(tmp_path / "foreman.db")
    database.finish(store.accept([new_job(1, runner=NAMED)]))
    Roster(store).listed(MODELS)
    database.drop()
    database, store = open_store(tmp_path / "foreman.db")
    assert store.backlog.of(NAMED) == 1
    Roster(store).listed(MODELS)
    settle(database)
    assert (store.backlog.of(NAMED), store.backlog.of(KNOWN)) == (0, 1)
    database.finish(store.stop())


@pytest_twisted.ensureDeferred
async def test_jobs_that_came_while_no_list_was_known_are_of_the_model_that_the_list_names() -> None:
    """Foreman's first start ever, before its first list: with the list the jobs get what tells the model for good."""
    async with house() as here:
        inventory = here.foreman._inventory
        await here.ask("POST", "/queue/pause", {"for": "5m"})
        here.fake.faults.always("/api/tags", Fault.DROP)
        inventory.models = None
        for model in ("tiny-a", "TINY-A:latest"):
            await here.ask("POST", "/jobs", chat(model))
        assert [row["runner_model"] for row in await here.rows()] == ["tiny-a:latest"] * 2
        here.fake.faults.clear()
        await inventory.refresh()
        found = inventory.find("tiny-a")
        assert found is not None
        await eventually(lambda: here.foreman._store.backlog.of(Runner(found.digest)) == 2)
        assert [row["runner_model"] for row in await here.rows()] == [found.digest] * 2


@pytest_twisted.ensureDeferred
async def test_a_job_that_runs_when_the_first_list_comes_is_followed_by_others_of_its_model() -> None:
    """It was begun by its model's name, they have got the digest: it is the same model, and nothing is swapped."""
    async with house(models=default_models(token_rate=2.0)) as here:
        inventory = here.foreman._inventory
        await here.ask("POST", "/queue/pause", {"for": "5m"})
        here.fake.faults.always("/api/tags", Fault.DROP)
        inventory.models = None
        jobs = [
            (await here.ask("POST", "/jobs", chat(model, options={"num_predict": tokens}))).document["job_id"]
            for model, tokens in (("tiny-a", 1000), ("tiny-b", 1), ("tiny-a", 1))
        ]
        await here.ask("POST", "/queue/resume")
        await eventually(lambda: bodies(here, "/api/chat"))
        here.fake.faults.clear()
        await inventory.refresh()
        await here.ask("POST", f"/jobs/{jobs[0]}/cancel")
        await here.ask("GET", f"/jobs/{jobs[1]}?wait=20")
        assert [body["model"] for body in bodies(here, "/api/chat")] == ["tiny-a", "tiny-a", "tiny-b"]
        assert here.foreman._residency.swaps.paid == 2
