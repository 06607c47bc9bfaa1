"""What is asked, from the command line: text from an argument, a file or standard input, options, batches."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TextIO

import click
from attrs import frozen
from click.shell_completion import CompletionItem

from foreman.client import Foreman, ForemanError
from foreman.command.settings import UnusableSettings, read_settings, settings_path
from foreman.durations import parse_duration

TEXT = click.File("r", encoding="utf-8")
"""A file of text; `-` is standard input."""


class Model(click.ParamType[str]):
    """A model's name, completed to one of the target's."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Those that begin so; none if foreman cannot be asked."""
        with suppress(ForemanError, UnusableSettings, ValueError):
            settings = read_settings(ctx.find_root().params.get("url"), os.environ, settings_path())
            with Foreman(settings.url, settings.token, patience=0) as foreman:
                return [CompletionItem(each) for each in foreman.models() if each.startswith(incomplete)]
        return []


class Duration(click.ParamType[float]):
    """Seconds, written as `30s`, `1h30m` or `7d`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it; a default is a number already."""
        if isinstance(value, float):
            return value
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


class Option(click.ParamType[tuple[str, Any]]):
    """A model's option, as `temperature=0`: the value is JSON, or else a text."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Read it."""
        name, equals, text = str(value).partition("=")
        if not (name and equals):
            self.fail(f"{value!r} is not such as temperature=0", param, ctx)
        try:
            return name, json.loads(text)
        except ValueError:
            return name, text


class Object(click.ParamType[dict[str, Any]]):
    """A JSON object."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """Read it."""
        try:
            document = json.loads(value)
        except ValueError as error:
            self.fail(f"not JSON: {error}", param, ctx)
        if not isinstance(document, dict):
            self.fail("not a JSON object", param, ctx)
        return document


@frozen(kw_only=True)
class Question:
    """What a model is to be asked, as the command line says it."""

    text: str | None
    file: TextIO | None
    system: str | None
    options: tuple[tuple[str, Any], ...]
    think: bool | None

    def is_nothing(self) -> bool:
        """Whether the command line says nothing of it."""
        return self == Question(text=None, file=None, system=None, options=(), think=None)

    def fields(self) -> dict[str, Any]:
        """The fields of a chat.

        :raise UsageError: there is nothing to ask, or too much.
        """
        messages = [{"role": "system", "content": self.system}] if self.system is not None else []
        fields: dict[str, Any] = {"messages": [*messages, {"role": "user", "content": self._said()}]}
        if self.options:
            fields["options"] = dict(self.options)
        if self.think is not None:
            fields["think"] = self.think
        return fields

    def _said(self) -> str:
        if self.text is not None and self.text != "-":
            if self.file is not None:
                raise click.UsageError("either TEXT or --file")
            return self.text
        source = self.file or sys.stdin
        if source is None or (source.isatty() and self.text is None and self.file is None):
            raise click.UsageError("nothing to ask: give TEXT or --file, or write to standard input")
        try:
            text = source.read()
        except UnicodeDecodeError as error:
            raise click.UsageError(f"what is to be asked is not UTF-8 text: {error}") from error
        if not text.strip():
            raise click.UsageError("nothing to ask: the text is empty")
        return text


def asks(command: Callable[..., None]) -> Callable[..., None]:
    """Add TEXT and the options that say how a model is asked; the command gets them as its `question`."""

    @click.argument("text", required=False)
    @click.option("-f", "--file", type=TEXT, help="Read the text from a file; - for standard input.")
    @click.option("-s", "--system", help="What the model is told first.")
    @click.option("-o", "--option", "options", multiple=True, type=Option(), help="A model's option: temperature=0.")
    @click.option("--think/--no-think", default=None, help="Have the model think first, or not.")
    @functools.wraps(command)
    def asking(
        *,
        text: str | None,
        file: TextIO | None,
        system: str | None,
        options: tuple[tuple[str, Any], ...],
        think: bool | None,
        **given: Any,
    ) -> None:
        question = Question(text=text, file=file, system=system, options=options, think=think)
        command(question=question, **given)

    return asking


def batch_of(file: TextIO) -> Iterator[dict[str, Any]]:
    """The submissions of a batch: a JSON object on each line; blank lines are passed over.

    :raise UsageError: a line is none.
    """
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
        except ValueError as error:
            raise click.UsageError(f"line {number} of the batch is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise click.UsageError(f"line {number} of the batch is not a JSON object")
        yield document
