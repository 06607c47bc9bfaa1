"""`foreman queue`, `pause`, `resume` and `status`: foreman itself, and how it is."""

from __future__ import annotations

import time

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from foreman.client import ForemanError, Health, NotReachable, Pause, Queue, Unavailable
from foreman.command.inputs import Duration
from foreman.command.screen import moment, plain, printable, seconds, table
from foreman.command.talking import Desk, talks

LOOK = 1.0
"""Seconds between two looks at a queue that is watched."""

MODELS = ("MODEL", "QUEUED", "OLDEST")
NEXT = ("POSITION", "ID", "MODEL", "WAITED")


@click.command()
@click.option("--watch", is_flag=True, help="Keep looking, until Ctrl-C.")
@talks
def queue(desk: Desk, watch: bool) -> None:
    """Show what runs, what waits, and what runs next."""
    screen = desk.screen
    if not watch:
        found = desk.foreman.queue()
        if screen.as_json:
            screen.document(found)
        elif screen.is_live:
            screen.console.print(_drawn(found))
        else:
            screen.line(_running(found))
            screen.table(NEXT, _next(found))
        return
    if not screen.is_live:
        while True:
            found = desk.foreman.queue()
            screen.document(found) if screen.as_json else screen.line(_running(found))
            time.sleep(LOOK)
    with Live(console=screen.console, auto_refresh=False, screen=True) as live:
        while True:
            try:
                live.update(_drawn(desk.foreman.queue()), refresh=True)
            except (NotReachable, Unavailable) as error:
                live.update(Text(printable(str(error)), style="red"), refresh=True)
            time.sleep(LOOK)


def _running(queue: Queue) -> str:
    now = "nothing runs"
    if queue.running is not None:
        job = queue.running
        now = f"{job.job_id} {job.state} {job.model} for {seconds(job.seconds)}"
    paused = ""
    if queue.paused:
        paused = f"; paused until {moment(queue.paused_until)}" if queue.paused_until else "; paused"
    return f"{now}; {queue.queued} queued{paused}"


def _next(queue: Queue) -> list[tuple[str, ...]]:
    return [(str(job.position), job.job_id, job.model, seconds(job.waited_seconds)) for job in queue.next]


def _drawn(queue: Queue) -> RenderableType:
    models = [(each.model, str(each.queued), seconds(each.oldest_seconds)) for each in queue.models]
    parts: list[RenderableType] = [Text(printable(_running(queue)), style="bold")]
    if models:
        parts += [Text(""), table(MODELS, models), Text(""), table(NEXT, _next(queue))]
    return Group(*parts)


@click.command()
@click.argument("duration", type=Duration())
@click.option("--unload", is_flag=True, help="Free the target's memory too.")
@talks
def pause(desk: Desk, duration: float, unload: bool) -> None:
    """Have the queue stand still for DURATION (30m, 2h), once the running job is over; it goes on by itself."""
    _paused(desk, desk.foreman.pause(duration, unload=unload))


@click.command()
@talks
def resume(desk: Desk) -> None:
    """Have the queue go on."""
    _paused(desk, desk.foreman.resume())


def _paused(desk: Desk, pause: Pause) -> None:
    if desk.screen.as_json:
        desk.screen.document(pause)
    else:
        desk.screen.line(f"paused until {moment(pause.paused_until)}" if pause.paused else "the queue goes on")


def _models(desk: Desk, health: Health) -> tuple[str, ...] | None:
    """The target's models; None if they cannot be known: without the token, or before it was first seen."""
    if health.target.last_poll is None:
        return None
    try:
        return desk.foreman.models()
    except ForemanError:
        return None


@click.command()
@talks
def status(desk: Desk) -> None:
    """Show how foreman and its target are; every warning is explained in docs/operations.md."""
    health = desk.foreman.health()
    models = _models(desk, health)
    if desk.screen.as_json:
        desk.screen.document({**plain(health), "models": models})
        return
    target = health.target
    desk.screen.facts(
        {
            "foreman": f"{health.status}, version {health.version}, up {seconds(health.uptime_seconds)}",
            "target": " ".join(filter(None, (target.state, target.url, target.version and f"Ollama {target.version}"))),
            "last seen": moment(target.last_poll) or None,
            "last error": target.last_error,
            "resident": ", ".join(filter(None, (target.resident, target.embedder))) or None,
            "models": ", ".join(models or ()) or None,
            "token": None if target.url else "missing or wrong: where the target is, and its models, are not told",
            "queue": f"{health.queue.queued} queued, {health.queue.running} running"
            + (", paused" if health.queue.paused else ""),
            "oldest": seconds(health.queue.oldest_seconds) if health.queue.queued else None,
            "webhooks": f"{health.webhooks.pending} pending, {health.webhooks.exhausted} given up",
            "warnings": ", ".join(health.warnings) or None,
        }
    )
