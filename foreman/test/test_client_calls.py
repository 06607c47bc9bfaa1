"""The client's operations, without sockets and without time: a small foreman that is told when to fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from foreman.client import (
    JobCancelled,
    JobExpired,
    JobFailed,
    JobInfo,
    JobState,
    NoSuchJob,
    NotForeman,
    NotReachable,
    QueueFull,
    Rejected,
    WaitTimeout,
    submission,
)
from foreman.client.asking import LONGEST_PAUSE, PARTING, Asking
from foreman.client.calls import Calls
from foreman.client.documents import read
from foreman.client.steps import SILENCE, Give, Lost, Reply, Return, Send, Sleep, advance

T = TypeVar("T")

FAULTS = ("unheard", "unanswered", 500, 502, 503, 429, "stopping")
"""The network breaks before the request is heard or before its answer is; a bad status; a foreman that stops answers
what waits at once."""


@define
class World:
    """A foreman with a clock of its own, and what it was asked.

    :ivar faults: what goes wrong with the next requests.
    :ivar runs: seconds for which each job runs.
    :ivar ends: what each job becomes.
    """

    faults: list[Any] = field(factory=list)
    runs: float = 100.0
    ends: dict[str, Any] = field(factory=lambda: {"state": "done", "result": {"response": "right"}})
    now: float = 0.0
    asked: list[Send] = field(factory=list)
    slept: list[float] = field(factory=list)
    jobs: dict[str, dict[str, Any]] = field(factory=dict)
    keys: dict[str, tuple[bytes | None, list[str]]] = field(factory=dict)
    submitted: list[str] = field(factory=list)
    retry_after: int = 7
    blobs: dict[str, bytes] = field(factory=dict)

    def calls(self, patience: float = 60.0) -> Calls[JobInfo]:
        """A client of it."""
        asking = Asking(patience=patience, clock=lambda: self.now, chance=lambda: 0.5)
        return Calls(lambda document: read(JobInfo, document), asking)

    def do(self, call: Any) -> Any:
        """Do an operation to its end and return its value, or the list of what it gives."""
        given: list[Any] = []
        step = advance(call)
        while not isinstance(step, Return):
            if isinstance(step, Give):
                given.append(step.value)
                step = advance(call)
                continue
            try:
                answer = self.answer(step)
            except BaseException as error:  # noqa: BLE001 - as the wires do
                step = advance(call, error=error)
            else:
                step = advance(call, answer)
        return given if step.value is None else step.value

    def answer(self, step: Any) -> Any:
        """What comes of a step."""
        if isinstance(step, Sleep):
            assert step.seconds >= 0
            self.slept.append(step.seconds)
            self.now += step.seconds
            return None
        self.now += 0.01
        self.asked.append(step)
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, BaseException):
            raise fault
        if fault == "unheard":
            raise Lost("refused")
        if isinstance(fault, int):
            headers = {"retry-after": str(self.retry_after)} if fault in (503, 429) else {}
            return Reply(status=fault, headers=headers, body=b'{"error": "not now"}')
        if isinstance(fault, Reply):
            return fault
        reply = self.route(step, waits=fault != "stopping")
        if fault == "unanswered":
            raise Lost("reset")
        return reply

    def route(self, request: Send, *, waits: bool) -> Reply:
        """A foreman that is well."""
        if request.method == "POST" and request.path == "/jobs":
            return self.accept(request)
        job_id = request.path.split("/")[2]
        if job_id not in self.jobs:
            return Reply(status=404, body=b'{"error": "there is no such job"}')
        if (name := request.path.rpartition("/artifacts/")[2]) in self.blobs:
            return Reply(status=200, body=self.blobs[name])
        if waits:
            left = self.jobs[job_id]["ends_at"] - self.now
            self.now += max(0.0, min(float(request.query.get("wait", "0")), left))
        if request.path.endswith("/cancel"):
            if self.now >= self.jobs[job_id]["ends_at"]:
                return Reply(status=409, body=b'{"error": "the job is over"}')
            cancelled = {"state": "failed", "error": {"code": "cancelled", "message": "It was."}}
            self.jobs[job_id] |= {"ends_at": self.now, "end": cancelled}
        return Reply(status=200, body=json.dumps(self.document(job_id)).encode())

    def document(self, job_id: str) -> dict[str, Any]:
        """A job as it is now."""
        job = self.jobs[job_id]
        created = {"job_id": job_id, "created_at": "2026-11-21T10:24:00.000Z", "endpoint": "/api/generate"}
        return {**created, **(job["end"] if self.now >= job["ends_at"] else {"state": "working"})}

    def accept(self, request: Send) -> Reply:
        """Take jobs in, once for each key."""
        assert request.body is not None
        key = request.headers["Idempotency-Key"]
        if key in self.keys:
            body, ids = self.keys[key]
            assert body == request.body, "a repeat must be the same to the byte"
        else:
            ids = [f"J{len(self.jobs) + number}" for number, _ in enumerate(request.body.splitlines())]
            self.keys[key] = (request.body, ids)
            self.submitted += ids
            self.jobs |= {job_id: {"ends_at": self.now + self.runs, "end": self.ends} for job_id in ids}
        taken = [{"job_id": job_id, "state": "queued"} for job_id in ids]
        batch = request.headers["Content-Type"] == "application/x-ndjson"
        return Reply(status=202, body=json.dumps({"jobs": taken} if batch else taken[0]).encode())

    def run(self, timeout: float | None = None, *, cancel: bool = False, patience: float = 60.0) -> JobInfo:
        """Run a job here."""
        call = self.calls(patience).run(submission("m", "Why?"), "the key", timeout=timeout, cancel_on_interrupt=cancel)
        job: JobInfo = self.do(call)
        return job


# -- once, whatever happens --------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([*FAULTS, None]), max_size=30), st.floats(0, 500))
def test_whatever_happens_a_job_runs_once_and_its_result_comes(faults: list[Any], runs: float) -> None:
    """Drops before and after, bad statuses and restarts in any order: one job is submitted, and its result returned."""
    world = World(faults=faults, runs=runs, retry_after=1)
    job = world.run(patience=10_000)
    assert world.submitted == ["J0"]
    assert (job.job_id, job.state, job.result) == ("J0", JobState.DONE, {"response": "right"})


@given(st.lists(st.sampled_from([*FAULTS, None]), max_size=30), st.floats(0, 60))
def test_the_callers_time_is_kept(faults: list[Any], timeout: float) -> None:
    """With a `timeout` the call returns or raises by then, whatever happens, give or take one answer."""
    world = World(faults=faults, runs=30.0)
    late = None
    try:
        world.run(timeout=timeout)
    except WaitTimeout as error:
        late = error
    assert late is None or world.now >= timeout
    assert late is None or late.job is None or world.submitted
    assert world.now <= timeout + 0.1
    assert all(request.silence <= timeout + PARTING for request in world.asked)
    assert len(world.submitted) <= 1


@given(st.lists(st.sampled_from([*FAULTS, None]), max_size=12), st.integers(1, 4))
def test_a_batch_is_submitted_once(faults: list[Any], size: int) -> None:
    """The same holds for batches: each of their jobs is there once, in the order of the lines."""
    world = World(faults=faults, retry_after=1)
    jobs = world.do(world.calls(10_000).submit_many([submission("m", str(n)) for n in range(size)], "key"))
    assert [job.job_id for job in jobs] == world.submitted == [f"J{number}" for number in range(size)]


def test_an_empty_batch_is_no_request() -> None:
    """Submitting nothing is fine, and asks nobody."""
    world = World()
    assert world.do(world.calls().submit_many([], "key")) == []
    assert world.asked == []


# -- when to try again -------------------------------------------------------------------------------------------------


def test_pauses_grow_to_a_bound() -> None:
    """A foreman that is away is asked less and less often, but never less than about twice a minute."""
    world = World(faults=["unheard"] * 12)
    world.run(patience=10_000)
    assert world.slept == [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30]


def test_after_good_news_pauses_begin_anew() -> None:
    """A connection that breaks now and then in a long wait is mended quickly each time."""
    world = World(faults=[None, "unheard", "unheard", None, "unheard"])
    world.run()
    assert world.slept == [0.25, 0.5, 0.25]


@given(st.integers(0, 50), st.floats(0, 1))
def test_callers_do_not_come_back_together(tries: int, chance: float) -> None:
    """Each pause is half of it more or less, by chance."""
    sleep = Asking(patience=0, clock=lambda: 0.0, chance=lambda: chance).pause(tries, None, float("inf"))
    usual = min(LONGEST_PAUSE, 0.25 * 2**tries)
    assert sleep.seconds == usual * (0.5 + chance)


@pytest.mark.parametrize("status", [503, 429])
def test_foreman_says_when_to_come_again(status: int) -> None:
    """`Retry-After` of a 503 or 429 is kept to, with a little more by chance."""
    world = World(faults=[status], retry_after=20)
    world.run()
    assert world.slept == [pytest.approx(22.0)]


def test_nobody_wishes_for_a_week() -> None:
    """A `Retry-After` without sense does not put a call to sleep for good."""
    world = World(faults=[None, 503], retry_after=999_999)
    world.run(patience=1.0)
    assert world.slept == [660.0]


def test_a_foreman_that_stops_is_not_asked_in_a_circle() -> None:
    """One that stops answers what waits at once: the next question comes after a pause."""
    world = World(faults=[None, "stopping", "stopping", "stopping"])
    world.run()
    assert world.slept == [0.25, 0.5, 1]


def test_who_waits_asks_rarely() -> None:
    """A job of an hour costs two questions a minute, and no sleep."""
    world = World(runs=3600.0)
    world.run()
    assert world.slept == []
    assert 100 < len(world.asked) < 130


# -- when to give up ---------------------------------------------------------------------------------------------------


def test_patience_ends() -> None:
    """A foreman that is never there is given up after `patience` seconds, with what went wrong."""
    world = World(faults=["unheard"] * 1000)
    with pytest.raises(NotReachable, match="refused"):
        world.run(patience=60.0)
    assert 60.0 <= world.now < 61.0


def test_no_patience_is_one_try() -> None:
    """With `patience=0` there is one try, which has its time: a slow foreman may have accepted the job."""
    world = World(faults=["unheard"])
    with pytest.raises(NotReachable):
        world.do(world.calls(0.0).submit(submission("m", "Why?"), "key"))
    assert [request.silence for request in world.asked] == [SILENCE]


def test_waiting_for_an_accepted_job_has_no_such_end() -> None:
    """Once foreman has the job, it may be away for as long as it likes."""
    world = World(faults=[None, *["unheard"] * 200])
    assert world.run(patience=1.0).state == "done"
    assert world.now > 3600


def test_a_full_queue_says_so() -> None:
    """When the queue stays full that is its own error, and nothing was stored."""
    full = Reply(status=503, headers={"retry-after": "10"}, body=b'{"error": "5 jobs are waiting, at most 5 may"}')
    world = World(faults=[full] * 100)
    with pytest.raises(QueueFull) as caught:
        world.run(patience=30)
    assert (caught.value.status, caught.value.retry_after) == (503, 10.0)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 413, 415, 422, 451, 499])
def test_a_no_is_final(status: int) -> None:
    """What foreman refuses is not tried again, and the error says what and where."""
    world = World(faults=[Reply(status=status, body=b'{"error": "messages[2].role: must be a string"}')])
    with pytest.raises(Rejected, match=r"messages\[2\].role") as caught:
        world.run()
    assert caught.value.status == status
    assert len(world.asked) == 1


def test_a_no_has_a_name() -> None:
    """The code of a refusal is its status in words."""
    codes = {status: Rejected(status, "").code for status in (400, 401, 404, 413, 422, 499)}
    assert codes == {
        400: "bad_request",
        401: "unauthorized",
        404: "not_found",
        413: Rejected(413, "").code,
        422: Rejected(422, "").code,
        499: "499",
    }


def test_bad_lines_are_named() -> None:
    """A refused batch says which lines were wrong, and how."""
    body = b'{"error": "2 of 3 lines", "lines": [{"line": 1, "error": "model: missing"}, {"line": 3, "error": "x"}]}'
    world = World(faults=[Reply(status=400, body=body)])
    with pytest.raises(Rejected) as caught:
        world.do(world.calls().submit_many([{}, {}, {}], "key"))
    assert caught.value.lines == {1: "model: missing", 3: "x"}


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=200, body=b"<html>"),
        Reply(status=200, body=b"[]"),
        Reply(status=200, body=b'{"jobs": []}'),
        Reply(status=200, body=b'{"job_id": "J", "state": "dancing"}'),
        Reply(status=301, headers={"location": "/"}),
    ],
)
def test_what_is_not_foreman_is_said_to_be_something_else(reply: Reply) -> None:
    """A wrong URL is told from a foreman that is away."""
    world = World(faults=[reply])
    with pytest.raises(NotForeman):
        world.run()


def test_a_deleted_job_is_not_waited_for() -> None:
    """Waiting for a job that somebody deletes ends at once."""
    world = World()
    job = world.do(world.calls().submit(submission("m", "Why?"), "key"))
    world.jobs.clear()
    with pytest.raises(NoSuchJob, match="no such job"):
        world.do(world.calls().wait(job, timeout=None, cancel_on_interrupt=False))


@pytest.mark.parametrize(
    ("code", "kind"),
    [("cancelled", JobCancelled), ("expired", JobExpired), ("model_not_found", JobFailed), ("new", JobFailed)],
)
def test_a_failed_job_is_an_error_that_carries_it(code: str, kind: type[JobFailed]) -> None:
    """How a job failed can be told by the error's type and code, and its job looked at."""
    world = World(ends={"state": "failed", "error": {"code": code, "message": "Something."}})
    with pytest.raises(JobFailed, match="Something") as caught:
        world.run()
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.job.job_id) == (code, "J0")


def test_a_timeout_says_what_the_job_was_doing() -> None:
    """Out of time, the error has the job as it was last seen; it is a TimeoutError too."""
    world = World(runs=100.0)
    with pytest.raises(TimeoutError, match="J0 is working") as caught:
        world.run(timeout=50.0)
    assert isinstance(caught.value, WaitTimeout)
    assert caught.value.job is not None
    assert caught.value.job.state == "working"


# -- leaving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_interrupted_call_cancels_its_job_if_asked(interrupt: type[BaseException], at: int) -> None:
    """Ctrl-C, or a cancelled task, at any moment: the job is cancelled first, accepted or perhaps accepted."""
    world = World(faults=[*[None] * at, interrupt()])
    with pytest.raises(interrupt):
        world.run(cancel=True)
    assert [world.document(job_id)["state"] for job_id in world.submitted] == ["failed"]


def test_an_interrupted_call_leaves_its_job_unless_asked() -> None:
    """Without being asked, Ctrl-C lets the job go on."""
    world = World(faults=[None, KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        world.run()
    assert world.document("J0")["state"] == "working"


def test_leaving_does_not_wait_for_a_foreman_that_is_away() -> None:
    """If the job cannot be cancelled at once, Ctrl-C is not held up."""
    world = World(faults=[None, KeyboardInterrupt(), "unheard"])
    with pytest.raises(KeyboardInterrupt):
        world.run(cancel=True)
    assert world.slept == []


def test_cancelling_twice_is_cancelling() -> None:
    """When the answer to a cancel is lost, the second try's `409` is no error: the job is as it is."""
    world = World()
    job = world.do(world.calls().submit(submission("m", "Why?"), "key"))
    world.faults = ["unanswered"]
    assert world.do(world.calls().cancel(job.job_id)).error.code == "cancelled"


def test_deleting_what_is_gone_is_fine() -> None:
    """When the answer to a delete is lost, the second try's `404` is no error."""
    world = World()
    assert world.do(world.calls().delete("J9")) == []


# -- what is known already ---------------------------------------------------------------------------------------------


def test_waiting_for_what_is_over_asks_nobody() -> None:
    """A finished job can be waited for again and again at no cost."""
    world = World(runs=0.0)
    job = world.run()
    asked = len(world.asked)
    assert world.do(world.calls().wait(job, timeout=0, cancel_on_interrupt=False)) == job
    assert len(world.asked) == asked


def test_a_repeat_that_is_over_already_is_looked_up() -> None:
    """A key that came before may name a job that is done: its result is fetched all the same."""
    world = World(faults=[Reply(status=200, body=b'{"job_id": "J7", "state": "done"}')])
    world.jobs["J7"] = {"ends_at": 0.0, "end": world.ends}
    assert world.run().result == {"response": "right"}


def test_jobs_of_a_batch_that_were_deleted_are_failed() -> None:
    """A repeated batch has the ids of deleted jobs without a state: they count as failed, and are not waited for."""
    world = World(faults=[Reply(status=200, body=b'{"jobs": [{"job_id": "J9", "state": null}]}')])
    [job] = world.do(world.calls().submit_many([submission("m", "x")], "key"))
    with pytest.raises(JobFailed, match="deleted"):
        world.do(world.calls().wait(job, timeout=None, cancel_on_interrupt=False))


# -- lists -------------------------------------------------------------------------------------------------------------


def listing(total: int, done: Callable[[int], bool] = lambda number: False) -> Callable[[Send], Reply]:
    """A foreman with so many jobs, J1 the oldest."""

    def document(number: int) -> dict[str, Any]:
        over = {"completed_at": f"2026-11-21T10:24:00.{number % 1000:03d}Z", "created_at": "2026-11-21T10:24:00.000Z"}
        return {"job_id": f"J{number}", **({"state": "done", **over} if done(number) else {"state": "queued"})}

    def route(request: Send) -> Reply:
        if request.path == "/queue":
            return Reply(status=200, body=b'{"queued": 1, "next": [{"position": 1, "job_id": "J2", "model": "m"}]}')
        if request.path != "/jobs":
            return Reply(status=200, body=json.dumps(document(int(request.path[7:]))).encode())
        last = int(request.query.get("after", f"J{total + 1}")[1:])
        numbers = range(last - 1, max(0, last - 1 - int(request.query["limit"])), -1)
        page = [document(number) for number in numbers]
        full = len(page) == int(request.query["limit"])
        return Reply(status=200, body=json.dumps({"jobs": page, "next": page[-1]["job_id"] if full else None}).encode())

    return route


@define
class Listed(World):
    """A world that answers by a function."""

    answers: Callable[[Send], Reply] = field(kw_only=True)

    def route(self, request: Send, *, waits: bool) -> Reply:
        """What the function says."""
        end = self.now + float(request.query.get("wait", "0"))
        while self.now < end and b"completed_at" not in self.answers(request).body:
            self.now += 0.125
        return self.answers(request)


@given(st.integers(0, 1200), st.none() | st.integers(0, 1300))
def test_lists_have_no_pages(total: int, limit: int | None) -> None:
    """All jobs come, newest first, each once, or as many as were asked for."""
    world = Listed(answers=listing(total))
    jobs = world.do(world.calls().jobs(state="queued", model="m", limit=limit))
    wanted = total if limit is None else min(total, limit)
    assert [job.job_id for job in jobs] == [f"J{total - number}" for number in range(wanted)]
    assert all(request.query["state"] == "queued" and request.query["model"] == "m" for request in world.asked)


def jobs_of(numbers: Iterable[int]) -> Iterator[JobInfo]:
    """Jobs just submitted."""
    return (JobInfo(job_id=f"J{number}", state=JobState.QUEUED) for number in numbers)


def test_jobs_come_as_they_are_completed() -> None:
    """Those that are over come at once, in the order in which they ended; the others when they are."""
    world = Listed(answers=listing(700, lambda number: number > 1 or world.now > 40))
    given = world.do(world.calls().as_completed(jobs_of([3, 1, 600, 2]), timeout=None))
    assert [job.job_id for job in given] == ["J2", "J3", "J600", "J1"]
    assert all(job.state.is_over for job in given)


def test_a_long_list_is_not_read_for_every_job() -> None:
    """Many jobs that end one after another cost two questions each, and a look at the list once a second at most."""
    world = Listed(answers=listing(2000, lambda number: world.now > number / 4))
    given = world.do(world.calls().as_completed(jobs_of(range(1, 101)), timeout=None))
    assert sorted(int(job.job_id[1:]) for job in given) == list(range(1, 101))
    looks = len([request for request in world.asked if request.path == "/jobs"]) / 4  # pages
    assert looks <= world.now + 2


def test_a_very_long_list_is_read_a_tenth_of_the_time_at_most() -> None:
    """Waiting for jobs of a list of ten thousand leaves foreman the time to do them."""
    world = Listed(answers=listing(10_000, lambda number: world.now > number / 4))
    given = world.do(world.calls().as_completed(jobs_of(range(1, 51)), timeout=None))
    assert len({job.job_id for job in given}) == 50
    pages = len([request for request in world.asked if request.path == "/jobs"])
    assert pages * 0.01 <= world.now / 10 + 0.5


def test_jobs_that_do_not_complete_run_out_of_time() -> None:
    """Waiting for many has an end too."""
    world = Listed(answers=listing(5))
    with pytest.raises(WaitTimeout):
        world.do(world.calls().as_completed(jobs_of([1, 2]), timeout=100))
    assert 100 <= world.now < 102
    assert {request.path for request in world.asked if "wait" in request.query} == {"/jobs/J2"}, "the first in line"


# -- what is long ------------------------------------------------------------------------------------------------------


def test_what_was_too_long_to_be_told_is_fetched() -> None:
    """A result over the inline limit, and its text, are there all the same when `run` returns."""
    reference = {"content_type": "x", "size": 9, "sha256": "0" * 64, "inline": None}
    ends = {"state": "done", "result": None, "artifacts": [{"name": n, **reference} for n in ("completion", "content")]}
    world = World(ends=ends, runs=0.0, blobs={"completion": b'{"response": "long"}', "content": b"long"})
    job = world.run()
    assert (job.result, job.text) == ({"response": "long"}, "long")
