"""The pins: what the container and `make test-clients` install is what was tried, to the byte where it is served."""

from __future__ import annotations

import json
import re
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).parents[2]
CLIENTS = Path(__file__).parent / "clients"


def wanted(*texts: str) -> list[Requirement]:
    """The requirements in some texts, one a line; what begins with `#` is none."""
    lines = [line.partition("#")[0].strip() for text in texts for line in text.splitlines()]
    return [Requirement(line) for line in lines if line]


def pins(path: Path) -> dict[str, tuple[Requirement, int]]:
    """By name what a file of pins installs, and how many hashes stand behind each."""
    lines = [line for line in path.read_text().splitlines() if not line.strip().startswith("#")]
    found: dict[str, tuple[Requirement, int]] = {}
    for entry in "\n".join(lines).replace("\\\n", " ").splitlines():
        requirement, *hashes = entry.split(" --hash=sha256:")
        assert all(re.fullmatch("[0-9a-f]{64} *", digest) for digest in hashes), entry
        pinned = Requirement(requirement.strip())
        found[canonicalize_name(pinned.name)] = (pinned, len(hashes))
    return found


def check(pinned: dict[str, tuple[Requirement, int]], requirements: list[Requirement]) -> None:
    """Each is pinned, at a version that it allows."""
    for requirement in requirements:
        [pin] = pinned[canonicalize_name(requirement.name)][0].specifier
        assert requirement.specifier.contains(pin.version), f"{requirement} is pinned at {pin}"


def test_the_daemon_is_pinned_with_hashes() -> None:
    """The container gets every dependency of the daemon at a version setup.cfg allows, and no other byte."""
    setup = ConfigParser()
    setup.read(CHECKOUT / "setup.cfg")
    requirements = wanted(setup["options"]["install_requires"], setup["options.extras_require"]["server"])
    assert {"twisted", "klein", "httpx"} <= {requirement.name.lower() for requirement in requirements}
    pinned = pins(CHECKOUT / "requirements" / "server.txt")
    check(pinned, requirements)
    assert {"pyopenssl", "service-identity"} <= pinned.keys()  # of Twisted[tls]
    for pin, hashes in pinned.values():
        assert [each.operator for each in pin.specifier] == ["=="], pin
        assert hashes, pin


@pytest.mark.parametrize("name", ["current", "older"])
def test_the_clients_are_pinned(name: str) -> None:
    """A release of a client package, or of one below it, changes no verdict about foreman until it is taken up."""
    requirements = wanted((CLIENTS / f"requirements-{name}.in").read_text())
    pinned = pins(CLIENTS / f"requirements-{name}.txt")
    check(pinned, requirements)
    assert len(pinned) > len(requirements)  # those below them too
    assert all([each.operator for each in pin.specifier] == ["=="] for pin, _ in pinned.values())


def test_the_javascript_client_is_pinned() -> None:
    """The same for the package from npm, and the one below it."""
    package = json.loads((CLIENTS / "package.json").read_text())
    versions = package["dependencies"] | package["overrides"]
    assert {"ollama", "whatwg-fetch"} == versions.keys()
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions.values())


def test_no_pin_says_where_it_comes_from() -> None:
    """Where packages are fetched from is the installer's to say; here stands only what they are."""
    files = [*(CHECKOUT / "requirements").glob("*.txt"), *CLIENTS.glob("requirements-*")]
    assert len(files) >= 7
    for path in files:
        assert not re.search(r"--(extra-)?index-url|--find-links|://|@ ", path.read_text()), path
