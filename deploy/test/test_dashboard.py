"""The dashboard: whether Grafana knows all that is in it, whether it can be read, and whether Prometheus can answer it.

That each figure in it exists, and that a real Prometheus has answers, is in `test_prometheus.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml
from watched import DASHBOARD, expressions, panels

Run = Callable[..., str]

THROUGH_GRAFANAS_TYPES = """
import json, sys
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard
register_default_plugins()
dashboard = Dashboard.from_json(json.load(open(sys.argv[1])))
known = [value for name, value in vars(units).items() if name[0].isupper()]
print(JSONEncoder().encode({"dashboard": dashboard, "units": known}))
"""
"""Reads a dashboard into the types that Grafana Labs makes of Grafana's own, and writes what has come in."""


def lost(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Where something of ours is not in theirs."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            if key in theirs:
                yield from lost(value, theirs[key], f"{path}/{key}")
            else:
                yield f"{path}/{key}"
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from lost(one, other, f"{path}/{place}")
    elif ours != theirs:
        yield f"{path}: {ours!r} has become {theirs!r}"


def units(value: Any) -> Iterator[str]:
    """All units that a panel names, overrides included."""
    if isinstance(value, dict):
        if value.get("id") == "unit":
            yield value["value"]
        elif isinstance(value.get("unit"), str):
            yield value["unit"]
        for each in value.values():
            yield from units(each)
    elif isinstance(value, list):
        for each in value:
            yield from units(each)


def test_grafana_knows_all_that_is_in_it(run: Run) -> None:
    """No option is misspelt, at the wrong place, or of another Grafana: Grafana would pass over it in silence."""
    known = json.loads(run("python", "-c", THROUGH_GRAFANAS_TYPES, DASHBOARD))
    ours = json.loads(DASHBOARD.read_text())
    assert list(lost(ours, known["dashboard"])) == []
    assert set(units(ours)) <= set(known["units"])


def test_it_can_be_imported_anywhere() -> None:
    """It names no Prometheus and no foreman of ours: both are chosen on the page, and nothing else is to fill in."""
    ours = json.loads(DASHBOARD.read_text())
    assert "__inputs" not in ours
    assert "id" not in ours
    assert [(one["name"], one["type"]) for one in ours["templating"]["list"]] == [
        ("datasource", "datasource"),
        ("foreman", "query"),
    ]
    for panel in panels():
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            assert target["expr"].count("foreman_") == target["expr"].count('{instance="$foreman"'), target["expr"]


def test_it_can_be_read() -> None:
    """Each panel has a place of its own, a title, and words that say what is seen."""
    places = [(panel["title"], panel["gridPos"]) for panel in panels()]
    assert len({panel["id"] for panel in panels()}) == len(places)
    for panel in panels():
        assert panel["title"]
        assert panel["description"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
    for title, at in places:
        assert at["x"] + at["w"] <= 24, title
    for (one, a), (other, b) in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        below = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or below, f"{one} lies over {other}"


def test_prometheus_can_read_the_queries(run: Run, tmp_path: Path) -> None:
    """Each query is one that Prometheus understands."""
    asked = expressions("192.0.2.1:8080", rate_interval="1m", range_="21600s")
    rules = [{"record": f"panel:{number}", "expr": query} for number, (_, _, query) in enumerate(asked)]
    assert "$" not in str(rules)
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run("promtool", "check", "rules", file)
