"""`python -m benchmarks.report`: make docs/performance.md, its data and its plot of what `make bench` has measured.

The words are here, every figure comes from benchmarks/results.json, which is kept beside the plot so that the page can
be made again from what is in the repository.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence

import orjson

from benchmarks.__main__ import NAMES, RESULTS
from benchmarks.processes import BENCH_PYTHON, HERE, PEERS
from benchmarks.results import Result, Section, load

DOCS = HERE.parent / "docs"
PAGE = DOCS / "performance.md"
DATA = DOCS / "figures" / "performance.json"
PLOT = DOCS / "figures" / "scale.svg"

_HEAD = """\
# Performance

<!-- Made by `make bench-report` of what `make bench` measured; edit benchmarks/report.py instead. -->

What foreman costs, measured side by side with what it is compared with, in one run on one machine over loopback; the
target is a stub that is never the bottleneck (`benchmarks/stub.c`), or FakeOllama where load times matter. Absolute
figures are of that machine and that day; what holds elsewhere are the ratios. A model's first token takes hundreds of
milliseconds on any machine: nearly all that stands here is small beside it.

`make bench` measures anew (`make bench BENCH="--quick scale"` one part, roughly), `make bench-report` makes this page.
"""

_MISSED = """\
## What is missed, and the next levers

The absolute targets are of another machine, and this one was shared; compare what is held against a peer of the same
run.

- A queued call: profiles (py-spy, 32 clients) are flat. What leads is the kernel (epoll, send), then Twisted's HTTP
  server, then the two trips to the database's thread and back, which are the price of a row that is committed before
  the call goes on. The next levers: fewer waits between web, store and worker for a call that finds foreman idle, and
  a writer's thread of our own in place of adbapi's pool, which is about half of such a trip (ADR 17 says why not yet).
- A piece of a stream: two thirds are the system calls themselves, most of the rest Twisted's reactor; parsing is a
  thousandth (ADR 18). nginx does the same in C. The next lever would be a reactor on uvloop or io_uring: none of
  those is faster for Twisted today.
- A line of a batch: half is reading and checking it in Python, half the rows and their indexes, which a bare insert of
  the same rows has as well.
"""

_SCALE = """\
## A long queue

How much each operation costs while that many jobs wait, median of one client's calls, in milliseconds.

![Cost of each operation by the number of queued jobs](figures/scale.svg)
"""


_PEERS = """\
## Beside others

What each adds to the same small chats, in the runs above. Only foreman stores anything: a row for each call, committed
before the call goes on. LiteLLM translates between OpenAI's wire and Ollama's besides.
"""

_COMPARED = {
    "first byte, added (ms)": ("first byte, added by {}, p50",),
    "a chunk, added (µs)": ("a chunk of one stream, added by {}, p50",),
    "a chunk of 50 streams, processor (µs)": ("a chunk of 50 streams, processor time of {}",),
    "calls a second, 32 clients": ("the same calls with {}, 32 clients", "jobs through the worker, 32 clients"),
    "a call, processor (µs)": ("processor time of a call with {}",),
}
"""The columns of the comparison, and the names of their figures; the last of two is foreman's own."""


def page(sections: Sequence[Section]) -> str:
    """The text of docs/performance.md."""
    known = {section.benchmark: section for section in sections}
    ordered = [known[name] for name in NAMES if name in known]
    parts: list[str] = [_HEAD, *_provenance(ordered), *_targets(ordered), _MISSED]
    if "scale" in known:
        parts += [_SCALE, _curves(known["scale"])]
    parts += [_PEERS, _compared(ordered), "## All figures\n"]
    for section in ordered:
        parts.extend(_section(section))
    return "\n".join(parts)


def curves(section: Section) -> dict[str, dict[int, float]]:
    """Of each operation in milliseconds: the figure by the number of queued jobs; medians only."""
    found: dict[str, dict[int, float]] = {}
    for result in section.results:
        if result.jobs is not None and result.unit == "ms" and not result.name.endswith("p99"):
            found.setdefault(result.name, {})[result.jobs] = result.value
    return found


# -- the parts -------------------------------------------------------------------------------------------------------


def _provenance(sections: Sequence[Section]) -> Iterator[str]:
    """Machine, commit and day, once for all benchmarks that share them."""
    yield "| Benchmarks | Commit | Day | Machine |\n|---|---|---|---|"
    runs: dict[tuple[str, str, str, bool], list[str]] = {}
    for section in sections:
        runs.setdefault((section.commit, section.at, section.machine, section.quick), []).append(section.benchmark)
    for (commit, at, machine, quick), names in runs.items():
        rough = " (`--quick`: few samples, rough)" if quick else ""
        yield f"| {', '.join(names)}{rough} | `{commit}` | {at} | {machine} |"
    yield ""
    if any(section.commit.endswith("+") for section in sections):
        yield "A `+` behind a commit: the tree held changes that were not committed.\n"
    for peer in sorted({peer for section in sections for peer in section.left_out}):
        lacking = ", ".join(section.benchmark for section in sections if peer in section.left_out)
        yield f"Left out of {lacking}, because it was not on the machine: {peer}.\n"


def _targets(sections: Sequence[Section]) -> Iterator[str]:
    held = [result for section in sections for result in section.results if result.target is not None]
    missed = sum(result.met is False for result in held)
    yield f"## Targets\n\n{len(held) - missed} met, {missed} missed.\n"
    yield "| | measured | target | |\n|---|--:|--:|---|"
    for result in held:
        yield f"| {_name(result)} | {_value(result)} | {result.target} | {'met' if result.met else '**missed**'} |"
    yield ""


def _curves(section: Section) -> str:
    found = curves(section)
    sizes = sorted({size for curve in found.values() for size in curve})
    lines = [
        "| | " + " | ".join(f"{size:,}" for size in sizes) + " |",
        "|---|" + "--:|" * len(sizes),
        *(
            f"| {name} | " + " | ".join(f"{curve[size]:g}" if size in curve else "" for size in sizes) + " |"
            for name, curve in found.items()
        ),
    ]
    return "\n".join([*lines, ""])


def _compared(sections: Sequence[Section]) -> str:
    figures = {result.name: f"{result.value:g}" for section in sections for result in section.results}
    lines = ["| | " + " | ".join(_COMPARED) + " |", "|---|" + "--:|" * len(_COMPARED)]
    for peer in ("foreman", *PEERS):
        cells = [figures.get(names[-1 if peer == "foreman" else 0].format(peer), "") for names in _COMPARED.values()]
        if any(cells):
            lines.append(f"| {peer} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _section(section: Section) -> Iterator[str]:
    yield f"### {section.benchmark}\n\n{_explained(section.benchmark)}\n"
    yield "| | measured | target |\n|---|--:|--:|"
    for result in section.results:
        yield f"| {_name(result)} | {_value(result)} | {result.target or ''} |"
    yield ""


def _explained(benchmark: str) -> str:
    """What the benchmark's module says of itself."""
    return ast.get_docstring(ast.parse((HERE / f"{benchmark}.py").read_text())) or ""


def _name(result: Result) -> str:
    return result.name if result.jobs is None else f"{result.name}, {result.jobs:,} queued"


def _value(result: Result) -> str:
    return f"{result.value:,.0f} {result.unit}" if result.value >= 10_000 else f"{result.value:g} {result.unit}".strip()


# -- writing ---------------------------------------------------------------------------------------------------------


def main() -> int:
    """Write the page, its data and its plot; 1 if nothing was measured or there is nothing to draw with."""
    sections = load(RESULTS)
    if not sections:
        sys.stderr.write("there are no results; run `make bench` first\n")
        return 1
    DATA.parent.mkdir(exist_ok=True)
    DATA.write_bytes(RESULTS.read_bytes())
    PAGE.write_text(page(sections))
    known = {section.benchmark: section for section in sections}
    if "scale" not in known:
        return 0
    if not BENCH_PYTHON.exists():
        sys.stderr.write("there is nothing to draw with: `make bench-report` installs it\n")
        return 1
    drawn = orjson.dumps(curves(known["scale"]), option=orjson.OPT_NON_STR_KEYS)
    return subprocess.run([BENCH_PYTHON, HERE / "plot.py", PLOT], input=drawn, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
