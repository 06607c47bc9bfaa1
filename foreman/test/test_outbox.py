"""The outbox's promises, over a real database with time that moves by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from attrs import evolve
from twisted.logger import LogEvent

from foreman.errors import Unwritable
from foreman.job import Artifact, Ending
from foreman.record import DeliveryState
from foreman.test.outboxes import ANSWER, CANCELLED, DONE, SECRET, URL, Office, Post, is_genuine, names, takes_it
from foreman.test.strategies import start
from foreman.webhooks.policy import AddressRefused
from foreman.webhooks.receivers import KNOWN, Receivers
from foreman.webhooks.retries import STEPS
from foreman.webhooks.sender import Delivered, NotConnected, Rejected, TimedOut

PENDING, DELIVERED, EXHAUSTED, SUPERSEDED, GONE = DeliveryState


def broken(post: Post) -> Exception:
    """A receiver that always says 500."""
    return Rejected("the receiver answered 500", status=500)


def dead(post: Post) -> Exception:
    """A receiver that is not there."""
    return NotConnected("connection refused")


def hangs(post: Post) -> None:
    """A receiver that never answers."""


def unwanted(post: Post) -> Exception:
    """A receiver that wants no more of it."""
    return Rejected("the receiver answered 410", status=410)


@pytest.fixture
def office(tmp_path: Path) -> Office:
    """An office that has just opened."""
    return Office(tmp_path / "foreman.db")


# -- what is sent ----------------------------------------------------------------------------------------------------


def test_every_transition_is_told(office: Office) -> None:
    """One POST for every transition, `queued` included, numbered from 1; what does not apply is null."""
    job = office.accept(1, metadata='{"mine": [1, 2]}')
    office.let(1)
    office.end(office.work(job))
    documents = [post.document for post in office.posts]
    nothing = {"error": None, "result": None, "artifacts": None, "timings": None, "failures": 0}
    common = {"job_id": job.id, "model": job.model, "metadata": {"mine": [1, 2]}}
    queued, loading, working, done = documents
    at = "2027-01-15T08:00:0"
    assert queued == {
        **common,
        **nothing,
        "state": "queued",
        "previous_state": None,
        "sequence": 1,
        "attempt": 0,
        "timestamp": f"{at}0.000Z",
    }
    assert loading == {
        **common,
        **nothing,
        "state": "loading",
        "previous_state": "queued",
        "sequence": 2,
        "attempt": 1,
        "timestamp": f"{at}1.000Z",
    }
    assert [working[key] for key in ("state", "previous_state", "sequence")] == ["working", "loading", 3]
    assert [done[key] for key in ("state", "previous_state", "sequence")] == ["done", "working", 4]
    assert done["result"] == {"done": True}
    assert [artifact["inline"] for artifact in done["artifacts"]] == [ANSWER.decode(), "Hello"]
    assert done["timings"]["prompt_tokens"] == 7
    assert done.keys() == queued.keys()
    assert office.states(job) == [DELIVERED] * 4
    assert [(one.sequence, one.status, one.error) for one in office.tries(job)] == [(n, 204, None) for n in range(1, 5)]


def test_a_failure_is_told(office: Office) -> None:
    """The final event of a failed job has its error and its timings, but no artifacts."""
    job = office.accept(1)
    partial = Artifact(name="partial", content_type="text/plain; charset=utf-8", body=b"Hel")
    office.end(office.work(job), Ending(error=CANCELLED, at=office.now(), artifacts=(partial,)))
    document = office.posts[-1].document
    assert document["state"] == "failed"
    assert document["error"] == {"code": "cancelled", "message": "Not wanted."}
    assert document["result"] is document["artifacts"] is None
    assert document["timings"]["queued_ms"] == 0


def test_a_large_result_is_left_where_it_is(tmp_path: Path) -> None:
    """A result over the inline limit is null; the artifact's url tells where it is."""
    office = Office(tmp_path / "foreman.db", inline_max=len(ANSWER) - 1)
    job = office.accept(1)
    office.end(office.work(job))
    document = office.posts[-1].document
    assert document["result"] is None
    completion, content = document["artifacts"]
    assert (completion["inline"], completion["size"]) == (None, len(ANSWER))
    assert completion["url"] == f"/jobs/{job.id}/artifacts/completion"
    assert content["inline"] == "Hello"


def test_without_a_url_nothing_is_sent(office: Office) -> None:
    """Who asks for no webhooks gets none."""
    job = office.accept(1, url=None)  # type: ignore[arg-type]
    office.cancel(job)
    assert not office.posts
    assert office.states(job) == [None, None]


def test_signed_anew_at_each_try(office: Office) -> None:
    """Each try is signed with its own time, by the standard's reference library's judgement; the id stays."""
    office.receivers[URL] = broken
    office.accept(1)
    office.let(sum(STEPS))
    assert len({post.headers["webhook-timestamp"] for post in office.posts}) == 12
    assert all(map(is_genuine, office.posts))
    assert len({post.id for post in office.posts}) == 1
    assert len({post.body for post in office.posts}) == 1


def test_rotation_and_no_secret(tmp_path: Path) -> None:
    """While secrets are rotated either one proves it; without a secret nothing is signed, but the id is there."""
    office = Office(tmp_path / "foreman.db", secrets=(b"new", SECRET))
    office.accept(1)
    [post] = office.posts
    assert is_genuine(post, b"new")
    assert is_genuine(post, SECRET)
    assert post.headers["X-Foreman-Signature"].count("sha256=") == 2
    office = office.restarted(secrets=())
    office.accept(2)
    assert office.posts[1].headers.keys() == {"webhook-id", "webhook-timestamp"}


# -- in which order --------------------------------------------------------------------------------------------------


def test_the_next_event_waits_for_the_first_try(office: Office) -> None:
    """Event n+1 is first tried when the first try of event n has ended, not before."""
    office.receivers[URL] = hangs
    job = office.accept(1)
    office.end(office.work(job))
    office.let(10)
    assert names(office.posts) == [1]
    office.posts[0].end.callback(Delivered(200))
    office.settle()
    assert names(office.posts) == [1, 2]


def test_a_retry_holds_nothing_back(office: Office) -> None:
    """While event 1 waits for its retry, event 2 is sent; and the receiver gets both."""
    office.receivers[URL] = broken
    job = office.accept(1)
    office.receivers[URL] = takes_it
    office.work(job)
    assert names(office.posts) == [1, 2, 3]
    assert office.states(job) == [PENDING, DELIVERED, DELIVERED]
    office.let(1)
    assert names(office.posts) == [1, 2, 3, 1]
    assert office.states(job) == [DELIVERED] * 3


def test_the_final_event_supersedes(office: Office) -> None:
    """Once the final event is delivered, pending retries of the ones before are dropped; nobody hears old news."""
    office.receivers[URL] = lambda post: None if post.document["state"] == "done" else broken(post)
    job = office.accept(1)
    office.end(office.work(job))
    assert office.states(job) == [PENDING] * 4
    office.posts[-1].end.callback(Delivered(200))
    office.settle()
    assert office.states(job) == [SUPERSEDED] * 3 + [DELIVERED]
    office.let(100_000)
    assert names(office.posts) == [1, 2, 3, 4]


def test_a_dead_host_gets_the_final_event_only(office: Office) -> None:
    """When a host has failed three times in a row, a job that is over does not go through all its events there."""
    office.receivers[URL] = hangs
    job = office.accept(1)
    office.end(office.work(job))
    office.receivers["http://one.test/other"] = dead
    office.accept_all(dict.fromkeys((2, 3, 4), "http://one.test/other"))
    office.let(3)  # the other place of this host
    office.receivers[URL] = dead
    office.posts[0].end.errback(TimedOut("no answer within 15 s"))
    office.settle()
    assert names(office.poster.to(URL)) == [1, 4]
    assert office.states(job) == [PENDING, SUPERSEDED, SUPERSEDED, PENDING]


def test_a_dead_host_hears_of_a_job_that_goes_on(office: Office) -> None:
    """As long as a job is not over, none of its events is dropped, however dead its receiver is."""
    office.receivers[URL] = dead
    job = office.accept(1)
    office.let(100)
    office.work(job)
    office.receivers[URL] = takes_it
    office.let(10_000)
    assert office.states(job) == [DELIVERED] * 3


# -- again and again -------------------------------------------------------------------------------------------------


def test_the_schedule(office: Office) -> None:
    """A delivery is tried again after 1, 2, 4, 8, 16 s, 1, 5, 30 min, 2, 5 and 10 h; then it is given up, visibly."""
    office.receivers[URL] = broken
    job = office.accept(1)
    assert office.states(job) == [PENDING]
    office.let(sum(STEPS) - 1)
    assert office.states(job) == [PENDING]
    office.let(200_000)
    assert [post.at for post in office.posts] == [sum(STEPS[:n]) for n in range(12)]
    assert office.states(job) == [EXHAUSTED]
    assert office.record(job).deliveries == {EXHAUSTED: 1}
    assert office.run(office.rows.counts()) == {PENDING: 0, EXHAUSTED: 1}
    assert office.outbox.attempts == Counter(failed=11, exhausted=1)
    assert [(one.status, one.error) for one in office.tries(job)] == [(500, "the receiver answered 500")] * 12
    assert not office.clock.getDelayedCalls()


def test_retry_after(office: Office) -> None:
    """`Retry-After` is honoured up to twice the step."""
    office.receivers[URL] = lambda post: Rejected("busy", status=503, retry_after="1.5" if post.at else "3600")
    office.accept(1)
    office.let(4)
    assert [post.at for post in office.posts] == [0, 2, 4]


def test_410(office: Office) -> None:
    """After 410 nothing of this job is sent to that URL any more, what is still to come included; other jobs' is."""
    office.receivers[URL] = unwanted
    job = office.accept(1)
    office.receivers[URL] = takes_it
    office.end(office.work(job))
    assert names(office.posts) == [1]
    assert office.states(job) == [GONE] * 4
    office.accept(2)
    office.let(100_000)
    assert len(office.posts) == 2
    assert office.outbox.attempts == Counter(gone=1, delivered=1)


def test_where_it_may_not_go(office: Office) -> None:
    """A refused address is a failed try, told in the history, and tried again: the DNS may be mended."""
    office.receivers[URL] = lambda _: AddressRefused("169.254.169.254 is link-local, where webhooks never go")
    job = office.accept(1)
    [one] = office.tries(job)
    assert one.status is None
    assert "link-local" in str(one.error)
    assert office.states(job) == [PENDING]


def test_a_flaw_of_foreman_is_a_failed_try(office: Office, logged_errors: list[LogEvent]) -> None:
    """Whatever goes wrong while sending counts as a try: it is logged, and not repeated without end."""
    office.receivers[URL] = lambda _: RuntimeError("a flaw")
    job = office.accept(1)
    office.let(2)
    assert [post.at for post in office.posts] == [0, 1]
    assert office.tries(job)[0].error == "foreman itself failed: RuntimeError"
    assert len(logged_errors) == 2
    logged_errors.clear()


def test_redelivered(office: Office) -> None:
    """The final event can be had again, given up or delivered, under the same id."""
    job = office.accept(1)
    office.cancel(job)
    assert office.run(office.rows.redeliver(job.id, office.now()))
    office.outbox.look()
    office.settle()
    assert names(office.posts) == [1, 2, 2]
    assert office.posts[1].id == office.posts[2].id


def test_a_deleted_job_is_not_told_of(office: Office) -> None:
    """After DELETE no further event is sent."""
    office.receivers[URL] = broken
    job = office.accept(1)
    office.run(office.store.delete(job.id))
    office.let(100_000)
    assert names(office.posts) == [1]


def test_deleted_at_the_last_moment(office: Office) -> None:
    """A final event whose job is deleted while it is being prepared is not sent."""
    job = office.accept(1)
    cancelling = start(office.store.cancel(job.id, CANCELLED))
    while not cancelling.called:
        office.database.step()
    start(office.store.delete(job.id))
    office.settle()
    assert names(office.posts) == [1]


# -- over restarts ---------------------------------------------------------------------------------------------------


def test_a_restart_in_the_midst_of_the_retries(office: Office) -> None:
    """A stop loses no retry and begins no schedule anew: the tries go on where they were, under the same id."""
    office.receivers[URL] = broken
    job = office.accept(1)
    office.let(4)
    office = office.restarted()
    office.clock.advance(2)
    office = office.restarted()
    assert len(office.posts) == 3
    office.let(200_000)
    assert [post.at for post in office.posts] == [sum(STEPS[:n]) for n in range(12)]
    assert len({post.id for post in office.posts}) == 1
    assert all(map(is_genuine, office.posts))
    assert office.states(job) == [EXHAUSTED]


def test_overdue_after_a_long_stop(office: Office) -> None:
    """What became due while foreman was not running is sent at its start."""
    office.receivers[URL] = broken
    office.accept(1)
    office.stop()
    office.clock.advance(5000)
    office.receivers[URL] = takes_it
    Office(office.path, since=office)
    assert [post.at for post in office.posts] == [0, 5000]


def test_stopped_while_it_is_sent(office: Office) -> None:
    """A stop waits for no receiver: what is on its way is cut, and sent again after the start."""
    office.receivers[URL] = hangs
    cut = office.accept(1)
    office.receivers[URL] = takes_it
    office = office.restarted()
    assert names(office.posts) == [1, 1]
    assert office.posts[0].id == office.posts[1].id
    assert office.states(cut) == [DELIVERED]


def test_killed_while_it_is_sent(office: Office, tmp_path: Path) -> None:
    """A crash loses no event."""
    office.receivers[URL] = hangs
    job = office.accept(1)
    office.receivers[URL] = takes_it
    office = office.killed(tmp_path / "after")
    assert office.posts[0].id == office.posts[1].id
    assert office.states(job) == [DELIVERED]


# -- when the store is in trouble ------------------------------------------------------------------------------------


def test_a_full_disk_sends_nothing_twice(office: Office) -> None:
    """While an outcome cannot be written down, its event is not sent again; it is written when that is possible."""
    office.rows.trouble["tried"] = Unwritable("the disk is full")
    job = office.accept(1)
    office.let(100)
    assert names(office.posts) == [1]
    office.rows.trouble.clear()
    office.let(1)
    assert office.states(job) == [DELIVERED]
    assert office.tries(job)[0].at == office.now() - 101_000


def test_stopped_with_a_full_disk(office: Office) -> None:
    """A stop does not wait for the disk."""
    office.rows.trouble["tried"] = Unwritable("the disk is full")
    office.accept(1)
    office = office.restarted()
    assert names(office.posts) == [1, 1]


def test_a_store_that_cannot_be_read(office: Office) -> None:
    """Sending goes on by itself when the store is well again."""
    office.rows.trouble["due"] = Unwritable("I/O error")
    office.accept(1)
    office.let(10)
    assert not office.posts
    office.rows.trouble.clear()
    office.let(1)
    assert names(office.posts) == [1]


@pytest.mark.parametrize("call", ["due", "tried"])
def test_a_flaw_does_not_end_the_sending(office: Office, logged_errors: list[LogEvent], call: str) -> None:
    """A flaw is logged and met again in a minute, not at once, and the others are served meanwhile."""
    office.rows.trouble[call] = RuntimeError("a flaw")
    office.accept(1)
    office.let(59)
    assert len(logged_errors) == 1
    office.rows.trouble.clear()
    office.accept(2)
    office.let(1)
    assert {post.name[0][-1] for post in office.posts} == {"1", "2"}
    logged_errors.clear()


# -- one receiver and the others -------------------------------------------------------------------------------------


def test_two_connections_to_a_host(office: Office) -> None:
    """At most two connections go to one host, whatever the paths."""
    urls = {n: f"http://one.test/{n}" for n in range(10)}
    office.receivers.update(dict.fromkeys(urls.values(), hangs))
    office.accept_all(urls)
    assert len(office.posts) == 2
    office.posts[0].end.callback(Delivered(200))
    office.settle()
    assert len(office.posts) == 3


def test_32_connections_in_all(office: Office) -> None:
    """At most 32 connections are open, and a place that is left is taken at once."""
    urls = {n: f"http://{n}.test/" for n in range(40)}
    office.receivers.update(dict.fromkeys(urls.values(), hangs))
    office.accept_all(urls)
    assert len(office.posts) == 32
    office.posts[0].end.callback(Delivered(200))
    office.settle()
    assert len(office.posts) == 33


def test_a_thousand_jobs_for_a_good_and_a_dead_receiver(office: Office) -> None:
    """A receiver that is well gets all of its events, in order and without a second's passing, beside a dead one."""
    bad = "http://dead.test/"
    office.receivers[bad] = hangs
    jobs = office.accept_all({n: URL if n % 2 else bad for n in range(1000)})
    for job in jobs:
        start(office.store.cancel(job.id, CANCELLED))
    office.settle()
    assert office.clock.seconds() == 0
    assert len(office.poster.to(bad)) == 2
    good = office.poster.to(URL)
    assert Counter(post.name for post in good) == {(job.id, n): 1 for job in jobs[1::2] for n in (1, 2)}
    seen: set[tuple[str, int]] = set()
    for post in good:
        job_id, sequence = post.name
        assert sequence == 1 or (job_id, 1) in seen
        seen.add(post.name)


def test_many_dead_hosts_leave_room(office: Office) -> None:
    """However many hosts are known to be dead, half of the connections are for the others."""
    urls = {n: f"http://dead-{n}.test/" for n in range(40)}
    office.receivers.update(dict.fromkeys(urls.values(), dead))
    office.accept_all(urls)
    office.let(3)
    office.receivers.update(dict.fromkeys(urls.values(), hangs))
    before = len(office.posts)
    office.let(60)
    assert len(office.posts) == before + 16
    office.accept_all({100 + n: f"http://well-{n}.test/" for n in range(50)})
    assert len(office.posts) == before + 16 + 50


def test_32_connections_beside_dead_hosts(office: Office) -> None:
    """The bound holds too while some of the hosts are known to be dead."""
    urls = {n: f"http://dead-{n}.test/" for n in range(10)}
    office.receivers.update(dict.fromkeys(urls.values(), dead))
    office.accept_all(urls)
    office.let(3)
    before = len(office.posts)
    urls = {100 + n: f"http://slow-{n}.test/" for n in range(40)}
    office.receivers.update(dict.fromkeys(urls.values(), hangs))
    office.accept_all(urls)
    assert len(office.posts) == before + 32


def test_a_host_that_is_well_again_misses_nothing(office: Office) -> None:
    """Failures count in a row only: a host that has taken something since is sent every event again."""
    office.receivers[URL] = broken
    first, second = office.accept_all({1: URL, 2: URL})
    office.receivers[URL] = takes_it
    office.let(1)
    office.cancel(first)
    office.cancel(second)
    office.receivers[URL] = hangs
    job = office.accept(3)
    office.end(office.work(job))
    office.receivers[URL] = broken
    office.poster.to(URL)[-1].end.errback(TimedOut("no answer within 15 s"))
    office.settle()
    assert [one.sequence for one in office.tries(job)] == [1, 2, 3, 4]


def test_what_waits_hides_nothing(office: Office) -> None:
    """A retry to a good receiver is in time although much is overdue for one that hangs."""
    bad = "http://dead.test/"
    office.receivers[bad] = hangs
    office.accept_all(dict.fromkeys(range(10), bad))
    office.receivers[URL] = broken
    office.accept(100)
    office.let(8)
    assert [post.at for post in office.poster.to(URL)] == [0, 1, 3, 7]


def test_a_clock_that_is_set_back(office: Office) -> None:
    """A wall clock that is corrected costs at most a minute, since something pending is looked at that often."""
    office.receivers[URL] = broken
    office.accept(1)
    office.let(sum(STEPS[:8]))
    wait = office.clock.getDelayedCalls()
    assert [call.getTime() - office.clock.seconds() for call in wait] == [60]


def test_a_host_that_comes_back() -> None:
    """Three failures in a row make a host ailing, one success well; and the dead ones of all time are not kept."""
    receivers = Receivers()
    for _ in range(2):
        receivers.failed("http://a")
    receivers.answered("http://a")
    for _ in range(2):
        receivers.failed("http://a")
    assert not receivers.is_ailing("http://a")
    receivers.failed("http://a")
    assert receivers.ailing == {"http://a"}
    for n in range(KNOWN - 1):
        receivers.failed(f"http://{n}")
    receivers.failed("http://a")
    receivers.failed("http://new")
    assert receivers.ailing == {"http://a"}
    for n in range(KNOWN):
        receivers.failed(f"http://{n}")
    assert not receivers.ailing


def test_nothing_is_done_for_nothing(office: Office) -> None:
    """With nothing pending no timer runs."""
    office.end(office.work(office.accept(1)), evolve(DONE, artifacts=()))
    assert len(office.posts) == 4
    assert not office.clock.getDelayedCalls()
