"""Grouped commits, what a failure takes with it, and who owns the file."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError

from foreman.errors import SchemaTooNew, StoreError, StoreLocked, Unwritable
from foreman.test.strategies import SteppedDatabase, failure_of, start
from foreman.work.database import BATCH, SCHEMA, Database

asynchronous: Callable[[Callable[..., Coroutine[Any, Any, None]]], Any] = pytest_twisted.ensureDeferred


def keep(key: str, value: bytes = b"") -> Callable[[sqlite3.Cursor], str]:
    """A write that leaves one row, and gives its key."""

    def work(cursor: sqlite3.Cursor) -> str:
        cursor.execute("INSERT INTO kept VALUES (?, ?, 0)", (key, value))
        return key

    return work


def keys(cursor: sqlite3.Cursor) -> list[str]:
    """The rows there are."""
    return [key for (key,) in cursor.execute("SELECT key FROM kept ORDER BY key")]


@pytest.fixture
def database(tmp_path: Path) -> SteppedDatabase:
    """An open database whose threads the test steps."""
    opened = SteppedDatabase(tmp_path / "foreman.db")
    opened.finish(opened.open())
    return opened


# -- grouped commits -------------------------------------------------------------------------------------------------


def test_waiting_writes_share_a_commit(database: SteppedDatabase) -> None:
    """Callers who wait together share one commit, in the order they came, and each gets its own answer."""
    commits: list[int] = []
    database.on_commit = lambda seconds, writes: commits.append(writes if seconds > 0 else -1)
    done: list[str] = []
    for key in "cab":
        start(database.write(keep(key), durable=False)).addCallback(done.append)
    database.step()
    assert (commits, done) == ([1], ["c"])
    database.step()
    assert (commits, done) == ([1, 2], ["c", "a", "b"])


@asynchronous
async def test_what_is_asked_in_one_turn_shares_a_commit(tmp_path: Path) -> None:
    """The end of a job and the pick of the next cost one commit, though nobody commits when the first is asked."""
    from twisted.internet import reactor

    database = Database(tmp_path / "foreman.db", reactor)
    await database.open()
    commits: list[int] = []
    database.on_commit = lambda _seconds, writes: commits.append(writes)
    first, second = (start(database.write(keep(key), durable=False)) for key in "ab")
    await first
    await second
    await database.close()
    assert commits[0] == 2


def test_a_batch_is_bounded(database: SteppedDatabase) -> None:
    """However many wait, the first of a batch waits only for a bounded number of others."""
    commits: list[int] = []
    database.on_commit = lambda _seconds, writes: commits.append(writes)
    waiting = [start(database.write(keep(str(number)), durable=False)) for number in range(BATCH + 3)]
    while not waiting[-1].called:
        database.step()
    assert commits == [1, BATCH, 2]


def test_a_failed_write_fails_alone(database: SteppedDatabase) -> None:
    """A write that goes wrong takes back all it did and tells its caller; those beside it are stored."""

    def broken(cursor: sqlite3.Cursor) -> None:
        keep("half")(cursor)
        raise ZeroDivisionError

    first = start(database.write(keep("first"), durable=False))
    before = start(database.write(keep("before"), durable=False))
    failing = start(database.write(broken, durable=False))
    after = start(database.write(keep("after"), durable=False))
    while not after.called:
        database.step()
    assert isinstance(failure_of(failing), ZeroDivisionError)
    assert (first.result, before.result, after.result) == ("first", "before", "after")
    assert database.finish(database.read(keys)) == ["after", "before", "first"]


def test_a_failed_commit_fails_all(tmp_path: Path) -> None:
    """When the commit itself fails nobody is told that it was stored, nothing is, and the next write works."""
    schema = tmp_path / "schema"
    shutil.copytree(SCHEMA, schema)
    (schema / "2.sql").write_text(
        "CREATE TABLE child (of TEXT REFERENCES kept (key) DEFERRABLE INITIALLY DEFERRED);", encoding="utf-8"
    )
    database = SteppedDatabase(tmp_path / "foreman.db", schema)
    database.finish(database.open())

    def orphan(cursor: sqlite3.Cursor) -> None:
        cursor.execute("INSERT INTO child VALUES ('nobody')")

    first = start(database.write(keep("first"), durable=False))
    waiting = [start(database.write(work, durable=False)) for work in (keep("a"), orphan, keep("b"))]
    while not waiting[-1].called:
        database.step()
    assert all(isinstance(failure_of(each), sqlite3.IntegrityError) for each in waiting)
    assert first.result == "first"
    database.finish(database.write(keep("later"), durable=False))
    assert database.finish(database.read(keys)) == ["first", "later"]


def test_a_lost_transaction_fails_all(database: SteppedDatabase) -> None:
    """When SQLite drops a whole transaction in the middle of a batch, nobody of the batch is told it was stored."""

    def lose(cursor: sqlite3.Cursor) -> None:
        cursor.execute("ROLLBACK")
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
        raise error

    first = start(database.write(keep("first"), durable=False))
    waiting = [start(database.write(work, durable=False)) for work in (keep("a"), lose, keep("b"))]
    while not waiting[-1].called:
        database.step()
    assert first.result == "first"
    failures = [failure_of(each) for each in waiting]
    assert [(type(each), str(each)) for each in failures] == [(Unwritable, "disk I/O error")] * 3
    assert database.finish(database.read(keys)) == ["first"]


def test_durable_means_fsynced(database: SteppedDatabase) -> None:
    """A batch is committed with full synchronisation when any write in it asks for that, and only then."""

    def level(cursor: sqlite3.Cursor) -> int:
        return int(cursor.execute("PRAGMA synchronous").fetchone()[0])

    normal, full = 1, 2
    for durable, expected in [(False, normal), (True, full), (False, normal), (True, full)]:
        assert database.finish(database.write(level, durable=durable)) == expected
    start(database.write(keep("first"), durable=False))
    together = [start(database.write(level, durable=durable)) for durable in (False, True, False)]
    while not together[-1].called:
        database.step()
    assert [each.result for each in together] == [full] * 3


def test_leaving_stops_nothing(database: SteppedDatabase) -> None:
    """A client that hangs up while its write waits or runs neither stops it nor harms its neighbours."""
    running = start(database.write(keep("running"), durable=False))
    waiting = start(database.write(keep("waiting"), durable=False))
    beside = start(database.write(keep("beside"), durable=False))
    for left in (running, waiting):
        left.cancel()
        assert isinstance(failure_of(left), CancelledError)
    while not beside.called:
        database.step()
    assert beside.result == "beside"
    assert database.finish(database.read(keys)) == ["beside", "running", "waiting"]


# -- a disk that does not do as told ---------------------------------------------------------------------------------


def test_full_disk(database: SteppedDatabase) -> None:
    """On a full disk a write is refused as `Unwritable` and leaves nothing behind; room again, and it works."""

    def limit(pages: int) -> Callable[[sqlite3.Cursor], None]:
        return lambda cursor: cursor.execute(f"PRAGMA max_page_count = {pages}").close()

    def large(cursor: sqlite3.Cursor) -> None:
        keep("small")(cursor)
        keep("large", b"x" * 1_000_000)(cursor)

    database.finish(database.write(keep("before"), durable=True))
    database.finish(database.write(limit(1), durable=False))
    with pytest.raises(Unwritable, match="full"):
        database.finish(database.write(large, durable=True))
    assert database.finish(database.read(keys)) == ["before"]
    database.finish(database.write(limit(1_000_000), durable=False))
    database.finish(database.write(large, durable=True))
    assert database.finish(database.read(keys)) == ["before", "large", "small"]


def test_read_only_disk(database: SteppedDatabase) -> None:
    """A file that may only be read is `Unwritable`, and still read."""
    database.finish(database.write(keep("before"), durable=False))
    database.finish(database.write(lambda cursor: cursor.execute("PRAGMA query_only = ON").close(), durable=False))
    with pytest.raises(Unwritable, match="readonly"):
        database.finish(database.write(keep("after"), durable=False))
    assert database.finish(database.read(keys)) == ["before"]


def test_a_stranger_holds_the_file(database: SteppedDatabase, tmp_path: Path) -> None:
    """While another program keeps the file locked, writes are `Unwritable`; afterwards they work."""
    database.finish(database.write(lambda cursor: cursor.execute("PRAGMA busy_timeout = 0").close(), durable=False))
    stranger = sqlite3.connect(tmp_path / "foreman.db", isolation_level=None)
    stranger.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unwritable, match="locked"):
        database.finish(database.write(keep("a"), durable=False))
    stranger.close()
    assert database.finish(database.write(keep("a"), durable=False)) == "a"


def test_other_errors_are_not_the_disks(database: SteppedDatabase) -> None:
    """A mistake of ours is not mistaken for a disk that cannot write."""
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        database.finish(database.write(lambda cursor: cursor.execute("DELETE FROM nowhere"), durable=False))
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        database.finish(database.read(lambda cursor: cursor.execute("SELECT * FROM nowhere")))


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    """A database that cannot be made is refused at once, in words."""
    database = SteppedDatabase(tmp_path / "nowhere" / "foreman.db")
    with pytest.raises(Unwritable, match=r"^there is no folder .*nowhere$"):
        database.finish(database.open())


def test_a_database_that_is_a_folder_or_a_device(tmp_path: Path) -> None:
    """What is no file is refused in words, and nothing is made beside it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        database = SteppedDatabase(tmp_path / name)
        with pytest.raises(Unwritable, match=r"^it is not a regular file$"):
            database.finish(database.open())
    assert {each.name for each in tmp_path.iterdir()} == {"pipe", "folder"}


def test_readers_only_read(database: SteppedDatabase) -> None:
    """What was asked as a read can change nothing."""
    with pytest.raises(Unwritable):
        database.finish(database.read(keep("a")))


# -- opening and closing ---------------------------------------------------------------------------------------------


@asynchronous
async def test_with_real_threads(tmp_path: Path) -> None:
    """Statements run beside the reactor, never on it; closing waits for what was asked and leaves one tidy file."""
    from twisted.internet import reactor

    path = tmp_path / "foreman.db"
    database = Database(path, reactor)
    await database.open()
    here = threading.get_ident()
    assert await database.write(lambda _cursor: threading.get_ident(), durable=False) != here
    assert await database.read(lambda _cursor: threading.get_ident()) != here
    waiting = [start(database.write(keep(str(number)), durable=True)) for number in range(20)]
    reading = start(database.read(keys))
    await database.close()
    assert [await each for each in waiting] == [str(number) for number in range(20)]
    await reading
    assert not (tmp_path / "foreman.db-wal").exists()
    with pytest.raises(StoreError, match="not open"):
        await database.write(keep("late"), durable=False)
    await database.close()
    await database.open()
    assert len(await database.read(keys)) == 20
    await database.close()


def test_closing_waits(database: SteppedDatabase, tmp_path: Path) -> None:
    """However much was asked before, it is done before the file is let go; all of it is then in that one file."""
    waiting = [start(database.write(keep(str(number)), durable=False)) for number in range(2 * BATCH)]
    onlooker = sqlite3.connect(tmp_path / "foreman.db")
    onlooker.execute("SELECT count(*) FROM kept").fetchall()
    database.finish(database.close())
    assert [each.result for each in waiting] == [str(number) for number in range(2 * BATCH)]
    assert (tmp_path / "foreman.db-wal").stat().st_size == 0
    onlooker.close()


def test_a_read_is_one_snapshot(database: SteppedDatabase, tmp_path: Path) -> None:
    """The queries of one read see the same moment, whatever is committed between them."""

    def read(cursor: sqlite3.Cursor) -> list[list[str]]:
        before = keys(cursor)
        with sqlite3.connect(tmp_path / "foreman.db") as other:
            keep("later")(other.cursor())
        other.close()
        return [before, keys(cursor)]

    assert database.finish(database.read(read)) == [[], []]
    assert database.finish(database.read(keys)) == ["later"]


def test_the_log_shrinks_again(database: SteppedDatabase, tmp_path: Path) -> None:
    """What a long reader, such as a backup, made the log grow by is given back to the disk once it has gone."""
    log = tmp_path / "foreman.db-wal"
    reader = sqlite3.connect(tmp_path / "foreman.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM kept").fetchone()
    for number in range(10):
        database.finish(database.write(keep(str(number), bytes(5_000_000)), durable=False))
    assert log.stat().st_size > 50_000_000
    reader.close()
    for number in range(10, 13):
        database.finish(database.write(keep(str(number)), durable=False))
    assert log.stat().st_size < 34_000_000


def test_not_open(tmp_path: Path) -> None:
    """Asking a store that is not open fails at once, instead of waiting for ever."""
    database = SteppedDatabase(tmp_path / "foreman.db")
    with pytest.raises(StoreError, match="not open"):
        database.finish(database.read(keys))
    with pytest.raises(StoreError, match="not open"):
        database.finish(database.write(keep("a"), durable=False))


def test_pragmas(database: SteppedDatabase) -> None:
    """The file is in WAL mode and gives space back; foreign keys hold; a Mac's disk cache is flushed."""

    def settings(cursor: sqlite3.Cursor) -> dict[str, object]:
        names = ("journal_mode", "auto_vacuum", "foreign_keys", "fullfsync", "checkpoint_fullfsync")
        return {name: cursor.execute(f"PRAGMA {name}").fetchone()[0] for name in names}

    expected = {
        "journal_mode": "wal",
        "auto_vacuum": 2,
        "foreign_keys": 1,
        "fullfsync": 1,
        "checkpoint_fullfsync": 1,
    }
    assert database.finish(database.write(settings, durable=False)) == expected
    assert database.finish(database.read(settings)) == expected


def test_one_owner(tmp_path: Path) -> None:
    """A second start on the same file says who holds it, on one line; a killed holder holds nothing."""
    path = tmp_path / "foreman.db"
    script = "import sys, pathlib, foreman.database_file as f; f.own(pathlib.Path(sys.argv[1])); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        for _again in range(2):  # being refused does not blank the holder's pid
            database = SteppedDatabase(path)
            with pytest.raises(StoreLocked) as refusal:
                database.finish(database.open())
            assert str(refusal.value) == f"{path} is in use by another foreman, pid {holder.pid}"
        holder.kill()
    database.finish(database.open())
    with pytest.raises(StoreLocked):
        SteppedDatabase(path).finish(SteppedDatabase(path).open())
    database.finish(database.close())
    database.finish(database.open())
    database.finish(database.close())


def test_one_owner_by_whatever_name(tmp_path: Path) -> None:
    """A link to the file is the same database: two foremen, one started by each name, would both run its jobs."""
    path, link = tmp_path / "foreman.db", tmp_path / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(path)
    database = SteppedDatabase(link)
    database.finish(database.open())
    other = SteppedDatabase(path)
    with pytest.raises(StoreLocked):
        other.finish(other.open())
    database.finish(database.close())


# -- the schema ------------------------------------------------------------------------------------------------------

SECOND = """
-- A step with all that makes splitting hard; a comment with a semicolon, too.
ALTER TABLE jobs ADD COLUMN note TEXT NOT NULL DEFAULT 'a;b';
CREATE TRIGGER t AFTER INSERT ON kept BEGIN
    UPDATE jobs SET note = 'x;';
    DELETE FROM jobs WHERE note = '--';
END; CREATE TABLE extra (n INTEGER) STRICT;
"""


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    """A folder of schema steps that a test may add to."""
    return Path(shutil.copytree(SCHEMA, tmp_path / "schema"))


def shape(cursor: sqlite3.Cursor) -> list[tuple[object, ...]]:
    """All that was created, and the version."""
    return [
        *cursor.execute("SELECT type, name, sql FROM sqlite_master ORDER BY type, name"),
        *cursor.execute("PRAGMA user_version"),
    ]


def test_an_upgraded_database_is_as_a_fresh_one(tmp_path: Path, schema: Path) -> None:
    """An upgrade keeps every row, ends at the schema a fresh start makes, and leaves a copy of what was before."""
    old = SteppedDatabase(tmp_path / "old.db", schema)
    old.finish(old.open())
    old.finish(old.write(keep("a", b"value"), durable=False))
    before = old.finish(old.read(shape))
    old.finish(old.close())
    (schema / "2.sql").write_text(SECOND, encoding="utf-8")
    shapes = []
    for name in ("old.db", "fresh.db"):
        database = SteppedDatabase(tmp_path / name, schema)
        database.finish(database.open())
        shapes.append(database.finish(database.read(shape)))
        database.finish(database.close())
    assert shapes[0] == shapes[1]
    assert shapes[0][-1] == (2,)
    assert not (tmp_path / "fresh.db.v1.bak").exists()
    for file, expected in (("old.db", shapes[0]), ("old.db.v1.bak", before)):
        with sqlite3.connect(tmp_path / file) as connection:
            assert shape(connection.cursor()) == expected
            assert connection.execute("SELECT key, value FROM kept").fetchall() == [("a", b"value")]
        connection.close()


@pytest.mark.parametrize("broken", ["CREATE TABLE x (n); CREATE TABLE x (n);", "CREATE TABLE x (n); CREATE TABLE y"])
def test_a_failed_upgrade_changes_nothing(tmp_path: Path, schema: Path, broken: str) -> None:
    """An upgrade that breaks off leaves the database as it was."""
    database = SteppedDatabase(tmp_path / "foreman.db", schema)
    database.finish(database.open())
    before = database.finish(database.read(shape))
    database.finish(database.close())
    (schema / "2.sql").write_text(broken, encoding="utf-8")
    with pytest.raises((sqlite3.OperationalError, ValueError)):
        database.finish(database.open())
    (schema / "2.sql").unlink()
    database.finish(database.open())
    assert database.finish(database.read(shape)) == before


def test_a_newer_database_is_refused(tmp_path: Path, schema: Path) -> None:
    """An older foreman does not touch a newer one's file; it says so on one line."""
    (schema / "2.sql").write_text(SECOND, encoding="utf-8")
    path = tmp_path / "foreman.db"
    newer = SteppedDatabase(path, schema)
    newer.finish(newer.open())
    newer.finish(newer.close())
    older = SteppedDatabase(path)
    with pytest.raises(SchemaTooNew) as refusal:
        older.finish(older.open())
    assert str(refusal.value) == f"{path} has schema 2, this foreman knows up to 1: run a newer foreman"
    newer.finish(newer.open())  # and it let go of the file
    newer.finish(newer.close())
