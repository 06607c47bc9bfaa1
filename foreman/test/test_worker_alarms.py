"""When the worker looks again by itself, and what a target that answers with errors means to it."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from foreman.errors import Lost
from foreman.job import Runner
from foreman.ollama.fake import Fault
from foreman.test.harness import House, chat, eventually, house, reactor
from foreman.test.test_moods import idle

FEW = 5
"""Looks within the time below that nobody calls a spin, which makes hundreds."""

A_WHILE = 0.3
"""Seconds of real time: only time shows that nothing happens."""


def count_looks(here: House) -> list[float]:
    """The times at which the worker looks whether it may take a job, from now on."""
    worker, looks = here.foreman._worker, list[float]()
    may_take = worker._may_take

    def counted() -> bool:
        looks.append(worker._clock.seconds())
        return may_take()

    worker._may_take = counted  # type: ignore[method-assign]
    return looks


def overdue(here: House) -> None:
    """Have a runner's setting aside and a job's backoff end a second ago."""
    foreman = here.foreman

    async def next_due() -> int:
        return foreman._worker._now_ms() - 1000

    foreman._store.next_due = next_due  # type: ignore[method-assign]
    foreman._worker._attempts.aside = {Runner("somebody's"): foreman._worker._clock.seconds() - 1}


async def pause(here: House) -> None:
    """The machine's owner wants it back."""
    await here.ask("POST", "/queue/pause", {"for": "30m"})


async def wedge(here: House) -> None:
    """The target is left alone for half a minute."""
    here.foreman._worker._aftermath.busy_until = here.foreman._worker._clock.seconds() + 30


async def cannot_write(here: House) -> None:
    """A job's end is still to be written."""
    here.foreman._worker._aftermath.unwritten = 1


async def go_down(here: House) -> None:
    """The target is gone, and stays so."""
    await here.fake.refuse()
    while here.foreman._inventory.up:
        await here.foreman._inventory.refresh()


@pytest.mark.parametrize("standing_still", [pause, wedge, cannot_write, go_down])
@pytest_twisted.ensureDeferred
async def test_a_worker_that_may_not_work_does_not_spin(standing_still: Any) -> None:
    """Paused, wedged, down or without a disk, foreman leaves its machine in peace, whatever else is overdue."""
    async with house() as here:
        await standing_still(here)
        overdue(here)
        looks = count_looks(here)
        here.foreman._worker.wake()
        await eventually(lambda: looks)
        await deferLater(reactor, A_WHILE)
        assert len(looks) <= FEW
        here.foreman._worker._aftermath.unwritten = 0


@pytest_twisted.ensureDeferred
async def test_what_is_overdue_and_yet_cannot_be_taken_is_looked_for_with_pauses() -> None:
    """A clock that was set back makes a row due that cannot be taken: foreman looks again, but does not spin."""
    async with house() as here:
        overdue(here)
        looks = count_looks(here)
        here.foreman._worker.wake()
        await eventually(lambda: len(looks) >= 5)
        assert looks[4] - looks[0] > 0.06


@pytest_twisted.ensureDeferred
async def test_a_job_whose_connections_all_turn_out_dead_is_not_tried_without_a_pause() -> None:
    """A lost idle connection costs nothing and is asked again at once, but only once; from then on a second apart."""
    async with house() as here:
        worker, real = here.foreman._worker, here.foreman._target.exchange
        tries = list[tuple[float, float]]()  # when, and until when the target was to be left alone

        async def lose_two(*args: Any, **more: Any) -> Any:
            tries.append((worker._clock.seconds(), worker._aftermath.busy_until))
            if len(tries) > 2:
                return await real(*args, **more)
            raise Lost("the connection had died", reused=True)

        here.foreman._target.exchange = lose_two  # type: ignore[method-assign]
        client = await here.send("POST", "/api/chat", chat("tiny-a", stream=False))
        await eventually(lambda: client.ended)
        (_, first), (lost, second), (again, third) = tries
        assert (first, second) == (0.0, 0.0)
        assert again >= third > lost + 0.5
        await idle(here)
        [row] = await here.rows()
        assert (row["state"], row["failures"]) == ("done", 0)
        client.leave()


# -- errors that are whole answers -------------------------------------------------------------------------------------


async def two_broken(here: House) -> None:
    """Two calls of different models, each of which the target drops once; then their clients leave."""
    here.fake.faults.always("/api/chat", Fault.DROP)
    clients = [await here.send("POST", "/api/chat", chat(model, stream=False)) for model in ("tiny-a", "tiny-b")]
    await eventually(lambda: here.foreman._worker._aftermath._wedge._charged.total() == 2)
    for client in clients:
        client.leave()
    await idle(here)
    here.fake.faults.clear()


@pytest_twisted.ensureDeferred
async def test_a_whole_error_answer_neither_absolves_nor_wedges() -> None:
    """After two broken tries a client's own 500 is its answer alone: the run of broken tries is as it was."""
    async with house() as here:
        await two_broken(here)
        here.fake.faults.next("/api/chat", Fault.ERROR_500)
        answer = await here.ask("POST", "/api/chat", chat("tiny-c", stream=False))
        assert answer.head is not None
        assert answer.head[0] == 500
        assert not here.foreman._inventory.wedged
        assert here.foreman._worker._aftermath._wedge._charged.total() == 2


@pytest_twisted.ensureDeferred
async def test_a_whole_500_does_not_end_a_wedge() -> None:
    """A trial that is answered with status 500 is no success: the target stays wedged."""
    async with house() as here:
        await two_broken(here)
        worker = here.foreman._worker
        here.fake.faults.next("/api/chat", Fault.DROP)
        client = await here.send("POST", "/api/chat", chat("tiny-c", stream=False))
        await eventually(lambda: here.foreman._inventory.wedged)
        here.fake.faults.always("/api/chat", Fault.ERROR_500)
        worker._aftermath.busy_until = 0.0
        worker.wake()
        await eventually(lambda: client.ended)
        assert client.head is not None
        assert client.head[0] == 500
        assert here.foreman._inventory.wedged
        client.leave()


@pytest_twisted.ensureDeferred
async def test_an_error_line_within_an_answer_fails_its_job_alone() -> None:
    """Three answers that break off with an error line: each job failed and charged, the target is not blamed."""
    async with house() as here:
        here.fake.faults.always("/api/chat", Fault.ERROR_LINE)
        for model in ("tiny-a", "tiny-b", "tiny-a"):
            assert b'{"error":' in (await here.ask("POST", "/api/chat", chat(model))).body
        await idle(here)
        assert not here.foreman._inventory.wedged
        rows = await here.rows()
        assert [(row["state"], row["error_code"], row["failures"]) for row in rows] == [
            ("failed", "target_error", 1)
        ] * 3
