"""The log: one line an event on stdout, as text or JSON.  The only module that knows txaio.

Everybody writes `_log = make_logger()` and logs named fields, `_log.info("loaded {model} in {seconds} s", job=…, …)`.
The fields `job` and `model` are shown behind the message whether or not it mentions them.

twistd itself begins the logging (`txaio.start_logging` would begin it a second time): it takes the observer that
`install` left on the application, and hands it what was logged before, so nothing of the start is lost.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol, TextIO

from attrs import frozen
from twisted.application.service import IServiceCollection
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from txaio import tx
from zope.interface import implementer

from foreman.config import Configuration


class Logger(Protocol):
    """What `make_logger` gives: a method for each level, taking a format and its fields."""

    def debug(self, format: str, **fields: object) -> None: ...  # noqa: A002, D102 - the logging system's own name
    def info(self, format: str, **fields: object) -> None: ...  # noqa: A002, D102
    def warn(self, format: str, **fields: object) -> None: ...  # noqa: A002, D102
    def error(self, format: str, **fields: object) -> None: ...  # noqa: A002, D102
    def critical(self, format: str, **fields: object) -> None: ...  # noqa: A002, D102
    def failure(self, format: str, failure: Failure | None = None, **fields: object) -> None:  # noqa: A002
        """Log a failure, or the exception being handled, with its traceback."""


make_logger: Callable[[], Logger] = tx.make_logger
"""A logger named after the module or the class it is made in.  Its debug events are dropped before `install`."""

HIDDEN = frozenset(
    {
        # secrets
        *("authorization", "api_key", "cookie", "password", "secret", "token", "x_api_key"),
        *("ollama_token", "webhook_secret", "webhook_secret_old"),
        # what people say to models and hear from them, and what holds it
        *("answer", "body", "content", "headers", "messages", "prompt", "request", "response", "result"),
    }
)
"""Fields that are printed as stars, should anybody log one."""

_NOISE = ("Starting factory", "Stopping factory", "Timing out client")
"""What Twisted's classes say at info level under the names of our subclasses of them."""


@implementer(ILogObserver)
@frozen
class Observer:
    """An observer that writes each event of `level` and above as one line.

    Twisted's own information (ports opened, factories started, clients timed out) counts as debug.

    :ivar format: `text` or `json`.
    :ivar level: `debug`, `info`, `warn` or `error`.
    :ivar stream: where the lines go; flushed after each.
    """

    format: str
    level: str
    stream: TextIO

    def __call__(self, event: LogEvent) -> None:
        """Write the event, if it is of the level."""
        level = _level(event)
        if level < LogLevel.lookupByName(self.level):
            return
        shown = {name: "***" if name in HIDDEN else value for name, value in event.items()}
        fields = {
            "time": _timestamp(event["log_time"]),
            "level": level.name,
            "message": formatEvent(shown),
            **{name: str(event[name]) for name in ("job", "model") if event.get(name) is not None},
        }
        if isinstance(failure := event.get("log_failure"), Failure):
            fields["message"] = fields["message"] or failure.getErrorMessage()
            fields["traceback"] = failure.getTraceback()
        line = json.dumps(fields) if self.format == "json" else _text(fields)
        # In one piece, since other threads log too; in a character set that lacks a letter, its number is written.
        encoding = self.stream.encoding or "utf-8"
        self.stream.write(f"{line}\n".encode(encoding, "backslashreplace").decode(encoding))
        self.stream.flush()


def install(parent: IServiceCollection, config: Configuration) -> None:
    """Log as the settings say, on stdout; to be called from the top service's `setServiceParent`.

    twistd's application takes the observer from here; any other parent has begun its logging by itself.
    """
    tx.set_global_log_level(config.log_level)  # type: ignore[no-untyped-call]
    if isinstance(parent, Componentized):
        # twistd is about to put a stand-in that logs in the place of sys.stdout; this is the real one.
        observer = Observer(config.log_format, config.log_level, sys.stdout)
        parent.setComponent(ILogObserver, observer)  # type: ignore[no-untyped-call]


def _level(event: LogEvent) -> LogLevel:
    level: LogLevel = event.get("log_level") or LogLevel.info
    ours = str(event.get("log_namespace")).startswith("foreman")
    noise = str(event.get("log_format")).startswith(_NOISE)
    return LogLevel.debug if level == LogLevel.info and (noise or not ours) else level


def _timestamp(seconds: float) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(fields: dict[str, str]) -> str:
    named = "".join(f" {name}={fields[name]}" for name in ("job", "model", "traceback") if name in fields)
    line = f"{fields['time']} {fields['level']:<5} {fields['message']}{named}"
    # Nothing that is logged may begin a line of its own, or move the reader's cursor.
    if line.isprintable():
        return line
    return "".join(character if character.isprintable() else _escaped(character) for character in line)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
