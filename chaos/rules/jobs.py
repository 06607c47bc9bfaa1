"""Of what becomes of jobs, and what is left of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator

from chaos.facts import OVER, Entry, Facts, row_told, runs_told, told

ONWARD = {
    None: {"queued"},
    "queued": {"loading", "failed"},
    "loading": {"working", "queued", "failed"},
    "working": {"done", "queued", "failed"},
    "done": set(),
    "failed": set(),
}
"""From each state, where a job may go next."""


def accepted_jobs_end_once(facts: Facts) -> Iterator[str]:
    """Every job that was promised is there, one row each, and over; it went there only once."""
    deleted = {entry["job"] for entry in facts.exchanges if entry["does"] == "delete"}
    for entry in facts.exchanges:
        if entry["does"] == "submit" and entry["end"] == "whole" and entry["status"] in (200, 202):
            for job_id in entry["ids"]:
                if job_id not in facts.by_id and job_id not in deleted:
                    yield f"{told(entry)} was accepted, but there is no job {job_id}"
    for tag, rows in facts.rows.items():
        if len(rows) > 1:
            yield f"{tag} has {len(rows)} rows"
    for row in facts.jobs:
        if row["state"] not in OVER:
            yield f"{row_told(row)} is not over"


def nothing_is_forgotten_early(facts: Facts) -> Iterator[str]:
    """No job that nobody deleted goes before it has been over for as long as it is to be kept."""
    for row in facts.jobs:
        if "gone_at" not in row or facts.off_clock((row["completed_at"] or 0) / 1000, row["gone_at"]):
            continue
        if row["state"] not in OVER or row["completed_at"] / 1000 + facts.evidence["ttl"] > row["gone_at"]:
            yield f"{row_told(row)} was gone at {row['gone_at']}"


def deleted_jobs_are_gone(facts: Facts) -> Iterator[str]:
    """204 to a DELETE: nothing of the job is left."""
    for entry in facts.exchanges:
        if entry["does"] == "delete" and entry.get("status") == 204 and entry["job"] in facts.by_id:
            yield f"{told(entry)} was deleted, but {row_told(facts.by_id[entry['job']])}"


def one_key_is_one_job(facts: Facts) -> Iterator[str]:
    """Every answer to one idempotency key names the same ids, as many as there were lines."""
    ids: dict[str, tuple[str, ...]] = {}
    for entry in facts.exchanges:
        if entry["does"] == "submit" and entry.get("ids"):
            if len(entry["ids"]) != len(entry["tags"]):
                yield f"{told(entry)} got {len(entry['ids'])} ids for {len(entry['tags'])} jobs"
            if entry["key"] and ids.setdefault(entry["key"], tuple(entry["ids"])) != tuple(entry["ids"]):
                yield f"{told(entry)} got {entry['ids']}, but {ids[entry['key']]} before"
    for row in facts.evidence["database"]["keys"]:
        if row["key"] in ids and tuple(json.loads(row["ids"])) != ids[row["key"]]:
            yield f"{row} is not what was answered: {ids[row['key']]}"


def events_are_a_legal_path(facts: Facts) -> Iterator[str]:
    """Events count 1, 2, …, each follows the one before by a legal step, and the last is how the job stands."""
    for row in facts.jobs:
        events = facts.events[row["seq"]]
        if row["sync"]:
            if events:
                yield f"{row_told(row)} is a sync call, but has events"
            continue
        state, loads = None, 0
        for number, event in enumerate(events, start=1):
            if event["sequence"] != number or event["previous"] != state or event["state"] not in ONWARD[state]:
                yield f"{row_told(row)} has an event that cannot follow {state}: {event}"
            state = event["state"]
            loads += state == "loading"
            if event["attempt"] != loads:
                yield f"{row_told(row)} was picked {loads} times, but its event says {event}"
        if state != row["state"] or loads != row["attempt"]:
            yield f"{row_told(row)} is not where its events lead: {state} after {loads} attempts"


def no_run_is_hidden(facts: Facts) -> Iterator[str]:
    """The target saw no job more often than its `attempt` says, none without a row, and each done one to its end."""
    deleted = {entry["tag"] for entry in facts.exchanges if entry["does"] == "delete"}
    for tag, runs in facts.runs.items():
        rows = facts.rows.get(tag)
        if rows:
            if len(runs) > rows[0]["attempt"]:
                yield f"{tag} ran {len(runs)} times, but {row_told(rows[0])}: {runs_told(facts, tag)}"
        elif tag.partition(".")[0] not in deleted:
            yield f"{tag} ran {len(runs)} times without a row"
    for tag, rows in facts.rows.items():
        if rows[0]["state"] == "done" and not any(run["outcome"] == "answered" for run in facts.runs[tag]):
            yield f"{tag} is done, but never ran: {row_told(rows[0])} {runs_told(facts, tag)}"


def answers_are_kept(facts: Facts) -> Iterator[str]:
    """A done async job has its completion, every artifact is what its hash says, and an answer is its own job's."""
    by_seq: dict[int, dict[str, Entry]] = defaultdict(dict)
    for artifact in facts.evidence["database"]["artifacts"]:
        by_seq[artifact["seq"]][artifact["name"]] = artifact
        if (artifact["hash"], artifact["length"]) != (artifact["sha256"], artifact["size"]):
            yield f"artifact {artifact['name']} of {artifact['seq']} is not what its hash says"
    for row in facts.jobs:
        if row["sync"] or row["state"] != "done":
            continue
        tag, kept = facts.tags.get(row["seq"]), by_seq[row["seq"]]
        if "completion" not in kept:
            yield f"{row_told(row)} has no completion: {sorted(kept)}"
        elif row["endpoint"] == "/api/embed" or row["model"] == "long" or tag is None:
            continue  # has no words of its own
        elif kept["content"]["says"] != tag:
            yield f"{row_told(row)} has another's answer: {kept['content']['says']}"
