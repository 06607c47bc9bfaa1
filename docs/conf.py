"""`make site`: how Sphinx makes a site of these pages.

They are plain Markdown, for a forge as well. What a site has and a forge has not is done here: pages whose text stands
elsewhere in the repository, and the changelog of what is not released yet.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "foreman"
(release,) = re.findall(r'__version__ = "(.+)"', (ROOT / "foreman" / "__init__.py").read_text())
extensions = ["myst_parser"]
exclude_patterns = ["newsfragments"]
myst_heading_anchors = 6
highlight_language = "none"
smartquotes = False

html_theme = "furo"
html_title = f"foreman {release}"
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_copy_source = False
html_show_copyright = False
html_use_index = False

ELSEWHERE = {
    "changelog": ROOT / "CHANGELOG.md",
    "contributing": ROOT / "CONTRIBUTING.md",
    "go": ROOT / "clients" / "go" / "README.md",
}
"""Pages of which `docs/` has but a pointer: the site has the text itself."""

LINK = re.compile(r"(?<=\]\()([^()\s#:]+)(?=[)#])")
"""The file of a link without a scheme."""


def changelog() -> str:
    """What is not released yet, as towncrier would write it, before what is."""
    towncrier = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "unreleased"]
    ran = subprocess.run(towncrier, cwd=ROOT, check=False, capture_output=True, text=True)  # noqa: S603
    if ran.returncode:
        raise RuntimeError(f"towncrier: {ran.stderr.splitlines()[-1]}")
    _, _, unreleased = ran.stdout.partition("\n")  # the heading, which has the day
    released = ELSEWHERE["changelog"].read_text() if ELSEWHERE["changelog"].exists() else ""
    return "# Changelog\n\n" + re.sub("^#", "##", f"# Unreleased\n{unreleased}{released}", flags=re.MULTILINE)


def source(app: Any, docname: str, text: list[str]) -> None:
    """Put the text of a page in place, and lead links to files that are pages of the site to these pages."""
    where = ELSEWHERE.get(docname, DOCS / f"{docname}.md")
    if docname == "changelog":
        text[0] = changelog()
    elif docname in ELSEWHERE:
        text[0] = where.read_text()
    pages = {path: DOCS / f"{name}.md" for name, path in ELSEWHERE.items()} | {ROOT / "README.md": DOCS / "index.md"}

    def led(link: re.Match[str]) -> str:
        target = (where.parent / link[0]).resolve()
        return os.path.relpath(pages.get(target, target), (DOCS / docname).parent)

    text[0] = LINK.sub(led, text[0])


def setup(app: Any) -> None:
    """Sphinx's hook; what these pages are made of it does not watch, so they are made each time."""
    app.connect("source-read", source)
    app.connect("env-get-outdated", lambda *_: list(ELSEWHERE))
