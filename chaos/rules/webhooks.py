"""Of what receivers are told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from chaos.facts import Entry, Facts, row_told

STEPS = (1.0, 2.0, 4.0, 8.0, 16.0, 60.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0)
"""Seconds between the tries of a delivery, give or take a fifth."""


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
                yield f"{event} of {row_told(row)} is delivered, but nobody took it"


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
                yield f"the end of {row_told(row)} is not on its way: {last} {made}"
        elif last["delivery"] not in ("delivered", "exhausted", "gone"):
            yield f"the end of {row_told(row)} is not told: {last}"


def told_in_order(facts: Facts) -> Iterator[str]:
    """Within a job an event is first tried when the one before it has been."""
    firsts: dict[int, list[int]] = defaultdict(list)
    for one in facts.evidence["database"]["tries"]:
        if one["sequence"] not in firsts[one["seq"]]:
            firsts[one["seq"]].append(one["sequence"])
    for seq, order in firsts.items():
        if order != sorted(order):
            yield f"job {seq} was told in the order {order}"
