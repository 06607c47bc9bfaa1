"""The outbox before real receivers on loopback, good and bad; the timers move by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import deferLater

from foreman.record import DeliveryState
from foreman.test.badserver import BadServer, Line, SteppedReactor, asynchronous, bad_server, reactor
from foreman.test.outboxes import Office
from foreman.webhooks.policy import AddressPolicy
from foreman.webhooks.sender import Sender

PENDING, DELIVERED, GONE = DeliveryState.PENDING, DeliveryState.DELIVERED, DeliveryState.GONE


class Street(Office):
    """An office whose sender really connects."""

    def __init__(self, path: Path) -> None:
        world = SteppedReactor()
        super().__init__(path, clock=world.clock, poster=Sender(world, AddressPolicy()))

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Let the reactor and the database turn until it is true."""
        while not (value := condition()):
            self.settle()
            await deferLater(reactor, 0)
        return value

    async def request(self, server: BadServer, number: int) -> Line:
        """Wait for the server's connection of this number and the request on it."""
        await self.until(lambda: len(server.lines) >= number)
        line = server.lines[number - 1]
        await self.until(lambda: b'"timings"' in line.received and line.received.endswith(b"}"))
        return line

    async def tried(self, count: int) -> None:
        """Wait until so many tries are over."""
        await self.until(lambda: sum(self.outbox.attempts.values()) == count)
        self.settle()


@asynccontextmanager
async def street(tmp_path: Path) -> AsyncIterator[tuple[Street, BadServer]]:
    """An office and a receiver."""
    async with bad_server() as server:
        office = Street(tmp_path / "foreman.db")
        yield office, server
        office.stop()


def answers_500(line: Line, office: Street) -> None:
    """It says that it is at fault."""
    line.answer(b"oh", status=b"500 Internal Server Error")


def answers_302(line: Line, office: Street) -> None:
    """It sends us elsewhere."""
    line.answer(status=b"302 Found", headers=b"Location: /elsewhere\r\n")


def hangs(line: Line, office: Street) -> None:
    """It takes the request and says nothing."""
    office.clock.advance(15)


def trickles(line: Line, office: Street) -> None:
    """It says a little again and again, and never a whole head."""
    for _ in range(15):
        line.say(b"HTTP/1.1 200 OK\r\nX: " if not office.clock.seconds() else b"x")
        office.clock.advance(1)


def closes_early(line: Line, office: Street) -> None:
    """It hangs up within the head."""
    line.say(b"HTTP/1.1 20")
    line.hang_up()


def resets(line: Line, office: Street) -> None:
    """It breaks the connection."""
    line.reset()


@pytest.mark.parametrize(
    ("misbehave", "status", "error"),
    [
        (answers_500, 500, "answered 500"),
        (answers_302, 302, "redirects are not followed"),
        (hangs, None, "within 15 s"),
        (trickles, None, "within 15 s"),
        (closes_early, None, "closed the connection"),
        (resets, None, "closed the connection"),
    ],
)
@asynchronous
async def test_a_bad_receiver_is_tried_again(
    tmp_path: Path, misbehave: Callable[[Line, Street], None], status: int | None, error: str
) -> None:
    """Whatever a receiver does to us, the event is sent again a second later, and the first try is told."""
    async with street(tmp_path) as (office, server):
        job = office.accept(1, f"{server.url}/hook")
        misbehave(await office.request(server, 1), office)
        await office.tried(1)
        assert office.states(job) == [PENDING]
        office.let(1)
        (await office.request(server, 2)).answer()
        await office.tried(2)
        assert office.states(job) == [DELIVERED]
        first, second = office.tries(job)
        assert first.status == status
        assert error in str(first.error)
        assert (second.status, second.error) == (200, None)


@asynchronous
async def test_retry_after_is_honoured(tmp_path: Path) -> None:
    """A receiver that asks for two seconds has them."""
    async with street(tmp_path) as (office, server):
        office.accept(1, server.url)
        line = await office.request(server, 1)
        line.answer(status=b"503 Service Unavailable", headers=b"Retry-After: 2\r\n")
        await office.tried(1)
        assert office.run(office.rows.next_at()) == office.now() + 2000


@asynchronous
async def test_410_ends_it(tmp_path: Path) -> None:
    """A receiver that answers 410 hears no more of that job."""
    async with street(tmp_path) as (office, server):
        job = office.accept(1, server.url)
        (await office.request(server, 1)).answer(status=b"410 Gone")
        await office.tried(1)
        office.cancel(job)
        office.let(100)
        assert office.states(job) == [GONE, GONE]
        assert len(server.lines) == 1


@asynchronous
async def test_a_stop_waits_for_no_receiver(tmp_path: Path) -> None:
    """A stop cuts what hangs."""
    async with bad_server() as server:
        office = Street(tmp_path / "foreman.db")
        office.accept(1, server.url)
        line = await office.request(server, 1)
        office.stop()
        await line.closed


@asynchronous
async def test_a_receiver_that_hangs_beside_one_that_is_well(tmp_path: Path) -> None:
    """The good one has all of its hundred before the bad one's two connections are given up."""
    async with street(tmp_path) as (office, good), bad_server() as bad:
        office.accept_all({n: (good if n % 2 else bad).url for n in range(200)})
        for number in range(1, 101):
            (await office.request(good, number)).answer()
        await office.tried(100)
        assert office.outbox.attempts["delivered"] == 100
        assert len(bad.lines) == 2
        assert office.clock.seconds() == 0
