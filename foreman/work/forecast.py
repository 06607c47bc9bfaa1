"""When a queued job will run, as far as can be told: its place in line, the swaps before it, the seconds until then."""

from __future__ import annotations

from attrs import frozen


@frozen(kw_only=True)
class Forecast:
    """What can be said of a queued job.

    :ivar position: how many run before it, plus one.
    :ivar position_exact: False if `position` is only a lower bound.
    :ivar swaps_ahead: loads before it runs, its own included.
    :ivar eta_seconds: until it is likely to be done; None until there is something to learn from.
    """

    position: int
    position_exact: bool
    swaps_ahead: int
    eta_seconds: float | None
