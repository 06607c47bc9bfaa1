"""The blobs that jobs leave, as HTTP has them: whole or a range, to one who has them already or not, piece by piece."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from attrs import frozen
from twisted.web.server import Request

from foreman.record import ArtifactReference
from foreman.web.errors import NotFound, error_body
from foreman.web.pace import Pace
from foreman.work.archive import Archive

PIECE = 256 * 1024
"""Bytes of an artifact that are in memory at a time, for one reader."""

_RANGE = re.compile(r"bytes\s*=\s*([0-9]{0,19})\s*-\s*([0-9]{0,19})", re.IGNORECASE)


@frozen
class Span:
    """Bytes `start` to `end`, the latter not included."""

    start: int
    end: int


class Unsatisfiable(ValueError):
    """A range that begins behind the end."""


def span_of(header: str | None, size: int) -> Span | None:
    """The bytes that a `Range` header asks for, of so many.

    None for all of them: there is no header, or it is not one range of bytes and may be ignored (RFC 9110, 14.2).

    :raise Unsatisfiable: none of them is there.
    """
    match = _RANGE.fullmatch((header or "").strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:  # the last so many
        start, end = max(0, size - int(match[2])), size
    else:
        start, end = int(match[1]), int(match[2]) + 1 if match[2] else size
        if match[2] and start >= end:
            return None  # backwards
    if start >= size:
        raise Unsatisfiable
    return Span(start, min(end, size))


def _matches(header: str, etag: str) -> bool:
    """Whether an `If-None-Match` names this tag; the weak comparison."""
    return header.strip() == "*" or etag in [tag.strip().removeprefix("W/") for tag in header.split(",")]


async def pieces(archive: Archive, job_id: str, name: str, span: Span) -> AsyncIterator[bytes]:
    """The bytes of an artifact, in pieces.

    :raise NotFound: it was deleted meanwhile.
    """
    offset = span.start
    while offset < span.end:
        piece = await archive.read_artifact(job_id, name, offset, min(PIECE, span.end - offset))
        if not piece:
            raise NotFound("the job was deleted")
        offset += len(piece)
        yield piece


async def respond(request: Request, archive: Archive, job_id: str, artifact: ArtifactReference) -> bytes:
    """Answer a GET or HEAD of an artifact; gives what is still to be written."""
    headers, etag = request.responseHeaders, f'"{artifact.sha256}"'
    headers.setRawHeaders(b"etag", [etag.encode()])
    headers.setRawHeaders(b"accept-ranges", [b"bytes"])
    # What a model has written must not be taken for a page.
    headers.setRawHeaders(b"x-content-type-options", [b"nosniff"])
    known = request.getHeader("if-none-match")
    if known is not None and _matches(known, etag):
        request.setResponseCode(304)
        return b""
    try:
        span = span_of(request.getHeader("range"), artifact.size)
    except Unsatisfiable:
        request.setResponseCode(416)
        headers.setRawHeaders(b"content-range", [b"bytes */%d" % artifact.size])
        headers.removeHeader(b"etag")
        content_type, body = error_body(request.path, 416, f"the artifact has {artifact.size} bytes")
        headers.setRawHeaders(b"content-type", [content_type])
        headers.setRawHeaders(b"content-length", [b"%d" % len(body)])
        return body
    if span is not None and request.getHeader("if-range") in (None, etag):
        request.setResponseCode(206)
        headers.setRawHeaders(b"content-range", [b"bytes %d-%d/%d" % (span.start, span.end - 1, artifact.size)])
    else:
        span = Span(0, artifact.size)
    headers.setRawHeaders(b"content-type", [artifact.content_type.encode()])
    headers.setRawHeaders(b"content-length", [b"%d" % (span.end - span.start)])
    if request.method == b"HEAD":
        return b""
    pace = Pace(request)
    try:
        async for piece in pieces(archive, job_id, artifact.name, span):
            await pace.ready()
            request.write(piece)
    finally:
        pace.close()
    return b""
