"""Doing the steps of `foreman.client.steps` with httpx: blocking, or with asyncio."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing, closing
from ipaddress import ip_address
from typing import Any, TypeVar

import httpx

from foreman import __version__
from foreman.client.steps import Call, Give, Giving, Lost, Reply, Return, Send, Sleep, Step, advance

T = TypeVar("T")
V = TypeVar("V")

CONNECT = 10.0
"""Seconds that a connection may take to be made."""

LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
"""Each call that waits holds a connection, and none may keep another from being submitted."""


class Address:
    """Where foreman is, and how one proves that one may talk to it.

    :param base_url: such as `http://127.0.0.1:8080`.
    :param token: None if foreman has none.
    :raise ValueError: one of them cannot be right.
    :ivar is_here: it is this very machine.
    """

    def __init__(self, base_url: str, token: str | None) -> None:
        self.base_url = base_url.rstrip("/")
        try:
            url = httpx.URL(self.base_url)
        except httpx.InvalidURL:
            url = httpx.URL()
        if url.userinfo or url.query or url.fragment:  # not shown: it may be a password
            raise ValueError("foreman's URL has a scheme, a host and a path, and neither user nor query")
        # httpx takes a blank as part of the path, and the port modulo 65536.
        if url.scheme not in ("http", "https") or not url.host or " " in base_url or (url.port or 0) >= 2**16:
            raise ValueError(f"not a URL such as http://127.0.0.1:8080: {base_url!r}")
        self.is_here = _is_loopback(url.host)
        self._headers = {"User-Agent": f"foreman/{__version__}"}
        if token is not None:
            if not re.fullmatch("[!-~]+", token):
                raise ValueError("a token is printable ASCII without blanks")
            self._headers["Authorization"] = f"Bearer {token}"

    def settings(self) -> dict[str, Any]:
        """What an httpx client for this address is made with.  A proxy of the environment is not for this machine."""
        return {"limits": LIMITS, "trust_env": not self.is_here, "verify": httpx.create_ssl_context()}

    def request(self, http: httpx.Client | httpx.AsyncClient, step: Send) -> httpx.Request:
        """The request of a step, with what the caller's own client adds to each."""
        return http.build_request(
            step.method,
            self.base_url + step.path,
            params=step.query or None,
            headers={**self._headers, **step.headers},
            content=step.body,
            timeout=httpx.Timeout(step.silence, connect=min(CONNECT, step.silence), pool=None),
        )

    def lost(self, error: httpx.RequestError) -> Lost:
        """What a failure of the network is to an operation."""
        return Lost(f"{self.base_url}: {error or type(error).__name__}")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Lines:
    """Lines out of pieces.  Only a newline ends one: text may hold other ends of line as they are."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._searched = 0

    def add(self, piece: bytes) -> None:
        self._waiting += piece

    def take(self) -> bytes | None:
        """The next whole line; None if there is none yet."""
        end = self._waiting.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._waiting)
            return None
        line = bytes(self._waiting[:end])
        del self._waiting[: end + 1]
        self._searched = 0
        return line


def _reply(response: httpx.Response, body: bytes) -> Reply:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Reply(status=response.status_code, headers=headers, body=body)


# -- blocking ----------------------------------------------------------------------------------------------------------


class Wire:
    """Does operations while the caller waits.  Threads may share one."""

    def __init__(self, address: Address, http: httpx.Client, sleep: Callable[[float], None] = time.sleep) -> None:
        self.address = address
        self.http = http
        self._sleep = sleep

    def call(self, call: Call[T]) -> T:
        """Do an operation to its end."""
        steps: Generator[object, None, T] = self._do(call)
        while True:
            try:
                next(steps)
            except StopIteration as stop:
                result: T = stop.value
                return result

    def iterate(self, call: Giving[V]) -> Iterator[V]:
        """Do an operation, and yield what it gives."""
        yield from self._do(call)

    def _do(self, call: Generator[Step | Give[V], Any, T]) -> Generator[V, None, T]:
        with closing(call), closing(_Errand(self.address, self.http, self._sleep)) as errand:
            step = advance(call)
            while not isinstance(step, Return):
                if isinstance(step, Give):
                    yield step.value
                    step = advance(call)
                    continue
                try:
                    answer = errand.do(step)
                except BaseException as error:  # noqa: BLE001 - the operation's business, Ctrl-C included
                    step = advance(call, error=error)
                else:
                    step = advance(call, answer)
            return step.value


class _Errand:
    """What one operation has open."""

    def __init__(self, address: Address, http: httpx.Client, sleep: Callable[[float], None]) -> None:
        self._address = address
        self._http = http
        self._sleep = sleep
        self._response: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._lines = _Lines()

    def do(self, step: Step) -> object:
        """Do a step and return what came of it.

        :raise Lost: the network has failed it.
        """
        if isinstance(step, Sleep):
            return self._sleep(step.seconds)
        try:
            return self._send(step) if isinstance(step, Send) else self._line()
        except httpx.RequestError as error:
            raise self._address.lost(error) from error

    def _send(self, step: Send) -> Reply:
        self.close()
        response = self._http.send(self._address.request(self._http, step), stream=True)
        if step.follow and response.status_code < 300:
            self._response, self._pieces, self._lines = response, response.iter_bytes(), _Lines()
            return _reply(response, b"")
        with closing(response):
            return _reply(response, response.read())

    def _line(self) -> bytes | None:
        while (line := self._lines.take()) is None:
            if not (piece := next(self._pieces, b"")):
                return None
            self._lines.add(piece)
        return line

    def close(self) -> None:
        if self._response is not None:
            self._response.close()


# -- asyncio -----------------------------------------------------------------------------------------------------------


class AsyncWire:
    """Does operations for asyncio.  Tasks of one event loop may share one."""

    def __init__(
        self, address: Address, http: httpx.AsyncClient, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self.address = address
        self.http = http
        self._sleep = sleep

    async def call(self, call: Call[T]) -> T:
        """Do an operation to its end."""
        with closing(call):
            async with aclosing(_AsyncErrand(self.address, self.http, self._sleep)) as errand:
                step: Any = advance(call)
                while not isinstance(step, Return):
                    step = await errand.next(call, step)
                result: T = step.value
                return result

    async def iterate(self, call: Giving[V]) -> AsyncIterator[V]:
        """Do an operation, and yield what it gives."""
        with closing(call):
            async with aclosing(_AsyncErrand(self.address, self.http, self._sleep)) as errand:
                step = advance(call)
                while not isinstance(step, Return):
                    if isinstance(step, Give):
                        yield step.value
                        step = advance(call)
                    else:
                        step = await errand.next(call, step)


class _AsyncErrand:
    """What one operation has open."""

    def __init__(self, address: Address, http: httpx.AsyncClient, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._address = address
        self._http = http
        self._sleep = sleep
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None
        self._lines = _Lines()

    async def next(self, call: Generator[Any, Any, T], step: Step) -> Any:
        """Do a step; gives the operation's next one."""
        try:
            answer = await self._do(step)
        except BaseException as error:  # noqa: BLE001 - the operation's business, being cancelled included
            return advance(call, error=error)
        return advance(call, answer)

    async def _do(self, step: Step) -> object:
        if isinstance(step, Sleep):
            await self._sleep(step.seconds)
            return None
        try:
            return await (self._send(step) if isinstance(step, Send) else self._line())
        except httpx.RequestError as error:
            raise self._address.lost(error) from error

    async def _send(self, step: Send) -> Reply:
        await self.aclose()
        response = await self._http.send(self._address.request(self._http, step), stream=True)
        if step.follow and response.status_code < 300:
            self._response, self._pieces, self._lines = response, response.aiter_bytes(), _Lines()
            return _reply(response, b"")
        async with aclosing(response):
            return _reply(response, await response.aread())

    async def _line(self) -> bytes | None:
        while (line := self._lines.take()) is None:
            if self._pieces is None or not (piece := await anext(self._pieces, b"")):
                return None
            self._lines.add(piece)
        return line

    async def aclose(self) -> None:
        if self._response is not None:
            await self._response.aclose()
