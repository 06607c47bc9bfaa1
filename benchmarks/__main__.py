"""`python -m benchmarks [--quick] [name …]`: run the benchmarks, or those that are named."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.processes import Bench, Missing
from benchmarks.results import Result, Section, save, table

NAMES = (
    "first_byte",
    "chunks",
    "throughput",
    "gap",
    "accepts",
    "jobs",
    "choosing",
    "start",
    "scale",
    "memory",
    "growth",
    "stalled",
    "leaving",
    "waking",
    "burst",
)

RESULTS = Path(__file__).with_name("results.json")


def main() -> int:
    """Run what was asked for; 1 if a benchmark could not be run to its end."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few samples: rough figures in less than two minutes")
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of: {', '.join(NAMES)}")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")

    # Thousands of connections, here and in the children.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # An end by signal takes the children along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    commit, machine = _commit(), _machine()
    sections: list[Section] = []
    broken = False
    with tempfile.TemporaryDirectory(prefix="foreman-bench-") as folder:
        for name in options.names or NAMES:
            print(f"{name} …", flush=True)
            own = Path(folder) / name
            own.mkdir()
            started = time.monotonic()
            module: Any = importlib.import_module(f"benchmarks.{name}")
            bench = Bench(own, options.quick)
            try:
                taken: list[Result] = module.measure(bench)
            except Missing as missing:
                print(f"  left out: there is no {missing}")
                continue
            except Exception:  # noqa: BLE001 (the others are still worth running)
                traceback.print_exc()
                broken = True
                continue
            finally:
                shutil.rmtree(own)
            print(table(taken))
            print(f"  ({time.monotonic() - started:.0f} s)", flush=True)
            sections.append(
                Section(
                    benchmark=name,
                    commit=commit,
                    machine=machine,
                    at=datetime.now(UTC).date().isoformat(),
                    quick=options.quick,
                    results=tuple(taken),
                    left_out=tuple(bench.left_out),
                )
            )
    print("\n" + table([result for section in sections for result in section.results]))
    save(sections, RESULTS)
    return int(broken)


def _commit() -> str:
    """The commit that is measured; `+` behind it when what git knows of was changed since."""
    if not (Path(__file__).parents[1] / ".git").exists():
        return "unknown"
    here = ["git", "-C", str(Path(__file__).parents[1])]
    name = subprocess.run([*here, "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True, text=True).stdout
    changed = subprocess.run([*here, "diff", "--quiet", "HEAD"], check=False).returncode != 0
    return name.strip() + "+" * changed


def _machine() -> str:
    cpu = platform.machine()
    if found := re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
        cpu = found[1]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    python = platform.python_version()
    return f"{os.cpu_count()} x {cpu}, {memory:.0f} GiB, {platform.system()}, Python {python}"


if __name__ == "__main__":
    sys.exit(main())
