"""The rooms know only whom they may know (docs/architecture.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import foreman

ROOT = Path(foreman.__file__).parent

SHARED = {"foreman", "detach", "errors", "job", "logs", "record", "tick", "times", "transports"}
"""The words and tools that every room may use."""

MAY_KNOW = {
    "errors": set(),
    "database_file": {"errors"},
    "backups": {"database_file", "errors"},
    "job": set(),
    "record": {"job"},
    "durations": set(),
    "times": set(),
    "transports": set(),
    "detach": set(),
    "logs": {"config", "errors"},
    "tick": {"logs"},
    "kinds": {"durations", "errors"},
    "config": {"kinds", "durations", "errors"},
    "documents": {"job", "record", "times"},
    "ollama": SHARED,
    "work": SHARED | {"ollama", "database_file"},
    "webhooks": SHARED | {"documents"},
    "web": SHARED | {"documents", "ollama", "work", "webhooks", "config", "durations"},
    "tap": {"config", "errors", "service"},
    "healthcheck": set(),  # a process of its own, which must start at once
    "client": {"foreman", "webhooks"},  # of which it may import what needs no more than the standard library
    "verify": set(),  # it judges foreman from outside
    "command": {"foreman", "client", "verify", "durations", "backups", "errors"},
    "demo": set(),
}
"""For each room, the rooms it may import from; `service` alone knows everybody."""


def room_of(path: Path) -> str:
    """The room a module is in: its folder, or itself at the top."""
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def rooms_imported(path: Path) -> set[str]:
    """The rooms of foreman that a module imports from."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= set(whole) if node.module == "foreman" else {node.module}
    return {name.split(".")[1] if "." in name else "foreman" for name in names if name.split(".")[0] == "foreman"}


MODULES = [
    path for path in sorted(ROOT.rglob("*.py")) if room_of(path) not in ("test", "service", "__init__", "__pycache__")
]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_knows_only_whom_it_may(path: Path) -> None:
    """Walking from room to room, a reader meets no surprise."""
    room = room_of(path)
    known = {
        imported
        for imported in rooms_imported(path)
        if (ROOT / imported).exists() or (ROOT / f"{imported}.py").exists()
    }
    assert known - {room} <= MAY_KNOW[room]


def test_every_module_says_what_it_owns() -> None:
    """Each module opens with a docstring."""
    silent = [path.name for path in ROOT.rglob("*.py") if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []
