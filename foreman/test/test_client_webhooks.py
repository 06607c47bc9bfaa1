"""Webhooks for receivers in Python: verified by both schemes, and taken in by a program itself."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from threading import Thread
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreman.client import InvalidSignature, NotForeman, Receiver, WaitTimeout, WebhookEvent, verify
from foreman.client.receiver import KEPT, MOST, _Server
from foreman.webhooks.signing import sign

NOW = 1795256645.0


def body_of(sequence: int = 1, state: str = "queued", job_id: str = "J1", **more: Any) -> bytes:
    """What foreman sends of an event."""
    told = {"job_id": job_id, "state": state, "previous_state": None, "sequence": sequence, "model": "m", **more}
    return json.dumps({**told, "timestamp": "2026-11-21T10:24:00.000Z", "artifacts": None, "timings": None}).encode()


def signed(body: bytes, *secrets: bytes, at: float = NOW) -> dict[str, str]:
    """The headers that come with it."""
    return sign(body, webhook_id="J1-1", timestamp=int(at), secrets=secrets)


BODY = body_of()


# -- verifying ---------------------------------------------------------------------------------------------------------


def test_a_good_delivery_is_an_event() -> None:
    """What foreman has signed comes back as a value, with what does not apply left out."""
    event = verify(signed(BODY, b"s3cret"), BODY, "s3cret", now=NOW + 299)
    assert isinstance(event, WebhookEvent)
    assert (event.job_id, event.sequence, event.state, event.artifacts, event.timings) == ("J1", 1, "queued", (), None)


def test_a_final_event_has_the_text() -> None:
    """The event of a job that is done says what the model said."""
    artifact = {"name": "content", "content_type": "text/plain", "size": 3, "sha256": "", "inline": "Why"}
    body = json.dumps({**json.loads(body_of(4, "done")), "artifacts": [artifact], "result": {"a": 1}}).encode()
    event = verify(signed(body, b"s"), body, "s", now=NOW)
    assert (event.text, event.result) == ("Why", {"a": 1})


def test_secrets_are_read_as_foreman_reads_them() -> None:
    """A `whsec_` secret is base64, any other text is its bytes, and bytes are the key itself."""
    verify(signed(BODY, b"key"), BODY, "whsec_a2V5", now=NOW)
    verify(signed(BODY, "schlüssel".encode()), BODY, "schlüssel", now=NOW)
    verify(signed(BODY, b"whsec_a2V5"), BODY, b"whsec_a2V5", now=NOW)


@pytest.mark.parametrize("secret", ["whsec_!", "whsec_", "", b""])
def test_a_secret_that_cannot_be_one_is_said_to_be(secret: str | bytes) -> None:
    """A secret that is empty, by a variable that is not set, lets nobody in: anybody could sign with it."""
    with pytest.raises(ValueError, match="secret"):
        verify(signed(BODY, b""), BODY, secret, now=NOW)
    with pytest.raises(ValueError, match="secret"):
        Receiver(secret=secret)


def test_either_secret_will_do_while_they_are_changed() -> None:
    """With an old and a new secret set, receivers with either take what comes."""
    headers = signed(BODY, b"new", b"old")
    for secret in ("new", "old"):
        verify(headers, BODY, secret, now=NOW)
        verify({"X-Foreman-Signature": headers["X-Foreman-Signature"]}, BODY, secret, tolerance=None)


@pytest.mark.parametrize("tolerance", [300.0, None])
def test_what_is_not_signed_so_is_refused(tolerance: float | None) -> None:
    """Another secret, another body, no signature, half of one: each is refused."""
    good = signed(BODY, b"s")
    bad: list[tuple[dict[str, str], bytes, str]] = [
        (good, BODY, "other"),
        (good, BODY + b" ", "s"),
        ({}, BODY, "s"),
        (signed(BODY), BODY, "s"),
        ({**good, "webhook-id": "J1-2"}, BODY, "s"),
        ({**good, "webhook-signature": "v1,AAAA", "X-Foreman-Signature": "sha256=00"}, BODY, "s"),
    ]
    for headers, body, secret in bad:
        with pytest.raises(InvalidSignature):
            verify(headers, body, secret, tolerance=tolerance, now=NOW)


def test_what_is_old_is_refused_unless_age_does_not_matter() -> None:
    """A replay after five minutes is refused; without a tolerance it is taken."""
    headers = signed(BODY, b"s")
    with pytest.raises(InvalidSignature, match="301 s old"):
        verify(headers, BODY, "s", now=NOW + 301)
    verify(headers, BODY, "s", now=NOW + 301, tolerance=302)
    verify(headers, BODY, "s", now=NOW + 10**9, tolerance=None)


def test_a_replay_cannot_choose_the_header_without_a_time() -> None:
    """Foreman's own header says nothing of the time: alone it is taken only where age does not matter."""
    alone = {"x-foreman-signature": signed(BODY, b"s")["X-Foreman-Signature"]}
    with pytest.raises(InvalidSignature):
        verify(alone, BODY, "s", now=NOW)
    assert verify(alone, BODY, "s", tolerance=None).job_id == "J1"


def test_a_bad_standard_signature_is_not_made_good_by_the_other() -> None:
    """Where the standard header is, it has to be right, even where age does not matter."""
    with pytest.raises(InvalidSignature):
        verify({**signed(BODY, b"s"), "webhook-signature": "v1,AAAA"}, BODY, "s", tolerance=None)


def test_what_is_signed_and_no_event_is_told() -> None:
    """Signed nonsense is an error of its own."""
    for body in (b"", b"[]", b"{}", b"\xff"):
        with pytest.raises(NotForeman):
            verify(signed(body, b"s"), body, "s", now=NOW)


@given(st.dictionaries(st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature", "other"]), st.text()))
def test_whatever_headers_come_the_answer_is_no(headers: dict[str, str]) -> None:
    """Nonsense in headers is refused, and raises nothing else."""
    with pytest.raises(InvalidSignature):
        verify(headers, BODY, "s", now=NOW)


# -- receiving ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """One without a secret."""
    with Receiver(secret=None) as receiver:
        yield receiver


def post(receiver: Receiver, body: bytes, headers: dict[str, str] | None = None) -> int:
    """Deliver; returns the status."""
    return httpx.post(receiver.url, content=body, headers=headers).status_code


def said(receiver: Receiver, header: bytes) -> int:
    """The status of a request that a client would not send."""
    url = httpx.URL(receiver.url)
    with socket.create_connection((url.host, url.port or 80)) as connection:
        connection.sendall(b"POST %s HTTP/1.1\r\n%s\r\n\r\n" % (url.raw_path, header))
        return int(connection.recv(100).split()[1])


def test_the_end_of_a_job_is_told() -> None:
    """A signed delivery is taken, and whoever waits for that job's end has it."""
    with Receiver(secret="s") as receiver:
        events: list[WebhookEvent] = []
        waiting = Thread(target=lambda: events.append(receiver.wait("J1", timeout=60)))
        waiting.start()
        now = time.time()
        for body in (body_of(1), body_of(2, "failed"), body_of(9, "done", "J2")):
            assert post(receiver, body, signed(body, b"s", at=now)) == 204
        waiting.join()
    assert [(event.job_id, event.state) for event in events] == [("J1", "failed")]


def test_what_is_not_foremans_is_refused() -> None:
    """A wrong signature, nonsense, another path and too much: each gets its status, and nothing is told."""
    with Receiver(secret="s") as receiver:
        assert post(receiver, BODY, signed(BODY, b"other")) == 401
        assert httpx.post(receiver.url + "x", content=BODY).status_code == 404
        assert httpx.get(receiver.url).status_code == 501
        assert httpx.post(receiver.url, content=iter([BODY])).status_code == 411
        assert said(receiver, b"Content-Length: %d" % (MOST + 1)) == 413
        assert said(receiver, b"Content-Length: -1") == 411
        with pytest.raises(WaitTimeout):
            receiver.wait("J1", timeout=0)
    assert list(receiver) == []


def test_nonsense_is_refused(receiver: Receiver) -> None:
    """Without a secret, what is no event is refused all the same."""
    assert post(receiver, b"{}") == 400


def test_repeats_and_stragglers_are_not_told(receiver: Receiver) -> None:
    """Each event once, and none after a later one of its job; other jobs have an order of their own."""
    for sequence, job_id in ((1, "J1"), (1, "J1"), (3, "J1"), (2, "J1"), (1, "J2"), (3, "J1"), (4, "J1")):
        assert post(receiver, body_of(sequence, job_id=job_id)) == 204
    told = iter(receiver)
    assert [(event.job_id, event.sequence) for event in (next(told) for _ in range(4))] == [
        ("J1", 1),
        ("J1", 3),
        ("J2", 1),
        ("J1", 4),
    ]


def test_reading_ends_with_the_block() -> None:
    """Who reads in another thread is let go when the receiver closes."""
    with Receiver(secret=None) as receiver:
        events: list[WebhookEvent] = []
        reading = Thread(target=lambda: events.extend(receiver))
        reading.start()
        post(receiver, BODY)
    reading.join(60)
    assert not reading.is_alive()
    assert [event.job_id for event in events] == ["J1"]


def test_what_nobody_reads_is_bounded(receiver: Receiver) -> None:
    """A program that reads nothing does not grow without end: the oldest events make room."""
    for number in range(KEPT + 5):
        receiver._take({}, body_of(job_id=f"J{number}"))
    assert len(receiver._last) == len(receiver._unread) == KEPT
    assert next(iter(receiver)).job_id == "J5"


def test_a_sender_that_breaks_off_is_nobodys_noise(receiver: Receiver, capfd: pytest.CaptureFixture[str]) -> None:
    """A connection that breaks in the middle is dropped, without a word on the program's stderr."""
    port = httpx.URL(receiver.url).port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert post(receiver, BODY) == 204
    assert capfd.readouterr().err == ""


def test_a_receiver_everywhere_needs_an_address() -> None:
    """Listening on every address is no address that foreman could be told."""
    with pytest.raises(ValueError, match="told its url"):
        Receiver(secret=None, host="0.0.0.0")  # noqa: S104


def test_a_receiver_whose_url_has_a_query() -> None:
    """A url may have a query, as a secret of its own: with it the delivery is taken, without it it is not."""
    with Receiver(secret=None, url="http://nas/hook?key=a") as receiver:
        port = receiver._server.server_port
        assert httpx.post(f"http://127.0.0.1:{port}/hook?key=a", content=BODY).status_code == 204
        assert httpx.post(f"http://127.0.0.1:{port}/hook?key=b", content=BODY).status_code == 404


def test_a_receiver_on_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver may listen on an IPv6 address, and its url says so as URLs do."""
    bound: list[Any] = []
    monkeypatch.setattr(_Server, "server_bind", lambda self: bound.append(self.socket.family))
    monkeypatch.setattr(_Server, "server_activate", lambda self: None)
    monkeypatch.setattr(_Server, "server_port", 9000, raising=False)
    receiver = Receiver(secret=None, host="::1")
    receiver._server.server_close()
    assert receiver.url.startswith("http://[::1]:9000/")
    assert bound == [socket.AF_INET6]


def test_a_delivery_that_drips_is_cut(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that sends a byte now and then does not hold a thread for ever: its time is that of a delivery."""
    monkeypatch.setattr("foreman.client.receiver.AT_ONCE", 0.0)
    with socket.create_connection(("127.0.0.1", receiver._server.server_port)) as connection:
        head = f"POST {receiver._path} HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{{"
        connection.sendall(head.encode())
        connection.settimeout(60)
        assert connection.recv(1) == b""


def test_a_receiver_elsewhere_is_told_by_its_url() -> None:
    """Behind another address, foreman is told that one, and its path counts."""
    with Receiver(secret=None, url="http://nas:9000/hook") as receiver:
        port = receiver._server.server_port
        assert httpx.post(f"http://127.0.0.1:{port}/hook", content=BODY).status_code == 204
        assert httpx.post(f"http://127.0.0.1:{port}/other", content=BODY).status_code == 404
        assert receiver.url == "http://nas:9000/hook"
