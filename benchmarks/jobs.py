"""The async face: jobs taken in, the way of one to the target, its webhooks, and a look at it in a long queue."""

from __future__ import annotations

import json
import random
import selectors
import signal
import time
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from statistics import median

from benchmarks.processes import Bench, Foreman, free_port, wait_until
from benchmarks.results import Result, at_least, percentile, told
from benchmarks.seed import columns, fill, new_job, opened
from benchmarks.wire import TIMEOUT, Connection, get, lines_model, request
from foreman.work.moves import Transaction

CLIENTS = 64
BATCH = 1000
BATCH_CLIENTS = 4
MODEL = lines_model(1)
EVENTS_OF_JOB = 4
"""queued, loading, working, done."""


def measure(bench: Bench) -> list[Result]:
    """All four."""
    return [*_accepts(bench), *_latency(bench), *_webhooks(bench), *_looks(bench)]


# -- taking in -------------------------------------------------------------------------------------------------------


def _accepts(bench: Bench) -> list[Result]:
    """Jobs a second while the target is away, so that the queue only grows, and bare SQLite between the rounds."""
    rounds, seconds = bench.few(3, 2), bench.few(2, 1)
    single = submission()
    batch = request("POST", "/jobs", (_job() + b"\n") * BATCH, "application/x-ndjson")
    ways = {"one": (CLIENTS, single, 1), "many": (BATCH_CLIENTS, batch, BATCH)}
    rates: dict[str, list[float]] = {"one": [], "many": []}
    costs: dict[str, list[float]] = {"one": [], "many": []}
    bare: dict[str, list[float]] = {"one": [], "many": []}
    with bench.foreman(free_port(), wait=False) as foreman:
        foreman.wait_until_ready()
        for number in range(rounds):
            for way, (clients, wanted, size) in ways.items():
                queued, cost, started = foreman.queued(), foreman.cpu(), time.monotonic()
                jobs = _posted(foreman.port, clients, wanted, seconds) * size
                rates[way].append(jobs / (time.monotonic() - started))
                costs[way].append((foreman.cpu() - cost) / jobs)
                assert foreman.queued() - queued == jobs
                path = bench.folder / f"bare-{way}-{number}.db"
                bare[way].append(_bare(path, max(size, CLIENTS), 0.5))
    return [
        at_least(f"POST /jobs, {CLIENTS} clients", median(rates["one"]), "jobs/s", 1500),
        told("processor time of a job so taken in", median(costs["one"]) * 1e6, "µs"),
        told(f"the same rows in bare SQLite, {CLIENTS} a commit", median(bare["one"]), "rows/s"),
        at_least(f"POST /jobs, batches of {BATCH}, {BATCH_CLIENTS} clients", median(rates["many"]), "jobs/s", 30_000),
        told("processor time of a job so taken in, in a batch", median(costs["many"]) * 1e6, "µs"),
        told(f"the same rows in bare SQLite, {BATCH} a commit", median(bare["many"]), "rows/s"),
        told(
            f"POST /jobs, batches of {BATCH}, foreman / bare SQLite", median(rates["many"]) / median(bare["many"]), "x"
        ),
    ]


def _posted(port: int, clients: int, wanted: bytes, seconds: float) -> int:
    """Have each client make one call after another for so long; how many there were, all answered 202."""
    finished = 0
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.EpollSelector())
        connections = [stack.enter_context(Connection(port)) for _ in range(clients)]
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.socket.sendall(wanted)
        until = time.monotonic() + seconds
        while selector.get_map():
            events = selector.select(TIMEOUT)
            assert events, "no client hears anything"
            for key, _ in events:
                # The rest of an answer is close behind its head.
                answer(key.data, 202)
                finished += 1
                if time.monotonic() < until:
                    key.data.socket.sendall(wanted)
                else:
                    selector.unregister(key.fileobj)
    return finished


def _bare(path: Path, size: int, seconds: float) -> float:
    """Rows a second: what an accepted job writes, so many a commit, each commit on the disk."""
    with opened(path) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        connection.execute("PRAGMA synchronous = FULL")
        names = columns(connection)
        connection.execute("BEGIN")
        seq = Transaction(connection.cursor(), 1).accept(new_job("pattern")).seq
        pattern = connection.execute(f"SELECT {', '.join(names)} FROM jobs").fetchone()  # noqa: S608
        connection.execute("COMMIT")
        insert = f"INSERT INTO jobs (seq, id, {', '.join(names)}) VALUES (?, ?{', ?' * len(names)})"  # noqa: S608
        numbers = count(seq + 1)
        body = _job()
        rows, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            taken = [next(numbers) for _ in range(size)]
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(insert, [(number, f"{number:026d}", *pattern) for number in taken])
            connection.executemany(
                "INSERT INTO bodies (seq, content_type, body) VALUES (?, 'application/json', ?)",
                [(number, body) for number in taken],
            )
            connection.executemany(
                "INSERT INTO events (seq, sequence, state, at, attempt, failures) VALUES (?, 1, 'queued', 1, 0, 0)",
                [(number,) for number in taken],
            )
            connection.execute("COMMIT")
            rows += size
        return rows / (time.perf_counter() - started)


# -- to the target ---------------------------------------------------------------------------------------------------


def _latency(bench: Bench) -> list[Result]:
    """Milliseconds from the call until its job is at the target, where nothing else is to do."""
    waits, answers = [], []
    with bench.stub(MODEL) as stub, bench.foreman(stub.port) as foreman, Connection(foreman.port) as client:
        for _ in range(bench.few(400, 100)):
            started = time.monotonic()
            client.socket.sendall(submission())
            accepted = json.loads(answer(client, 202))
            answers.append((time.monotonic() - started) * 1000)
            client.socket.sendall(request("GET", f"/jobs/{accepted['job_id']}?wait=10"))
            assert json.loads(answer(client, 200))["state"] == "done"
            [came] = [at for kind, at in stub.events() if kind == "r"]
            waits.append((came - started) * 1000)
    # The first has its model loaded.
    waits, answers = waits[1:], answers[1:]
    return [
        told("POST /jobs when idle, until its answer, p50", median(answers), "ms"),
        told("POST /jobs when idle, until its answer, p99", percentile(answers, 99), "ms"),
        told("POST /jobs when idle, until the job is at the target, p50", median(waits), "ms"),
        told("POST /jobs when idle, until the job is at the target, p99", percentile(waits, 99), "ms"),
    ]


# -- webhooks --------------------------------------------------------------------------------------------------------


def _webhooks(bench: Bench) -> list[Result]:
    """Deliveries a second to one good receiver, which sleeps until all jobs have ended."""
    jobs = bench.few(500, 200)
    # A stub says 200 to what it does not know.
    with bench.stub(MODEL) as stub, bench.stub() as receiver, bench.foreman(stub.port) as foreman:
        receiver.process.send_signal(signal.SIGSTOP)
        line = _job(state_webhook_url=f"http://127.0.0.1:{receiver.port}/hook") + b"\n"
        with Connection(foreman.port) as client:
            client.socket.sendall(request("POST", "/jobs", line * jobs, "application/x-ndjson"))
            answer(client, 202)
        wait_until(lambda: _metric(foreman, "foreman_jobs_ended_total", 'state="done"') == jobs, within=10)
        assert _delivered(foreman) == 0
        cost, started = foreman.cpu(), time.monotonic()
        receiver.process.send_signal(signal.SIGCONT)

        def all_there() -> bool:
            time.sleep(0.05)  # not to be in the way
            return _delivered(foreman) == jobs * EVENTS_OF_JOB

        wait_until(all_there)
        passed, cost = time.monotonic() - started, foreman.cpu() - cost
    deliveries = jobs * EVENTS_OF_JOB
    return [
        told(f"webhook deliveries to one receiver, {deliveries} waiting", deliveries / passed, "/s"),
        told("processor time of a webhook delivery", cost / deliveries * 1e6, "µs"),
    ]


def _delivered(foreman: Foreman) -> float:
    return _metric(foreman, "foreman_webhook_attempts_total", 'outcome="delivered"')


def _metric(foreman: Foreman, name: str, label: str) -> float:
    """The sum of a metric's samples with that label."""
    lines = get(foreman.port, "/metrics").decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name) and label in line)


# -- looking ---------------------------------------------------------------------------------------------------------


def _looks(bench: Bench) -> list[Result]:
    """Milliseconds of a look at any job of a long queue; the target is away, so that nothing runs."""
    rows = bench.few(100_000, 20_000)
    path = bench.folder / "rows.db"
    fill(path, queued=rows, done=100)
    times = []
    with bench.foreman(free_port(), wait=False, DB=str(path)) as foreman:
        foreman.wait_until_ready()
        with Connection(foreman.port) as client:
            for _ in range(bench.few(1000, 300)):
                wanted = request("GET", f"/jobs/q{random.randint(1, rows - 4):026d}")
                started = time.perf_counter()
                client.socket.sendall(wanted)
                document = answer(client, 200)
                times.append((time.perf_counter() - started) * 1000)
                assert json.loads(document)["state"] == "queued"
    return [
        told(f"GET /jobs/{{id}}, {rows} queued, p50", median(times), "ms"),
        told(f"GET /jobs/{{id}}, {rows} queued, p99", percentile(times, 99), "ms"),
    ]


# -- the client ------------------------------------------------------------------------------------------------------


def _job(**more: str) -> bytes:
    document = {"model": MODEL, "messages": [{"role": "user", "content": "Say something."}], **more}
    return json.dumps(document).encode()


def submission() -> bytes:
    """A small job, as a call."""
    return request("POST", "/jobs", _job())


def answer(connection: Connection, status: int) -> bytes:
    """The body of an answer that tells its length; RuntimeError when it has another status."""
    data = connection.receive()
    while b"\r\n\r\n" not in data:
        data += connection.receive()
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 %d " % status):
        raise RuntimeError(data.decode("latin-1"))
    length = int(head.lower().partition(b"\r\ncontent-length:")[2].split(b"\r\n")[0])
    pieces = [body]
    while (length := length - len(pieces[-1])) > 0:
        pieces.append(connection.receive())
    return b"".join(pieces)
