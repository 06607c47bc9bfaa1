"""One HTTP request, and its body: bounded as it arrives, spooled to disk when it is large, let go exactly once.

Twisted takes in a whole body before anybody is asked to answer.  So whatever can be refused is refused when the head
is complete (`Site.admit`), and while the body comes its bytes are counted: against the limit of one request, and
against that of all requests together.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, Any, AnyStr
from urllib.parse import unquote_to_bytes

from attrs import define
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http import datetimeToString

from foreman.errors import ForemanError, Unavailable
from foreman.logs import make_logger
from foreman.transports import push
from foreman.web import cors
from foreman.web.errors import BodyTooLarge, render_error, respond_error

if TYPE_CHECKING:
    from foreman.web.site import Channel, Site

IN_MEMORY = 100_000
"""Bytes of a body that are kept in memory; a larger one goes to a temporary file."""

LINGER = 30.0
"""Seconds for which the rest of a refused body is read and dropped.

A connection that is closed with bytes unread is reset, and then the client may never see the answer."""

_ABSOLUTE_FORM = re.compile(rb"https?://(?:[^/?#@]*@)?([^/?#@]*)(.*)", re.IGNORECASE)

_log = make_logger()


@define
class Bodies:
    """How much is held of all request bodies together, in memory and spooled.

    :ivar limit: the most that may be held, in bytes.
    """

    limit: int
    held: int = 0

    def check(self, size: int) -> None:
        """See that there is room for `size` more bytes.

        :raise Unavailable: there is none now.
        """
        if self.held + size > self.limit:
            raise Unavailable("too many request bodies are waiting", retry_after=5)

    def hold(self, size: int) -> None:
        """Count `size` bytes in.

        :raise Unavailable: there is no room for them now.
        """
        self.check(size)
        self.held += size

    def release(self, size: int) -> None:
        """Count `size` bytes out."""
        self.held -= size


class Request(server.Request):
    """A request as foreman's faces get it.

    `uri` and `path` are as they came, but always in origin form (`/api/tags?x=1`); `args` holds the query only.

    :ivar authenticated: it brought the token, or none is set.
    :ivar preflight: it is a browser's question whether it may ask, already answered with yes.
    :ivar cors_headers: what its answer carries, whoever gives it, so that a page may read it.
    """

    site: Site
    channel: Channel
    content: Any
    defaultContentType = None  # noqa: N815 - Twisted's name; its default is HTML

    def __init__(self, channel: Channel, *args: Any) -> None:
        super().__init__(channel, *args, parsePOSTFormSubmission=False)  # type: ignore[no-untyped-call]
        self.site = channel.site
        self.authenticated = False
        self.preflight = False
        self.cors_headers: cors.Headers = []
        self._refusal: ForemanError | None = None
        self._lingering: IDelayedCall | None = None
        self._limit: int | None = 0
        self._held = 0
        self._spooled = False
        self._began: float | None = None

    def body(self) -> bytes:
        """The whole body, read from where it is kept; of an upload without a limit, take `content` instead."""
        self.content.seek(0)
        body: bytes = self.content.read()
        return body

    def getHeader(self, key: AnyStr) -> AnyStr | None:  # noqa: N802
        """The first value of a header, which is the one that Ollama reads; as text every byte is a Latin-1 character.

        Twisted's own gives the last, and fails where that is no UTF-8.
        """
        name = key if isinstance(key, bytes) else key.encode("ascii")
        values = self.requestHeaders.getRawHeaders(name)
        if not values:
            return None
        return values[0] if isinstance(key, bytes) else values[0].decode("latin-1")

    # -- arriving --------------------------------------------------------------------------------------------------

    def head_received(self, method: bytes, uri: bytes, version: bytes) -> None:
        """The request line and all headers are there; the body, if any, comes next."""
        self._began = self.site.reactor.seconds()
        self.method, self.clientproto = method, version
        if absolute := _ABSOLUTE_FORM.fullmatch(uri):
            # The authority stands for the Host header then (RFC 9112, 3.2.2).
            authority, uri = absolute.groups()
            uri = uri if uri.startswith(b"/") else b"/" + uri
            self.requestHeaders.setRawHeaders(b"host", [authority])
        self.uri = uri
        self.path = uri.partition(b"?")[0]

    def gotLength(self, length: int | None) -> None:
        """A body of `length` bytes follows (0: none, None: chunked): let it come, or refuse the request."""
        self.content = SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - closed at the request's end
        try:
            self._limit = self.site.admit(self)
            if self._limit is not None and length is not None:
                self._check_size(length)
                self.site.bodies.check(length)
        except ForemanError as error:
            if length is None or length > IN_MEMORY:
                self._refuse(error)
            else:
                self._refusal = error  # told when the body has come: that leaves the connection as good as new
                self.channel.hurry(LINGER)

    def handleContentChunk(self, data: bytes) -> None:
        """Keep the next bytes of the body, if they are welcome."""
        if self._refusal is not None:
            return
        self.channel.progress(len(data))
        try:
            if self._limit is not None:
                self._check_size(self._held + len(data))
                self.site.bodies.hold(len(data))
                self._held += len(data)
            if not self._spooled and self.content.tell() + len(data) > IN_MEMORY:
                self.site.spool()
                self._spooled = True
            self.content.write(data)
        except OSError as error:
            _log.warn("A request body cannot be spooled: {error}", error=error)
            self._refuse(Unavailable("there is no room for the request body", retry_after=30))
        except ForemanError as error:
            self._refuse(error)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The body is complete."""
        super().requestReceived(command, self.uri, version)  # type: ignore[no-untyped-call]

    def process(self) -> None:
        """Have the request answered."""
        if self._lingering is not None:
            self.finish()
            return
        self.prepath, self.postpath = [], [unquote_to_bytes(segment) for segment in self.path[1:].split(b"/")]
        try:
            if self._refusal is not None:
                respond_error(self, self._refusal)
            else:
                self.site.resource.render(self)
        except Exception as error:  # noqa: BLE001 - the last place where it can become an answer
            respond_error(self, error)

    def processingFailed(self, reason: Failure) -> Failure:  # noqa: N802
        """Answer with a failure that nobody handled; Twisted's own answer is HTML."""
        if reason.value is not None:
            respond_error(self, reason.value)
        return reason

    def getRequestHostname(self) -> bytes:  # noqa: N802
        """A fixed name: Klein asks for it, makes nothing of it here, and fails on odd `Host` headers."""
        return b"foreman"

    def _check_size(self, size: int) -> None:
        if self._limit is not None and size > self._limit:
            raise BodyTooLarge(f"the request body is too large: at most {self._limit} bytes are taken")

    def _refuse(self, error: ForemanError) -> None:
        """Answer now, though the body is still coming; close when it has come, or when `LINGER` is over."""
        self._refusal = error
        self._release()
        self.content.close()
        self.content = io.BytesIO()
        self.requestHeaders.removeHeader(b"expect")  # no "100 Continue" after this answer
        self.channel.persistent = False
        self.responseHeaders.setRawHeaders(b"connection", [b"close"])
        self.write(render_error(self, error))
        self._lingering = self.site.reactor.callLater(LINGER, self.finish)

    # -- answering -------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send bytes of the answer, its head first.

        The CORS headers are set only here, so that nothing a handler sets or carries can double or remove them.
        """
        if not self.startedWriting:
            headers = self.responseHeaders
            if not headers.hasHeader(b"date"):
                headers.setRawHeaders(b"date", [datetimeToString()])
            for name, values in self.cors_headers:
                others = headers.getRawHeaders(name, []) if name == b"vary" else []
                headers.setRawHeaders(name, [*values, *(value for value in others if value not in values)])
        super().write(data)  # type: ignore[no-untyped-call]

    def push(self, pieces: Iterable[bytes]) -> None:
        """Send pieces of a body whose head is written, each as a chunk of its own, in this turn of the reactor."""
        push(self.transport, self._framed(pieces))

    def finish(self, pieces: Iterable[bytes] = ()) -> None:
        """The answer is complete with these pieces of its body; they, and all before them, go out in this turn too."""
        self.transport.write(self._framed(pieces))  # type: ignore[union-attr]
        super().finish()  # type: ignore[no-untyped-call]
        push(self.transport)
        self._end(self.code)

    def connectionLost(self, reason: Failure) -> None:
        """The client has left, or was cut off, before the answer was complete."""
        self._end("left")
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    def _framed(self, pieces: Iterable[bytes]) -> bytes:
        if self.chunked:
            pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
        data = b"".join(pieces)
        self.sentLength += len(data)
        return data

    def _release(self) -> None:
        self.site.bodies.release(self._held)
        self._held = 0
        self.site.files -= self._spooled
        self._spooled = False

    def _end(self, how: int | str) -> None:
        self._release()
        if self._lingering is not None and self._lingering.active():
            self._lingering.cancel()
        if self._began is not None:
            _log.debug(
                "{method} {path} {how} {ms} ms {size} bytes",
                method=self.method.decode(),
                path=self.path.decode(),
                how=how,
                ms=round((self.site.reactor.seconds() - self._began) * 1000),
                size=self.sentLength,
            )
