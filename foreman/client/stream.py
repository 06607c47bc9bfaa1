"""What has been read of a stream, so that after a dropped connection nothing is told twice and nothing is left out.

foreman begins each connection with all that the running attempt has produced so far, as one line.  If that begins with
what was told already, the rest of it is told; if not, another attempt is running, and it is told as a restart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from foreman.client.values import Chunk


class Told:
    """What was told of a native stream.

    :ivar last: the line that said that the answer is whole; None if another has come since.
    """

    def __init__(self) -> None:
        self.last: Mapping[str, Any] | None = None
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[Mapping[str, Any]] = []
        self._first = True

    def begin(self) -> None:
        """A connection begins: its first line has all there is."""
        self._first = True

    def line(self, line: bytes) -> Chunk | None:
        """What is new in a line; None if nothing is, as in filler, or where it tells how an attempt ended."""
        try:
            document = json.loads(line) if line.strip() else {}
        except ValueError:
            document = {}
        if not isinstance(document, dict) or not document or "error" in document:
            return None
        message = document.get("message")
        said = message if isinstance(message, dict) else document
        text = said.get("response" if said is document else "content") or ""
        thinking = said.get("thinking") or ""
        calls = list(said.get("tool_calls") or ())
        restart = False
        if self._first:
            text, thinking, calls, restart = self._rest(text, thinking, calls)
            self._first = False
        self._text.append(text)
        self._thinking.append(thinking)
        self._calls += calls
        self.last = document if document.get("done") is True else None
        if not (text or thinking or calls or restart):
            return None
        return Chunk(text=text, thinking=thinking, tool_calls=tuple(calls), is_restart=restart, document=document)

    def _rest(
        self, text: str, thinking: str, calls: list[Mapping[str, Any]]
    ) -> tuple[str, str, list[Mapping[str, Any]], bool]:
        """What of all there is was not told yet, and whether it is another attempt's."""
        told, thought, called = "".join(self._text), "".join(self._thinking), len(self._calls)
        if text.startswith(told) and thinking.startswith(thought) and calls[:called] == self._calls:
            return text[len(told) :], thinking[len(thought) :], calls[called:], False
        self._text, self._thinking, self._calls = [], [], []
        return text, thinking, calls, True
