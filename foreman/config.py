"""The settings: one class, made once from the environment; below it nothing sees the environment.

The fields of `Configuration` are the one table of settings.  Each names its default as a person would write it, its
kind (how it is read and printed, and what is allowed: `foreman.kinds`) and its purpose.  The reading of the
environment, the options of `twistd foreman`, the error texts and docs/configuration.md are all made from that.

`python -m foreman.config` prints docs/configuration.md.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import attrs
from attrs import field, frozen

from foreman import kinds
from foreman.durations import format_duration
from foreman.errors import ConfigurationError
from foreman.kinds import STARS, Address, Allowed, Kind, Secret, Wake

T = TypeVar("T")


def _setting(default: str, kind: Kind[T], purpose: str, *, secret: bool = False) -> T:
    """A field of `Configuration` that is a setting."""
    row = {"default": default, "kind": kind, "purpose": purpose, "secret": secret}
    made: T = field(default=kind.parse(default), metadata=row)
    return made


@frozen(kw_only=True)
class Configuration:
    """Every setting as foreman uses it.  Durations are seconds, sizes bytes; secrets print as stars.

    :raise ConfigurationError: for settings that contradict each other.
    """

    ollama_url: str = _setting("http://127.0.0.1:11434", kinds.URL, "the target, the one Ollama server")
    ollama_token: Secret[str] | None = _setting(
        "", kinds.optional(kinds.BEARER), "bearer token sent to the target", secret=True
    )
    addr: Address = _setting(
        "127.0.0.1:8080", kinds.ADDRESS, "where foreman listens; `:port` is every IPv4 address of the machine"
    )
    token: Secret[str] | None = _setting(
        "", kinds.optional(kinds.BEARER), "bearer token that callers must send", secret=True
    )
    db: str = _setting("foreman.db", kinds.FILE, "the SQLite file")
    embed_model: str | None = _setting(
        "", kinds.optional(kinds.MODEL), "the embedding model pinned beside the worker model"
    )
    keep_alive: int | str = _setting(
        "-1", kinds.KEEP_ALIVE, "how long the target keeps a model for jobs that do not say"
    )
    poll_interval: float = _setting("30s", kinds.duration(0.1), "how often the target is asked what it has and holds")
    load_timeout: float = _setting("10m", kinds.duration(0.001), "the longest a load may take")
    stall_timeout: float = _setting(
        "5m", kinds.duration(0.001), "the longest silence between the bytes of a streamed answer"
    )
    answer_timeout: float = _setting(
        "2h",
        kinds.duration(0.001),
        "the longest silence before the first byte, and for the whole of an unstreamed answer",
    )
    max_run: float = _setting("2h", kinds.duration(0.001), "the longest an async job may run, unless it says itself")
    max_result: int = _setting("64MiB", kinds.size(1), "the largest answer of an async job")
    sync_wait: float = _setting("3m", kinds.duration(), "how long a sync call waits while the target is down")
    hold_line: float = _setting(
        "4m",
        kinds.duration(),
        "the silence after which a waiting sync call gets its status early, and filler; longer than "
        "`FOREMAN_SYNC_WAIT`, or `0` (never)",
    )
    origins: tuple[str, ...] = _setting("", kinds.ORIGINS, "browser origins allowed beside Ollama's own defaults")
    max_attempts: int = _setting("3", kinds.count(1000), "the charged failures after which a job is given up")
    max_queue: int = _setting("1000000", kinds.count(10**9), "the most jobs that may wait")
    max_body: int = _setting("64MiB", kinds.size(1), "the largest request body")
    job_ttl: float = _setting("7d", kinds.duration(0.001), "how long finished jobs are kept")
    artifact_inline_max: int = _setting("256KiB", kinds.size(0), "the largest artifact that is given inside an answer")
    webhook_secret: Secret[bytes] | None = _setting(
        "", kinds.optional(kinds.WEBHOOK_SECRET), "signs webhooks", secret=True
    )
    webhook_secret_old: Secret[bytes] | None = _setting(
        "",
        kinds.optional(kinds.WEBHOOK_SECRET),
        "the secret before, which signs too while receivers change over",
        secret=True,
    )
    webhook_allow: Allowed = _setting(
        "",
        kinds.ALLOWED,
        "the only places webhooks may go; empty: anywhere but link-local and metadata addresses",
    )
    model_admin: bool = _setting("off", kinds.SWITCH, "whether callers may pull, create, copy, push and delete models")
    wake: Wake | None = _setting(
        "",
        kinds.optional(kinds.WAKE),
        "the target's hardware address, for Wake-on-LAN, and the IPv4 address to broadcast to",
    )
    shutdown_grace: float = _setting("30s", kinds.duration(), "how long a running job may go on after SIGTERM")
    log_format: str = _setting("text", kinds.one_of("text", "json"), "the form of the log's lines")
    log_level: str = _setting("info", kinds.one_of("debug", "info", "warn", "error"), "the least level that is logged")

    _sources: Mapping[str, str] = field(default=MappingProxyType({}), eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if 0 < self.hold_line <= self.sync_wait:
            raise ConfigurationError(
                f"FOREMAN_HOLD_LINE is '{format_duration(self.hold_line)}', "
                f"but must be 0 or longer than FOREMAN_SYNC_WAIT, which is '{format_duration(self.sync_wait)}'"
            )
        if self.webhook_secret_old is not None and self.webhook_secret is None:
            raise ConfigurationError(
                f"FOREMAN_WEBHOOK_SECRET_OLD is {STARS}, but may be given only beside FOREMAN_WEBHOOK_SECRET"
            )

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], overrides: Mapping[str, str] = MappingProxyType({})
    ) -> Configuration:
        """The settings of this process.  An empty value is the same as none.

        :param environ: as `os.environ`; only names that start with `FOREMAN_` are looked at.
        :param overrides: options of the command line under the variables' names; they win, empty ones too.
        :raise ConfigurationError: with one line that names the variable, its value and what is allowed.
        """
        _refuse_unknown([*environ, *overrides])
        values: dict[str, Any] = {}
        sources = {}
        for setting in SETTINGS:
            overridden = any(name in overrides for name in setting.variables)
            given = overrides if overridden else environ
            text = setting.read(given)
            if text is not None:
                values[setting.field] = setting.parse(text, file=given.get(f"{setting.variable}_FILE"))
                sources[setting.field] = "option" if overridden else "environment"
        return cls(**values, sources=sources)

    def effective(self) -> Iterator[tuple[str, str, str]]:
        """For the log at start: each variable, its value (secrets as stars) and where it comes from.

        The source is `default`, `environment` or `option`.
        """
        for setting in SETTINGS:
            value = getattr(self, setting.field)
            shown = STARS if setting.secret and value is not None else setting.kind.show(value)
            yield setting.variable, shown, self._sources.get(setting.field, "default")


@frozen(kw_only=True)
class Setting:
    """One row of the table.

    :ivar field: its name in `Configuration`.
    :ivar default: as it would be written in the environment.
    :ivar secret: never printed, and may be given in a file.
    """

    field: str
    default: str
    kind: Kind[Any]
    purpose: str
    secret: bool

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return f"FOREMAN_{self.field.upper()}"

    @property
    def variables(self) -> tuple[str, ...]:
        """Every name it may be given by."""
        return (self.variable, f"{self.variable}_FILE") if self.secret else (self.variable,)

    def read(self, texts: Mapping[str, str]) -> str | None:
        """What is given for it, out of its file if it is given so; None if nothing is.

        :raise ConfigurationError: for a file that cannot be used.
        """
        text = texts.get(self.variable) or None
        file = texts.get(f"{self.variable}_FILE") if self.secret else None
        if not file:
            return text
        given = f"{self.variable}_FILE is {_quoted(file)}"
        if text is not None:
            raise ConfigurationError(f"{given}, but may be given only without {self.variable}")
        try:
            with Path(file).open("rb") as opened:
                # A bound, for the day when somebody names a device.
                content = opened.read(2**16).decode("utf-8", "surrogateescape")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no such name"
            raise ConfigurationError(f"{given}, but must be a file that can be read: {reason}") from None
        content = re.sub(r"\r?\n\Z", "", content)
        if not 0 < len(content) < 2**15:
            raise ConfigurationError(f"{given}, but must be a file that holds a secret, of less than 32KiB")
        return content

    def parse(self, text: str, file: str | None = None) -> object:
        """The value of the setting.

        :param file: the name of the file that `text` is from, if it is from one.
        :raise ConfigurationError: with one line.
        """
        try:
            return self.kind.parse(text)
        except ValueError:
            if file:
                must = f"must be a file that holds {self.kind.allowed}"
                raise ConfigurationError(f"{self.variable}_FILE is {_quoted(file)}, but {must}") from None
            shown = STARS if self.secret else _quoted(re.sub(self.kind.hidden or r"\Z\A", f"{STARS}@", text))
            raise ConfigurationError(f"{self.variable} is {shown}, but must be {self.kind.allowed}") from None


SETTINGS = tuple(
    Setting(field=each.name, **each.metadata) for each in attrs.fields(Configuration) if "kind" in each.metadata
)


def _refuse_unknown(names: Iterable[str]) -> None:
    known = [name for setting in SETTINGS for name in setting.variables]
    for name in names:
        # FOREMAN_URL belongs to the client.
        if name.startswith("FOREMAN_") and name not in (*known, "FOREMAN_URL"):
            near = next(
                (each for each in known if each.startswith(name)),
                difflib.get_close_matches(name, known, n=1, cutoff=0)[0],
            )
            # Its value is not shown: it may well be a secret whose name was mistyped.
            raise ConfigurationError(
                f"{_quoted(name)[1:-1]} is {STARS}, but there is no such setting; did you mean {near}?"
            )


def _quoted(text: str) -> str:
    """A text for an error message: on one line, and not a novel."""
    return repr(text if len(text) <= 200 else f"{text[:200]}…")


_PAGE = """\
# Configuration

<!-- Made by `python -m foreman.config`; edit foreman/config.py instead. -->

foreman is configured by its environment. Every setting is also an option of `twistd foreman`, which wins:
`--ollama-url` for `FOREMAN_OLLAMA_URL`. An empty value is the same as none. A name that starts with `FOREMAN_` and is
not in the table, or a value that is not allowed, stops the start with one line that says so; only `FOREMAN_URL` is
passed over, which belongs to the client. (Kubernetes makes up such names for a service called `foreman`: set
`enableServiceLinks: false` there.)

Durations are Go's, and days: `500ms`, `30s`, `1h30m`, `7d`, `0`. Sizes are in bytes, or `KiB`, `MiB`, `GiB`. Lists are
separated by commas or blanks. A secret may be put into a file, whose name is then given by the variable that ends in
`_FILE`; one newline at the end of the file is no part of the secret. (A secret given as an option, `--token`, can be
read by every user of the machine in its list of processes: use `--token-file` or the environment.) The settings in
force are logged at start, secrets as stars.

| Variable | Default | What it is | Allowed |
|---|---|---|---|
"""


def page() -> str:
    """The text of docs/configuration.md."""
    rows = []
    for setting in SETTINGS:
        names = " or ".join(f"`{name}`" for name in setting.variables)
        default = f"`{setting.default}`" if setting.default else "empty"
        rows.append(f"| {names} | {default} | {setting.purpose} | {setting.kind.allowed} |\n")
    return _PAGE + "".join(rows)


if __name__ == "__main__":
    sys.stdout.write(page())
