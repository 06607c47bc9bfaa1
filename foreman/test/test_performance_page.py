"""docs/performance.md and its plot: made by `python -m benchmarks.report`, of figures only."""

from __future__ import annotations

from pathlib import Path

from attrs import evolve

from benchmarks import report
from benchmarks.results import Section, at_most, load, save, told


def test_the_page_is_made_of_its_figures() -> None:
    """The page says what was measured, and nothing that somebody typed into it."""
    sections = load(report.DATA)
    assert {"scale", "first_byte"} <= {section.benchmark for section in sections}
    assert report.PAGE.read_text() == report.page(sections)
    assert report.PLOT.read_text().count("<path") > 20


SECTION = Section(
    benchmark="scale",
    commit="abc+",
    machine="a machine",
    at="2026-11-21",
    quick=True,
    results=(
        at_most("restart", 1200, "ms", 1000, jobs=10),
        at_most("restart", 800, "ms", 1000, jobs=100),
        told("restart, p99", 900, "ms", jobs=100),
        told("memory", 64, "MiB", jobs=10),
    ),
    left_out=("nginx",),
)


def test_what_was_missed_and_left_out_is_said() -> None:
    """A reader sees which targets were missed, what the figures were taken on, and what was not there."""
    page = report.page([SECTION])
    assert "1 met, 1 missed" in page
    assert "| restart, 10 queued | 1200 ms | <= 1000 | **missed** |" in page
    assert "| restart | 1200 | 800 |" in page
    assert "scale (`--quick`: few samples, rough) | `abc+` | 2026-11-21 | a machine |" in page
    assert "Left out of scale, because it was not on the machine: nginx." in page
    assert report.curves(SECTION) == {"restart": {10: 1200, 100: 800}}


def test_a_run_of_some_benchmarks_keeps_the_others(tmp_path: Path) -> None:
    """Measuring one anew takes nothing away from the file; what is read is what was written."""
    path = tmp_path / "results.json"
    other = evolve(SECTION, benchmark="gap", results=())
    save([SECTION, other], path)
    again = evolve(SECTION, quick=False)
    save([again], path)
    assert load(path) == [other, again]
