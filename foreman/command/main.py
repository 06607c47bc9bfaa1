"""The command `foreman` with all its commands."""

from __future__ import annotations

import os

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from foreman import __version__
from foreman.command.asking import ask, submit
from foreman.command.backing import backup, restore
from foreman.command.looking import artifacts, cancel, jobs, show, tail
from foreman.command.running import pause, queue, resume, status
from foreman.command.serving import serve
from foreman.command.settings import UnusableSettings, others_can_read, read_settings, settings_path
from foreman.command.waiting import wait
from foreman.verify import verify

SHELLS = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="FOREMAN_URL and FOREMAN_TOKEN (or FOREMAN_TOKEN_FILE) say which foreman is meant, or url and token in "
    f"{settings_path()}. Ends with 1 if a job has failed, 2 if called wrongly, 3 if foreman cannot be reached, "
    "4 if it has said no, 5 if the time given was over, 130 after Ctrl-C.",
)
@click.version_option(__version__, message="foreman %(version)s")
@click.option("--url", help="Which foreman, such as http://127.0.0.1:8080.")
@click.pass_context
def main(context: click.Context, url: str | None) -> None:
    """One small daemon in front of one Ollama."""
    if context.resilient_parsing or context.invoked_subcommand in (backup.name, restore.name):  # which ask no foreman
        return
    try:
        settings = context.obj = read_settings(url, os.environ, settings_path())
    except UnusableSettings as error:
        raise click.UsageError(str(error)) from error
    if settings.kept and others_can_read(settings_path()):
        click.echo(f"{settings_path()} holds a token, and others can read it: chmod 600 it.", err=True)
    # It stands outside and knows nothing of our settings; the token is sent to this address only.
    context.default_map = {"verify": {"through": settings.url, "token": settings.token}}


@click.command()
@click.argument("shell", type=click.Choice([*SHELLS]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete foreman's commands: eval "$(foreman completion bash)"."""
    click.echo(SHELLS[shell](main, {}, "foreman", "_FOREMAN_COMPLETE").source())


for command in (
    ask, submit, jobs, show, wait, tail, cancel, artifacts, queue, pause, resume, status, verify, serve, backup,
    restore, completion,
):  # fmt: skip
    main.add_command(command)
