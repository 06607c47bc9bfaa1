"""Makes docs/figures/dashboard.png: half an hour of work, and the dashboard's queries answered by Prometheus.

`.venv/bin/python deploy/test/picture.py` (`MINUTES` as an argument for less), after `make bench` has set up
`.venv-bench`, whose matplotlib draws (`deploy/grafana/draw.py`).  Nothing in it is made up: a real foreman serves
FakeOllama, a household asks it this and that, the laptop sleeps for a while, its owner wants it for a while.
"""

# mypy: disallow-untyped-calls=False
# Twisted's HTTP classes are hardly typed.
from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor as typed_in_part
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react
from twisted.web.resource import Resource
from twisted.web.server import Site
from watched import DASHBOARD, DEPLOY, Watched, expressions, watched

DRAW = DEPLOY / "grafana" / "draw.py"
FIGURE = DEPLOY.parent / "docs" / "figures" / "dashboard.png"
PLOT_PYTHON = DEPLOY.parent / ".venv-bench" / "bin" / "python"

MODELS = {
    "qwen3:30b": "tokens=80,load=9,prompt=0.8,rate=28",
    "gemma3:12b": "tokens=80,load=5,prompt=0.4,rate=55",
    "phi4-mini:latest": "tokens=80,load=2,prompt=0.2,rate=90",
}
SHARES = (2, 2, 1)
DEAD = 9
"""A port on which nobody listens."""


reactor: Any = typed_in_part


class Receiver(Resource):
    """Takes every webhook."""

    isLeaf = True

    def render(self, _: object) -> bytes:
        """Say that it has come."""
        return b""


async def work(here: Watched, receiver: int, seconds: float) -> None:
    """What a household asks: single chats, now and then a batch of mixed jobs, one of whose receivers is dead."""
    until = time.monotonic() + seconds
    dice = random.Random(8)  # noqa: S311
    count = 0
    while time.monotonic() < until:
        count += 1
        for _ in range(12 if count % 12 == 0 else 1):
            model = dice.choices(list(MODELS), SHARES)[0]
            job: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "Tell me a story."}]}
            if dice.random() < 0.3:
                job["state_webhook_url"] = f"http://127.0.0.1:{dice.choice([receiver, receiver, DEAD])}/"
            await here.ask("POST", "/jobs", job)
        await sleep(dice.expovariate(1 / 10))


async def sleep(seconds: float) -> None:
    """Let time pass."""
    await deferLater(reactor, seconds)


async def happen(here: Watched, seconds: float) -> None:
    """The laptop sleeps, and later its owner wants its memory."""
    await sleep(0.35 * seconds)
    await here.fake.act("sleep")
    await sleep(0.12 * seconds)
    await here.fake.act("wake")
    await sleep(0.25 * seconds)
    await here.ask("POST", "/queue/pause", {"for": f"{round(0.08 * seconds)}s"})


async def main(seconds: float) -> None:
    """Work, ask, draw."""
    port = reactor.listenTCP(0, Site(Receiver()), interface="127.0.0.1")
    models = ";".join(f"{name},{how}" for name, how in MODELS.items())
    with tempfile.TemporaryDirectory() as folder:
        async with watched(Path(folder), models, every="5s", hurry=False) as here:
            since = time.time()
            happening = Deferred.fromCoroutine(happen(here, seconds))
            await work(here, port.getHost().port, seconds)
            await happening
            span = {"start": str(since), "end": str(time.time()), "step": str(max(5, seconds // 360))}
            asked = expressions(here.instance, rate_interval="1m", range_=f"{seconds:.0f}s")
            answers = [
                {"panel": panel, "legend": legend, **await here.prometheus.get("query_range", query=query, **span)}
                for panel, legend, query in asked
            ]
    drawn = json.dumps({"panels": json.loads(DASHBOARD.read_text())["panels"], "answers": answers})
    subprocess.run([PLOT_PYTHON, DRAW, FIGURE], input=drawn, text=True, check=True)  # noqa: ASYNC221 - all else is done


if __name__ == "__main__":
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 30
    making = Deferred.fromCoroutine(main(60 * minutes))
    reactor.addSystemEventTrigger("before", "shutdown", making.cancel)  # Ctrl-C: the processes end with it
    react(lambda _: making)
