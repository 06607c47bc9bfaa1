"""Databases with many rows, made in seconds: one row of each kind as foreman writes it, copied by SQLite itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from foreman.job import Ending, Job, NewJob, Runner, Submission
from foreman.work.database import SCHEMA, upgrade
from foreman.work.moves import Transaction, at_work, ended, picked

MODELS = ("model-a", "model-b", "model-c", "model-d")


def new_job(job_id: str, model: str = MODELS[0]) -> NewJob:
    """An async job as it comes in."""
    return NewJob(
        id=job_id,
        endpoint="/api/chat",
        model=model,
        runner=Runner(model),
        size=2,
        created_at=1,
        submission=Submission(body=b"{}"),
    )


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A database of the newest schema, with the settings foreman uses."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA temp_store = MEMORY")
        upgrade(connection, path, SCHEMA)
        yield connection


def columns(connection: sqlite3.Connection, table: str = "jobs") -> list[str]:
    """What a row of a table is made of, but for its keys."""
    names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    return [name for name in names if name not in ("seq", "id", "number")]


def fill(path: Path, *, queued: int, done: int) -> None:
    """Make a database with that many async jobs, spread over four models."""
    with opened(path) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        transaction = Transaction(connection.cursor(), 5)
        patterns = [transaction.accept(new_job(f"done-{model}", model)) for model in MODELS]
        for job in patterns:
            _finish(transaction, job)
        _copy(connection, patterns, done - len(patterns))
        patterns = [transaction.accept(new_job(f"queued-{model}", model)) for model in MODELS]
        _copy(connection, patterns, queued - len(patterns))
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _finish(transaction: Transaction, job: Job) -> None:
    taken = picked(job, 2)
    working = at_work(taken, 3)
    for before, after in ((job, taken), (taken, working), (working, ended(working, Ending(error=None, at=4)))):
        assert transaction.move(before, after)


def _copy(connection: sqlite3.Connection, patterns: list[Job], count: int) -> None:
    """So many more jobs like these, in turn, each with all that is its own."""
    (last,) = connection.execute("SELECT max(seq) FROM jobs").fetchone()
    bound = {"count": count, "last": last, "kind": patterns[0].id[:1], "first": patterns[0].seq, "each": len(patterns)}
    for table, key, value in (
        ("jobs", "id,", "printf('%s%026d', :kind, number),"),
        ("bodies", "", ""),
        ("events", "", ""),
    ):
        names = ", ".join(columns(connection, table))
        connection.execute(
            f"""
            WITH RECURSIVE numbers (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers LIMIT :count)
            INSERT INTO {table} (seq, {key} {names})
            SELECT :last + number, {value} {names}
            FROM numbers CROSS JOIN {table} ON seq = :first + number % :each
            """,  # noqa: S608 (the names are the table's own)
            bound,
        )
