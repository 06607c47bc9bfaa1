"""`foreman serve`: the daemon, for those who have installed it."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import click

NEEDS = "twisted.scripts.twistd"


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def serve(options: tuple[str, ...]) -> None:
    """Run the daemon, as `twistd --nodaemon foreman` does, with its options; --help lists them."""
    if not _is_installed():
        raise click.ClickException("the daemon is not installed: pip install '.[server]' in a checkout of foreman")
    from twisted.scripts.twistd import run  # noqa: PLC0415 - it is there for those who serve

    sys.argv = ["twistd", "--nodaemon", "--pidfile=", "foreman", *options]
    run()


def _is_installed() -> bool:
    try:
        return find_spec(NEEDS) is not None and find_spec("klein") is not None
    except ModuleNotFoundError:
        return False
