"""The packages people really use, unchanged, against the real daemon with FakeOllama behind it.

`make test-clients` installs them, away from foreman's own environment, and runs this; `make test` leaves it out.  Each
package has a script beside this module, `with_<package>`, whose acts check what their client gets; the tests set the
stage and look at what foreman and the target saw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from attrs import define, field

from foreman.ollama.fake import FakeModel, FakeOllama, Fault, default_models
from foreman.test.harness import Child, Daemon, chat, daemon, eventually, fake_ollama, send

pytestmark = pytest.mark.clients

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[2] / ".venv-clients"
MODELS = (FakeModel(name="slow", words=(" one", " two") * 50, token_rate=2.0), *default_models())


def command(script: str) -> list[str]:
    """How a script is run: `<environment>/with_<package>.py`, or one for Node."""
    environment, _, name = script.rpartition("/")
    if name.endswith(".mjs"):
        return ["node", str(HERE / name)]
    return [str(ENVIRONMENTS / environment / "bin" / "python"), "-m", f"foreman.test.clients.{Path(name).stem}"]


@define(eq=False)
class Stage:
    """FakeOllama, a foreman process that knows its models, and the scripts."""

    folder: Path
    fake: FakeOllama
    foreman: Daemon
    scripts: list[Child] = field(factory=list)

    def begin(self, script: str, act: str) -> Child:
        """Have a script begin with an act."""
        environment = {
            "NO_PROXY": "127.0.0.1",
            "OLLAMA_HOST": self.foreman.url,
            "LLM_USER_PATH": str(self.folder),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it is fetched at import
        }
        if act == "token":
            environment["OLLAMA_API_KEY"] = "secret"
        child = Child(self.folder, script.replace("/", "-"), [*command(script), act, self.foreman.url], environment)
        self.scripts.append(child)
        child.start()
        return child

    async def rows(self) -> list[dict[str, Any]]:
        """All jobs, once all of them have ended."""
        await eventually(lambda: all(row["completed_at"] for row in self.foreman.rows()))
        return self.foreman.rows()


@asynccontextmanager
async def stage(folder: Path, **settings: str) -> AsyncIterator[Stage]:
    """A `Stage`, gone with the block."""
    async with fake_ollama(models=MODELS) as fake, daemon(folder, fake.url, settings) as foreman:
        await eventually(lambda: "The target is up" in foreman.output)
        here = Stage(folder, fake, foreman)
        try:
            yield here
        finally:
            for child in here.scripts:
                child.destroy()


async def performed(child: Child) -> None:
    """Wait for the end of an act that must go well."""
    await eventually(lambda: child.ended, within=240)  # some packages take long to import
    status = await child.exit_status()
    assert status == 0, f"{child.name}:\n{child.output}{child.errors}"


CALLS: Mapping[str, Mapping[str, int]] = {
    "current/with_ollama.py": {"/api/chat": 10, "/api/generate": 6, "/api/embed": 2, "/api/embeddings": 2},
    "with_ollama.mjs": {"/api/chat": 4, "/api/generate": 2, "/api/embed": 1, "/api/embeddings": 1},
    "current/with_openai.py": {
        "/v1/chat/completions": 4,
        "/v1/responses": 2,
        "/v1/completions": 2,
        "/v1/embeddings": 1,
        "/v1/audio/transcriptions": 1,
    },
    "current/with_anthropic.py": {"/v1/messages": 5},
    "older/with_anthropic.py": {"/v1/messages": 5},
    "current/with_langchain.py": {"/api/chat": 6, "/api/generate": 2, "/api/embed": 2},
    "current/with_llm.py": {"/api/chat": 4, "/api/embed": 1},
    "older/with_litellm.py": {"/api/generate": 3, "/api/chat": 3, "/v1/chat/completions": 3, "/api/embed": 1},
}
"""How often each script's calls come to which endpoint, those for unknown models left out."""


@pytest.mark.parametrize("script", CALLS)
@pytest_twisted.ensureDeferred
async def test_a_client_needs_nothing_but_the_base_url(script: str, tmp_path: Path) -> None:
    """Every call of a package gives what Ollama would give, errors too; each inference goes through the queue."""
    async with stage(tmp_path, MODEL_ADMIN="on") as here:
        await performed(here.begin(script, "calls"))
        assert Counter(row["endpoint"] for row in await here.rows()) == CALLS[script]
        assert here.fake.max_at_once == 1


WAITING = {
    "held": {
        "current/with_ollama.py": 10,
        "with_ollama.mjs": 5,
        "current/with_openai.py": 9,
        "current/with_anthropic.py": 5,
    },
    "failing": {
        "current/with_ollama.py": 10,
        "with_ollama.mjs": 5,
        "current/with_openai.py": 5,
        "current/with_anthropic.py": 3,
    },
}
"""How many calls each script makes at once, by act."""


@pytest.mark.parametrize("script", [*WAITING["held"], "older/with_anthropic.py"])
@pytest_twisted.ensureDeferred
async def test_a_client_sends_the_token_its_own_way(script: str, tmp_path: Path) -> None:
    """With FOREMAN_TOKEN as the package's API key all is well, and with another the client is told so."""
    async with stage(tmp_path, TOKEN="secret") as here:
        await performed(here.begin(script, "token"))
        assert not any({"authorization", "x-api-key"} & record.headers.keys() for record in here.fake.requests)


# -- holding the line --------------------------------------------------------------------------------------------------


async def wait_together(folder: Path, act: str, *, fillers: int) -> Counter[tuple[str, str | None]]:
    """Have all scripts wait with all their calls behind one that hangs until each line has had its fillers, then go on.

    :return: how many calls of the scripts ended in which state, with which error code.
    """
    async with stage(folder, SYNC_WAIT="1s", HOLD_LINE="2s") as here:
        faults, foreman = here.fake.faults, here.foreman
        faults.next("/api/chat", Fault.HANG, model="tiny-b:latest", load=False)
        hanging = await send(foreman.url, "POST", "/api/chat", chat("tiny-b"))
        await eventually(lambda: not faults.rules)

        for script in WAITING[act]:
            here.begin(script, act)
        calls = sum(WAITING[act].values())
        await eventually(
            lambda: len(foreman.rows()) == 1 + calls or any(child.ended for child in here.scripts), within=60
        )
        assert [child.errors for child in here.scripts if child.ended] == []
        # This one comes after them all: what it has been sent by then, they have too.
        last = await send(foreman.url, "POST", "/api/chat", chat("tiny-a"))
        await eventually(lambda: len(last.chunks) == fillers, within=90)
        assert last.body == b" " * fillers

        hanging.leave()
        await eventually(lambda: last.ended)
        last.leave()
        for child in here.scripts:
            await performed(child)
        return Counter((row["state"], row["error_code"]) for row in (await here.rows())[1:-1])


@pytest_twisted.ensureDeferred
async def test_clients_wait_on_held_lines(tmp_path: Path) -> None:
    """After more than half a minute in the queue every client has its answer, streamed and plain, as if at once."""
    ends = await wait_together(tmp_path, "held", fillers=2)
    assert ends == {("done", None): sum(WAITING["held"].values())}


@pytest_twisted.ensureDeferred
async def test_no_client_takes_a_failure_on_a_held_line_for_success(tmp_path: Path) -> None:
    """What fails after the line was held is the client's own error in a stream, and no answer in a plain call."""
    ends = await wait_together(tmp_path, "failing", fillers=1)
    # As many rows as calls: no client has tried again of its own accord.
    assert ends == {("failed", "invalid_request"): sum(WAITING["failing"].values())}


# -- leaving -----------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_abort_in_javascript_stops_the_generation(tmp_path: Path) -> None:
    """`abort()` of the JavaScript client closes the connection at the target, though its process lives on."""
    async with stage(tmp_path) as here:
        client = here.begin("with_ollama.mjs", "abort")
        await eventually(lambda: "aborted" in client.output or client.ended)
        await eventually(lambda: not here.fake.scheduler.generating, within=1)
        assert not client.ended, client.errors
        [row] = await here.rows()
        assert row["error_code"] == "client_disconnected"
