"""The database as a file: who owns it, and copies of it that are whole or not there.

Only the standard library is needed: the command `foreman` copies where no daemon is installed.

A copy is taken from one snapshot, which a reader holds from the first page to the last.  Without it SQLite begins anew
whenever another process has written between two steps, and beside a busy daemon never ends (docs/adr/0020).  It grows
under a name of its own, private, checked and on the disk before anybody calls it a copy; a crash leaves what was
there before, and a remainder that the next copy to the same place takes over.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from foreman.errors import Damaged, NotCopied, StoreLocked, Unwritable

STEP = 1024
"""Pages copied at a time, 4 MiB, and then brought to the disk: what piles up there would hold up others' fsyncs."""

LOGS = ("-wal", "-shm", "-journal")
COMPANIONS = (*LOGS, ".lock")
"""What lies beside a database in use, by the endings of their names: SQLite's files, and ours."""


def companion(path: Path, ending: str) -> Path:
    """The file beside a database that has this ending."""
    return path.with_name(path.name + ending)


def own(path: Path) -> int:
    """Take `<path>.lock` for as long as the returned descriptor stays open.

    :raise StoreLocked: somebody else has it.
    :raise Unwritable: its folder is missing or closed to us, or it is a folder, a device …
    """
    lock = companion(path, ".lock")
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113 - Path's raise where nobody may look
        raise Unwritable("it is not a regular file")
    # Not truncated on opening: until the lock is ours, the pid in it is the holder's.  And not through a link, by which
    # the folder's owner could have root, who restores, empty another file.
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno == errno.ENOENT and not lock.parent.is_dir():
            raise Unwritable(f"there is no folder {lock.parent}") from error
        link = " (it is a link: remove it)" if error.errno == errno.ELOOP else ""
        raise Unwritable(f"{lock}: {error.strerror}{link}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except BlockingIOError:
        pid = os.read(descriptor, 32).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise StoreLocked(f"{path} is in use by another foreman, pid {pid or 'unknown'}") from None
    except OSError as error:
        os.close(descriptor)
        raise Unwritable(f"{lock}: {error.strerror}") from error
    return descriptor


def create(path: Path) -> None:
    """Make the file if there is none, for its owner alone: SQLite would go by the umask.  Its log follows it."""
    with suppress(OSError):  # what else is wrong, SQLite will say
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def uri(path: Path, options: str) -> str:
    """A file's name, whatever is in it, as SQLite takes it with options."""
    return f"file://{quote(os.fsencode(path.absolute()))}?{options}"


def version(connection: sqlite3.Connection) -> int:
    """The schema of a foreman database, 1 or more; 0 if it is not one.

    :raise sqlite3.DatabaseError: it is no database at all, or damaged.
    """
    jobs = connection.execute("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'jobs'").fetchone()
    (number,) = connection.execute("PRAGMA user_version").fetchone()
    return number if jobs is not None else 0


# -- copying ---------------------------------------------------------------------------------------------------------


@contextmanager
def copied(source: sqlite3.Connection, part: Path) -> Iterator[None]:
    """A whole copy under the name `part`, for the block to rename; what still has that name after it is removed.

    The copy is of one snapshot, readable by its owner alone, checked, on the disk, and one file: it needs no log.

    :param source: a connection outside a transaction.
    :raise NotCopied: another process is making that copy, or what was read is damaged.
    :raise OSError: no room, no permission …
    :raise sqlite3.Error: the same, as SQLite says it.
    """
    descriptor = _begin(part)
    try:
        _fill(source, part, descriptor)
        _check(part)
        _flush(descriptor)
        yield
    finally:
        if _is(part, descriptor):
            part.unlink()
        os.close(descriptor)


def settle(part: Path, name: Path) -> None:
    """Give a copy its name, in the place of what has it, so that it survives a power cut.

    :raise OSError: it has no new name.
    """
    part.replace(name)
    folder = os.open(name.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _begin(part: Path) -> int:
    """Make the file, or take over what a crash has left of one, and keep others from it."""
    while True:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(descriptor)
            ours = (os.geteuid(), part.parent.stat().st_uid)
            if status.st_uid not in ours or status.st_nlink > 1:  # in a folder of everybody's, somebody's trap
                raise NotCopied(f"{part} is not ours: remove it")
            if _is(part, descriptor):  # else whoever had it has just renamed it
                os.fchmod(descriptor, 0o600)
                os.ftruncate(descriptor, 0)
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise NotCopied(f"{part} is being written by another process") from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is(path: Path, descriptor: int) -> bool:
    """Whether an open file has this name."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _is_open_twice(descriptor: int) -> bool:
    """Whether SQLite has opened this very file, and not one that the folder's owner has led its name to, for root."""
    found = 0
    for each in Path("/dev/fd").iterdir():
        with suppress(OSError):  # that which listed them is closed
            found += os.path.samestat(os.fstat(int(each.name)), os.fstat(descriptor))
    return found > 1


def _fill(source: sqlite3.Connection, part: Path, descriptor: int) -> None:
    source.execute("BEGIN")
    try:
        source.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # from here on it is one snapshot
        with closing(sqlite3.connect(uri(part, "mode=rw&nolock=1"), uri=True, isolation_level=None)) as target:
            if not _is_open_twice(descriptor):
                raise NotCopied(f"{part} was replaced by somebody meanwhile")
            target.execute("PRAGMA journal_mode = OFF")  # there is nothing to go back to
            target.execute("PRAGMA synchronous = OFF")
            source.backup(target, pages=STEP, progress=lambda *_: os.fsync(descriptor))
    finally:
        source.execute("ROLLBACK")  # the sooner it is let go, the less the daemon's log grows
    # By SQLite's file format the header's bytes 18 and 19 say whether a log belongs to the file.  None does: so a copy
    # can be read from a disk that cannot be written, and leaves nothing beside it.
    os.pwrite(descriptor, b"\x01\x01", 18)


def _check(part: Path) -> None:
    with closing(sqlite3.connect(uri(part, "mode=ro&nolock=1"), uri=True)) as connection:
        try:
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            found = str(error)
        if found != "ok":
            raise Damaged(f"it is damaged: {' '.join(found.split())}")  # SQLite writes several lines


def _flush(descriptor: int) -> None:
    """Bring a file to the disk; on macOS, to the platter."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is None:
        os.fsync(descriptor)
    else:
        fcntl.fcntl(descriptor, full)
