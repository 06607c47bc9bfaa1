"""`foreman jobs`, `show`, `tail`, `cancel` and `artifacts`: jobs that there are."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from mimetypes import guess_extension
from pathlib import Path

import click

from foreman.client import Artifact, ForemanError, History, Job, JobState
from foreman.command.inputs import Model
from foreman.command.reading import read_along
from foreman.command.screen import moment, seconds, speed, state
from foreman.command.talking import Desk, Said, talks


@click.command()
@click.option(
    "--state", "wanted", type=click.Choice([each.value for each in JobState]), help="Only those in this state."
)
@click.option("--model", type=Model(), help="Only those of this model.")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="So many at most.")
@talks
def jobs(desk: Desk, wanted: str | None, model: str | None, limit: int) -> None:
    """List jobs, newest first; calls of Ollama's own clients too."""
    found = desk.foreman.jobs(state=wanted, model=model, limit=limit)
    if desk.screen.as_json:
        for job in found:
            desk.screen.document(job)
        return
    desk.screen.table(
        ("ID", "MODEL", "STATE", "CREATED", "WAITED", "RAN", "TOKENS/S"),
        (
            (
                job.job_id,
                job.model,
                state(job),
                moment(job.created_at),
                seconds(job.timings.queued_seconds),
                seconds(job.timings.run_seconds),
                speed(job),
            )
            for job in found
        ),
    )


@click.command()
@click.argument("job_id", metavar="ID")
@talks
def show(desk: Desk, job_id: str) -> None:
    """Show a job: what became of it, when, and what its webhooks came to."""
    job = desk.foreman.job(job_id)
    if desk.screen.as_json:
        desk.screen.document(job)
        return
    timings = job.timings
    position = None if job.position is None else f"{job.position}{'' if job.position_exact else ' or later'}"
    desk.screen.facts(
        {
            "job": job.job_id,
            "state": state(job),
            "error": job.error.message if job.error else None,
            "model": job.model,
            "endpoint": job.endpoint,
            "attempt": f"{job.attempt} (failed: {job.failures} of {job.max_attempts})",
            "position": position,
            "done in about": seconds(job.eta_seconds) or None,
            "created": moment(job.created_at),
            "started": moment(job.started_at) or None,
            "completed": moment(job.completed_at) or None,
            "waited": seconds(timings.queued_seconds) or None,
            "for": ", ".join(timings.waited_for) or None,
            "load": seconds(timings.load_seconds) or None,
            "ran": seconds(timings.run_seconds) or None,
            "tokens": None if timings.output_tokens is None else f"{timings.output_tokens} ({speed(job)}/s)",
            "webhook": job.webhook.url if job.webhook else None,
            "artifacts": ", ".join(f"{each.name} ({each.size} bytes)" for each in job.artifacts) or None,
        }
    )
    _history(desk, job.events())


def _history(desk: Desk, history: History) -> None:
    if desk.screen.is_live:
        desk.screen.line("")
    desk.screen.table(
        ("#", "WHEN", "STATE", "ERROR", "TOLD"),
        (
            (
                str(event.sequence),
                moment(event.timestamp),
                event.state,
                event.error.code if event.error else "",
                f"{event.delivery.state} ({event.delivery.tries} tries)" if event.delivery else "",
            )
            for event in history.events
        ),
    )


@click.command()
@click.argument("job_id", metavar="ID")
@talks
def tail(desk: Desk, job_id: str) -> None:
    """Print a job's answer while it is made, from its beginning."""
    job = desk.foreman.job(job_id)
    if not desk.screen.as_json:
        read_along(desk.screen, job)
        return
    for chunk in job.stream():
        desk.screen.document(chunk)


@click.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@talks
def cancel(desk: Desk, ids: Sequence[str]) -> None:
    """Cancel jobs; those that are over stay as they are. One that cannot be does not keep the others from it."""
    worst = 0
    for job_id in ids:
        try:
            job = desk.foreman.job(job_id).cancel()
        except ForemanError as error:
            shown = Said(error)
            click.echo(f"{job_id}: {shown.message}", err=True)
            worst = worst or shown.exit_code
            continue
        if desk.screen.as_json:
            desk.screen.document(job)
        else:
            desk.screen.line(f"{job.job_id}\t{state(job)}")
    sys.exit(worst)


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Write them to this folder.")
@talks
def artifacts(desk: Desk, job_id: str, output: Path | None) -> None:
    """List what a job has left, or write it to files."""
    job = desk.foreman.job(job_id)
    if output is None:
        if desk.screen.as_json:
            for artifact in job.artifacts:
                desk.screen.document(artifact)
            return
        rows = ((each.name, each.content_type, str(each.size), each.sha256) for each in job.artifacts)
        desk.screen.table(("NAME", "TYPE", "BYTES", "SHA-256"), rows)
        return
    output.mkdir(parents=True, exist_ok=True)
    for artifact in job.artifacts:
        path = output / _file_name(job, artifact)
        path.write_bytes(job.artifact(artifact.name))
        desk.screen.line(str(path))


def _file_name(job: Job, artifact: Artifact) -> str:
    """A name that stays in the folder, whatever foreman says."""
    extension = guess_extension(artifact.content_type.partition(";")[0].strip()) or ""
    return "".join(
        each if each.isalnum() or each in "-_." else "_" for each in f"{job.job_id}.{artifact.name}{extension}"
    )
