"""Which pages and which names are let in, held against what Ollama does."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreman.web import cors

OUR_HOST = "127.0.0.1:8080"


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "https://localhost",
        "http://localhost:3000",
        "https://127.0.0.1:8443",
        "http://0.0.0.0:1",
        "app://obsidian.md",
        "file://",
        "tauri://localhost",
        "vscode-webview://1a2b3c",
        "vscode-file://vscode-app",
        "HTTP://LocalHost:3000",
    ],
)
def test_local_pages_may_talk_to_us_unasked(origin: str) -> None:
    """A page or desktop app that Ollama lets in by default is let in."""
    assert cors.allowed(origin, OUR_HOST, ())


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "chrome-extension://abcdef",
        "moz-extension://abcdef",
        "http://localhost.evil.example",
        "http://localhostx:80",
        "http://evil.example:80localhost",
        "http://[::1]:3000",
        "ftp://localhost",
        "",
    ],
)
def test_strange_pages_may_not(origin: str) -> None:
    """A page of some web site gets nothing, however its name looks."""
    assert not cors.allowed(origin, OUR_HOST, ())


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("https://chat.example", "https://chat.example", "https://chat.example.evil"),
        ("https://chat.example", "https://chat.example", "http://chat.example"),
        ("https://*.example", "https://a.b.example", "https://example"),
        ("https://*.example", "https://a.example", "https://a.example.evil"),
        ("chrome-extension://*", "chrome-extension://abc", "moz-extension://abc"),
        ("http://lan:*", "http://lan:81", "http://lan"),
        ("https://ab*ba.example", "https://abba.example", "https://aba.example"),
        (" https://Chat.Example ", "https://chat.example", "https://chat"),
    ],
)
def test_further_origins_may_hold_one_star(pattern: str, good: str, bad: str) -> None:
    """FOREMAN_ORIGINS takes what OLLAMA_ORIGINS takes: whole origins, or one `*` for any text."""
    assert cors.allowed(good, OUR_HOST, (pattern,))
    assert not cors.allowed(bad, OUR_HOST, (pattern,))


def test_a_star_alone_lets_every_page_in_and_says_so() -> None:
    """With `*`, the answer is for any page, and is not said to depend on which."""
    assert cors.allowed("http://evil.example", OUR_HOST, ("*",))
    names = dict(cors.answer_headers("http://evil.example", ("*",)))
    assert names[b"access-control-allow-origin"] == [b"*"]
    assert b"vary" not in names
    assert dict(cors.preflight_headers("http://evil.example", ("*",)))[b"access-control-allow-origin"] == [b"*"]


def test_a_page_that_we_serve_ourselves_is_let_in() -> None:
    """Behind a reverse proxy, a page of the same name as the API may use it."""
    assert cors.allowed("https://foreman.example", "foreman.example", ())
    assert cors.allowed("http://foreman.example:81", "foreman.example:81", ())
    assert not cors.allowed("http://foreman.example:81", "foreman.example", ())


RECORDED_PREFLIGHT = {
    "access-control-allow-headers": [
        (
            "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,X-Stainless-Async,"
            "X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,"
            "X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,"
            "X-Stainless-Runtime-Version,X-Stainless-Timeout"
        )
    ],
    "access-control-allow-methods": ["GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"],
    "access-control-allow-origin": ["http://localhost:3000"],
    "access-control-max-age": ["43200"],
    "vary": ["Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"],
}
"""The CORS headers of Ollama 0.32.15's answer to a preflight of `http://localhost:3000`."""


def test_the_preflight_is_ollamas_with_our_headers_added() -> None:
    """A browser learns what Ollama would tell it, and that it may send what foreman's own calls need."""
    ours = {
        name.decode(): [value.decode() for value in values]
        for name, values in cors.preflight_headers("http://localhost:3000", ())
    }
    [theirs] = RECORDED_PREFLIGHT["access-control-allow-headers"]
    with_ours = {"access-control-allow-headers": [f"{theirs},Prefer,Idempotency-Key,X-Api-Key"]}
    assert ours == RECORDED_PREFLIGHT | with_ours


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost",
        "localhost:8080",
        "LOCALHOST:8080",
        "127.0.0.1",
        "127.8.9.1:1",
        "0.0.0.0:8080",
        "10.1.2.3",
        "172.31.0.1:8080",
        "192.168.1.20:8080",
        "[::1]:8080",
        "[::1]",
        "::1",
        "[::]:80",
        "[fd00::17]:8080",
        "[::ffff:127.0.0.1]:8080",
        "host.docker.internal:8080",
        "My-Mac.local",
        "app.localhost:3000",
        socket.gethostname(),
    ],
)
def test_names_of_this_machine_are_ours(host: str) -> None:
    """However a person names this machine or their own network, they are served."""
    assert cors.host_ok(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.com",
        "evil.com:8080",
        "8.8.8.8",
        "172.32.0.1",
        "127.0.0.1.evil.com",
        "localhost.evil.com",
        "localhost.",
        "local",
        "[::1",
        "[::1]x",
        "[2001:4860:4860::8888]:80",
        "localhost:80:80",
        "127.1",
        "0x7f.0.0.1",
    ],
)
def test_names_that_a_stranger_can_own_are_not(host: str) -> None:
    """A site that points its own name at 127.0.0.1 gets nothing from the browsers it tricks."""
    assert not cors.host_ok(host)


def test_this_machines_own_addresses_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names this machine by one of its addresses is served, be the address public or not."""
    assert cors._is_ours(ip_address("127.0.0.1"))
    assert not cors._is_ours(ip_address("8.8.8.8"))
    assert not cors._is_ours(ip_address("2001:4860:4860::8888"))
    monkeypatch.setattr(cors, "_is_ours", lambda address: str(address) == "8.8.8.8")
    assert cors.host_ok("8.8.8.8:8080")
    assert not cors.host_ok("8.8.4.4:8080")


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_header_can_break_the_decisions(origin: str, host: str) -> None:
    """Whatever a client sends as `Origin` and `Host`, there is a yes or a no."""
    assert cors.allowed(origin, host, ("https://*.example",)) in (True, False)
    assert cors.host_ok(host) in (True, False)


@given(st.from_regex(r"[a-z0-9.-]{1,30}", fullmatch=True))
def test_a_public_name_is_never_ours(name: str) -> None:
    """No name below a public top level passes, whatever stands before it."""
    assert not cors.host_ok(f"{name}.com:8080")
