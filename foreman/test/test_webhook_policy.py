"""Where webhooks may go."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from foreman.webhooks.policy import LONGEST, AddressPolicy, AddressRefused, BadURL, Destination

OPEN = AddressPolicy()
HOUSE = AddressPolicy(networks=(ip_network("10.0.0.0/8"), ip_network("fd12::/16")), hosts=("hooks.example",))


def destination(url: str) -> Destination:
    """The URL in its parts."""
    return OPEN.check_url(url)


# -- URLs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://nas:8000/hook?a=1&b=%2F", ("http", "nas", 8000, "/hook?a=1&b=%2F", "nas:8000")),
        ("HTTPS://Hooks.Example", ("https", "hooks.example", 443, "/", "hooks.example")),
        ("http://192.168.1.2:80/", ("http", "192.168.1.2", 80, "/", "192.168.1.2")),
        ("http://localhost:443?x", ("http", "localhost", 443, "/?x", "localhost:443")),
        ("https://[FD12:0::1]:8443//a/../b;c?", ("https", "fd12::1", 8443, "//a/../b;c?", "[fd12::1]:8443")),
        ("http://[::1]/@:", ("http", "::1", 80, "/@:", "[::1]")),
        ("https://xn--mnchen-3ya.example/x", ("https", "xn--mnchen-3ya.example", 443, "/x", "xn--mnchen-3ya.example")),
    ],
)
def test_a_url_is_taken_as_it_is_given(url: str, parts: tuple[str, str, int, str, str]) -> None:
    """A receiver on the LAN, on this machine or on the net; path and query stay byte for byte."""
    found = destination(url)
    assert (found.scheme, found.host, found.port, found.target, found.authority) == parts


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "http://"),
        ("nas/hook", "http://"),
        ("ftp://nas/", "http://"),
        ("file:///etc/passwd", "http://"),
        ("http:/nas", "http://"),
        ("http://", "http://"),
        ("http:///x", "a host"),
        ("http://:80/", "a host"),
        ("http://user@nas/", "user"),
        ("http://user:pass@nas/", "user"),
        ("http://nas#@good/", "fragment"),
        ("http://nas/#/hook", "fragment"),
        ("http://nas/a b", "ASCII"),
        ("http://nas/\r\nHost: x", "ASCII"),
        ("http://nas/\n", "ASCII"),
        ("http://nas/\0", "ASCII"),
        ("http://münchen.example/", "xn--"),
        ("http://nas:0/", "port"),
        ("http://nas:65536/", "port"),
        ("http://nas:/", "port"),
        ("http://nas:\uff18\uff10/", "ASCII"),
        ("http://a:b:c/", "port"),
        ("http://::1/", "port"),
        ("http://[::1/", "port"),
        ("http://[::1]x/", "port"),
        ("http://[fe80::1%25eth0]/", "port"),
        ("http://[nas]/", "port"),
        ("http://[1.2.3.4]/", "not an address"),
        ("http://[::g]/", "port"),
        ("http://[]/", "not an address"),
        ("http://good\\evil/", "not a name"),
        ("http://a..b/", "not a name"),
        ("http://-a/", "not a name"),
        ("http://my_nas/", "not a name"),
        ("http://*.example/", "not a name"),
        ("http://a%2eb/", "not a name"),
        (f"http://{'a' * 64}/", "not a name"),
        (f"http://{'a.' * 127}com/", "not a name"),
        ("http://2130706433/", "not an address"),
        ("http://127.1/", "not an address"),
        ("http://0x7f.1/", "not an address"),
        ("http://0xa9fea9fe/", "not an address"),
        ("http://0251.0376.0251.0376/", "not an address"),
        ("http://300.1.1.1/", "not an address"),
        ("http://nas/" + "a" * LONGEST, "at most 2048"),
    ],
)
def test_a_bad_url_is_refused_with_a_reason(url: str, complaint: str) -> None:
    """What cannot be sent to, or could be read in two ways, is refused when it is given, not hours later."""
    with pytest.raises(BadURL, match=complaint):
        destination(url)


def test_a_url_may_be_as_long_as_the_limit() -> None:
    """2048 characters are still fine."""
    assert destination("http://nas/".ljust(LONGEST, "a")).host == "nas"


@given(st.text(max_size=40) | st.from_regex(r"https?://[!-~]{0,20}[/?]?[!-~]{0,20}", fullmatch=True))
@example("http://[::ffff:1.2.3.4]:1?")
def test_every_text_is_taken_or_refused(url: str) -> None:
    """Whatever a caller sends, the answer is a plain yes or no; and a yes is fit for a request line."""
    try:
        found = destination(url)
    except (BadURL, AddressRefused):
        return
    assert found.target.startswith("/")
    assert all("!" <= letter <= "~" for letter in found.target + found.authority)
    assert destination(f"{found.scheme}://{found.authority}{found.target}") == found


# -- addresses -------------------------------------------------------------------------------------------------------

METADATA = [
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fd00:c1::a9fe:a9fe",
]
LINK_LOCAL = ["169.254.0.1", "169.254.255.255", "fe80::1", "fe80::1%eth0", "febf::1"]
NOBODY = [
    str(IPv4Address(0)),
    "0.1.2.3",
    "::",
    "224.0.0.1",
    "239.255.255.255",
    "ff02::1",
    "255.255.255.255",
    "240.0.0.1",
]
FINE = ["127.0.0.1", "::1", "10.1.2.3", "192.168.1.1", "172.16.0.1", "100.64.0.1", "fd12::1", "203.0.113.7", "2606::1"]


@pytest.mark.parametrize("address", FINE)
def test_receivers_at_home_are_the_normal_case(address: str) -> None:
    """With nothing set, the LAN, this machine and the net may be called back."""
    OPEN.check_address("nas", address)
    assert destination(f"http://[{address}]/" if ":" in address else f"http://{address}/").host == address


@pytest.mark.parametrize(
    "policy", [OPEN, AddressPolicy(networks=(ip_network("0.0.0.0/0"), ip_network("::/0")), hosts=("nas",))]
)
@pytest.mark.parametrize("address", METADATA + LINK_LOCAL + NOBODY)
def test_some_addresses_are_never_called(policy: AddressPolicy, address: str) -> None:
    """Metadata services, link-local and no single host's addresses are refused, whatever is allowed besides."""
    with pytest.raises(AddressRefused, match=r"never go|not the address of one"):
        policy.check_address("nas", address)
    if "%" not in address:
        with pytest.raises(AddressRefused):
            policy.check_url(f"http://[{address}]/" if ":" in address else f"http://{address}/")


def disguises(address: IPv4Address) -> list[IPv6Address]:
    """The ways of writing an IPv4 address as an IPv6 one."""
    four = int(address)
    upper, lower = four >> 16, four & 0xFFFF
    return [
        IPv6Address(four),
        IPv6Address(f"::ffff:{address}"),
        IPv6Address(f"::ffff:0:{address}"),
        IPv6Address(f"64:ff9b::{address}"),
        IPv6Address(f"64:ff9b:1:fffe::{address}"),
        IPv6Address(int(IPv6Address(f"64:ff9b:1:{upper:x}::")) | lower << 40),
        IPv6Address(int(IPv6Address("64:ff9b:1:ab00::")) | four >> 24 << 64 | (four & 0xFFFFFF) << 32),
        IPv6Address(int(IPv6Address("64:ff9b:1:abcd::")) | four << 24),
        IPv6Address(f"2002:{upper:x}:{lower:x}::1"),
        IPv6Address(f"2001:0:{upper:x}:{lower:x}::"),
        IPv6Address(int(IPv6Address("2001:0:c000:201::")) | four ^ 0xFFFFFFFF),
    ]


@given(st.ip_addresses(v=4, network="169.254.0.0/16") | st.sampled_from([IPv4Address("100.100.100.200")]))
def test_no_disguise_helps(address: IPv4Address) -> None:
    """Mapped, translated, tunnelled: a forbidden IPv4 address is forbidden in every IPv6 dress."""
    for dressed in disguises(address):
        with pytest.raises(AddressRefused, match="never go"):
            OPEN.check_address("nas", str(dressed))


def test_an_innocent_address_is_innocent_in_every_dress() -> None:
    """The same forms of a public address are let through; so it was the address that was refused."""
    for dressed in disguises(IPv4Address("203.0.113.7")):
        OPEN.check_address("nas", str(dressed))


@pytest.mark.parametrize("text", ["", "nas", "169.254.169.254.", "0xa9fea9fe", "169.254.43518", "1.2.3.4\n"])
def test_what_is_no_address_is_not_connected_to(text: str) -> None:
    """A resolver that answers with a name, to be looked up once more unseen, gets nowhere."""
    with pytest.raises(AddressRefused, match="not an address"):
        OPEN.check_address("nas", text)


# -- the list of what is allowed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "address", "allowed"),
    [
        ("nas", "10.1.2.3", True),
        ("nas", "fd12::9", True),
        ("nas", "::ffff:10.1.2.3", True),
        ("nas", "127.0.0.1", False),
        ("nas", "192.168.1.1", False),
        ("nas", "2001:db8::1", False),
        ("nas", "64:ff9b::10.1.2.3", False),
        ("nas", "2002:a01:203::1", False),
        ("hooks.example", "192.168.1.1", True),
        ("hooks.example", "127.0.0.1", True),
        ("sub.hooks.example", "192.168.1.1", False),
    ],
)
def test_with_a_list_only_its_places_are_called(host: str, address: str, allowed: bool) -> None:
    """FOREMAN_WEBHOOK_ALLOW: an address in one of the networks, or wherever one of the names leads."""
    if allowed:
        HOUSE.check_address(host, address)
        return
    with pytest.raises(AddressRefused, match="is not in FOREMAN_WEBHOOK_ALLOW"):
        HOUSE.check_address(host, address)


def test_a_listed_name_does_not_lead_to_metadata() -> None:
    """Whoever may edit the DNS of an allowed name still cannot have foreman ask for credentials."""
    with pytest.raises(AddressRefused, match=r"169\.254\.169\.254, the address of hooks\.example, is link-local"):
        HOUSE.check_address("hooks.example", "169.254.169.254")


def test_what_can_never_be_allowed_is_refused_at_once() -> None:
    """A wrong address, or a name where only names are listed, is told to the caller; the rest waits for the DNS."""
    HOUSE.check_url("http://elsewhere.example/")
    HOUSE.check_url("http://10.1.2.3/")
    HOUSE.check_url("http://Hooks.Example/")
    with pytest.raises(AddressRefused, match=r"192\.168\.1\.1 is not in FOREMAN_WEBHOOK_ALLOW"):
        HOUSE.check_url("http://192.168.1.1/")
    names_only = AddressPolicy(hosts=("hooks.example",))
    names_only.check_url("http://hooks.example/")
    with pytest.raises(AddressRefused, match=r"elsewhere\.example is not in FOREMAN_WEBHOOK_ALLOW"):
        names_only.check_url("http://elsewhere.example/")
    with pytest.raises(AddressRefused, match=r"10\.1\.2\.3 is not in FOREMAN_WEBHOOK_ALLOW"):
        names_only.check_url("http://10.1.2.3/")
