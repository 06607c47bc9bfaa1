"""What an answer of the target says: whether it is complete, its numbers, its errors, and a stream as one answer.

`FinalWatch` looks on while bytes pass by: it keeps the last of them and reads nothing before the end.  `Folder` takes
a native stream apart and puts it together as `stream: false` would have answered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from attrs import frozen

from foreman.errors import TargetError, TooLarge
from foreman.ollama.routes import Api

LINE_LIMIT = 8 * 2**20
"""Bytes of the longest line; Ollama's own clients take no longer one either."""

_CLIPPED = 500
_PERHAPS_DEEP = 200
"""Brackets of a line that may be nested more deeply than orjson writes."""

TOO_DEEP = "an error that is nested too deeply"
_GLIMPSE = 64 * 2**10

# -- errors ----------------------------------------------------------------------------------------------------------


def error_text(body: bytes) -> str:
    """The text of an error answer: `.error`, or `.error.message` on `/v1`, else the body itself, clipped."""
    text = _error_in(_parsed(body)) or body.decode("utf-8", "replace").strip()
    return text if len(text) <= _CLIPPED else text[: _CLIPPED - 1] + "…"


def is_validation_error(status: int, text: str) -> bool:
    """Whether a 500 is the request's own fault (Ollama checks options and format late), so that no retry helps."""
    return status == 500 and text.startswith(('option "', "invalid format"))


def _error_in(answer: Mapping[str, Any]) -> str | None:
    error = answer.get("error")
    if isinstance(error, Mapping):
        error = error.get("message") or (TOO_DEEP if _is_deep(error) else orjson.dumps(error).decode())
    return error if isinstance(error, str) and error else None


def _is_deep(value: object) -> bool:
    """Whether a JSON value can be read, but is nested too deeply to be written."""
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        return True
    return False


def _parsed(data: bytes) -> dict[str, Any]:
    """The JSON object that `data` is, an empty one if it is none."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


# -- the end of an answer --------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Verdict:
    """What an answer that ended as HTTP says it should has turned out to be.

    :ivar complete: it has the end marker of its endpoint.
    :ivar error: the text of the error it is or ends in.
    :ivar prompt_tokens: and `output_tokens`, `load_ms`, `output_ms` (milliseconds of producing the output): None if
        the answer does not tell.
    """

    complete: bool
    error: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    load_ms: float | None = None
    output_ms: float | None = None


_SLACK = 64 * 1024
"""Bytes of passed lines that are not worth dropping."""

_LAST_LINES = 12
"""The last events of all dialects take fewer lines."""


class Tail:
    """The last bytes of what passes by, and no more of them than it takes; a chunk costs an append.

    :param limit: bytes that are kept in any case.
    :param lines: as many of the last lines are enough; None to keep bytes whatever the lines.
    :ivar whole: nothing has been dropped.
    """

    def __init__(self, limit: int = LINE_LIMIT, lines: int | None = None) -> None:
        self.whole = True
        self._limit = limit
        self._lines = lines
        self._chunks: list[bytes] = []
        self._size = 0
        self._trim_at = limit if lines is None else min(limit, _SLACK)
        self._cut = False  # the first line kept has lost its beginning

    def feed(self, chunk: bytes) -> None:
        """The next bytes."""
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size > self._trim_at:
            self._trim()

    def _trim(self) -> None:
        data = self.data()
        if self._lines is not None:
            _, *kept = data.rsplit(b"\n", self._lines + 1)
            if len(kept) > self._lines:
                self.whole, self._cut, data = False, False, b"\n".join(kept)
        if len(data) > self._limit:
            self.whole, self._cut, data = False, True, data[-self._limit :]
        self._chunks, self._size = [data], len(data)
        # Trimmed again when as much has come once more, so that each byte is moved a few times at most.
        self._trim_at = self._size + max(self._size, min(self._limit, _SLACK))

    def data(self) -> bytes:
        """The bytes that are kept."""
        return b"".join(self._chunks)

    def last_lines(self, count: int) -> list[bytes]:
        """The last `count` lines, blank ones left out; one that has lost its beginning is none."""
        lines = self.data().rstrip().rsplit(b"\n", count)
        if len(lines) > count or self._cut:
            del lines[0]
        return [line for line in lines if line.strip()]

    def last_line(self) -> bytes | None:
        """The last line that is not blank, None if there is none or it is longer than the limit."""
        lines = self.last_lines(1)
        return lines[0] if lines else None


class FinalWatch:
    """Looks at an answer that passes by, to tell at its end what it was.

    An unstreamed answer longer than `limit` is judged by its last 64 KiB, where `done` and the numbers stand unless
    hundreds of log probabilities come between; an unseen `done` counts as true.

    :param streamed: the request asked for a stream.
    """

    def __init__(self, api: Api, streamed: bool, limit: int = LINE_LIMIT) -> None:
        self._api = api
        self._streamed = streamed
        self._tail = Tail(limit, lines=_LAST_LINES if streamed else None)
        self.feed = self._tail.feed

    def verdict(self) -> Verdict:
        """What the answer was; to be asked when it has ended as HTTP says it should."""
        if not self._streamed:
            return self._unstreamed()
        if self._api is Api.NATIVE:
            # A load or unload request is answered by one object, stream or not; one without `done` is an embedding's.
            last = _parsed(self._tail.last_line() or b"")
            return _verdict(last, complete=last.get("done", bool(last)) is True)
        lines = self._tail.last_lines(_LAST_LINES)
        payloads = [line[5:].strip() for line in lines if line.startswith(b"data:")]
        return _of_events(payloads) if payloads else _verdict(_parsed(self._tail.data()), complete=False)

    def _unstreamed(self) -> Verdict:
        data = self._tail.data()
        answer = _parsed(data) if self._tail.whole else _glimpsed(data[-_GLIMPSE:])
        return _verdict(answer, complete=bool(data.strip()) and answer.get("done") is not False)


_END_TYPES = ("message_stop", "response.completed", "response.incomplete")


def _of_events(payloads: list[bytes]) -> Verdict:
    """The verdict on the last events of a server-sent stream, by their `data`."""
    events = [_parsed(payload) for payload in payloads]
    complete = payloads[-1] == b"[DONE]" or events[-1].get("type") in _END_TYPES
    # `/v1/responses` wraps the answer.  Usage stands in the last event, or in one shortly before it.
    answers = [inner if isinstance(inner := event.get("response"), dict) else event for event in events]
    usage = next((answer["usage"] for answer in reversed(answers) if answer.get("usage")), None)
    return _verdict({"usage": usage, "error": answers[-1].get("error")}, complete=complete)


def _verdict(answer: Mapping[str, Any], *, complete: bool) -> Verdict:
    error = _error_in(answer)
    usage = answer.get("usage")
    numbers = {**usage, **answer} if isinstance(usage, Mapping) else answer
    return Verdict(
        complete=complete and error is None,
        error=error,
        prompt_tokens=_count(numbers, "prompt_eval_count", "prompt_tokens", "input_tokens"),
        output_tokens=_count(numbers, "eval_count", "completion_tokens", "output_tokens"),
        load_ms=_milliseconds(answer, "load_duration"),
        output_ms=_milliseconds(answer, "eval_duration"),
    )


def _count(numbers: Mapping[str, Any], *names: str) -> int | None:
    return next((numbers[name] for name in names if type(numbers.get(name)) is int), None)


def _milliseconds(numbers: Mapping[str, Any], name: str) -> float | None:
    nanoseconds = _count(numbers, name)
    return None if nanoseconds is None else nanoseconds / 1e6


_SEEN = re.compile(
    rb'"(done|prompt_eval_count|eval_count|load_duration|eval_duration|prompt_tokens|completion_tokens|input_tokens'
    rb'|output_tokens)":\s*(true|false|[0-9]{1,18}\b)'
)


def _glimpsed(data: bytes) -> dict[str, Any]:
    """What the end of a long answer tells.  No text is mistaken for it: within a string the quotes are escaped."""
    return {name.decode(): orjson.loads(value) for name, value in _SEEN.findall(data)}


# -- a stream as one answer ------------------------------------------------------------------------------------------


class LineSplitter:
    """Lines out of chunks, wherever those are cut.

    :param limit: bytes of the longest line.
    """

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterable[bytes]:
        """The lines that `chunk` completes, without their ends; blank ones included.

        :raise TooLarge: a line, complete or not, is longer than the limit.
        """
        *lines, rest = chunk.split(b"\n")
        if lines:
            self._parts.append(lines[0])
            lines[0] = self.rest()
            self._parts.clear()
            self._size = 0
        if rest:
            self._parts.append(rest)
            self._size += len(rest)
        if self._size > self._limit or any(len(line) > self._limit for line in lines):
            raise TooLarge(f"a line of more than {self._limit} bytes")
        return lines

    def rest(self) -> bytes:
        """What has come of a line that is not complete."""
        return b"".join(self._parts)


_HEAD_ORDER = ("model", "remote_model", "remote_host", "created_at")
_CHAT_ORDER = (*_HEAD_ORDER, "message", "done", "done_reason", "_debug_info", "logprobs")
_GENERATE_ORDER = (*_HEAD_ORDER, "response", "thinking")
_MESSAGE_ORDER = ("role", "content", "thinking", "images", "tool_calls")


class Folder:
    """Folds a native chat or generate stream into the answer that `stream: false` would have given.

    Texts, tool calls and log probabilities are kept as bytes, so that the limit is one of memory too.  All but the ids
    of tool calls, `created_at` and the durations agree with Ollama's own unstreamed answer, the order of keys included.

    :param limit: bytes of the folded answer.
    :param line_limit: bytes of the longest line.
    """

    def __init__(self, limit: int, line_limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._splitter = LineSplitter(line_limit)
        self._content = bytearray()
        self._thinking = bytearray()
        self._tool_calls = bytearray()
        self._logprobs = bytearray()
        self._last: dict[str, Any] = {}
        self._error: dict[str, Any] | None = None

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the stream.

        :raise TooLarge: the answer, or a line, is larger than its limit; what was folded before stays.
        :raise TargetError: a line is not what Ollama sends.
        """
        for line in self._splitter.feed(chunk):
            if line.strip():
                self._fold(line)

    def close(self) -> None:
        """The stream has ended: the last line needs no end of its own.

        :raise TooLarge: as `feed`; and `TargetError` likewise.
        """
        self.feed(b"\n")

    @property
    def begun(self) -> bool:
        """Whether anything has been folded."""
        return bool(self._last)

    @property
    def pending(self) -> bytes:
        """What has come of a line that is not complete, and so is not folded yet."""
        return self._splitter.rest()

    @property
    def content(self) -> str:
        """The text so far."""
        return self._content.decode()

    @property
    def thinking(self) -> str:
        """The thoughts so far."""
        return self._thinking.decode()

    def verdict(self) -> Verdict:
        """What the stream was."""
        if self._error is not None:
            return _verdict(self._error, complete=False)
        return _verdict(self._last, complete=self._last.get("done") is True)

    def answer(self) -> bytes:
        """The one answer, of what has come so far."""
        folded = dict(self._last)
        if self._logprobs:
            folded["logprobs"] = _array(self._logprobs)
        message = folded.get("message")
        if not isinstance(message, dict):
            return orjson.dumps(_ordered(self._texts(folded, "response"), _GENERATE_ORDER))
        message = self._texts(message, "content")
        if self._tool_calls:
            message["tool_calls"] = _array(self._tool_calls)
        folded["message"] = _ordered(message, _MESSAGE_ORDER)
        return orjson.dumps(_ordered(folded, _CHAT_ORDER))

    def _texts(self, last: Mapping[str, Any], key: str) -> dict[str, Any]:
        thinking = {"thinking": self.thinking} if self._thinking else {}
        return {**last, key: self.content, **thinking}

    def _fold(self, line: bytes) -> None:
        reply = _parsed(line)
        if not reply:
            raise TargetError("The target sent a line that is no JSON object")
        if line.count(b"[") + line.count(b"{") > _PERHAPS_DEEP and _is_deep(reply):
            raise TargetError("The target sent a line that is nested too deeply")
        if "error" in reply:
            self._error = reply
            return
        message = reply.get("message")
        said = message if isinstance(message, dict) else reply
        _extend_text(self._content, said.get("response" if said is reply else "content"))
        _extend_text(self._thinking, said.get("thinking"))
        _extend_array(self._tool_calls, said.get("tool_calls"))
        _extend_array(self._logprobs, reply.get("logprobs"))
        self._last = reply
        size = len(self._content) + len(self._thinking) + len(self._tool_calls) + len(self._logprobs)
        if size > self._limit:
            raise TooLarge(f"an answer of more than {self._limit} bytes")


def _extend_text(text: bytearray, more: object) -> None:
    if isinstance(more, str):
        text += more.encode()


def _extend_array(array: bytearray, more: object) -> None:
    """Add the elements of a list to those that are kept, as JSON with a comma after each."""
    if isinstance(more, list) and more:
        array += orjson.dumps(more)[1:-1] + b","


def _array(elements: bytearray) -> orjson.Fragment:
    return orjson.Fragment(b"[" + bytes(elements[:-1]) + b"]")


def _ordered(fields: Mapping[str, Any], order: tuple[str, ...]) -> dict[str, Any]:
    """The same fields, those of `order` first."""
    return {name: fields[name] for name in (*order, *fields) if name in fields}
