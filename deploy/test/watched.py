"""A real foreman that a real Prometheus watches by the example of `deploy/prometheus`, and the dashboard's queries."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from attrs import define
from twisted.internet import reactor
from twisted.internet.task import deferLater

from foreman.test.harness import Child, Daemon, FakeProcess, ask, daemon, eventually, fake_process

DEPLOY = Path(__file__).resolve().parents[1]
EXAMPLE = DEPLOY / "prometheus" / "prometheus.yml"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARD = DEPLOY / "grafana" / "foreman.json"

TOKEN = "of-foremans-own"
CREDENTIALS = "foreman-laptop.token"
"""The file that the example names."""


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels."""
    return json.loads(DASHBOARD.read_text())["panels"]  # type: ignore[no-any-return]


def expressions(instance: str, *, rate_interval: str, range_: str) -> Iterator[tuple[int, str, str]]:
    """Panel, legend and expression of all that the dashboard asks, with its variables as Grafana would fill them in."""
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", rate_interval).replace("$__range", range_)
            yield panel["id"], target.get("legendFormat", ""), expression.replace("$foreman", instance)


async def until(holds: Callable[[], Awaitable[object]], what: object, *, within: float = 30.0) -> None:
    """Ask again and again until the answer is true.

    :param what: is waited for; told, as it is then, when it did not come.
    """
    deadline = time.monotonic() + within
    while not await holds():
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        await deferLater(reactor, 0.2)


@define(eq=False)
class Prometheus(Child):
    """Prometheus as a child process."""

    async def ready(self) -> None:
        """Wait until it answers."""
        await eventually(lambda: "Server is ready" in self.errors or self.ended, within=30)
        assert not self.ended, self.errors

    @property
    def url(self) -> str:
        """Where it listens, by its log."""
        found = re.search(r'msg="Listening on" address=(\S+)', self.errors)
        assert found
        return f"http://{found[1]}"

    async def get(self, path: str, **query: str) -> Any:
        """What its HTTP API answers."""
        document = (await ask(self.url, "GET", f"/api/v1/{path}?{urlencode(query)}")).document
        assert document["status"] == "success", document
        return document["data"]

    async def query(self, expression: str) -> list[Any]:
        """What an expression gives now: of each series its labels, and its time and value."""
        return (await self.get("query", query=expression))["result"]  # type: ignore[no-any-return]

    async def firing(self) -> dict[str, dict[str, str]]:
        """The annotations of the alerts that fire now, by name."""
        alerts = (await self.get("alerts"))["alerts"]
        return {each["labels"]["alertname"]: each["annotations"] for each in alerts if each["state"] == "firing"}


@define(eq=False)
class Watched:
    """The three of them.

    :ivar instance: what Prometheus calls foreman.
    """

    fake: FakeProcess
    foreman: Daemon
    prometheus: Prometheus

    @property
    def instance(self) -> str:
        """Foreman's name in Prometheus: its host and port."""
        return self.foreman.url.removeprefix("http://")

    async def ask(self, method: str, path: str, document: Any = None) -> Any:
        """Ask foreman, with the token; gives the answer as it came."""
        return await ask(self.foreman.url, method, path, document, {"Authorization": f"Bearer {TOKEN}"}, within=60)


@asynccontextmanager
async def watched(folder: Path, models: str, *, every: str, hurry: bool) -> AsyncIterator[Watched]:
    """All three running, by the example of `deploy/prometheus` but for foreman's address.

    :param models: as `python -m foreman.ollama.fake --models` takes them.
    :param every: Prometheus scrapes and judges, instead of every 15 s.
    :param hurry: alerts fire after a second, not after so many minutes.
    """
    (folder / CREDENTIALS).write_text(f"{TOKEN}\n")
    program = shutil.which("prometheus")
    assert program, "prometheus is not installed: `make test-deploy` says what installs it"
    settings = {"TOKEN_FILE": CREDENTIALS, "POLL_INTERVAL": "2s", "SHUTDOWN_GRACE": "1s"}
    async with fake_process(folder, models) as fake, daemon(folder, fake.url, settings) as foreman:
        example = EXAMPLE.read_text().replace("foreman.example.org:8080", foreman.url.removeprefix("http://"))
        (folder / "prometheus.yml").write_text(re.sub(r"_interval: 15s", f"_interval: {every}", example))
        rules = RULES.read_text()
        (folder / "rules.yml").write_text(re.sub(r"for: \d+m", "for: 1s", rules) if hurry else rules)
        flags = ["--config.file=prometheus.yml", "--storage.tsdb.path=series", "--web.listen-address=127.0.0.1:0"]
        prometheus = Prometheus(folder, "prometheus", [program, *flags])
        prometheus.start()
        try:
            await prometheus.ready()
            yield Watched(fake, foreman, prometheus)
        finally:
            prometheus.destroy()
