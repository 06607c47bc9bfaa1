"""`python -m chaos.soak`: an hour of load and few faults on one database; exits with 1 when anything was lost or grows.

The faults come in stretches, with peace between them; in every other stretch foreman is not restarted, so that a
process lives for long enough to show a leak.  Jobs are kept for a minute and a half only: pruning never rests.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from attrs import evolve

from chaos import report, rounds
from chaos.checker import check
from chaos.evidence import keep_evidence
from chaos.faults import LANES
from chaos.flat import judged
from chaos.plan import Plan, Span, Strike, plan, strikes_of
from chaos.samples import Sample, Sampler
from chaos.summary import keep_soak, summary

TTL = 90.0
"""Seconds for which foreman keeps jobs."""

STRETCH = 660.0
"""Seconds of a stretch and of the peace after it, about."""

PEACE = 0.3
"""How much of a stretch is peace."""

RESTARTS = ("kill -9", "SIGTERM")

SMALL_JUMPS = (0.32, 0.42, 0.55, 0.65)
"""Chances of clock jumps that are shorter than TTL and taken back: after others jobs go before they are seen."""


def soak_plan(seed: int, *, length: float, rate: float, pause: float) -> Plan:
    """The calls and the stretches of a soak."""
    calm = {
        lane: {name: Span(span.least, span.most) if name in RESTARTS else span for name, span in faults.items()}
        for lane, faults in LANES.items()
    }
    no_restarts = {
        lane: {name: span for name, span in faults.items() if name not in RESTARTS} for lane, faults in calm.items()
    }
    count = stretches_in(length)
    seconds = length / count * (1 - PEACE) - 1.5 * pause  # so that the last strike begins in time
    struck = [
        [_small(strike) for strike in strikes_of(seed + number, seconds=seconds, pause=pause, lanes=lanes)]
        for number, lanes in enumerate([calm, no_restarts] * count)
    ]
    return evolve(plan(seed, seconds=length, calls_per_second=rate, pause=pause, lanes={}), stretches=struck[:count])


def stretches_in(length: float) -> int:
    """How many stretches a soak of so many seconds has."""
    return max(1, round(length / STRETCH))


def _small(strike: Strike) -> Strike:
    if strike.fault != "clock jumps":
        return strike
    return evolve(strike, chance=Random(strike.chance).choice(SMALL_JUMPS))


def main(argv: Sequence[str]) -> int:
    """Soak, judge, keep the figures and draw them; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m chaos.soak", description=__doc__)
    parser.add_argument("--length", type=float, default=3600.0, help="seconds of load")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--rate", type=float, default=2.5, help="calls a second")
    parser.add_argument("--pause", type=float, default=45.0, help="seconds between two faults of one lane")
    parser.add_argument("--keep", type=Path, default=None, help="a folder for the evidence")
    options = parser.parse_args(argv)
    # An end by signal takes the children along.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    seed = int(time.time()) % 1_000_000 if options.seed is None else options.seed
    planned = soak_plan(seed, length=options.length, rate=options.rate, pause=options.pause)
    print(f"seed {seed}: {len(planned.calls)} calls, {sum(map(len, planned.stretches))} faults", flush=True)
    began = time.monotonic()
    sampler = Sampler()
    quiet = options.length / stretches_in(options.length) * PEACE
    with tempfile.TemporaryDirectory(prefix="foreman-soak-") as folder:
        evidence = asyncio.run(rounds.run(planned, Path(folder), ttl=TTL, quiet=quiet, beside=sampler.run))
    if options.keep is not None:
        keep_evidence(options.keep / str(seed), planned, evidence | {"samples": sampler.samples}, [])
    samples = _loaded(sampler.samples, evidence["began_at"], options.length)
    violations = check(evidence) + judged(samples)
    more = {"length": options.length, "rate": options.rate, "ttl": TTL, "strikes": _strikes(evidence)}
    one = {**summary(planned, evidence, violations, time.monotonic() - began), **more, "samples": samples}
    keep_soak(one)
    print("\n".join(violations) or "clean")
    return report.draw(one) or int(bool(violations))


def _loaded(samples: Sequence[Sample], began: float, length: float) -> list[Sample]:
    """The samples of the time under load, by seconds since its beginning."""
    return [{**sample, "at": round(sample["at"] - began, 1)} for sample in samples if sample["at"] <= began + length]


def _strikes(evidence: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """The faults, and from when to when they were at work."""
    began = evidence["began_at"]
    return [
        (strike["fault"], round(strike["at"] - began, 1), round((strike["until"] or strike["at"]) - began, 1))
        for strike in evidence["strikes"]
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
