"""docs/threat-model.md leans on tests by their names; each of them is there."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "threat-model.md"


def test_every_test_that_the_page_names_exists() -> None:
    """Who follows the page from a threat to the test that holds it finds the test."""
    written = "\n".join(path.read_text() for path in HERE.glob("test_*.py"))
    there = set(re.findall(r"def (test_\w+)\(", written))
    named = re.findall(r"`(test_\w+)`", PAGE.read_text())
    assert len(named) > 50
    assert [name for name in named if name not in there] == []


def test_every_setting_that_the_page_names_exists() -> None:
    """The advice of the page can be followed: the settings it names are those of today."""
    from foreman.config import SETTINGS

    known = {setting.variable for setting in SETTINGS}
    assert set(re.findall(r"FOREMAN_[A-Z_]+", PAGE.read_text())) <= known
