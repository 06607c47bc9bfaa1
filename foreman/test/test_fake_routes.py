"""The stand-in's router, its routes that change things, and the stand-in as a process of its own."""

# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
# Neither Twisted's endpoints nor pytest-twisted are typed.
from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import pytest_twisted
from twisted.internet import reactor

from foreman.ollama.fake import FakeModel, FakeOllama, Fault, default_models
from foreman.test.test_fake_transcripts import ask


@asynccontextmanager
async def listening(**options: Any) -> AsyncIterator[tuple[FakeOllama, int]]:
    """A stand-in on a port."""
    fake = FakeOllama(reactor, **options)
    port = await fake.listen()
    try:
        yield fake, port
    finally:
        await fake.close()


@pytest.mark.parametrize(
    ("method", "path", "status", "header"),
    [
        ("GET", "/api%2Fversion", 200, None),
        ("GET", "/api/version?x=1", 200, None),
        ("GET", "http://somewhere/api/version", 200, None),
        ("GET", "/API/tags", 404, None),
        ("GET", "/api/nothing/", 404, None),
        ("GET", "/api/../api/version?x=1", 307, ["Location", "/api/version?x=1"]),
        ("POST", "/api/chat/", 307, ["Location", "/api/chat"]),
        ("POST", "/api/delete", 405, ["Allow", "DELETE"]),
        ("GET", "/v1/images/generations", 404, None),
        ("OPTIONS", "/api/chat", 405, ["Allow", "POST"]),
    ],
)
@pytest_twisted.ensureDeferred
async def test_router(method: str, path: str, status: int, header: list[str] | None) -> None:
    """Odd paths and methods are answered as Ollama's router answers them."""
    async with listening() as (_, port):
        got = await ask(port, method, path, None, {})
        assert got["status"] == status
        assert header is None or header in got["headers"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("192.168.1.2:11434", 200),
        ("[::1]:11434", 200),
        ("box.local", 200),
        ("host.docker.internal:1", 200),
        ("8.8.8.8", 403),
        ("evil.com", 403),
    ],
)
@pytest_twisted.ensureDeferred
async def test_hosts(host: str, status: int) -> None:
    """On loopback only local Hosts are answered; a front must send the target's own."""
    async with listening() as (_, port):
        got = await ask(port, "GET", "/api/version", None, {"Host": host})
        assert got["status"] == status
        assert status == 200 or got["chunks"] == [""]


def _lines(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(chunk) for chunk in answer["chunks"]]


@pytest_twisted.ensureDeferred
async def test_pull_and_delete() -> None:
    """A pull tells its progress line by line and the model is there; one that is nowhere is an error after the 200."""
    async with listening(models=[], pullable=[FakeModel(name="new", size=1000)]) as (fake, port):
        lines = _lines(await ask(port, "POST", "/api/pull", '{"model":"","name":"new"}', {}))
        assert [line["status"] for line in lines[-3:]] == ["verifying sha256 digest", "writing manifest", "success"]
        assert [line["completed"] for line in lines if "completed" in line] == [250, 500, 750, 1000]
        assert list(fake.models) == ["new:latest"]
        got = await ask(port, "POST", "/api/pull", '{"model":"nope"}', {})
        assert (got["status"], list(_lines(got)[-1])) == (200, ["error"])
        got = await ask(port, "POST", "/api/pull", '{"model":"nope","stream":false}', {})
        assert got["status"] == 500
        await ask(port, "DELETE", "/api/delete", '{"model":"NEW"}', {})
        assert not fake.models


@pytest_twisted.ensureDeferred
async def test_a_pull_that_broke_goes_on_where_it_stopped() -> None:
    """What has come is kept, and the model is not there before all of it has; the next pull tells what is left."""
    async with listening(models=[], pullable=[FakeModel(name="new", size=1000)]) as (fake, port):
        fake.faults.next("/api/pull", Fault.ERROR_LINE, after=4)
        broken = _lines(await ask(port, "POST", "/api/pull", '{"model":"new"}', {}))
        assert [line["completed"] for line in broken if "completed" in line] == [250, 500]
        assert list(broken[-1]) == ["error"]
        assert not fake.models
        lines = _lines(await ask(port, "POST", "/api/pull", '{"model":"new"}', {}))
        assert [line["completed"] for line in lines if "completed" in line] == [500, 750, 1000]
        assert list(fake.models) == ["new:latest"]


@pytest_twisted.ensureDeferred
async def test_create_from_a_blob() -> None:
    """A blob that was uploaded is there, and a model can be made of it; a wrong digest is refused."""
    async with listening() as (fake, port):
        digest = hashlib.sha256(b"weights").hexdigest()
        path = f"/api/blobs/sha256:{digest}"
        statuses = []
        for method, body in (
            ("HEAD", None),
            ("POST", "other"),
            ("POST", "weights"),
            ("POST", "weights"),
            ("HEAD", None),
        ):
            statuses.append((await ask(port, method, path, body, {}))["status"])
        assert statuses == [404, 400, 201, 200, 200]
        body = json.dumps({"model": "mine", "files": {"f": f"sha256:{digest}"}})
        assert _lines(await ask(port, "POST", "/api/create", body, {}))[-1] == {"status": "success"}
        assert fake.models["mine:latest"].blob == digest
        got = await ask(port, "POST", "/api/create", '{"model":"mine"}', {})
        assert got["status"] == 400


@pytest_twisted.ensureDeferred
async def test_a_prompt_too_long_that_may_not_be_truncated() -> None:
    """A prompt over the context with truncate:false is 400, llama-server's JSON as a text."""
    async with listening() as (_, port):
        body = json.dumps({"model": "tiny-a", "prompt": "x " * 50, "truncate": False, "options": {"num_ctx": 40}})
        got = await ask(port, "POST", "/api/generate", body, {})
        error = json.loads(json.loads(got["chunks"][0])["error"])["error"]
        assert (got["status"], error["n_ctx"]) == (400, 40)


@pytest_twisted.ensureDeferred
async def test_answers_follow_seed_and_limit() -> None:
    """Other seeds give other lengths, the same seed the same answer, and num_predict ends it with `length`."""
    async with listening() as (_, port):
        texts = []
        for options in ({"seed": 3}, {"seed": 3}, {"seed": 9}, {"num_predict": 2}):
            body = json.dumps({"model": "tiny-a", "prompt": "x", "stream": False, "options": options})
            texts.append(json.loads((await ask(port, "POST", "/api/generate", body, {}))["chunks"][0]))
        said = [answer["response"] for answer in texts]
        assert said[0] == said[1] != said[2]
        assert (said[3], texts[3]["done_reason"]) == (" alpha bravo", "length")


@contextmanager
def process(*arguments: str) -> Iterator[tuple[str, str]]:
    """The stand-in as a process; its URL and that of its control routes."""
    command = [sys.executable, "-m", "foreman.ollama.fake", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            yield child.stdout.readline().strip(), child.stdout.readline().strip()
        finally:
            child.terminate()


def call(url: str, body: object = None, method: str | None = None) -> Any:
    """One request of JSON."""
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, method=method), timeout=10) as answer:  # noqa: S310 - our own loopback URL
        return json.loads(answer.read().splitlines()[-1])


def test_as_a_process() -> None:
    """`python -m foreman.ollama.fake` prints its URL, serves, and is told on its other port to fail and to sleep."""
    with process("--port", "0", "--slots", "2", "--models", "tiny-embed;other,words=yes+no") as (url, control):
        names = [model["name"] for model in call(f"{url}/api/tags")["models"]]
        assert sorted(names) == ["other:latest", "tiny-embed:latest"]
        call(f"{control}/_fake/faults", {"path": "/api/generate", "fault": "error-line"})
        assert list(call(f"{url}/api/generate", {"model": "other", "prompt": "x"})) == ["error"]
        call(f"{control}/_fake/sleep", {})
        with pytest.raises(OSError, match="timed out"), urlopen(url, timeout=0.2):  # noqa: S310
            pass
        assert call(f"{control}/_fake/state")["asleep"]
        call(f"{control}/_fake/wake", {})
        assert call(f"{url}/api/version") == {"version": "0.32.15"}
        state = call(f"{control}/_fake/state")
        assert (state["counts"]["loads"], state["resident"]) == (1, ["other:latest"])
        assert {request["path"] for request in state["requests"]} >= {"/api/tags", "/api/generate", "/api/version"}


def refused(*arguments: str) -> tuple[int, str]:
    """How the process ends that cannot begin, and the last line it says."""
    command = [sys.executable, "-m", "foreman.ollama.fake", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout, "Traceback" in ended.stderr) == ("", False)
    return ended.returncode, ended.stderr.splitlines()[-1]


def test_a_port_that_is_taken() -> None:
    """Beside the real Ollama, or another stand-in, one line says which port is taken, be it that of the control."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        for name in ("--port", "--control-port"):
            assert refused(name, str(port)) == (1, f"cannot listen on 127.0.0.1:{port}: Address already in use")
    assert refused("--port", "114340") == (1, "cannot listen: bind(): port must be 0-65535.")


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("big,lod=3", "'big,lod=3': unknown lod; known: load, "),
        ("big,load", "'big,load': 'load' is not key=value"),
        ("big,load=long", "could not convert string to float: 'long'"),
        ("big,size=inf", "cannot convert float infinity to integer"),
        ("a b", "'a b' is no model name"),
    ],
)
def test_models_that_cannot_be_read(spec: str, why: str) -> None:
    """Whoever writes a model wrongly is told what is wrong with it."""
    for name in ("--models", "--pullable"):
        status, line = refused(name, spec)
        assert (status, line.partition(f" error: argument {name}: ")[2][: len(why)]) == (2, why)


def test_default_models_are_those_recorded() -> None:
    """The default set has a model of each kind, and any of their fields can be changed for all."""
    models = {model.name: model for model in default_models(load_time=2.0)}
    assert {model.load_time for model in models.values()} == {2.0}
    assert [name for name, model in models.items() if not model.is_worker] == ["tiny-embed:latest"]


def test_a_process_tells_what_it_was_asked_and_what_it_said() -> None:
    """Whoever checks a proxy learns each request's body, the fault it met, and length and checksum of the answer."""
    with process("--models", "parrot,echo=4") as (url, control):
        call(f"{control}/_fake/faults", {"path": "/api/generate", "fault": "error-500"})
        with pytest.raises(HTTPError):
            call(f"{url}/api/generate", {"model": "parrot", "prompt": "who is there"})
        with urlopen(f"{url}/api/generate", b'{"model": "parrot", "prompt": "who is there"}', timeout=10) as answer:  # noqa: S310
            said: bytes = answer.read()
        words = [json.loads(line)["response"] for line in said.splitlines()]
        assert "".join(words) == " who is there who"
        struck, spared = call(f"{control}/_fake/state?bodies=1")["requests"]
        assert (struck["fault"], struck["status"], spared["fault"], spared["status"]) == ("error-500", 500, None, 200)
        assert json.loads(spared["body"])["prompt"] == "who is there"
        assert (spared["sent"], spared["crc"]) == (len(said), zlib.crc32(said))
        assert "body" not in call(f"{control}/_fake/state")["requests"][0]
