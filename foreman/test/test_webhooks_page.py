"""docs/webhooks.md: the code that receivers copy from it does what it says."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from foreman.webhooks.retries import STEPS
from foreman.webhooks.signing import sign

PAGE = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
BODY = b'{"state":"done"}'


def code() -> dict[str, Any]:
    """What the page's Python defines."""
    [block] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102 - our own page
    return names


def delivery(*secrets: bytes, at: float | None = None) -> dict[str, str]:
    """The headers of a delivery as receivers' frameworks give them."""
    timestamp = int(time.time() if at is None else at)
    headers = sign(BODY, webhook_id="01J8Z7N3V5X2Q4R6T8W0Y1A3C5-4", timestamp=timestamp, secrets=secrets)
    return {name.lower(): value for name, value in headers.items()}


@pytest.mark.parametrize("name", ["verify", "verify_body"])
def test_the_pages_code_verifies(name: str) -> None:
    """A receiver that copies the code takes what is foreman's, by the old and the new secret, and nothing else."""
    verify = code()[name]
    assert verify(delivery(b"new", b"old"), BODY, b"old") is True
    assert verify(delivery(b"new"), BODY, b"new") is True
    assert verify(delivery(b"new"), BODY + b" ", b"new") is False
    assert verify(delivery(b"new"), BODY, b"other") is False


def test_the_pages_code_refuses_what_is_old() -> None:
    """What is replayed after five minutes is refused by the standard check."""
    assert code()["verify"](delivery(b"s", at=time.time() - 301), BODY, b"s") is False


def test_the_page_tells_the_steps() -> None:
    """The retries on the page are those of the code."""
    assert "After 1, 2, 4, 8, 16 s, then 1, 5, 30 min, 2, 5, 10 h" in PAGE
    assert STEPS == (1, 2, 4, 8, 16, 60, 300, 1800, 7200, 18000, 36000)
    assert len(STEPS) + 1 == 12
    assert 17.5 < sum(STEPS) / 3600 < 18.5
