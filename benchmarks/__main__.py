"""`python -m benchmarks [--quick] [name …]`: run the benchmarks, or those that are named."""

from __future__ import annotations

import argparse
import importlib
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.processes import Bench, Missing
from benchmarks.results import Result, save, table

NAMES = (
    "first_byte",
    "chunks",
    "throughput",
    "gap",
    "accepts",
    "jobs",
    "choosing",
    "start",
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

    results: list[Result] = []
    broken = False
    with tempfile.TemporaryDirectory(prefix="foreman-bench-") as folder:
        for name in options.names or NAMES:
            print(f"{name} …", flush=True)
            own = Path(folder) / name
            own.mkdir()
            started = time.monotonic()
            module: Any = importlib.import_module(f"benchmarks.{name}")
            try:
                taken: list[Result] = module.measure(Bench(own, options.quick))
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
            results += taken
    print("\n" + table(results))
    save(results, RESULTS)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
