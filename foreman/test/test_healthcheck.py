"""A container says whether its foreman is well: wherever it listens, soon, and by nobody else's word."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.utils import getProcessOutputAndValue

from foreman.config import SETTINGS
from foreman.healthcheck import place
from foreman.kinds import ADDRESS
from foreman.test.certificates import certificate
from foreman.test.harness import daemon, fake_ollama, house, reactor

ROOT = str(Path(__file__).parents[2])


async def check(addr: str, *arguments: str, environ: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run it as the container does; returns the exit status and what it said."""
    environment = {"FOREMAN_ADDR": addr, "PYTHONPATH": ROOT, **(environ or {})}
    arguments = arguments or ("-m", "foreman.healthcheck")
    out, err, status = await getProcessOutputAndValue(sys.executable, arguments, env=environment, reactor=reactor)
    return status, (out + err).decode()


class Saying(Protocol):
    """A server that says one thing to whoever asks."""

    def __init__(self, what: bytes) -> None:
        self.what = what

    def dataReceived(self, data: bytes) -> None:
        """Say it."""
        assert self.transport is not None
        if self.what:
            self.transport.write(self.what)
            self.transport.loseConnection()


@asynccontextmanager
async def saying(what: bytes) -> AsyncIterator[str]:
    """The address of somebody who says `what`, or nothing."""
    port: Any = reactor.listenTCP(0, Factory.forProtocol(lambda: Saying(what)), interface="127.0.0.1")
    try:
        yield f"127.0.0.1:{port.getHost().port}"
    finally:
        await port.stopListening()


# -- where -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "addr",
    [
        ":8080",
        "0.0.0.0:8080",
        "192.0.2.1:80",
        "localhost:8080",
        "[::]:8080",
        "[::1]:8080",
        "tcp:8080",
        "tcp:8080:192.0.2.1",
        "tcp:backlog=5:interface=192.0.2.1:port=8080",
        "tcp6:8080",
        r"tcp6:8080:interface=\:\:1",
        r"tcp6:8080:50:\:\:1",
        "unix:/run/foreman.sock",
        "unix:mode=660:address=/run/foreman.sock",
        r"unix:/run/a\:b\=c\\d:lockfile=0",
    ],
)
def test_it_looks_where_foreman_listens(addr: str) -> None:
    """Each way of writing FOREMAN_ADDR means to the check what it means to foreman."""
    endpoint = vars(serverFromString(None, ADDRESS.parse(addr).endpoint))
    found = place(addr).address
    if isinstance(found, str):
        assert found == endpoint["_address"]
    else:
        host, port = found
        everywhere = endpoint["_interface"] in ("", "0.0.0.0", "::")  # noqa: S104
        assert port == endpoint["_port"]
        assert host == ("localhost" if everywhere else endpoint["_interface"])


def test_without_a_setting_it_looks_where_foreman_is_then() -> None:
    """FOREMAN_ADDR unset or empty is foreman's default here, too."""
    [default] = [setting.default for setting in SETTINGS if setting.variable == "FOREMAN_ADDR"]
    assert f'"{default}"' in (Path(ROOT) / "foreman" / "healthcheck.py").read_text()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    "addr",
    [
        ":{port}",
        "[::]:{port}",
        r"tcp6:{port}:interface=\:\:ffff\:127.0.0.1",
        "haproxy:tcp:{port}",
        "ssl:{port}:privateKey={folder}/key.pem:certKey={folder}/root.pem",
        "tls:{folder}/names:{port}",
    ],
)
async def test_foreman_is_well_wherever_it_listens(addr: str, tmp_path: Path) -> None:
    """0 and nothing said, in every form, encrypted or behind a proxy's greeting; also while the target is down."""
    certificate(tmp_path, x509.DNSName("foreman.example"))
    (tmp_path / "names").mkdir()
    both = [(tmp_path / name).read_text() for name in ("key.pem", "root.pem")]
    (tmp_path / "names" / "foreman.example.pem").write_text("".join(both))
    settings = {"ADDR": addr.format(port=0, folder=tmp_path), "OLLAMA_URL": "http://127.0.0.1:9"}
    async with house(settings, wait=False) as home:
        port = home.url.rpartition(":")[2]
        assert await check(addr.format(port=port, folder=tmp_path)) == (0, "")


@pytest_twisted.ensureDeferred
async def test_a_socket_file_is_found(tmp_path: Path, socket_file: Path) -> None:
    """`unix:…` with a token set, as a proxy on the same machine has it: the check needs none."""
    addr = f"unix:{socket_file}"
    async with fake_ollama() as fake, daemon(tmp_path, fake.url, {"ADDR": addr, "TOKEN": "secret"}) as foreman:
        assert await check(addr) == (0, "")
        await foreman.end()
    status, why = await check(addr)
    assert status == 1
    assert "No such file" in why


# -- what it hears -----------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 503 Service Unavailable",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/",
        b"HTTP/1.1 2000",
        b"200 OK",
    ],
)
async def test_only_200_is_well(said: bytes) -> None:
    """Anything else is 1 and one line that quotes it; a redirect is followed nowhere."""
    async with saying(said + b"\r\n\r\n") as addr:
        status, why = await check(addr)
    assert status == 1
    assert why.count("\n") == 1
    assert said.partition(b"\r")[0].decode() in why


@pytest_twisted.ensureDeferred
async def test_silence_is_not_awaited_for_long() -> None:
    """Of somebody who says nothing the check says so itself, before it is stopped from outside."""
    async with saying(b"") as addr:
        soon = "import os; from foreman import healthcheck as h; h.PATIENCE = 0.3; h.main(os.environ)"
        assert await check(addr, "-c", soon) == (1, f"no answer from {addr} within 0.3 s\n")


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("addr", "why"),
    [
        ("systemd:domain=INET:index=0", "known to systemd alone"),
        ("127.0.0.1:0", "names no port"),
        ("tcp:interface=127.0.0.1", "names no port"),
        ("nonsense", "names no port"),
        ("unix:/nowhere/s", "No such file"),
        ("unix:", "Invalid argument"),
        ("127.0.0.1:9", "refused"),
    ],
)
async def test_what_cannot_be_asked_is_told(addr: str, why: str) -> None:
    """1, and one line with the address and the reason."""
    status, said = await check(addr)
    assert (status, said.count("\n")) == (1, 1)
    assert f"foreman cannot be asked at {addr}: " in said
    assert why in said


@pytest_twisted.ensureDeferred
async def test_a_proxy_in_the_environment_is_not_asked() -> None:
    """The check is of this container: what the environment says of proxies is for others."""
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    async with saying(b"HTTP/1.1 200 OK\r\n\r\n") as addr:
        assert await check(addr, environ=proxies) == (0, "")


@pytest_twisted.ensureDeferred
async def test_it_starts_with_next_to_nothing() -> None:
    """It runs twice a minute for as long as the container does: no package is imported for it, nor TLS unasked."""
    script = "import sys, foreman.healthcheck; print(*sys.modules)"
    _, modules = await check("", "-S", "-c", script)
    assert "foreman.healthcheck" in modules.split()
    assert not {"attr", "twisted", "httpx", "ssl", "http.client", "email", "asyncio"} & set(modules.split())
