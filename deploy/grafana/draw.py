"""Draws the dashboard's queries as Prometheus answered them, in the dashboard's own layout.  No screenshot of Grafana.

Usage: draw.py FILE.png, in an environment that has matplotlib; on stdin JSON: {panels: the dashboard's, answers:
[{panel: its id, legend, result: Prometheus' range of that query}, …]}.
"""

# mypy: ignore-errors
# It lives in an environment of its own.
from __future__ import annotations

import json
import re
import sys

import matplotlib as mpl

mpl.use("agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter

CAPTION = (
    "The queries of deploy/grafana/foreman.json, answered by Prometheus, drawn by matplotlib: not a screenshot of "
    "Grafana. Real foreman, FakeOllama behind it."
)
COLOURS = {"green": "#3a9e4d", "yellow": "#e0b400", "red": "#d0333f", "blue": "#3b78d8", "text": "#222222"}


def shown(value, unit):
    """A value as a person reads it."""
    if unit == "s":
        for size, name in ((3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return "0 s" if value == 0 else f"{value * 1e6:.3g} µs"
    if unit == "bytes":
        return f"{value / 2**20:.3g} MiB"
    if unit == "percentunit":
        return f"{value:.1%}"
    return f"{value:.3g}"


def named(legend, labels):
    """A series' name in the legend."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend)


def points(series, start):
    """Minutes and values; what is no number is a gap."""
    return [(float(at) - start) / 60 for at, _ in series["values"]], [float(value) for _, value in series["values"]]


def mapped(panel):
    """Texts and colours by value, of a panel that has such."""
    mappings = panel["fieldConfig"]["defaults"].get("mappings", [])
    return {float(value): (to["text"], to["color"]) for each in mappings for value, to in each["options"].items()}


def draw_stat(axes, panel, answers, _):
    """The last value, large."""
    axes.set_axis_off()
    defaults = panel["fieldConfig"]["defaults"]
    value = float(answers[0]["result"][0]["values"][-1][1])
    rounded = round(value, defaults.get("decimals"))
    steps = [step for step in defaults["thresholds"]["steps"] if step["value"] is None or value >= step["value"]]
    text, colour = mapped(panel).get(value, (shown(rounded, defaults.get("unit")), steps[-1]["color"]))
    axes.text(0.5, 0.4, text, ha="center", va="center", fontsize=22, color=COLOURS[colour], transform=axes.transAxes)


def draw_timeline(axes, panel, answers, start):
    """A band for each query, coloured by the state it was in."""
    states = mapped(panel)
    for row, answer in enumerate(reversed(answers)):
        minutes, values = points(answer["result"][0], start)
        begin = 0
        for at in range(1, len(values) + 1):
            if at == len(values) or values[at] != values[begin]:
                text, colour = states[values[begin]]
                until = minutes[min(at, len(minutes) - 1)]
                length = until - minutes[begin]
                axes.barh(row, length, left=minutes[begin], height=0.75, color=COLOURS[colour], alpha=0.75)
                if length > minutes[-1] / 25:
                    axes.text((until + minutes[begin]) / 2, row, text, ha="center", va="center", fontsize=8)
                begin = at
    axes.set_yticks(range(len(answers)), [answer["legend"] for answer in reversed(answers)])


def draw_series(axes, panel, answers, start):
    """Lines, or areas on top of each other."""
    defaults = panel["fieldConfig"]["defaults"]
    overrides = {
        each["matcher"]["options"]: {one["id"]: one["value"] for one in each["properties"]}
        for each in panel["fieldConfig"]["overrides"]
    }
    lines = {
        named(answer["legend"], series["metric"]): points(series, start)
        for answer in answers
        for series in answer["result"]
    }
    fixed = {name: COLOURS[more["color"]["fixedColor"]] for name, more in overrides.items() if "color" in more}
    cycle = iter(plt.get_cmap("tab10").colors)
    colours = {name: fixed.get(name) or next(cycle) for name in lines}
    units = {axes: defaults.get("unit")}
    if "stacking" in defaults["custom"]:
        minutes = sorted({minute for line, _ in lines.values() for minute in line})
        heights = [[dict(zip(*line, strict=True)).get(minute, 0) for minute in minutes] for line in lines.values()]
        axes.stackplot(minutes, heights, labels=list(lines), colors=list(colours.values()), alpha=0.5)
    else:
        right = None
        for name, (minutes, values) in lines.items():
            if overrides.get(name, {}).get("custom.axisPlacement") == "right":
                right = axes.twinx()
                units[right] = overrides[name]["unit"]
                right.set_ylim(0, overrides[name].get("max"))
            (right or axes).plot(minutes, values, label=name, color=colours[name], linewidth=1.2)
    if "scaleDistribution" in defaults["custom"]:
        axes.set_yscale("log")
    elif "min" in defaults:
        axes.set_ylim(defaults["min"], 1.2 * axes.get_ylim()[1])
    for side, unit in units.items():
        side.yaxis.set_major_formatter(FuncFormatter(lambda value, _, unit=unit: shown(value, unit)))
        side.tick_params(labelsize=7)
    handles = [handle for side in units for handle in side.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, fontsize=7, loc="upper left", ncols=2, framealpha=0.6)
    axes.grid(visible=True, alpha=0.3)


DRAWN = {"stat": draw_stat, "state-timeline": draw_timeline, "timeseries": draw_series}

if __name__ == "__main__":
    given = json.load(sys.stdin)
    times = [float(at) for answer in given["answers"] for series in answer["result"] for at, _ in series["values"]]
    figure = plt.figure(figsize=(16, 14))
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in given["panels"])
    grid = figure.add_gridspec(bottom * 10, 240, left=0.035, right=0.985, top=0.985, bottom=0.03)
    for panel in given["panels"]:
        at = panel["gridPos"]
        place = grid[at["y"] * 10 + 8 : (at["y"] + at["h"]) * 10 - 9, at["x"] * 10 + 4 : (at["x"] + at["w"]) * 10 - 6]
        axes = figure.add_subplot(place)
        axes.set_title(panel["title"], fontsize=9, loc="left", fontweight="bold")
        if panel["type"] != "stat":
            axes.set_xlim(0, (max(times) - min(times)) / 60)
            axes.tick_params(labelsize=7)
        answers = [answer for answer in given["answers"] if answer["panel"] == panel["id"]]
        DRAWN[panel["type"]](axes, panel, answers, min(times))
    figure.text(0.5, 0.008, f"{CAPTION} Minutes from left to right.", ha="center", fontsize=9, style="italic")
    figure.savefig(sys.argv[1], dpi=100, metadata={"Software": None})
