"""The database of a round, read from outside: at the end, or again and again while jobs are being pruned.

What was once seen of a job is kept when its row goes, so that `chaos.checker` judges the jobs of an hour of which only
the last minutes are left.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from chaos.facts import TAG

Row = dict[str, Any]

KEYS = {"jobs": ("seq",), "events": ("seq", "sequence"), "tries": ("seq", "place"), "artifacts": ("seq", "name")}
"""What tells the rows of a table from each other, in the order in which they are judged."""

QUERIES = {
    "jobs": "SELECT * FROM jobs",
    "events": "SELECT * FROM events",
    "tries": "SELECT * FROM delivery_tries",
    "artifacts": "SELECT seq, name, size, sha256, number FROM artifacts",
}


class Archive:
    """Every row ever seen, as it was when it was last seen."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, dict[tuple[Any, ...], Row]] = {table: {} for table in KEYS}
        self._there: set[int] = set()

    def read(self) -> None:
        """Look at the database as it is now.

        :raise sqlite3.Error: it is not to be had.
        """
        with opened(self._path) as connection:
            connection.execute("BEGIN")  # one moment for all tables
            found = {table: [dict(row) for row in connection.execute(query)] for table, query in QUERIES.items()}
            for artifact in found["artifacts"]:
                seen = self._rows["artifacts"].get((artifact["seq"], artifact["name"]))
                artifact.update(seen or _content(connection, artifact["number"]))
        now = time.time()
        for table, keys in KEYS.items():
            self._rows[table].update({tuple(row[key] for key in keys): row for row in found[table]})
        there = {row["seq"] for row in found["jobs"]}
        for seq in self._there - there:
            self._rows["jobs"][seq,]["gone_at"] = now
        self._there = there

    def evidence(self, deleted: Iterable[str]) -> dict[str, list[Row]]:
        """The rows that are there, those that were pruned (their jobs have `gone_at`), and what SQLite finds wrong.

        :param deleted: ids of jobs somebody wanted erased; those that are gone are left out.
        """
        self.read()
        wanted = set(deleted)
        jobs = self._rows["jobs"].values()
        erased = {row["seq"] for row in jobs if row.get("gone_at") and row["id"] in wanted}
        with opened(self._path) as connection:
            now = {
                "bodies": "SELECT seq FROM bodies",
                "keys": "SELECT key, ids, kept, gone_at FROM idempotency",
                "faults": "PRAGMA integrity_check",
                "orphans": "PRAGMA foreign_key_check",
            }
            last = {name: [dict(row) for row in connection.execute(query)] for name, query in now.items()}
        kept = {
            table: [row for _, row in sorted(rows.items()) if row["seq"] not in erased]
            for table, rows in self._rows.items()
        }
        return kept | last


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The database for reading, with rows by name."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1)) as connection:
        connection.row_factory = sqlite3.Row
        yield connection


def _content(connection: sqlite3.Connection, number: int) -> Row:
    """What a blob really is, by its size and hash, and whose words it holds: too large to be kept."""
    [body] = connection.execute("SELECT body FROM artifacts WHERE number = ?", (number,)).fetchone()
    says = TAG.search(body[:10_000].decode("utf-8", "replace"))
    return {"length": len(body), "hash": hashlib.sha256(body).hexdigest(), "says": says and says[1]}
