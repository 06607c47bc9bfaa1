"""The two clients over httpx: what goes on the wire, what happens when it breaks, and that they are the same."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, get_origin, get_type_hints

import attrs
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import foreman.client
from foreman.client import AsyncForeman, AsyncJob, Foreman, Job, JobState, NoSuchJob, NotReachable
from foreman.client.wire import AsyncWire, Wire, _Lines

DONE = {"job_id": "J1", "state": "done", "endpoint": "/api/generate", "created_at": "2026-11-21T10:24:00.000Z"}


def well(request: httpx.Request) -> httpx.Response:
    """A foreman that has done everything already."""
    if request.url.path.endswith("/stream"):
        return httpx.Response(200, content=b'{"response": "Be\xe2\x80\xa8"}\n{"response": "cause", "done": true}\n')
    if request.method == "POST" and request.url.path == "/jobs":
        return httpx.Response(202, json={"job_id": "J1", "state": "queued"})
    return httpx.Response(200, json={**DONE, "result": {"response": "Because"}})


def blocking(handler: Callable[[httpx.Request], httpx.Response], **more: Any) -> tuple[Foreman, list[float]]:
    """A client of a foreman that is a function, and the pauses it makes."""
    client = Foreman("http://foreman", http=httpx.Client(transport=httpx.MockTransport(handler)), **more)
    slept: list[float] = []
    client._wire._sleep = slept.append
    return client, slept


def for_asyncio(handler: Callable[[httpx.Request], httpx.Response], **more: Any) -> tuple[AsyncForeman, list[float]]:
    """The same for asyncio."""
    client = AsyncForeman("http://foreman", http=httpx.AsyncClient(transport=httpx.MockTransport(handler)), **more)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    client._wire._sleep = sleep
    return client, slept


# -- what goes out -----------------------------------------------------------------------------------------------------


def test_what_is_asked() -> None:
    """A run is one submission with a key of its own, then questions; the token goes with each."""
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return well(request)

    client, _ = blocking(handler, token="s3cret")
    job = client.run("m", "Why?", metadata={"a": 1}, expires_in=90, run_timeout=1.5, options={"seed": 1})
    assert job.result == {"response": "Because"}
    client.run("m", "Why?")
    first, question, second, _ = seen
    assert json.loads(first.content) == {
        "model": "m",
        "prompt": "Why?",
        "options": {"seed": 1},
        "endpoint": "/api/generate",
        "metadata": {"a": 1},
        "expires_in": "90000ms",
        "timeout": "1500ms",
    }
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]
    assert (question.method, question.url.path, question.url.params["wait"]) == ("GET", "/jobs/J1", "30.000")
    assert {request.headers["authorization"] for request in seen} == {"Bearer s3cret"}


@pytest.mark.parametrize("name", ["s3cret", "b64"])
def test_a_token_is_not_shown(name: str) -> None:
    """Neither the client nor a job prints the token."""
    client, _ = blocking(well, token=name)
    assert name not in f"{client!r}{client.run('m', 'x')!r}{vars(client)!r}"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8080",
        "ftp://h",
        "http://",
        "http:///x",
        "http://h:x",
        "http://[::1",
        "http://h/ ",
        "http://h:99999",
    ],
)
def test_a_url_that_cannot_be_one_is_refused_at_once(url: str) -> None:
    """A slip in the URL is an error where it was made, not a foreman that is away."""
    with pytest.raises(ValueError, match="not a URL"):
        Foreman(url)


@pytest.mark.parametrize("url", ["http://me:s3cret@h", "http://h?key=s3cret", "http://h/x#s3cret"])
def test_a_url_has_no_secrets(url: str) -> None:
    """What would be a password in every error and `repr` is refused, without being shown."""
    with pytest.raises(ValueError, match="neither user nor query") as refused:
        Foreman(url)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("kind", [Foreman, AsyncForeman])
def test_a_proxy_is_for_others_than_this_machine(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With HTTP_PROXY set, what goes to this machine stays on it, the token included; what goes elsewhere does not."""
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    for host in ("127.0.0.1", "127.1.2.3", "localhost", "[::1]", "nas", "10.0.0.1"):
        transports = kind(f"http://{host}:8080", "s3cret")._wire.http._mounts
        assert any(transports.values()) is (host in ("nas", "10.0.0.1"))
    monkeypatch.setenv("ALL_PROXY", "socks5h://nowhere")
    assert kind().__class__ is kind, "a proxy that cannot be used is none of this machine's business"


def test_what_cannot_be_sent_is_refused_at_once() -> None:
    """A token read with its newline, or an odd key, is an error where it was made; the token is not shown."""
    with pytest.raises(ValueError, match=r"^a token is printable ASCII without blanks$"):
        Foreman(token="s3cret\n")
    client, slept = blocking(well)
    for key in ("a\nb", "ä", " a", "x" * 256):
        with pytest.raises(ValueError, match="idempotency key"):
            client.submit("m", "x", idempotency_key=key)
    assert client.submit("m", "x", idempotency_key="x" * 255).job_id == "J1"
    with pytest.raises(ValueError, match="JSON"):
        client.submit("m", "x", options={"temperature": float("nan")})
    assert slept == []


def test_ids_cannot_leave_their_place() -> None:
    """Whatever is given for an id or a name, it stays one part of the path."""
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.raw_path)
        return well(request)

    client, _ = blocking(handler)
    client.job("../queue?x=/y")
    for place in (".", ".."):
        with pytest.raises(NoSuchJob):
            client.job(place)
    assert seen == [b"/jobs/..%2Fqueue%3Fx%3D%2Fy"]


def test_a_client_below_a_path() -> None:
    """A foreman behind a proxy may live below a path."""
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        return httpx.Response(200, json=DONE)

    Foreman("http://proxy/foreman/", http=httpx.Client(transport=httpx.MockTransport(handler))).job("J1")
    assert seen == ["/foreman/jobs/J1"]


# -- what comes back ---------------------------------------------------------------------------------------------------


class Breaking(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that breaks after some bytes; `closed` tells whether the client let go of it."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        """The bytes, then the break."""
        yield from self.pieces
        raise httpx.ReadError("reset")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The same."""
        for piece in self:
            yield piece

    def close(self) -> None:
        """Take note."""
        self.closed = True

    async def aclose(self) -> None:
        """Take note."""
        self.closed = True


def breaking() -> tuple[Callable[[httpx.Request], httpx.Response], list[Breaking]]:
    """A foreman whose first two answers are lost, whose first stream breaks in a line, and one answer after it.

    Gives the bodies that have broken too.
    """
    bodies = [Breaking(b'{"response": "B"}\n{"respo'), Breaking(b'{"job')]
    troubles: list[Exception | Breaking | None] = [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout(""),
        None,
        bodies[0],
        None,
        bodies[1],
    ]

    def handler(request: httpx.Request) -> httpx.Response:
        trouble = troubles.pop(0) if troubles else None
        if isinstance(trouble, Exception):
            raise trouble
        return well(request) if trouble is None else httpx.Response(200, stream=trouble)

    return handler, bodies


def test_a_broken_wire_is_mended() -> None:
    """Refused, timed out, cut in an answer or in a stream: what is asked for comes whole."""
    handler, bodies = breaking()
    client, slept = blocking(handler)
    job = client.submit("m", "Why?")
    assert [chunk.text for chunk in job.stream()] == ["B", "e\u2028", "cause", ""]
    assert job.wait().result == {"response": "Because"}
    assert len(slept) == 4
    assert all(body.closed for body in bodies)


def test_a_broken_wire_is_mended_for_asyncio() -> None:
    """The same for asyncio."""
    handler, bodies = breaking()

    async def main() -> None:
        client, slept = for_asyncio(handler)
        job = await client.submit("m", "Why?")
        assert [chunk.text async for chunk in job.stream()] == ["B", "e\u2028", "cause", ""]
        assert (await job.wait()).result == {"response": "Because"}
        assert len(slept) == 4
        assert all(body.closed for body in bodies)

    asyncio.run(main())


def test_a_reader_who_leaves_lets_go() -> None:
    """Leaving a stream in the middle closes its connection."""
    body = Breaking(b'{"response": "Be"}\n{"response": "cause"}\n')
    client, _ = blocking(
        lambda request: httpx.Response(200, stream=body) if "stream" in request.url.path else well(request)
    )
    reading = client.submit("m", "Why?").stream()
    assert next(reading).text == "Be"
    reading.close()  # type: ignore[attr-defined]
    assert body.closed


@given(st.lists(st.binary(max_size=5).map(lambda text: text.replace(b"x", b"\n")), max_size=20))
def test_lines_are_cut_at_newlines_only(pieces: list[bytes]) -> None:
    """However the bytes come, the whole lines are told, and nothing else."""
    lines, got = _Lines(), []
    for piece in pieces:
        lines.add(piece)
        while (line := lines.take()) is not None:
            got.append(line)
    assert got == b"".join(pieces).split(b"\n")[:-1]


def test_what_the_network_says_is_told() -> None:
    """An error names the URL and what went wrong."""

    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("[Errno 111] Connection refused")

    client, _ = blocking(handler, patience=0)
    with pytest.raises(NotReachable, match=r"http://foreman: \[Errno 111\] Connection refused"):
        client.health()


# -- leaving -----------------------------------------------------------------------------------------------------------


def cancellable() -> tuple[list[str], Callable[[httpx.Request], httpx.Response]]:
    """A foreman whose job is not done, and the paths it was asked for."""
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return httpx.Response(200, json={"job_id": "J1", "state": "working"})

    return seen, handler


def test_ctrl_c_cancels_if_asked() -> None:
    """Ctrl-C while a call waits: the job is cancelled, then the program ends as it should."""
    seen, handler = cancellable()
    client, _ = blocking(handler)
    with pytest.raises(KeyboardInterrupt):
        client.run("m", "Why?", cancel_on_interrupt=True)
    assert seen == ["/jobs", "/jobs/J1", "/jobs/J1/cancel"]


def test_a_cancelled_task_cancels_if_asked() -> None:
    """A task that waits is cancelled: so is the job, then the task."""
    seen: list[str] = []

    async def main() -> None:
        waits = asyncio.Event()

        async def handler(request: httpx.Request) -> httpx.Response:
            seen.append(request.url.path)
            if request.method == "GET":
                waits.set()
                await asyncio.Event().wait()
            return httpx.Response(200, json={"job_id": "J1", "state": "working"})

        http = httpx.AsyncClient(transport=httpx.MockTransport(handler))
        task = asyncio.ensure_future(AsyncForeman("http://foreman", http=http).run("m", "?", cancel_on_interrupt=True))
        await waits.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert seen == ["/jobs", "/jobs/J1", "/jobs/J1/cancel"]


def test_connections_are_closed_by_whoever_made_them() -> None:
    """A client closes its own connections with its block, and leaves those it was given."""
    given_one = httpx.Client(transport=httpx.MockTransport(well))
    with Foreman("http://foreman", http=given_one):
        pass
    assert not given_one.is_closed
    with Foreman("http://foreman") as client:
        pass
    assert client._wire.http.is_closed

    async def main() -> None:
        async with AsyncForeman("http://foreman") as own:
            pass
        assert own._wire.http.is_closed

    asyncio.run(main())


# -- the two are the same ----------------------------------------------------------------------------------------------

TWINS: dict[Any, Any] = {
    AsyncForeman: Foreman,
    AsyncJob: Job,
    AsyncWire: Wire,
    AsyncIterator: Iterator,
    httpx.AsyncClient: httpx.Client,
}


def blocking_type(hint: Any) -> Any:
    """The type that the blocking client has in its place."""
    arguments = tuple(blocking_type(each) for each in getattr(hint, "__args__", ()))
    if not arguments:
        return TWINS.get(hint, hint)
    origin = TWINS.get(getattr(hint, "__origin__", None), getattr(hint, "__origin__", None))
    return (origin, arguments)


def members(kind: type) -> dict[str, Any]:
    """The methods of a class that callers use, by their blocking names; callers do not make jobs."""
    special = {"__aenter__": "__enter__", "__aexit__": "__exit__"}
    special |= {} if attrs.has(kind) else {"__init__": "__init__"}
    return {
        special.get(name, name): member
        for name, member in vars(kind).items()
        if inspect.isfunction(member) and (not name.startswith("_") or name in (*special, *special.values()))
    }


@pytest.mark.parametrize(("one", "other"), [(Foreman, AsyncForeman), (Job, AsyncJob)])
def test_both_clients_have_the_same_methods(one: type, other: type) -> None:
    """Whoever knows one client knows the other: names, parameters, defaults, types; only `await` is added."""
    ours, theirs = members(one), members(other)
    assert list(ours) == list(theirs)
    for name, method in ours.items():
        twin = theirs[name]
        shapes = [
            [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]
            for function in (method, twin)
        ]
        assert shapes[0] == shapes[1], name
        hints, their_hints = (
            {each: blocking_type(hint) for each, hint in get_type_hints(function).items()}
            for function in (method, twin)
        )
        assert hints == their_hints, name
        iterates = get_origin(get_type_hints(method)["return"]) is Iterator
        assert inspect.iscoroutinefunction(twin) is (name != "__init__" and not iterates), name


def test_all_that_is_public_is_named() -> None:
    """`__all__` is sorted as ruff has it, complete, and each name has a docstring."""
    public = {
        name for name, value in vars(foreman.client).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert set(foreman.client.__all__) == public - {"annotations"}
    assert [name for name in foreman.client.__all__ if not inspect.getdoc(getattr(foreman.client, name))] == []
    assert JobState("done").is_over


def test_importing_the_client_imports_nothing_of_the_daemon() -> None:
    """A program that imports the client has httpx, attrs and what they need, and no Twisted, nor foreman's daemon."""
    script = (
        "import sys, httpx, attrs; known = set(sys.modules); import foreman.client; print(*set(sys.modules) - known)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    new = {name for name in ran.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    ours = {name for name in new if not name.startswith("foreman.client")}
    assert ours == {"foreman", "foreman.webhooks", "foreman.webhooks.signing"}
