"""Judges a round's evidence.  Knows nothing of foreman but its contract: it imports nothing of it.

The evidence is a dict of plain values; times are Unix seconds unless they come from the database (milliseconds):

- `exchanges`: what clients saw, an entry each (`chaos.wire`), with the `tag` that its prompt carries (or `tags`);
- `target`: what FakeOllama saw in all its lives (`/_fake/state?bodies=1`), its `requests` and `loads`;
- `deliveries`: what the receivers saw (`chaos.receivers.delivery`);
- `database`: the rows by table as they were last seen, after the end or before they were pruned (`chaos.archive`);
- `lives`, `log`: of foreman's processes; `strikes`: the faults; `trouble`: what went wrong in the round itself.

`check` gives a line for every fact that contradicts the contract.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

Entry = dict[str, Any]
Rule = Callable[["Facts"], Iterator[str]]

AT_ONCE = 0.05
"""Seconds by which FakeOllama may see a connection's end later than the next one's beginning: it reads one by one."""

LATER = 1.0
"""Seconds between an event and its being seen by another process, on a machine that has other things to do."""

ONWARD = {
    None: {"queued"},
    "queued": {"loading", "failed"},
    "loading": {"working", "queued", "failed"},
    "working": {"done", "queued", "failed"},
    "done": set(),
    "failed": set(),
}
"""From each state, where a job may go next."""

OVER = ("done", "failed")

STEPS = (1.0, 2.0, 4.0, 8.0, 16.0, 60.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0)
"""Seconds between the tries of a delivery, give or take a fifth."""

TAG = re.compile(r"chaos (c[0-9]+(?:\.[0-9]+)?) says")

EMBED_TAG = re.compile(r"embed (c[0-9]+) now")


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


def check(evidence: Mapping[str, Any]) -> list[str]:
    """Every violation, as a line that begins with the name of its rule."""
    facts = Facts(evidence)
    return [f"{rule.__name__}: {violation}" for rule in RULES for violation in rule(facts)]


# -- the round and its processes -------------------------------------------------------------------------------------


def drained(facts: Facts) -> Iterator[str]:
    """Everything comes to its end once the faults are over."""
    yield from facts.evidence["trouble"]


def lives_as_long_as_it_is_let(facts: Facts) -> Iterator[str]:
    """No daemon ends by itself; one that is asked to stop does, with status 0."""
    for number, life in enumerate(facts.evidence["lives"], start=1):
        if life["asked_at"] is None:
            yield f"life {number} ended by itself: {life}"
        elif life["status"] not in (0, -9):
            yield f"life {number} ended with {life['status']}"


def log_is_clean(facts: Facts) -> Iterator[str]:
    """No traceback, nothing unhandled, nothing on stderr."""
    for number, line in enumerate(facts.evidence["log"]):
        if re.search("Traceback|Unhandled|stderr: |fault of foreman's own", line):
            yield f"{line!r} and then {facts.evidence['log'][number + 1 : number + 12]}"


def database_is_sound(facts: Facts) -> Iterator[str]:
    """SQLite finds nothing wrong, and no ended job keeps its request."""
    database = facts.evidence["database"]
    if database["faults"] != [{"integrity_check": "ok"}] or database["orphans"]:
        yield f"{database['faults']} {database['orphans']}"
    waiting = {row["seq"] for row in facts.jobs if row["state"] not in OVER}
    for body in database["bodies"]:
        if body["seq"] not in waiting:
            yield f"the request of job {body['seq']} is still there"


# -- clients -----------------------------------------------------------------------------------------------------------


def nobody_hangs(facts: Facts) -> Iterator[str]:
    """Every exchange ends: with an answer, or because somebody went away."""
    for entry in facts.exchanges:
        if entry["end"] == "open":
            yield f"{_told(entry)} has no end"


def cuts_have_a_cause(facts: Facts) -> Iterator[str]:
    """A connection is refused or cut only by foreman's end, its lack of descriptors, or the target in mid-answer."""
    for entry in facts.exchanges:
        since, until = entry["sent_at"], entry.get("ended_at", 0.0)
        if entry["end"] not in ("cut", "refused") or facts.dead(since, until):
            continue
        if entry["manner"] == "half-closes" or facts.struck(["no descriptors"], since, until + LATER):
            continue
        broken = any(run["outcome"] != "answered" or run["fault"] for run in facts.runs[entry["tag"]])
        if entry["end"] == "cut" and "status" in entry and entry["does"] in ("stream", "whole") and broken:
            continue
        if entry["does"] == "follow":
            continue  # of an attempt that was broken off
        yield f"{_told(entry)} ended without a cause"


def answers_are_the_contracts(facts: Facts) -> Iterator[str]:
    """The statuses are those of the contract: 503 says when to come again, 5xx is the target's word or the row's."""
    for entry in facts.exchanges:
        if entry["end"] != "whole" or _carried_into_trouble(facts, entry):
            continue
        status, does = entry["status"], entry["does"]
        if status == 503:
            if "retry_after" not in entry and not _said_by_target(facts, entry, 503):
                yield f"{_told(entry)} is a 503 without Retry-After"
        elif status in (502, 504):
            row = facts.by_id.get(entry.get("job", ""))
            if row is None or row["state"] != "failed":
                yield f"{_told(entry)} is a {status}, but its row is {row}"
        elif status >= 500:
            if not _said_by_target(facts, entry, status):
                yield f"{_told(entry)} is a {status} that the target never said"
        elif status not in ALLOWED[does]:
            yield f"{_told(entry)} is a {status}"


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
        yield f"{_told(entry)} is not what the target sent: {_runs(facts, entry['tag'])}"


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
            yield f"{_told(entry)} is not what the target sent: {sent[entry['tag']]}"


def whole_answers_are_rows_that_ended_well(facts: Facts) -> Iterator[str]:
    """A client that has its whole answer has a row that is done, unless foreman died before that could be written."""
    for entry in facts.exchanges:
        if entry["does"] in ("stream", "whole") and entry["end"] == "whole" and entry.get("done"):
            row = facts.by_id.get(entry.get("job", ""))
            if row is None:
                yield f"{_told(entry)} has no row"
            elif row["state"] != "done" and row["error_code"] not in ("interrupted", "client_disconnected"):
                yield f"{_told(entry)} is whole, but its row is {_row(row)}"


# -- jobs --------------------------------------------------------------------------------------------------------------


def accepted_jobs_end_once(facts: Facts) -> Iterator[str]:
    """Every job that was promised is there, one row each, and over; it went there only once."""
    deleted = {entry["job"] for entry in facts.exchanges if entry["does"] == "delete"}
    for entry in facts.exchanges:
        if entry["does"] == "submit" and entry["end"] == "whole" and entry["status"] in (200, 202):
            for job_id in entry["ids"]:
                if job_id not in facts.by_id and job_id not in deleted:
                    yield f"{_told(entry)} was accepted, but there is no job {job_id}"
    for tag, rows in facts.rows.items():
        if len(rows) > 1:
            yield f"{tag} has {len(rows)} rows"
    for row in facts.jobs:
        if row["state"] not in OVER:
            yield f"{_row(row)} is not over"


def nothing_is_forgotten_early(facts: Facts) -> Iterator[str]:
    """No job that nobody deleted goes before it has been over for as long as it is to be kept."""
    for row in facts.jobs:
        if "gone_at" not in row or facts.off_clock((row["completed_at"] or 0) / 1000, row["gone_at"]):
            continue
        if row["state"] not in OVER or row["completed_at"] / 1000 + facts.evidence["ttl"] > row["gone_at"]:
            yield f"{_row(row)} was gone at {row['gone_at']}"


def deleted_jobs_are_gone(facts: Facts) -> Iterator[str]:
    """204 to a DELETE: nothing of the job is left."""
    for entry in facts.exchanges:
        if entry["does"] == "delete" and entry.get("status") == 204 and entry["job"] in facts.by_id:
            yield f"{_told(entry)} was deleted, but {_row(facts.by_id[entry['job']])}"


def one_key_is_one_job(facts: Facts) -> Iterator[str]:
    """Every answer to one idempotency key names the same ids, as many as there were lines."""
    ids: dict[str, tuple[str, ...]] = {}
    for entry in facts.exchanges:
        if entry["does"] == "submit" and entry.get("ids"):
            if len(entry["ids"]) != len(entry["tags"]):
                yield f"{_told(entry)} got {len(entry['ids'])} ids for {len(entry['tags'])} jobs"
            if entry["key"] and ids.setdefault(entry["key"], tuple(entry["ids"])) != tuple(entry["ids"]):
                yield f"{_told(entry)} got {entry['ids']}, but {ids[entry['key']]} before"
    for row in facts.evidence["database"]["keys"]:
        if row["key"] in ids and tuple(json.loads(row["ids"])) != ids[row["key"]]:
            yield f"{row} is not what was answered: {ids[row['key']]}"


def events_are_a_legal_path(facts: Facts) -> Iterator[str]:
    """Events count 1, 2, …, each follows the one before by a legal step, and the last is how the job stands."""
    for row in facts.jobs:
        events = facts.events[row["seq"]]
        if row["sync"]:
            if events:
                yield f"{_row(row)} is a sync call, but has events"
            continue
        state, loads = None, 0
        for number, event in enumerate(events, start=1):
            if event["sequence"] != number or event["previous"] != state or event["state"] not in ONWARD[state]:
                yield f"{_row(row)} has an event that cannot follow {state}: {event}"
            state = event["state"]
            loads += state == "loading"
            if event["attempt"] != loads:
                yield f"{_row(row)} was picked {loads} times, but its event says {event}"
        if state != row["state"] or loads != row["attempt"]:
            yield f"{_row(row)} is not where its events lead: {state} after {loads} attempts"


def no_run_is_hidden(facts: Facts) -> Iterator[str]:
    """The target saw no job more often than its `attempt` says, none without a row, and each done one to its end."""
    deleted = {entry["tag"] for entry in facts.exchanges if entry["does"] == "delete"}
    for tag, runs in facts.runs.items():
        rows = facts.rows.get(tag)
        if rows:
            if len(runs) > rows[0]["attempt"]:
                yield f"{tag} ran {len(runs)} times, but {_row(rows[0])}: {_runs(facts, tag)}"
        elif tag.partition(".")[0] not in deleted:
            yield f"{tag} ran {len(runs)} times without a row"
    for tag, rows in facts.rows.items():
        if rows[0]["state"] == "done" and not any(run["outcome"] == "answered" for run in facts.runs[tag]):
            yield f"{tag} is done, but never ran: {_row(rows[0])} {_runs(facts, tag)}"


def one_at_a_time(facts: Facts) -> Iterator[str]:
    """The target never has two of foreman's generations at once."""
    runs = sorted((run for runs in facts.runs.values() for run in runs), key=lambda run: run["connected_at"])
    last: Entry | None = None
    for run in runs:
        if last is not None and (last["ended_at"] or run["connected_at"] + 1) > run["connected_at"] + AT_ONCE:
            yield f"{_run(last)} and {_run(run)} overlap"
        if last is None or (last["ended_at"] or 1e18) < (run["ended_at"] or 1e18):
            last = run


def the_order_of_work_is_kept(facts: Facts) -> Iterator[str]:
    """While a runner works well and a job of its own is ready, no job of another runner is picked."""
    runs = sorted((run for runs in facts.runs.values() for run in runs), key=lambda run: run["connected_at"])
    first_run = {tag: runs[0]["connected_at"] for tag, runs in facts.runs.items() if runs}
    for one, other in pairwise(runs):
        began, ended = one["connected_at"], other["connected_at"]
        picked = facts.rows[_tag(other)][0] if facts.rows.get(_tag(other)) else None
        if picked is None or picked["attempt"] != 1 or _runner(one) == _runner(other):
            continue
        if one["outcome"] != "answered" or one["fault"] or facts.troubled(began - LATER, ended):
            continue
        if facts.off_clock(began, ended):
            continue  # the rows' times are nobody else's
        kept = facts.rows[_tag(one)][0] if facts.rows.get(_tag(one)) else None
        if kept is None or kept["state"] != "done":
            continue
        for tag, [row, *_] in facts.rows.items():
            waited = row["created_at"] + 1000 * LATER < picked["loading_at"]
            waits = first_run.get(tag, (row["completed_at"] or 0) / 1000 - LATER) > ended
            same = (row["runner_model"], row["runner_options"]) == (kept["runner_model"], kept["runner_options"])
            if waited and waits and same and row["attempt"] <= 1:
                yield f"{_run(other)} came after {_run(one)}, though {_row(row)} was waiting"


def loads_are_those_of_the_order(facts: Facts) -> Iterator[str]:
    """The target loads no more often than the runner changes, faults and jobs that were given up apart."""
    runs = sorted((run for runs in facts.runs.values() for run in runs), key=lambda run: run["connected_at"])
    changes = sum(_runner(one) != _runner(other) for one, other in pairwise(runs)) + 1
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
                    yield f"{_told(entry)}, and then {_run(run)}"


def who_left_waiting_does_not_run(facts: Facts) -> Iterator[str]:
    """A sync call whose client has left in the queue never reaches the target."""
    for entry in facts.exchanges:
        if entry["does"] in ("stream", "whole") and entry["end"] == "left":
            slow = ["foreman sleeps", "target sleeps", "disk full", "database locked", "database read-only"]
            for run in facts.runs[entry["tag"]]:
                late = run["connected_at"] > entry["ended_at"] + LATER
                if late and not facts.struck(slow, entry["ended_at"], run["connected_at"]):
                    yield f"{_told(entry)}, and then {_run(run)}"


def _runs_of(facts: Facts, entry: Entry) -> list[Entry]:
    row = facts.by_id.get(entry["job"])
    tag = facts.tags.get(row["seq"]) if row is not None else None
    return facts.runs[tag or (entry["tag"] if entry["tag"] in facts.runs else f"{entry['tag']}.1")]


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
            yield f"{_row(row)} has no completion: {sorted(kept)}"
        elif row["endpoint"] == "/api/embed" or row["model"] == "long" or tag is None:
            continue  # has no words of its own
        elif kept["content"]["says"] != tag:
            yield f"{_row(row)} has another's answer: {kept['content']['says']}"


# -- webhooks ----------------------------------------------------------------------------------------------------------


def deliveries_are_true(facts: Facts) -> Iterator[str]:
    """Deliveries are signed, tell of an event as it was, always in the same words, and `delivered` ones were taken."""
    taken: set[str] = set()
    said: dict[str, int] = {}
    for seen in facts.evidence["deliveries"]:
        if not seen["signed"]:
            yield f"a delivery is not signed: {seen}"
        if said.setdefault(seen["id"], seen["crc"]) != seen["crc"]:
            yield f"an event was told in two ways: {seen}"
        if seen["taken"]:
            taken.add(seen["id"])
        row = facts.by_id.get(seen["job"])
        if row is not None:
            events = {event["sequence"]: event for event in facts.events[row["seq"]]}
            if seen["sequence"] not in events or events[seen["sequence"]]["state"] != seen["state"]:
                yield f"a delivery tells of what never was: {seen}"
    for row in facts.jobs:
        for event in facts.events[row["seq"]]:
            if event["delivery"] == "delivered" and f"{row['id']}-{event['sequence']}" not in taken:
                yield f"{event} of {_row(row)} is delivered, but nobody took it"


def ends_are_told(facts: Facts) -> Iterator[str]:
    """Every final event of a job with a webhook was delivered, or will be tried within its step, or is exhausted."""
    tries: dict[tuple[int, int], list[Entry]] = defaultdict(list)
    for one in facts.evidence["database"]["tries"]:
        tries[one["seq"], one["sequence"]].append(one)
    for row in facts.jobs:
        events = facts.events[row["seq"]]
        if not events or row["webhook"] is None:
            continue
        last = events[-1]
        made = tries[row["seq"], last["sequence"]]
        if last["delivery"] == "pending":
            step = STEPS[min(len(made), len(STEPS)) - 1] if made else 0.0
            if not made or last["next_at"] is None or last["next_at"] > made[-1]["at"] + 2400 * step:
                yield f"the end of {_row(row)} is not on its way: {last} {made}"
        elif last["delivery"] not in ("delivered", "exhausted", "gone"):
            yield f"the end of {_row(row)} is not told: {last}"


def told_in_order(facts: Facts) -> Iterator[str]:
    """Within a job an event is first tried when the one before it has been."""
    firsts: dict[int, list[int]] = defaultdict(list)
    for one in facts.evidence["database"]["tries"]:
        if one["sequence"] not in firsts[one["seq"]]:
            firsts[one["seq"]].append(one["sequence"])
    for seq, order in firsts.items():
        if order != sorted(order):
            yield f"job {seq} was told in the order {order}"


RULES: tuple[Rule, ...] = (
    drained,
    lives_as_long_as_it_is_let,
    log_is_clean,
    database_is_sound,
    nobody_hangs,
    cuts_have_a_cause,
    answers_are_the_contracts,
    bytes_are_the_targets,
    embeddings_are_the_targets,
    whole_answers_are_rows_that_ended_well,
    accepted_jobs_end_once,
    nothing_is_forgotten_early,
    deleted_jobs_are_gone,
    one_key_is_one_job,
    events_are_a_legal_path,
    no_run_is_hidden,
    one_at_a_time,
    the_order_of_work_is_kept,
    loads_are_those_of_the_order,
    cancelled_jobs_do_not_run,
    who_left_waiting_does_not_run,
    answers_are_kept,
    deliveries_are_true,
    ends_are_told,
    told_in_order,
)


# -- in words ----------------------------------------------------------------------------------------------------------


def _told(entry: Entry) -> str:
    kept = ("tag", "does", "manner", "job", "status", "end", "error", "text", "sent_at", "ended_at", "bytes", "held")
    return json.dumps({key: entry[key] for key in kept if entry.get(key) is not None})


def _row(row: Entry) -> str:
    kept = ("seq", "id", "sync", "model", "state", "attempt", "failures", "error_code", "error_message")
    return json.dumps({key: row[key] for key in kept if row[key] is not None})


def _run(run: Entry) -> str:
    kept = ("connected_at", "ended_at", "outcome", "status", "fault", "sent")
    return f"run of {_tag(run)} ({run['path']}) " + json.dumps({key: run[key] for key in kept if run[key] is not None})


def _tag(run: Entry) -> str:
    found = TAG.search(run["body"])
    return found[1] if found else ""


def _runner(run: Entry) -> tuple[str, int]:
    document = json.loads(run["body"])
    options = {} if run["path"].startswith("/v1") else document.get("options", {})
    return document["model"], options.get("num_ctx", 0)


def _runs(facts: Facts, tag: str) -> str:
    return "; ".join(map(_run, facts.runs[tag])) or "no run"
