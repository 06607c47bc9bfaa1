"""The command `verify`: the self-test as operators run it, and what it prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from foreman.verify.findings import Finding, Verdict, are_identical
from foreman.verify.selftest import Models, Unusable, check_places, choose, is_foreman
from foreman.verify.selftest import verify as run
from foreman.verify.wire import NotReached, Place

_STYLES = {Verdict.IDENTICAL: "green", Verdict.DIFFERENT: "bold red", Verdict.OWN: "cyan", Verdict.SKIPPED: "yellow"}


class _PlaceType(click.ParamType[Place]):
    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        try:
            return Place(url=value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("verify")
@click.option("--direct", required=True, type=_PlaceType(), help="The Ollama itself, as foreman reaches it.")
@click.option("--through", required=True, type=_PlaceType(), help="The foreman in front of it; FOREMAN_URL if absent.")
@click.option("--token", envvar="FOREMAN_TOKEN", help="Better in FOREMAN_TOKEN: others can see it here.")
@click.option("--model", help="One that chats; else a loaded one, else the smallest.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document.")
def verify(direct: Place, through: Place, token: str | None, model: str | None, *, as_json: bool) -> None:
    """Ask Ollama the same directly and through foreman, and compare the answers to the byte.

    Status, headers, bodies, the chunks of streams, the texts of errors, and whether the target stops when a client
    leaves.  Nothing is changed on either side; the model is loaded and works for a minute or so.  Best when nobody
    else is asking.  Exits 0 if all is identical, 1 if not, 2 or 3 if it could
    not be tried: called wrongly or at no foreman, or a side cannot be reached.
    """
    through = Place(url=through.url, token=_for(through, token))
    console = Console(stderr=True)
    try:
        check_places(direct, through)
        if is_foreman(direct):
            click.echo(
                f"foreman verify: {direct.url} is a foreman itself; --direct is for the Ollama behind it", err=True
            )
        models = choose(direct, model)
        with console.status("", spinner="line") as status:
            findings = list(run(direct, through, models, tell=status.update))
    except (NotReached, Unusable) as error:
        click.echo(f"foreman verify: {error}", err=True)
        sys.exit(3 if isinstance(error, NotReached) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
    if as_json:
        click.echo(json.dumps(_document(direct, through, models, findings), indent=1, ensure_ascii=False))
    else:
        _print(findings)
    sys.exit(0 if are_identical(findings) else 1)


def _for(through: Place, token: str | None) -> str | None:
    """The token for that address: one that comes with another by default is not for it."""
    context = click.get_current_context()
    if context.get_parameter_source("token") is ParameterSource.DEFAULT_MAP:
        known = context.lookup_default("through")
        return token if known and Place(url=known).url == through.url else None
    return token or None


def _document(direct: Place, through: Place, models: Models, findings: Sequence[Finding]) -> dict[str, Any]:
    return {
        "direct": direct.url,
        "through": through.url,
        "model": models.chats,
        "embedder": models.embedder,
        "identical": are_identical(findings),
        "checks": [
            {"name": finding.name, "verdict": finding.verdict.value, "facts": list(finding.facts)}
            for finding in findings
        ],
    }


def _print(findings: Sequence[Finding]) -> None:
    table = Table("check", "verdict", "what was seen", box=None, pad_edge=False)
    for finding in findings:
        facts = "\n".join(finding.facts).replace("[", "\\[")  # rich's markup begins so
        table.add_row(finding.name, f"[{_STYLES[finding.verdict]}]{finding.verdict.value}[/]", facts)
    console = Console()
    console.print(table)
    counts = {verdict: sum(finding.verdict is verdict for finding in findings) for verdict in Verdict}
    console.print(", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count))
