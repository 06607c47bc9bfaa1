"""SQLite behind Twisted: one thread that writes, one that reads, and one process that owns the file.

A write is a function of a cursor.  Those that wait while another commits are committed together, in the order
they were asked, so that one fsync serves all of them; one that raises takes back its own work only.  Nothing is
awaited inside a transaction, and a caller who stops waiting stops nothing: the write goes on.

A foreman that dies leaves at worst a write-ahead log, which the next start reads; a commit that was asked to be
durable has been fsynced before its caller hears of it.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from attrs import frozen
from twisted.enterprise.adbapi import ConnectionPool
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from foreman.database_file import companion, copied, create, own, settle
from foreman.errors import NotCopied, SchemaTooNew, StoreError, Unwritable
from foreman.logs import make_logger

T = TypeVar("T")

_log = make_logger()

SCHEMA = Path(__file__).parent / "schema"
BATCH = 500
"""Writes in one commit, at most: the first of them waits for the last."""

_NORMAL, _FULL = 1, 2  # the values of PRAGMA synchronous

_PRAGMAS = (
    "PRAGMA auto_vacuum = INCREMENTAL",  # first: once the file has a page this is decided
    "PRAGMA journal_mode = WAL",
    "PRAGMA wal_autocheckpoint = 4000",  # a longer log, but fewer commits that pay for a checkpoint
    "PRAGMA journal_size_limit = 33554432",  # bytes; beside a long reader, as a backup is, it grows beyond
    "PRAGMA busy_timeout = 2000",  # milliseconds; for a stranger's backup, nobody of ours competes
    "PRAGMA cache_size = -1000",  # KiB; a queue's pages are few, and twice as many only show in the memory it takes
    "PRAGMA temp_store = MEMORY",  # what savepoints remember spills to a file otherwise, a third of a write's time
    "PRAGMA foreign_keys = ON",
    "PRAGMA secure_delete = ON",  # what is erased is gone, not merely free; many builds of SQLite do so anyway
    "PRAGMA fullfsync = ON",  # on macOS a plain fsync does not reach the platter; elsewhere these two do nothing
    "PRAGMA checkpoint_fullfsync = ON",
)

_CANNOT_WRITE = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    }
)


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Turn what the disk or a stranger is to blame for into `Unwritable`; let the rest through."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code: int = getattr(error, "sqlite_errorcode", 0)  # the module's own errors carry none
        if code & 0xFF in _CANNOT_WRITE:  # the upper bits tell which kind of I/O error
            raise Unwritable(str(error)) from error
        raise


# -- the schema ------------------------------------------------------------------------------------------------------


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: `executescript` would commit behind our back."""
    statement = ""
    *pieces, rest = script.split(";")
    for piece in pieces:
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if (statement + rest).strip():
        raise ValueError(f"unfinished statement: {statement + rest}")


def refuse_newer(connection: sqlite3.Connection, path: Path, schema: Path) -> int:
    """The database's schema, 0 if it is new.

    :param schema: a folder of `1.sql`, `2.sql` …
    :raise SchemaTooNew: it was written by a newer foreman; nothing was touched.
    """
    version: int
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > (newest := _newest(schema)):
        raise SchemaTooNew(f"{path} has schema {version}, this foreman knows up to {newest}: run a newer foreman")
    return version


def _own_whatever_its_name(path: Path) -> int:
    """As `own`, of the file itself: a link is another name for it, but no other database."""
    return own(Path(os.path.realpath(path)))


def upgrade(connection: sqlite3.Connection, path: Path, schema: Path) -> Path | None:
    """Bring the database to the newest schema, each step in one transaction.

    :return: where it was copied to as it was, if it held anything: `<path>.v<version>.bak`.
    :raise SchemaTooNew: it was written by a newer foreman.
    :raise Unwritable: it cannot be copied, and is left as it was.
    """
    version, newest = refuse_newer(connection, path, schema), _newest(schema)
    backup = None
    if 0 < version < newest:
        backup = companion(path, f".v{version}.bak")
        try:
            with copied(connection, part := companion(backup, ".part")):
                settle(part, backup)
        except (NotCopied, OSError, sqlite3.Error) as error:
            raise Unwritable(f"no copy of it can be made before its upgrade to schema {newest}: {error}") from error
    for step in range(version + 1, newest + 1):
        connection.execute("BEGIN IMMEDIATE")
        for statement in _statements((schema / f"{step}.sql").read_text(encoding="utf-8")):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {step}")
        connection.execute("COMMIT")
    return backup


def _newest(schema: Path) -> int:
    return len(list(schema.glob("*.sql")))


# -- writing ---------------------------------------------------------------------------------------------------------


def run_batch(
    connection: sqlite3.Connection, batch: Sequence[Callable[[sqlite3.Cursor], Any]], *, durable: bool
) -> tuple[list[Any], float]:
    """Run functions one after another and commit them together.

    Savepoints, so that one that raises takes back its own work only, are set when one has raised: then all is rolled
    back and run again.  An exception leaves the transaction open, for adbapi to roll back.

    :return: what each gave, or the `Failure` of one that raised and left no trace; and the seconds it all took.
    :raise sqlite3.Error: nothing of the batch was stored.
    """
    started = time.perf_counter()
    synchronous = _FULL if durable else _NORMAL
    if connection.execute("PRAGMA synchronous").fetchone() != (synchronous,):
        connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("BEGIN IMMEDIATE")
    try:
        outcomes = [_run(connection, work) for work in batch]
    except Exception:  # noqa: BLE001 - it comes again
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        connection.execute("BEGIN IMMEDIATE")
        outcomes = [_run_guarded(connection, work) for work in batch]
    connection.execute("COMMIT")
    return outcomes, time.perf_counter() - started


def _run(connection: sqlite3.Connection, work: Callable[[sqlite3.Cursor], T]) -> T:
    with closing(connection.cursor()) as cursor:
        return work(cursor)


def _run_guarded(connection: sqlite3.Connection, work: Callable[[sqlite3.Cursor], Any]) -> Any:
    connection.execute("SAVEPOINT one")
    try:
        with _in_our_words():
            outcome = _run(connection, work)
    except Exception:
        if not connection.in_transaction:
            raise  # on some I/O errors SQLite drops the whole transaction, and with it the writes before this one
        connection.execute("ROLLBACK TO one")
        outcome = Failure()  # its caller alone hears of it
    connection.execute("RELEASE one")
    return outcome


def _run_read(connection: sqlite3.Connection, work: Callable[[sqlite3.Cursor], T]) -> T:
    connection.execute("BEGIN")  # one snapshot for all its queries; adbapi ends it
    return _run(connection, work)


def _empty_log(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@frozen(eq=False)
class _Write:
    work: Callable[[sqlite3.Cursor], Any]
    durable: bool
    waiter: Deferred[Any]


class Database:
    """One SQLite file, owned by this process while it is open.

    :ivar on_commit: called on the reactor thread after each commit with its seconds and the writes in it.
    """

    def __init__(self, path: Path, reactor: Any, schema: Path = SCHEMA) -> None:
        self.on_commit: Callable[[float, int], None] = lambda _seconds, _writes: None
        self._path = path
        self._reactor = reactor
        self._schema = schema
        self._open = False
        self._waiting: deque[_Write] = deque()
        self._due = inf  # by `reactor.seconds()`, when the first of them is to be committed
        self._committing = False
        self._next_commit: IDelayedCall | None = None
        self._writer: Any
        self._reader: Any
        self._lock: int

    async def open(self) -> None:
        """Take the file and bring it to the newest schema.

        :raise StoreLocked: another foreman holds it.
        :raise SchemaTooNew: a newer foreman wrote it.
        :raise Unwritable: it cannot be opened or written.
        """
        self._lock = _own_whatever_its_name(self._path)
        create(self._path)
        self._writer = self._pool(_PRAGMAS)
        self._reader = self._pool((*_PRAGMAS, "PRAGMA query_only = ON"))
        try:
            with _in_our_words():
                backup = await self._writer.runWithConnection(upgrade, self._path, self._schema)
        except BaseException:
            self._release()
            raise
        if backup is not None:
            _log.info("The database was upgraded; as it was before, prompts included, it is in {copy}", copy=backup)
        self._open = True

    async def close(self) -> None:
        """Wait for what was asked, fold the log into the file, and let go.  Closing twice does no harm."""
        if not self._open:
            return
        self._open = False
        try:
            with _in_our_words():
                await self._enqueue(lambda _cursor: None, durable=True)  # the last in line: all before it are done
                await self._reader.runWithConnection(lambda _connection: None)
                self._reader.close()  # a reader would keep the log from being emptied
                await self._writer.runWithConnection(_empty_log)
        finally:
            self._release()

    async def write(self, work: Callable[[sqlite3.Cursor], T], *, durable: bool, within: float = 0.0) -> T:
        """Run `work` in a write transaction off the reactor thread, and return what it gave once it is committed.

        Cancelling the wait does not stop the write.

        :param work: touches only its arguments and the cursor; raising takes back what it did.  When it, or one that
            shares the commit, has raised, it is run again.
        :param durable: fsync before returning, else a power cut (not a crash) may lose it.
        :param within: seconds that it may wait for company, so that it costs no commit of its own.
        :raise Unwritable: disk full, read-only, I/O error; nothing was stored.
        :raise StoreError: not open.
        """
        self._must_be_open()
        result: T = await self._enqueue(work, durable=durable, within=within)
        return result

    async def read(self, work: Callable[[sqlite3.Cursor], T]) -> T:
        """Run `work` over one snapshot of what is committed, off the reactor thread.

        :raise Unwritable: the file cannot be read either.
        :raise StoreError: not open.
        """
        self._must_be_open()
        with _in_our_words():
            result: T = await self._reader.runWithConnection(_run_read, work)
        return result

    def _must_be_open(self) -> None:
        if not self._open:  # a closed pool would answer with a Deferred that never fires
            raise StoreError("the store is not open")

    def _enqueue(self, work: Callable[[sqlite3.Cursor], Any], *, durable: bool, within: float = 0.0) -> Deferred[Any]:
        waiter: Deferred[Any] = Deferred()
        self._waiting.append(_Write(work, durable, waiter))
        due = self._reactor.seconds() + within
        if due < self._due:
            self._due = due
            self._plan()
        return waiter

    def _plan(self) -> None:
        """Have the next commit begin when it is due, unless one is under way.

        Not at once: what else is asked in this turn of the reactor, such as the next job, joins it.
        """
        if self._committing or not self._waiting:
            return
        if self._next_commit is not None:
            self._next_commit.cancel()
        wait = max(0.0, self._due - self._reactor.seconds())
        self._next_commit = self._reactor.callLater(wait, lambda: Deferred.fromCoroutine(self._commit_waiting()))

    async def _commit_waiting(self) -> None:
        """Commit batch after batch until none is due."""
        self._next_commit, self._committing = None, True
        self._due = -inf  # the first of them, whichever way the clock's seconds were rounded
        while self._waiting and self._due <= self._reactor.seconds():
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH))]
            self._due = self._due if self._waiting else inf
            durable = any(write.durable for write in batch)
            try:
                with _in_our_words():
                    outcomes, seconds = await self._writer.runWithConnection(
                        run_batch, [write.work for write in batch], durable=durable
                    )
            except Exception:  # noqa: BLE001 - whatever it was, each caller of the batch hears of it
                failure = Failure()
                for write in batch:
                    write.waiter.errback(failure)
            else:
                for write, outcome in zip(batch, outcomes, strict=True):
                    write.waiter.callback(outcome)
                try:
                    self.on_commit(seconds, len(batch))
                except Exception:  # noqa: BLE001 (whoever listens must not stop the writing)
                    _log.failure("A listener of commits failed")
        self._committing = False
        self._plan()

    def _pool(self, pragmas: Sequence[str]) -> Any:
        def prepare(connection: sqlite3.Connection) -> None:
            try:
                refuse_newer(connection, self._path, self._schema)  # first: the pragmas write to the file
            except BaseException:
                connection.close()
                raise
            for pragma in pragmas:
                connection.execute(pragma)

        pool: Any = ConnectionPool(
            "sqlite3",
            str(self._path),
            check_same_thread=False,  # the pool closes connections from the reactor thread
            isolation_level=None,  # transactions are begun here, by name, and nowhere else
            cp_min=1,
            cp_max=1,
            cp_reactor=self._reactor,
            cp_openfun=prepare,
        )
        pool.start()
        return pool

    def _release(self) -> None:
        for pool in (self._reader, self._writer):
            if pool.running:
                pool.close()
        os.close(self._lock)
