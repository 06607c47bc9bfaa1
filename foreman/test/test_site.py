"""The front door: who comes in, who answers, and what connections do; on a clock, and over loopback TCP."""

from __future__ import annotations

import hmac
import json
import socket
from typing import Any

import pytest
from twisted.logger import LogEvent

from foreman.test.front_door import KB, Step, asynchronous, chunked, echo, get, listening, post, until
from foreman.web import body as body_module
from foreman.web.body import IN_MEMORY, Request
from foreman.web.site import HEAD_TIMEOUT, IDLE_TIMEOUT, LEAST


def test_own_paths_go_to_klein_and_all_others_to_the_native_face() -> None:
    """Own routes are found, and every other path reaches Ollama's face just as it came."""
    step = Step()
    assert step.ask(get("/healthz")).body == b'{"authenticated": true}'
    assert not step.native.seen
    for path in (
        "/",
        "//healthz",
        "/healthz/",
        "/HEALTHZ",
        "/%68ealthz",
        "/api//tags?x=%ff",
        "/jobsx",
        "/v1/models/a%2Fb",
    ):
        assert json.loads(step.ask(get(path)).body)["uri"] == path


def test_errors_on_own_paths_are_json() -> None:
    """Nothing of foreman's own answers HTML, whatever the path or the `Host`."""
    step = Step(ADDR=":8080")
    for request, status in (
        (get("/jobs/nothing/here"), 404),
        (get("/queue//x"), 404),
        (get("/jobs"), 405),
        (get("/healthz", host="a..b"), 200),
        (get("/healthz", host="x" * 300), 200),
    ):
        answer = step.ask(request)
        assert answer.status == status
        assert status == 200 or answer["content-type"].startswith("application/json")


def test_a_path_of_our_own_that_is_no_text_is_a_bad_request(logged_errors: list[LogEvent]) -> None:
    """Bytes that are no UTF-8 in a job's path are refused in JSON."""
    step = Step()
    answer = step.ask(get("/jobs/%ff"))
    assert (answer.status, json.loads(answer.body)) == (400, {"error": "the path is not UTF-8"})
    logged_errors.clear()  # Klein's


def test_a_face_that_fails_is_a_500_without_detail(logged_errors: list[LogEvent]) -> None:
    """A fault in foreman is told as such, in JSON, and the connection lives on."""

    def fail(request: Request) -> None:
        raise ValueError("the secret")

    step = Step(fail)
    for _ in range(2):
        answer = step.ask(get("/api/tags"))
        assert (answer.status, json.loads(answer.body)) == (500, {"error": "internal error"})
    assert len(logged_errors) == 2
    logged_errors.clear()


def test_answers_look_like_ollamas() -> None:
    """No `Server`, a `Date`, and no content type that nobody set."""
    step = Step(lambda request: request.finish())
    answer = step.ask(get("/"))
    assert not answer.all("server")
    assert not answer.all("content-type")
    assert answer["date"].endswith("GMT")


def test_a_carried_date_is_kept_and_not_doubled() -> None:
    """The target's own `Date` goes through."""

    def carry(request: Request) -> None:
        request.responseHeaders.addRawHeader(b"Date", b"Sat, 21 Nov 2026 01:21:50 GMT")
        request.finish()

    assert Step(carry).ask(get())["date"] == "Sat, 21 Nov 2026 01:21:50 GMT"


@pytest.mark.parametrize(
    ("target", "uri", "host"),
    [
        ("http://127.0.0.1:1/api/tags?x=1", "/api/tags?x=1", "127.0.0.1:1"),
        ("HTTP://localhost", "/", "localhost"),
        ("http://user:pw@localhost?q", "/?q", "localhost"),
        ("https://localhost/a//b", "/a//b", "localhost"),
    ],
)
def test_absolute_targets_are_accepted(target: str, uri: str, host: str) -> None:
    """A client that takes foreman for a proxy is answered as by Ollama; its target names the host."""
    step = Step()
    assert json.loads(step.ask(get(target, host="8.8.8.8")).body)["uri"] == uri
    assert step.native.seen[0].requestHeaders.getRawHeaders(b"host") == [host.encode()]


def test_other_targets() -> None:
    """`OPTIONS *` is a ping; what is neither that nor a path is refused."""
    step = Step()
    assert step.ask(get("*", method="OPTIONS")).status == 200
    for method, target in (("GET", "*"), ("CONNECT", "a:1"), ("GET", "api/tags")):
        assert step.ask(get(target, method=method)).status == 400
    assert not step.native.seen


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([], 400),
        (["Host: localhost", "Host: localhost"], 400),
        (["Host: localhost", "Host: evil.com"], 400),
        (["Host:"], 200),
    ],
)
def test_one_host_header_is_needed(lines: list[str], status: int) -> None:
    """Which host was meant is never in doubt."""
    assert Step().ask("\r\n".join(["GET / HTTP/1.1", *lines, "", ""]).encode()).status == status


def test_the_access_log_names_no_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request is one line at debug, also one whose client left; what stands behind `?` may be private."""
    lines: list[str] = []

    class Log:
        def debug(self, form: str, **fields: object) -> None:
            lines.append(form.format(**fields))

    monkeypatch.setattr(body_module, "_log", Log())
    step = Step()
    size = len(step.ask(get("/api/tags?secret=1")).body)
    step.native.answer = lambda request: step.clock.advance(1.5)
    step.send(get("/api/ps?secret=1"))
    step.transport.loseConnection()
    assert lines == [f"GET /api/tags 200 0 ms {size} bytes", "GET /api/ps left 1500 ms 0 bytes"]


# -- odd and hostile requests ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 3", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 3"],
        ["Content-Length: 3", "Content-Length: 4"],
        ["Content-Length: 3, 3"],
        ["Content-Length: +3"],
        ["Content-Length: -3"],
        ["Content-Length: 0x3"],
        ["Content-Length: " + "3" * 5000],
        ["Content-Length: " + "3" * 5000, "X: x"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding : chunked"],
        ["Content-Length : 3"],
        ["X: a\nTransfer-Encoding: chunked"],
        ["no colon"],
        ["X: " + "x" * 70000],
        [f"X{i}: x" for i in range(600)],
    ],
)
def test_requests_of_two_meanings_are_refused(lines: list[str]) -> None:
    """Nobody can smuggle a second request past a proxy: what could be read two ways is a 400, and no HTML."""
    step = Step()
    step.send(get("/api/chat", *lines, method="POST") + b"abc" + get("/api/delete"))
    assert step.transport.value() == b"HTTP/1.1 400 Bad Request\r\n\r\n"
    assert not step.open
    assert not step.native.seen


@pytest.mark.parametrize(
    "line", [b"GET /\r\n", b"GET  / HTTP/1.1\r\n", b"GET / HTTP/2.0\r\n", b"G\xc3 / HTTP/1.1\r\n", b"\x16\x03\x01\r\n"]
)
def test_what_is_not_http_is_refused(line: bytes) -> None:
    """A client that speaks something else hears so and is cut."""
    step = Step()
    step.send(line)
    assert step.transport.value() == b"HTTP/1.1 400 Bad Request\r\n\r\n"
    assert not step.open


def test_a_malformed_chunk_is_refused_and_let_go() -> None:
    """Half a body is no body."""
    step = Step()
    step.send(chunked("/api/chat", b"abc") + b"zz\r\n")
    assert step.transport.value() == b"HTTP/1.1 400 Bad Request\r\n\r\n"
    assert step.site.bodies.held == 0
    assert not step.native.seen


# -- time --------------------------------------------------------------------------------------------------------------


def test_idle_connections_are_kept_for_minutes() -> None:
    """A client may keep a connection in its pool; in the end it is closed."""
    step = Step()
    for _ in range(3):
        assert step.ask(get()).status == 200
        step.clock.advance(IDLE_TIMEOUT - 1)
    assert step.open
    step.clock.advance(1)
    assert not step.open


def test_a_head_that_dribbles_in_is_cut() -> None:
    """Nobody keeps a connection busy with a byte now and then."""
    step = Step()
    step.clock.advance(HEAD_TIMEOUT * 2)
    for byte in get("/" + "x" * 100)[: int(HEAD_TIMEOUT) - 1]:
        step.send(bytes([byte]))
        step.clock.advance(1)
    assert step.open
    step.clock.advance(1)
    assert not step.open


@pytest.mark.parametrize("by_chunks", [False, True])
def test_a_body_may_take_its_time(by_chunks: bool) -> None:
    """An upload over the slowest of lines is not cut, however long it takes and however it is cut in pieces."""
    step = Step()
    slow = 700  # every five and a half seconds: a modem of the eighties takes one
    begin, piece, end = get("/api/chat", f"Content-Length: {10_001 * slow}", method="POST"), bytes(slow), bytes(slow)
    if by_chunks:
        begin, piece, end = chunked("/api/chat"), b"%x\r\n%b\r\n" % (slow, bytes(slow)), b"0\r\n\r\n"
    step.send(begin)
    for _ in range(10_000):
        step.clock.advance(IDLE_TIMEOUT / 110)
        step.send(piece)
    assert step.ask(end).status == 200


@pytest.mark.parametrize(
    ("begin", "drop"),
    [
        (get("/api/chat", "Content-Length: 100000", method="POST"), b"x"),
        (get("/api/chat", "Content-Length: 100000", method="POST"), bytes(100)),
        (chunked("/api/chat"), b"1\r\nx\r\n"),
        (chunked("/api/chat") + b"1;", b"x"),
        (chunked("/api/chat", b"x") + b"0\r\nX: ", b"x"),
        (chunked("/api/chat", b"x" * (LEAST - 700)), b"1;" + b"x" * 900 + b"\r\nx\r\n"),
    ],
)
def test_a_body_that_drips_is_cut(begin: bytes, drop: bytes) -> None:
    """Nobody, not even with the token, keeps a connection for ever with a byte now and then."""
    step = Step()
    for _ in range(3):  # what went before does not count
        assert step.ask(post("/api/chat", bytes(LEAST // 2))).status == 200
    step.transport.clear()
    step.send(begin)
    for _ in range(600):
        assert step.open
        step.clock.advance(IDLE_TIMEOUT / 600)
        if step.open:
            step.send(drop)
    assert not step.open
    assert step.transport.value() == b""
    assert step.site.bodies.held == 0
    assert not step.native.seen[3:]


def test_a_body_that_stalls_is_cut() -> None:
    """An upload that was quick and then stands still is given up ten minutes later at most."""
    step = Step()
    step.send(get("/api/chat", f"Content-Length: {10 * LEAST}", method="POST") + bytes(9 * LEAST + 1))
    step.clock.advance(IDLE_TIMEOUT - 1)
    assert step.open
    step.clock.advance(1)
    assert not step.open


def test_an_answer_may_take_its_time() -> None:
    """A call may wait in the queue for hours, and the connection serves another one afterwards."""
    step = Step(lambda request: None)
    step.send(post("/api/chat", b"x"))
    step.clock.advance(IDLE_TIMEOUT * 100)
    assert step.open
    echo(step.native.seen[0])
    assert step.answer().status == 200
    step.clock.advance(IDLE_TIMEOUT)
    assert not step.open


# -- who may come in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/chat", "/jobs", "/metrics", "/", "/healthz/", "/v1/messages"])
@pytest.mark.parametrize(
    "header",
    [None, "Authorization: Bearer wrong", "Authorization: Basic s3cret", "Authorization: s3cret", "X-Api-Key: s3cre"],
)
def test_without_the_token_nothing_is_served(path: str, header: str | None) -> None:
    """With a token set, a stranger gets 401 in the shape of the API it called, and learns how to do better."""
    step = Step(TOKEN="s3cret")
    answer = step.ask(get(path, *([header] if header else [])))
    assert answer.status == 401
    assert answer["www-authenticate"] == "Bearer"
    assert ("request_id" in json.loads(answer.body)) == (path == "/v1/messages")
    assert not step.native.seen


@pytest.mark.parametrize(
    "header", ["Authorization: Bearer s3cret", "authorization: bEARER   s3cret", "x-api-key: s3cret"]
)
def test_with_the_token_all_is_served(header: str) -> None:
    """The token may come as Ollama's, OpenAI's and Anthropic's clients send it."""
    step = Step(TOKEN="s3cret")
    assert step.ask(get("/api/tags", header)).status == 200
    assert json.loads(step.ask(get("/healthz", header)).body) == {"authenticated": True}


def test_the_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a wrong token takes says nothing of how much of it is right: every one goes whole through `hmac`."""
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    step = Step(TOKEN="s3cret")
    for wrong in ("s", "s3cre", "s3cretx", "S3cret"):
        assert step.ask(get("/api/tags", f"Authorization: Bearer {wrong}")).status == 401
        assert step.ask(get("/api/tags", f"X-Api-Key: {wrong}")).status == 401
    assert step.ask(get("/api/tags", "Authorization: Bearer s3cret")).status == 200
    assert compared == [b"s", b"s", b"s3cre", b"s3cre", b"s3cretx", b"s3cretx", b"S3cret", b"S3cret", b"s3cret"]


def test_health_is_open_to_all_but_knows_whom_it_talks_to() -> None:
    """A probe needs no token; the face is told that it brought none."""
    assert json.loads(Step(TOKEN="s3cret").ask(get("/healthz")).body) == {"authenticated": False}
    assert json.loads(Step().ask(get("/healthz")).body) == {"authenticated": True}


def test_a_stranger_cannot_fill_the_disk() -> None:
    """Without the token no large body is taken in, on any path."""
    step = Step(TOKEN="s3cret", MODEL_ADMIN="on")
    for path, status in (("/api/blobs/sha256:0", 401), ("/healthz", 413)):
        step.send(get(path, f"Content-Length: {IN_MEMORY + 1}", method="POST"))
        assert step.answer().status == status
        step.send(bytes(IN_MEMORY))
        assert step.site.bodies.held == 0
        step.connect()


def test_strangers_pages_get_nothing() -> None:
    """A page of an origin that is not allowed gets 403 and not a byte, on every method and path."""
    step = Step()
    for method in ("GET", "POST", "OPTIONS", "DELETE"):
        for path in ("/api/tags", "/healthz", "/v1/models"):
            answer = step.ask(get(path, "Origin: http://evil.example", method=method))
            assert (answer.status, answer.body) == (403, b"")
            assert {name for name, _ in answer.headers} == {"date", "content-length"}
    assert not step.native.seen


@pytest.mark.parametrize("settings", [{}, {"TOKEN": "s3cret"}])
def test_preflights_are_answered_before_any_token_check(settings: dict[str, Any]) -> None:
    """A browser may ask whether it may ask, without the token that it would then send."""
    step = Step(**settings)
    answer = step.ask(
        get("/api/chat", "Origin: http://localhost:3000", "Access-Control-Request-Method: POST", method="OPTIONS")
    )
    assert answer.status == 204
    assert answer["access-control-allow-origin"] == "http://localhost:3000"
    assert answer.all("vary") == ["Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"]
    assert not answer.all("content-length")
    assert not step.native.seen
    assert step.ask(get("/healthz")).status == 200


def test_pages_that_may_ask_can_read_the_answer() -> None:
    """The CORS headers come with every answer, errors included, once, whatever the face or the target says."""

    def carry(request: Request) -> None:
        for name, value in ((b"vary", b"Accept"), (b"access-control-allow-origin", b"http://target")):
            request.responseHeaders.removeHeader(name)
            request.responseHeaders.addRawHeader(name, value)
        request.finish()

    origin = "Origin: http://localhost:3000"
    step = Step(carry, TOKEN="t", MAX_BODY="1KiB")
    token = "Authorization: Bearer t"
    for request, status, vary in (
        (get("/api/tags", origin, token), 200, ["Origin", "Accept"]),
        (get("/api/tags", origin), 401, ["Origin"]),
        (get("/jobs/unknown", origin, token), 404, ["Origin"]),
        (post("/api/chat", bytes(2 * KB), origin, token), 413, ["Origin"]),
    ):
        answer = step.ask(request)
        assert answer.status == status
        assert answer["access-control-allow-origin"] == "http://localhost:3000"
        assert answer.all("vary") == vary
        assert {"X-Foreman-Job", "Server-Timing"} <= set(answer["access-control-expose-headers"].split(","))


def test_pages_of_our_own_name_and_plain_clients_see_no_cors() -> None:
    """Without another origin, the answer says nothing of origins."""
    step = Step(lambda request: request.finish())
    for headers in ([], ["Origin: http://localhost:8080"]):
        answer = step.ask(get("/", *headers, host="localhost:8080"))
        assert answer.status == 200
        assert not answer.all("access-control-allow-origin")
        assert not answer.all("vary")


def test_further_origins_are_a_setting() -> None:
    """FOREMAN_ORIGINS opens the door to a page of one's own."""
    assert Step().ask(get("/", "Origin: https://chat.example")).status == 403
    assert Step(ORIGINS="https://chat.example").ask(get("/", "Origin: https://chat.example")).status == 200


@pytest.mark.parametrize(
    ("settings", "status"), [({}, 403), ({"TOKEN": "t"}, 200), ({"ADDR": ":8080"}, 200), ({"ADDR": "[::1]:8080"}, 403)]
)
def test_the_host_is_checked_while_loopback_is_the_only_guard(settings: dict[str, Any], status: int) -> None:
    """A site that points its name at this machine gets nothing; with a token or a LAN address no name is refused."""
    step = Step(**settings)
    answer = step.ask(get("/api/tags", "Authorization: Bearer t", host="evil.com"))
    assert answer.status == status
    assert (answer.body == b"") == (status == 403)


@pytest.mark.parametrize("settings", [{}, {"ADDR": "localhost:8080"}, {"ADDR": "[::1]:8080"}])
@pytest.mark.parametrize(
    ("page", "lines", "host"),
    [
        ("a form of another site", ["Origin: https://evil.example"], "127.0.0.1:8080"),
        ("a sandboxed frame, or a file", ["Origin: null"], "127.0.0.1:8080"),
        ("a name that has come to mean 127.0.0.1", [], "evil.example:8080"),
        ("the same, asking its own origin", ["Origin: http://evil.example:8080"], "evil.example:8080"),
        ("the same, over TLS", ["Origin: https://evil.example"], "evil.example"),
        ("a public address that is routed here", ["Origin: http://8.8.8.8:8080"], "8.8.8.8:8080"),
        ("a name that begins as ours", ["Origin: http://127.0.0.1.evil.example:8080"], "127.0.0.1:8080"),
        ("two origins", ["Origin: http://evil.example", "Origin: http://localhost"], "127.0.0.1:8080"),
    ],
)
def test_a_web_page_cannot_drive_an_open_foreman(
    settings: dict[str, Any], page: str, lines: list[str], host: str
) -> None:
    """While I browse, no site uses the foreman on my machine, which has no token: nothing runs and nothing is read."""
    step = Step(**settings)
    form = "Content-Type: application/x-www-form-urlencoded"
    requests = [get(path, *lines, host=host) for path in ("/api/tags", "/jobs", "/healthz", "/metrics")]
    requests += [
        get(path, "Content-Length: 2", kind, *lines, host=host, method="POST") + b"{}"
        for path in ("/api/chat", "/jobs", "/queue/pause", "/jobs/x/cancel")
        for kind in ("Content-Type: text/plain", form)
    ]
    for request in [*requests, get("/jobs/x", *lines, host=host, method="DELETE")]:
        answer = step.ask(request)
        assert (answer.status, answer.body) == (403, b""), page
        assert not answer.all("access-control-allow-origin")
    assert not step.native.seen


# -- over real sockets -------------------------------------------------------------------------------------------------


@asynchronous
async def test_one_connection_serves_many_requests_errors_among_them() -> None:
    """A client keeps its connection after an error, and may send ahead."""
    async with listening() as door:
        wire = await door.connect()
        wire.send(post("/api/chat", bytes(300 * KB)) + get("/jobs/x") + post("/jobs", b"12345") + get("/api/tags"))
        statuses = [(await wire.answer()).status for _ in range(4)]
        assert statuses == [200, 404, 200, 200]


@asynchronous
async def test_old_clients_are_served() -> None:
    """HTTP/1.0 gets a plain answer that ends with the connection, `Host` or not."""
    async with listening() as door:
        wire = await door.connect()
        wire.send(b"POST /api/chat HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc")
        await wire.closed
        head, _, body = wire.received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 200 OK\r\n")
        assert b"hunked" not in head
        assert json.loads(body)["size"] == 3


@asynchronous
async def test_accepted_connections_notice_dead_peers_and_do_not_wait_to_send() -> None:
    """TCP keepalive and no delay are set on every connection."""
    async with listening() as door:
        options: list[int] = []

        def look(request: Any) -> None:
            handle = request.transport.getHandle()
            options.append(handle.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            options.append(handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            if hasattr(socket, "TCP_KEEPIDLE"):
                assert handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
            request.finish()

        door.native.answer = look
        wire = await door.connect()
        wire.send(get())
        await wire.answer()
        assert all(options)


@asynchronous
async def test_an_answer_that_breaks_after_its_head_is_cut(logged_errors: list[LogEvent]) -> None:
    """A failure after the head never looks like an end."""

    def half(request: Request) -> None:
        request.write(b"half")
        raise OSError("broken")

    async with listening(half) as door:
        wire = await door.connect()
        wire.send(get())
        await until(lambda: wire.closed.called)
        assert not wire.received.endswith(b"0\r\n\r\n")
    assert [event["log_failure"].type for event in logged_errors] == [OSError]
    logged_errors.clear()
