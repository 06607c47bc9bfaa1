"""A request's walk through the stand-in: fault, scheduler, prompt evaluation, tokens.

The handlers are Klein's, which cancels them when the client leaves: that is how everything here learns of it.
"""

# mypy: disallow-untyped-calls=False
# Twisted's HTTP classes are hardly typed.
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.internet.task import deferLater
from zope.interface import implementer

from . import asks
from .answers import Answer, Final, Piece
from .asks import Ask
from .dialects import DIED, Dialect, NativeChat, NativeGenerate
from .exchange import Exchange
from .faults import Fault
from .reading import Refusal
from .scheduler import Busy, Lease
from .writing import go_json

if TYPE_CHECKING:
    from .server import FakeOllama

BUSY = "server busy, please try again.  maximum pending requests exceeded"
_LATE = 1.0
"""Seconds of lateness that are not made up for by a burst: it slept, or the client did."""
_BURST = 64 * 1024
"""Bytes written before the reactor gets its turn, when nothing else sets the pace."""


class Inference:
    """`/api/chat` and `/api/generate`, and what the other inference routes share with them."""

    def __init__(self, fake: FakeOllama) -> None:
        self._fake = fake

    def add_routes(self, route: Any) -> None:
        """Give every route to `route`."""
        route("/api/chat", self.chat, "POST")
        route("/api/generate", self.generate, "POST")

    async def chat(self, exchange: Exchange) -> None:
        """`POST /api/chat`."""
        ask = asks.chat(self._fake.models, exchange.body)
        await self._native(exchange, ask, NativeChat(ask, self._fake.stamp))

    async def generate(self, exchange: Exchange) -> None:
        """`POST /api/generate`."""
        ask = asks.generate(self._fake.models, exchange.body)
        await self._native(exchange, ask, NativeGenerate(ask, self._fake.stamp))

    async def _native(self, exchange: Exchange, ask: Ask, dialect: NativeChat | NativeGenerate) -> None:
        if not ask.empty:
            await self.answer(exchange, ask, dialect)
            return
        if ask.keep_alive == 0:
            self._fake.scheduler.expire(ask.model)
            reason = "unload"
        else:
            (await self.lease(ask)).release()
            reason = "load"
        exchange.reply(200, dialect.loaded(reason), headers=dialect.whole_headers)

    async def lease(self, ask: Ask) -> Lease:
        """A hold on the model's runner.

        :raise Refusal: 503, the FIFO is full.
        """
        try:
            return await self._fake.scheduler.lease(ask.model, ask.settings, ask.keep_alive)
        except Busy:
            raise Refusal(BUSY, 503) from None

    async def answer(self, exchange: Exchange, ask: Ask, dialect: Dialect) -> None:
        """Schedule, generate and answer one request."""
        clock = self._fake.clock
        came = clock.seconds()
        with self._counted(ask):
            lease = await self.lease(ask)
            try:
                asks.check_late(ask)
                got = clock.seconds()
                await lease.turn()
                began = clock.seconds()
                await self.pause(ask.model.prompt_time)
                evaluated = clock.seconds()
                answer = Answer(ask)

                def final() -> Final:
                    now = clock.seconds()
                    return Final(
                        reason=answer.reason,
                        prompt_tokens=ask.prompt_tokens,
                        tokens=answer.tokens,
                        total=self._fake.duration(now - came),
                        load=self._fake.duration(got - came),
                        prompt=self._fake.duration(evaluated - began),
                        evaluation=self._fake.duration(now - evaluated),
                    )

                if ask.stream:
                    await _Stream(self._fake, exchange, dialect, answer, final=final, rate=ask.model.token_rate).ended
                else:
                    await self._whole(exchange, ask, dialect, answer, final)
            finally:
                lease.release()

    async def _whole(
        self, exchange: Exchange, ask: Ask, dialect: Dialect, answer: Answer, final: Callable[[], Final]
    ) -> None:
        pieces = list(answer)
        if ask.model.token_rate < inf:
            await self.pause(len(pieces) / ask.model.token_rate)
        fault = exchange.rule.fault if exchange.rule else None
        if fault is Fault.ERROR_LINE:
            raise Refusal(DIED, 500)
        if fault is Fault.NO_DONE:
            answer.reason = None
        body = dialect.whole(pieces, final())
        if fault in (Fault.HANG_MID_STREAM, Fault.CUT_MID_LINE, Fault.CUT):
            exchange.head(200, (*dialect.whole_headers, (b"Content-Length", b"%d" % len(body))))
            exchange.write(body[: len(body) // 2])
            if fault is not Fault.HANG_MID_STREAM:
                exchange.cut()
            await Deferred()  # until the client leaves
        exchange.reply(200, body, headers=dialect.whole_headers)

    async def pause(self, seconds: float) -> None:
        """Let time pass on the stand-in's clock."""
        if seconds > 0:
            await deferLater(self._fake.clock, seconds)

    @contextmanager
    def _counted(self, ask: Ask) -> Iterator[None]:
        """Count worker generations from their coming to their end, wherever they wait."""
        fake = self._fake
        fake.at_once += ask.model.is_worker
        fake.max_at_once = max(fake.max_at_once, fake.at_once)
        try:
            yield
        finally:
            fake.at_once -= ask.model.is_worker


@implementer(IPushProducer)
class _Stream:
    """Tokens at their pace and no faster than the client reads; one HTTP chunk each.

    :ivar ended: fires when the stream has been written; cancel it when the client leaves.
    """

    def __init__(
        self,
        fake: FakeOllama,
        exchange: Exchange,
        dialect: Dialect,
        answer: Answer,
        *,
        final: Callable[[], Final],
        rate: float,
    ) -> None:
        self._clock = fake.clock
        self._exchange = exchange
        self._dialect = dialect
        self._answer = answer
        self._final = final
        self._gap = 1 / rate
        self._due = self._clock.seconds()
        self._lines = 0
        self._call: IDelayedCall | None = None
        self._paused = False
        self._over = False
        self.ended: Deferred[None] = Deferred(lambda _: self._stop())
        exchange.registerProducer(self, True)
        self._run()

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        if self._call is None and not self._over:
            self._call = self._clock.callLater(0, self._run)

    def stopProducing(self) -> None:
        self._stop()

    def _stop(self) -> None:
        self._over = True
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None

    def _run(self) -> None:
        """Write what is due."""
        self._call = None
        written = 0
        while not (self._paused or self._over):
            now = self._clock.seconds()
            if now - self._due > _LATE:
                self._due = now
            wait = self._due - now if self._gap else 0.0
            if wait > 1e-6 or written > _BURST:
                self._call = self._clock.callLater(max(0.0, wait), self._run)
                return
            if self._meets_fault():
                return
            piece = next(self._answer, None)
            if piece is None:
                self._close(self._dialect.closing(self._final()))
                return
            written += self._write(piece)
            self._due += self._gap

    def _write(self, piece: Piece, share: float = 1.0) -> int:
        """One token, or the first `share` of its line.  How many bytes it took."""
        if not self._lines:
            self._begin()
        self._lines += 1
        data = self._dialect.piece(piece)
        self._exchange.write(data if share == 1.0 else data[: int(len(data) * share)])
        return len(data)

    def _begin(self) -> None:
        self._exchange.head(200, self._dialect.stream_headers)
        for data in self._dialect.opening():
            self._exchange.write(data)

    def _close(self, chunks: list[bytes]) -> None:
        """The proper end; the closing chunks first."""
        if not self._lines:
            self._begin()
        self._over = True
        for data in chunks:
            self._exchange.write(data)
        self._exchange.unregisterProducer()
        self._exchange.finish()
        self.ended.callback(None)

    def _meets_fault(self) -> bool:
        """Strike, if it is time for this exchange's fault."""
        rule = self._exchange.rule
        if rule is None or self._lines < rule.after:
            return False
        if rule.fault is Fault.ERROR_LINE:
            self._close(self._dialect.died())
        elif rule.fault is Fault.NO_DONE:
            self._close([])
        else:
            self._over = True
            if rule.fault is Fault.CUT_MID_LINE:
                self._write(next(self._answer, Piece("")), share=0.5)
            if rule.fault is not Fault.HANG_MID_STREAM:
                self._exchange.unregisterProducer()
                self._exchange.cut()
        return True


def refuse(exchange: Exchange, refusal: Refusal) -> None:
    """The answer of a native route that says no."""
    content_type = b"application/json" if refusal.late else b"application/json; charset=utf-8"
    exchange.reply(refusal.status, go_json({"error": refusal.text}), content_type, chunked=refusal.late)
