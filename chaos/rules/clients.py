"""Of what clients get."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from chaos.facts import LATER, Entry, Facts, row_told, runs_told, told

SEVER = ("target killed", "target's connections cut")
"""Faults that lose what the target has sent and thinks it has answered."""

EMBED_TAG = re.compile(r"embed (c[0-9]+) now")


def nobody_hangs(facts: Facts) -> Iterator[str]:
    """Every exchange ends: with an answer, or because somebody went away."""
    for entry in facts.exchanges:
        if entry["end"] == "open":
            yield f"{told(entry)} has no end"


def cuts_have_a_cause(facts: Facts) -> Iterator[str]:
    """A connection is refused or cut only by foreman's end, its lack of descriptors, or the target in mid-answer."""
    for entry in facts.exchanges:
        since, until = entry["sent_at"], entry.get("ended_at", 0.0)
        if entry["end"] not in ("cut", "refused") or facts.dead(since, until):
            continue
        if entry["manner"] == "half-closes" or facts.struck(["no descriptors"], since, until + LATER):
            continue
        broken = any(run["outcome"] != "answered" or run["fault"] for run in facts.runs[entry["tag"]])
        broken = broken or facts.struck(SEVER, until - LATER, until)
        if entry["end"] == "cut" and "status" in entry and entry["does"] in ("stream", "whole") and broken:
            continue
        if entry["does"] == "follow":
            continue  # of an attempt that was broken off
        yield f"{told(entry)} ended without a cause"


def answers_are_the_contracts(facts: Facts) -> Iterator[str]:
    """The statuses are those of the contract: 503 says when to come again, 5xx is the target's word or the row's."""
    for entry in facts.exchanges:
        if entry["end"] != "whole" or _carried_into_trouble(facts, entry):
            continue
        status, does = entry["status"], entry["does"]
        if status == 503:
            if "retry_after" not in entry and not _said_by_target(facts, entry, 503):
                yield f"{told(entry)} is a 503 without Retry-After"
        elif status in (502, 504):
            row = facts.by_id.get(entry.get("job", ""))
            if row is None or row["state"] != "failed":
                yield f"{told(entry)} is a {status}, but its row is {row}"
        elif status >= 500:
            if not _said_by_target(facts, entry, status):
                yield f"{told(entry)} is a {status} that the target never said"
        elif status not in ALLOWED[does]:
            yield f"{told(entry)} is a {status}"


ALLOWED = {
    "page": (200,),
    "stream": (200,),
    "whole": (200,),
    "submit": (200, 202, 410),
    "cancel": (200, 404, 409),
    "delete": (204, 404),
    "wait": (200, 404),
    "follow": (200, 404, 409),
    "redeliver": (202, 404, 409),
    "embed": (200,),
}


def _carried_into_trouble(facts: Facts, entry: Entry) -> bool:
    """Whether it is an embedding call that broke at the target: such a call is carried at once, and once."""
    return bool(
        entry["does"] == "embed" and entry["status"] >= 500 and facts.troubled(entry["sent_at"], entry["ended_at"])
    )


def _said_by_target(facts: Facts, entry: Entry, status: int) -> bool:
    return any(run["status"] == status for run in facts.runs[entry["tag"]])


def bytes_are_the_targets(facts: Facts) -> Iterator[str]:
    """A whole answer carries exactly what the target sent for that call, and no half answer passes for a whole one."""
    for entry in facts.exchanges:
        if entry["does"] not in ("stream", "whole") or entry["end"] != "whole" or entry["status"] != 200:
            continue
        sent = [run for run in facts.runs[entry["tag"]] if run["outcome"] == "answered" and run["status"] == 200]
        if any((run["sent"], run["crc"]) == (entry["bytes"], entry["crc"]) for run in sent):
            continue
        if not entry["done"] and '"error"' in entry.get("text", "") and (entry["held"] or entry["does"] == "stream"):
            continue  # told in the body: the line was held
        yield f"{told(entry)} is not what the target sent: {runs_told(facts, entry['tag'])}"


def embeddings_are_the_targets(facts: Facts) -> Iterator[str]:
    """An embedding call for the pinned model gets exactly what the target sent for it, and is no job."""
    sent: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for request in facts.evidence["target"].get("requests", ()):
        if (found := EMBED_TAG.search(request["body"])) and request["outcome"] == "answered":
            sent[found[1]].append((request["sent"], request["crc"]))
    for entry in facts.exchanges:
        if entry["does"] != "embed" or entry["end"] != "whole" or entry["status"] != 200:
            continue
        if (entry["bytes"], entry["crc"]) not in sent[entry["tag"]] or "job" in entry:
            yield f"{told(entry)} is not what the target sent: {sent[entry['tag']]}"


def whole_answers_are_rows_that_ended_well(facts: Facts) -> Iterator[str]:
    """A client that has its whole answer has a row that is done, unless foreman died before that could be written."""
    for entry in facts.exchanges:
        if entry["does"] in ("stream", "whole") and entry["end"] == "whole" and entry.get("done"):
            row = facts.by_id.get(entry.get("job", ""))
            if row is None:
                yield f"{told(entry)} has no row"
            elif row["state"] != "done" and row["error_code"] not in ("interrupted", "client_disconnected"):
                yield f"{told(entry)} is whole, but its row is {row_told(row)}"
