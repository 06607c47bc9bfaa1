"""`python -m chaos.clocked FILE …`: `twistd …` whose wall clock is off by the seconds that stand in FILE, now.

Only the wall clock: the monotonic one never jumps.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

WIDTH = 20
"""Characters of the file, blanks included."""


def write(path: Path, seconds: float) -> None:
    """Put the clock off by so many seconds from now on."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.pwrite(file, f"{seconds:<{WIDTH}}".encode(), 0)  # in place: whoever reads finds the old or the new
    os.close(file)


def run(path: str) -> None:
    """Be twistd, with that clock."""
    file = os.open(path, os.O_RDONLY)  # open for good: there may be no descriptor left later
    clock, clock_ns = time.time, time.time_ns

    def seconds() -> float:
        return float(os.pread(file, WIDTH, 0))

    time.time = lambda: clock() + seconds()
    time.time_ns = lambda: clock_ns() + int(seconds() * 10**9)

    from twisted.scripts import twistd  # noqa: PLC0415 - whoever keeps `time.time` for itself is to keep this one

    sys.argv[0] = "twistd"
    twistd.run()


if __name__ == "__main__":
    run(sys.argv.pop(1))
