"""Of what runs at the target, and when."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from chaos.facts import AT_ONCE, LATER, Entry, Facts, row_told, run_told, runner_of, tag_of, told


def one_at_a_time(facts: Facts) -> Iterator[str]:
    """The target never has two of foreman's generations at once."""
    runs = sorted((run for runs in facts.runs.values() for run in runs), key=lambda run: run["connected_at"])
    last: Entry | None = None
    for run in runs:
        if last is not None and (last["ended_at"] or run["connected_at"] + 1) > run["connected_at"] + AT_ONCE:
            yield f"{run_told(last)} and {run_told(run)} overlap"
        if last is None or (last["ended_at"] or 1e18) < (run["ended_at"] or 1e18):
            last = run


def the_order_of_work_is_kept(facts: Facts) -> Iterator[str]:
    """While a runner works well and a job of its own is ready, no job of another runner is picked."""
    runs = sorted((run for runs in facts.runs.values() for run in runs), key=lambda run: run["connected_at"])
    first_run = {tag: runs[0]["connected_at"] for tag, runs in facts.runs.items() if runs}
    for one, other in pairwise(runs):
        began, ended = one["connected_at"], other["connected_at"]
        picked = facts.rows[tag_of(other)][0] if facts.rows.get(tag_of(other)) else None
        if picked is None or picked["attempt"] != 1 or runner_of(one) == runner_of(other):
            continue
        if one["outcome"] != "answered" or one["fault"] or facts.troubled(began - LATER, ended):
            continue
        if facts.off_clock(began, ended):
            continue  # the rows' times are nobody else's
        kept = facts.rows[tag_of(one)][0] if facts.rows.get(tag_of(one)) else None
        if kept is None or kept["state"] != "done":
            continue
        for tag, [row, *_] in facts.rows.items():
            waited = row["created_at"] + 1000 * LATER < picked["loading_at"]
            waits = first_run.get(tag, (row["completed_at"] or 0) / 1000 - LATER) > ended
            same = (row["runner_model"], row["runner_options"]) == (kept["runner_model"], kept["runner_options"])
            if waited and waits and same and row["attempt"] <= 1:
                yield f"{run_told(other)} came after {run_told(one)}, though {row_told(row)} was waiting"


def loads_are_those_of_the_order(facts: Facts) -> Iterator[str]:
    """The target loads no more often than the runner changes, faults and jobs that were given up apart."""
    runs = sorted((run for runs in facts.runs.values() for run in runs), key=lambda run: run["connected_at"])
    changes = sum(runner_of(one) != runner_of(other) for one, other in pairwise(runs)) + 1
    given_up = sum(
        entry["end"] in ("left", "cut") or entry["does"] in ("cancel", "delete") for entry in facts.exchanges
    )
    forced = len(facts.evidence["lives"]) + 2 * len(facts.strikes) + given_up
    loads = sum(load["model"] != "embedder" for load in facts.evidence["target"].get("loads", ()))
    if loads > changes + forced:
        yield f"{loads} loads for {changes} changes of runner, and at most {forced} forced"


def cancelled_jobs_do_not_run(facts: Facts) -> Iterator[str]:
    """Once a cancel or a delete is answered, the target hears of the job no more."""
    for entry in facts.exchanges:
        if entry["does"] in ("cancel", "delete") and entry["end"] == "whole" and entry["status"] in (200, 204):
            late = [run for run in _runs_of(facts, entry) if run["connected_at"] > entry["ended_at"] + AT_ONCE]
            for run in late:
                if not facts.struck(["target sleeps"], entry["sent_at"] - LATER, entry["ended_at"] + LATER):
                    yield f"{told(entry)}, and then {run_told(run)}"


def who_left_waiting_does_not_run(facts: Facts) -> Iterator[str]:
    """A sync call whose client has left in the queue never reaches the target."""
    for entry in facts.exchanges:
        if entry["does"] in ("stream", "whole") and entry["end"] == "left":
            slow = ["foreman sleeps", "target sleeps", "disk full", "database locked", "database read-only"]
            for run in facts.runs[entry["tag"]]:
                late = run["connected_at"] > entry["ended_at"] + LATER
                if late and not facts.struck(slow, entry["ended_at"], run["connected_at"]):
                    yield f"{told(entry)}, and then {run_told(run)}"


def _runs_of(facts: Facts, entry: Entry) -> list[Entry]:
    row = facts.by_id.get(entry["job"])
    tag = facts.tags.get(row["seq"]) if row is not None else None
    return facts.runs[tag or (entry["tag"] if entry["tag"] in facts.runs else f"{entry['tag']}.1")]
