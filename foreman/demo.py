"""`make demo`: foreman in front of FakeOllama, both as real processes on free loopback ports, used with plain HTTP."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import http.server
import json
import os
import queue
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

TWISTD = str(Path(sys.executable).with_name("twistd"))

MODELS = "defaults,load=0.4,prompt=0.02,rate=40"
"""The fake's models: seconds to load, seconds to the first token, tokens a second."""

BURST = [f"tiny-{letter}" for letter in "abcdbacdcabdacbd" * 2]
"""The models of the burst's calls, in the order in which they are sent."""


SECRET = secrets.token_hex(16)
"""Signs the webhooks."""


def say(text: str = "", end: str = "\n") -> None:
    """Print at once, also into a pipe."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def connect(url: str) -> http.client.HTTPConnection:
    """A connection to that address."""
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)


def chat(url: str, model: str, *, num_predict: int = 12) -> Iterator[str]:
    """Stream one chat; yields the pieces of the answer as they come."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Say something."}],
        "options": {"num_predict": num_predict},
    }
    connection = connect(url)
    connection.request("POST", "/api/chat", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {response.read().decode()}")
    for line in response:
        yield json.loads(line)["message"]["content"]
    connection.close()


def wait_until_ready(url: str, process: subprocess.Popen[str]) -> None:
    """Wait for `/readyz`; RuntimeError if the process ends or half a minute passes."""
    for _ in range(300):
        if process.poll() is not None:
            break
        try:
            connection = connect(url)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError("foreman did not start")


@contextmanager
def running(command: list[str], environment: dict[str, str], log: IO[str] | int) -> Iterator[subprocess.Popen[str]]:
    """A child process, ended with the block."""
    process = subprocess.Popen(  # noqa: S603 (our own interpreter and our own arguments)
        command, env=os.environ | environment, stdout=log, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def show_one_chat(url: str) -> None:
    """Stream one chat and print it as it comes."""
    say("One streamed chat with tiny-a:", end="")
    began = time.monotonic()
    for piece in chat(url, "tiny-a"):
        say(piece, end="")
    say(f"   ({time.monotonic() - began:.1f} s, the load included)\n")


def show_burst(url: str) -> None:
    """Send the burst and print the order in which the calls were answered, with what it cost in loads."""
    ended: list[str] = []

    def call(model: str) -> None:
        list(chat(url, model, num_predict=3))
        ended.append(model)

    threads = [threading.Thread(target=call, args=(model,)) for model in BURST]
    began = time.monotonic()
    for thread in threads:
        thread.start()
        time.sleep(0.003)  # so that they arrive in this order
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    say(f"A burst of {len(BURST)} chats over {len(set(BURST))} models:")
    say("  sent:     " + " ".join(model[-1] for model in BURST))
    say("  answered: " + " ".join(model[-1] for model in ended))
    say(f"  {_changes(ended)} model changes in {took:.1f} s; first come, first served costs {_changes(BURST)}\n")
    if len(ended) != len(BURST):
        raise RuntimeError(f"only {len(ended)} of {len(BURST)} chats were answered")


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes webhooks, and keeps those whose signature is right."""

    events: queue.Queue[dict[str, object]] = queue.Queue()

    def do_POST(self) -> None:
        """Take one."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        expected = "sha256=" + hmac.digest(SECRET.encode(), body, hashlib.sha256).hex()
        good = hmac.compare_digest(expected, self.headers.get("X-Foreman-Signature", ""))
        if good:
            self.events.put(json.loads(body))
        self.send_response(204 if good else 401)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (http.server's)
        """Nothing."""


@contextmanager
def receiving() -> Iterator[str]:
    """A receiver of webhooks on a free port; gives its URL."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/hook"
        server.shutdown()


def show_job(url: str) -> None:
    """Submit a job and print what its webhooks tell, as they come."""
    with receiving() as hook:
        job = {
            "model": "tiny-b",
            "messages": [{"role": "user", "content": "Say something, some time."}],
            "state_webhook_url": hook,
        }
        connection = connect(url)
        connection.request("POST", "/jobs", json.dumps(job), {"Content-Type": "application/json"})
        taken = json.load(connection.getresponse())
        say(f"A job for tiny-b, accepted as {taken['job_id']}. Its webhooks, signatures checked:")
        state = ""
        while state not in ("done", "failed"):
            event = Receiver.events.get(timeout=30)
            state = str(event["state"])
            say(f"  {event['sequence']}  {event['timestamp']}  {state}")
        connection.request("GET", f"/jobs/{taken['job_id']}/artifacts/content")
        say(f"  Its answer:{connection.getresponse().read().decode()}\n")
        connection.close()
    if state != "done":
        raise RuntimeError("the job has failed")


def _changes(models: list[str]) -> int:
    return sum(1 for before, after in zip(["", *models], models, strict=False) if before != after)


def main() -> None:
    """Run the demonstration."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = stack.enter_context((folder / "foreman.log").open("w"))
        ollama = [sys.executable, "-m", "foreman.ollama.fake", "--models", MODELS]
        fake = stack.enter_context(running(ollama, {}, subprocess.PIPE))
        assert fake.stdout is not None  # noqa: S101 (for the type checker)
        target = fake.stdout.readline().strip()
        say(f"FakeOllama listens at {target}")
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        settings = {
            "FOREMAN_OLLAMA_URL": target,
            "FOREMAN_ADDR": f"127.0.0.1:{port}",
            "FOREMAN_DB": str(folder / "foreman.db"),
            "FOREMAN_WEBHOOK_SECRET": SECRET,
        }
        twistd = [TWISTD, "--nodaemon", "--pidfile=", "foreman"]
        daemon = stack.enter_context(running(twistd, settings, log.fileno()))
        wait_until_ready(url, daemon)
        say(f"foreman listens at    {url}   (how it is: {url}/healthz)\n")
        show_one_chat(url)
        show_burst(url)
        show_job(url)
    say("Both are stopped and their files removed.")


if __name__ == "__main__":
    main()
