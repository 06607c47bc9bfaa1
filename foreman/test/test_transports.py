"""Sending at once (`foreman.transports`), on a socket that takes as much as the test lets it."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.abstract import FileDescriptor
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.testing import StringTransport

from foreman.transports import push


class _Reactor:
    """Takes note of nothing."""

    def __getattr__(self, name: str) -> Callable[[object], None]:
        return lambda _: None


class Socket(FileDescriptor):
    """A transport of which the test says how much it takes.

    :ivar room: bytes that each attempt to send may take; negative when the connection is lost.
    """

    connected = 1

    def __init__(self, room: int) -> None:
        super().__init__(_Reactor())  # type: ignore[arg-type]
        self.room = room
        self.sent = b""
        self.attempts = 0

    def writeSomeData(self, data: bytes) -> int | BaseException:  # noqa: N802
        """Take what there is room for."""
        self.attempts += 1
        if self.room < 0:
            return CONNECTION_LOST
        self.sent += bytes(data[: self.room])
        return min(len(data), self.room)


@given(st.lists(st.tuples(st.sampled_from(["push", "write", "turn"]), st.binary(max_size=9), st.integers(0, 9))))
def test_nothing_is_lost_or_overtaken(steps: list[tuple[str, bytes, int]]) -> None:
    """Whatever the socket takes and when, every byte arrives once, in order."""
    socket, written = Socket(0), b""
    for how, data, room in steps:
        socket.room = room
        if how == "turn":
            socket.doWrite()  # type: ignore[no-untyped-call]
            continue
        written += data
        if how == "push":
            push(socket, data)
        else:
            socket.write(data)
    socket.room = 1000
    push(socket)
    assert socket.sent == written


def test_one_attempt() -> None:
    """What fits is sent at once, together with what had been written before; nothing is sent twice."""
    socket = Socket(1000)
    push(socket, b"a")
    assert (socket.sent, socket.attempts) == (b"a", 1)
    socket.write(b"b")
    push(socket, b"c")
    assert (socket.sent, socket.attempts) == (b"abc", 2)
    push(socket)
    assert socket.attempts == 2


def test_a_lost_connection_is_the_reactors_to_see() -> None:
    """Nothing is raised, and nothing is sent once it is closed or being closed."""
    socket = Socket(-1)
    push(socket, b"a")
    socket.room = 1000
    socket.loseConnection()  # type: ignore[no-untyped-call]
    push(socket)
    assert socket.sent == b""
    socket.connected = 0
    push(socket, b"b")
    assert socket.sent == b""


def test_other_transports_are_written_to() -> None:
    """Under TLS, or in memory, it is a write like any other."""
    transport = StringTransport()
    push(transport, b"a")
    assert transport.value() == b"a"
