"""Who gets how many of the outbox's places, so that what one receiver does is not felt by another.

Each host has two places at most.  One that has failed three times in a row is *ailing* until it takes something again,
and all the ailing ones together get at most half of the places, so that no number of dead ones takes them all.  This is
known in memory only: after a restart a dead host has to fail three times anew.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from foreman.logs import make_logger
from foreman.record import Delivery

PLACES = 32
"""Connections in all."""

PLACES_OF_HOST = 2
"""Connections to one host."""

PLACES_OF_AILING = PLACES // 2
"""Connections to all ailing hosts together."""

AILING = 3
"""Failures in a row that make a host ailing."""

KNOWN = 1000
"""Hosts whose failures are remembered."""


class Receivers:
    """The hosts that have failed lately."""

    _log = make_logger()

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}  # in a row; the one that failed longest ago first

    @property
    def ailing(self) -> set[str]:
        """Those that have failed three times in a row."""
        return {host for host, count in self._failures.items() if count >= AILING}

    def is_ailing(self, host: str) -> bool:
        """Whether it is one of them."""
        return self._failures.get(host, 0) >= AILING

    def failed(self, host: str) -> None:
        """It did not answer, or said no."""
        count = self._failures[host] = self._failures.pop(host, 0) + 1
        if count == AILING:
            self._log.warn("The receiver {host} has failed {count} times in a row", host=host, count=count)
        if len(self._failures) > KNOWN:
            del self._failures[next(iter(self._failures))]

    def answered(self, host: str) -> None:
        """It is well."""
        if self._failures.pop(host, 0) >= AILING:
            self._log.info("The receiver {host} takes webhooks again", host=host)

    def admitted(self, found: Sequence[Delivery], under_way: Collection[Delivery]) -> list[Delivery]:
        """Those of the deliveries found that may start now, in their order.

        :param found: at most so many of each host as have a place by the host's own limit.
        """
        ailing = self.ailing
        room = PLACES - len(under_way)
        room_for_ailing = PLACES_OF_AILING - sum(delivery.host in ailing for delivery in under_way)
        chosen: list[Delivery] = []
        for delivery in found:
            if len(chosen) == room:
                break
            if delivery.host in ailing:
                if room_for_ailing <= 0:
                    continue
                room_for_ailing -= 1
            chosen.append(delivery)
        return chosen
