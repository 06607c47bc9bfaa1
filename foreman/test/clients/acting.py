"""What the scripts of this folder share.

`python -m foreman.test.clients.with_<package> <act> <url>` performs one act of that package against a server.  It ends
with 0 if the client behaved as promised, else with a traceback.  Nothing here or there imports more of foreman, since
it is not installed where the packages are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

E = TypeVar("E", bound=BaseException)

ANSWER = (
    " alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey xray yankee zulu"
)
"""What `tiny-a` says."""

REFUSED = '"tiny-embed" does not support chat'
"""What Ollama says when `tiny-embed` is asked to chat, once it is its turn."""


def perform(*acts: Callable[[str], None]) -> None:
    """Perform the act that the command line names, on the server whose URL it gives."""
    name, url = sys.argv[1:]
    {act.__name__: act for act in acts}[name](url)


def together(*calls: Callable[[], object]) -> None:
    """Make all calls at once; raises what the first of them raised that did."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for call in [pool.submit(call) for call in calls]:
            call.result()


def raised(kind: type[E], call: Callable[[], object]) -> E:
    """The error that a call must end with."""
    try:
        returned = call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}, but {returned!r}")
