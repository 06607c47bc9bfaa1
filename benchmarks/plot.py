"""The plot of docs/performance.md: what each operation costs by the number of queued jobs, both on logarithmic scales.

Usage: plot.py FILE.svg, in an environment that has matplotlib; the curves come as JSON on stdin:
{name: {jobs: milliseconds}}.
"""

# mypy: ignore-errors
# It lives in an environment of its own.
from __future__ import annotations

import json
import sys

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "foreman"  # equal figures make equal files

from matplotlib import pyplot as plt  # noqa: E402 - it chooses how to draw when it is imported

MARKERS = "osv^D<>PX*hpd8"

if __name__ == "__main__":
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for index, (name, curve) in enumerate(json.load(sys.stdin).items()):
        points = sorted((int(jobs), value) for jobs, value in curve.items())
        axes.plot(
            *zip(*points, strict=True),
            color=plt.get_cmap("tab20").colors[index % 20],
            marker=MARKERS[index % len(MARKERS)],
            label=name,
        )
    axes.set(xscale="log", yscale="log", xlabel="queued jobs", ylabel="milliseconds")
    axes.grid(visible=True, which="major", alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(sys.argv[1], metadata={"Date": None})
