"""What only shows in time: that a stream comes as it is made, and that the target stops when the client leaves.

While a model works, its `expires_at` in `/api/ps` stands still; when its last request ends it is set anew.  So a
client that has left reads there when the target has stopped for it, however many requests the target takes at once.
Where others ask too that can mislead; a quiet target does not.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from math import inf

from foreman.verify.findings import Finding, Verdict
from foreman.verify.questions import long_chat
from foreman.verify.wire import BrokenOff, Exchange, NotReached, Place, ask, begin

LONGEST = 6.0
"""Seconds for which a long answer is read, to know how long it is."""

SHORTEST = 2.0
"""Seconds that it has to take; less, and an end by itself is not told from one that was brought about."""

SOON = 1 / 2
"""The part of that time within which the target has to stop: it works for longer if nobody stops it, also counted from
the last of `PARTS`, and where each question takes a while."""

PARTS = (1 / 8, 1 / 6, 1 / 4)
"""The parts of that time after which a client leaves that waits for its answer: later each time that is tried, since
nothing tells from outside when the target has begun."""

_PACE = "a stream as it is made"
_STREAMED = "a client that leaves a stream"
_UNSTREAMED = "a client that leaves before its answer"


def timing(direct: Place, through: Place, model: str) -> list[Finding]:
    """Read a long stream, leave one, and leave before the first byte, on both sides.

    :raise NotReached: a side answers no more.
    """
    length = _length(direct, model)
    if length < SHORTEST:
        why = f"the model's longest answer took {length:.1f} s; {SHORTEST:.0f} s would be enough to tell"
        return [Finding(name, Verdict.SKIPPED, (why,)) for name in (_PACE, _STREAMED, _UNSTREAMED)]
    findings = [_pace(length, through, model)]
    for name, stream in ((_STREAMED, True), (_UNSTREAMED, False)):
        if stream and findings[0].verdict is Verdict.DIFFERENT:
            findings.append(Finding(name, Verdict.SKIPPED, ("what is held back cannot be left in the middle",)))
            continue
        for part in PARTS:  # a machine that was busy elsewhere begins late, too
            stops = [_stop(direct, place, model, length, part=part, stream=stream) for place in (direct, through)]
            finding = _stopped(name, length, *stops)
            if finding.verdict is Verdict.IDENTICAL:
                break
        findings.append(finding)
    return findings


def _pace(length: float, through: Place, model: str) -> Finding:
    for _ in range(3):  # a machine that was busy elsewhere reads late, too
        other = _length(through, model)
        fact = f"direct, it came over {length:.1f} s, through foreman over {other:.1f} s"
        if other > length / 4:
            return Finding(_PACE, Verdict.IDENTICAL, (fact,))
    return Finding(_PACE, Verdict.DIFFERENT, (fact,))


def _stopped(name: str, length: float, direct: float | None, through: float | None) -> Finding:
    if direct is None or through is None or direct == inf:
        return Finding(name, Verdict.SKIPPED, ("the target does not show when it stops",))
    fact = f"direct, the target stopped after {direct:.2f} s"
    if through == inf:
        return Finding(
            name, Verdict.DIFFERENT, (f"{fact}, through foreman it went on for {length * SOON:.1f} s and more",)
        )
    return Finding(name, Verdict.IDENTICAL, (f"{fact}, through foreman after {through:.2f} s",))


def _length(place: Place, model: str) -> float:
    """For how many seconds the long answer comes, as far as that matters."""
    first = last = 0.0
    with _begun(place, model, stream=True) as exchange, suppress(BrokenOff):
        exchange.head()
        for piece in exchange.pieces():
            first, last = first or piece.at, piece.at
            if last - first > LONGEST:
                break
    return last - first


def _stop(direct: Place, place: Place, model: str, length: float, *, part: float, stream: bool) -> float | None:
    """How many seconds after the client has left the target stops.

    :return: `inf` if it does not stop soon, None if it does not show whether it works.
    """
    with _begun(place, model, stream=stream) as exchange:
        if stream:
            exchange.head()
            with suppress(BrokenOff):
                next(iter(exchange.pieces()), None)
        else:
            time.sleep(length * part)
        working = _expiry(direct, model)
        time.sleep(0.1)
        if working is None or _expiry(direct, model) != working:
            return None
    left = time.monotonic()
    while (after := time.monotonic() - left) < length * SOON:
        if _expiry(direct, model) != working:
            return after
        time.sleep(0.05)
    return inf


def _begun(place: Place, model: str, *, stream: bool) -> Exchange:
    return begin(place, "POST", "/api/chat", long_chat(model, stream=stream))


def _expiry(direct: Place, model: str) -> object:
    """What `/api/ps` says of the model's expiry; None if it says nothing."""
    answer = ask(direct, "GET", "/api/ps")
    try:
        listed = json.loads(answer.body)["models"]
        return next((each.get("expires_at") for each in listed if model in (each.get("name"), each.get("model"))), None)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise NotReached(f"{direct.url} has no list of running models, but {answer.status}") from None
