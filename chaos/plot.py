"""The figure of a soak: what foreman's process held over time, a panel for each series, with faults and restarts.

Usage: plot.py FILE.png, in an environment that has matplotlib; the samples come as JSON on stdin:
{panels: {label: [[seconds, value, life], …]}, strikes: [[from, to], …]}.
"""

# mypy: ignore-errors
# It lives in an environment of its own.
from __future__ import annotations

import json
import sys
from itertools import groupby

import matplotlib as mpl

mpl.use("agg")

from matplotlib import pyplot as plt

if __name__ == "__main__":
    drawn = json.load(sys.stdin)
    panels = drawn["panels"]
    rows = (len(panels) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(10, 1.9 * rows), sharex=True, layout="constrained")
    for panel in axes.flat[len(panels) :]:
        panel.set_axis_off()
    for panel, (label, points) in zip(axes.flat, panels.items(), strict=False):
        for since, until in drawn["strikes"]:
            panel.axvspan(since / 60, max(until, since + 1) / 60, color="tab:red", alpha=0.15, linewidth=0)
        for _, life in groupby(points, lambda point: point[2]):
            seconds, values, _ = zip(*life, strict=True)
            panel.plot([second / 60 for second in seconds], values, color="tab:blue", linewidth=1)
        panel.set_title(label, fontsize=9, loc="left")
        panel.set_ylim(bottom=0)
        panel.grid(visible=True, alpha=0.3)
    for panel in axes.flat[len(panels) - 2 : len(panels)]:
        panel.set_xlabel("minutes")
        panel.tick_params(labelbottom=True)
    figure.savefig(sys.argv[1], dpi=110, metadata={"Software": None})
