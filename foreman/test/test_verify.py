"""`foreman verify`: the self-test finds nothing wrong with foreman, and every lie that it is told."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from foreman.ollama.fake import FakeModel, FakeOllama, default_models
from foreman.test.harness import Child, daemon, eventually, fake_ollama
from foreman.test.liar import Headers, Lie, lying
from foreman.verify import wire
from foreman.verify.compare import differences, shape_differences
from foreman.verify.findings import Finding, Verdict
from foreman.verify.questions import NOBODY, Question, long_chat
from foreman.verify.selftest import Unusable, choose, compare
from foreman.verify.timing import SHORTEST, timing
from foreman.verify.wire import Answer, NotReached, Piece, Place

LONG = "each number on a line"


def words(ask: Any) -> Iterable[str]:
    """Few of them, but for the question that wants many: so many that it takes little more than `SHORTEST`."""
    return [f" {number}" for number in range(int(1.1 * SHORTEST * RATE) if LONG in ask.prompt else 4)]


RATE = 50.0
PROGRAM = (sys.executable, "-c", "from foreman.verify import verify; verify()")
COUNTS = FakeModel(name="counts", size=1, answer=words, token_rate=RATE)
CHAT = {"model": "counts", "messages": [{"role": "user", "content": "hi"}]}
STREAM = Question("chat", "POST", "/api/chat", CHAT, streams=True)
VERSION = Question("version", "GET", "/api/version")
UNKNOWN = Question("unknown", "POST", "/api/chat", {**CHAT, "model": NOBODY})


def target() -> Any:
    """The target of these tests."""
    return fake_ollama(models=(COUNTS, *default_models()), slots=2)


@asynccontextmanager
async def command(folder: Path, *arguments: str, status: int) -> AsyncIterator[Child]:
    """The command as operators run it, ended with that status."""
    child = Child(folder, "verify", [*PROGRAM, *arguments], {"COLUMNS": "200"})
    try:
        child.start()
        assert await child.exit_status(within=240) == status, child.output + child.errors
        yield child
    finally:
        child.destroy()


async def judged(fake: FakeOllama, lie: Lie, question: Question) -> Finding:
    """What comes of a question that is put to the target directly and through a liar."""
    with lying(fake.url, lie) as url:
        finding: Finding = await deferToThread(compare, Place(url=fake.url), Place(url=url), question)
    return finding


async def timed(fake: FakeOllama, lie: Lie) -> list[tuple[str, Verdict]]:
    """The verdicts of what only shows in time."""
    with lying(fake.url, lie) as url:
        findings = await deferToThread(timing, Place(url=fake.url), Place(url=url), "counts:latest")
    return [(finding.name, finding.verdict) for finding in findings]


# -- foreman -----------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_foreman_is_found_to_be_the_same(tmp_path: Path) -> None:
    """In front of an Ollama, foreman passes every check of its own self-test, and none is left out."""
    async with target() as fake, daemon(tmp_path, fake.url, {"TOKEN": "secret"}) as foreman:
        where = ("--direct", fake.url, "--through", foreman.url, "--token", "secret")
        async with command(tmp_path, *where, "--json", "--model", "counts", status=0) as run:
            document = json.loads(run.output)
            assert run.errors == ""
        async with command(tmp_path, *where[:4], status=2) as run:
            assert run.errors == f"foreman verify: {foreman.url} wants a token, or another one\n"
    assert document["identical"] is True
    assert (document["model"], document["embedder"]) == ("counts:latest", "tiny-embed:latest")
    verdicts = {check["name"]: check["verdict"] for check in document["checks"]}
    assert len(verdicts) == len(document["checks"]) > 70
    others = {name: verdict for name, verdict in verdicts.items() if verdict != "identical"}
    assert others == {"delete of an unknown model": "foreman's own", "a page's preflight": "foreman's own"}


@pytest_twisted.ensureDeferred
async def test_with_model_admin_delete_is_the_same(tmp_path: Path) -> None:
    """What foreman refuses by its settings alone is compared once they allow it."""
    question = Question("delete", "DELETE", "/api/delete", {"model": NOBODY}, administers=True)
    async with target() as fake, daemon(tmp_path, fake.url, {"MODEL_ADMIN": "on"}) as foreman:
        finding = await deferToThread(compare, Place(url=fake.url), Place(url=foreman.url), question)
    assert finding.verdict is Verdict.IDENTICAL


# -- liars -------------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_an_honest_proxy_is_believed() -> None:
    """What passes everything on is found to be the same: streams, lists, errors, its pace, and leaving."""
    async with target() as fake:
        for question in (STREAM, VERSION, UNKNOWN, Question("ps", "GET", "/api/ps")):
            finding = await judged(fake, Lie(), question)
            assert finding == Finding(question.name, Verdict.IDENTICAL)
        assert {verdict for _, verdict in await timed(fake, Lie())} == {Verdict.IDENTICAL}


def _with(name: str, value: str) -> Callable[[Headers], Headers]:
    return lambda headers: (*(each for each in headers if each[0] != name), (name, value))


def _without(name: str) -> Callable[[Headers], Headers]:
    return lambda headers: tuple(each for each in headers if each[0] != name)


def _replacing(old: bytes, new: bytes) -> Callable[[bytes], list[bytes]]:
    return lambda piece: [piece.replace(old, new)]


LIES: dict[str, tuple[Lie, Question, str]] = {
    "status": (Lie(status=lambda _: 201), VERSION, "status: 200, through foreman 201"),
    "status of an error": (Lie(status=lambda _: 500), UNKNOWN, "status: 404, through foreman 500"),
    "header changed": (Lie(headers=_with("content-type", "text/plain")), STREAM, "header content-type: "),
    "header added": (Lie(headers=_with("x-made-by", "x")), VERSION, "header x-made-by: none, through foreman 'x'"),
    "header lost": (Lie(headers=_without("content-type")), VERSION, "through foreman none"),
    "header twice": (Lie(headers=lambda headers: (*headers, *headers)), VERSION, "header content-type: "),
    "length of a HEAD": (
        Lie(headers=_with("content-length", "7")),
        Question("root", "HEAD", "/"),
        "header content-length: '17', through foreman '7'",
    ),
    "byte of a list": (Lie(chunk=_replacing(b"tiny-a", b"tiny-A")), Question("tags", "GET", "/api/tags"), "body, from"),
    "byte of an id": (Lie(chunk=_replacing(b"tiny-a", b"tiny-A")), Question("ids", "GET", "/v1/models"), "body, from"),
    "byte of a text": (Lie(chunk=_replacing(b'" 2"', b'" 3"')), STREAM, "body, from byte"),
    "written anew": (Lie(chunk=_replacing(b'":', b'": ')), STREAM, "body, from byte"),
    "time in another form": (Lie(chunk=_replacing(b'Z"', b'+00:00"')), STREAM, "body, from byte"),
    "error's text": (Lie(chunk=_replacing(b"not found", b"not there")), UNKNOWN, "not there"),
    "chunks split": (Lie(chunk=lambda piece: [piece[:9], piece[9:]]), STREAM, "of the same bytes"),
    "lost chunk": (Lie(chunk=lambda piece: [] if b'" 2"' in piece else [piece]), STREAM, "body, from byte"),
    "end lost": (Lie(chunk=lambda piece: [piece.ljust(10)[:10]]), Question("tags", "GET", "/api/tags"), "through"),
}


@pytest.mark.parametrize("name", LIES)
@pytest_twisted.ensureDeferred
async def test_a_lie_is_found(name: str) -> None:
    """Each kind of difference there can be is seen, and told so that one knows where to look."""
    lie, question, fact = LIES[name]
    async with target() as fake:
        finding = await judged(fake, lie, question)
    assert finding.verdict is Verdict.DIFFERENT
    assert any(fact in each for each in finding.facts), finding.facts


@pytest_twisted.ensureDeferred
async def test_chunks_that_were_joined_are_found() -> None:
    """Two lines in one chunk, though all bytes are there and in time, are not what the target sent."""
    held: list[bytes] = []

    def joined(piece: bytes) -> list[bytes]:
        held.append(piece)
        if len(held) == 1 and b'"done":true' not in piece:
            return []
        whole = b"".join(held)
        held.clear()
        return [whole]

    async with target() as fake:
        finding = await judged(fake, Lie(chunk=joined), STREAM)
    assert finding.verdict is Verdict.DIFFERENT
    assert finding.facts == ("chunks: 5, through foreman 3, of the same bytes",)


@pytest_twisted.ensureDeferred
async def test_a_stream_that_is_held_back_is_found() -> None:
    """A stream that comes whole at its end, though chunk by chunk, is not a stream."""
    async with target() as fake:
        verdicts = await timed(fake, Lie(holds=True))
    assert [verdict for _, verdict in verdicts] == [Verdict.DIFFERENT, Verdict.SKIPPED, Verdict.IDENTICAL]


@pytest_twisted.ensureDeferred
async def test_a_target_that_works_on_for_nobody_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the target goes on though the client has left, streaming or not, the self-test says so, however busy."""

    def slowly(*asked: Any) -> Answer:
        time.sleep(0.05)
        return wire.ask(*asked)

    monkeypatch.setattr("foreman.verify.timing.ask", slowly)
    async with target() as fake:
        verdicts = await timed(fake, Lie(clings=True))
    assert [verdict for _, verdict in verdicts] == [Verdict.IDENTICAL, Verdict.DIFFERENT, Verdict.DIFFERENT]


@pytest_twisted.ensureDeferred
async def test_a_call_that_came_late_is_no_lie() -> None:
    """Where a busy machine was so slow that the client had left before the target began, it is tried once more."""
    async with target() as fake:
        verdicts = await timed(fake, Lie(late=iter((0.0, 0.0, 1.5 * SHORTEST))))
    assert [verdict for _, verdict in verdicts] == [Verdict.IDENTICAL] * 3


@pytest_twisted.ensureDeferred
async def test_the_command_says_what_is_different(tmp_path: Path) -> None:
    """A liar makes the command exit with 1, with a table that names the check and both sides' answers."""
    quick = FakeModel(name="quick")
    async with fake_ollama(models=(quick,)) as fake, daemon(tmp_path, fake.url) as foreman:
        with lying(foreman.url, Lie(chunk=_replacing(b"0.32.15", b"0.32.16"))) as url:
            async with command(tmp_path, "--direct", fake.url, "--through", url, status=1) as run:
                assert run.errors == ""
    [line] = [line for line in run.output.splitlines() if line.startswith("GET /api/version")]
    assert re.search(r"different .*0\.32\.15.*through foreman .*0\.32\.16", line)
    assert re.fullmatch(r"\d+ identical, \d+ different, 2 foreman's own, 3 skipped", run.output.splitlines()[-1])


@pytest_twisted.ensureDeferred
async def test_no_other_than_foreman_is_tested(tmp_path: Path) -> None:
    """The Ollama itself, or a proxy before it, is not called identical as if it were foreman: that ends with 2."""
    async with target() as fake:
        with lying(fake.url, Lie()) as proxy:
            for url in (fake.url, proxy):
                async with command(tmp_path, "--direct", fake.url, "--through", url, status=2) as run:
                    assert run.errors == (
                        f"foreman verify: --through {url} is not a foreman: "
                        "it answers 404 to GET /healthz, and not as foreman does\n"
                    )
                    assert run.output == ""
        assert {request.path for request in fake.requests} == {"/api/version", "/healthz"}


# -- what is not a lie -------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_target_that_never_says_the_same_is_compared_by_shape() -> None:
    """Where the target's own text varies the shape has to be the same, and a lie about that is still found."""
    number = count()
    varies = FakeModel(name="counts", answer=lambda ask: [f" {next(number)}"] * (1 + next(number) % 3))
    async with fake_ollama(models=(varies,)) as fake:
        finding = await judged(fake, Lie(), STREAM)
        assert finding.verdict is Verdict.IDENTICAL
        assert finding.facts == ("by shape: the target does not say the same twice",)
        for lie in (Lie(chunk=_replacing(b'"role"', b'"Role"')), Lie(chunk=lambda piece: [piece[:9], piece[9:]])):
            assert (await judged(fake, lie, STREAM)).verdict is Verdict.DIFFERENT


@pytest_twisted.ensureDeferred
async def test_what_has_changed_in_between_is_no_difference() -> None:
    """A difference that is gone when both are asked again is reported as that, not as foreman's fault."""
    once = iter([b'"tiny-a:late'])
    lie = Lie(chunk=lambda piece: [piece.replace(next(once, b"\0"), b'"tiny-x:late')])
    async with target() as fake:
        finding = await judged(fake, lie, Question("tags", "GET", "/api/tags"))
    assert finding.verdict is Verdict.IDENTICAL
    assert finding.facts[0].startswith("when asked again; at first body")


def answer(body: bytes, **headers: str) -> Answer:
    """An answer of one piece."""
    return Answer(status=200, headers=tuple(headers.items()), pieces=(Piece(data=body, at=0.0),))


def test_times_and_ids_are_compared_by_shape() -> None:
    """What no two answers share is no difference; its kind is."""
    one = answer(b'{"created_at":"2026-11-21T10:24:05.12Z","total_duration":77,"id":"msg_1f","model":"m"}')
    other = answer(b'{"created_at":"2027-01-01T00:00:00Z","total_duration":123456,"id":"msg_abc","model":"m"}')
    assert differences(one, other, "GET") == []
    for change in (b'"total_duration":"7"', b'"total_duration":-7', b'"total_duration":7.5'):
        wrong = answer(other.body.replace(b'"total_duration":123456', change))
        assert differences(one, wrong, "GET") != []
    for change in (b'"id":"chatcmpl_1"', b'"id":7', b'"id":null'):
        assert differences(one, answer(other.body.replace(b'"id":"msg_abc"', change)), "GET") != []
    # A text that looks like one is a text.
    assert differences(answer(rb'{"content":"\"id\":\"a_1\""}'), answer(rb'{"content":"\"id\":\"a_2\""}'), "GET") != []
    assert shape_differences(answer(b'{"content":"a","done":1}'), answer(b'{"content":"b","done":2}'), "GET") != []


def test_by_shape_events_may_share_a_chunk_and_lines_may_not() -> None:
    """Ollama sends the last events of a `/v1` stream in one chunk, as it comes; native lines have one each."""

    def stream(kind: str, *chunks: bytes) -> Answer:
        pieces = tuple(Piece(data=chunk, at=0.0) for chunk in chunks)
        return Answer(status=200, headers=(("content-type", kind),), pieces=pieces)

    one, other = b'data: {"content":"a"}\n\n', b"data: [DONE]\n\n"
    events = stream("text/event-stream", one, other)
    assert shape_differences(events, stream("text/event-stream", one + other), "POST") == []
    assert shape_differences(events, stream("text/event-stream", one), "POST") != []
    lines = stream("application/x-ndjson", b"{}\n", b"[]\n")
    assert shape_differences(lines, stream("application/x-ndjson", b"{}\n[]\n"), "POST") != []


def test_headers_of_one_hop_and_foremans_own_are_left_out() -> None:
    """`Date`, `Connection`, framing, what foreman documents and a proxy's own name do not count; all else does."""
    own = {"date": "x", "connection": "close", "x-foreman-job": "J", "server-timing": "queue;dur=1", "age": "1"}
    proxys = {"server": "nginx", "via": "1.1 proxy", "strict-transport-security": "max-age=1", "alt-svc": "h3"}
    assert differences(answer(b"", vary="a"), answer(b"", vary="a", **own, **proxys), "GET") == []
    assert differences(answer(b""), answer(b"", vary="a"), "GET") != []


# -- whom to ask -------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_model_that_is_asked() -> None:
    """The wanted model, else one that is loaded, else the smallest that chats; no other is loaded for the test."""
    async with target() as fake:
        direct = Place(url=fake.url)
        assert (await deferToThread(choose, direct, None)).chats == "counts:latest"
        assert (await deferToThread(choose, direct, "TINY-B")).chats == "tiny-b:latest"
        with pytest.raises(Unusable, match="no model 'nope'"):
            await deferToThread(choose, direct, "nope")
        body = long_chat("mid-a", stream=False)
        await deferToThread(compare, direct, direct, Question("load", "POST", "/api/chat", body))
        assert (await deferToThread(choose, direct, None)).chats == "mid-a:latest"
    with pytest.raises(NotReached):
        await deferToThread(choose, direct, None)


@pytest_twisted.ensureDeferred
async def test_nobody_there_is_status_3(tmp_path: Path) -> None:
    """A side that is away is told in a line and ends with 3; an address that is none, with 2; Ctrl-C, with 130."""
    async with target() as fake, daemon(tmp_path, fake.url) as foreman:
        nobody = "http://127.0.0.1:9"
        for sides in ((fake.url, nobody), (nobody, fake.url)):
            async with command(tmp_path, "--direct", sides[0], "--through", sides[1], status=3) as run:
                assert run.errors.startswith(f"foreman verify: {nobody} cannot be reached: ")
                assert run.errors.count("\n") == 1
        working = Child(tmp_path, "verify", [*PROGRAM, "--direct", fake.url, "--through", foreman.url])
        working.start()
        try:
            await eventually(lambda: any(request.path == "/api/chat" for request in fake.requests), within=60)
            assert await working.end(signal.SIGINT) == 130
        finally:
            working.destroy()
        for bad in ("ftp://h", "h:8080", "http://h:x", "http://u@h"):
            async with command(tmp_path, "--direct", bad, "--through", fake.url, status=2) as run:
                assert "Traceback" not in run.errors
                assert "--direct" in run.errors
