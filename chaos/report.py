"""docs/reliability.md and its figure, made of the rounds and the soak that are kept, and of the rules they met."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from chaos.flat import LEAST, SERIES, WARM_UP, stretches
from chaos.rules import RULES
from chaos.summary import COLUMNS, Summary, faults_table, kept, kept_soak, totals

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
FIGURE = ROOT / "docs" / "figures" / "soak-series.png"
PLOT_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
"""The interpreter of an environment with matplotlib; `make soak` and `make chaos-report` set it up."""
SEEDS = Path(__file__).with_name("seeds.txt")

TEXT = """# Reliability: what foreman goes through

This page is made by `python -m chaos --report` from the rounds that `make chaos` has run, and the last `make soak`.

A round is the real daemon and FakeOllama as processes, some hundreds of clients, webhook receivers, and faults; which
and when is decided by a seed. Clients of Ollama's, OpenAI's and Anthropic's routes stream, wait, embed, submit jobs and
batches, repeat idempotency keys, cancel, delete, have ends told again, read slowly, half-close, and leave at every
stage. Then the faults stop, everything has to come to its end within {drain:g} s, and a checker that knows nothing of
foreman's code compares what the clients, the target, the receivers and the database have seen.

## In all

| | |
|---|---:|
{counts}

{verdict}

Jobs that failed did so with a code of the contract's:

| | |
|---|---:|
{failed}

## Faults

What became of the exchanges that ended during a fault or within three seconds after it. Whoever was *told no* got a
status with a reason, mostly `503` with `Retry-After`; *cut* and *refused* are connections to a process that is dying or
dead, or what was left of an answer that the target broke off; *left* went by themselves. For each of them the checks
below hold.

| Fault | {columns} |
|---|{rules}|
{faults}

{soak}## What is checked

{checks}

## What it has found

{found}
"""


SOAKED = """## A long time on one database

The last `make soak` ran for {minutes} minutes under load: {rate:.1f} clients a second, {strikes} faults in stretches
with peace between them, {starts} processes of foreman one after the other, and jobs kept for {ttl:g} s, so that pruning
never rests: of {jobs:,} jobs {left:,} were left in the end. What the database said of a job before it was pruned is
remembered, and the checks below hold for all of them: {verdict}.{note}

![What the process held over time](figures/{figure})

Faults are red; each process has a line of its own.

Nothing may grow. After a warm-up of {warm_up:g} s the median of the last quarter of a series is held against that of
its second quarter; memory and the database's log in each process by itself that lived for {least:g} s after it. *Log*
is SQLite's write-ahead log, *queue* the jobs that are not over, *jobs* all that are in the database.

| Series | Process | Time judged, s | Second quarter | Last quarter | Allowed | |
|---|---:|---:|---:|---:|---:|---|
{series}

"""


def write(drain: float) -> int:
    """Write the page and draw its figure; 1 if there are no rounds to tell of, or nothing to draw with."""
    rounds, soak = kept(), kept_soak()
    if not rounds:
        sys.stderr.write("there are no rounds; run `make chaos` first\n")
        return 1
    PAGE.write_text(page(rounds, drain, soak))
    return 0 if soak is None else draw(soak)


def draw(soak: Summary) -> int:
    """Draw the figure of a soak; 1 if there is nothing to draw with."""
    if not PLOT_PYTHON.exists():
        sys.stderr.write("there is nothing to draw with: `make soak` and `make chaos-report` install it\n")
        return 1
    command = [PLOT_PYTHON, Path(__file__).with_name("plot.py"), FIGURE]
    return subprocess.run(command, input=json.dumps(drawn(soak)).encode(), check=False).returncode


def drawn(soak: Summary) -> dict[str, object]:
    """What `plot.py` draws."""
    return {
        "panels": {
            f"{name}, {series.unit}".removesuffix(", "): [
                (sample["at"], sample[name], sample["life"]) for sample in soak["samples"]
            ]
            for name, series in SERIES.items()
        },
        "strikes": [(since, until) for _, since, until in soak["strikes"]],
    }


def soaked(soak: Summary) -> str:
    """The section of the last soak."""
    counts, found = soak["counts"], soak["violations"]
    jobs = counts["calls whose client waits"] + counts["async jobs"]
    return SOAKED.format(
        minutes=round(soak["length"] / 60),
        rate=soak["rate"],
        strikes=len(soak["strikes"]),
        starts=counts["starts of foreman"],
        ttl=soak["ttl"],
        jobs=jobs,
        left=soak["samples"][-1]["jobs"],
        verdict=f"**{len(found)} violations**" if found else "**no violation**",
        note=soak.get("note", ""),
        figure=FIGURE.name,
        warm_up=WARM_UP,
        least=LEAST,
        series=_table(
            (
                f"{one.name}, {SERIES[one.name].unit}".removesuffix(", "),
                f"{one.life or 'all'}",
                f"{one.seconds:.0f}",
                f"{one.second:g}",
                f"{one.last:g}",
                f"{SERIES[one.name].bound(one.second):.4g}",
                "flat" if one.flat else "**grows**",
            )
            for one in stretches(soak["samples"])
        ),
    )


def page(rounds: Sequence[Summary], drain: float, soak: Summary | None) -> str:
    """The page as Markdown."""
    violations = [violation for one in rounds for violation in one["violations"]]
    counts = {"rounds": len(rounds), **totals(rounds, "counts")}
    return TEXT.format(
        drain=drain,
        counts=_table((name, f"{count:,}") for name, count in counts.items()),
        verdict=f"**{len(violations)} violations.**" if violations else "**No violation.**",
        failed=_table((f"`{code}`", f"{count:,}") for code, count in sorted(totals(rounds, "failed").items())),
        columns=" | ".join(column.capitalize() for column in COLUMNS),
        rules="|".join("---:" for _ in COLUMNS),
        faults=_table(faults_table(rounds)),
        soak="" if soak is None else soaked(soak),
        checks="\n".join(f"- {_first_line(rule.__doc__ or '')}" for rule in RULES),
        found="\n".join(
            "- Seed " + line.replace(" ", ": ", 1)
            for line in SEEDS.read_text().splitlines()
            if not line.startswith("#")
        ),
    )


def _table(rows: object) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)  # type: ignore[attr-defined]


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
