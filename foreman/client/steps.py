"""What an operation of the client is made of: the steps it yields, and what comes back.

An operation is a generator that does nothing itself.  It yields steps (send this, sleep so long, the next line please)
and is sent what came of them, as httpx's own authentication flows are; `foreman.client.wire` does the steps, blocking
or with asyncio.  So both clients do the same, and tests need neither sockets nor time.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

from attrs import field, frozen

from foreman.client.errors import NotForeman

T = TypeVar("T")
V = TypeVar("V")

SILENCE = 30.0
"""Seconds for which an answer may keep us waiting, beyond what we have asked it to."""


@frozen(kw_only=True)
class Send:
    """Send a request; what comes back is a `Reply`.

    :ivar silence: seconds for which the answer may keep us waiting.
    :ivar follow: leave the body of a good answer to `NextLine`.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(factory=dict)
    headers: Mapping[str, str] = field(factory=dict)
    body: bytes | None = None
    silence: float = SILENCE
    follow: bool = False


@frozen
class NextLine:
    """What comes back is the next line of the body that is followed, as bytes; None at its end."""


@frozen
class Sleep:
    """Do nothing for so many seconds."""

    seconds: float


@frozen
class Give(Generic[V]):
    """Give the caller a value, and go on when it wants more."""

    value: V


@frozen
class Return(Generic[T]):
    """The operation is over; yielded by `advance`, never by an operation."""

    value: T


class Lost(Exception):
    """What a step is answered with when the network fails it; the text says how."""


@frozen(kw_only=True)
class Reply:
    """An answer.

    :ivar headers: by their names in lower case.
    """

    status: int
    headers: Mapping[str, str] = field(factory=dict)
    body: bytes = b""

    @property
    def document(self) -> Any:
        """The body as JSON.

        :raise NotForeman: it is none.
        """
        try:
            return json.loads(self.body)
        except ValueError:
            raise NotForeman(f"an answer is no JSON: {self.body[:200]!r}") from None


Step: TypeAlias = Send | NextLine | Sleep
Call: TypeAlias = Generator[Step, Any, T]
"""An operation that ends in a value."""
Giving: TypeAlias = Generator[Step | Give[V], Any, None]
"""An operation that gives values as it goes."""


def advance(
    call: Generator[Step | Give[V], Any, T], answer: object = None, error: BaseException | None = None
) -> Step | Give[V] | Return[T]:
    """Tell an operation what came of its last step, and get the next one."""
    try:
        return call.send(answer) if error is None else call.throw(error)
    except StopIteration as stop:
        return Return(stop.value)
