"""`make soak` is judged: what is pruned is remembered, what is sampled is true, and what grows is found."""

from __future__ import annotations

import gc
import hashlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chaos import report, soak
from chaos.archive import Archive
from chaos.faults import JUMPS
from chaos.flat import LEAST, SERIES, WARM_UP, judged, stretches
from chaos.samples import EVERY, Sample, sample
from chaos.summary import kept_soak

# -- whether anything grows --------------------------------------------------------------------------------------------

HOUR = 3600.0


def samples(*, seconds: float = HOUR, life: Callable[[float], int] = lambda _: 1, **grows: Any) -> list[Sample]:
    """The samples of a run in which each series is 50, or what a function of the seconds says."""
    times = [EVERY * number for number in range(int(seconds / EVERY))]
    return [
        {"at": at, "life": life(at), **dict.fromkeys(SERIES, 50.0), **{name: said(at) for name, said in grows.items()}}
        for at in times
    ]


def test_what_stays_as_it_is_passes() -> None:
    """An hour in which nothing changes is flat in every series."""
    assert judged(samples()) == []
    assert {one.name for one in stretches(samples())} == set(SERIES)


@pytest.mark.parametrize("name", SERIES)
def test_what_grows_is_found(name: str) -> None:
    """A leak makes the soak fail, and it says of what, and how much."""
    [found] = judged([{**one, name: 50 + one["at"] / 10} for one in samples()])
    assert found.startswith(name)
    assert "grows" in found


def test_a_slow_leak_of_memory_is_found() -> None:
    """Twenty MiB in an hour, in a process of sixty: too little to be seen by eye, too much for a year."""
    assert judged(samples(memory=lambda at: 60 + 20 * at / HOUR)) != []
    assert judged(samples(memory=lambda at: 60 + 2 * at / HOUR)) == []


def test_peaks_and_teeth_do_not_grow() -> None:
    """A queue that fills up during faults, and a log that is begun anew again and again, are no trend."""
    teeth = samples(
        log=lambda at: at % 60 / 4,
        queue=lambda at: 5000 if at > HOUR - 60 else 3,
        memory=lambda at: 300 if at % 100 == 0 else 60,
    )
    assert judged(teeth) == []


def test_the_warm_up_is_not_judged() -> None:
    """What a process takes in its first minute it may keep: what it has afterwards is what counts."""
    assert judged(samples(memory=lambda at: 60 if at > WARM_UP else 30)) == []
    assert {one.seconds for one in stretches(samples())} == {HOUR - EVERY - WARM_UP}


def test_memory_is_judged_in_each_process() -> None:
    """A second process may be larger than the first, but must not grow; one that lives for a moment is passed over."""

    def life(at: float) -> int:
        return 1 if at < 1800 else 2 if at < 1830 else 3

    assert judged(samples(life=life, memory=lambda at: 50.0 * life(at))) == []
    [found] = judged(samples(life=life, memory=lambda at: 50 if at < 1830 else at / 18))
    assert found.startswith("memory of process 3 grows")


def test_too_little_is_no_proof() -> None:
    """A soak that was too short to show anything does not pass, nor does one whose processes were."""
    assert len(judged(samples(seconds=WARM_UP + LEAST - 10))) == len(SERIES)
    assert [line.partition(":")[0] for line in judged(samples(life=lambda at: int(at / 120)))] == ["memory", "log"]
    assert len(judged([])) == len(SERIES)


# -- what is sampled ---------------------------------------------------------------------------------------------------

SCHEMA = Path(__file__).parents[1] / "work" / "schema" / "1.sql"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A database of foreman's, without foreman."""
    with closing(sqlite3.connect(tmp_path / "foreman.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.executescript(SCHEMA.read_text())
        yield connection


def add(database: sqlite3.Connection, seq: int, state: str = "done") -> None:
    """A job that came to that state, with the events and the artifact it would have."""
    over = state in ("done", "failed")
    database.execute(
        "INSERT INTO jobs (seq, id, sync, endpoint, model, name, runner_model, runner_options, size, state,"
        " created_at, completed_at) VALUES (?, ?, 0, '/api/chat', 'm', 'm', 'm', '{}', 1, ?, 100, ?)",
        (seq, f"job-{seq}", state, 200 if over else None),
    )
    database.execute(
        "INSERT INTO events (seq, sequence, state, at, attempt, failures) VALUES (?, 1, 'queued', 100, 0, 0)", (seq,)
    )
    if over:
        words = f"chaos c{seq} says".encode()
        database.execute(
            "INSERT INTO artifacts (seq, name, content_type, size, sha256, body) VALUES (?, 'content', 't', ?, ?, ?)",
            (seq, len(words), hashlib.sha256(words).hexdigest(), words),
        )


def path(database: sqlite3.Connection) -> Path:
    """Its file."""
    [[_, _, name]] = database.execute("PRAGMA database_list")
    return Path(name)


def test_a_sample_is_what_the_process_holds(database: sqlite3.Connection, tmp_path: Path) -> None:
    """The figures are those of that process and that database: one more file, one more job, and it shows."""
    gc.collect()  # or files that other tests have left to it may be closed between the samples
    before = sample(os.getpid(), 3, path(database))
    assert before["life"] == 3
    assert set(before) == {"at", "life", *SERIES}
    assert 5 < before["memory"] < 5000  # MiB
    add(database, 1, "done")
    add(database, 2, "queued")
    with (tmp_path / "open").open("w"):
        after = sample(os.getpid(), 3, path(database))
    assert after["descriptors"] == before["descriptors"] + 1
    assert (before["jobs"], before["queue"]) == (0, 0)
    assert (after["jobs"], after["queue"]) == (2, 1)
    assert after["log"] > 0
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    folded = sample(os.getpid(), 3, path(database))
    assert folded["log"] == 0
    assert folded["database"] > before["database"]


def test_who_is_gone_is_not_sampled(database: sqlite3.Connection) -> None:
    """A process that was killed meanwhile has no figures, rather than those of nothing."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises(OSError, match=str(gone.pid)):
        sample(gone.pid, 1, path(database))


def test_who_is_ending_is_not_sampled(database: sqlite3.Connection) -> None:
    """A process that has ended and was not waited for yet holds nothing any more; it does not end the sampling."""
    ending = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    os.waitid(os.P_PID, ending.pid, os.WEXITED | os.WNOWAIT)
    try:
        with pytest.raises(ProcessLookupError, match=str(ending.pid)):
            sample(ending.pid, 1, path(database))
    finally:
        ending.communicate()


# -- what is remembered ------------------------------------------------------------------------------------------------


def test_pruned_jobs_are_remembered_as_they_were(database: sqlite3.Connection) -> None:
    """What was seen of a job before it was pruned is judged with the rest, and when it went."""
    archive = Archive(path(database))
    add(database, 1)
    archive.read()
    database.execute("DELETE FROM jobs")
    add(database, 2)
    seen = archive.evidence([])
    assert [row["id"] for row in seen["jobs"]] == ["job-1", "job-2"]
    assert ["gone_at" in row for row in seen["jobs"]] == [True, False]
    assert [event["seq"] for event in seen["events"]] == [1, 2]
    assert [(artifact["seq"], artifact["says"]) for artifact in seen["artifacts"]] == [(1, "c1"), (2, "c2")]


def test_a_job_is_remembered_as_it_was_last(database: sqlite3.Connection) -> None:
    """Every look brings what is known of a job up to date."""
    archive = Archive(path(database))
    add(database, 1, "queued")
    archive.read()
    database.execute("UPDATE jobs SET state = 'done', completed_at = 200")
    database.execute("INSERT INTO events (seq, sequence, state, at, attempt, failures) VALUES (1, 2, 'done', 1, 0, 0)")
    archive.read()
    database.execute("DELETE FROM jobs")
    [row] = archive.evidence([])["jobs"]
    assert row["state"] == "done"
    assert [event["state"] for event in archive.evidence([])["events"]] == ["queued", "done"]


def test_deleted_jobs_are_not_remembered(database: sqlite3.Connection) -> None:
    """A job that its owner erased leaves nothing; one that is there in spite of that is shown."""
    archive = Archive(path(database))
    add(database, 1)
    add(database, 2)
    archive.read()
    database.execute("DELETE FROM jobs WHERE seq = 1")
    seen = archive.evidence(["job-1", "job-2"])
    assert [row["id"] for row in seen["jobs"]] == ["job-2"]
    assert {row["seq"] for table in ("events", "artifacts") for row in seen[table]} == {2}


def test_a_blob_that_is_not_what_its_hash_says_is_seen(database: sqlite3.Connection) -> None:
    """Blobs are hashed when they are seen, since they are too large to be kept."""
    add(database, 1)
    database.execute("UPDATE artifacts SET body = x'00'")
    [artifact] = Archive(path(database)).evidence([])["artifacts"]
    assert (artifact["hash"], artifact["length"]) == (hashlib.sha256(b"\0").hexdigest(), 1)
    assert artifact["hash"] != artifact["sha256"]


# -- what a soak does --------------------------------------------------------------------------


def test_a_seed_is_a_plan() -> None:
    """The same seed asks and strikes in the same way; every other stretch restarts nothing, so that processes age."""
    planned = soak.soak_plan(7, length=HOUR, rate=1, pause=10)
    assert planned == soak.soak_plan(7, length=HOUR, rate=1, pause=10)
    assert planned != soak.soak_plan(8, length=HOUR, rate=1, pause=10)
    assert HOUR <= len(planned.calls) < 2 * HOUR
    struck = [{strike.fault for strike in stretch} for stretch in planned.stretches]
    assert [bool(faults & set(soak.RESTARTS)) for faults in struck] == [True, False, True, False, True]


def test_clocks_jump_by_less_than_jobs_are_kept() -> None:
    """After a longer jump everything is too old at once, and pruned before anybody has seen it."""
    planned = soak.soak_plan(7, length=10 * HOUR, rate=0.01, pause=10)
    jumps = [strike for stretch in planned.stretches for strike in stretch if strike.fault == "clock jumps"]
    seconds = {JUMPS[int(strike.chance * len(JUMPS))] for strike in jumps}
    assert seconds == {-60, -3, 3, 60}
    assert max(seconds) < soak.TTL
    assert all(strike.chance >= 0.5 or strike.chance % 0.1 < 0.05 for strike in jumps)  # and back


def test_the_page_tells_of_the_soak() -> None:
    """What docs/reliability.md says of the last soak is what was measured."""
    kept = kept_soak()
    assert kept is not None
    assert report.soaked(kept) in report.PAGE.read_text()
    assert report.FIGURE.read_bytes().startswith(b"\x89PNG")
    assert kept["violations"] == []
    assert judged(kept["samples"]) == []
