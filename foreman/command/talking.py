"""What every command that talks to foreman shares: which foreman, the screen, and what its exit code says."""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any, TextIO

import click
from attrs import frozen

from foreman.client import (
    Foreman,
    ForemanError,
    JobFailed,
    NotForeman,
    NotReachable,
    Rejected,
    Unavailable,
    WaitTimeout,
)
from foreman.command.screen import Screen, printable
from foreman.command.settings import DEFAULT_URL, Settings

PATIENCE = 5.0
"""Seconds for which foreman may be away; a restart takes less."""


class Exit(IntEnum):
    """Why a command has ended; click itself ends with 2 when it was called wrongly."""

    FAILED = 1  # a job has
    NOT_REACHABLE = 3  # foreman is not there, or cannot now, or it is not foreman
    REJECTED = 4  # foreman has said no
    TOO_LATE = 5  # the time given was over
    INTERRUPTED = 130  # by Ctrl-C
    UNREAD = 141  # whoever read the output is gone, as with `| head`


@frozen
class Desk:
    """What a command works with."""

    settings: Settings
    foreman: Foreman
    screen: Screen


def talks(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command its desk, and its end an exit code; adds `--json`."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON, one document a line.")
    @functools.wraps(command)
    def talking(*, as_json: bool, **given: Any) -> None:
        settings = click.get_current_context().find_object(Settings) or Settings(DEFAULT_URL)
        screen = Screen(_written(sys.stdout), _written(sys.stderr), as_json=as_json)
        try:
            with Foreman(settings.url, settings.token, patience=PATIENCE) as foreman:
                command(Desk(settings, foreman, screen), **given)
        except ForemanError as error:
            raise Said(error) from error
        except (ValueError, ImportError) as error:
            raise click.UsageError(str(error)) from error
        except KeyboardInterrupt:
            raise SystemExit(Exit.INTERRUPTED) from None
        except BrokenPipeError:
            _forget_output()
            raise SystemExit(Exit.UNREAD) from None
        except OSError as error:
            _forget_output()
            raise Unwritable(str(error)) from error

    return talking


def _written(stream: TextIO | None) -> TextIO:
    """A standard stream as one that takes any text, whatever its encoding; one that was closed takes all."""
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return stream


def _forget_output() -> None:
    """Give up what could not be written, or Python tries again at its end."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Unwritable(click.ClickException):
    """A file, or the output, cannot be written."""

    exit_code = 2


class Said(click.ClickException):
    """An error of foreman's as click prints it, with its exit code."""

    def __init__(self, error: ForemanError) -> None:
        message = str(error)
        if isinstance(error, Rejected):
            message = "\n".join([message, *(f"line {line}: {text}" for line, text in error.lines.items())])
            if error.status == 401:
                message += " (FOREMAN_TOKEN says the token, or FOREMAN_TOKEN_FILE, or the settings file)"
        super().__init__(printable(message))
        self.exit_code = _exit(error)  # type: ignore[misc]  # click says ClassVar, and reads it from the instance


def _exit(error: ForemanError) -> Exit:
    match error:
        case JobFailed():
            return Exit.FAILED
        case WaitTimeout():
            return Exit.TOO_LATE
        case NotReachable() | Unavailable() | NotForeman():
            return Exit.NOT_REACHABLE
        case _:
            return Exit.REJECTED
