"""The stand-in over loopback: its pace, its faults, its sleep and what it remembers.  Time is stepped by hand."""

# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
# Neither Twisted's endpoints nor pytest-twisted are typed.
from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from math import inf
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor as _reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock, deferLater

from foreman.ollama.fake import FakeModel, FakeOllama, Fault, asks, default_models, parse_models, streaming_model
from foreman.ollama.fake.reading import Refusal, complaint, first_value, keep_alive

reactor: Any = _reactor

MODELS = (
    FakeModel(name="a", load_time=3, prompt_time=2, token_rate=10),
    FakeModel(name="b", load_time=3, prompt_time=2, token_rate=10),
    FakeModel(name="e", capabilities=("embedding",)),
)


class Client(Protocol):
    """One raw connection."""

    transport: Any

    def __init__(self) -> None:
        self.data = b""
        self.closed = False

    def dataReceived(self, data: bytes) -> None:
        """Keep it."""
        self.data += data

    def connectionLost(self, reason: object = None) -> None:
        """Remember it."""
        self.closed = True

    def send(self, method: str, path: str, body: object = None) -> None:
        """Write one request."""
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        self.transport.write(head.encode() + data)

    def leave(self) -> None:
        """Close the connection, now."""
        self.transport.abortConnection()

    @property
    def status(self) -> int:
        """The answer's status; 0 before there is one."""
        return int(self.data.split(b" ", 2)[1]) if self.data else 0

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The whole lines of a streamed answer."""
        return [
            json.loads(line) for line in self.data.split(b"\r\n") if line.startswith(b"{") and line.endswith(b"}\n")
        ]


async def until(condition: Callable[[], Any]) -> None:
    """Let the reactor run until `condition()` holds; a second is given up after."""
    for _ in range(1000):
        if condition():
            return
        await deferLater(reactor, 0.001)
    raise AssertionError("it did not come about within a second")


class Rig:
    """A stand-in on stepped time, and its clients."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.fake = FakeOllama(reactor, options.pop("models", MODELS), clock=self.clock, **options)
        self.clients: list[Client] = []

    async def connect(self) -> Client:
        """A connection of its own."""
        port = int(self.fake.url.rpartition(":")[2])
        client: Client = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), Client())
        self.clients.append(client)
        return client

    async def ask(self, path: str, body: object = None, method: str = "") -> Client:
        """Send a request on a connection of its own and see it arrive."""
        client = await self.connect()
        seen = len(self.fake.requests)
        client.send(method or ("GET" if body is None else "POST"), path, body)
        await until(lambda: len(self.fake.requests) > seen)
        return client

    async def chat(self, model: str = "a", **more: Any) -> Client:
        """A chat of one message."""
        return await self.ask("/api/chat", {"model": model, "messages": [{"role": "user", "content": "x"}], **more})


@asynccontextmanager
async def rig(**options: Any) -> AsyncIterator[Rig]:
    """A listening stand-in, all of whose connections are gone afterwards."""
    it = Rig(**options)
    await it.fake.listen()
    try:
        yield it
    finally:
        await it.fake.close()
        for client in it.clients:
            client.leave()
        await until(lambda: all(client.closed for client in it.clients) and not it.fake.connections)


def _ended(client: Client) -> bool:
    return client.data.endswith(b"0\r\n\r\n")


def _answered(client: Client, status: int) -> bool:
    return client.status == status


# -- pace ------------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_no_byte_before_the_first_token() -> None:
    """Loading and prompt evaluation send nothing, not even headers; then the tokens come at the model's rate."""
    async with rig() as it:
        client = await it.chat()
        it.clock.advance(3)
        it.clock.advance(1.99)
        await deferLater(reactor, 0.01)
        assert client.data == b""
        it.clock.advance(0.01)
        await until(lambda: len(client.lines) == 1)
        it.clock.pump([0.1] * 4)
        await until(lambda: len(client.lines) == 5)
        it.clock.pump([0.1] * 25)
        await until(lambda: client.lines[-1]["done"])
        (record,) = it.fake.requests
        assert record.first_byte_at is not None
        assert record.first_byte_at - record.connected_at == pytest.approx(5)
        assert client.lines[-1]["load_duration"] == pytest.approx(3e9)
        assert client.lines[-1]["prompt_eval_duration"] == pytest.approx(2e9)


@pytest_twisted.ensureDeferred
async def test_leaving_stops_the_generation() -> None:
    """A client that leaves, streamed or not, frees the model for the next at once."""
    async with rig() as it:
        for stream in (True, False):
            client = await it.chat(stream=stream)
            it.clock.pump([3, 2])
            await until(lambda: it.fake.scheduler.generating)
            client.leave()
            await until(lambda: not it.fake.scheduler.generating)
            assert it.fake.requests[-1].outcome == "left"
            assert it.fake.requests[-1].left_at is not None


@pytest_twisted.ensureDeferred
async def test_ps_during_a_load() -> None:
    """During a load ps answers at once and lists nothing."""
    async with rig() as it:
        await it.chat()
        client = await it.ask("/api/ps")
        await until(lambda: client.data.endswith(b'{"models":[]}'))


@pytest_twisted.ensureDeferred
async def test_v1_ignores_options_and_keep_alive() -> None:
    """On /v1 neither load-time options nor keep_alive are read: the usual ones hold, and 5 minutes."""
    async with rig(models=default_models()) as it:
        body = {"model": "tiny-a", "messages": [{"role": "user", "content": "x"}]}
        client = await it.ask("/v1/chat/completions", {**body, "options": {"num_ctx": 512}, "keep_alive": 0})
        it.clock.advance(0)
        await until(lambda: client.status == 200)
        it.clock.advance(299)
        assert [runner.keep_alive for runner, _ in it.fake.scheduler.resident()] == [300]
        assert dict(it.fake.loads[0].settings)["num_ctx"] == 2048


@pytest_twisted.ensureDeferred
async def test_queue_full() -> None:
    """A full queue is 503 with Ollama's text, two blanks and all."""
    async with rig(max_queue=1) as it:
        for model in "aab":
            await it.chat(model)
        await it.ask("/api/generate", {"model": "b", "prompt": "x"})
        client = await it.ask("/api/embed", {"model": "e", "input": "x"})
        text = b'{"error":"server busy, please try again.  maximum pending requests exceeded"}'
        await until(lambda: client.status == 503 and client.data.endswith(text))


@pytest_twisted.ensureDeferred
async def test_frozen_answers_are_equal_to_the_byte() -> None:
    """With frozen time equal requests get equal bytes, whenever they come."""
    async with rig(models=default_models(), frozen=True) as it:
        answers = []
        for _ in range(2):
            it.clock.advance(60)
            client = await it.chat("tiny-a")
            it.clock.advance(5)
            await until(partial(_ended, client))
            answers.append(client.data.partition(b"\r\n\r\n")[2])
        assert answers[0] == answers[1]


@pytest_twisted.ensureDeferred
async def test_the_clients_pace_is_kept() -> None:
    """A model as fast as its reader makes no token that the reader does not take: 200 MB wait in no memory."""
    async with rig(models=[streaming_model("big", tokens=4000, token_bytes=50_000)]) as it:
        client = await it.chat("big")
        client.transport.pauseProducing()
        made: list[int] = []
        while len(made) < 5 or made[-1] != made[-5]:
            it.clock.advance(0)
            await deferLater(reactor, 0.01)
            (connection,) = it.fake.connections
            made.append(connection.requests[0].sentLength)
        assert made[-1] < 20_000_000
        client.transport.resumeProducing()

        def more() -> bool:
            it.clock.advance(0)
            return len(client.data) > 2 * made[-1]

        await until(more)


@pytest_twisted.ensureDeferred
async def test_bytes_are_gos() -> None:
    """HTML's signs and line separators are escaped, all else is UTF-8 as it is, and there are no blanks between."""
    async with rig(models=default_models()) as it:
        client = await it.chat("tiny-uni", stream=False)
        it.clock.advance(0)
        said = (
            r'"content":" héllo 世界 🙂 \u003cb\u003e\u0026amp;\u003c/b\u003e \u2028 \"quoted\" back\\slash tab\there'
        )
        await until(lambda: said.encode() in client.data)


# -- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", list(Fault))
@pytest_twisted.ensureDeferred
async def test_faults(fault: Fault, stream: bool) -> None:
    """Every fault does what its name says, once, and the request after it is served as usual."""
    async with rig(models=default_models()) as it:
        it.fake.faults.next("/api/chat", fault)
        client = await it.chat("tiny-a", stream=stream)
        it.clock.advance(0)
        hangs, cuts = (Fault.HANG, Fault.HANG_MID_STREAM), (Fault.DROP, Fault.CUT, Fault.CUT_MID_LINE)
        if fault in hangs:
            await until(lambda: fault is Fault.HANG or client.data)
            await deferLater(reactor, 0.02)
            assert not client.closed
            assert it.fake.requests[-1].outcome == "open"
            assert bool(client.data) == (fault is Fault.HANG_MID_STREAM)
            client.leave()
            await until(lambda: it.fake.requests[-1].outcome == "left")
        elif fault in cuts:
            await until(lambda: client.closed)
            assert not client.data.endswith(b"0\r\n\r\n")
            assert it.fake.requests[-1].outcome == "cut"
        else:
            await until(lambda: it.fake.requests[-1].outcome == "answered" and client.data)
        if fault in (Fault.ERROR_LINE, Fault.ERROR_500) and (fault is Fault.ERROR_500 or not stream):
            assert client.status == 500
        elif fault is Fault.ERROR_LINE:
            await until(lambda: client.data.endswith(b"0\r\n\r\n"))
            assert list(client.lines[-1]) == ["error"]
        elif fault is Fault.BUSY_503:
            assert client.status == 503
        elif fault is Fault.NO_DONE:
            await until(lambda: len(client.lines) == 2 if stream else b'"done":false}' in client.data)
        elif fault in (Fault.CUT, Fault.CUT_MID_LINE, Fault.HANG_MID_STREAM) and stream:
            assert len(client.lines) == 2
            half = client.data.rpartition(b"}\n\r\n")[2]
            assert (b'{"model"' in half) == (fault is Fault.CUT_MID_LINE)
        after = await it.chat("tiny-a", stream=False)
        it.clock.advance(0)
        await until(lambda: b'"done":true' in after.data)


@pytest_twisted.ensureDeferred
async def test_faults_choose_their_requests() -> None:
    """A fault can be meant for one route, one model, loads only or all but loads."""
    async with rig(models=default_models()) as it:
        it.fake.faults.always("/api/generate", Fault.ERROR_500, model="tiny-b:latest", load=False)
        bodies: list[tuple[dict[str, Any], int]] = [
            ({"model": "TINY-B"}, 200),
            ({"model": "tiny-b", "prompt": "x"}, 500),
            ({"model": "tiny-a", "prompt": "x"}, 200),
        ]
        for body, status in bodies:
            client = await it.ask("/api/generate", body)
            it.clock.pump([0.1] * 3)
            await until(partial(_answered, client, status))
        it.fake.faults.clear()
        client = await it.ask("/api/generate", bodies[1][0])
        it.clock.pump([0.1] * 3)
        await until(lambda: client.status == 200)


@pytest_twisted.ensureDeferred
async def test_ps_blocked_during_a_load() -> None:
    """A ps that waits for the load's end, for testing that slow is not down."""
    async with rig() as it:
        it.fake.faults.always("/api/ps", Fault.WAIT_FOR_LOAD)
        await it.chat()
        client = await it.ask("/api/ps")
        it.clock.advance(2.9)
        await deferLater(reactor, 0.01)
        assert client.data == b""
        it.clock.advance(0.1)
        await until(lambda: b'"name":"a:latest"' in client.data)


@pytest_twisted.ensureDeferred
async def test_refusing_and_coming_back() -> None:
    """With its listener closed nobody gets in and whoever was in is out; its port is kept, and there it comes back."""
    async with rig() as it:
        client = await it.chat()
        url = it.fake.url
        await it.fake.refuse()
        await until(lambda: client.closed)
        with pytest.raises(Exception, match="refused"):
            await it.connect()
        with closing(socket.socket()) as another, pytest.raises(OSError, match="in use"):
            another.bind(("127.0.0.1", int(url.rpartition(":")[2])))
        await it.fake.listen()
        assert it.fake.url == url
        again = await it.ask("/api/version")
        await until(lambda: again.status == 200)


@pytest_twisted.ensureDeferred
async def test_sleep_and_wake() -> None:
    """Asleep it answers nobody, new or old, and nothing goes on; awake, everything goes on where it stopped."""
    async with rig() as it:
        streaming, idle = await it.chat(), await it.connect()
        it.clock.pump([3, 2, 0.1, 0.1])
        await until(lambda: len(streaming.lines) == 3)
        it.fake.sleep()
        late = await it.connect()
        for client in (late, idle):
            client.send("GET", "/api/version")
        it.clock.advance(60)
        await deferLater(reactor, 0.02)
        assert (late.data, idle.data, len(streaming.lines)) == (b"", b"", 3)
        assert len(it.fake.requests) == 1
        it.fake.wake()
        await until(lambda: late.status == idle.status == 200)
        it.clock.advance(0.1)
        await until(lambda: len(streaming.lines) == 4)


# -- reading as Go does ----------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(json_values, st.sampled_from(["", " ", "x", "{", "]", '"', "\x00"]))
def test_what_follows_the_first_value_is_passed_over(value: Any, rest: str) -> None:
    """Text after the first JSON value does not matter."""
    separator = " " if isinstance(value, int) else ""
    assert first_value((json.dumps(value) + separator + rest).encode()) == value


@given(st.text(alphabet='{}[]",:0123456789.-+eE truefalsn\\\n\t', max_size=20))
def test_what_cannot_be_read_is_complained_of(text: str) -> None:
    """Whatever the body, there is a value or a complaint in Go's words, never a crash."""
    with suppress(Refusal):
        first_value(text.encode())
        return
    with pytest.raises(Refusal) as refused:
        first_value(text.encode())
    words = refused.value.text
    assert words.startswith(("invalid character", "unexpected EOF", "missing request body"))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{bad}", "invalid character 'b' looking for beginning of object key string"),
        (b'{"a" 1}', "invalid character '1' after object key"),
        (b'{"a":1 "b"}', "invalid character '\"' after object key:value pair"),
        (b"[1 2]", "invalid character '2' after array element"),
        (b"trux", "invalid character 'x' in literal true (expecting 'e')"),
        (b'"\n"', "invalid character '\\n' in string literal"),
        (b"\x1f\x8b", "invalid character '\\x1f' looking for beginning of value"),
        (b"-x", "invalid character 'x' in numeric literal"),
        (b'{"a":', "unexpected EOF"),
        (b"NaN", "invalid character 'N' looking for beginning of value"),
    ],
)
def test_gos_complaints(body: bytes, text: str) -> None:
    """A body that is no JSON gets Go's own words."""
    assert complaint(body) == text


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (10, 10.0),
        (1.5, 1.5),
        (-1, inf),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("-1m", inf),
        ("0", 0.0),
        ("0s", 0.0),
        ("1.5s", 1.5),
        (1e18, 0.0),
        (None, None),
    ],
)
def test_keep_alive_values(value: object, seconds: float | None) -> None:
    """keep_alive is seconds or a Go duration; negative is for ever; what overflows unloads at once."""
    assert keep_alive(value) == seconds


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("10", 'time: missing unit in duration "10"'),
        ("-1", 'time: missing unit in duration "-1"'),
        ("", 'time: invalid duration ""'),
        ("abc", 'time: invalid duration "abc"'),
        (True, "Unsupported type: 'bool'"),
        ([], "Unsupported type: '[]interface {}'"),
    ],
)
def test_bad_keep_alive(value: object, text: str) -> None:
    """A bad keep_alive is refused in Go's words."""
    with pytest.raises(Refusal) as refused:
        keep_alive(value)
    assert refused.value.text == text


@pytest.mark.parametrize(("read", "does"), [(asks.chat, "chat"), (asks.generate, "generate")])
def test_any_model_can_be_unloaded(read: Callable[..., asks.Ask], does: str) -> None:
    """An unload request may name an embedder, which Ollama unloads before it looks at what the model can do."""
    models = {model.name: model for model in default_models()}
    assert read(models, b'{"model": "tiny-embed", "keep_alive": 0}').empty
    with pytest.raises(Refusal, match=f"does not support {does}"):
        read(models, b'{"model": "tiny-embed", "keep_alive": 1}')


def test_models_of_a_spec() -> None:
    """The command line's spec gives models of any size and pace, starting from the known ones."""
    big, embedder = parse_models("big,load=3,prompt=0.5,rate=20,size=5e9;tiny-embed,load=1")
    assert (big.name, big.load_time, big.prompt_time, big.token_rate, big.size) == ("big:latest", 3, 0.5, 20, 5 * 10**9)
    assert (embedder.capabilities, embedder.load_time) == (("embedding",), 1)
    with pytest.raises(ValueError, match="unknown lod"):
        parse_models("big,lod=3")
    with pytest.raises(ValueError, match="'big,load': 'load' is not key=value"):
        parse_models("big,load")
