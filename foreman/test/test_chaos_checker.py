"""The judge of `make chaos` is judged: it passes a clean log, and finds each thing that it says it looks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import chaos
from chaos.checker import check
from chaos.facts import TAG
from chaos.rules import RULES

Evidence = dict[str, Any]


def exchange(tag: str, does: str, at: float, **more: Any) -> dict[str, Any]:
    """What a client saw: an answer with 200, a second after it asked."""
    seen = {"tag": tag, "does": does, "manner": "stays", "sent_at": at, "ended_at": at + 1, "end": "whole"}
    return {**seen, "status": 200, "size": 1, **more}


def run(tag: str, at: float, model: str = "quick-a", **more: Any) -> dict[str, Any]:
    """A request at the target that was answered with 100 bytes within a tenth of a second."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": f"chaos {tag} says"}]})
    seen = {"path": "/api/chat", "connected_at": at, "ended_at": at + 0.1, "outcome": "answered", "status": 200}
    return {**seen, "fault": None, "sent": 100, "crc": 5, "body": body, **more}


def row(seq: int, tag: str | None, state: str, **more: Any) -> dict[str, Any]:
    """A job's row; without a tag a sync call's, whose size is its seq."""
    values = {
        "seq": seq,
        "id": f"job-{seq}",
        "sync": int(tag is None),
        "size": seq,
        "model": "quick-a",
        "endpoint": "/api/chat",
        "runner_model": "digest-a",
        "runner_options": "{}",
        "state": state,
        "attempt": 1,
        "failures": 0,
        "metadata": None if tag is None else json.dumps({"tag": tag}),
        "webhook": None,
        "error_code": None,
        "error_message": None,
        "created_at": 100_000,
        "loading_at": 100_500,
        "completed_at": 101_000,
    }
    return values | more


def path(seq: int, *states: str, **more: Any) -> list[dict[str, Any]]:
    """The events of a job that went through these states."""
    events, attempt = [], 0
    for sequence, (previous, state) in enumerate(zip((None, *states), states, strict=False), start=1):
        attempt += state == "loading"
        event = {"seq": seq, "sequence": sequence, "previous": previous, "state": state, "attempt": attempt}
        events.append({**event, "delivery": None, "next_at": None, **more})
    return events


def artifact(seq: int, name: str, body: bytes) -> dict[str, Any]:
    """A blob as it should be."""
    digest = hashlib.sha256(body).hexdigest()
    said = TAG.search(body.decode())
    seen = {"length": len(body), "hash": digest, "says": said and said[1]}
    return {"seq": seq, "name": name, "size": len(body), "sha256": digest, **seen}


def delivery(job: str, sequence: int, state: str, **more: Any) -> dict[str, Any]:
    """What a receiver took."""
    seen = {
        "id": f"{job}-{sequence}",
        "job": job,
        "sequence": sequence,
        "state": state,
        "signed": True,
        "crc": sequence,
    }
    return {**seen, "taken": True, **more}


@pytest.fixture
def evidence() -> Evidence:
    """A clean round: a kill; a sync call, a batch of two with a webhook, a cancelled job and a deleted one."""
    accepted = {"ids": ["job-2", "job-3"], "tags": ["c2.1", "c2.2"], "key": "k", "status": 202}
    return {
        "trouble": [],
        "exchanges": [
            exchange("c1", "stream", 100, size=1, unique=True, job="job-1", bytes=100, crc=5, done=True, held=0),
            exchange("c2", "submit", 100, **accepted),
            exchange("c2", "submit", 101, **{**accepted, "status": 200}),
            exchange("c4", "submit", 100, ids=["job-4"], tags=["c4"], key=None, status=202),
            exchange("c4", "cancel", 102, job="job-4"),
            exchange("c5", "submit", 100, ids=["job-5"], tags=["c5"], key=None, status=202),
            exchange("c5", "delete", 102, job="job-5", status=204),
            exchange("c6", "stream", 109.5, size=6, unique=True, end="cut", status=None),
            exchange("c7", "page", 110, end="refused", status=None),
            exchange("c8", "embed", 100, bytes=100, crc=5),
        ],
        "strikes": [{"fault": "kill -9", "at": 110.0, "until": 112.0}],
        "lives": [
            {"started_at": 90, "ready_at": 91, "asked_at": 110.0, "ended_at": 110.1, "status": -9},
            {"started_at": 111, "ready_at": 112, "asked_at": 200, "ended_at": 201, "status": 0},
        ],
        "log": ["all is well"],
        "target": {
            "requests": [
                run("c1", 100.6),
                run("c2.1", 101),
                run("c2.2", 102),
                run("c8", 100.6, path="/api/embed", body='{"model": "embedder", "input": "embed c8 now"}'),
            ],
            "loads": [{"model": "embedder"}, {"model": "quick-a"}],
        },
        "ttl": 3600,
        "deliveries": [
            delivery("job-2", sequence, state)
            for sequence, state in enumerate(("queued", "loading", "working", "done"), start=1)
        ],
        "database": {
            "jobs": [
                row(1, None, "done"),
                row(2, "c2.1", "done", webhook="http://127.0.0.1:1/hook"),
                row(3, "c2.2", "done"),
                row(4, "c4", "failed", error_code="cancelled", attempt=0, loading_at=None),
            ],
            "bodies": [],
            "events": [
                *path(2, "queued", "loading", "working", "done", delivery="delivered"),
                *path(3, "queued", "loading", "working", "done"),
                *path(4, "queued", "failed"),
            ],
            "tries": [
                {"seq": 2, "place": place, "sequence": place, "at": 100_000, "status": 200} for place in range(1, 5)
            ],
            "artifacts": [
                artifact(seq, name, body)
                for seq, tag in ((2, "c2.1"), (3, "c2.2"))
                for name, body in (("completion", b"{}"), ("content", f" chaos {tag} says".encode()))
            ],
            "keys": [{"key": "k", "ids": '["job-2", "job-3"]', "kept": 2, "gone_at": None}],
            "faults": [{"integrity_check": "ok"}],
            "orphans": [],
        },
    }


def test_a_clean_round_passes(evidence: Evidence) -> None:
    """Nothing is wrong, and the judge says so."""
    assert check(evidence) == []


# -- what is wrong, and which rule finds it ----------------------------------------------------------------------------

Spoil = Callable[[Evidence], Any]
SPOILT: list[tuple[str, str, Spoil]] = []


def spoils(rule: str) -> Callable[[Spoil], Spoil]:
    """Mark what breaks a rule."""

    def mark(spoil: Spoil) -> Spoil:
        SPOILT.append((rule, (spoil.__doc__ or "").rstrip("."), spoil))
        return spoil

    return mark


def job(evidence: Evidence, seq: int) -> dict[str, Any]:
    """A row of the evidence."""
    found: dict[str, Any] = next(row for row in evidence["database"]["jobs"] if row["seq"] == seq)
    return found


def requests(evidence: Evidence) -> list[dict[str, Any]]:
    """What the target saw."""
    found: list[dict[str, Any]] = evidence["target"]["requests"]
    return found


@spoils("drained")
def _(evidence: Evidence) -> None:
    """It did not come to its end in time."""
    evidence["trouble"].append("not drained")


@spoils("lives_as_long_as_it_is_let")
def _(evidence: Evidence) -> None:
    """The daemon went by itself."""
    evidence["lives"][1] |= {"asked_at": None, "status": 1}


@spoils("lives_as_long_as_it_is_let")
def _(evidence: Evidence) -> None:
    """SIGTERM did not end it with 0."""
    evidence["lives"][1]["status"] = -15


@spoils("log_is_clean")
def _(evidence: Evidence) -> None:
    """There is a traceback."""
    evidence["log"].append("Traceback (most recent call last):")


@spoils("log_is_clean")
def _(evidence: Evidence) -> None:
    """Something is on stderr."""
    evidence["log"].append("stderr: oh")


@spoils("database_is_sound")
def _(evidence: Evidence) -> None:
    """SQLite finds the file malformed."""
    evidence["database"]["faults"] = [{"integrity_check": "row 7 missing from index"}]


@spoils("database_is_sound")
def _(evidence: Evidence) -> None:
    """The request of an ended job is still there."""
    evidence["database"]["bodies"].append({"seq": 3})


@spoils("nobody_hangs")
def _(evidence: Evidence) -> None:
    """A client waits for ever."""
    evidence["exchanges"][0]["end"] = "open"


@spoils("cuts_have_a_cause")
def _(evidence: Evidence) -> None:
    """A call is cut while foreman lives."""
    evidence["exchanges"][7] |= {"sent_at": 150.0, "ended_at": 151.0}


@spoils("cuts_have_a_cause")
def _(evidence: Evidence) -> None:
    """A connection is refused while foreman lives."""
    evidence["exchanges"][8] |= {"sent_at": 150.0, "ended_at": 151.0}


@spoils("answers_are_the_contracts")
def _(evidence: Evidence) -> None:
    """A 503 does not say when to come again."""
    evidence["exchanges"][1] |= {"status": 503, "ids": []}


@spoils("answers_are_the_contracts")
def _(evidence: Evidence) -> None:
    """A 500 that nobody but foreman has said."""
    evidence["exchanges"][0]["status"] = 500


@spoils("answers_are_the_contracts")
def _(evidence: Evidence) -> None:
    """A 502 though the job is done."""
    evidence["exchanges"][0]["status"] = 502


@spoils("answers_are_the_contracts")
def _(evidence: Evidence) -> None:
    """A good request is refused."""
    evidence["exchanges"][0]["status"] = 400


@spoils("bytes_are_the_targets")
def _(evidence: Evidence) -> None:
    """A byte of an answer is another."""
    evidence["exchanges"][0]["crc"] = 6


@spoils("bytes_are_the_targets")
def _(evidence: Evidence) -> None:
    """A broken answer is passed off as a whole one."""
    evidence["exchanges"][0] |= {"bytes": 50, "done": False}
    requests(evidence)[0] |= {"sent": 50, "outcome": "cut"}


@spoils("embeddings_are_the_targets")
def _(evidence: Evidence) -> None:
    """Somebody has another's vectors."""
    evidence["exchanges"][9]["crc"] = 6


@spoils("embeddings_are_the_targets")
def _(evidence: Evidence) -> None:
    """An embedding call waited in the queue."""
    evidence["exchanges"][9]["job"] = "job-8"


@spoils("whole_answers_are_rows_that_ended_well")
def _(evidence: Evidence) -> None:
    """The client has its answer, the row says that it failed."""
    job(evidence, 1).update(state="failed", error_code="target_error")


@spoils("accepted_jobs_end_once")
def _(evidence: Evidence) -> None:
    """A job that was promised is nowhere."""
    evidence["database"]["jobs"].remove(job(evidence, 3))


@spoils("accepted_jobs_end_once")
def _(evidence: Evidence) -> None:
    """One submission became two jobs."""
    evidence["database"]["jobs"].append(row(9, "c4", "failed", error_code="cancelled"))
    evidence["database"]["events"] += path(9, "queued", "loading", "failed")


@spoils("accepted_jobs_end_once")
def _(evidence: Evidence) -> None:
    """A job is still waiting."""
    job(evidence, 4)["state"] = "queued"


@spoils("nothing_is_forgotten_early")
def _(evidence: Evidence) -> None:
    """A job is pruned half an hour after its end, though an hour was asked for."""
    job(evidence, 2)["gone_at"] = 1900.0


@spoils("nothing_is_forgotten_early")
def _(evidence: Evidence) -> None:
    """A job that was never over is gone."""
    job(evidence, 2).update(state="queued", completed_at=None, gone_at=9000.0)


@spoils("deleted_jobs_are_gone")
def _(evidence: Evidence) -> None:
    """A deleted job is still there."""
    evidence["database"]["jobs"].append(row(5, "c5", "failed", error_code="cancelled"))


@spoils("one_key_is_one_job")
def _(evidence: Evidence) -> None:
    """A repeated request got new ids."""
    evidence["exchanges"][2]["ids"] = ["job-2", "job-4"]


@spoils("one_key_is_one_job")
def _(evidence: Evidence) -> None:
    """A batch of two got one id."""
    evidence["exchanges"][1]["ids"] = evidence["exchanges"][2]["ids"] = ["job-2"]


@spoils("one_key_is_one_job")
def _(evidence: Evidence) -> None:
    """The database remembers other ids than were told."""
    evidence["database"]["keys"][0]["ids"] = '["job-3", "job-2"]'


@spoils("events_are_a_legal_path")
def _(evidence: Evidence) -> None:
    """From the queue to done without any work."""
    evidence["database"]["events"][4:8] = path(3, "queued", "done")


@spoils("events_are_a_legal_path")
def _(evidence: Evidence) -> None:
    """A job ends twice."""
    evidence["database"]["events"] += path(4, "queued", "failed", "failed")[2:]


@spoils("events_are_a_legal_path")
def _(evidence: Evidence) -> None:
    """A number is missing between events."""
    evidence["database"]["events"][7]["sequence"] = 5


@spoils("events_are_a_legal_path")
def _(evidence: Evidence) -> None:
    """The last event is not how the job stands."""
    job(evidence, 3).update(state="failed", error_code="timeout")


@spoils("events_are_a_legal_path")
def _(evidence: Evidence) -> None:
    """It was picked more often than it says."""
    job(evidence, 3)["attempt"] = 2


@spoils("no_run_is_hidden")
def _(evidence: Evidence) -> None:
    """A job ran twice in one attempt."""
    requests(evidence).append(run("c2.2", 103))


@spoils("no_run_is_hidden")
def _(evidence: Evidence) -> None:
    """A sync call ran twice in one attempt."""
    requests(evidence).append(run("c1", 103))


@spoils("no_run_is_hidden")
def _(evidence: Evidence) -> None:
    """The target worked for a call that has no row."""
    requests(evidence).append(run("c8", 103))


@spoils("no_run_is_hidden")
def _(evidence: Evidence) -> None:
    """A job is done that the target never heard of."""
    requests(evidence).pop(2)


@spoils("one_at_a_time")
def _(evidence: Evidence) -> None:
    """Two generations at once."""
    requests(evidence)[1]["ended_at"] = 102.5


@spoils("one_at_a_time")
def _(evidence: Evidence) -> None:
    """A generation that was given up is still at the target when the next one comes."""
    requests(evidence)[0]["ended_at"] = None


@spoils("the_order_of_work_is_kept")
def _(evidence: Evidence) -> None:
    """Another model's job is picked while the loaded one's waits."""
    requests(evidence).insert(1, run("c9", 100.8, "quick-b"))
    evidence["database"]["jobs"].append(row(9, "c9", "done", runner_model="digest-b", loading_at=100_700))
    for seq in (2, 3):
        job(evidence, seq)["created_at"] = 99_000


@spoils("loads_are_those_of_the_order")
def _(evidence: Evidence) -> None:
    """It loads again and again for one model."""
    evidence["target"]["loads"] *= 9


@spoils("cancelled_jobs_do_not_run")
def _(evidence: Evidence) -> None:
    """A cancelled job runs afterwards."""
    requests(evidence).append(run("c4", 104))


@spoils("cancelled_jobs_do_not_run")
def _(evidence: Evidence) -> None:
    """A deleted job runs afterwards."""
    requests(evidence).append(run("c5", 104))


@spoils("who_left_waiting_does_not_run")
def _(evidence: Evidence) -> None:
    """The client left long ago, and the target works for it."""
    evidence["exchanges"].append(exchange("c9", "stream", 90, size=9, unique=True, end="left", status=None))
    evidence["database"]["jobs"].append(row(9, None, "failed", error_code="client_disconnected"))
    requests(evidence).append(run("c9", 103))


@spoils("answers_are_kept")
def _(evidence: Evidence) -> None:
    """A done job has no completion."""
    evidence["database"]["artifacts"].pop(2)


@spoils("answers_are_kept")
def _(evidence: Evidence) -> None:
    """A job has another's answer."""
    evidence["database"]["artifacts"][3] = artifact(3, "content", b" chaos c2.1 says")


@spoils("answers_are_kept")
def _(evidence: Evidence) -> None:
    """A blob is not what its hash says."""
    evidence["database"]["artifacts"][0]["hash"] = "another"


@spoils("deliveries_are_true")
def _(evidence: Evidence) -> None:
    """A delivery is not signed."""
    evidence["deliveries"][0]["signed"] = False


@spoils("deliveries_are_true")
def _(evidence: Evidence) -> None:
    """A repeat says something else."""
    evidence["deliveries"].append(delivery("job-2", 4, "done", crc=9))


@spoils("deliveries_are_true")
def _(evidence: Evidence) -> None:
    """A delivery tells of an event that never was."""
    evidence["deliveries"].append(delivery("job-2", 5, "queued"))


@spoils("deliveries_are_true")
def _(evidence: Evidence) -> None:
    """Marked as delivered, but no receiver said so."""
    evidence["deliveries"][3]["taken"] = False


@spoils("ends_are_told")
def _(evidence: Evidence) -> None:
    """The end is pending, and planned for next week."""
    evidence["database"]["events"][3] |= {"delivery": "pending", "next_at": 700_000_000}


@spoils("ends_are_told")
def _(evidence: Evidence) -> None:
    """The end is pending and never tried."""
    evidence["database"]["events"][3] |= {"delivery": "pending", "next_at": None}


@spoils("ends_are_told")
def _(evidence: Evidence) -> None:
    """The end was dropped."""
    evidence["database"]["events"][3]["delivery"] = "superseded"


@spoils("told_in_order")
def _(evidence: Evidence) -> None:
    """The end was told before the beginning."""
    evidence["database"]["tries"].reverse()


@pytest.mark.parametrize(("rule", "fault", "spoil"), SPOILT, ids=[f"{rule}: {fault}" for rule, fault, _ in SPOILT])
def test_what_is_wrong_is_found(rule: str, fault: str, spoil: Spoil, evidence: Evidence) -> None:
    """One thing is made wrong in a clean round, and the rule that is there for it says so."""
    spoil(evidence)
    assert any(violation.startswith(f"{rule}: ") for violation in check(evidence)), fault


def test_every_rule_is_tested() -> None:
    """No rule is there for show."""
    assert {rule for rule, _, _ in SPOILT} == {rule.__name__ for rule in RULES}


# -- what looks wrong and is not ---------------------------------------------------------------------------------------


def test_what_the_contract_allows_is_passed(evidence: Evidence) -> None:
    """A job sent back to the queue by a kill, a late 200 lost with it, a retry to come, a broken stream's cut."""
    job(evidence, 3)["attempt"] = 2
    requests(evidence).append(run("c2.2", 103, outcome="left", status=None))
    requests(evidence).sort(key=lambda request: float(request["connected_at"]))
    database = evidence["database"]
    database["events"][4:8] = path(3, "queued", "loading", "working", "queued", "loading", "working", "done")
    database["events"][3] |= {"delivery": "pending", "next_at": 101_100}
    evidence["exchanges"].append(exchange("c9", "stream", 150, size=9, unique=True, job="job-9", end="cut"))
    database["jobs"].append(row(9, None, "failed", error_code="target_error"))
    requests(evidence).append(run("c9", 150, outcome="cut", fault="cut-mid-line"))
    assert check(evidence) == []


def test_pruned_jobs_are_judged_like_those_that_are_there(evidence: Evidence) -> None:
    """A job may go once it has been over for as long as it is to be kept, or when the clock has jumped."""
    job(evidence, 2)["gone_at"] = 101.0 + 3600
    assert check(evidence) == []
    job(evidence, 2)["gone_at"] = 110.0
    evidence["strikes"].append({"fault": "clock jumps", "at": 105.0, "until": 106.0, "note": "3600 s"})
    assert check(evidence) == []


def test_the_judge_knows_nothing_of_foreman() -> None:
    """It is independent: no line of foreman's decides what foreman is held to."""
    folder = Path(chaos.__file__).parent
    for module in (folder / "checker.py", folder / "facts.py", *(folder / "rules").iterdir()):
        if module.suffix == ".py":
            assert "import foreman" not in module.read_text()
            assert "from foreman" not in module.read_text()
