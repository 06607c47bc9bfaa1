"""The sending side of the durable outbox: takes what is due, sends it, and notes what became of it.

Theory of operation.  The rows are the truth, and their `next_at` is the schedule; nothing here outlives a stop but
them.  A *look* asks for what is due and starts as many attempts as there is room for; whatever may have changed the
answer (a commit that wrote an event, an attempt that ended, the alarm at the next `next_at`) only says "look again".
An attempt keeps its place, and its event is sent by nobody else, until its outcome is in its row.

The rows are asked for host by host, so that what waits for a dead receiver is never in the way of the others; who
gets how many places `receivers` says.

A crash, or a stop, between the receiver's answer and its row means that the event is sent again: at least once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred, DeferredList, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from foreman.errors import ForemanError, StoreError
from foreman.job import TERMINAL
from foreman.logs import make_logger
from foreman.record import Delivery, DeliveryState, DeliveryTry, JobRecord
from foreman.webhooks import payload
from foreman.webhooks.receivers import PLACES, PLACES_OF_HOST, Receivers
from foreman.webhooks.retries import next_delay, parse_retry_after
from foreman.webhooks.sender import Delivered, NotDelivered
from foreman.webhooks.signing import sign

T = TypeVar("T")

STORE_PAUSE = 1.0
"""Seconds between one try to use the store and the next."""

LONGEST_WAIT = 60.0
"""Seconds between two looks at most while something is pending: the wall clock may be set, the machine may sleep."""

_GONE = 410


class Rows(Protocol):
    """The durable side: `foreman.work.deliveries.Deliveries`, which says more."""

    async def due(self, now: int, *, limit: int, per_host: int, under_way: Collection[Delivery]) -> list[Delivery]:
        """What is to be sent now, longest due first."""

    async def next_at(self) -> int | None:
        """When the next delivery is due, past or not; None if none is pending."""

    async def tried(self, delivery: Delivery, outcome: DeliveryTry, state: DeliveryState, next_at: int | None) -> None:
        """Note one attempt and what follows from it."""

    async def skip_to_final(self, delivery: Delivery) -> int:
        """Drop the job's untried events before its final one, if that exists; gives how many."""


class Records(Protocol):
    """Where the jobs are read: `foreman.work.archive.Archive`."""

    async def record(self, job_id: str) -> JobRecord | None:
        """The job as it is now, None if it was deleted."""


class Poster(Protocol):
    """Who sends: `foreman.webhooks.sender.Sender`."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Delivered:
        """Make one try; raise a `ForemanError` if it did not succeed."""


@frozen
class _Outcome:
    """What one try has come to.

    :ivar status: of the answer, None if there was none.
    :ivar error: None if it was delivered.
    :ivar retry_after: seconds the receiver asked for.
    """

    status: int | None
    error: str | None = None
    retry_after: float | None = None


class Outbox:
    """Sends what is due for as long as it runs.

    :ivar attempts: since the start, by what became of the delivery: `delivered`, `failed` (it will be tried again),
        `exhausted`, `gone`.
    """

    _log = make_logger()

    def __init__(
        self,
        *,
        rows: Rows,
        records: Records,
        sender: Poster,
        secrets: Sequence[bytes],
        clock: IReactorTime,
        now_ms: Callable[[], int],
        random: Callable[[], float],
    ) -> None:
        """:param secrets: to sign with, the current one first; none for no signature."""
        self.attempts: Counter[str] = Counter(dict.fromkeys(("delivered", "failed", "exhausted", "gone"), 0))
        self._rows = rows
        self._records = records
        self._sender = sender
        self._secrets = secrets
        self._clock = clock
        self._now_ms = now_ms
        self._random = random
        self._running = False
        self._wanted = False  # a look, after the one under way if there is one
        self._looking = False
        self._looked: Deferred[None] = succeed(None)
        self._alarm: IDelayedCall | None = None
        self._under_way: dict[Deferred[None], Delivery] = {}
        self._receivers = Receivers()

    def start(self) -> None:
        """Begin with what the rows say is due."""
        self._running = True
        self.look()

    async def stop(self) -> None:
        """Send no more.  What is on its way is cut, and sent again after the next start."""
        self._running = False
        self._cancel_alarm()
        for attempt in tuple(self._under_way):
            attempt.cancel()
        await DeferredList([*self._under_way, self._looked])

    # -- looking -----------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Something may be due that was not before.  Cheap, and harmless at any time."""
        self._wanted = True
        if self._running and not self._looking:
            self._looking = True
            self._looked = Deferred.fromCoroutine(self._look())

    async def _look(self) -> None:
        try:
            while self._running and self._wanted:
                self._wanted = False
                try:
                    await self._fill()
                except CancelledError:
                    raise
                except StoreError as error:
                    self._log.warn("No webhooks are sent, the store cannot be read: {error}", error=error)
                    self._look_in(STORE_PAUSE)
                except Exception:  # noqa: BLE001 - one bad look never ends the looking
                    self._log.failure("Looking for webhooks to send has failed")
                    self._look_in(LONGEST_WAIT)
        finally:
            self._looking = False

    async def _fill(self) -> None:
        """Start what may start, and set the alarm."""
        self._cancel_alarm()
        room = PLACES - len(self._under_way)
        if room == 0:
            return  # the first that ends looks again
        found = await self._rows.due(
            self._now_ms(),
            # Enough to fill the room even if nothing for the ailing ones may start.
            limit=room + PLACES_OF_HOST * len(self._receivers.ailing),
            per_host=PLACES_OF_HOST,
            under_way=tuple(self._under_way.values()),
        )
        if not self._running:
            return
        for delivery in self._receivers.admitted(found, self._under_way.values()):
            attempt = Deferred.fromCoroutine(self._attend(delivery))
            self._under_way[attempt] = delivery
            attempt.addBoth(self._ended, attempt)
        if (at := await self._rows.next_at()) is not None:
            wait = (at - self._now_ms()) / 1000
            # What is due and did not start waits for a place; behind it may be others, due in a moment.
            self._look_in(min(wait, LONGEST_WAIT) if wait > 0 else STORE_PAUSE)

    def _look_in(self, seconds: float) -> None:
        self._cancel_alarm()
        if self._running:
            self._alarm = self._clock.callLater(seconds, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self.look()

    def _cancel_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    # -- sending -----------------------------------------------------------------------------------------------------

    def _ended(self, result: Failure | None, attempt: Deferred[None]) -> None:
        """Nothing, or that it was cancelled."""
        del self._under_way[attempt]
        self.look()

    async def _attend(self, delivery: Delivery) -> None:
        try:
            await self._deliver(delivery)
        except CancelledError:
            raise
        except Exception:  # noqa: BLE001 - one bad delivery harms no other
            self._log.failure("A webhook was not dealt with", job=delivery.job_id, model=delivery.model)
            await deferLater(self._clock, LONGEST_WAIT)  # its row still says that it is due

    async def _deliver(self, delivery: Delivery) -> None:
        """One attempt, to its end in the row."""
        event = delivery.event
        is_final = event.state in TERMINAL
        if not is_final and event.tries == 0 and self._receivers.is_ailing(delivery.host):
            dropped = await self._insist(lambda: self._rows.skip_to_final(delivery))
            if dropped:
                return  # this one among them
        record = None
        if is_final:
            record = await self._insist(lambda: self._records.record(delivery.job_id))
            if record is None:
                return  # the job was deleted since
        at = self._now_ms()
        outcome = await self._try(delivery, record, at)
        state, delay = self._judged(delivery, outcome)
        tried = DeliveryTry(sequence=event.sequence, at=at, status=outcome.status, error=outcome.error)
        next_at = None if delay is None else self._now_ms() + round(delay * 1000)
        await self._insist(lambda: self._rows.tried(delivery, tried, state, next_at))

    async def _try(self, delivery: Delivery, record: JobRecord | None, at: int) -> _Outcome:
        try:
            body = payload.body(delivery, record)
            headers = sign(body, webhook_id=payload.webhook_id(delivery), timestamp=at // 1000, secrets=self._secrets)
            return _Outcome((await self._sender.post(delivery.url, headers, body)).status)
        except CancelledError:
            raise
        except NotDelivered as error:
            retry_after = parse_retry_after(error.retry_after, self._now_ms() / 1000)
            return _Outcome(error.status, str(error), retry_after)
        except ForemanError as error:  # the URL, or where it leads, is not allowed; settings and the DNS may change
            return _Outcome(None, str(error))
        except Exception as error:  # noqa: BLE001 - it counts as a try, else it would be repeated at once, for ever
            self._log.failure("A webhook could not be sent", job=delivery.job_id, model=delivery.model)
            return _Outcome(None, f"foreman itself failed: {type(error).__name__}")

    def _judged(self, delivery: Delivery, outcome: _Outcome) -> tuple[DeliveryState, float | None]:
        """What the delivery's state is now, and in how many seconds it is tried again."""
        state, delay = DeliveryState.PENDING, None
        if outcome.error is None:
            state = DeliveryState.DELIVERED
        elif outcome.status == _GONE:
            state = DeliveryState.GONE
        else:
            delay = next_delay(delivery.event.tries + 1, outcome.retry_after, self._random)
            if delay is None:
                state = DeliveryState.EXHAUSTED
        if state in (DeliveryState.PENDING, DeliveryState.EXHAUSTED):
            self._receivers.failed(delivery.host)
        else:
            self._receivers.answered(delivery.host)
        self.attempts["failed" if state is DeliveryState.PENDING else state.value] += 1
        say = self._log.debug if state in (DeliveryState.PENDING, DeliveryState.DELIVERED) else self._log.warn
        say(
            "Webhook {sequence} of the job to {host}: {state}{why}",
            sequence=delivery.event.sequence,
            host=delivery.host,
            state=state.value,
            why="" if outcome.error is None else f" ({outcome.error})",
            job=delivery.job_id,
            model=delivery.model,
        )
        return state, delay

    async def _insist(self, work: Callable[[], Awaitable[T]]) -> T:
        """Have the store do something, for as long as it takes: a full disk is no reason to send anything twice."""
        while True:
            try:
                return await work()
            except StoreError as error:
                self._log.warn("A webhook waits for the store: {error}", error=error)
                await deferLater(self._clock, STORE_PAUSE)
