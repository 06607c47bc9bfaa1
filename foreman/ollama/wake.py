"""Waking the target's machine: a Wake-on-LAN packet while jobs wait and nobody answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol

from foreman.logs import make_logger
from foreman.tick import Tick

EVERY = 30
"""Seconds (beats of the tick) between two packets."""

PORT = 9
"""The discard service, as Wake-on-LAN senders use it."""


def magic_packet(mac: bytes) -> bytes:
    """The packet that wakes the network card of that address (6 bytes): AMD's Magic Packet Technology, 1995."""
    return b"\xff" * 6 + mac * 16


class WakeOnLan:
    """Sends the packet, at most every half minute, while `needed()`."""

    _log = make_logger()

    def __init__(
        self, *, reactor: Any, tick: Tick, mac: bytes, broadcast: str, needed: Callable[[], bool], port: int = PORT
    ) -> None:
        self._reactor = reactor
        self._packet = magic_packet(mac)
        self._to = (broadcast, port)
        self._needed = needed
        self._since = EVERY
        tick.subscribe(self._beat)

    def _beat(self, slept: bool) -> None:
        self._since += 1
        if self._since >= EVERY and self._needed():
            self._since = 0
            self._send()

    def _send(self) -> None:
        self._log.info("Waking the target's machine")
        protocol = DatagramProtocol()
        try:
            port = self._reactor.listenUDP(0, protocol)
            protocol.transport.setBroadcastAllowed(True)  # type: ignore[union-attr]
            protocol.transport.write(self._packet, self._to)  # type: ignore[union-attr]
            port.stopListening()
        except (OSError, CannotListenError) as error:
            self._log.warn("The wake-up packet was not sent: {error}", error=error)
