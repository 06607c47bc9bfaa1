"""How silence is judged (`foreman.ollama.silence`), beat by beat and probe by probe."""

from __future__ import annotations

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from foreman.errors import Stalled
from foreman.ollama.silence import Silence
from foreman.test.badserver import Rig, asynchronous, rig, turns
from foreman.tick import Tick


@define
class Watch:
    """A `Silence` with its heart and its probes in the test's hands.

    :ivar always: what every probe finds out at once; None leaves them all in `probes`, undecided.
    :ivar dropped: how many of them were cancelled.
    """

    limit: float
    always: bool | None = None
    now: float = 0.0
    asked: list[int] = field(factory=list)
    probes: list[Deferred[bool]] = field(factory=list)
    stalled: list[Stalled] = field(factory=list)
    beats: int = 0
    dropped: int = 0
    tick: Tick = field(init=False)
    silence: Silence = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.tick = Tick(Clock(), lambda: self.now)
        self.silence = Silence(self.tick, self.probe, self.limit, self.stalled.append)
        self.silence.start()

    async def probe(self, timeout: float) -> bool:  # noqa: ASYNC109 - as the real one
        """Note when it was asked."""
        assert timeout == 5.0
        self.asked.append(self.beats - 1)
        if self.always is not None:
            return self.always
        self.probes.append(Deferred())
        try:
            return await self.probes[-1]
        except CancelledError:
            self.dropped += 1
            raise

    def beat(self, times: int = 1, *, step: float = 1.0) -> Watch:
        """Let seconds pass."""
        for _ in range(times):
            self.now += step
            self.beats += 1
            self.tick.beat()
        return self

    def verdict(self) -> tuple[int, bool] | None:
        """After how many whole seconds it ended, and whether the target was awake."""
        return (self.beats - 1, self.stalled[0].probe_answered) if self.stalled else None


def test_silence_of_an_awake_target_ends_at_the_limit() -> None:
    """The target answers every probe: the call may be silent for as long as it may, then it is to blame."""
    watch = Watch(300, always=True).beat(300)
    assert watch.verdict() is None
    assert watch.asked == list(range(10, 300, 10))
    watch.beat()
    assert watch.verdict() == (300, True)
    watch.beat(1000)
    assert len(watch.stalled) == 1
    assert len(watch.asked) == 29


def test_silence_of_a_sleeping_target_ends_after_a_minute_of_probes() -> None:
    """No probe is answered: a minute after the first one the call is given up, though it might have waited hours."""
    watch = Watch(7200, always=False).beat(70)
    assert watch.verdict() is None
    watch.beat()
    assert watch.verdict() == (70, False)


def test_a_probe_that_never_ends_counts_as_unanswered() -> None:
    """The minute also passes while a probe hangs, and the probe is dropped at the end of it."""
    watch = Watch(7200).beat(71)
    assert watch.verdict() == (70, False)
    assert watch.asked == [10]
    assert watch.probes[0].called


def test_a_target_that_falls_asleep_later() -> None:
    """The minute counts from the last answered probe."""
    watch = Watch(7200, always=True).beat(101)
    watch.always = False
    watch.beat(59)
    assert watch.verdict() is None
    assert watch.beat().verdict() == (160, False)


def test_one_answered_probe_in_a_minute_is_enough() -> None:
    """A target that answers now and then is awake."""
    watch = Watch(600)
    for _ in range(600):
        watch.beat()
        while watch.probes:
            watch.probes.pop().callback(len(watch.asked) % 5 == 0)
    assert watch.verdict() is None
    watch.beat()
    assert watch.verdict() is not None


def test_the_last_probe_decides_at_the_limit() -> None:
    """When the limit passes while probes fail, but not for a minute yet, the job is not to blame."""
    watch = Watch(35, always=True).beat(25)
    watch.always = False
    watch.beat(11)
    assert watch.verdict() == (35, False)


def test_a_short_limit_is_judged_by_a_probe_of_its_own() -> None:
    """A limit below ten seconds: the target is asked once, when it has passed."""
    for answered in (True, False):
        watch = Watch(3).beat(3)
        assert watch.asked == []
        watch.beat()
        assert watch.asked == [3]
        assert watch.verdict() is None
        watch.probes[0].callback(answered)
        assert watch.verdict() == (3, answered)


def test_a_probe_under_way_at_the_limit_is_awaited() -> None:
    """The limit does not pass over a probe that is about to answer."""
    watch = Watch(12).beat(20)
    assert watch.asked == [10]
    assert watch.verdict() is None
    watch.probes[0].callback(True)
    assert watch.verdict() == (19, True)


@given(st.integers(1, 30), st.lists(st.integers(0, 29), max_size=20))
def test_never_early(limit: int, pauses: list[int]) -> None:
    """However bytes come, a call whose gaps are below its limit is never ended; a longer gap always ends it."""
    watch = Watch(limit, always=True)
    for pause in pauses:
        watch.beat(min(pause, limit))
        assert watch.verdict() is None
        watch.silence.beats = 0
    assert watch.beat(limit).verdict() is None
    assert watch.beat().verdict() is not None


def test_a_byte_starts_everything_afresh() -> None:
    """Once a byte has come, what probes said before counts no more, and a probe under way is dropped."""
    watch = Watch(7200).beat(65)
    watch.silence.beats = 0
    watch.beat()
    assert watch.probes[0].called
    watch.beat(69)
    assert watch.verdict() is None
    assert watch.asked == [10, 75]
    assert watch.beat().verdict() is not None


def test_a_probe_of_an_earlier_silence_says_nothing() -> None:
    """An answer to a probe that arrives after a byte did does not end the call."""
    watch = Watch(3).beat(4)
    watch.silence.beats = 0
    watch.probes[0].callback(False)
    assert watch.verdict() is None
    watch.beat(3)
    assert watch.verdict() is None
    assert len(watch.asked) == 1


def test_a_sleep_of_our_own_starts_everything_afresh() -> None:
    """After this machine has slept for an hour, the target gets the whole time again."""
    watch = Watch(30, always=True).beat(30)
    watch.beat(step=3600)
    assert watch.beat(29).verdict() is None
    assert watch.beat(2).verdict() is not None

    watch = Watch(7200, always=False).beat(70)
    watch.beat(step=3600)
    assert watch.beat(69).verdict() is None
    assert watch.beat(2).verdict() is not None


def test_the_count_stands_still_while_the_reading_is_held() -> None:
    """While the client's own slowness holds the reading nothing is counted, probed or ended; then it goes on."""
    watch = Watch(20, always=True).beat(6)
    watch.silence.held = True
    watch.beat(1000)
    assert watch.asked == []
    watch.silence.held = False
    assert watch.beat(14).verdict() is None
    assert watch.beat().verdict() is not None


def test_a_verdict_does_not_end_what_is_held() -> None:
    """A probe that answers while the reading is held waits with its verdict until reading goes on."""
    watch = Watch(3).beat(4)
    watch.silence.held = True
    watch.probes[0].callback(True)
    assert watch.beat(10).verdict() is None
    watch.silence.held = False
    watch.beat()
    assert watch.stalled


def test_a_limit_may_change_under_way() -> None:
    """Before the first byte one limit holds, between bytes another."""
    watch = Watch(100, always=True).beat(50)
    watch.silence.limit = 5
    watch.silence.beats = 0
    assert watch.beat(5).verdict() is None
    assert watch.beat().verdict() is not None


def test_stopped_is_stopped() -> None:
    """After the end of a call nothing is probed, and no late answer ends it a second time."""
    watch = Watch(3).beat(4)
    watch.silence.stop()
    watch.silence.stop()
    assert watch.probes[0].called
    watch.beat(100)
    assert len(watch.asked) == 1
    assert watch.verdict() is None


def test_a_probe_that_breaks_is_unanswered(logged_errors: list[LogEvent]) -> None:
    """A bug in a probe is logged and taken for no answer; the heart goes on."""
    watch = Watch(3).beat(4)
    watch.probes[0].errback(ZeroDivisionError())
    assert watch.verdict() == (3, False)
    assert [event["log_failure"].type for event in logged_errors] == [ZeroDivisionError]
    logged_errors.clear()


def test_a_dropped_probe_is_cancelled_quietly() -> None:
    """A probe that is no longer wanted is really ended, and says nothing about it in the log."""
    watch = Watch(3).beat(4)
    watch.silence.stop()
    assert watch.dropped == 1


# -- over loopback ----------------------------------------------------------------------------------------------------


async def probed(it: Rig, *, answered: bool) -> None:
    """See a probe, on a connection of its own, and answer it or not."""
    line = await it.server.line()
    first, headers, _ = await line.request()
    assert first == b"GET /api/version HTTP/1.1"
    assert headers[b"connection"] == b"close"
    if answered:
        line.answer(b'{"version":"0.32.15"}')
    else:
        line.hang_up()
    await line.closed
    await turns(5)


@pytest.mark.parametrize("answered", [True, False])
@asynchronous
async def test_silence_before_the_head(answered: bool) -> None:
    """A target that says nothing is probed; the call ends as its own fault or not, and its connection is closed."""
    async with rig() as it:
        line, asking, _ = await it.asked(first_byte=15)
        it.beat(11)
        await probed(it, answered=answered)
        it.beat(4)
        assert not asking.called
        it.beat()
        with pytest.raises(Stalled) as stalled:
            await asking
        assert stalled.value.probe_answered is answered
        await line.closed


@asynchronous
async def test_silence_between_bytes() -> None:
    """After the head the other limit holds, from each byte on, and stands still while reading is paused."""
    async with rig() as it:
        line, asking, sink = await it.asked(first_byte=7200, between=8)
        it.beat(8)
        line.begin()
        for _ in range(3):
            await sink.arrived.get()
            it.beat(8)
            line.chunk(b"x")
        await sink.arrived.get()
        sink.flow.pause()
        it.beat(1000)
        sink.flow.resume()
        it.beat(1, step=3600)
        it.beat(8)
        assert len(it.server.lines) == 1
        it.beat()
        await probed(it, answered=True)
        with pytest.raises(Stalled):
            await asking
        await line.closed


@asynchronous
async def test_a_load_on_a_sleeping_target() -> None:
    """A probing call is given up about a minute after probes go unanswered, long before its own limit."""
    async with rig() as it:
        loading = it.call(b"POST", b"/api/generate", {"model": "m"}, timeout=600.0, probing=True)
        line = await it.server.line()
        await line.request()
        it.beat(11)
        for _ in range(6):
            await probed(it, answered=False)
            assert not loading.called
            it.beat(10)
        with pytest.raises(Stalled) as stalled:
            await loading
        assert stalled.value.probe_answered is False
        await line.closed
