"""How things are shown: tables and colours on a terminal, plain lines elsewhere, JSON for programs that ask for it."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TextIO

import attrs
from rich.console import Console
from rich.table import Table
from rich.text import Text

from foreman.client import JobInfo

ID = 26
"""Characters of a job's id; it is no good if one is missing."""

STYLES = {"queued": "cyan", "loading": "yellow", "working": "blue", "done": "green", "failed": "red"}
"""The colour of each state of a job, and of foreman's target beside it."""


class Screen:
    """Standard output and standard error, as they are to be written to.

    :ivar as_json: documents only, one a line.
    :ivar errors: for what is not the answer: progress, remarks.
    """

    def __init__(self, out: TextIO, err: TextIO, *, as_json: bool) -> None:
        self.as_json = as_json
        self._out = out
        self.console = _console(out)
        self.errors = _console(err)

    @property
    def is_live(self) -> bool:
        """Whether somebody is looking, so that things may move."""
        return self.console.is_terminal and not self.as_json

    def document(self, value: Any) -> None:
        """A value as a line of JSON; the names are those of `foreman.client`."""
        self.line(json.dumps(plain(value)))  # ASCII, which no encoding of the output can spoil

    def line(self, text: str) -> None:
        """A line of text, as it is but for what would move a terminal's cursor."""
        self.piece(text + "\n")

    def piece(self, text: str) -> None:
        """A piece of an answer, at once."""
        self._out.write(printable(text) if self.console.is_terminal else text)
        self._out.flush()

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table; without a terminal, fields between tabs and no heading."""
        if self.console.is_terminal:
            self.console.print(table(columns, rows))
            return
        for row in rows:
            self.line("\t".join(" ".join(cell.split()) for cell in row))

    def facts(self, facts: Mapping[str, str | None]) -> None:
        """Names and what they are; those that are None are left out."""
        width = max(map(len, facts), default=0)
        for name, value in facts.items():
            if value is not None:
                said = " ".join(value.split())
                self.line(f"{name:<{width}}  {said}" if self.console.is_terminal else f"{name}\t{said}")

    def remark(self, text: str, end: str = "\n") -> None:
        """Something that is not the answer."""
        self.errors.print(Text(printable(text), style="dim"), end=end, soft_wrap=True)


def _console(file: TextIO) -> Console:
    """What draws on a file.  Only a terminal is one: FORCE_COLOR does not change what a program reads."""
    return Console(file=file, force_terminal=file.isatty(), highlight=False, markup=False, emoji=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table for a terminal; states have their colours."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column, overflow="ellipsis", no_wrap=True, min_width=ID if column == "ID" else None)
    for row in rows:
        drawn.add_row(*(Text(printable(cell), style=STYLES.get(cell.partition(" ")[0], "")) for cell in row))
    return drawn


def printable(text: str) -> str:
    """Text without what would move a terminal's cursor or change its colours, which a model may well write."""
    return "".join(each if _is_harmless(each) else "\ufffd" for each in text.replace("\r\n", "\n"))


def _is_harmless(character: str) -> bool:
    return character in "\n\t\u200d" or unicodedata.category(character) not in ("Cc", "Cf")


def plain(value: Any) -> Any:
    """What JSON can say of a value of `foreman.client`."""
    if isinstance(value, datetime):
        return value.isoformat()
    if attrs.has(type(value)):
        fields = attrs.fields(type(value))
        found = {each.name: plain(getattr(value, each.name)) for each in fields if not each.name.startswith("_")}
        return {**found, "text": value.text} if isinstance(value, JobInfo) and value.text else found
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def seconds(value: float | None) -> str:
    """A length of time, as short as can be read at a glance."""
    if value is None:
        return ""
    if value < 60:
        return f"{value:.1f}s" if value < 10 else f"{value:.0f}s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


def moment(value: datetime | None) -> str:
    """A moment, by the clock of whoever reads it."""
    return "" if value is None else value.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def state(job: JobInfo) -> str:
    """A job's state, with why it failed."""
    return f"{job.state} {job.error.code}" if job.error else str(job.state)


def speed(job: JobInfo) -> str:
    """A finished job's tokens a second."""
    return "" if job.timings.tokens_per_second is None else f"{job.timings.tokens_per_second:.1f}"
