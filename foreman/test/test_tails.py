"""Reading along at one's own pace."""

from __future__ import annotations

from attrs import define, field

from foreman.job import Ending, JobState
from foreman.test.test_forecast import job
from foreman.work.moves import Move, ended
from foreman.work.tails import SLACK, Tails


@define
class Sink:
    """What a reader has had."""

    got: list[bytes] = field(factory=list)
    over: str | None = None

    def write(self, data: bytes) -> None:
        """Take it."""
        assert self.over is None
        self.got.append(data)

    def finish(self) -> None:
        """End."""
        assert self.over is None
        self.over = "finished"

    def cut(self) -> None:
        """End."""
        assert self.over is None
        self.over = "cut"


def test_late_and_early() -> None:
    """Who comes late first gets what there is; all get the rest and the end."""
    tails, early, late = Tails(), Sink(), Sink()
    tails.join("1", early)
    tails.open("1", lambda: b"so far\n")
    tails.feed("1", b"first\n")
    tails.join("1", late)
    tails.feed("1", b"second\n")
    tails.feed("2", b"of another\n")
    tails.close("1")
    assert (early.got, early.over) == ([b"first\n", b"second\n"], "finished")
    assert (late.got, late.over) == ([b"so far\n", b"second\n"], "finished")


def test_a_slow_reader_loses_nothing() -> None:
    """What comes while a reader takes nothing waits for it, the end too."""
    tails, sink = Tails(), Sink()
    tails.open("1", lambda: b"")
    reader = tails.join("1", sink)
    reader.pause()
    tails.feed("1", b"a")
    tails.feed("1", b"b")
    tails.close("1")
    assert (sink.got, sink.over) == ([], None)
    reader.resume()
    assert (sink.got, sink.over) == ([b"ab"], "finished")
    reader.leave()


def test_a_reader_that_cannot_keep_up_is_cut() -> None:
    """Beyond a bound a reader is cut, alone; whoever left is told nothing more."""
    tails, slow, quick, gone = Tails(), Sink(), Sink(), Sink()
    tails.open("1", lambda: b"")
    reader = tails.join("1", slow)
    tails.join("1", quick)
    tails.join("1", gone).leave()
    reader.pause()
    tails.feed("1", b"x" * SLACK)
    assert slow.over is None
    tails.feed("1", b"x")
    assert slow.over == "cut"
    tails.close("1")
    reader.resume()
    assert (slow.got, quick.over, gone.over) == ([], "finished", None)


def test_a_job_that_never_runs() -> None:
    """Who waits for a job that is cancelled in the queue does not wait for ever."""
    tails, sink = Tails(), Sink()
    waiting = job(1)
    tails.join(waiting.id, sink)
    tails.follow(Move(waiting, None, ready=True))
    assert sink.over is None
    tails.follow(Move(ended(waiting, Ending(error=None, at=1)), JobState.QUEUED, ready=False))
    assert sink.over == "finished"
