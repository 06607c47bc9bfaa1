"""docs/callers.md: the code that callers copy from it runs, against a real foreman."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread
from twisted.web.server import Site

from foreman.client import Foreman, WebhookEvent
from foreman.test.harness import chat, eventually, house, reactor

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "callers.md").read_text()
PYTHON = re.search(r"^## Python\n(.*?)(?=^## The command$)", PAGE, re.DOTALL | re.MULTILINE)
assert PYTHON is not None
SECRET = "whsec_Zm9yZW1hbg=="
ANSWER = " one two three four five six seven eight nine ten"
WORDS = {"http://127.0.0.1:8080": "", "qwen3:30b": "tiny-b", "nomic-embed-text": "tiny-embed"}
"""What the page calls things, and what they are here."""


BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)

BLOCKS = {
    section.partition("\n")[0]: BLOCK.findall(section)
    for section in re.split(r"^### ", PYTHON[1], flags=re.MULTILINE)[1:]
}
"""The code below each heading."""

IN_A_THREAD = [heading for heading in BLOCKS if heading != "Being told, in a web application"]


def run(code: str, url: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a block defines when it has run."""
    for word, ours in WORDS.items():
        code = code.replace(word, ours or url)
    names = names or {}
    exec(code, names)  # noqa: S102 - our own page
    return names


@pytest.mark.parametrize("heading", IN_A_THREAD)
@pytest_twisted.ensureDeferred
async def test_the_pages_code_runs(
    heading: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each piece, copied into a program that has a `foreman`, does what it says."""
    monkeypatch.setenv("FOREMAN_WEBHOOK_SECRET", SECRET)
    async with house({"WEBHOOK_SECRET": SECRET}) as home:

        def program() -> dict[str, Any]:
            names: dict[str, Any] = {}
            for block in BLOCKS[heading]:
                with Foreman(home.url) as foreman:
                    names = run(block, home.url, {"foreman": foreman})
            return names

        names = await deferToThread(program)
    said = capsys.readouterr().out
    match heading:
        case "Embeddings":
            assert [len(vector) for vector in names["vectors"]] == [len(names["vectors"][0])] * 2
        case "Many at once":
            assert said == f"done {ANSWER}\n" * 3
        case "Read along":
            assert said == ANSWER
        case "asyncio":
            assert said == f"{ANSWER} {ANSWER}\n{ANSWER}"
        case "What runs and what waits":
            assert said.startswith("0 None []\n[]\n() ('mid-b:latest', ")
        case "Being told, in the program itself":
            assert said == f"done {ANSWER}\n"
        case "When it goes wrong":
            assert (said, names["job"].text) == ("", ANSWER)
        case _:
            assert ANSWER in said


@pytest_twisted.ensureDeferred
async def test_the_pages_receiver_receives(monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver in Klein takes what a real foreman sends, each event once, and refuses what others do."""
    monkeypatch.setenv("FOREMAN_WEBHOOK_SECRET", SECRET)
    names = run(BLOCKS["Being told, in a web application"][0], "")
    port = reactor.listenTCP(0, Site(names["app"].resource()), interface="127.0.0.1")
    hook = f"http://127.0.0.1:{port.getHost().port}/hook"
    try:
        async with house({"WEBHOOK_SECRET": SECRET}) as home:
            job = (await home.ask("POST", "/jobs", chat("tiny-b", state_webhook_url=hook))).document
            seen: dict[tuple[str, int], WebhookEvent] = names["seen"]
            await eventually(lambda: (job["job_id"], 4) in seen)
            assert [event.state for event in seen.values()] == ["queued", "loading", "working", "done"]
            assert seen[job["job_id"], 4].text == ANSWER
        async with house({"WEBHOOK_SECRET": "another"}) as home:
            job = (await home.ask("POST", "/jobs", chat("tiny-b", state_webhook_url=hook))).document

            async def tries() -> list[int]:
                history = (await home.ask("GET", f"/jobs/{job['job_id']}/events")).document
                return [each["status"] for each in history["deliveries"]]

            while not (statuses := await tries()):
                await eventually(lambda: True)
            assert set(statuses) == {401}
            assert len(seen) == 4
    finally:
        await port.stopListening()


def test_the_readme_has_the_first_example() -> None:
    """The README shows the page's first program, to the letter."""
    assert BLOCKS["One call"][0] in (ROOT / "README.md").read_text()
