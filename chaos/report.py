"""docs/reliability.md, made of the rounds that are kept and of the rules they were judged by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chaos.checker import RULES
from chaos.summary import COLUMNS, Summary, faults_table, totals

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
SEEDS = Path(__file__).with_name("seeds.txt")

TEXT = """# Reliability: what foreman goes through

This page is made by `python -m chaos --report` from the rounds that `make chaos` has run.

A round is the real daemon and FakeOllama as processes, some hundreds of clients, webhook receivers, and faults; which
and when is decided by a seed. Clients stream, wait, submit jobs and batches, repeat idempotency keys, cancel, delete,
read slowly, half-close, and leave at every stage. Then the faults stop, everything has to come to its end within
{drain:g} s, and a checker that knows nothing of foreman's code compares what the clients, the target, the receivers and
the database have seen.

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

## What is checked

{checks}

## What it has found

{found}
"""


def page(rounds: Sequence[Summary], drain: float) -> str:
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
