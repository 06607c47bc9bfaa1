"""`make docs`: the part of http-api.md that describes foreman's own routes, made from openapi.yaml."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from attrs import frozen

HERE = Path(__file__).parent
SOURCE = HERE / "openapi.yaml"
PAGE = HERE / "http-api.md"

BEGIN = "<!-- From here on made by `make docs`; edit openapi.yaml instead. -->\n"

EVERYWHERE = ("401", "403")
"""Statuses that the page tells of once, for all routes."""

Document = Mapping[str, Any]


def specification() -> dict[str, Any]:
    """The whole of openapi.yaml, with what it refers to put in place."""
    document: dict[str, Any] = yaml.safe_load(SOURCE.read_text())

    def resolved(value: Any) -> Any:
        if isinstance(value, list):
            return [resolved(each) for each in value]
        if not isinstance(value, dict):
            return value
        reference = value.get("$ref", "")
        if reference.startswith(("#/components/parameters/", "#/components/responses/")):
            _, _, kind, name = reference.split("/")
            return resolved(document["components"][kind][name])
        return {key: resolved(each) for key, each in value.items()}

    return {**document, "paths": resolved(document["paths"])}


def operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    """Each operation as method, path and description, the path's parameters among its own."""
    for path, item in document["paths"].items():
        for method in ("post", "get", "delete"):
            if method in item:
                operation = dict(item[method])
                operation["parameters"] = [*item.get("parameters", ()), *operation.get("parameters", ())]
                yield method.upper(), path, operation


@frozen(kw_only=True)
class Example:
    """An operation's worked example.

    :ivar target: path and query.
    :ivar bodies: of the request, by content type; `{"": ""}` if it has none.
    :ivar status: of the answer, and its body, empty if it has none.
    """

    target: str
    headers: Mapping[str, str]
    bodies: Mapping[str, str]
    status: int
    answer: str


def example(path: str, operation: Document) -> Example:
    """The example that an operation's description gives.

    :raise KeyError: there is none, though the answer has a body.
    """
    headers, query = {}, []
    for parameter in operation["parameters"]:
        if "example" in parameter:
            value = str(parameter["example"])
            match parameter["in"]:
                case "path":
                    path = path.replace("{" + parameter["name"] + "}", value)
                case "query":
                    query.append(f"{parameter['name']}={value}")
                case "header":
                    headers[parameter["name"]] = value
    bodies = {
        content_type: _shown(content["example"])
        for content_type, content in operation.get("requestBody", {}).get("content", {}).items()
    }
    status, response = next(iter(operation["responses"].items()))
    answers = [_shown(each["example"]) for each in response.get("content", {}).values() if "example" in each]
    if not answers and "content" in response:
        raise KeyError(f"{path} has no example")
    return Example(
        target="?".join([path, "&".join(query)] if query else [path]),
        headers=headers,
        bodies=bodies or {"": ""},
        status=int(status),
        answer=answers[0] if answers else "",
    )


def _shown(value: Any) -> str:
    return value.strip() if isinstance(value, str) else json.dumps(value, indent=1)


def reference(document: Document) -> str:
    """The text."""
    parts = []
    for tag in document["tags"]:
        parts.append(f"## Foreman's own routes: {tag['name']}\n\n{tag['description']}\n")
        for method, path, operation in operations(document):
            if tag["name"] in operation["tags"]:
                parts += _operation(method, path, operation)
    parts.append("## Documents\n")
    for name, schema in document["components"]["schemas"].items():
        parts += _schema(name, schema)
    return "\n".join(parts)


def _operation(method: str, path: str, operation: Document) -> Iterator[str]:
    yield f"### `{method} {path}`\n\n{operation['summary']}\n"
    if "description" in operation:
        yield operation["description"].strip() + "\n"
    parameters = [each for each in operation["parameters"] if "description" in each and each["in"] != "path"]
    if parameters:
        rows = "".join(f"| `{each['name']}` ({each['in']}) | {each['description']} |\n" for each in parameters)
        yield f"| Parameter | |\n|---|---|\n{rows}"
    worked = example(path, operation)
    for content_type, body in worked.bodies.items():
        head = {**worked.headers, **({"Content-Type": content_type} if content_type else {})}
        lines = [f"{method} {worked.target} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
        yield "\n".join(["```http", *lines, *(["", body] if body else []), "```\n"])
    if worked.answer:
        yield f"```{'json' if worked.answer.startswith('{') else 'text'}\n{worked.answer}\n```\n"
    rows = "".join(
        f"| `{status}` | {_line(response['description'])}{_kind(response)} |\n"
        for status, response in operation["responses"].items()
        if status not in EVERYWHERE
    )
    yield f"| Status | |\n|---|---|\n{rows}"


def _kind(response: Document) -> str:
    """Which document an answer is, where it is one of those with names."""
    schemas = [content.get("schema", {}) for content in response.get("content", {}).values()]
    names = [_name(one) for schema in schemas for one in schema.get("anyOf", [schema])]
    found = [f"[{name}](#{name.lower()})" for name in names if name not in ("", "Error")]
    return f" ({' or '.join(found)})" if found else ""


def _name(schema: Document) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _schema(name: str, schema: Document) -> Iterator[str]:
    """A document's fields, if it has any."""
    with_fields: Document = next((each for each in (schema, *schema.get("anyOf", ())) if "properties" in each), {})
    fields: Document = with_fields.get("properties", {})
    if not fields and "enum" not in schema:
        return
    yield f"### {name}\n"
    if "description" in schema:
        yield schema["description"] + "\n"
    if not fields:
        yield f"One of {_type(schema)}.\n"
        return
    rows = "".join(
        f"| `{field}` | {_type(value)} | {_line(value.get('description', ''))} |\n" for field, value in fields.items()
    )
    yield f"| Field | Type | |\n|---|---|---|\n{rows}"


def _type(schema: Document) -> str:
    """A schema in a few words."""
    if name := _name(schema):
        return {"Time": "time", "MaybeTime": "time or null"}.get(name, f"[{name}](#{name.lower()})")
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"] if each != {"type": "null"}) + " or null"
    kinds = schema.get("type", "any JSON")
    if kinds == "array" and "items" in schema:
        return f"list of {_type(schema['items'])}"
    return kinds if isinstance(kinds, str) else " or ".join(kinds)


def _line(text: str) -> str:
    return " ".join(text.split())


def page(text: str) -> str:
    """The page with its last part made anew."""
    head, begin, _ = text.partition(BEGIN)
    if not begin:
        raise ValueError("the page does not say where the reference begins")
    return f"{head}{BEGIN}\n{reference(specification())}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
    sys.stdout.write(f"{PAGE.name} is made\n")
