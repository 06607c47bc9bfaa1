"""The pages of `docs/deploy`: what they have typed is sound, and what they have foreman say is what it says."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from foreman.config import SETTINGS, Configuration
from foreman.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "deploy").glob("*.md"))


COMMANDS = {
    page.stem: textwrap.dedent("".join(re.findall(r"^ *```sh\n(.*?)```", page.read_text(), re.MULTILINE | re.DOTALL)))
    for page in PAGES
}
"""What each page has typed."""


@pytest.mark.parametrize("page", [page for page, commands in COMMANDS.items() if commands])
def test_the_commands_of_a_page(page: str, run: Callable[..., str], tmp_path: Path) -> None:
    """The commands of each page are sound shell."""
    script = tmp_path / "page.sh"
    script.write_text("set -e\n" + COMMANDS[page])
    run("shellcheck", "--shell=bash", script)


def test_what_the_commands_name_is_there() -> None:
    """The files of the checkout that a page has copied, built or installed are in it."""
    named = {page: re.findall(r"(?:deploy|requirements)/[\w./-]+", commands) for page, commands in COMMANDS.items()}
    assert all(named[page] for page in ("compose", "delivery", "gitops", "monitoring", "systemd"))
    assert [path for paths in named.values() for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("settings", [{"FOREMAN_EMBED_MODLE": "x"}, {"FOREMAN_MAX_BODY": "lots"}])
@pytest.mark.parametrize("name", ["compose", "systemd"])
def test_a_page_shows_what_foreman_says(name: str, settings: dict[str, str]) -> None:
    """What these pages have foreman say of bad settings is what it says."""
    with pytest.raises(ConfigurationError) as said:
        Configuration.from_environment(settings)
    assert f"`{said.value}`" in (ROOT / "docs" / "deploy" / f"{name}.md").read_text()


def test_the_patch_of_gitops_fits_what_it_patches() -> None:
    """An overlay's patch is as the page has it: where it says, a setting of foreman's, a file that is mounted."""
    (block,) = re.findall(r"^```yaml\n(.*?)```", (ROOT / "docs/deploy/gitops.md").read_text(), re.MULTILINE | re.DOTALL)
    ((patch,),) = yaml.safe_load(block).values()
    deployment = yaml.safe_load((ROOT / "deploy/gitops/base/deployment.yaml").read_text())
    assert patch["target"] == {"kind": deployment["kind"], "name": deployment["metadata"]["name"]}
    replace, add = yaml.safe_load(patch["patch"])
    assert (replace["op"], add["op"]) == ("replace", "add")

    def at(path: str) -> Any:
        place = deployment
        for step in path.removeprefix("/").split("/"):
            place = place[int(step)] if isinstance(place, list) else place[step]
        return place

    assert at(replace["path"]) != replace["value"]
    assert isinstance(at(add["path"].removesuffix("/-")), list)
    container = at("/spec/template/spec/containers/0")
    assert add["value"]["name"] in {variable for setting in SETTINGS for variable in setting.variables}
    assert add["value"]["name"] not in {each["name"] for each in container["env"]}
    (secrets,) = (each["mountPath"] for each in container["volumeMounts"] if each["name"] == "secrets")
    assert Path(add["value"]["value"]).parent == Path(secrets)
