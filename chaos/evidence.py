"""The evidence of a round as files, for whoever wants to see what the checker saw."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict

from chaos.plan import Plan


def keep_evidence(folder: Path, planned: Plan, evidence: Mapping[str, Any], violations: Sequence[str]) -> None:
    """A file for each part, with a line for each entry."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in {**evidence, "plan": asdict(planned), "violations": violations}.items():
        lines = value if isinstance(value, list) else [value]
        text = "\n".join(json.dumps(line, default=repr) for line in lines)
        (folder / f"{name}.jsonl").write_text(text + "\n")
