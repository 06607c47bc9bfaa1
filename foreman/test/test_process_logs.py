"""The log of the real process: one line an event, and nothing in it that was said, answered or kept secret."""

from __future__ import annotations

import base64
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from foreman.ollama.fake import FakeModel, Fault, default_models
from foreman.test.harness import RawClient, ask, chat, daemon, eventually, fake_ollama, midway, send

WHSEC = "whsec_" + base64.b64encode(b"a webhook secret of ours").decode()

SECRETS = {
    "TOKEN": "inbound-token-4711",
    "OLLAMA_TOKEN": "outbound-token-0815",
    "WEBHOOK_SECRET": WHSEC,
    "WEBHOOK_SECRET_OLD": "an-older-webhook-secret",
}

SAID = {
    "prompt": "marzipan",
    "system": "nougat",
    "answer": "pistachio",
    "query": "praline",
    "image": base64.b64encode(b"sesame" * 20).decode(),
    "header": "halva",
    "unreadable": "turron",
    "wrong token": "torrone",
    "not JSON": "gianduja",
}

TEXT_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (debug|info |warn |error|critical) \S.*")


def document(model: str, **more: Any) -> dict[str, Any]:
    """A chat with something of everything in it."""
    body = chat(model, SAID["prompt"], **more)
    body["messages"].insert(0, {"role": "system", "content": SAID["system"]})
    body["messages"][-1]["images"] = [SAID["image"]]
    return body


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest_twisted.ensureDeferred
async def test_the_log_tells_events_and_no_secrets(tmp_path: Path, log_format: str) -> None:
    """At debug level too: one line an event, with job and model, and no prompt, answer, token or secret."""
    answering = FakeModel(name="answering", words=(f" {SAID['answer']}",) * 3)
    slow = FakeModel(name="slow", words=(f" {SAID['answer']}",) * 3, token_rate=1.0)
    settings = {**SECRETS, "LOG_LEVEL": "debug", "LOG_FORMAT": log_format, "SHUTDOWN_GRACE": "1s"}
    bearer = {"Authorization": f"Bearer {SECRETS['TOKEN']}", "X-Odd": SAID["header"]}
    async with (
        fake_ollama(models=(answering, slow, *default_models())) as fake,
        daemon(tmp_path, fake.url, settings) as foreman,
    ):
        url = foreman.url

        async def say(path: str, body: Any, headers: dict[str, str] = bearer) -> RawClient:
            return await ask(url, "POST", path, body, headers)

        whole = await say("/api/chat", document("answering"))
        assert SAID["answer"].encode() in whole.body
        assert fake.requests[-1].headers["authorization"] == f"Bearer {SECRETS['OLLAMA_TOKEN']}"
        await say("/api/chat", document("answering", stream=False))
        await say("/api/generate", {"model": "answering", "prompt": SAID["prompt"], "system": SAID["system"]})
        await say(f"/v1/chat/completions?key={SAID['query']}", chat("answering", SAID["prompt"]))
        await say("/v1/messages", {**document("answering"), "max_tokens": 5}, {"X-Api-Key": SECRETS["TOKEN"]})
        await say("/api/embed", {"model": "tiny-embed", "input": SAID["prompt"]})
        await say("/api/show", {"model": "answering", "system": SAID["system"]})
        # what cannot be served
        await say("/api/chat", document("answering"), {"Authorization": f"Bearer {SAID['wrong token']}"})
        await say("/api/chat", f'{{"model": "answering", "messages": {SAID["unreadable"]}'.encode())
        await say("/api/chat", {"model": "answering", "messages": SAID["unreadable"]})
        await say("/api/chat", document("no-such-model"))
        await say("/api/chat", document("answering", options={"num_ctx": SAID["unreadable"]}))
        await say(f"/api/nothing?{SAID['query']}", document("answering"))
        await say("/jobs", SAID["not JSON"].encode())
        # faults of the target's
        for fault in (Fault.DROP, Fault.CUT_MID_LINE, Fault.ERROR_LINE, Fault.ERROR_500, Fault.NO_DONE):
            fake.faults.next("/api/chat", fault)
            await say("/api/chat", document("answering"))
            await say("/api/chat", document("answering"))  # a success between, or the target counts as wedged
        # clients that leave, and a stop
        leaving = await send(url, "POST", "/api/chat", document("slow"), bearer)
        await eventually(lambda: leaving.chunks)
        leaving.leave()
        await eventually(lambda: not fake.scheduler.generating)
        cut = await send(url, "POST", "/api/chat", document("slow"), bearer)
        async with midway(fake, cut):
            waiting = await send(url, "POST", "/api/chat", document("answering"), bearer)
            await eventually(lambda: foreman.rows()[-1]["state"] == "queued")
            assert await foreman.end(signal.SIGTERM) == 0
        await waiting.closed
        assert waiting.head is not None
        assert waiting.head[0] == 503

        assert foreman.output.count("\n") > 60
        for secret in (*SECRETS.values(), WHSEC.removeprefix("whsec_"), *SAID.values()):
            assert secret not in foreman.output
        for line in foreman.output.splitlines():
            if log_format == "text":
                assert TEXT_LINE.fullmatch(line), line
            else:
                event = json.loads(line)
                assert event.keys() <= {"time", "level", "message", "job", "model"}
                assert event["message"]
        job = whole.head[1]["x-foreman-job"] if whole.head else ""
        [told] = [line for line in foreman.output.splitlines() if job in line]
        assert "answering" in told
