"""Property tests are given the same examples on every run, whatever else runs before them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def drawn() -> list[str]:
    """The examples that a property test is given."""
    seen: list[str] = []

    @settings(derandomize=True, database=None)
    @given(st.integers(), st.text(), st.floats())
    def look(number: int, text: str, fraction: float) -> None:
        seen.append(f"{number} {text!r} {fraction}")

    look()
    return seen


def test_examples_do_not_depend_on_what_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that passes passes again, alone, behind others, and after a change elsewhere."""
    before = drawn()
    numbers = [f"N{number} = {10**9 + number}, 'word{number}', {number}.5" for number in range(300)]
    (tmp_path / "elsewhere.py").write_text("\n".join(numbers))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "elsewhere", importlib.import_module("elsewhere"))
    assert drawn() == before
