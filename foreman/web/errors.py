"""Errors on the wire: the one table from exception to status, and the shape each API gives to an error.

`respond_error` ends a request with an exception; Klein's routes come to the same place through
`install_error_handlers`.  What is not in the table is a fault of ours: it is logged, and the client is told no detail.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson
import werkzeug.exceptions
from klein import Klein
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure
from twisted.web.server import Request
from werkzeug.routing import RequestRedirect

from foreman.errors import (
    Answered,
    Forbidden,
    ForemanError,
    KeyGone,
    KeyReused,
    NotReachable,
    QueueFull,
    Stalled,
    StoreError,
    TargetError,
    Unavailable,
    Unwritable,
)
from foreman.logs import make_logger

_log = make_logger()


# -- what only a web face can say --------------------------------------------------------------------------------------


class WebError(ForemanError):
    """A request that cannot be served as it came."""


class BadRequest(WebError):
    """The request is malformed; the text says where."""


class Unauthorized(WebError):
    """The token is missing or wrong."""


class Denied(WebError):
    """A browser page that may not talk to us, or a `Host` that is not ours.  Its answer has no body, as Ollama's."""


class NotFound(WebError):
    """There is no such thing here."""


class MethodNotAllowed(WebError):
    """The route exists, for other methods.

    :ivar allow: the methods it takes.
    """

    def __init__(self, message: str, *, allow: Iterable[str]) -> None:
        super().__init__(message)
        self.allow = allow


class BodyTooLarge(WebError):
    """The request's body is larger than FOREMAN_MAX_BODY."""


# -- the table ---------------------------------------------------------------------------------------------------------

STATUS: Mapping[type[BaseException], int] = MappingProxyType(
    {
        BadRequest: 400,
        Unauthorized: 401,
        Forbidden: 403,
        Denied: 403,
        NotFound: 404,
        MethodNotAllowed: 405,
        KeyGone: 410,
        BodyTooLarge: 413,
        KeyReused: 422,
        # Lost, Truncated, TooLarge and whatever else an answer of the target may suffer from
        TargetError: 502,
        StoreError: 503,
        QueueFull: 503,
        Unwritable: 503,
        Unavailable: 503,
        NotReachable: 503,
        # A handler is cancelled when its client leaves, who then reads no answer, or when foreman stops.
        CancelledError: 503,
        Stalled: 504,
    }
)
"""What each exception is on the wire; one that is not here counts as the nearest of its bases that is."""

RETRY_AFTER = 10
"""Seconds after which to come again, where a 503 does not say."""

_DESCRIBES_ANOTHER_BODY = (b"content-encoding", b"content-range", b"etag", b"last-modified")


def status_of(error: BaseException) -> int:
    """The status `error` is answered with; 500 for what nobody expected."""
    if isinstance(error, Answered):
        return error.status  # the target has said it already
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


# -- the shapes --------------------------------------------------------------------------------------------------------

_OPENAI_TYPES = {400: "invalid_request_error", 404: "not_found_error"}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


def error_document(path: bytes, status: int, message: str) -> dict[str, Any]:
    """The error object of the API that `path` (raw, without query) belongs to.

    `{"error": text}` for Ollama's native routes and our own; OpenAI's on `/v1`; Anthropic's on `/v1/messages`.  The
    types by status are Ollama's (`openai.NewError` and `anthropic.NewError`), which call the rest `api_error`.
    """
    path = unquote_to_bytes(path)
    if not path.startswith(b"/v1/"):
        return {"error": message}
    if not (path + b"/").startswith(b"/v1/messages/"):
        kind = _OPENAI_TYPES.get(status, "api_error")
        return {"error": {"message": message, "type": kind, "param": None, "code": None}}
    kind = _ANTHROPIC_TYPES.get(status, "api_error")
    return {
        "type": "error",
        "error": {"type": kind, "message": message},
        "request_id": f"req_{secrets.token_hex(12)}",
    }


def error_body(path: bytes, status: int, message: str) -> tuple[bytes, bytes]:
    """Content type and body of an error, in the shape of the API that `path` belongs to.

    As Ollama's: its native answers name a charset and have no newline, its `/v1` answers the other way about.
    """
    clean = message.encode(errors="replace").decode()  # a lone surrogate cannot be sent
    body = orjson.dumps(error_document(path, status, clean))
    if unquote_to_bytes(path).startswith(b"/v1/"):
        return b"application/json", body + b"\n"
    return b"application/json; charset=utf-8", body


# -- answering ---------------------------------------------------------------------------------------------------------


def render_error(request: Request, error: BaseException) -> bytes:
    """Set status and headers of `request` for `error`, and return the body that is still to be written.

    A head that is out already cannot be changed: then the connection is cut, so that nobody takes what came before
    for a whole answer.
    """
    status = status_of(error)
    if _unexpected(error):
        failure = Failure(error)
        _log.failure("{method!r} {path!r} failed", failure, method=request.method, path=request.path)
    if request.startedWriting:
        if request.transport is not None:
            request.transport.abortConnection()  # type: ignore[attr-defined]
        return b""
    headers = request.responseHeaders
    for name in _DESCRIBES_ANOTHER_BODY:
        headers.removeHeader(name)
    request.setResponseCode(status)
    retry_after = getattr(error, "retry_after", None) or (RETRY_AFTER if status == 503 else None)
    if retry_after is not None:
        headers.setRawHeaders(b"retry-after", [b"%d" % math.ceil(retry_after)])
    if isinstance(error, MethodNotAllowed):
        headers.setRawHeaders(b"allow", [", ".join(sorted(error.allow)).encode()])
    if isinstance(error, Unauthorized):
        headers.setRawHeaders(b"www-authenticate", [b"Bearer"])
    if isinstance(error, Denied):
        body = b""
        headers.removeHeader(b"content-type")
    else:
        content_type, body = error_body(request.path, status, message_of(error))
        headers.setRawHeaders(b"content-type", [content_type])
    headers.setRawHeaders(b"content-length", [b"%d" % len(body)])
    return body


def respond_error(request: Request, error: BaseException) -> None:
    """Answer `request` with `error` and finish it; nothing happens if it has ended already.

    If its head is out, its connection is cut instead.
    """
    if request.finished or request.channel is None:
        return
    cut = bool(request.startedWriting)
    body = render_error(request, error)
    if not cut:
        request.write(body)
        request.finish()


def install_error_handlers(app: Klein) -> None:
    """Make every failure of `app`'s routes and of its routing an answer by the table above.

    Klein's own answers to an unknown path, a wrong method and a missing or doubled slash are HTML and redirects.
    """

    def answer(*args: Any) -> bytes:
        # (request, failure), with the instance before them where the app is a class attribute.  Klein writes what is
        # returned and finishes the request.
        request, failure = args[-2:]
        return render_error(request, _ours(failure.value))

    app.handle_errors(Exception)(answer)  # type: ignore[arg-type]


def _ours(error: BaseException) -> BaseException:
    """`error`, in our words if it is of Klein's routing."""
    match error:
        case werkzeug.exceptions.MethodNotAllowed():
            return MethodNotAllowed("method not allowed", allow=error.valid_methods or ())
        case werkzeug.exceptions.NotFound() | RequestRedirect():
            return NotFound("not found")
    return error


def _unexpected(error: BaseException) -> bool:
    return status_of(error) == 500 and not isinstance(error, Answered)


def message_of(error: BaseException) -> str:
    """What a client is told of an error."""
    if isinstance(error, CancelledError):
        return "foreman is stopping"
    return "internal error" if _unexpected(error) else str(error)
