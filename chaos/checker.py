"""Judges a round's evidence.  Knows nothing of foreman but its contract: it imports nothing of it.

The evidence is a dict of plain values; times are Unix seconds unless they come from the database (milliseconds):

- `exchanges`: what clients saw, an entry each (`chaos.wire`), with the `tag` that its prompt carries (or `tags`);
- `target`: what FakeOllama saw in all its lives (`/_fake/state?bodies=1`), its `requests` and `loads`;
- `deliveries`: what the receivers saw (`chaos.receivers.delivery`);
- `database`: the rows by table as they were last seen, after the end or before they were pruned (`chaos.archive`);
- `lives`, `log`: of foreman's processes; `strikes`: the faults; `trouble`: what went wrong in the round itself.

`check` gives a line for every fact that contradicts the contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chaos.facts import Facts
from chaos.rules import RULES


def check(evidence: Mapping[str, Any]) -> list[str]:
    """Every violation, as a line that begins with the name of its rule."""
    facts = Facts(evidence)
    return [f"{rule.__name__}: {violation}" for rule in RULES for violation in rule(facts)]
