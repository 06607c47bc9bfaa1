"""The `llm` tool with its `llm-ollama` plugin, as a library and on the command line.

The plugin takes its host from OLLAMA_HOST.
"""

from __future__ import annotations

import subprocess
import sys

import llm
from ollama import ResponseError

from foreman.test.clients.acting import ANSWER, perform, raised


def _run(*arguments: str) -> str:
    command = [sys.executable, "-m", "llm", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def calls(url: str) -> None:
    """Prompt, plain and streamed, embed, list, on both ways."""
    model = llm.get_model("ollama/tiny-a")
    assert model.prompt("hi", stream=False).text() == ANSWER
    assert "".join(model.prompt("hi")) == ANSWER
    assert len(llm.get_embedding_model("ollama/tiny-embed").embed("hi")) == 64
    assert "ollama/tiny-a:latest" in _run("models", "list")
    assert _run("-m", "ollama/tiny-a", "hi") == f"{ANSWER}\n"
    assert _run("-m", "ollama/tiny-a", "--no-stream", "hi") == f"{ANSWER}\n"
    raised(llm.UnknownModelError, lambda: llm.get_model("ollama/nope"))
    model.ollama_name = "nope"
    assert raised(ResponseError, lambda: model.prompt("hi").text()).status_code == 404


if __name__ == "__main__":
    perform(calls)
