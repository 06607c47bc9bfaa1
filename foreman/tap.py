"""What `twistd foreman` runs: an option for each setting, and the service made of them."""

from __future__ import annotations

import os
import sys
from typing import ClassVar

from twisted.application.service import IService
from twisted.python.usage import Options as UsageOptions

from foreman import __version__
from foreman.config import SETTINGS, Configuration
from foreman.errors import ConfigurationError

_VARIABLES = {
    variable.removeprefix("FOREMAN_").lower().replace("_", "-"): variable
    for setting in SETTINGS
    for variable in setting.variables
}
"""From each option to the variable it overrides."""


_IN_SIGHT = frozenset(setting.variable for setting in SETTINGS if setting.secret)
"""The variables whose options put a secret into the command line."""


def _parameters() -> list[list[str | None]]:
    """What usage.Options calls a parameter: long and short name, default, description."""
    purposes = {
        variable: (f"file that holds it: {setting.purpose}" if variable.endswith("_FILE") else setting.purpose)
        + (f" [{setting.default}]" if setting.default else "")
        + (" (other users can see it in the list of processes)" if variable in _IN_SIGHT else "")
        for setting in SETTINGS
        for variable in setting.variables
    }
    return [[option, None, None, purposes[variable]] for option, variable in _VARIABLES.items()]


class Options(UsageOptions):
    """The options of `twistd foreman`: each overrides the variable of its name."""

    synopsis = "[options]"
    longdesc = "Each option overrides an environment variable: --ollama-url FOREMAN_OLLAMA_URL, and so on."
    optParameters: ClassVar = _parameters()

    def opt_version(self) -> None:
        """Display foreman's version and exit."""
        sys.stdout.write(f"foreman {__version__}\n")
        raise SystemExit


def makeService(options: Options) -> IService:
    """The service that is foreman, configured by the environment and the options.

    :raise SystemExit: for settings that cannot be used; Python then prints its one line to stderr and exits with 1.
    """
    # A UsageError would be lost in two pages of help, printed to stdout.
    overrides = {variable: options[option] for option, variable in _VARIABLES.items() if options[option] is not None}
    try:
        configuration = Configuration.from_environment(os.environ, overrides)
    except ConfigurationError as error:
        raise SystemExit(f"foreman: {error}") from None

    # Importing the reactor installs one, so it waits until twistd has chosen.
    from twisted.internet import reactor  # noqa: PLC0415

    from foreman.service import Foreman  # noqa: PLC0415

    return Foreman(configuration, reactor)
