"""How the settings' values are written: for each kind, reading it, printing it and saying what is allowed.

`foreman.config` is the table that uses them.  A parser raises ValueError and nothing else; what its text was is told
by the table, which knows what is secret.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from attrs import frozen
from twisted.internet.endpoints import quoteStringArgument, serverFromString

from foreman.durations import format_duration, format_size, parse_duration, parse_size

T = TypeVar("T")

STARS = "***"


@frozen(repr=False)
class Secret(Generic[T]):
    """A value that prints as stars, however it is formatted."""

    _value: T

    def reveal(self) -> T:
        """The value itself, for the one place that needs it."""
        return self._value

    def __repr__(self) -> str:
        return STARS


@frozen(kw_only=True)
class Address:
    """Where foreman listens.

    :ivar text: as the setting has it.
    :ivar endpoint: what `twisted.internet.endpoints.serverFromString` takes.
    :ivar loopback: only this machine can connect, for certain.
    """

    text: str
    endpoint: str
    loopback: bool


@frozen(kw_only=True)
class Allowed:
    """Where webhooks may go; with neither networks nor hosts, anywhere.

    :ivar hosts: names in lower case, each standing for itself alone.
    """

    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    hosts: tuple[str, ...] = ()


@frozen(kw_only=True)
class Wake:
    """Whom to wake: six bytes of hardware address, and the IPv4 address the packet is sent to."""

    mac: bytes
    broadcast: str = "255.255.255.255"


@frozen
class Kind(Generic[T]):
    """A way of writing a value.

    :ivar allowed: ends the sentence "it must be …".
    :ivar parse: raises ValueError for what is not allowed.
    :ivar show: gives a text that `parse` reads as the same value.
    :ivar hidden: a pattern; what it matches in a wrong value is printed as stars.
    """

    allowed: str
    parse: Callable[[str], T]
    show: Callable[[T], str] = str
    hidden: str | None = None


def optional(kind: Kind[T]) -> Kind[T | None]:
    """The same, or nothing at all."""
    return Kind(
        kind.allowed,
        lambda text: kind.parse(text) if text else None,
        lambda value: "" if value is None else kind.show(value),
    )


def matching(pattern: str, allowed: str) -> Kind[str]:
    """A text that matches as a whole."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(allowed)
        return text

    return Kind(allowed, parse)


def one_of(*words: str) -> Kind[str]:
    """One of some words, exactly."""
    return matching("|".join(words), f"{', '.join(words[:-1])} or {words[-1]}")


def count(most: int) -> Kind[int]:
    """A whole number from 1 on."""

    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,10}", text) or not 1 <= int(text) <= most:
            raise ValueError(text)
        return int(text)

    return Kind(f"a whole number from 1 to {most}", parse)


def duration(least: float = 0) -> Kind[float]:
    """A length of time in seconds."""

    def parse(text: str) -> float:
        if (seconds := parse_duration(text)) < least:
            raise ValueError(text)
        return seconds

    bound = f" of at least {format_duration(least)}" if least else ""
    return Kind(f"a duration{bound} such as 30s, 1h30m or 7d", parse, format_duration)


def size(least: int) -> Kind[int]:
    """A number of bytes."""
    # SQLite holds at most 10^9 bytes in one value, and a body or an answer is kept as one.
    most = 512 * 2**20

    def parse(text: str) -> int:
        if not least <= (number := parse_size(text)) <= most:
            raise ValueError(text)
        return number

    return Kind(f"a size from {least} to {format_size(most)} such as 64MiB, 256KiB or 1000", parse, format_size)


# -- hosts and addresses -----------------------------------------------------------------------------------------------

_LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"


def _host(text: str) -> IPv4Address | IPv6Address | str:
    """An address, or a name in lower case.  What ends in a number can only be an address, mistyped or not."""
    try:
        return ip_address(text)
    except ValueError:
        labels = text.split(".")
        if len(text) > 253 or labels[-1].isdigit() or not all(re.fullmatch(_LABEL, label) for label in labels):
            raise
        return text.lower()


def _parse_url(text: str) -> str:
    # urlsplit drops control characters and blanks without a word; an interface (`%eth0`) has no place in a URL.
    if not re.fullmatch("[!-~]+", text) or re.search(r"[@?#%\\]|:/?$", text):
        raise ValueError(text)
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname or url.path not in ("", "/") or url.port == 0:
        raise ValueError(text)
    if "_" in url.hostname:  # resolvers may take it, Twisted's client does not
        raise ValueError(text)
    host = _host(url.hostname)
    shown = f"[{host}]" if isinstance(host, IPv6Address) else str(host)
    return f"{url.scheme}://{shown}" + (f":{url.port}" if url.port else "")


URL = Kind(
    "http://host[:port] or https://host[:port], without a path, a query or a user, and no `_` in the host",
    _parse_url,
    hidden=r"(?s)^.*@",
)


BACKLOG = 1024
"""Connections that may wait to be accepted: with Twisted's 50 a burst of clients has some try again after a second."""


def _parse_address(text: str) -> Address:
    kind, _, rest = text.partition(":")
    if kind in ("tcp", "tcp6", "ssl", "tls", "unix", "systemd", "haproxy"):
        try:
            # An endpoint keeps the reactor for later, so that none is needed to see whether the words are right.
            serverFromString(None, text)
        except Exception as error:
            raise ValueError("endpoints are plug-ins and raise what they like") from error
        interface = re.search(r"(?:^|:)interface=((?:\\.|[^:\\])*)", rest)
        bound = interface is not None and _is_loopback(re.sub(r"\\(.)", r"\1", interface[1]))
        return Address(text=text, endpoint=text, loopback=bound or kind == "unix")
    match = re.fullmatch(r"(\[[^\]]+\]|[^:\[\]]*):([0-9]{1,5})", text)
    if match is None or int(match[2]) > 65535:
        raise ValueError(text)
    if not match[1]:
        return Address(text=text, endpoint=f"tcp:{match[2]}:backlog={BACKLOG}", loopback=False)
    host = _host(match[1].strip("[]"))
    if match[1].startswith("[") != isinstance(host, IPv6Address):
        raise ValueError(text)
    protocol = "tcp6" if isinstance(host, IPv6Address) else "tcp"
    interface_argument = quoteStringArgument(str(host))
    endpoint = f"{protocol}:{match[2]}:backlog={BACKLOG}:interface={interface_argument}"
    return Address(text=text, endpoint=endpoint, loopback=_is_loopback(str(host)))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


ADDRESS = Kind("host:port, :port, or a Twisted endpoint that works here", _parse_address, lambda address: address.text)


def _entries(text: str) -> list[str]:
    return [entry for entry in re.split(r"[,\s]+", text) if entry]


def _parse_allowed(text: str) -> Allowed:
    networks, hosts = [], []
    for entry in _entries(text):
        try:
            networks.append(ip_network(entry))
        except ValueError:
            hosts.append(str(_host(entry)))
    if text and not networks and not hosts:  # a lone comma or blank, which would else allow everything
        raise ValueError(text)
    return Allowed(networks=tuple(networks), hosts=tuple(hosts))


ALLOWED = Kind(
    "a list of networks such as 10.0.0.0/8 and host names",
    _parse_allowed,
    lambda allowed: ",".join([*map(str, allowed.networks), *allowed.hosts]),
)


def _parse_origins(text: str) -> tuple[str, ...]:
    origins = tuple(_entries(text))
    for origin in origins:
        if not re.fullmatch(r"\*|[A-Za-z*][A-Za-z0-9+.*-]*://[^/?#@\s]+", origin) or origin.count("*") > 1:
            raise ValueError(origin)
    return origins


ORIGINS = Kind(
    "a list of `*` and origins such as https://app.example, each with at most one `*`", _parse_origins, ",".join
)


def _parse_wake(text: str) -> Wake:
    match = re.fullmatch(r"((?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2})(?:@([0-9.]+))?", text)
    if match is None:
        raise ValueError(text)
    mac = bytes.fromhex(re.sub("[:-]", "", match[1]))
    return Wake(mac=mac, broadcast=str(IPv4Address(match[2]))) if match[2] else Wake(mac=mac)


WAKE = Kind(
    "aa:bb:cc:dd:ee:ff or aa:bb:cc:dd:ee:ff@192.0.2.255",
    _parse_wake,
    lambda wake: f"{wake.mac.hex(':')}@{wake.broadcast}",
)

# -- the rest ----------------------------------------------------------------------------------------------------------


def _parse_bearer(text: str) -> Secret[str]:
    # Quotes around it are those of a file that is no shell's: callers would send it without them.
    if not re.fullmatch("[!-~]+", text) or (text[0] in "'\"" and text[-1] == text[0]):
        raise ValueError("not printable ASCII")
    return Secret(text)


BEARER = Kind("printable ASCII without blanks, not in quotes", _parse_bearer)


def _parse_webhook_secret(text: str) -> Secret[bytes]:
    if not text.startswith("whsec_"):
        if "whsec_" in text:  # behind a quote, a blank or a byte order mark: its receivers would compute another key
            raise ValueError(text)
        # The bytes of the environment, whatever they are.
        return Secret(text.encode("utf-8", "surrogateescape"))
    secret = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    if not secret:
        raise ValueError("empty")
    return Secret(secret)


WEBHOOK_SECRET = Kind("`whsec_` and base64, or any text without `whsec_`", _parse_webhook_secret)


def _parse_keep_alive(text: str) -> int | str:
    if re.fullmatch("-?[0-9]{1,9}", text):
        return int(text)
    parse_duration(text.removeprefix("-"))
    if "d" in text:
        raise ValueError("Go knows no days")
    return text


KEEP_ALIVE = Kind("a number of seconds, -1 for ever, 0, or a Go duration such as 15m or 1h30m", _parse_keep_alive)
"""As it goes on the wire: Ollama takes a number as seconds and a string as a Go duration."""

SWITCH = Kind("on or off", lambda text: one_of("on", "off").parse(text) == "on", lambda on: "on" if on else "off")

MODEL = matching("[A-Za-z0-9_./:@-]{1,350}", "the name of a model such as nomic-embed-text or org/model:tag")

# What an environment file with quotes or with Windows' line ends makes of a name would be a new, empty database beside
# the one that holds the queue.
FILE = matching(
    r"""(?!:memory:|file:|["'\s])[^\x00-\x1f\x7f]*(?<!["'\s/])(?<!^\.)(?<!/\.)(?<!\.\.)""",
    "the name of a file, without quotes or blanks around it, or line breaks",
)
