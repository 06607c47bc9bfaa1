"""The processes of a benchmark, each started on a free loopback port and ended with the block that started it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from benchmarks.wire import chat, get, request

HERE = Path(__file__).parent
BENCH_PYTHON = HERE.parent / ".venv-bench" / "bin" / "python"
"""The interpreter of an environment with uvicorn, starlette, httpx and matplotlib; `make bench` sets it up."""
LITELLM = HERE.parent / ".venv-bench-litellm" / "bin" / "litellm"
"""LiteLLM's proxy, in an environment of its own: it wants other versions of what the rest uses."""

START = 30.0
"""Seconds a process has to answer after its start, and to end when asked to."""

NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    upstream target {{ server 127.0.0.1:{target}; keepalive 64; }}
    server {{
        listen 127.0.0.1:{port};
        keepalive_requests 1000000;
        location / {{
            proxy_pass http://target; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
        }}
    }}
}}
"""


PEERS = ("nginx", "starlette+httpx", "litellm")
"""What foreman is compared with."""

LITELLM_CONFIG = """
model_list: [{{model_name: "*", litellm_params: {{model: "ollama_chat/*", api_base: "http://127.0.0.1:{target}"}}}}]
litellm_settings: {{telemetry: false, request_timeout: 600}}
"""


class Missing(Exception):
    """Something that a benchmark needs is not on this machine."""


@define
class Running:
    """A process that listens on a port of loopback."""

    process: subprocess.Popen[bytes]
    port: int

    def chat(self, model: str) -> bytes:
        """A small chat as it takes one, with a streamed answer."""
        return chat(model)

    def memory(self) -> int:
        """Resident bytes, of its children too."""
        return sum(_status(pid, "VmRSS:") for pid in self._pids())

    def peak(self) -> int:
        """The most resident bytes since `forget_peak`."""
        return _status(self.process.pid, "VmHWM:")

    def forget_peak(self) -> None:
        """Begin to watch for the peak anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def cpu(self) -> float:
        """Seconds of processor time so far, of its children too; threads that have ended are not counted."""
        tasks = (task for pid in self._pids() for task in Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def end(self, sign: int = signal.SIGTERM) -> None:
        """End it and wait for that; kill it if it takes too long."""
        if self.process.poll() is None:
            self.process.send_signal(sign)
            try:
                self.process.wait(START)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _pids(self) -> list[int]:
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]


@define
class LiteLLM(Running):
    """LiteLLM's proxy: OpenAI's wire before an Ollama.

    :ivar key: what its callers must bring; without one it does not start.
    """

    key: str

    def chat(self, model: str) -> bytes:
        """The same chat in OpenAI's words."""
        document = {"model": model, "messages": [{"role": "user", "content": "Say something."}], "stream": True}
        return request("POST", "/v1/chat/completions", json.dumps(document).encode(), token=self.key)


@define
class Stub(Running):
    """`stub.c`: an Ollama of which only the speed matters."""

    def events(self) -> list[tuple[str, float]]:
        """What happened at it since the last question: (`r`, `d` or `g`; seconds of `time.monotonic`)."""
        lines = get(self.port, "/_stub/events").decode().splitlines()
        return [(line[0], int(line[2:]) / 1e6) for line in lines]


@define
class Fake(Running):
    """FakeOllama, with its control routes."""

    control: int

    def loads(self) -> int:
        """How many models it has loaded."""
        state: dict[str, Any] = json.loads(get(self.control, "/_fake/state?requests=0"))
        return int(state["counts"]["loads"])


@define
class Foreman(Running):
    """The real `twistd foreman`."""

    def wait_until_ready(self) -> None:
        """Wait until it takes calls; AssertionError when it has ended instead."""

        def ready() -> bool:
            assert self.process.poll() is None, "foreman has ended"
            return answers(self.port, "/readyz")

        wait_until(ready)

    def queued(self) -> int:
        """How many jobs wait."""
        return int(self.health()["queue"]["queued"])

    def health(self) -> dict[str, Any]:
        """The document of `/healthz`."""
        document: dict[str, Any] = json.loads(get(self.port, "/healthz"))
        return document


def wait_until(condition: Callable[[], object], within: float = START) -> None:
    """Wait for a condition; AssertionError when the time is over."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(0.002)


def answers(port: int, path: str) -> bool:
    """Whether a server answers 200 there now."""
    try:
        get(port, path)
    except (OSError, HTTPException, ValueError):
        return False
    return True


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@frozen
class Bench:
    """What a benchmark is given.

    :ivar folder: an empty folder of its own.
    :ivar quick: take few samples; the figures will be rough.
    :ivar left_out: what it should be compared with but is not on this machine.
    """

    folder: Path
    quick: bool
    left_out: list[str] = field(factory=list)

    def few(self, many: int, few: int) -> int:
        """So many of something; `few` of it when time is short."""
        return few if self.quick else many

    @contextmanager
    def stub(self, *models: str, port: int = 0) -> Iterator[Stub]:
        """A stub that lists these models; `Missing` without a C compiler."""
        program = self.folder.parent / "stub"
        if not program.exists():
            compiler = shutil.which("cc") or shutil.which("gcc")
            if compiler is None:
                raise Missing("a C compiler")
            subprocess.run([compiler, "-O2", "-pthread", "-o", program, HERE / "stub.c"], check=True, timeout=60)
        with self._process([program, str(port), *models], lines=1) as (process, [listens]):
            yield Stub(process, int(listens))

    @contextmanager
    def fake(self, models: str) -> Iterator[Fake]:
        """FakeOllama with models as its `--models` takes them."""
        command = [sys.executable, "-m", "foreman.ollama.fake", "--models", models]
        with self._process(command, lines=2) as (process, urls):
            port, control = (int(url.rpartition(":")[2]) for url in urls)
            yield Fake(process, port, control)

    @contextmanager
    def foreman(self, target: int, *, wait: bool = True, **settings: str) -> Iterator[Foreman]:
        """Start foreman before that target.

        :param wait: until it takes calls and knows the target to be up.
        :param settings: FOREMAN_… names without the prefix.
        """
        port = free_port()
        values = {"OLLAMA_URL": f"http://127.0.0.1:{target}", "ADDR": f"127.0.0.1:{port}", "SHUTDOWN_GRACE": "0s"}
        values |= settings
        values.setdefault("DB", str(self.folder / f"{port}.db"))
        environment = {f"FOREMAN_{name}": value for name, value in values.items()}
        twistd = str(Path(sys.executable).with_name("twistd"))
        command = [twistd, "--nodaemon", "--pidfile=", "foreman"]
        with self._process(command, environment) as (process, _):
            foreman = Foreman(process, port)
            if wait:
                foreman.wait_until_ready()
                wait_until(lambda: foreman.health()["target"]["state"] == "up")
            yield foreman

    def peers(self, stack: ExitStack, target: int) -> dict[str, Running]:
        """Start what foreman is compared with, each before that target; those that are not here are left out."""
        proxies: tuple[Callable[[int], AbstractContextManager[Running]], ...]
        proxies = (self.nginx, self.plain_proxy, self.litellm)
        started = {}
        for name, proxy in zip(PEERS, proxies, strict=True):
            try:
                started[name] = stack.enter_context(proxy(target))
            except Missing as missing:
                print(f"  left out: there is no {missing}")
                self.left_out.append(name)
        return started

    @contextmanager
    def nginx(self, target: int) -> Iterator[Running]:
        """Start nginx before that target; `Missing` without it."""
        program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            raise Missing("nginx")
        port = free_port()
        config = self.folder / "nginx.conf"
        config.write_text(NGINX.format(folder=self.folder, port=port, target=target))
        with self._process([program, "-p", self.folder, "-c", config]) as (process, _):
            wait_until(lambda: answers(port, "/api/version"))
            yield Running(process, port)

    @contextmanager
    def plain_proxy(self, target: int) -> Iterator[Running]:
        """Start a Starlette + httpx proxy before that target; `Missing` where it could not be installed."""
        if not BENCH_PYTHON.exists():
            raise Missing("starlette and httpx")
        port = free_port()
        with self._process([BENCH_PYTHON, HERE / "plain_proxy.py", str(target), str(port)]) as (process, _):
            wait_until(lambda: answers(port, "/api/version"))
            yield Running(process, port)

    @contextmanager
    def litellm(self, target: int) -> Iterator[Running]:
        """Start LiteLLM's proxy before that target; `Missing` where it could not be installed."""
        if not LITELLM.exists():
            raise Missing("litellm")
        port = free_port()
        config = self.folder / "litellm.yaml"
        config.write_text(LITELLM_CONFIG.format(target=target))
        # Its list of prices would come from the net.
        key = f"sk-{secrets.token_hex()}"
        environment = {
            "LITELLM_MASTER_KEY": key,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_TELEMETRY": "False",
        }
        command: list[str | Path] = [LITELLM, "--config", config, "--host", "127.0.0.1", "--port", str(port)]
        with self._process(command, environment) as (process, _):
            wait_until(lambda: process.poll() is not None or answers(port, "/health/liveliness"), within=120)
            if process.poll() is not None:
                raise Missing("litellm that starts")
            yield LiteLLM(process, port, key)

    @contextmanager
    def _process(
        self, command: Sequence[str | Path], environment: dict[str, str] | None = None, lines: int = 0
    ) -> Iterator[tuple[subprocess.Popen[bytes], list[str]]]:
        """A child and the first lines it prints; its log goes to a file of the folder."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FOREMAN_")}
        with (self.folder / f"{Path(command[0]).name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=kept | (environment or {}),
                stdout=subprocess.PIPE if lines else log,
                stderr=log,
                cwd=HERE.parent,
            )
        try:
            printed = [process.stdout.readline().decode().strip() for _ in range(lines)] if process.stdout else []
            yield process, printed
        finally:
            process.send_signal(signal.SIGCONT)
            Running(process, 0).end()
            if process.stdout is not None:
                process.stdout.close()


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise ValueError(name)
