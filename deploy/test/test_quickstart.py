"""docs/quickstart.md: its commands, run as they stand from top to bottom, with FakeOllama for the real one."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from attrs import define, field
from conftest import ROOT, kept_port

SECTIONS = {
    section.partition("\n")[0]: re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    for section in re.split(r"^## ", (ROOT / "docs" / "quickstart.md").read_text(), flags=re.MULTILINE)[1:]
}
"""The commands below each heading, block by block."""

STAYS = re.compile(r"^(make run|\S+ -m foreman\.ollama\.fake .*)\n\Z", re.MULTILINE)
"""The end of a block that keeps its terminal."""

ANSWER = "one two three four five six seven eight nine ten"
"""What qwen3:4b says here."""

OLLAMA = """#!/bin/sh
case $1 in
pull) echo "pulled $2" ;;
run) curl -s -H "Authorization: Bearer $OLLAMA_API_KEY" "$OLLAMA_HOST/api/generate" -d \
    "{\\"model\\": \\"$2\\", \\"prompt\\": \\"$3\\", \\"stream\\": false}" ;;
esac
"""
"""Ollama's command, as far as the page uses it."""


@contextmanager
def ollama() -> Iterator[tuple[str, str]]:
    """An Ollama with the page's model; its URL, and that of its control routes."""
    model = f"qwen3:4b,words={ANSWER.replace(' ', '+')}"
    command = [sys.executable, "-m", "foreman.ollama.fake", "--models", model]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process.stdout.readline().strip()
        finally:
            process.kill()


@define(slots=False)
class Reader:
    """Who copies the page's blocks: what stays into terminals of its own, everything else into one.

    :ivar words: what the page calls things, and what they are here.
    :ivar environment: for all terminals.
    :ivar terminals: the processes that were started.
    """

    folder: Path
    words: Mapping[str, str]
    environment: Mapping[str, str] = field(factory=dict)
    terminals: list[subprocess.Popen[str]] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        # The checkout they sit in, in which everything is installed.
        (self.folder / ".venv").mkdir()
        for path in (*(ROOT / name for name in ("Makefile", "setup.cfg", "pyproject.toml")), *ROOT.glob(".venv/*")):
            (self.folder / path.relative_to(ROOT)).symlink_to(path)
        (self.folder / ".venv" / ".installed").unlink(missing_ok=True)
        (self.folder / ".venv" / ".installed").touch()
        (self.folder / ".curlrc").write_text("silent\nshow-error\n")  # as to a terminal, no progress
        command = self.folder / "bin" / "ollama"
        command.parent.mkdir()
        command.write_text(OLLAMA)
        command.chmod(0o755)
        self._main = self._terminal()

    def _terminal(self) -> subprocess.Popen[str]:
        # Without MAKE…, too: a make below another one, which has started the tests, says other things.
        ours = ("FOREMAN_", "OLLAMA_", "MAKE", "MFLAGS")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        terminal = subprocess.Popen(
            ["bash", "-eu"],
            cwd=self.folder,
            env={**clean, "PATH": path, "HOME": str(self.folder), "OLLAMA_API_KEY": "", **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.terminals.append(terminal)
        return terminal

    def copy(self, block: str, listens: int) -> str:
        """Run a block; what it printed.  One that stays runs on, and is waited for until that port is taken."""
        for word, ours in self.words.items():
            block = block.replace(word, ours)
        terminal = self._terminal() if STAYS.search(block) else self._main
        assert terminal.stdin is not None
        assert terminal.stdout is not None
        terminal.stdin.write(f"{{\n{block}}} < /dev/null\necho\necho -- over\n")
        terminal.stdin.flush()
        if terminal is not self._main:
            while not _is_taken(listens):
                assert terminal.poll() is None, terminal.stdout.read()
            return ""
        printed = ""
        while (line := terminal.stdout.readline()) != "-- over\n":
            assert line, f"it ended in:\n{block}\nafter:\n{printed}"
            printed += line
        return printed.removesuffix("\n")

    def leave(self) -> None:
        """Close all terminals."""
        for terminal in self.terminals:
            with suppress(ProcessLookupError):
                os.killpg(terminal.pid, signal.SIGKILL)


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def reading(folder: Path, words: Mapping[str, str], environment: Mapping[str, str] | None = None) -> Iterator[Reader]:
    """A reader, who loses patience after a minute and a half."""
    reader = Reader(folder, words, environment or {})
    patience = threading.Timer(90, reader.leave)
    patience.start()
    try:
        yield reader
    finally:
        patience.cancel()
        reader.leave()
        for terminal in reader.terminals:
            terminal.communicate()


def test_just_to_see_it(tmp_path: Path) -> None:
    """The demonstration shows what it promises; then the stand-in, foreman and a chat, in three terminals."""
    demo, stand_in, foreman, chat = SECTIONS["Just to see it"]
    with ExitStack() as stack:
        target, port = stack.enter_context(kept_port()), stack.enter_context(kept_port())
        words = {"--port 11434": f"--port {target}", "http://127.0.0.1:8080": f"http://127.0.0.1:{port}"}
        environment = {"FOREMAN_OLLAMA_URL": f"http://127.0.0.1:{target}", "FOREMAN_ADDR": f"127.0.0.1:{port}"}
        reader = stack.enter_context(reading(tmp_path, words, environment))
        assert reader.copy(demo, 0).endswith("Both are stopped and their files removed.\n")
        assert reader.copy(stand_in, target) == reader.copy(foreman, port) == ""
        lines = reader.copy(chat, port).splitlines()
    assert [line.count('"content":') for line in lines if "{" in line] == [1] * 27
    assert '"done":true' in lines[-1]


def test_ollama_on_this_machine(tmp_path: Path) -> None:
    """A chat by HTTP and one by Ollama's command; what foreman knows of Ollama; a job and its answer."""
    pull, foreman, chats, job = SECTIONS["Ollama on this machine"]
    with ExitStack() as stack:
        port = stack.enter_context(kept_port())
        url, _ = stack.enter_context(ollama())
        here = f"http://127.0.0.1:{port}"
        environment = {"FOREMAN_OLLAMA_URL": url, "FOREMAN_ADDR": f"127.0.0.1:{port}", "FOREMAN_URL": here}
        reader = stack.enter_context(reading(tmp_path, {"http://127.0.0.1:8080": here}, environment))
        assert reader.copy(pull, 0) == "pulled qwen3:4b\n"
        reader.copy(foreman, port)
        printed = reader.copy(chats, port)
        assert printed.count('"done":true') == 2
        assert ANSWER in printed
        printed = reader.copy(job, port)
        assert "qwen3:4b" in printed
        assert printed.endswith(f"{ANSWER}\n")


def test_a_server_before_a_mac_that_sleeps(tmp_path: Path) -> None:
    """The token lets in and is needed; a job that is submitted while the Mac sleeps is done when it is awake."""
    reach, foreman, chats, submit, wait = SECTIONS["A server before a Mac that sleeps"]
    with ExitStack() as stack:
        port = stack.enter_context(kept_port())
        url, control = stack.enter_context(ollama())
        here = f"http://127.0.0.1:{port}"
        words = {
            "http://192.0.2.20:11434": url,
            "http://192.0.2.10:8080": here,
            "FOREMAN_ADDR=:8080": f"FOREMAN_ADDR=127.0.0.1:{port}",
            "aa:bb:cc:dd:ee:ff": "aa:bb:cc:dd:ee:ff@127.0.0.1",
        }
        reader = stack.enter_context(reading(tmp_path, words))
        assert reader.copy(reach, 0) == '{"version":"0.32.15"}'
        reader.copy(foreman, port)
        printed = reader.copy(chats, port)
        assert printed.count('"done":true') == 2
        assert ANSWER in printed
        assert (tmp_path / "foreman-token").stat().st_mode & 0o777 == 0o600
        with pytest.raises(HTTPError, match="401"):
            urlopen(f"{here}/queue")  # noqa: S310 - our own
        urlopen(f"{control}/_fake/sleep", b"")  # noqa: S310
        assert "qwen3:4b" in reader.copy(submit, port)
        urlopen(f"{control}/_fake/wake", b"")  # noqa: S310
        assert reader.copy(wait, port).endswith(f"{ANSWER}\n")
