"""What a round amounts to in figures, kept from run to run, and the table of faults made of them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chaos.plan import Plan

RESULTS = Path(__file__).with_name("results.json")

SOAK = Path(__file__).parents[1] / "docs" / "figures" / "soak.json"
"""The last soak: its summary, its `length` in seconds, its `strikes` and its `samples` (`chaos.soak`)."""

AFTERWARDS = 3.0
"""Seconds after a fault in which what ends may have to do with it."""

AT_ONCE = 0.3
"""Seconds after foreman's end within which its target has seen that."""

Summary = dict[str, Any]


def summary(planned: Plan, evidence: Mapping[str, Any], violations: Sequence[str], took: float) -> Summary:
    """One round: plain counts, by what they count."""
    jobs, lives = evidence["database"]["jobs"], evidence["lives"]
    requests = evidence["target"].get("requests", ())
    deliveries = evidence["deliveries"]
    return {
        "seed": planned.seed,
        "seconds": round(took),
        "violations": list(violations),
        "counts": {
            "exchanges": len(evidence["exchanges"]),
            "calls whose client waits": sum(row["sync"] for row in jobs),
            "async jobs": sum(not row["sync"] for row in jobs),
            "done": sum(row["state"] == "done" for row in jobs),
            "requests at the target": len(requests),
            "of them struck by a fault": sum(request["fault"] is not None for request in requests),
            "of them cut off by a kill": len(_cut_off(requests, lives)),
            "loads": len(evidence["target"].get("loads", ())),
            "webhook deliveries": len(deliveries),
            "of them taken": sum(delivery["taken"] for delivery in deliveries),
            "starts of foreman": len(lives),
            "kills of foreman": sum(life["status"] == -9 for life in lives),
        },
        "failed": Counter(row["error_code"] for row in jobs if row["state"] == "failed"),
        "faults": _faults(evidence),
    }


def _cut_off(requests: Sequence[Mapping[str, Any]], lives: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The requests that ended because foreman was killed."""
    kills = [life["ended_at"] for life in lives if life["status"] == -9]
    left = [request for request in requests if request["outcome"] == "left" and "chaos" in request["body"]]
    return [request for request in left if any(abs(request["ended_at"] - at) < AT_ONCE for at in kills)]


def _faults(evidence: Mapping[str, Any]) -> dict[str, Counter[str]]:
    """By fault how often it struck, and how what ended meanwhile and shortly afterwards had ended."""
    faults: dict[str, Counter[str]] = defaultdict(Counter)
    ended = [entry for entry in evidence["exchanges"] if "ended_at" in entry and entry["does"] != "page"]
    for strike in evidence["strikes"]:
        until = (strike["until"] or strike["at"]) + AFTERWARDS
        faults[strike["fault"]]["times"] += 1
        for entry in ended:
            if strike["at"] <= entry["ended_at"] <= until:
                faults[strike["fault"]][_end(entry)] += 1
    return faults


def _end(entry: Mapping[str, Any]) -> str:
    if entry["end"] != "whole":
        return str(entry["end"])
    return "answered" if entry["status"] < 400 and '"error"' not in entry.get("text", "") else "told no"


def keep(new: Sequence[Summary]) -> None:
    """Add rounds to those kept."""
    RESULTS.write_text(json.dumps([*kept(), *new], indent=1) + "\n")


def kept() -> list[Summary]:
    """Every round kept so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def keep_soak(one: Summary) -> None:
    """Keep a soak instead of the one before, with a line for each sample."""
    lines = ",\n".join(f"  {json.dumps(sample)}" for sample in one["samples"])
    rest = json.dumps({name: value for name, value in one.items() if name != "samples"}, indent=1)
    SOAK.write_text(rest.removesuffix("\n}") + f',\n "samples": [\n{lines}\n ]\n}}\n')


def kept_soak() -> Summary | None:
    """The soak kept, if there was one."""
    return json.loads(SOAK.read_text()) if SOAK.exists() else None


def totals(rounds: Iterable[Summary], what: str) -> Counter[str]:
    """The counts of that name, added up."""
    total: Counter[str] = Counter()
    for one in rounds:
        total.update(one[what])
    return total


COLUMNS = ("times", "answered", "told no", "cut", "refused", "left")


def faults_table(rounds: Sequence[Summary]) -> list[tuple[str, ...]]:
    """A row for each fault: its name, how often it struck, and what became of the calls that ended then."""
    names = sorted({fault for one in rounds for fault in one["faults"]})
    rows = []
    for name in names:
        total: Counter[str] = Counter()
        for one in rounds:
            total.update(one["faults"].get(name, {}))
        rows.append((name, *(str(total[column]) for column in COLUMNS)))
    return rows
