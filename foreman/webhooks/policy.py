"""Where webhooks may go: the form of their URLs, and the addresses that may be connected to.

A receiver in the house or on this very machine is the normal case, so private addresses and loopback are allowed.
Never allowed, whatever the settings say, is what a caller could only want for spying: link-local addresses and those
at which clouds hand out credentials, however they are disguised, and addresses that no single receiver can have.

`check_url` is for the moment a URL is given: it knows no DNS.  `check_address` is for the moment of connecting, when
the name has become an address; only that one protects, since a name may mean something else a second later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from attrs import frozen

from foreman.errors import ForemanError

Network = IPv4Network | IPv6Network

LONGEST = 2048
"""Characters of a URL."""

_PORTS = {"http": 80, "https": 443}
# No underscores: Twisted connects to no such name.
_LABEL = re.compile("[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# What ends in a number can only be an address, as browsers have it too; only the plain forms of one are taken.
_NUMBER = re.compile("[0-9]+|0x[0-9a-f]*")

_LINK_LOCAL = (ip_network("169.254.0.0/16"), ip_network("fe80::/10"))
_METADATA = tuple(
    map(
        ip_network,
        (
            "100.100.100.200",  # Alibaba
            "fd00:100::100:200",
            "168.63.129.16",  # Azure
            "192.0.0.192",  # Oracle
            "fd00:c1::a9fe:a9fe",
            "fd00:ec2::/32",  # Amazon
            "fd20:ce::254",  # Google
            "fd00:42::42",  # Scaleway
            "fd00:a9fe:a9fe::1",  # Linode
        ),
    )
)
_NOBODY = tuple(map(ip_network, ("0.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4", "::/128", "ff00::/8")))

_LAST = (12, 13, 14, 15)
# Where in an IPv6 address of each kind the four bytes of an IPv4 address may stand.
_EMBEDDED = tuple(
    (IPv6Network(network), places)
    for network, places in (
        ("::/96", (_LAST,)),  # IPv4-compatible
        ("::ffff:0:0/96", (_LAST,)),  # IPv4-mapped
        ("::ffff:0:0:0/96", (_LAST,)),  # IPv4-translated
        ("64:ff9b::/96", (_LAST,)),  # NAT64
        ("64:ff9b:1::/48", ((6, 7, 9, 10), (7, 9, 10, 11), (9, 10, 11, 12), _LAST)),  # NAT64, prefixes of one's own
        ("2002::/16", ((2, 3, 4, 5),)),  # 6to4
        ("2001::/32", ((4, 5, 6, 7),)),  # Teredo's server; its client is told apart below
    )
)


class BadURL(ForemanError):
    """A text that is no URL for a webhook; says what is wrong, to stand after the name of the field."""


class AddressRefused(ForemanError):
    """An address that webhooks may not go to; says why."""


@frozen(kw_only=True)
class Destination:
    """A URL in its parts.

    :ivar scheme: `http` or `https`.
    :ivar host: a name in lower case, or an address in its usual form and without brackets.
    :ivar target: path and query, byte for byte as given, what the request line names.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


@frozen
class AddressPolicy:
    """The places that are allowed; with neither networks nor hosts, all but those never allowed.

    :ivar networks: the addresses allowed.
    :ivar hosts: names in lower case, each for itself alone.  A name here is trusted with wherever it leads, except to
        what is never allowed.
    """

    networks: tuple[Network, ...] = ()
    hosts: tuple[str, ...] = ()

    def check_url(self, url: str) -> Destination:
        """Take a URL apart, as far as that can be judged without asking the DNS.

        A name that is not among `hosts` is let through where `networks` may turn out to hold it.

        :raise BadURL: it is not an http or https URL of a host.
        :raise AddressRefused: its host is an address, or a name, that can never be allowed.
        """
        destination = _parse(url)
        try:
            address = ip_address(destination.host)
        except ValueError:
            if self.hosts and not self.networks and destination.host not in self.hosts:
                raise AddressRefused(f"{destination.host} is not in FOREMAN_WEBHOOK_ALLOW") from None
        else:
            self.check_address(destination.host, str(address))
        return destination

    def check_address(self, host: str, address: str) -> None:
        """Say whether a connection may go, or has gone, to this address.

        :param host: as in `Destination`, what the address was looked up for.
        :param address: as text, with or without an IPv6 zone.
        :raise AddressRefused: it may not, or the text is no address.
        """
        try:
            ip = ip_address(address)
        except ValueError:
            raise AddressRefused(f"{address} is not an address") from None
        if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped  # the same address to every system
        shown = address if address == host else f"{address}, the address of {host},"
        for form in (ip, *_embedded(ip)):
            if _is_in(form, _LINK_LOCAL):
                raise AddressRefused(f"{shown} is link-local, where webhooks never go")
            if _is_in(form, _METADATA):
                raise AddressRefused(f"{shown} belongs to a cloud's metadata service, where webhooks never go")
        if _is_in(ip, _NOBODY):
            raise AddressRefused(f"{shown} is not the address of one receiver")
        if (self.networks or self.hosts) and host not in self.hosts and not _is_in(ip, self.networks):
            raise AddressRefused(f"{shown} is not in FOREMAN_WEBHOOK_ALLOW")


def _is_in(ip: IPv4Address | IPv6Address, networks: tuple[Network, ...]) -> bool:
    return any(ip in network for network in networks)


def _embedded(ip: IPv4Address | IPv6Address) -> Iterator[IPv4Address]:
    """Give every IPv4 address that a gateway may take this IPv6 address for."""
    if isinstance(ip, IPv4Address):
        return
    packed = ip.packed
    for network, places in _EMBEDDED:
        if ip in network:
            for place in places:
                yield IPv4Address(bytes(packed[index] for index in place))
    if ip.teredo is not None:
        yield ip.teredo[1]


def _parse(url: str) -> Destination:
    if len(url) > LONGEST:
        raise BadURL(f"must be at most {LONGEST} characters")
    if not re.fullmatch("[!-~]*", url):
        raise BadURL("must be printable ASCII without blanks (write a host in other letters in its xn-- form)")
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme not in _PORTS or not rest:
        raise BadURL("must begin with http:// or https:// and a host")
    if "#" in rest:
        raise BadURL("must not have a fragment (#…): it would never be sent")
    authority = re.split("[/?]", rest, maxsplit=1)[0]
    if "@" in authority:
        raise BadURL("must not hold a user or a password")
    # Without `%`: a zone is of one machine's own making.
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?", authority)
    if match is None:
        raise BadURL("must have a host and at most a port before its path")
    port = int(match[2]) if match[2] else _PORTS[scheme]
    if not 1 <= port <= 65535:
        raise BadURL("must have a port from 1 to 65535, or none")
    target = rest[len(authority) :]
    if re.match(r"[^?]*[\[\]]", target):
        # Behind `//` it looks like the host of another URL; Twisted then raises.
        raise BadURL("must not have [ or ] in its path (write %5B, %5D)")
    if not target.startswith("/"):
        target = f"/{target}"
    return Destination(scheme=scheme, host=_host(match[1].lower()), port=port, target=target)


def _host(text: str) -> str:
    """Check a host in lower case; an address is given in its usual form."""
    labels = text.split(".")
    try:
        if text.startswith("["):
            return str(IPv6Address(text[1:-1]))
        if _NUMBER.fullmatch(labels[-1]):
            return str(IPv4Address(text))
    except ValueError:
        raise BadURL(f"has a host that is not an address: {text}") from None
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise BadURL(f"has a host that is not a name: {text}" if text else "must have a host")
    return text
