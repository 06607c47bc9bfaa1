"""The scrape example and the alert rules: what promtool says of them, and a real Prometheus that uses them."""

# mypy: disallow-untyped-decorators=False
# Those of pytest-twisted.
from __future__ import annotations

import math
import re
import shutil
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import yaml
from conftest import kept_port
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import Deferred
from watched import CREDENTIALS, EXAMPLE, RULES, Watched, expressions, panels, until, watched

from foreman.test.harness import chat

TESTS = RULES.with_name("rules.test.yml")
THEIRS = {"instance", "job", "target", "alertname"}
"""Labels that are Prometheus' own, or the example's."""

Run = Callable[..., str]


def alerts() -> list[dict[str, Any]]:
    """The alert rules."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine comes to, waited for here."""
    return pytest_twisted.blockon(Deferred.fromCoroutine(coroutine))


# -- the files --------------------------------------------------------------------------------------------------------


def test_prometheus_takes_the_rules(run: Run) -> None:
    """The rules can be copied into a Prometheus as they are."""
    run("promtool", "check", "rules", RULES)


def test_prometheus_takes_the_example(run: Run, tmp_path: Path) -> None:
    """The example works where it is put, with the rules and the token beside it; a forgotten token is told."""
    for file in (EXAMPLE, RULES):
        shutil.copy(file, tmp_path)
    config = tmp_path / EXAMPLE.name
    assert CREDENTIALS in run("promtool", "check", "config", config, fails=True)
    (tmp_path / CREDENTIALS).write_text("secret\n")
    run("promtool", "check", "config", config)


def test_each_alert_fires_when_it_should_and_only_then(run: Run) -> None:
    """Of each alert there is a case in which it fires, beside those in which it does not."""
    run("promtool", "test", "rules", TESTS.name, cwd=TESTS.parent)
    expected = {
        name
        for test in yaml.safe_load(TESTS.read_text())["tests"]
        for case in test["promql_expr_test"]
        for sample in case.get("exp_samples", [])
        for name in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    assert expected == {rule["alert"] for rule in alerts()}


def anchor(heading: str) -> str:
    """What a forge makes of a heading."""
    return re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule: dict[str, Any], root: Path) -> None:
    """Whoever is woken reads what is wrong, how bad it is, and finds the page that says what to do."""
    assert rule["labels"]["severity"] in ("critical", "warning")
    annotations = rule["annotations"]
    assert annotations["summary"]
    assert annotations["description"]
    page, _, place = annotations["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (root / page).read_text(), re.MULTILINE)
    assert place in map(anchor, headings)


# -- the real thing ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A watched foreman that has worked for two models, and whose target was killed before it got all done."""
    stack = AsyncExitStack()
    here = now(
        stack.enter_async_context(
            watched(tmp_path_factory.mktemp("watched"), "tiny-a,rate=300;tiny-b,rate=300", every="1s", hurry=True)
        )
    )
    try:
        now(history(here))
        stack.enter_context(kept_port(int(here.fake.url.rpartition(":")[2])))  # it comes back there
        yield here
    finally:
        now(stack.aclose())


async def history(here: Watched) -> None:
    """Jobs that are done, twice, since a rate takes two looks; and then one cancelled, and two that wait."""

    async def scraped(**labels: str) -> bool:
        series = [each["metric"] for each in await here.prometheus.query("foreman_output_seconds_total > 0")]
        return any(labels.items() <= each.items() for each in series)

    async def is_up() -> bool:
        return bool(await here.prometheus.query("up == 1"))

    await until(is_up, "Prometheus reaches foreman with the token")
    for _ in range(2):
        jobs = [await here.ask("POST", "/jobs", chat(model)) for model in ("tiny-a", "tiny-b")]
        for job in jobs:
            done = await here.ask("GET", f"/jobs/{job.document['job_id']}?wait=30")
            assert done.document["state"] == "done"
        await until(lambda: scraped(model="tiny-b:latest"), "the figures of tiny-b are in Prometheus")
    await here.fake.end(signal.SIGKILL)
    jobs = [await here.ask("POST", "/jobs", chat(model)) for model in ("tiny-a", "tiny-a", "tiny-b")]
    assert (await here.ask("POST", f"/jobs/{jobs[0].document['job_id']}/cancel")).head[0] == 200


def selectors(expression: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Each figure that an expression names, and what it wants of its labels: name, operator, value."""
    for name, braces in re.findall(r"\b(foreman_\w+)(?:\{([^}]*)\})?", expression):
        yield name, re.findall(r'(\w+)\s*(=~|=)\s*"([^"]*)"', braces)


@pytest_twisted.ensureDeferred
async def test_whatever_is_named_exists(here: Watched) -> None:
    """No alert and no panel asks for a figure or a label that foreman does not have: it would be silent for ever."""
    text = (await here.ask("GET", "/metrics")).body.decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    texts = {rule["alert"]: (rule["expr"], str(rule["annotations"])) for rule in alerts()}
    texts |= {
        f"{panel['title']} {target['refId']}": (target["expr"], target.get("legendFormat", ""))
        for panel in panels()
        for target in panel["targets"]
    }
    for where, (expression, words) in texts.items():
        known = set(THEIRS)
        for name, wanted in selectors(expression):
            labels = [sample.labels for sample in samples if sample.name == name]
            assert labels, f"{where}: {name}"
            known |= set().union(*labels)
            for label, operator, value in wanted:
                pattern = value if operator == "=~" else re.escape(value)
                if label not in THEIRS:
                    assert any(re.fullmatch(pattern, each.get(label, "")) for each in labels), (
                        f"{where}: {name} {label}"
                    )
        listed = re.findall(r"\b(?:by|without|ignoring|on) \(([^)]*)\)", expression)
        named = {label.strip() for list_ in listed for label in list_.split(",")}
        named |= set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", words))
        assert named <= known, where


@pytest_twisted.ensureDeferred
async def test_each_panel_shows_something(here: Watched) -> None:
    """The dashboard, as it stands, has an answer from Prometheus for all that it asks."""
    asked = {query for _, _, query in expressions(here.instance, rate_interval="10s", range_="1h")}

    unanswered: set[str] = set()

    async def all_answered() -> bool:
        answers = {query: await here.prometheus.query(query) for query in asked}
        unanswered.clear()
        unanswered.update(
            query for query, series in answers.items() if all(math.isnan(float(one["value"][1])) for one in series)
        )
        return not unanswered

    await until(all_answered, unanswered)


@pytest_twisted.ensureDeferred
async def test_a_model_that_has_not_run_has_no_speed(here: Watched) -> None:
    """The panel of speeds lists those that have one, not each model that the target has."""
    (panel,) = (one["id"] for one in panels() if one["title"] == "Speed, by model")
    asked = expressions(here.instance, rate_interval="10s", range_="1h")
    (query,) = (expression for number, _, expression in asked if number == panel)

    async def shown() -> bool:
        return {each["metric"]["model"] for each in await here.prometheus.query(query)} == {
            "tiny-a:latest",
            "tiny-b:latest",
        }

    await until(shown, "the two that have run, and no others")


@pytest_twisted.ensureDeferred
async def test_an_alert_comes_and_goes(here: Watched) -> None:
    """While work waits for a target that is gone, somebody is told where; when it is back and has done it, no more."""

    async def told() -> bool:
        firing = await here.prometheus.firing()
        return set(firing) == {"ForemanTargetDown"} and here.instance in firing["ForemanTargetDown"]["summary"]

    async def silent() -> bool:
        return not await here.prometheus.firing()

    await until(told, "ForemanTargetDown fires, with foreman's name, and nothing else")
    here.fake.command += ["--port", here.fake.url.rpartition(":")[2]]
    here.fake.start()
    await until(silent, "it is over")
