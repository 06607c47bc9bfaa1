"""The description of foreman's own routes: true to its source, its examples run, and nothing undescribed happens."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema_rs
import pytest
import pytest_twisted
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CHECKS
from schemathesis.core.result import Ok
from twisted.internet.threads import deferToThread

from foreman.test.harness import House, RawClient, chat, house

DOCS = Path(__file__).parents[2] / "docs"


def _load() -> ModuleType:
    """docs/reference.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _load()
SPECIFICATION = reference.specification()
OPERATIONS = [(method, path, operation) for method, path, operation in reference.operations(SPECIFICATION)]
NAMES = [operation["operationId"] for _, _, operation in OPERATIONS]


def validate(document: Any, schema: Any) -> None:
    """Hold a document against a schema of the specification."""
    jsonschema_rs.validator_for({**schema, "components": SPECIFICATION["components"]}).validate(document)


def test_the_page_is_made_from_its_source() -> None:
    """What people read is what the tests hold true: `make docs` has been run."""
    text = reference.PAGE.read_text()
    assert text == reference.page(text)


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=NAMES)
def test_examples_are_as_described(method: str, path: str, operation: Any) -> None:
    """Each example in the description has the form that the description demands."""
    for response in operation["responses"].values():
        for content in response.get("content", {}).values():
            if "example" in content:
                validate(content["example"], content["schema"])


async def _prepare(here: House, name: str) -> str:
    """Have a job of the kind that an operation's example is about."""
    if name in ("cancel", "resume"):
        await here.ask("POST", "/queue/pause", {"for": "1h"})
    body = {**chat("tiny-a"), "state_webhook_url": RECEIVER, "metadata": {"ticket": 7}}
    wait = {} if name == "cancel" else {"Prefer": "wait=20"}
    if name == "resume":
        return ""
    return str((await here.ask("POST", "/jobs", body, headers=wait)).document["job_id"])


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=NAMES)
@pytest_twisted.ensureDeferred
async def test_examples_run(method: str, path: str, operation: Any) -> None:
    """Each worked example, sent as it stands (with the id of a real job), is answered as it says."""
    example = reference.example(path, operation)
    name = operation["operationId"]
    async with house() as here:
        job_id = await _prepare(here, name)
        target = example.target.replace("01J8Z7N3V5X2Q4R6T8W0Y1A3C5", job_id)
        for number, (content_type, body) in enumerate(example.bodies.items()):
            headers = {
                key: f"{value}{number}" if key == "Idempotency-Key" else value for key, value in example.headers.items()
            }
            answer = await here.ask(
                method,
                target,
                body.encode(),
                headers={**headers, **({"Content-Type": content_type} if content_type else {})},
            )
            assert answer.head is not None
            assert answer.head[0] == example.status, answer.body
            _compare(answer, example.answer, operation["responses"][str(example.status)], first=number == 0)


def _compare(answer: RawClient, expected: str, response: Any, *, first: bool) -> None:
    """See that an answer is of its description, and has the fields of the example."""
    assert answer.head is not None
    if "content" not in response:
        assert answer.body == b""
        return
    content_type = answer.head[1]["content-type"].partition(";")[0]
    assert content_type in response["content"]
    if content_type == "application/json":
        validate(answer.document, response["content"][content_type]["schema"])
        if first:
            assert set(answer.document) == set(json.loads(expected))
    elif content_type == "application/x-ndjson":
        assert {"model", "message", "done"} <= set(json.loads(answer.body.splitlines()[-1])) & set(json.loads(expected))
    elif content_type == "text/plain" and expected.startswith("foreman_"):
        assert expected in answer.body.decode()


def test_every_route_is_described() -> None:
    """No route of foreman's own is forgotten in the description."""
    found = set()
    for module in ("jobs", "operate"):
        source = (DOCS.parent / "foreman" / "web" / f"{module}.py").read_text()
        for path, methods in re.findall(r'@app\.route\("([^"]+)", methods=\[([^\]]+)\]\)', source):
            found |= {(method, re.sub("<([a-z_]+)>", r"{\1}", path)) for method in re.findall("[A-Z]+", methods)}
    assert found == {(method, path) for method, path, _ in OPERATIONS}


# -- odd requests ------------------------------------------------------------------------------------------------------

EXAMPLES = 60
"""Odd requests to each route."""

CHECKED = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
]

"""What is looked at in every answer."""

CONDITIONS: tuple[dict[str, str], ...] = ({"Range": "bytes=0-1"}, {"Range": "bytes=99999-"}, {"If-None-Match": "*"}, {})
RECEIVER = "http://127.0.0.1:9/hook"
"""Nobody's, but a place where webhooks may go."""

MODELS = ("tiny-a", "tiny-z")
"""What is put into the requests about real jobs and models."""

LIKELY = {
    "Prefer": {"enum": ["wait=0.05", "respond-async", "wait=x", ""]},
    "wait": {"type": "number", "minimum": 0, "maximum": 0.05},
}
"""Parameters for which a test cannot wait, or that would seldom make sense."""


def _fuzzed() -> Any:
    """The specification as it is thrown at foreman."""
    document = json.loads(json.dumps(SPECIFICATION))
    for item in document["paths"].values():
        for operation in (item, *(item[method] for method in ("get", "post", "delete") if method in item)):
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = LIKELY.get(parameter["name"], parameter["schema"])
    return document


def _throw(operation: Any, url: str, jobs: Callable[[], str], seen: set[tuple[str, int]]) -> None:
    """Throw odd requests at one route, every other one about a real job; AssertionError for what is not described."""
    checks = CHECKS.get_by_names(CHECKED)

    odd = st.one_of(
        operation.as_strategy(), operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
    )

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(odd, st.booleans(), st.sampled_from(CONDITIONS), st.sampled_from(MODELS))
    def send(case: Any, real: bool, condition: dict[str, str], model: str) -> None:
        if real and "job_id" in (case.path_parameters or {}):
            case.path_parameters["job_id"] = jobs()
        if real and "name" in (case.path_parameters or {}):
            case.path_parameters["name"] = "completion"
            case.headers = condition
        if real and isinstance(case.body, dict) and "model" in case.body:
            # Else few of them come past the checks of messages and of where webhooks may go.
            case.body |= {**chat(model), "state_webhook_url": RECEIVER}
        response = case.call(base_url=url, timeout=20)
        # A part of a document is no document.
        excluded = [CHECKS.get_one("response_schema_conformance")] if response.status_code == 206 else []
        case.validate_response(response, checks=checks, excluded_checks=excluded)
        seen.add((case.operation.label, response.status_code))

    send()


@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@pytest_twisted.ensureDeferred
async def test_nothing_undescribed_happens() -> None:
    """Whatever is thrown at foreman's routes, no answer is a fault of ours, and each one is described."""
    schema = schemathesis.openapi.from_dict(_fuzzed())
    operations = [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]
    assert len(operations) == len(OPERATIONS)
    # Who deletes the jobs goes behind those who look at them; and a paused foreman finishes none.
    operations.sort(key=lambda each: (each.path == "/queue/pause", each.method == "delete"))
    seen: set[tuple[str, int]] = set()
    async with house() as here:
        ids = [await _prepare(here, "") for _ in range(10)]

        def one_of_them() -> str:
            ids.append(ids.pop(0))
            return ids[0]

        for operation in operations:
            await deferToThread(_throw, operation, here.url, one_of_them, seen)
    assert {
        *(("POST /jobs", status) for status in (202, 400, 404)),
        *(("GET /jobs/{job_id}/artifacts/{name}", status) for status in (200, 206, 304, 404, 416)),
        *(("GET /jobs/{job_id}/stream", status) for status in (200, 404)),
        *(("POST /jobs/{job_id}/redeliver", status) for status in (202, 404)),
        *(("DELETE /jobs/{job_id}", status) for status in (204, 404)),
    } <= seen, sorted(seen)
