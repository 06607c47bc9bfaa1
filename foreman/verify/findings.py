"""What the self-test has found: a finding for each check."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from attrs import frozen


class Verdict(Enum):
    """How a check has ended."""

    IDENTICAL = "identical"
    DIFFERENT = "different"
    OWN = "foreman's own"
    """Another answer than the target's, where foreman documents one."""
    SKIPPED = "skipped"


@frozen
class Finding:
    """One check and what came of it.

    :ivar facts: what was seen, for people; why, for all but identical ones.
    """

    name: str
    verdict: Verdict
    facts: tuple[str, ...] = ()


def are_identical(findings: Iterable[Finding]) -> bool:
    """Whether nothing was found that foreman does not document."""
    return all(finding.verdict is not Verdict.DIFFERENT for finding in findings)
