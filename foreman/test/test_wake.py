"""Wake-on-LAN."""

from __future__ import annotations

import pytest_twisted
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import Clock

from foreman.ollama.wake import WakeOnLan
from foreman.test.harness import eventually, reactor
from foreman.tick import Tick


class Listener(DatagramProtocol):
    """Keeps what comes."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []

    def datagramReceived(self, datagram: bytes, addr: object) -> None:  # noqa: N802
        """Keep it."""
        self.packets.append(datagram)


@pytest_twisted.ensureDeferred
async def test_the_machine_is_woken_at_most_every_half_minute_and_only_when_needed() -> None:
    """The first packet goes out at once, the next 30 s later, none when nothing waits."""
    listener = Listener()
    port = reactor.listenUDP(0, listener, interface="127.0.0.1")
    tick = Tick(Clock(), lambda: 0.0)
    needed = False
    mac = bytes.fromhex("aabbccddeeff")
    WakeOnLan(
        reactor=reactor,
        tick=tick,
        mac=mac,
        broadcast="127.0.0.1",
        needed=lambda: needed,
        port=port.getHost().port,
    )
    for _ in range(60):
        tick.beat()
    needed = True
    for _ in range(30):
        tick.beat()
    await eventually(lambda: listener.packets)
    tick.beat()
    await eventually(lambda: len(listener.packets) == 2)
    assert listener.packets == [b"\xff" * 6 + mac * 16] * 2
    await port.stopListening()
