"""Sending at once.

Twisted's TCP transports only note what is written to them, ask the kernel to be told when they may send, and send in
the reactor's next turn: two system calls and a turn for every piece of a stream.  A socket that has room may as well
be written to at once.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.abstract import FileDescriptor


def push(transport: Any, data: bytes = b"") -> None:
    """Send `data`, after all that has been written before; what the socket has no room for is sent in time.

    Under TLS it is merely written.
    """
    if not isinstance(transport, FileDescriptor) or not transport.connected or transport.disconnecting:
        transport.write(data)
    elif transport._tempDataBuffer or transport.dataBuffer:  # noqa: SLF001 - how it tells that something is to be sent
        transport.write(data)
        transport.doWrite()
    elif data:
        sent = transport.writeSomeData(data)
        if isinstance(sent, int) and sent >= len(data):
            return
        transport.write(data[sent:] if isinstance(sent, int) else data)  # and if it is lost, the reactor will see it
