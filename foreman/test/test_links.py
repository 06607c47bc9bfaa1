"""The links of every Markdown file, as a forge shows it; of the site, Sphinx judges the links (`make site`)."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FRAGMENTS = ROOT / "docs" / "newsfragments"
ADRS = ROOT / "docs" / "adr"

FENCED = re.compile(r"^ *(```+).*?^ *\1$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"(`+)[^\n]*?\1")
LINK = re.compile(r'\]\(([^)\s]+)[^)]*\)|^\[[^\]]+\]: (\S+)|(?:href|src)="([^"]*)"', re.MULTILINE)
SCHEME = re.compile(r"[a-z]+:")


def files() -> frozenset[Path]:
    """What is, or would be, committed."""
    listing = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return frozenset(path for name in listed.split("\0") if name and (path := ROOT / name).is_file())


def links(page: Path) -> Iterator[str]:
    """Where the links and images of a page lead, but for those to other places on the net."""
    text = CODE.sub("", FENCED.sub("", page.read_text()))
    for found in LINK.finditer(text):
        link = found[1] or found[2] or found[3] or ""
        if not SCHEME.match(link):
            yield link


def anchors(page: Path) -> set[str]:
    """What a forge calls the headings of a page."""
    names: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+?)(?: #+)?$", FENCED.sub("", page.read_text()), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        names[name] = names.get(name, -1) + 1
    return {f"{name}-{number}" if number else name for name, last in names.items() for number in range(last + 1)}


def test_every_link_leads_somewhere() -> None:
    """Whoever follows a link in a page of the repository gets to a file that is there, and a heading that is in it."""
    there = files()
    places = there | {folder for path in there for folder in path.parents if folder.is_relative_to(ROOT)}
    pages = [path for path in there if path.suffix == ".md"]
    dead, followed = [], 0
    for page in sorted(pages):
        # A fragment's text goes into CHANGELOG.md, so that is where its links lead from.
        folder = ROOT if page.parent == FRAGMENTS else page.parent
        for link in links(page):
            name, _, anchor = link.partition("#")
            target = (folder / name).resolve() if name else page
            followed += 1
            if target not in places or (anchor and (target.suffix != ".md" or anchor not in anchors(target))):
                dead.append(f"{page.relative_to(ROOT)}: {link}")
    assert dead == []
    assert followed > 100


def test_every_decision_is_listed() -> None:
    """The list of decisions has each of them, by its number and title."""
    pages = sorted(ADRS.glob("0*.md"))
    titles = [page.read_text().splitlines()[0].removeprefix("# ") for page in pages]
    listed = re.findall(r"^- \[(.+)\]\((.+)\)$", (ADRS / "index.md").read_text(), re.MULTILINE)
    assert listed == list(zip(titles, [page.name for page in pages], strict=True))
