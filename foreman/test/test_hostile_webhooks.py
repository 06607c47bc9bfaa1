"""Webhooks that callers aim, and receivers that mean harm: where foreman connects, what it sends, what it stands."""

from __future__ import annotations

import json
import re
import socket
from base64 import b64decode
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from attrs import define, field
from hypothesis import example, given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook
from twisted.internet import address as addresses
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from foreman.record import DeliveryState
from foreman.test.badserver import Line, asynchronous, turns
from foreman.test.front_door import Transport
from foreman.test.harness import House, eventually, house, reactor
from foreman.test.test_hostile_requests import Sent, strictly
from foreman.test.test_outbox_receivers import street
from foreman.test.test_webhook_sender import World, place
from foreman.webhooks.policy import AddressPolicy, AddressRefused, BadURL
from foreman.webhooks.sender import Cut, Delivered, NotDelivered, Rejected, Sender, TimedOut
from foreman.webhooks.signing import verify_body

OPEN = AddressPolicy()

# -- how an address may be written -------------------------------------------------------------------------------------

FULL_WIDTH = str.maketrans("0123456789abcdefx.", "０１２３４５６７８９ａｂｃｄｅｆｘ．")  # noqa: RUF001
CIRCLED = str.maketrans("0123456789", "⓪①②③④⑤⑥⑦⑧⑨")


def spellings(ip: IPv4Address) -> Iterator[str]:
    """What one system's reader or another takes for this address."""
    four = ip.packed
    for count in range(4):  # so many bytes by themselves, the rest as one number
        numbers = [*four[:count], int.from_bytes(four[count:], "big")]
        for form in ("{}", "0{:o}", "0x{:x}", "0X{:X}", "0000000{:o}", "0x0000000{:x}"):
            yield ".".join(form.format(number) for number in numbers)
    plain = str(ip)
    yield "0x{:x}.{}.0{:o}.{}".format(*four)
    yield plain + "."
    yield plain.translate(FULL_WIDTH)
    yield plain.translate(CIRCLED)
    yield from (plain.replace(".", dot) for dot in ("。", "｡", "%2e", "%E3%80%82", ".."))
    yield "".join(f"%{ord(letter):x}" for letter in plain)
    yield f"{plain[0]}%0a{plain[1:]}"
    yield str(int(ip) + 2**32)
    yield f"[{plain}]"
    yield f"[::ffff:0{four[0]:o}.{four[1]}.{four[2]}.{four[3]}]"


@given(st.ip_addresses(v=4))
@example(IPv4Address("169.254.169.254"))
@example(IPv4Address("8.8.8.8"))
@example(IPv4Address("0.0.0.9"))
def test_an_address_is_written_in_one_way(ip: IPv4Address) -> None:
    """Nobody gets past the policy by writing an address so that only the system's own reader takes it for one."""
    for text in spellings(ip):
        try:
            found = OPEN.check_url(f"http://{text}/")
        except (BadURL, AddressRefused):
            continue
        assert text == str(ip) == found.host


PLAIN = r"""
http://good\@evil/ http://evil\@good/ http://evil:80\@good/ http://good&@evil#@good/ http://good@evil/ http://@evil/
http://:@evil/ http://good%40evil/ http://good%2f@evil/ http:\\evil/ http:/\evil/ http:evil/ http:///evil/ //evil/
http://?@evil/ http://[::1]@e/ http://evil;good/ http://good,evil/ http://good|evil/ http://good`/ http://{}/
http://evil%00.good/ http://evil%0a/ http://evil%09/ http://evil%20/ http://evil/[ http://evil//[::1] http://xn--/
http://localhost./ http://evil./ http://evil.:80/ http://./ http://.evil/ http://[::1.]/
http://[::1%lo]/ http://[::1%25lo]/ http://[fe80::1%1]/ http://[::1%00]/ http://[v1.a]/ http://[[::1]]/ http://::1]/
http://[::1]80/ http://[::1]:/ http://[::]::80/ http://[0x1::]/ http://[12345::]/ http://[1:2:3:4:5:6:7:8:9]/
http://[::127.1]/ http://[::2130706433]/
http://evil:00000/ http://evil:99999/ http://evil:000080/ http://evil:+80/ http://evil:-80/ http://evil:8_0/
http://evil:0x50/ http://evil:80:80/ http://evil:http/ http://evil:80\/ http://e:%38/
http://evil# http://evil?# http://evil:80#/ https:evil httpss://evil/ http+unix://%2Frun/ unix:/run/x
gopher://evil/ javascript://evil/ view-source:http://evil/ http//e/
"""
TWO_READINGS = (
    *PLAIN.split(),
    # what one reader drops and another does not
    *("http://e\tvil/", "http://evil\r\n/", "http://evil\v/", " http://evil/", "http://evil/ ", "\0http://evil/"),
    *(
        "ht\ntp://evil/",
        "http://e\x7f/",
        "http://e\u00advil/",
        "http://e\u200bvil/",
        "http://\ufeffevil/",
        "http://e/\x85",
    ),
    *("http://evil\u2028/", "http://evil\ud800/", "http://evil/\udfff", "http://evil/é", "http://evil:80 /"),
    # letters that become others
    *("http://\uff45\uff56\uff49\uff4c/", "http://evi\u217c/", "http://\u212a.example/", "http://ß.example/"),
    *("http://good\uff0fevil/", "http://good\uff03evil/", "http://good\uff20evil/", "http://good\u2100evil/"),
    *("http://evil:\uff18\uff10/", "h\u0442tp://evil/", "http\u017f://evil/"),
    # long ones
    *("http://evil/" + "%41" * 1000, "http://" + "1" * 2000 + "/", "http://" + "a." * 1000 + "/"),
    *("http://[" + ":" * 1000 + "]/", "http://evil:" + "8" * 2000 + "/", "http://" + "@" * 2000, "h" * 1_000_000),
)
"""URLs that have no blanks, and others."""


@pytest.mark.parametrize("url", TWO_READINGS, ids=lambda url: ascii(url)[:40])
def test_a_url_of_two_readings_is_refused(url: str) -> None:
    """A URL that two readers may take for two places is refused when the job is submitted."""
    with pytest.raises(BadURL):
        OPEN.check_url(url)


@given(st.text("0123456789abcdefxX.", max_size=16))
@example("017700000001")
def test_what_the_system_takes_for_an_address_is_one(text: str) -> None:
    """The system's own reader of numbers finds no address in what was taken for a name."""
    try:
        host = OPEN.check_url(f"http://{text}/").host
        address = socket.inet_ntoa(socket.inet_aton(host))
    except (BadURL, AddressRefused, OSError):
        return
    assert host == address


# -- who is connected to -----------------------------------------------------------------------------------------------


class Wire(Transport):
    """A connection in memory, which ends in the next turn as real ones do.

    :ivar peer: where it leads.
    """

    def __init__(self, peer: str, clock: Clock) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peer = peer
        self._clock = clock

    def loseConnection(self) -> None:
        """Close."""
        if not self.disconnecting:
            self.disconnecting = True
            self._clock.callLater(0, super().loseConnection)

    abortConnection = loseConnection

    @property
    def sent(self) -> bytes:
        """All that foreman has written."""
        written: bytes = self.value()  # type: ignore[no-untyped-call]
        return written


class Net(World):
    """A world without sockets.

    :ivar peers: where each connection really leads; None: nobody answers; after the last: where it says.
    :ivar wires: the connections that stand, or stood.
    """

    def __init__(self, *peers: str | None) -> None:
        super().__init__()
        self.peers = list(peers)
        self.wires: list[Wire] = []

    def connectTCP(self, host: str, port: int, factory: Any, *_: Any, **__: Any) -> Any:  # noqa: N802
        """Connect in a moment."""
        self.connected.append(host)
        peer = self.peers.pop(0) if self.peers else host

        def connect(peer: str) -> None:
            kind = addresses.IPv6Address if ":" in peer else addresses.IPv4Address
            protocol = factory.buildProtocol(kind("TCP", peer, port))
            if protocol is not None:
                wire = Wire(peer, self.clock)
                wire.protocol = protocol
                self.wires.append(wire)
                protocol.makeConnection(wire)

        factory.startedConnecting(self)
        if peer is not None:
            self.callLater(0, connect, peer)

    def getDestination(self) -> None:  # noqa: N802
        """Say nothing of it."""

    def stopConnecting(self) -> None:  # noqa: N802
        """Another address was quicker, or the time is over."""

    def let(self, posting: Deferred[Delivered]) -> Any:
        """Give a delivery all its time; every receiver answers 200.  Gives what it came to."""
        outcome: list[Any] = []
        posting.addBoth(outcome.append)
        for _ in range(55):
            self.clock.advance(0.3)
            for wire in self.wires:
                if wire.connected and b"\r\n\r\n" in wire.sent:
                    wire.protocol.dataReceived(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        assert self.clock.getDelayedCalls() == []
        assert not any(wire.connected for wire in self.wires)
        [came] = outcome
        return came


GOOD = ("127.0.0.1", "10.1.2.3", "203.0.113.7", "::1", "fd12::1", "2606::1", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3")
BAD = (
    *("169.254.169.254", "169.254.0.1", "100.100.100.200", "168.63.129.16", "fd00:ec2::254"),
    *("fe80::1", "fe80::1%eth0", "febf::1%2", "FE80::1"),
    *("::ffff:169.254.169.254", "::ffff:a9fe:a9fe%1", "0:0:0:0:0:FFFF:A9FE:A9FE", "::169.254.169.254"),
    *("::ffff:0:a9fe:a9fe", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "2002:a9fe:a9fe::1", "2001:0:a9fe:a9fe::"),
    "2001::5601:5601",  # Teredo: each bit of the client turned round
    *("0.0.0.0", "0.0.0.1", "::", "224.0.0.1", "255.255.255.255", "ff02::1", "::ffff:0.0.0.0"),  # noqa: S104
    *("2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "169.254.169.254.", "127.1", "localhost"),
    *("１６９.254.169.254", "", "10.1.2.3\n", "[::1]", "::1%lo/64", "10.1.2.3/8"),  # noqa: RUF001
)
ANYWHERE = st.sampled_from(GOOD + BAD)


@given(
    st.lists(st.lists(ANYWHERE, min_size=1, max_size=4), min_size=2, max_size=3),
    st.lists(st.none() | ANYWHERE, max_size=6),
)
@example([["127.0.0.1"], ["169.254.169.254"]], [])
@example([["169.254.169.254"], ["127.0.0.1"]], ["169.254.169.254", "127.0.0.1"])
def test_whoever_is_connected_to_has_passed(answers: list[list[str]], peers: list[str | None]) -> None:
    """What is connected to is what was checked, and no byte goes to whom the policy would not have let through.

    A name may mean anything, something else each time it is asked for, and its address may lead elsewhere still.
    """
    net = Net(*peers)
    net.names["nice.example"] = list(answers)
    sender = Sender(net, OPEN)
    for number, answer in enumerate(answers, 1):
        tried, stood = len(net.connected), len(net.wires)
        came = net.let(Deferred.fromCoroutine(sender.post("http://nice.example/hook", {}, b"{}")))
        assert net.looked_up == ["nice.example"] * number
        assert set(net.connected[tried:]) <= {*answer} & {*GOOD}
        wires = net.wires[stood:]
        assert all(wire.peer in GOOD for wire in wires)
        assert sum(wire.sent != b"" for wire in wires) == (came == Delivered(200))


HOSTS = st.sampled_from(
    ["nice.example", "NICE.example", "127.0.0.1", "[::1]", "[::FFFF:10.1.2.3]", "xn--mnchen-3ya.example"]
)
TAILS = st.text(alphabet=[chr(code) for code in range(33, 127) if chr(code) != "#"], max_size=30)
"""Anything between a host and its end; what no path may hold is refused."""


@given(HOSTS, st.sampled_from(["", ":80", ":8000", ":00443", ":65535"]), st.sampled_from(["", "/", "?", "//"]), TAILS)
@example("nice.example", "", "/", "%0d%0aX-Evil:%20y")
@example("nice.example", "", "//", "[")
@example("nice.example", "", "//", "a?b[]=]")
@example("nice.example", "", "?", "@evil.example/ HTTP/1.1".replace(" ", "%20"))
def test_a_url_makes_one_request(host: str, port: str, begin: str, tail: str) -> None:
    """Path and query go out as they were given, to the place that other readers of URLs find there too.

    It is one request; nothing in them can end a line or begin a header.
    """
    end = begin and begin + tail
    url = f"hTTp://{host}{port}{end}"
    if re.match(r"[^?]*[\[\]]", end):
        with pytest.raises(BadURL, match="in its path"):
            OPEN.check_url(url)
        return
    net = Net()
    net.names = {name: [["127.0.0.1"]] for name in ("nice.example", "xn--mnchen-3ya.example")}
    assert net.let(Deferred.fromCoroutine(Sender(net, OPEN).post(url, {"webhook-id": "1"}, b"{}"))) == Delivered(200)
    [wire] = net.wires
    [sent] = strictly(wire.sent)
    read = urlsplit(url)
    name = str(read.hostname)
    assert net.looked_up == [str(ip_address(name)) if ":" in name else name]
    assert (sent.method, sent.body) == ("POST", b"{}")
    assert sent.target == (end if end.startswith("/") else "/" + end)
    assert sent.all("host") == [authority_of(net.looked_up[0], read.port)]
    assert len(sent.headers) == 6


def authority_of(host: str, port: int | None) -> str:
    """A `Host` header."""
    return (f"[{host}]" if ":" in host else host) + ("" if port in (None, 80) else f":{port}")


# -- what is sent ------------------------------------------------------------------------------------------------------

SECRET = "whsec_dGhpcnR5LXR3byBieXRlcyBvZiBhIHRlc3Qgc2VjcmV0"
KEY = b64decode(SECRET.removeprefix("whsec_"))
PAGE = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()


@define(eq=False)
class Ear(Protocol):
    """One connection of a receiver that keeps every byte and takes everything."""

    received: bytearray = field(factory=bytearray)

    def dataReceived(self, data: bytes) -> None:
        """Keep it; answer when the request is whole."""
        self.received += data
        head, end, body = bytes(self.received).partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: ([0-9]+)", head)
        if end and length and len(body) >= int(length[1]):
            assert self.transport is not None
            self.transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")


METADATA = (
    r'{"a\r\nwebhook-id: forged": "x\r\n\r\nPOST / HTTP/1.1\r\nHost: evil\r\nContent-Length: 0\r\n\r\n"}',
    r'{"\u0000": "\u0000\u0001\u001f\u007f", "\\u0000": "\\r\\n"}',
    r'{"\u2028": "\u2029\u0085\ufeff\uffff", "raw": "é😀", "pair": "\ud83d\ude00"}',
    r'{"job_id": "forged", "state": "done", "metadata": {"metadata": null}, "__proto__": {"x": 1}, "": ""}',
    '{"deep": ' + "[" * 240 + "]" * 240 + "}",
    '{"large": [18446744073709551615, -9223372036854775808, 9007199254740993], "small": [5e-324, -0.0, 0.1]}',
    json.dumps({"x" * 2000: "\x7f" * 2000}),
    "{}",
)
TARGETS = (
    *("/%0d%0aX-Evil:%20y", "/%00%ff%u000a", "/\\..\\..\\x", "?webhook-id:%20forged", "//evil.example/x", "/http://e/"),
    *('/"<>^`{|}\'()*!$&+,;=:@~?a[]="<>', "", "/" + "x" * 1900),
)
MODELS = (b'"tiny-a"', rb'"\r\n tiny-a\u0085"', b'"TINY-A:Latest"')
"""Spellings of one model; Ollama drops white space around a name."""
UNFIT = {
    "metadata": (
        *(
            rb'{"a": "\ud800"}',
            rb'{"\udc00": 1}',
            rb'{"a": "\ud800\u0041"}',
            b'{"a": "\xed\xa0\x80"}',
            b'{"a": "\xff"}',
        ),
        *(b'{"a": "\r\n"}', b'{"a": "\x00"}', b'{"a": NaN}', b'{"a": 1e999}', b'{"a": [{"b": 18446744073709551616}]}'),
    ),
    "state_webhook_url": (
        *(rb'"http://127.0.0.1/\r\nX-Evil: y"', rb'"http://127.0.0.1\r\nX-Evil: y/"', rb'"http://127.0.0.1/\u0000"'),
        *(rb'"http://127.0.0.1/\u010d\u010a"', rb'"http://127.0.0.1/\ud800"', b'["http://127.0.0.1/"]'),
    ),
    "model": (rb'"tiny-a\r\nX-Evil: y"', rb'"tiny-a\u0000"', rb'"tiny-a\ud800"', b'"tiny\xc2\x85a"'),
}


def submission(**fields: bytes) -> bytes:
    """The body of a submission, of values as JSON."""
    fields = {"model": b'"tiny-a"', "messages": b'[{"role": "user", "content": "hi"}]', **fields}
    return b"{" + b", ".join(b'"%b": %b' % (name.encode(), value) for name, value in fields.items()) + b"}"


async def submit(here: House, body: bytes, **headers: str) -> tuple[int, Any]:
    """Submit a job; gives the status and the answer."""
    answer = await here.ask("POST", "/jobs", body, headers=headers)
    assert answer.head is not None
    return answer.head[0], answer.document


@asynchronous
async def test_what_receivers_get_is_what_the_page_says() -> None:
    """Whatever a caller writes into its job, its receiver gets one request for each state, and can prove it.

    It has the headers of docs/webhooks.md and no others, and a body that is signed and says what the caller wrote.
    """
    ears: list[Ear] = []

    def hear(_: object) -> Ear:
        ears.append(Ear())
        return ears[-1]

    factory: Any = Factory()
    factory.buildProtocol = hear
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    authority = f"127.0.0.1:{port.getHost().port}"
    try:
        async with house({"WEBHOOK_SECRET": SECRET}) as here:
            wanted: dict[str, tuple[str, Any, Any]] = {}
            for number, target in enumerate(TARGETS):
                metadata, model = METADATA[number % len(METADATA)], MODELS[number % len(MODELS)]
                url = json.dumps(f"http://{authority}{target}").encode()
                key = f'{number}: a; webhook-id="x", \\r\\n %0d%0a'
                body = submission(model=model, metadata=metadata.encode(), state_webhook_url=url)
                status, taken = await submit(here, body, **{"Idempotency-Key": key})
                assert status == 202, taken
                wanted[taken["job_id"]] = (target, json.loads(model), json.loads(metadata))
            await eventually(lambda: here.foreman._outbox.attempts["delivered"] == 4 * len(wanted))
            assert here.foreman._outbox.attempts.total() == len(ears) == 4 * len(wanted)
        told = set()
        for ear in ears:
            [sent] = strictly(bytes(ear.received))
            document = genuine(sent, authority)
            target, model, metadata = wanted[document["job_id"]]
            assert sent.target == (target if target.startswith("/") else "/" + target)
            assert (document["model"], document["metadata"]) == (model, metadata)
            told.add((document["job_id"], document["state"]))
        assert told == {(job, state) for job in wanted for state in ("queued", "loading", "working", "done")}
    finally:
        await port.stopListening()


def genuine(sent: Sent, authority: str) -> Any:
    """The document of a delivery, which is as the page says and signed twice."""
    [block] = re.findall(r"```text\n(POST .*?)\n\n", PAGE, re.DOTALL)
    documented = [line.partition(":")[0].lower() for line in block.splitlines()[1:]]
    headers = {name.lower(): value for name, value in sent.headers}
    assert sorted(name.lower() for name, _ in sent.headers) == sorted(documented)
    assert (headers["host"], headers["content-type"], headers["connection"]) == (authority, "application/json", "close")
    document = json.loads(sent.body)
    assert Webhook(SECRET).verify(sent.body, headers) == document
    verify_body(headers, sent.body, KEY)
    assert headers["webhook-id"] == f"{document['job_id']}-{document['sequence']}"
    return document


@asynchronous
async def test_what_cannot_be_told_again_is_refused() -> None:
    """Text that is none, numbers that would change, line ends in a URL or a name: a plain 400, and nothing is kept."""
    async with house() as here:
        for name, value in ((name, value) for name, values in UNFIT.items() for value in values):
            status, answer = await submit(here, submission(**{name: value}))
            assert (status, answer.keys()) == (400, {"error"}), (name, value, answer)
        for key in ("a\tb", "é", "x" * 256, "", "a\x7f"):
            assert (await submit(here, submission(), **{"Idempotency-Key": key}))[0] == 400, key
        assert await here.rows() == []


# -- receivers that mean harm ------------------------------------------------------------------------------------------

OK, OOPS = b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 500 Oops\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
ELSEWHERE = b"Location: http://127.0.0.1/\r\nRefresh: 0\r\n\r\n"
NO_HTTP = "what the receiver answered is not HTTP"


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        # statuses
        *((b"HTTP/1.1 %b Odd\r\n\r\n" % status, NO_HTTP) for status in (b"0", b"-200", b"1000", b"20000000000", b"")),
        *((b"HTTP/1.1 %b Odd\r\n\r\n" % (b"9" * digits), NO_HTTP) for digits in (20, 4000, 5000)),
        (b"HTTP/1.1 999 Odd\r\n\r\n", "the receiver answered 999"),
        # protocols
        *((first + b" 200 OK\r\n\r\n", NO_HTTP) for first in (b"RTSP/1.0", b"SIP/2.0", b"ICY", b"HTTP/x.y", b"HTTP/1")),
        (b"\r\n" + OK + b"\r\n", NO_HTTP),
        # headers
        (OK + b"no colon\r\n\r\n", NO_HTTP),
        (OK + b" of nothing\r\n\r\n", NO_HTTP),
        *(
            (OK + b"Content-Length: %b\r\n\r\n" % size, NO_HTTP)
            for size in (b"-5", b"1_0", b"+1", b"9" * 5000, b"1, 2")
        ),
        (OK + b"Transfer-Encoding: gzip\r\n\r\n", NO_HTTP),
        (OOPS + b"\xff\0: \xfe\0\r\n\r\n\r\n", NO_HTTP),
        (OOPS + b"Retry-After: \xb2\r\nX: \xff\r\nContent-Length: 0\r\n\r\n", "the receiver answered 500"),
        # bodies, which change nothing any more
        *((OOPS + CHUNKED + size + b"\r\nx\r\n", "answered 500") for size in (b"zz", b"-1", b"f" * 5000, b"", b"1_0")),
        (OOPS + CHUNKED + b"1\r\nxyz\r\n", "the receiver answered 500"),
        (OOPS + b"Content-Length: 0\r\n\r\n" + OK + b"\r\n", "the receiver answered 500"),
        # redirects, also those that are none
        *((b"HTTP/1.1 %d X\r\n" % status + ELSEWHERE, "redirects are not followed") for status in (300, 304, 305, 399)),
        (b'HTTP/1.1 421 X\r\nAlt-Svc: h2=":1"\r\n' + ELSEWHERE, "the receiver answered 421"),
        # neither this nor that
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n", "no whole head of an answer within 15 s"),
        (OOPS, "no whole head of an answer within 15 s"),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", "no whole head of an answer within 15 s"),
    ],
    ids=lambda each: ascii(each)[:50],
)
@asynchronous
async def test_a_strange_answer_is_one_failed_try(said: bytes, complaint: str) -> None:
    """Whatever comes back, the try is over after fifteen seconds at most, and nothing else was asked.

    Its status is one that a job's history can hold, or none.
    """
    async with place() as it:
        line, posting = await it.posted()
        line.say(said)
        for _ in range(50):
            if posting.called:
                break
            await turns(1)
        else:
            it.world.clock.advance(15)
        with pytest.raises(NotDelivered, match=re.escape(complaint)) as caught:
            await posting
        assert caught.value.status is None or 200 <= caught.value.status <= 999
        await line.closed
        assert line.received == b""
        assert len(it.server.lines) == 1


@define
class Endless:
    """Says a piece again and again for as long as the other side takes it.

    :ivar said: bytes so far.
    """

    line: Line
    piece: bytes
    said: int = 0

    def resumeProducing(self) -> None:
        """Once more."""
        self.said += len(self.piece)
        self.line.transport.write(self.piece)

    def stopProducing(self) -> None:
        """The other side has had enough."""


@pytest.mark.parametrize(
    ("begin", "piece", "complaint"),
    [
        (OK, b"X: " + b"x" * 1000 + b"\r\n", "more than 65536 bytes"),
        (OK + b"X: ", b"x" * 1000, "more than 65536 bytes|within the head"),
        (OK + b"X: x\r\n", b" x" * 500 + b"\r\n", "more than 65536 bytes"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 50, "more than 65536 bytes"),
        (b"", b"x" * 1000, "more than 65536 bytes|within the head"),
        (OOPS + b"\r\n", b"x" * 1000, "answered 500"),
        (OOPS + CHUNKED, b"1\r\nx\r\n" * 200, "answered 500"),
        (OOPS + CHUNKED + b"1;", b"x" * 1000, "answered 500"),
        (OOPS + CHUNKED + b"0\r\n", b"X: x\r\n" * 200, "answered 500"),
        (OOPS + b"Content-Length: 0\r\n\r\n", OOPS * 50, "answered 500"),
    ],
)
@asynchronous
async def test_an_endless_answer_is_cut_off(begin: bytes, piece: bytes, complaint: str) -> None:
    """Headers, interim answers, bodies, trailers without end: cut at once, after no more than the sockets hold."""
    async with place() as it:
        line, posting = await it.posted()
        line.say(begin)
        endless = Endless(line, piece)
        line.transport.registerProducer(endless, False)
        with pytest.raises((Cut, Rejected), match=complaint):
            await posting
        await line.closed
        assert it.world.clock.seconds() == 0
        assert endless.said < 16_000_000


@pytest.mark.parametrize(
    ("begin", "drop", "complaint"),
    [
        (OK, b"X: x\r\n", "no whole head of an answer within 15 s"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", "no whole head of an answer within 15 s"),
        (OOPS + b"\r\n", b"x", "answered 500"),
        (OOPS + CHUNKED, b"0", "answered 500"),
    ],
)
@asynchronous
async def test_a_dripping_answer_has_fifteen_seconds(begin: bytes, drop: bytes, complaint: str) -> None:
    """A header, an interim answer or a byte of the body each second wins no time."""
    async with place() as it:
        line, posting = await it.posted()
        line.say(begin)
        for _ in range(15):
            assert not posting.called
            line.say(drop)
            await turns(3)
            it.world.clock.advance(1)
        with pytest.raises((TimedOut, Rejected), match=complaint):
            await posting
        await line.closed


@asynchronous
async def test_a_connection_closed_by_half_is_closed() -> None:
    """A receiver that says it will send no more, before or within its answer, is not waited for."""
    for said, complaint in ((b"", "without an answer"), (OK, "within the head"), (OOPS + b"\r\n", "answered 500")):
        async with place() as it:
            line, posting = await it.posted()
            line.say(said)
            line.transport.loseWriteConnection()
            with pytest.raises((Cut, Rejected), match=complaint):
                await posting
            await line.closed
            assert it.world.clock.seconds() == 0


@asynchronous
async def test_a_status_of_many_digits_is_a_try_like_others(tmp_path: Path) -> None:
    """A receiver that answers with a number no database holds is tried a second later, as often as others are."""
    async with street(tmp_path) as (office, server):
        job = office.accept(1, f"{server.url}/hook")
        (await office.request(server, 1)).say(b"HTTP/1.1 99999999999999999999 OK\r\nContent-Length: 0\r\n\r\n")
        await office.tried(1)
        [first] = office.tries(job)
        assert (first.status, first.error) == (None, NO_HTTP)
        office.let(1)
        (await office.request(server, 2)).answer()
        await office.tried(2)
        assert office.states(job) == [DeliveryState.DELIVERED]
