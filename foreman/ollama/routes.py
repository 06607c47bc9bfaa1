"""The one table of paths: what foreman does with each, and in whose dialect it speaks there.

Paths are matched percent-decoded and case-sensitively, as Ollama's router does; the query plays no part.

Redirects are foreman's own to answer, with Ollama's status and Location, and the path is never sent on as it came:
`/api/../api/chat` is an inference call for whoever cleans paths between foreman and Ollama, and must not pass the
queue by.  For the same reason what goes on is `Route.target`, written anew from the decoded path that was matched.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from html import escape
from http import HTTPStatus
from urllib.parse import quote_from_bytes, unquote_to_bytes

from attrs import frozen


class Kind(Enum):
    """What becomes of a request."""

    ROOT = auto()
    VERSION = auto()
    TAGS = auto()
    PS = auto()
    MODELS = auto()
    """`/v1/models` and `/v1/models/{id}`."""
    SHOW = auto()
    QUEUE = auto()
    EMBED = auto()
    ADMIN = auto()
    REDIRECT = auto()
    """The path is not clean: `Route.redirect` tells where to go."""
    CARRY = auto()
    """Anything else, a wrong method included: the target's answer is the answer."""


class Api(Enum):
    """Whose shapes of answers and errors a path speaks."""

    NATIVE = auto()
    OPENAI = auto()
    ANTHROPIC = auto()


@frozen(kw_only=True)
class Route:
    """Where a request goes.

    :ivar path: percent-decoded, without the query; bytes that are not UTF-8 are replaced.
    :ivar target: what goes to the target as the request's path: the decoded path encoded anew, with the query.
    :ivar streams: the endpoint can answer in a stream at all.
    :ivar default_stream: it does when the body says nothing about it.
    :ivar redirect: the Location of a redirect, None for all but `Kind.REDIRECT`; `redirect_status`: 301 or 307.
    """

    kind: Kind
    path: str
    target: bytes
    api: Api
    streams: bool = False
    default_stream: bool = False
    redirect: bytes | None = None
    redirect_status: int = 0


_TABLE: dict[bytes, tuple[Kind, tuple[bytes, ...]]] = {
    b"/": (Kind.ROOT, (b"GET", b"HEAD")),
    b"/api/version": (Kind.VERSION, (b"GET", b"HEAD")),
    b"/api/tags": (Kind.TAGS, (b"GET", b"HEAD")),
    b"/api/ps": (Kind.PS, (b"GET",)),
    b"/v1/models": (Kind.MODELS, (b"GET",)),
    b"/api/show": (Kind.SHOW, (b"POST",)),
    b"/api/chat": (Kind.QUEUE, (b"POST",)),
    b"/api/generate": (Kind.QUEUE, (b"POST",)),
    b"/v1/chat/completions": (Kind.QUEUE, (b"POST",)),
    b"/v1/completions": (Kind.QUEUE, (b"POST",)),
    b"/v1/responses": (Kind.QUEUE, (b"POST",)),
    b"/v1/messages": (Kind.QUEUE, (b"POST",)),
    b"/v1/audio/transcriptions": (Kind.QUEUE, (b"POST",)),
    b"/api/embed": (Kind.EMBED, (b"POST",)),
    b"/api/embeddings": (Kind.EMBED, (b"POST",)),
    b"/v1/embeddings": (Kind.EMBED, (b"POST",)),
    b"/api/pull": (Kind.ADMIN, (b"POST",)),
    b"/api/push": (Kind.ADMIN, (b"POST",)),
    b"/api/create": (Kind.ADMIN, (b"POST",)),
    b"/api/copy": (Kind.ADMIN, (b"POST",)),
    b"/api/delete": (Kind.ADMIN, (b"DELETE",)),
    b"/api/me": (Kind.ADMIN, (b"POST",)),
    b"/api/signout": (Kind.ADMIN, (b"POST",)),
}
_ONE_MODEL = re.compile(rb"/v1/models/[^/]+")
_ONE_BLOB = re.compile(rb"/api/blobs/[^/]+")
# Account and experimental routes grow with Ollama's releases, so whatever is below counts, by any method.
_ACCOUNT = re.compile(rb"/api/(?:user|experimental)/.+", re.DOTALL)

_STREAM_BY_DEFAULT = (b"/api/chat", b"/api/generate", b"/api/pull", b"/api/push", b"/api/create")
_STREAM_ON_REQUEST = (b"/v1/chat/completions", b"/v1/completions", b"/v1/responses", b"/v1/messages")

# A proxy's way to write a request: `GET http://host/path`.
_AUTHORITY = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/?]*")
_PATH_SAFE = "/$&+,:;=@~!'()*"
_PRINTABLE = bytes(range(0x21, 0x7F))


def match(method: bytes, raw_path: bytes) -> Route:
    """Where a request goes, by its method and its target as they came on the request line."""
    raw, _, query = raw_path.partition(b"?")
    if (authority := _AUTHORITY.match(raw)) is not None:
        raw = raw[authority.end() :]
    path = unquote_to_bytes(raw)
    clean = _cleaned(path)
    if clean != path:
        # Go's ServeMux answers before the router sees the path, by whatever method and wherever it leads.
        return _redirect(path, clean, query, HTTPStatus.TEMPORARY_REDIRECT)
    without_slash = path.rstrip(b"/")
    if path.endswith(b"/") and _kind(method, without_slash) is not None:
        # The router's own: only where the path without its slash is a route of that method.
        status = HTTPStatus.MOVED_PERMANENTLY if method == b"GET" else HTTPStatus.TEMPORARY_REDIRECT
        return _redirect(path, without_slash, query, status)
    return Route(
        kind=_kind(method, path) or Kind.CARRY,
        path=path.decode("utf-8", "replace"),
        target=_encoded(path, query),
        api=_api(path),
        streams=path in _STREAM_BY_DEFAULT or path in _STREAM_ON_REQUEST,
        default_stream=path in _STREAM_BY_DEFAULT,
    )


def redirect_page(route: Route) -> bytes:
    """The body of a redirect's answer to a GET, `text/html; charset=utf-8`; to other methods it is empty, as in Go."""
    location = escape((route.redirect or b"").decode("ascii")).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
    return f'<a href="{location}">{HTTPStatus(route.redirect_status).phrase}</a>.\n\n'.encode("ascii")


def _kind(method: bytes, path: bytes) -> Kind | None:
    kind, methods = _TABLE.get(path, (None, ()))
    if method in methods:
        return kind
    if method == b"GET" and _ONE_MODEL.fullmatch(path):
        return Kind.MODELS
    if (method in (b"POST", b"HEAD") and _ONE_BLOB.fullmatch(path)) or _ACCOUNT.fullmatch(path):
        return Kind.ADMIN
    return None


def _api(path: bytes) -> Api:
    if not path.startswith(b"/v1/"):
        return Api.NATIVE
    return Api.ANTHROPIC if path == b"/v1/messages" or path.startswith(b"/v1/messages/") else Api.OPENAI


def _cleaned(path: bytes) -> bytes:
    """The shortest equal path; a slash at the end is kept (Go's `cleanPath`)."""
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    end = b"/" if parts and path.endswith(b"/") else b""
    return b"/" + b"/".join(parts) + end


def _redirect(path: bytes, location: bytes, query: bytes, status: HTTPStatus) -> Route:
    return Route(
        kind=Kind.REDIRECT,
        path=path.decode("utf-8", "replace"),
        target=_encoded(location, query),
        api=_api(location),
        redirect=_encoded(location, query),
        redirect_status=status,
    )


def _encoded(path: bytes, query: bytes) -> bytes:
    target = quote_from_bytes(path, safe=_PATH_SAFE)
    if query:
        target += "?" + quote_from_bytes(query, safe=_PRINTABLE)
    return target.encode("ascii")
