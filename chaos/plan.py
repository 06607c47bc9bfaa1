"""What a round will do: its calls and its faults, a pure function of seed, length, rates and the faults allowed.

Real processes do not take turns as planned ones would, so a seed replays what is done and when, not what comes of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from random import Random
from typing import Any

from attrs import evolve, frozen

ECHO = 12
"""Tokens of a short answer; it says the words of its prompt, so that everybody sees whose it is."""

EMBEDDER = "embedder"
"""The model that foreman keeps loaded beside the others; its calls are no jobs."""

MODELS = {
    "quick-a": f"load=0.1,prompt=0.005,rate=150,echo={ECHO},capabilities=completion+embedding",
    "quick-b": f"load=0.1,prompt=0.005,rate=150,echo={ECHO}",
    "quick-c": f"load=0.3,prompt=0.02,rate=100,echo={ECHO}",
    "slow": f"load=0.5,prompt=0.1,rate=12,echo={ECHO}",
    "long": "load=0.1,tokens=2000,token_bytes=400",
    EMBEDDER: "load=0.1,prompt=0.01,capabilities=embedding",
}
"""The target's models and how they are made (`python -m foreman.ollama.fake --models`)."""

_SHARES = {"quick-a": 30, "quick-b": 30, "quick-c": 25, "slow": 10, "long": 5}

PAGES = ("/healthz", "/queue", "/metrics", "/jobs", "/api/tags", "/api/version")

RECEIVERS = 3
"""Webhook receivers; the first has no faults."""


class Kind(StrEnum):
    """What a client does."""

    STREAM = "stream"
    WHOLE = "whole"
    JOB = "job"
    BATCH = "batch"
    RESPOND_ASYNC = "respond-async"
    PAGE = "page"
    EMBED = "embed"


_KINDS = {Kind.STREAM: 33, Kind.WHOLE: 15, Kind.JOB: 32, Kind.BATCH: 6, Kind.RESPOND_ASYNC: 9, Kind.PAGE: 5}


class Manner(StrEnum):
    """How a client behaves."""

    STAYS = "stays"
    SLOW = "slow reader"
    HALF_CLOSES = "half-closes"
    LEAVES_MID_BODY = "leaves before its body's end"
    LEAVES_WAITING = "leaves while it waits"
    LEAVES_AT_HEAD = "leaves at the head"
    LEAVES_MID_STREAM = "leaves in the middle of the answer"


class Then(StrEnum):
    """What is done about an accepted job later."""

    NOTHING = "nothing"
    CANCEL = "cancel"
    DELETE = "delete"
    WAIT = "wait"
    FOLLOW = "follow"
    REDELIVER = "redeliver"


_OFTEN = tuple(then for then in Then if then is not Then.REDELIVER)

RARER = 0.15
"""How many rarer calls there are for each of the others."""


@frozen(kw_only=True)
class Call:
    """One client.

    :ivar at: seconds after the round's start.
    :ivar number: no other's.
    :ivar key: its idempotency key: it repeats its request until it is answered, and `again` times after that.
    :ivar pause: seconds before it leaves, or before `then`.
    :ivar webhook: the receiver that is told, None for none.
    """

    at: float
    number: int
    kind: Kind
    path: str
    model: str
    options: Mapping[str, int]
    manner: Manner = Manner.STAYS
    lines: int = 1
    key: str | None = None
    again: int = 0
    pause: float = 0.0
    then: Then = Then.NOTHING
    webhook: int | None = None
    expires_in: str | None = None

    @property
    def tag(self) -> str:
        """What its prompt says, and no other's; the lines of a batch add `.1`, `.2` and so on."""
        return f"c{self.number}"


@frozen(kw_only=True)
class Strike:
    """One fault.

    :ivar peace: seconds before it, after the one before it in its lane; `seconds`: how long it lasts.
    :ivar chance: a number from 0 to 1 for whatever else is to be decided.
    """

    peace: float
    fault: str
    seconds: float
    chance: float


@frozen
class Span:
    """For how long a fault lasts, in seconds, and how often it is chosen among the others of its lane."""

    least: float
    most: float
    weight: float = 1.0


Lanes = Mapping[str, Mapping[str, Span]]


@frozen
class Plan:
    """A round.

    :ivar stretches: the faults; those of one stretch begin when those of the one before are over.
    """

    seed: int
    seconds: float
    calls: Sequence[Call]
    stretches: Sequence[Sequence[Strike]]


def plan(seed: int, *, seconds: float, calls_per_second: float, pause: float, lanes: Lanes) -> Plan:
    """The round of a seed.

    :param pause: seconds between two faults of one lane, on average.
    :param lanes: the faults that may strike; those of one lane never overlap, those of different lanes do.
    """
    random = Random(f"calls {seed}")
    count = round(seconds * calls_per_second)
    calls = [_call(random, number, random.uniform(0.0, seconds)) for number in range(count)]
    random = Random(f"rarer calls {seed}")  # one of its own, so that what came later left the older seeds as they were
    rarer = range(count, count + round(RARER * count))
    calls += [_rarer_call(random, number, random.uniform(0.0, seconds)) for number in rarer]
    strikes = strikes_of(seed, seconds=seconds, pause=pause, lanes=lanes)
    return Plan(seed, seconds, sorted(calls, key=lambda call: call.at), [strikes])


def strikes_of(seed: int, *, seconds: float, pause: float, lanes: Lanes) -> list[Strike]:
    """The faults of a seed."""
    strikes = []
    for lane, faults in lanes.items():
        random = Random(f"{lane} {seed}")
        over = 0.0
        while faults and over < seconds:
            peace = random.uniform(0.5, 1.5) * pause
            [fault] = random.choices(list(faults), [span.weight for span in faults.values()])
            lasts = random.uniform(faults[fault].least, faults[fault].most)
            strikes.append(Strike(peace=peace, fault=fault, seconds=lasts, chance=random.random()))
            over += peace + lasts
    return strikes


def _call(random: Random, number: int, at: float) -> Call:
    [kind] = random.choices(list(_KINDS), list(_KINDS.values()))
    [model] = random.choices(list(_SHARES), list(_SHARES.values()))
    options = {"num_ctx": 512} if random.random() < 0.1 else {}
    path = random.choice(("/api/chat", "/api/chat", "/api/generate"))
    more: dict[str, Any] = {"pause": random.uniform(0.0, 2.0)}
    if kind is Kind.PAGE:
        path = random.choice(PAGES)
    elif kind in (Kind.STREAM, Kind.WHOLE):
        if random.random() < 0.25:
            path, options = "/v1/chat/completions", {}
        if random.random() < 0.4:
            more["manner"] = random.choice(list(Manner))
    else:
        more |= _job(random, kind, f"key-{number}")
        if kind is Kind.BATCH:
            model = random.choice(("quick-a", "quick-b", "quick-c"))
    return Call(at=at, number=number, kind=kind, path=path, model=model, options=options, **more)


def _rarer_call(random: Random, number: int, at: float) -> Call:
    """An embedding, an Anthropic call, a job of either, or a job whose end is told twice."""
    call = Call(at=at, number=number, kind=Kind.JOB, path="/api/chat", model="quick-a", options={})
    pause, webhook = random.uniform(0.0, 2.0), random.randrange(RECEIVERS)
    choice = random.randrange(6)
    if choice < 2:
        path = random.choice(("/api/embed", "/v1/embeddings"))
        return evolve(call, kind=Kind.EMBED, path=path, model=EMBEDDER)
    if choice < 4:
        kind, manner = random.choice((Kind.STREAM, Kind.WHOLE)), random.choice(list(Manner))
        return evolve(call, kind=kind, path="/v1/messages", manner=manner, pause=pause)
    if choice == 4:
        return evolve(call, path=random.choice(("/api/embed", "/v1/messages")), webhook=webhook)
    return evolve(call, then=Then.REDELIVER, webhook=webhook, pause=2 * pause)


def _job(random: Random, kind: Kind, key: str) -> dict[str, Any]:
    """What only async jobs have."""
    more: dict[str, Any] = {}
    if kind is not Kind.RESPOND_ASYNC:
        if random.random() < 0.6:
            more["webhook"] = random.randrange(RECEIVERS)
        if random.random() < 0.05:
            more["expires_in"] = random.choice(("1s", "3s"))
    if random.random() < 0.7:
        more |= {"key": key, "again": random.randrange(3)}
    if kind is Kind.BATCH:
        more["lines"] = random.randrange(2, 30)
    elif random.random() < 0.4:
        more["then"] = random.choice(_OFTEN)
    return more
