"""Nothing that is secret and nothing that is said leaves the real process by a side door, whatever goes wrong."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.web.resource import Resource
from twisted.web.server import Site

import foreman as house
from foreman.test.harness import Daemon, RawClient, ask, chat, daemon, eventually, reactor

SECRETS = {
    "TOKEN": "canary-token-in",
    "OLLAMA_TOKEN": "canary-token-out",
    "WEBHOOK_SECRET": "canary-webhook-secret",
    "WEBHOOK_SECRET_OLD": "canary-webhook-secret-old",
}
PROMPT, ANSWER = "canary-prompt", "canary-answer"
QUERY, USER, REPLY, LOCATION = "canary-query", "canary-user", "canary-receiver-says", "canary-location"
METADATA, KEY = "canary-metadata", "canary-idempotency"
CANARIES = (*SECRETS.values(), PROMPT, ANSWER, QUERY, USER, REPLY, LOCATION, METADATA, KEY)

QUOTED = f"error parsing tool call: raw='{ANSWER}' prompt='{PROMPT}'"
"""Real servers do that: what they cannot make sense of is in the text of their error."""

FINAL = {"done": True, "done_reason": "stop", "prompt_eval_count": 1, "eval_count": 1}


class Gossip(Resource):
    """A target that quotes what it was told and what it said in every error, and receivers that talk too much.

    The model's name says how a chat ends.
    """

    isLeaf = True
    MODELS = ("fine", "e400", "e404", "e500", "html", "busy", "line", "cut", "half", "twice")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.hooks: list[str] = []
        self.busy = 1

    def render(self, request: Any) -> bytes:
        """Answer like an Ollama; `/hook/…` like a receiver."""
        path = request.path.decode()
        if path.startswith("/hook/"):
            return self._hook(request, path)
        request.setHeader("content-type", "application/json; charset=utf-8")
        if path == "/api/tags":
            return json.dumps({"models": [{"name": f"{name}:latest"} for name in self.MODELS]}).encode()
        if path == "/api/ps":
            return b'{"models": []}'
        if path != "/api/chat":
            return b'{"version": "0.32.15", "done": true}'
        return self._chat(request, json.loads(request.content.read())["model"])

    def _hook(self, request: Any, path: str) -> bytes:
        self.hooks.append(path)
        request.setResponseCode(int(path.removeprefix("/hook/")))
        request.setHeader("location", f"http://nowhere.example/?{LOCATION}")
        return REPLY.encode()

    def _chat(self, request: Any, model: str) -> bytes:
        whole = json.dumps({"message": {"role": "assistant", "content": ANSWER}, **FINAL}).encode() + b"\n"
        status = {"e400": 400, "e404": 404, "e500": 500, "html": 502}.get(model, 200)
        if model == "busy" and self.busy:
            self.busy, status = self.busy - 1, 503
            request.setHeader("retry-after", "1")
        request.setResponseCode(status)
        if model == "html":
            return f"<html>{QUOTED}</html>".encode()
        if status != 200:
            return json.dumps({"error": QUOTED}).encode()
        token = json.dumps({"message": {"role": "assistant", "content": ANSWER}, "done": False}).encode() + b"\n"
        match model:
            case "line":
                return token + json.dumps({"error": QUOTED}).encode() + b"\n"
            case "half":
                return token
            case "twice":
                return token + f"no JSON but {QUOTED}\n".encode()
            case "cut":
                request.setHeader("content-length", str(len(token) + 10))
                request.write(token)
                request.transport.abortConnection()
        return whole


@asynccontextmanager
async def gossip() -> AsyncIterator[tuple[Gossip, str]]:
    """A `Gossip` that listens, and its URL."""
    resource = Gossip()
    port = reactor.listenTCP(0, Site(resource), interface="127.0.0.1")
    try:
        yield resource, f"http://127.0.0.1:{port.getHost().port}"
    finally:
        await port.stopListening()


def files_of(folder: Path) -> dict[str, str]:
    """The secrets as files, and the settings that name them."""
    settings = {}
    for name, secret in SECRETS.items():
        (folder / name).write_text(f"{secret}\n")
        settings[f"{name}_FILE"] = str(folder / name)
    return settings


def database_files(folder: Path) -> list[Path]:
    """The database, its log and what else belongs to it."""
    return sorted(folder.glob("foreman.db*"))


def held(folder: Path) -> bytes:
    """All that they hold."""
    return b"".join(path.read_bytes() for path in database_files(folder))


def told_by_the_process(foreman: Daemon) -> dict[str, str]:
    """What the machine's other users, and the log's readers, can see of it."""
    seen = {name: Path(f"/proc/{foreman.pid}/{name}").read_text() for name in ("cmdline", "environ", "comm", "status")}
    return {**seen, "stdout": foreman.output, "stderr": foreman.errors}


def check(told: dict[str, str], *, but: tuple[str, ...] = ()) -> None:
    """No canary in any of it."""
    for where, text in told.items():
        for canary in CANARIES:
            assert canary in but or canary not in text, f"{canary} in {where}: {text[:2000]}"


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest_twisted.ensureDeferred
async def test_no_canary_gets_out(tmp_path: Path, log_format: str) -> None:  # noqa: C901 - a list of what can go wrong
    """With errors of each kind at debug level, no secret, prompt, answer or receiver's query is to be seen by others.

    Others are those who read the log, list the processes, scrape the metrics or read an error of foreman's own.
    """
    settings = {**files_of(tmp_path), "LOG_LEVEL": "debug", "LOG_FORMAT": log_format, "MAX_ATTEMPTS": "1"}
    async with gossip() as (target, url), daemon(tmp_path, url, settings) as foreman:
        bearer = {"Authorization": f"Bearer {SECRETS['TOKEN']}", "Idempotency-Key": KEY}
        refusals: list[RawClient] = []
        numbers = count()

        async def refused(method: str, path: str, body: Any = None, headers: dict[str, str] = bearer) -> None:
            answer = await ask(foreman.url, method, path, body, headers)
            assert answer.head is not None
            assert answer.head[0] >= 400, (path, body)
            refusals.append(answer)

        async def run(model: str, hook: str | None = None) -> Any:
            more = {"state_webhook_url": f"{url}/hook/{hook}?{QUERY}"} if hook else {}
            submission = chat(model, PROMPT, metadata={"note": METADATA}, **more)
            headers = {**bearer, "Idempotency-Key": f"{KEY}-{next(numbers)}", "Prefer": "wait=60"}
            answer = await ask(foreman.url, "POST", "/jobs", submission, headers, within=60)
            assert answer.head is not None
            assert answer.head[0] == 200
            return answer.document

        # answers of all kinds, by both doors; a success between, or the target counts as wedged
        for model in Gossip.MODELS:
            assert (await run(model))["state"] in ("done", "failed")
            for stream in (True, False):
                assert ANSWER in str(await run("fine", "200"))
                await ask(foreman.url, "POST", "/api/chat", chat(model, PROMPT, stream=stream), bearer)
            assert ANSWER in str(await run("fine"))
        # receivers of all kinds
        for status in ("302", "400", "410", "500", "503"):
            await run("fine", status)
        await eventually(lambda: {f"/hook/{status}" for status in (200, 302, 400, 410, 500, 503)} <= set(target.hooks))
        # what cannot be served
        for bad in (
            f"http://{USER}:{USER}@127.0.0.1/",
            f"http://169.254.169.254/{QUERY}",
            f"ftp://127.0.0.1/{QUERY}",
            f"http://127.0.0.1/#{QUERY}",
            f"http://127.0.0.1/{QUERY}\n",
            f"http://127.0.0.1:{QUERY}/",
        ):
            await refused("POST", "/jobs", chat("fine", PROMPT, state_webhook_url=bad))
        await refused("POST", "/jobs", f'{{"model": "fine", "messages": [{{"role": "{PROMPT}"'.encode())
        await refused("POST", "/jobs", {"model": "fine", "messages": [{"content": PROMPT, "role": [PROMPT]}]})
        await refused("POST", "/jobs", {"model": "fine", "messages": PROMPT})
        await refused("POST", "/jobs", chat("fine", PROMPT, stream=PROMPT))
        await refused("POST", "/jobs", chat("fine", PROMPT, keep_alive=[PROMPT], options=PROMPT))
        await refused("POST", "/jobs", chat("fine", PROMPT, expires_in=PROMPT, metadata=METADATA))
        await refused("POST", "/jobs", chat("fine", PROMPT, metadata={"much": METADATA * 1000}))
        await refused("POST", "/jobs", chat("fine", "another"), {**bearer, "Idempotency-Key": f"{KEY}-0"})
        await refused("POST", "/queue/pause", {"for": PROMPT})
        await refused("GET", f"/jobs?limit={QUERY}")
        await refused("GET", f"/jobs/01ARZ3NDEKTSV4RRFFQ69G5FAV?{QUERY}")
        await refused("POST", "/api/pull", {"model": "fine", "secret": PROMPT})
        for wrong in (f"{SECRETS['TOKEN']}x", SECRETS["TOKEN"][:-1], SECRETS["OLLAMA_TOKEN"]):
            await refused("POST", "/api/chat", chat("fine", PROMPT), {"Authorization": f"Bearer {wrong}"})
            await refused("GET", f"/metrics?{QUERY}", None, {"X-Api-Key": wrong})
        await refused("GET", "/api/tags", None, {**bearer, "Origin": f"http://{QUERY}.example"})
        # three charged tries in a row: wedged
        for model in ("e500", "line", "html"):
            await run(model)
        wedged = (await ask(foreman.url, "GET", "/healthz", None, bearer)).document
        assert wedged["target"]["state"] == "wedged"

        check({f"refusal {index}": refusal.received.decode() for index, refusal in enumerate(refusals)})
        for headers in ({}, bearer):
            for path in ("/healthz", "/readyz", "/metrics", "/queue"):
                answer = await ask(foreman.url, "GET", path, None, headers)
                check({path: answer.received.decode()})
        check(told_by_the_process(foreman))
        foreman.send(15)
        await foreman.exit_status()
        check({"the whole log": foreman.output, "stderr": foreman.errors})
        assert "wedged" in foreman.output
        assert foreman.output.count("Back to the queue") > 5


@pytest_twisted.ensureDeferred
async def test_what_is_erased_is_gone_from_the_disk(tmp_path: Path) -> None:
    """A stolen disk tells no prompt of a job that has ended, and nothing at all of one that was deleted."""
    async with gossip() as (_, url), daemon(tmp_path, url) as foreman:
        ids = []
        for number in range(3):
            body = chat("fine", f"{PROMPT}-{number}")
            answer = await ask(foreman.url, "POST", "/jobs", body, {"Prefer": "wait=30"}, within=40)
            assert ANSWER in str(answer.document["result"])
            ids.append(answer.document["job_id"])
        await ask(foreman.url, "POST", "/api/chat", chat("fine", PROMPT))
        assert await foreman.end() == 0
        assert ANSWER.encode() in held(tmp_path)
        assert PROMPT.encode() not in held(tmp_path)
        foreman.start()
        await foreman.ready()
        for job_id in ids:
            await ask(foreman.url, "DELETE", f"/jobs/{job_id}")
        assert await foreman.end() == 0
        assert ANSWER.encode() not in held(tmp_path)


@pytest_twisted.ensureDeferred
async def test_the_database_is_its_owners_alone(tmp_path: Path) -> None:
    """Another user of the machine cannot read what people asked, whatever the umask is."""
    async with gossip() as (_, url), daemon(tmp_path, url) as foreman:
        await ask(foreman.url, "POST", "/api/chat", chat("fine", PROMPT))
        modes = {path.name: path.stat().st_mode & 0o777 for path in database_files(tmp_path)}
        assert {name: mode for name, mode in modes.items() if mode & 0o077 and not name.endswith(".lock")} == {}
        assert {"foreman.db", "foreman.db-wal"} <= modes.keys()


@pytest.mark.parametrize(
    "settings",
    [
        {"TOKEN": "canary-token-in with blanks"},
        {"TOKN": "canary-token-in"},
        {"WEBHOOK_SECRET": "whsec_canary-webhook-secret"},
        {"WEBHOOK_SECRET_OLD": "canary-webhook-secret-old"},
        {"OLLAMA_URL": "http://canary-user:canary-token-out@laptop:11434"},
        {"OLLAMA_URL": "http://laptop:11434/?canary-query#@"},
        {"TOKEN": "canary-token-in", "TOKEN_FILE": "token"},
        {"TOKEN_FILE": "token-with-blanks"},
    ],
)
def test_a_start_that_fails_tells_no_secret(tmp_path: Path, settings: dict[str, str]) -> None:
    """A mistyped setting is named in the one line on stderr, its secret is not; nor by the page of settings."""
    (tmp_path / "token-with-blanks").write_text("canary-token-in is not fit")
    environ = {f"FOREMAN_{name}": value for name, value in settings.items()}
    root = str(Path(__file__).parents[2])
    for command in (
        [str(Path(sys.executable).with_name("twistd")), "--nodaemon", "--pidfile=", "foreman"],
        [sys.executable, "-m", "foreman.config"],
    ):
        ended = subprocess.run(
            command,
            check=False,
            env={"PYTHONPATH": root, **environ},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        check({"stdout": ended.stdout, "stderr": ended.stderr})
        assert (ended.returncode == 0) == ("foreman.config" in command), ended.stderr


DAEMON = ("foreman.job", "foreman.ollama.", "foreman.record", "foreman.web.", "foreman.webhooks.", "foreman.work.")
"""Where the daemon's values are made."""

PRIVATE = {"body", "content", "metadata", "thinking", "token", "webhook"}
"""Fields in which foreman's values hold what is secret, what is said, or where webhooks go."""


def test_a_value_that_is_printed_by_mistake_tells_nothing() -> None:
    """An f-string or an assertion that shows one of foreman's values shows no prompt, answer or secret."""
    seen = set()
    for module in pkgutil.walk_packages(house.__path__, "foreman."):
        if not module.name.startswith(DAEMON) or module.name.startswith("foreman.ollama.fake"):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and attrs.has(value):
                for field in attrs.fields(value):
                    if field.name.lstrip("_") in PRIVATE and "Secret" not in str(field.type):
                        assert field.repr is False, f"{value.__qualname__}.{field.name}"
                        seen.add(f"{value.__qualname__}.{field.name}")
    assert {"Submission.body", "Artifact.body", "Gate.token", "Texts.content", "JobRecord.webhook"} <= seen
