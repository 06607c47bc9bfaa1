"""What the rules of `chaos.checker` look at: the evidence by whatever they need, and its entries in words."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

Entry = dict[str, Any]

AT_ONCE = 0.05
"""Seconds by which FakeOllama may see a connection's end later than the next one's beginning: it reads one by one."""

LATER = 1.0
"""Seconds between an event and its being seen by another process, on a machine that has other things to do."""

OVER = ("done", "failed")

TAG = re.compile(r"chaos (c[0-9]+(?:\.[0-9]+)?) says")


class Facts:
    """The evidence, looked up by whatever the rules need.

    :ivar runs: the requests at the target that carry a tag, by tag, in the order they came.
    :ivar rows: the jobs, by tag; a job's tag is in its metadata, else in its size, which only one call has.
    :ivar events: by seq.
    """

    def __init__(self, evidence: Mapping[str, Any]) -> None:
        self.evidence = evidence
        self.exchanges: list[Entry] = evidence["exchanges"]
        self.strikes: list[Entry] = evidence["strikes"]
        self.jobs: list[Entry] = evidence["database"]["jobs"]
        self.by_id: dict[str, Entry] = {row["id"]: row for row in self.jobs}
        self.runs: dict[str, list[Entry]] = defaultdict(list)
        for request in evidence["target"].get("requests", ()):
            if found := TAG.search(request["body"]):
                self.runs[found[1]].append(request)
        self.events: dict[int, list[Entry]] = defaultdict(list)
        for event in evidence["database"]["events"]:
            self.events[event["seq"]].append(event)
        self.rows: dict[str, list[Entry]] = defaultdict(list)
        self.tags: dict[int, str] = {}
        by_size = {entry["size"]: entry["tag"] for entry in self.exchanges if entry.get("unique")}
        for row in self.jobs:
            tag = json.loads(row["metadata"])["tag"] if row["metadata"] else by_size.get(row["size"])
            if tag is not None:
                self.rows[tag].append(row)
                self.tags[row["seq"]] = tag

    def struck(self, faults: Iterable[str], since: float, until: float) -> bool:
        """Whether one of these faults was at work in that time."""
        names = set(faults)
        return any(
            strike["fault"] in names and strike["at"] <= until and (strike["until"] or until) >= since
            for strike in self.strikes
        )

    def troubled(self, since: float, until: float) -> bool:
        """Whether foreman or its target was struck in that time."""
        others = {strike["fault"] for strike in self.strikes if not strike["fault"].startswith("receiver")}
        return self.dead(since, until) or self.struck(others, since - LATER, until)

    def off_clock(self, since: float, until: float) -> bool:
        """Whether a time of then may be off, or lie among those that are: foreman's clock had jumped."""
        for strike in self.strikes:
            if strike["fault"] == "clock jumps":
                seconds, _, for_good = (strike.get("note") or "inf s").partition(" s")
                around = float("inf") if for_good else 2 * abs(float(seconds)) + 60
                if strike["at"] <= until + around and (strike["until"] or until) >= since - around:
                    return True
        return False

    def dead(self, since: float, until: float) -> bool:
        """Whether foreman's process was going, gone or coming in that time."""
        lives = self.evidence["lives"]
        gone = [(life["asked_at"], after["ready_at"] or after["ended_at"]) for life, after in pairwise(lives)]
        gone.append((lives[-1]["asked_at"] or lives[-1]["ended_at"], float("inf")))
        return any(asked <= until + LATER and back >= since - LATER for asked, back in gone)


# -- in words ----------------------------------------------------------------------------------------------------------


def told(entry: Entry) -> str:
    """An exchange."""
    kept = ("tag", "does", "manner", "job", "status", "end", "error", "text", "sent_at", "ended_at", "bytes", "held")
    return json.dumps({key: entry[key] for key in kept if entry.get(key) is not None})


def row_told(row: Entry) -> str:
    """A job."""
    kept = ("seq", "id", "sync", "model", "state", "attempt", "failures", "error_code", "error_message")
    return json.dumps({key: row[key] for key in kept if row[key] is not None})


def run_told(run: Entry) -> str:
    """A request at the target."""
    kept = ("connected_at", "ended_at", "outcome", "status", "fault", "sent")
    said = json.dumps({key: run[key] for key in kept if run[key] is not None})
    return f"run of {tag_of(run)} ({run['path']}) {said}"


def runs_told(facts: Facts, tag: str) -> str:
    """All requests at the target with this tag."""
    return "; ".join(map(run_told, facts.runs[tag])) or "no run"


def tag_of(run: Entry) -> str:
    """Whose request at the target it is, empty if nobody's."""
    found = TAG.search(run["body"])
    return found[1] if found else ""


def runner_of(run: Entry) -> tuple[str, int]:
    """What a request at the target needs loaded: the model and its context."""
    document = json.loads(run["body"])
    options = {} if run["path"].startswith("/v1") else document.get("options", {})
    return document["model"], options.get("num_ctx", 0)
