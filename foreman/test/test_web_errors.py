"""Errors as clients see them: the right status, in the shape of the API that was called."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from klein import Klein
from twisted.internet.defer import CancelledError
from twisted.logger import LogEvent
from twisted.web.test.requesthelper import DummyChannel

from foreman import errors
from foreman.web import errors as web
from foreman.web.body import Request
from foreman.web.errors import error_body, install_error_handlers, render_error, respond_error, status_of


class Home:
    """Klein as foreman uses it: a class attribute, bound to an instance."""

    app = Klein()
    raises: Exception = ValueError("the secret")

    @app.route("/jobs/<int:number>", methods=["GET"])
    def job(self, request: Request, number: int) -> bytes:
        """Fail."""
        raise self.raises


install_error_handlers(Home.app)


class _Site:
    """What a request asks of its site."""

    files = 0

    class bodies:  # noqa: N801
        @staticmethod
        def release(size: int) -> None: ...


def _request(path: bytes = b"/api/chat", method: bytes = b"POST") -> Any:
    channel: Any = DummyChannel()
    channel.site = _Site
    request: Any = Request(channel)
    request.method, request.uri, request.path, request.clientproto = method, path, path, b"HTTP/1.1"
    request.content = None
    request.prepath, request.postpath = [], path[1:].split(b"/")
    request.wire = channel.transport.written
    return request


def _answer(request: Any) -> tuple[int, dict[str, str], bytes]:
    head, _, body = request.wire.getvalue().partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}, body


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (web.BadRequest("x"), 400),
        (web.Unauthorized("x"), 401),
        (errors.Forbidden("x"), 403),
        (web.NotFound("x"), 404),
        (web.MethodNotAllowed("x", allow=["GET"]), 405),
        (web.BodyTooLarge("x"), 413),
        (errors.QueueFull("x"), 503),
        (errors.Unwritable("x"), 503),
        (errors.Unavailable("x", retry_after=1), 503),
        (errors.NotReachable("x"), 503),
        (errors.Lost("x", reused=False), 502),
        (errors.Truncated("x"), 502),
        (errors.TooLarge("x"), 502),
        (errors.Stalled("x", probe_answered=True), 504),
        (errors.Refused("x", status=422), 422),
        (errors.Failed("x", status=500), 500),
        (ValueError("x"), 500),
        (errors.ConfigurationError("x"), 500),
    ],
)
def test_every_error_has_its_status(error: Exception, status: int) -> None:
    """A caller can tell from the status whose fault it was and whether to come again."""
    assert status_of(error) == status


@pytest.mark.parametrize("path", [b"/api/chat", b"/jobs", b"/", b"/v1", b"/v10/x", b"/api/v1/messages"])
def test_native_and_own_routes_answer_as_ollama_does(path: bytes) -> None:
    """A native client finds the text under `error` and nothing else."""
    content_type, body = error_body(path, 503, "busy <&>")
    assert content_type == b"application/json; charset=utf-8"
    assert json.loads(body) == {"error": "busy <&>"}
    assert not body.endswith(b"\n")


@pytest.mark.parametrize(
    ("status", "kind"), [(400, "invalid_request_error"), (404, "not_found_error"), (401, "api_error")]
)
def test_openai_clients_get_openais_shape(status: int, kind: str) -> None:
    """The `openai` package can read foreman's errors."""
    content_type, body = error_body(b"/v1/chat/completions", status, "no")
    assert content_type == b"application/json"
    assert json.loads(body) == {"error": {"message": "no", "type": kind, "param": None, "code": None}}
    assert body.endswith(b"\n")


@pytest.mark.parametrize("path", [b"/v1/messages", b"/v1/messages/count_tokens", b"/v1%2Fmessages"])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (429, "rate_limit_error"),
        (503, "overloaded_error"),
        (529, "overloaded_error"),
        (413, "api_error"),
        (500, "api_error"),
    ],
)
def test_anthropic_clients_get_anthropics_shape(path: bytes, status: int, kind: str) -> None:
    """The `anthropic` package can read foreman's errors."""
    document = json.loads(error_body(path, status, "no")[1])
    assert document.pop("request_id").startswith("req_")
    assert document == {"type": "error", "error": {"type": kind, "message": "no"}}


@given(st.binary(max_size=40), st.text(max_size=40))
@example(b"/api/chat", "\ud800")
def test_any_text_and_path_make_a_json_error(path: bytes, message: str) -> None:
    """An error about whatever a client sent can always be told to it, lone surrogates and all."""
    content_type, body = error_body(path, 400, message)
    assert content_type.startswith(b"application/json")
    json.loads(body)


def test_the_answer_is_complete_and_finished() -> None:
    """A client gets status, text and the pause it should make, and the connection is free again."""
    request = _request()
    respond_error(request, errors.Unavailable("The target cannot be reached", retry_after=1.2))
    status, headers, body = _answer(request)
    assert (status, json.loads(body)) == (503, {"error": "The target cannot be reached"})
    assert headers["retry-after"] == "2"
    assert headers["content-length"] == str(len(body))
    assert request.finished


def test_every_503_says_when_to_come_again() -> None:
    """Also an error that knows no time of its own comes with `Retry-After`."""
    request = _request()
    respond_error(request, errors.QueueFull("full"))
    assert _answer(request)[1]["retry-after"] == str(web.RETRY_AFTER)


def test_what_nobody_expected_is_logged_and_not_told(logged_errors: list[LogEvent]) -> None:
    """A fault in foreman tells the client nothing of its inside, and the operator everything."""
    request = _request()
    respond_error(request, ValueError("the secret"))
    status, _, body = _answer(request)
    assert (status, json.loads(body)) == (500, {"error": "internal error"})
    assert [event["log_failure"].value.args for event in logged_errors] == [("the secret",)]
    logged_errors.clear()


def test_what_the_target_said_is_no_fault_of_ours(logged_errors: list[LogEvent]) -> None:
    """A 500 of the target's keeps its text and leaves no traceback."""
    request = _request()
    respond_error(request, errors.Failed("model runner died", status=500))
    assert json.loads(_answer(request)[2]) == {"error": "model runner died"}
    assert not logged_errors


def test_headers_of_the_answer_that_failed_are_gone() -> None:
    """An error is not taken for a piece of the file that was asked for."""
    request = _request()
    headers = request.responseHeaders
    for name in (b"etag", b"content-range", b"content-encoding", b"last-modified"):
        headers.setRawHeaders(name, [b"x"])
    headers.setRawHeaders(b"content-length", [b"99999"])
    headers.setRawHeaders(b"x-foreman-job", [b"01J"])
    respond_error(request, web.NotFound("gone"))
    seen = _answer(request)[1]
    assert not {"etag", "content-range", "content-encoding", "last-modified"} & seen.keys()
    assert seen["content-length"] == str(len(_answer(request)[2]))
    assert seen["x-foreman-job"] == "01J"


def test_a_begun_answer_is_cut() -> None:
    """A client never takes half an answer for a whole one."""
    request = _request()
    cut: list[bool] = []
    request.transport.abortConnection = lambda: cut.append(True)
    request.write(b"half")
    before = request.wire.getvalue()
    respond_error(request, errors.Truncated("broken"))
    assert cut == [True]
    assert request.wire.getvalue() == before
    assert not request.finished


@pytest.mark.parametrize("end", [lambda request: request.finish(), lambda request: request.connectionLost(None)])
def test_an_ended_request_is_left_alone(end: Callable[[Any], None]) -> None:
    """An error that comes after the client has gone is nobody's any more."""
    request = _request()
    end(request)
    before = request.wire.getvalue()
    respond_error(request, errors.Truncated("late"))
    assert request.wire.getvalue() == before


def test_a_call_cut_off_by_the_shutdown_may_be_made_again() -> None:
    """A handler that is cancelled while its client still waits tells it to come again."""
    request = _request()
    respond_error(request, CancelledError())
    status, headers, body = _answer(request)
    assert (status, json.loads(body)) == (503, {"error": "foreman is stopping"})
    assert "retry-after" in headers


def test_denied_has_no_body() -> None:
    """A page that may not talk to us learns nothing, as with Ollama."""
    request = _request()
    assert render_error(request, web.Denied("no")) == b""
    assert request.code == 403
    assert not request.responseHeaders.hasHeader(b"content-type")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        (b"GET", b"/jobs/x", 404),
        (b"GET", b"/jobs/1/", 404),
        (b"GET", b"/jobs//1", 404),
        (b"GET", b"/", 404),
        (b"POST", b"/jobs/1", 405),
        (b"GET", b"/jobs/1", 500),
    ],
)
@pytest.mark.filterwarnings("error")
def test_kleins_errors_are_json(method: bytes, path: bytes, status: int, logged_errors: list[LogEvent]) -> None:
    """No route of foreman's own answers HTML or a redirect, whatever is wrong."""
    request = _request(path, method)
    Home().app.resource().render(request)
    answered, headers, body = _answer(request)
    assert answered == status
    assert headers["content-type"].startswith("application/json")
    assert list(json.loads(body)) == ["error"]
    assert ("allow" in headers) == (status == 405)
    assert request.finished
    assert len(logged_errors) == (status == 500)
    logged_errors.clear()


def test_routes_may_raise_what_the_house_raises() -> None:
    """An error of the store or the target has the same answer through Klein."""
    home = Home()
    home.raises = errors.QueueFull("1000000 jobs wait")
    request = _request(b"/jobs/1", b"GET")
    home.app.resource().render(request)
    status, headers, body = _answer(request)
    assert (status, json.loads(body)) == (503, {"error": "1000000 jobs wait"})
    assert "retry-after" in headers


def test_an_unbound_app_works_too() -> None:
    """The handlers do not care whether the app hangs on a class."""
    app = Klein()
    install_error_handlers(app)
    request = _request(b"/jobs", b"GET")
    app.resource().render(request)
    assert _answer(request)[0] == 404
