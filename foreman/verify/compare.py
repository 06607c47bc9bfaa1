"""Two answers to the same question, held against each other.

Bytes are compared as they came, but for values that no two answers share: times and ids, which have to be of the same
shape.  So spaces, the order of keys and the way a character is escaped count, too.  Where the target itself does not
say the same twice, texts are compared by their shape as well.

Headers that concern one connection only, `Date`, foreman's own (docs/http-api.md) and those by which a proxy names
itself are left out.
"""

from __future__ import annotations

import re

from foreman.verify.wire import Answer

_HOP_BY_HOP = {"connection", "keep-alive", "proxy-authenticate", "te", "trailer", "transfer-encoding", "upgrade"}
_OWN = {"x-foreman-job", "x-foreman-degraded", "server-timing", "age", "access-control-expose-headers"}
_PROXYS = {"alt-svc", "server", "strict-transport-security", "via"}
"""nginx names itself in each answer, and so each would be called different; neither Ollama nor foreman sends these."""
_STREAMS = ("application/x-ndjson", "text/event-stream")

_TIMES = "created_at|created|completed_at|expires_at|total_duration|load_duration|prompt_eval_duration|eval_duration"
_ID_PREFIXES = "call|chatcmpl|cmpl|fc|msg|req|resp|rs"
"""How made-up ids begin; `/v1/models` has names of models for ids."""

_STRING = rb'"(?:[^"\\]|\\.)*"'
_TIME = re.compile(rb'("(?:%b)": ?)(%b|[0-9]+)' % (_TIMES.encode(), _STRING))
_ID = re.compile(rb'("(?:[a-z]+_)?id": ?")((?:%b)[-_])[^"]*' % _ID_PREFIXES.encode())
_TEXT = re.compile(rb'("(?:content|response|thinking|text|delta)": ?)%b' % _STRING)
_COUNT = re.compile(rb'("(?:[a-z]+_)?(?:eval_count|tokens)": ?)[0-9]+')
_CONTEXT = re.compile(rb'("context": ?\[)[0-9,]*')


def differences(direct: Answer, through: Answer, method: str) -> list[str]:
    """What the two do not have in common, in words; nothing if they are the same."""
    return [
        *_status(direct, through),
        *_headers(direct, through, method),
        *_bodies(direct, through),
    ]


def shape_differences(direct: Answer, through: Answer, method: str) -> list[str]:
    """The same, where texts and their lengths may differ."""
    found = [*_status(direct, through), *_headers(direct, through, method)]
    # The kinds of pieces there are, in the order of their first appearance: a stream may be longer than the other.
    kinds = [list(dict.fromkeys(_shaped(data) for data in _units(answer))) for answer in (direct, through)]
    if kinds[0] != kinds[1]:
        found.append(_differ("shape of the body", b"".join(kinds[0]), b"".join(kinds[1])))
    return found


def _streams(answer: Answer) -> bool:
    """Whether an answer came as a stream of lines or events."""
    return (answer.header("content-type") or "").startswith(_STREAMS)


def _status(direct: Answer, through: Answer) -> list[str]:
    found = []
    if direct.status != through.status:
        found.append(f"status: {direct.status}, through foreman {through.status}")
    if direct.broken != through.broken:
        found.append(f"end: {direct.broken or 'whole'}, through foreman {through.broken or 'whole'}")
    return found


def _headers(direct: Answer, through: Answer, method: str) -> list[str]:
    one, other = _told(direct, method), _told(through, method)
    return [
        f"header {name}: {_or_none(one.get(name))}, through foreman {_or_none(other.get(name))}"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]


def _told(answer: Answer, method: str) -> dict[str, list[str]]:
    """The headers that have to be the same."""
    left_out = _HOP_BY_HOP | _OWN | _PROXYS | {"date"}
    if method != "HEAD":
        left_out |= {"content-length"}  # the body's own, which has been read by it
    told: dict[str, list[str]] = {}
    for name, value in answer.headers:
        if name not in left_out:
            told.setdefault(name, []).append(value)
    return told


def _or_none(values: list[str] | None) -> str:
    return "none" if values is None else ", ".join(map(repr, values))


def _bodies(direct: Answer, through: Answer) -> list[str]:
    one, other = _masked(direct.body), _masked(through.body)
    if one != other:
        return [_differ("body", one, other)]
    if _streams(direct):
        chunks = [[_masked(piece.data) for piece in answer.pieces] for answer in (direct, through)]
        if chunks[0] != chunks[1]:
            return [f"chunks: {len(chunks[0])}, through foreman {len(chunks[1])}, of the same bytes"]
    return []


def _units(answer: Answer) -> list[bytes]:
    """What a body is made of: chunks of a native stream, each a line; events, of which a chunk may hold several."""
    if (answer.header("content-type") or "").startswith("text/event-stream"):
        return answer.body.split(b"\n\n")
    return [piece.data for piece in answer.pieces] if _streams(answer) else [answer.body]


def _masked(body: bytes) -> bytes:
    """The body with times and ids brought to their shape."""
    return _ID.sub(rb"\1\2*", _TIME.sub(lambda match: match[1] + _clock(match[2]), body))


def _clock(value: bytes) -> bytes:
    return re.sub(rb"[0-9]+", b"0", re.sub(rb"\.[0-9]+", b"", value))


def _shaped(body: bytes) -> bytes:
    for pattern, shape in ((_TEXT, rb'\1"*"'), (_COUNT, rb"\g<1>0"), (_CONTEXT, rb"\1*")):
        body = pattern.sub(shape, body)
    return _masked(body)


def _differ(what: str, one: bytes, other: bytes) -> str:
    """Where two texts part, with what is around it."""
    at = next((place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(one), len(other)) if at is None else at
    begin = max(0, at - 30)
    clips = [text[begin : at + 50].decode("utf-8", "replace") or "nothing" for text in (one, other)]
    return f"{what}, from byte {begin}: {clips[0]!r}, through foreman {clips[1]!r}"
