"""`python -m chaos`: rounds of load and faults, each judged; exits with 1 when one of them violates the contract."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from attrs import asdict

from chaos import rounds
from chaos.checker import check
from chaos.evidence import keep_evidence
from chaos.faults import LANES
from chaos.plan import Plan, plan
from chaos.report import PAGE, write
from chaos.summary import COLUMNS, RESULTS, Summary, faults_table, keep, summary, totals

SHOWN = 20
"""Violations of a round that are printed; `--keep` has them all."""


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of the first round; the next ones count on from it")
    parser.add_argument("--rounds", type=int, default=None, help="how many")
    parser.add_argument("--seconds", type=float, default=300.0, help="begin no round after so many, without --rounds")
    parser.add_argument("--length", type=float, default=20.0, help="seconds of load and faults in a round")
    parser.add_argument("--rate", type=float, default=15.0, help="calls a second")
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between two faults of one lane")
    parser.add_argument("--faults", type=_faults, default=None, help="only these, separated by commas; `none` for none")
    parser.add_argument("--keep", type=Path, default=None, help="a folder for the plan and the evidence of each round")
    parser.add_argument("--record", action="store_true", help=f"add the figures to {RESULTS.name}")
    parser.add_argument("--plan", action="store_true", help="only print what the rounds would do")
    parser.add_argument("--report", action="store_true", help=f"only write docs/{PAGE.name} of what is kept")
    return parser.parse_args(argv)


def _faults(names: str) -> frozenset[str]:
    wanted = frozenset() if names == "none" else frozenset(names.split(","))
    known = {fault for faults in LANES.values() for fault in faults}
    if unknown := wanted - known:
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
    return wanted


def main(argv: Sequence[str]) -> int:
    """Do what the command line asks for; the exit status."""
    options = _options(argv)
    if options.report:
        return write(rounds.DRAIN)
    seed = int(time.time()) % 1_000_000 if options.seed is None else options.seed
    if options.plan:
        for number in range(options.rounds or 1):
            _print_plan(_planned(seed + number, options))
        return 0
    # An end by signal takes the children along.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    done: list[Summary] = []
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    while len(done) < options.rounds if options.rounds is not None else time.monotonic() - began < options.seconds:
        done.append(_round(_planned(seed + len(done), options), options.keep))
        if options.record:
            keep(done[-1:])
    _print_table(done)
    failed = [one["seed"] for one in done if one["violations"]]
    if failed:
        print(f"\nVIOLATIONS in the rounds of these seeds: {', '.join(map(str, failed))}")
    return int(bool(failed))


def _planned(seed: int, options: argparse.Namespace) -> Plan:
    lanes = {
        lane: {name: lasts for name, lasts in faults.items() if options.faults is None or name in options.faults}
        for lane, faults in LANES.items()
    }
    return plan(seed, seconds=options.length, calls_per_second=options.rate, pause=options.pause, lanes=lanes)


def _round(planned: Plan, keep_in: Path | None) -> Summary:
    """Run and judge a round."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="foreman-chaos-") as folder:
        evidence = asyncio.run(rounds.run(planned, Path(folder)))
    violations = check(evidence)
    one = summary(planned, evidence, violations, time.monotonic() - began)
    counts = one["counts"]
    print(
        f"round {planned.seed}: {counts['exchanges']} exchanges, {len(evidence['database']['jobs'])} jobs, "
        f"{len(evidence['strikes'])} faults, {counts['kills of foreman']} kills, {one['seconds']} s: "
        + (f"{len(violations)} VIOLATIONS" if violations else "clean"),
        flush=True,
    )
    if keep_in is not None:
        keep_evidence(keep_in / str(planned.seed), planned, evidence, violations)
    if violations:
        for strike in evidence["strikes"]:
            print(f"  {strike['at'] - evidence['began_at']:6.2f} s {strike['fault']} {strike.get('note') or ''}")
        for violation in violations[:SHOWN]:
            print(f"  {violation[:2000]}", flush=True)
    return one


def _print_plan(planned: Plan) -> None:
    print(f"round {planned.seed}")
    for thing in (*map(asdict, planned.calls), *map(asdict, chain(*planned.stretches))):
        print(json.dumps(thing))


def _print_table(done: Sequence[Summary]) -> None:
    rows = [("", *COLUMNS), *faults_table(done)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print()
    for name, *counts in rows:
        cells = [count.rjust(width) for count, width in zip(counts, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *cells]))
    for name, count in totals(done, "counts").items():
        print(f"{count:>8} {name}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
