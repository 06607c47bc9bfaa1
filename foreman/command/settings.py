"""Which foreman is meant: the options, the environment and the settings file, in this order."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen
from platformdirs import user_config_path

DEFAULT_URL = "http://127.0.0.1:8080"


class UnusableSettings(Exception):
    """The settings file cannot be used; the text says why."""


@frozen
class Settings:
    """Where foreman is.

    :ivar token: its FOREMAN_TOKEN; None if it has none.
    :ivar kept: the token is the settings file's.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    kept: bool = False


def settings_path() -> Path:
    """Where the settings file is on this platform: `~/.config/foreman/config.toml` on Linux."""
    try:
        folder = user_config_path("foreman", appauthor=False)
    except RuntimeError:  # a user without a home, as in a container that does not say one; most make it so
        folder = Path("/.config/foreman")
    return folder / "config.toml"


def others_can_read(path: Path) -> bool:
    """Whether other users of this machine can read the settings file; not known on Windows."""
    return os.name == "posix" and path.exists() and bool(path.stat().st_mode & 0o044)


def read_settings(url: str | None, environ: Mapping[str, str], path: Path) -> Settings:
    """Find out which foreman is meant.

    A token goes with the address it was written beside: the file's token is not sent to an address from elsewhere.
    FOREMAN_TOKEN_FILE is the daemon's setting; where the daemon runs it serves the command too.

    :param url: what the command line says, None if nothing.
    :param path: the settings file: TOML, `url = "…"` and `token = "…"`; it need not be there.
    :raise UnusableSettings: the settings file is there, and cannot be used; or the token's file cannot.
    """
    kept = _kept(path)
    given = url or environ.get("FOREMAN_URL") or None
    where = given or kept.get("url") or DEFAULT_URL
    if token := environ.get("FOREMAN_TOKEN") or _token_in(environ.get("FOREMAN_TOKEN_FILE")):
        return Settings(where, token)
    if "token" in kept and given in (None, kept.get("url")):
        return Settings(where, kept["token"], kept=True)
    return Settings(where)


def _token_in(name: str | None) -> str | None:
    """The token in a file as the daemon reads it, less one newline at its end."""
    if not name:
        return None
    try:
        return Path(name).read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, ValueError) as error:
        raise UnusableSettings(f"FOREMAN_TOKEN_FILE: {error}") from error


def _kept(path: Path) -> dict[str, str]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UnusableSettings(f"{path}: {error}") from error
    for name, value in document.items():
        if name not in ("url", "token"):
            raise UnusableSettings(f"{path}: there is no setting {name!r}; there are url and token")
        if not isinstance(value, str) or not value:
            raise UnusableSettings(f"{path}: {name} is not a text")
    return document
