"""What can be made to go wrong, for whom, and how often."""

from __future__ import annotations

from enum import StrEnum

from attrs import define

from .asks import Glance


class Fault(StrEnum):
    """One way to fail; the value is its name on the control routes.

    The first five strike before anything is answered, the others after some lines of a stream, or in the middle of
    an answer that is not streamed.
    """

    HANG = "hang"
    """Nothing is ever answered, not even headers."""
    DROP = "drop"
    """The connection is closed before the first byte."""
    ERROR_500 = "error-500"
    """A runner that died before the first token."""
    BUSY_503 = "busy-503"
    """The FIFO is said to be full."""
    WAIT_FOR_LOAD = "wait-for-load"
    """The answer comes when no load is in progress: a slow `/api/ps`."""
    HANG_MID_STREAM = "hang-mid-stream"
    CUT_MID_LINE = "cut-mid-line"
    """Half a line, then the connection is closed without the last chunk."""
    CUT = "cut"
    """The connection is closed between two lines."""
    ERROR_LINE = "error-line"
    """A runner that dies: `{"error": …}` and a proper end (on `/v1` an end without the last event)."""
    NO_DONE = "no-done"
    """A proper end without `done`: the repetition stop."""


BEFORE = frozenset({Fault.HANG, Fault.DROP, Fault.ERROR_500, Fault.BUSY_503, Fault.WAIT_FOR_LOAD})


@define(kw_only=True)
class Rule:
    """A fault waiting for its requests.

    :ivar path: the route, or `*` for all; `model`: as `/api/tags` lists it, None for any.
    :ivar load: only load requests (True), only others (False), or both (None).
    :ivar after: lines of a stream before a mid-stream fault strikes.
    :ivar times: how many requests it still strikes; None for all.
    """

    path: str
    fault: Fault
    model: str | None = None
    load: bool | None = None
    after: int = 2
    times: int | None = 1

    def strikes(self, path: str, glance: Glance) -> bool:
        """Whether it is meant for this request."""
        return self.path in ("*", path) and self.model in (None, glance.model) and self.load in (None, glance.load)


class Faults:
    """The faults that are planned; the first rule that fits a request strikes."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []

    def next(
        self,
        path: str,
        fault: Fault,
        *,
        times: int = 1,
        model: str | None = None,
        load: bool | None = None,
        after: int = 2,
    ) -> None:
        """Strike the next `times` requests to `path` that fit."""
        self.rules.append(Rule(path=path, fault=fault, model=model, load=load, after=after, times=times))

    def always(
        self, path: str, fault: Fault, *, model: str | None = None, load: bool | None = None, after: int = 2
    ) -> None:
        """Strike every request to `path` that fits, until `clear`."""
        self.rules.append(Rule(path=path, fault=fault, model=model, load=load, after=after, times=None))

    def clear(self) -> None:
        """Plan none any more; requests that hang already go on hanging."""
        self.rules.clear()

    def take(self, path: str, body: bytes) -> Rule | None:
        """The rule that strikes this request, counted down; None for none."""
        if not self.rules:
            return None
        glance = Glance.at(body)
        for rule in self.rules:
            if rule.strikes(path, glance):
                if rule.times is not None:
                    rule.times -= 1
                    if not rule.times:
                        self.rules.remove(rule)
                return rule
        return None
