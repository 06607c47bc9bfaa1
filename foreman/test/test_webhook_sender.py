"""One POST to a receiver, good or bad."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from twisted.internet import reactor as _reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IHostnameResolver, IReactorPluggableNameResolver, IReactorTCP, IReactorTime
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from zope.interface import implementer

from foreman import __version__
from foreman.test.badserver import BadServer, Line, SteppedReactor, asynchronous, turns
from foreman.test.certificates import certificate
from foreman.webhooks.policy import AddressPolicy, AddressRefused, BadURL
from foreman.webhooks.sender import Cut, Delivered, NotConnected, NotDelivered, Rejected, Sender, TimedOut

reactor: Any = _reactor

METADATA = "169.254.169.254"


@implementer(IReactorTime, IReactorTCP, IReactorPluggableNameResolver, IHostnameResolver)
class World(SteppedReactor):
    """The real reactor with a DNS of its own and timers that move by hand.

    :ivar names: what each look-up of a name answers in turn, the last one for ever; None: never anything.
    :ivar elsewhere: addresses that lead somewhere else than they say.
    :ivar looked_up: every name asked for; `connected`: every address connected to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nameResolver = self
        self.names: dict[str, list[list[str] | None]] = {}
        self.elsewhere: dict[str, str] = {}
        self.looked_up: list[str] = []
        self.connected: list[str] = []
        self.pending: list[Callable[[list[str]], None]] = []

    def resolveHostName(self, receiver: Any, hostName: str, portNumber: int = 0, *more: Any) -> Any:  # noqa: N802, N803
        """Answer as the script has it; an address is its own answer."""
        self.looked_up.append(hostName)
        script = self.names.get(hostName, [[hostName]])
        answer = script.pop(0) if len(script) > 1 else script[0]

        def found(addresses: list[str]) -> None:
            for address in addresses:
                kind = IPv6Address if ":" in address else IPv4Address
                receiver.addressResolved(kind("TCP", address, portNumber))
            receiver.resolutionComplete()

        receiver.resolutionBegan(None)
        if answer is None:
            self.pending.append(found)
        else:
            found(answer)
        return receiver

    def connectTCP(self, host: str, *args: Any, **kwargs: Any) -> Any:  # noqa: N802
        """Connect, maybe elsewhere."""
        self.connected.append(host)
        return reactor.connectTCP(self.elsewhere.get(host, host), *args, **kwargs)


class Place:
    """A receiver, and a sender in a world of its own."""

    def __init__(self, world: World, policy: AddressPolicy) -> None:
        self.server = BadServer()
        self.world = world
        self.sender = Sender(world, policy)
        self.port = 0

    def url(self, host: str = "127.0.0.1", scheme: str = "http", path: str = "/hook") -> str:
        """A URL of the receiver under another name."""
        return f"{scheme}://{host}:{self.port}{path}"

    def post(self, url: str | None = None, body: bytes = b"{}", **headers: str) -> Deferred[Delivered]:
        """Start a delivery."""
        return Deferred.fromCoroutine(self.sender.post(url or self.url(), headers, body))

    async def refused(self, url: str, complaint: str) -> None:
        """Post, and see it refused when the last of the addresses has been tried."""
        posting = self.post(url)
        # Twisted goes from one address to the next after 0.3 s.
        self.world.clock.pump([0.3] * 3)
        with pytest.raises(AddressRefused, match=complaint):
            await posting

    async def line(self) -> Line:
        """Wait for the next connection to stand, on both sides."""
        line = await self.server.line()
        await turns(3)
        return line

    async def posted(self, **more: Any) -> tuple[Line, Deferred[Delivered]]:
        """Start a delivery and wait until the receiver has it."""
        posting = self.post(**more)
        line = await self.line()
        await line.request()
        return line, posting


@asynccontextmanager
async def place(
    policy: AddressPolicy | None = None, *, interface: str = "127.0.0.1", tls: Any = None, real: bool = False
) -> AsyncIterator[Place]:
    """A `Place` that leaves nothing behind: no connection, no timer.

    :param tls: a context factory, to have the receiver speak TLS.
    :param real: let time pass by itself, which Twisted's TLS needs.
    """
    world = World()
    if real:
        world.seconds, world.callLater = reactor.seconds, reactor.callLater
    made = Place(world, policy or AddressPolicy())
    where = {"interface": interface}
    listening = reactor.listenSSL(0, made.server, tls, **where) if tls else reactor.listenTCP(0, made.server, **where)
    made.port = listening.getHost().port
    try:
        yield made
        assert world.clock.getDelayedCalls() == []
    finally:
        await listening.stopListening()
        for line in made.server.lines:
            if not line.closed.called:
                line.reset()
            await line.closed


# -- a good receiver -----------------------------------------------------------------------------------------------


@asynchronous
async def test_a_delivery_is_one_plain_post() -> None:
    """The receiver gets the bytes that were signed, as JSON, at the path it named, and is then left alone."""
    async with place() as it:
        posting = it.post(it.url(path="//a/../b;c?d=%2F&e"), body=b'{"a":1}', **{"webhook-id": "1-1", "X-Sig": "s"})
        line = await it.line()
        assert await line.request() == (
            b"POST //a/../b;c?d=%2F&e HTTP/1.1",
            {
                b"host": b"127.0.0.1:%d" % it.port,
                b"content-type": b"application/json",
                b"content-length": b"7",
                b"user-agent": f"foreman/{__version__}".encode(),
                b"connection": b"close",
                b"webhook-id": b"1-1",
                b"x-sig": b"s",
            },
            b'{"a":1}',
        )
        line.answer(b"thanks")
        assert await posting == Delivered(200)
        await line.closed


@asynchronous
async def test_a_large_event_arrives_whole() -> None:
    """Bodies of any size are sent to their end."""
    body = bytes(range(256)) * 20_000
    async with place() as it:
        posting = it.post(body=body)
        line = await it.line()
        assert (await line.request())[2] == body
        line.answer()
        assert await posting == Delivered(200)


@pytest.mark.parametrize("interface", ["::1", "127.0.0.1"])
@asynchronous
async def test_receivers_have_addresses_of_both_kinds(interface: str) -> None:
    """IPv6, IPv4, and IPv4 written as IPv6."""
    hosts = ["[::1]"] if interface == "::1" else ["127.0.0.1", "[::ffff:127.0.0.1]"]
    async with place(interface=interface) as it:
        for host in hosts:
            line, posting = await it.posted(url=it.url(host))
            line.answer()
            assert await posting == Delivered(200)


@pytest.mark.parametrize("status", [b"200 OK", b"202 Accepted", b"204 No Content", b"299 Strange"])
@asynchronous
async def test_every_2xx_is_success(status: bytes) -> None:
    """The receiver took it, however it says so."""
    async with place() as it:
        line, posting = await it.posted()
        line.say(b"HTTP/1.1 100 Continue\r\n\r\n")
        line.answer(status=status)
        assert await posting == Delivered(int(status[:3]))


@asynchronous
async def test_an_answers_body_changes_nothing() -> None:
    """Too long, cut, never ending: the status has said it, and no more than a little is read."""
    async with place() as it:
        line, posting = await it.posted()
        line.answer(b"x" * 10_000_000)
        assert await posting == Delivered(200)
        await line.closed

        line, posting = await it.posted()
        line.say(b"HTTP/1.1 500 Oops\r\nContent-Length: 10\r\n\r\nhalf")
        line.hang_up()
        with pytest.raises(Rejected, match="500"):
            await posting

        line, posting = await it.posted()
        line.begin()
        line.chunk(b"x" * 16384)
        await turns(5)
        assert not posting.called
        line.chunk(b"x")
        assert await posting == Delivered(200)
        await line.closed

        line, posting = await it.posted()
        line.begin()
        for _ in range(14):
            line.chunk(b"x")
            await turns(3)
            it.world.clock.advance(1)
        assert not posting.called
        it.world.clock.advance(1)
        assert await posting == Delivered(200)
        await line.closed


# -- receivers that say no ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers", "retry_after"),
    [
        (400, b"", None),
        (410, b"", None),
        (429, b"Retry-After: 120\r\nRetry-After: 5\r\n", "120"),
        (500, b"Retry-After: \xff\r\n", "ÿ"),
        (503, b"RETRY-AFTER:  Sun, 06 Nov 1994 08:50:37 GMT\r\n", "Sun, 06 Nov 1994 08:50:37 GMT"),
    ],
)
@asynchronous
async def test_another_status_is_a_failure_that_names_it(status: int, headers: bytes, retry_after: str | None) -> None:
    """Only 2xx is success; the status and the wish for a pause are handed on."""
    async with place() as it:
        line, posting = await it.posted()
        line.answer(b"<html>secret</html>", status=b"%d No" % status, headers=headers)
        with pytest.raises(Rejected) as caught:
            await posting
        error = caught.value
        assert (error.status, error.retry_after, str(error)) == (status, retry_after, f"the receiver answered {status}")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@asynchronous
async def test_redirects_are_not_followed(status: int) -> None:
    """A receiver cannot send foreman on to a place that it may not, or may, go to."""
    async with place() as it:
        line, posting = await it.posted()
        line.answer(status=b"%d Moved" % status, headers=b"Location: http://%b/\r\n" % METADATA.encode())
        with pytest.raises(Rejected, match=f"answered {status}; redirects are not followed"):
            await posting
        assert it.world.connected == ["127.0.0.1"]


# -- receivers that are bad or dead --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "end", "complaint"),
    [
        (b"", Line.hang_up, "closed the connection without an answer"),
        (b"", Line.reset, r"closed the connection without an answer: .*non-clean"),
        (b"HTTP/1.1 200 OK\r\nContent-", Line.hang_up, "closed the connection within the head"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", Line.hang_up, "closed the connection within the head"),
        (b"220 mail.example ESMTP\r\n\r\n", None, "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", None, "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Header: something\r\n" * 5000, None, "more than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000, None, r"within the head|more than 65536 bytes"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 5000, None, "more than 65536 bytes"),
    ],
)
@asynchronous
async def test_a_broken_answer_is_told_for_what_it_is(said: bytes, end: Any, complaint: str) -> None:
    """Whoever reads the job's events sees what the receiver did; nothing it sends fills the memory."""
    async with place() as it:
        line, posting = await it.posted()
        line.say(said)
        if end is not None:
            end(line)
        with pytest.raises(Cut, match=complaint):
            await posting
        await line.closed


@pytest.mark.parametrize("scheme", ["http", "https"])
@asynchronous
async def test_silence_ends_after_fifteen_seconds(scheme: str) -> None:
    """A receiver that never answers, or a port that never speaks TLS, holds nothing up for longer."""
    async with place() as it:
        posting = it.post(it.url(scheme=scheme))
        line = await it.line()
        it.world.clock.advance(14.9)
        await turns(3)
        assert not posting.called
        it.world.clock.advance(0.1)
        with pytest.raises(TimedOut, match="no answer within 15 s"):
            await posting
        await line.closed


@asynchronous
async def test_trickled_headers_win_no_time() -> None:
    """The fifteen seconds are for all of it, not from one byte to the next."""
    async with place() as it:
        line, posting = await it.posted()
        for letter in b"HTTP/1.1 200 OK"[:14]:
            line.say(bytes([letter]))
            await turns(3)
            it.world.clock.advance(1)
        it.world.clock.advance(1)
        with pytest.raises(TimedOut, match="no whole head of an answer within 15 s"):
            await posting
        await line.closed


@asynchronous
async def test_a_dead_dns_ends_after_fifteen_seconds() -> None:
    """Looking up the name counts too; an answer that comes later moves nothing."""
    async with place() as it:
        it.world.names["nas"] = [None]
        posting = it.post(it.url("nas"))
        it.world.clock.advance(15)
        with pytest.raises(TimedOut, match=rf"no connection to nas:{it.port} within 15 s"):
            await posting
        it.world.pending[0](["127.0.0.1"])
        await turns(3)
        assert it.world.connected == []


@asynchronous
async def test_nobody_there() -> None:
    """A closed port and an unknown name are told apart."""
    async with place() as it:
        it.world.names["nas"] = [[]]
        with pytest.raises(NotConnected, match=r"cannot connect to nas:\d+: DNS lookup failed: no results"):
            await it.post(it.url("nas"))
        it.world.names["free"] = [["127.0.0.1"]]
        posting = it.post("http://free:1/")
        await turns(3)
        it.world.clock.advance(0.3)
        with pytest.raises(NotConnected, match="cannot connect to free:1: Connection was refused"):
            await posting
        with pytest.raises(NotConnected, match="invalid hostname"):
            await it.post("http://xn--zz/")


@asynchronous
async def test_a_receiver_that_never_hangs_up_is_left() -> None:
    """After the answer foreman closes, whether the receiver does or not; what it did not read does not matter."""
    async with place() as it:
        posting = it.post(body=b"x" * 10_000_000)
        line = await it.line()
        line.transport.pauseProducing()
        line.answer(status=b"413 Too Large")
        await turns(20)
        it.world.clock.advance(15)
        with pytest.raises(Rejected, match="413"):
            await posting
        line.transport.resumeProducing()
        await line.closed


# -- the address policy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        [METADATA],
        ["fe80::1"],
        ["::ffff:169.254.169.254"],
        ["64:ff9b::a9fe:a9fe"],
        ["2002:a9fe:a9fe::1"],
        ["0.0.0.0"],  # noqa: S104 - named, not bound
        ["another.name"],
        ["fd00:ec2::254", METADATA],
    ],
)
@asynchronous
async def test_a_name_that_leads_to_a_forbidden_address(answer: list[str]) -> None:
    """Not one packet is sent there."""
    async with place() as it:
        it.world.names["nice.example"] = [answer]
        await it.refused(it.url("nice.example"), "never go|not the address of one|not an address")
        assert it.world.connected == []


@asynchronous
async def test_the_good_addresses_of_a_name_are_used() -> None:
    """Of several addresses only those allowed are tried."""
    async with place() as it:
        it.world.names["nas"] = [[METADATA, "fe80::1", "127.0.0.1"]]
        posting = it.post(it.url("nas"))
        it.world.clock.pump([0.3, 0.3])
        line = await it.line()
        assert (await line.request())[1][b"host"] == b"nas:%d" % it.port
        line.answer()
        assert await posting == Delivered(200)
        assert it.world.connected == ["127.0.0.1"]


@asynchronous
async def test_a_name_that_changes_its_mind() -> None:
    """A name is looked up once for each delivery, and what it then means is what is checked."""
    async with place() as it:
        it.world.names["nice.example"] = [["127.0.0.1"], [METADATA]]
        url = it.url("nice.example")
        AddressPolicy().check_url(url)
        line, posting = await it.posted(url=url)
        line.answer()
        assert await posting == Delivered(200)
        await it.refused(url, r"169\.254\.169\.254, the address of nice\.example, is link-local")
        assert it.world.looked_up == ["nice.example"] * 2
        assert it.world.connected == ["127.0.0.1"]


@asynchronous
async def test_the_peer_itself_is_checked() -> None:
    """Wherever the connection really leads counts; a wrong peer gets not one byte."""
    async with place(AddressPolicy(networks=(ipaddress.ip_network("203.0.113.0/24"),))) as it:
        it.world.elsewhere["203.0.113.9"] = "127.0.0.1"
        posting = it.post(it.url("203.0.113.9"))
        await turns(3)
        it.world.clock.advance(0.3)
        with pytest.raises(AddressRefused, match=r"127\.0\.0\.1, .* is not in FOREMAN_WEBHOOK_ALLOW"):
            await posting
        line = await it.line()
        await line.closed
        assert line.received == b""


@asynchronous
async def test_with_a_list_only_its_places_are_connected_to() -> None:
    """An allowed name may lead anywhere in the house, another name may not."""
    async with place(AddressPolicy(networks=(ipaddress.ip_network("10.0.0.0/8"),), hosts=("nas",))) as it:
        it.world.names.update({"nas": [["127.0.0.1"]], "other": [["127.0.0.1"]]})
        line, posting = await it.posted(url=it.url("nas"))
        line.answer()
        assert await posting == Delivered(200)
        await it.refused(it.url("other"), r"127\.0\.0\.1, the address of other, is not in FOREMAN_WEBHOOK_ALLOW")
        assert it.world.connected == ["127.0.0.1"]


@asynchronous
async def test_a_url_that_policy_refuses_is_not_looked_up() -> None:
    """What was accepted under older settings is checked again."""
    async with place() as it:
        with pytest.raises(AddressRefused):
            await it.post(f"http://{METADATA}/")
        with pytest.raises(BadURL):
            await it.post("ftp://nas/")
        assert it.world.looked_up == []


@asynchronous
async def test_cancelling_closes_at_once() -> None:
    """At every stage: the name being looked up, connecting, waiting for an answer, within its body."""
    async with place() as it:
        for answer in (None, ["127.0.0.1"]):
            it.world.names["nas"] = [answer]
            posting = it.post(it.url("nas"))
            posting.cancel()
            with pytest.raises(CancelledError):
                await posting
        await turns(5)
        assert it.server.lines == []

        for begun in (False, True):
            line, posting = await it.posted()
            if begun:
                line.begin()
                await turns(5)
            posting.cancel()
            with pytest.raises(CancelledError):
                await posting
            await line.closed


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["nas", "127.0.0.1"])
@asynchronous
async def test_https_proves_the_name(tls: DefaultOpenSSLContextFactory, host: str) -> None:
    """A certificate of the name, or of the address, that the URL says."""
    async with place(tls=tls, real=True) as it:
        it.world.names["nas"] = [["127.0.0.1"]]
        line, posting = await it.posted(url=it.url(host, "https"))
        line.answer(b"x" * 1000)
        assert await posting == Delivered(200)
        await line.closed


@asynchronous
async def test_https_is_left_without_a_goodbye(tls: DefaultOpenSSLContextFactory) -> None:
    """A receiver that answers and then does not take part in the end of TLS holds nothing up."""
    async with place(tls=tls, real=True) as it:
        line, posting = await it.posted(url=it.url(scheme="https"))
        line.transport.pauseProducing()
        line.answer()
        answered = reactor.seconds()
        assert await posting == Delivered(200)
        assert reactor.seconds() - answered < 5
        line.transport.resumeProducing()
        await line.closed


@asynchronous
async def test_https_of_another_name_gets_nothing(tls: DefaultOpenSSLContextFactory) -> None:
    """A certificate that the system trusts, but for somebody else: no event is sent."""
    async with place(tls=tls, real=True) as it:
        it.world.names["other"] = [["127.0.0.1"]]
        with pytest.raises(NotConnected, match=r"the certificate of other:\d+ is for another name"):
            await it.post(it.url("other", "https"))
        line = await it.line()
        await line.closed
        assert line.received == b""


@asynchronous
async def test_https_of_nobody_known_gets_nothing(tmp_path: Path) -> None:
    """A certificate that nobody vouches for: no event is sent."""
    async with place(tls=certificate(tmp_path, x509.DNSName("nas")), real=True) as it:
        it.world.names["nas"] = [["127.0.0.1"]]
        with pytest.raises(NotConnected, match=r"no TLS with nas:\d+: certificate verify failed"):
            await it.post(it.url("nas", "https"))
        line = await it.line()
        await line.closed
        assert line.received == b""


@asynchronous
async def test_https_where_http_is_spoken(tls: DefaultOpenSSLContextFactory) -> None:
    """Each speaking to the other's port is an error that can be read, and so is being hung up on."""
    async with place(real=True) as it:
        posting = it.post(it.url(scheme="https"))
        line = await it.line()
        line.answer()
        with pytest.raises(NotConnected, match=r"no TLS with .*: wrong version number"):
            await posting
        posting = it.post(it.url(scheme="https"))
        line = await it.line()
        line.hang_up()
        with pytest.raises(NotDelivered, match=r"TLS|without an answer"):
            await posting
    async with place(tls=tls) as it:
        with pytest.raises(Cut, match=r"without an answer|not HTTP"):
            await it.post()
