"""Whether the foreman of this container is well: what HEALTHCHECK runs, `python -m foreman.healthcheck`.

It asks `/healthz` at the place that FOREMAN_ADDR names, and ends with 0 when the answer is 200, else with 1 and one
line.  A container runs it every half minute, so it imports next to nothing: it reads what `foreman.kinds` reads with
Twisted's help by itself, and speaks the one line of HTTP that it needs.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Mapping
from threading import Timer
from typing import NamedTuple

PATIENCE = 4.0
"""Seconds for all of it; shorter than what HEALTHCHECK allows, so that the reason is told."""

_POSITIONS = {
    "tcp": ("port", "interface"),
    "tcp6": ("port", "backlog", "interface"),
    "ssl": ("port", "privateKey", "certKey", "sslmethod", "interface"),
    "tls": ("path", "port", "backlog", "interface"),
    "unix": ("address",),
}
"""What the arguments without a name are, by the kind of Twisted endpoint."""


class Place(NamedTuple):
    """Where foreman listens.

    :ivar address: host and port, or the name of a socket file.
    :ivar greeting: what comes before the request.
    """

    address: tuple[str, int] | str
    tls: bool = False
    greeting: bytes = b""


def place(addr: str) -> Place:
    """Where foreman can be asked when FOREMAN_ADDR is this.  It listens there, so it is right, or foreman does not run.

    :raise ValueError: that cannot be told; the text says why.
    """
    kind, _, rest = addr.partition(":")
    if kind == "haproxy":
        return place(rest)._replace(greeting=b"PROXY TCP4 127.0.0.1 127.0.0.1 1 1\r\n")
    if kind == "systemd":
        raise ValueError("a socket of systemd's is known to systemd alone")
    if kind in _POSITIONS:
        values = _arguments(kind, rest)
        if kind == "unix":
            return Place(values.get("address", ""))
        host, port = values.get("interface", ""), values.get("port", "443" if kind == "tls" else "")
    else:
        host, _, port = addr.rpartition(":")
    if not port.isdigit() or int(port) == 0:
        raise ValueError("it names no port")
    host = host.strip("[]")
    if host in ("", "0.0.0.0", "::"):  # noqa: S104 - where it listens, not where we do
        host = "localhost"  # by IPv6 or IPv4, whichever there is: on `::` foreman has both, but a container may not
    return Place((host, int(port)), tls=kind in ("ssl", "tls"))


def _arguments(kind: str, text: str) -> dict[str, str]:
    """The arguments of a Twisted endpoint: parted by colons, with a name or in order; a backslash takes the meaning."""
    named: dict[str, str] = {}
    positions = iter(_POSITIONS[kind])
    for argument in re.findall(r"(?:\\.|[^:\\])+", text):
        *name, value = (re.sub(r"\\(.)", r"\1", part) for part in re.split(r"(?<!\\)=", argument, maxsplit=1))
        named[name[0] if name else next(positions, "")] = value
    return named


def status(at: Place) -> str:
    """The first line of foreman's answer to `GET /healthz`.

    :raise OSError: there is none.
    """
    if isinstance(at.address, str):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(at.address)
    else:
        connection = socket.create_connection(at.address)
    with connection:
        if at.tls:
            connection = _encrypted(connection)
        connection.sendall(at.greeting + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return connection.makefile("rb").readline(256).decode("latin-1").strip()


def _encrypted(connection: socket.socket) -> socket.socket:
    """The same through TLS.  The certificate is for the names that others use: whoever listens here is foreman."""
    import ssl  # noqa: PLC0415 - few need it, and it takes as long as all the rest

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(connection, server_hostname="localhost")


def _give_up(addr: str) -> None:
    sys.stderr.write(f"no answer from {addr} within {PATIENCE:g} s\n")
    os._exit(1)


def main(environ: Mapping[str, str]) -> None:
    """Look once.

    :raise SystemExit: foreman is not well, or cannot be asked; with the line that says so.
    """
    addr = environ.get("FOREMAN_ADDR") or "127.0.0.1:8080"
    # The one bound that holds for a name's look-up, too, which no timeout of a socket does.
    timer = Timer(PATIENCE, _give_up, (addr,))
    timer.daemon = True
    timer.start()
    try:
        answer = status(place(addr))
    except (OSError, ValueError) as error:
        raise SystemExit(f"foreman cannot be asked at {addr}: {error}") from None
    if not re.match(r"HTTP/1\.[01] 200\b", answer):
        raise SystemExit(f"foreman at {addr} is not well: {answer!r}")


if __name__ == "__main__":
    main(os.environ)
