"""`foreman backup` and `foreman restore`: for where the daemon's database is."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

_PATH = click.Path(path_type=Path, readable=False)  # who may not read it is told more below
_db = click.option(
    "--db", envvar="FOREMAN_DB", show_envvar=True, default="foreman.db", type=_PATH, help="The daemon's database."
)


@click.command()
@click.argument("path", type=click.Path())
@_db
def backup(path: str, db: Path) -> None:
    """Copy the daemon's database to PATH, and print the copy's name.

    The daemon may run. If PATH is a folder the copy is named by the time. A file is replaced only if it is an older
    backup. The copy holds prompts and answers; you alone can read it.
    """
    if not path.strip():  # a variable that is not set; for a `Path` it is the folder that one happens to be in
        raise click.ClickException("PATH is empty: name a folder, or a file")
    if path.endswith(("/", "/.")) and not Path(path).is_dir():  # a `Path` forgets that a folder was meant
        raise click.ClickException(f"there is no folder {path}: make it, as by install -d -m 0700 {shlex.quote(path)}")
    _print(lambda backups, now: backups.back_up(db, Path(path), now))


@click.command()
@click.argument("path", type=_PATH)
@_db
def restore(path: Path, db: Path) -> None:
    """Put the backup PATH in the place of the daemon's database.

    The daemon must not run. PATH stays. What was there before is kept beside it, and its name printed.
    """
    _print(lambda backups, now: backups.restore(path, db, now))


def _print(act: Callable[[Any, datetime], Path | None]) -> None:
    """Print the name that comes of it, or why there is none."""
    from foreman import backups, errors  # noqa: PLC0415 - needs what Windows has not, where no daemon runs either

    try:
        name = act(backups, datetime.now(UTC))
    except errors.NotCopied as error:
        raise click.ClickException(str(error)) from error
    if name is not None:
        click.echo(os.fsencode(name))  # whatever is in it
