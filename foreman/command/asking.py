"""`foreman ask` and `foreman submit`: having a model asked."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, TextIO
from uuid import uuid4

import click

from foreman.client import ForemanError, Job, NotReachable
from foreman.command.inputs import TEXT, Duration, Model, Object, Question, asks, batch_of
from foreman.command.reading import read_along
from foreman.command.talking import Desk, talks
from foreman.command.waiting import wait_for


@click.command()
@click.argument("model", type=Model())
@asks
@talks
def ask(desk: Desk, model: str, question: Question) -> None:
    """Ask MODEL, and print the answer as it comes.

    Without TEXT, what is asked is read from standard input. It outlasts restarts of foreman and a target that sleeps;
    Ctrl-C cancels it.
    """
    fields = question.fields()
    if desk.screen.as_json:
        desk.screen.document(desk.foreman.run(model, cancel_on_interrupt=True, **fields))
        return
    key = str(uuid4())
    job: Job | None = None
    try:
        job = desk.foreman.submit(model, idempotency_key=key, **fields)
        read_along(desk.screen, job)
    except (KeyboardInterrupt, BrokenPipeError):
        try:
            # It may have been accepted without our knowing: its key tells.
            desk.foreman.submit(model, idempotency_key=key, **fields).cancel()
        except ForemanError as error:
            desk.screen.remark(f"job {job.job_id if job else '(its id is not known)'} may go on: {error}")
        raise


@click.command()
@click.argument("model", required=False, type=Model())
@asks
@click.option("--batch", type=TEXT, help="Submit each line of a file, a JSON object; - for standard input.")
@click.option("--wait", is_flag=True, help="Wait until it is over, and print the answer.")
@click.option("--webhook", help="URL that is told of each of its states.")
@click.option("--metadata", type=Object(), help="A JSON object that comes back with the job.")
@click.option("--expires-in", type=Duration(), help="Give it up if it is still queued after, say, 8h.")
@click.option("--key", help="Idempotency key: the same job, however often it is submitted.")
@talks
def submit(
    desk: Desk,
    *,
    model: str | None,
    question: Question,
    batch: TextIO | None,
    wait: bool,
    key: str | None,
    webhook: str | None,
    metadata: Mapping[str, Any] | None,
    expires_in: float | None,
) -> None:
    """Submit a job that asks MODEL, and print its id; foreman works it off when its turn comes.

    Without TEXT, what is asked is read from standard input. With --batch, every line of the file is a job as
    `POST /jobs` takes it; MODEL, --webhook, --metadata and --expires-in are for the lines that do not say.
    """
    said = {"model": model, "state_webhook_url": webhook, "metadata": metadata}
    common = {name: value for name, value in said.items() if value is not None}
    key = key or str(uuid4())
    try:
        jobs = _submitted(desk, common, question, batch, expires_in=expires_in, key=key)
    except (NotReachable, KeyboardInterrupt):
        desk.screen.remark(f"It may have been accepted all the same; with --key {key} it is not submitted twice.")
        raise
    if wait:
        _answer(desk, jobs)
        return
    for job in jobs:
        if desk.screen.as_json:
            desk.screen.document({"job_id": job.job_id, "state": job.state, "position": job.position})
        else:
            desk.screen.line(job.job_id)


def _submitted(
    desk: Desk,
    common: Mapping[str, Any],
    question: Question,
    batch: TextIO | None,
    *,
    expires_in: float | None,
    key: str,
) -> list[Job]:
    """Submit what is asked, or each line of a batch."""
    if batch is None:
        if "model" not in common:
            raise click.UsageError("which MODEL?")
        asked = {**common, **question.fields()}
        return [desk.foreman.submit(**asked, expires_in=expires_in, idempotency_key=key)]
    if not question.is_nothing():
        raise click.UsageError("the lines of a batch say themselves what is asked")
    expiry = {} if expires_in is None else {"expires_in": f"{math.ceil(expires_in * 1000)}ms"}
    return desk.foreman.submit_many([{**common, **expiry, **line} for line in batch_of(batch)], idempotency_key=key)


def _answer(desk: Desk, jobs: list[Job]) -> None:
    """Wait for the jobs, and print what became of them."""
    try:
        if len(jobs) > 1:
            sys.exit(wait_for(desk, jobs, timeout=None))
        if desk.screen.is_live:
            desk.screen.remark(f"job {jobs[0].job_id}")
            read_along(desk.screen, jobs[0])
            return
        job = jobs[0].wait()
    except KeyboardInterrupt:
        which = f"job {jobs[0].job_id} goes" if len(jobs) == 1 else f"{len(jobs)} jobs go"
        desk.screen.remark(f"{which} on; `foreman jobs` lists them, `foreman cancel` ends one")
        raise
    if desk.screen.as_json:
        desk.screen.document(job)
    else:
        desk.screen.line(job.text.removesuffix("\n"))
