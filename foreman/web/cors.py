"""Which browser pages may talk to foreman, and by which names it is reached.  Decisions only, as Ollama takes them.

A page of any site can make its visitor's browser send requests to this machine.  Ollama stands against that with two
checks, and so does foreman: the `Origin` that browsers name must be allowed, and while there is nothing but the
loopback address between a stranger and the API, the `Host` must be a name no stranger can own (else a site may point
its own name at 127.0.0.1).  Sources: gin-contrib/cors as Ollama configures it in `server/routes.go`, its
`envconfig.AllowedOrigins`, and its `allowedHostsMiddleware`.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

DEFAULT_ORIGINS = (
    *(
        f"{scheme}://{host}{port}"
        for host in ("localhost", "127.0.0.1", "0.0.0.0")  # noqa: S104 - the name of an origin, nothing is bound
        for port in ("", ":*")
        for scheme in ("http", "https")
    ),
    "app://*",
    "file://*",
    "tauri://*",
    "vscode-webview://*",
    "vscode-file://*",
)
"""The origins that Ollama allows unasked; one `*` stands for any text."""

_ALLOW_HEADERS = (
    b"Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,X-Stainless-Async,"
    b"X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,"
    b"X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,"
    b"X-Stainless-Runtime-Version,X-Stainless-Timeout"  # up to here Ollama's; the rest are foreman's
    b",Prefer,Idempotency-Key,X-Api-Key"
)
_EXPOSE_HEADERS = b"X-Foreman-Job,X-Foreman-Degraded,Server-Timing,Age,Location,Retry-After"

Headers = list[tuple[bytes, list[bytes]]]
"""Names with all their values."""


def same_origin(origin: str, host: str) -> bool:
    """Whether a page of `origin` was served under the name `host` (as the `Host` header has it), so is our own."""
    return origin in (f"http://{host}", f"https://{host}")


def allowed(origin: str, host: str, extra_origins: Sequence[str]) -> bool:
    """Whether a page of `origin` may talk to us, reached as `host`.

    :param extra_origins: FOREMAN_ORIGINS; forms such as `https://chat.example`, `https://*.example`, `myapp://*`, `*`.
    """
    origin = origin.lower()
    patterns = (*DEFAULT_ORIGINS, *extra_origins)
    return same_origin(origin, host.lower()) or any(_matches(origin, pattern.strip().lower()) for pattern in patterns)


def answer_headers(origin: str, extra_origins: Sequence[str]) -> Headers:
    """What every answer to a page of an allowed other origin carries, so that the page may read it."""
    exposed = (b"access-control-expose-headers", [_EXPOSE_HEADERS])
    if "*" in extra_origins:
        return [(b"access-control-allow-origin", [b"*"]), exposed]
    return [(b"access-control-allow-origin", [origin.encode("latin-1")]), (b"vary", [b"Origin"]), exposed]


def preflight_headers(origin: str, extra_origins: Sequence[str]) -> Headers:
    """What the answer to an allowed preflight carries: `204`, good for twelve hours."""
    headers: Headers = [
        (b"access-control-allow-headers", [_ALLOW_HEADERS]),
        (b"access-control-allow-methods", [b"GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"]),
        (b"access-control-max-age", [b"43200"]),
    ]
    if "*" in extra_origins:
        return [*headers, (b"access-control-allow-origin", [b"*"])]
    vary = [b"Origin", b"Access-Control-Request-Method", b"Access-Control-Request-Headers"]
    return [*headers, (b"access-control-allow-origin", [origin.encode("latin-1")]), (b"vary", vary)]


def host_ok(host: str) -> bool:
    """Whether a `Host` header's value is a name of this machine or its private network, with or without a port.

    These are loopback, private and unspecified addresses, the addresses of this machine, no name at all, `localhost`,
    the machine's own name, and what ends in `.localhost`, `.local` or `.internal`.
    """
    name = _without_port(host).lower()
    try:
        address = ip_address(name)
    except ValueError:
        return name in ("", "localhost", socket.gethostname().lower()) or name.endswith(
            (".localhost", ".local", ".internal")
        )
    return _is_near(address) or _is_ours(address)


def _matches(origin: str, pattern: str) -> bool:
    before, star, after = pattern.partition("*")
    if not star:
        return origin == pattern
    return len(origin) >= len(before) + len(after) and origin.startswith(before) and origin.endswith(after)


def _without_port(host: str) -> str:
    if host.startswith("["):
        literal, bracket, port = host[1:].partition("]")
        return literal if bracket and (not port or port.startswith(":")) else host
    name, colon, _ = host.rpartition(":")
    return name if colon and ":" not in name else host


_PRIVATE = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))


def _is_near(address: IPv4Address | IPv6Address) -> bool:
    # Not `is_private`: Python's takes in more than Go's, test networks and link-local addresses among them.
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified or any(address in network for network in _PRIVATE)


def _is_ours(address: IPv4Address | IPv6Address) -> bool:
    """Whether an interface of this machine has the address: only then can a socket be bound to it."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True
