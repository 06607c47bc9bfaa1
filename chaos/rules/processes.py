"""Of the round and its processes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from chaos.facts import OVER, Facts


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
