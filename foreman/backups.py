"""Backups of a database, made beside a running foreman, and the way back.

Only the file's owner makes them, or root: whoever opens a database may have to make the log beside it, and a log that
is somebody else's keeps foreman from its own file (docs/adr/0020).
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

from foreman.database_file import COMPANIONS, LOGS, companion, copied, own, settle, uri, version
from foreman.errors import Damaged, NotCopied, StoreLocked, Unwritable

ROOM = 16 << 20
"""Bytes that a copy leaves on the disk: foreman's log may need as much at any moment."""


def back_up(database: Path, place: Path, now: datetime) -> Path:
    """Copy a database, in use or not, to a file.

    :param place: a file, which is replaced if it is an older backup, or a folder, in which a file is made.
    :param now: in UTC, for the name of that file.
    :return: the copy.
    :raise NotCopied: there is no copy; an older one is as it was.
    """
    database, place = _resolved(database), _resolved(place)
    with _in_one_line(f"{database} cannot be copied to {place}"), closing(_open(database)) as source:
        goal, part = place, companion(place, ".part")
        if place.is_dir():
            goal, part = place / f"{database.stem}-{_moment(now)}.db", place / f"{database.stem}.part"
            if goal.exists():
                raise NotCopied(f"{goal} exists")
        _refuse(goal, database)
        _need_room(source, goal.parent)
        with copied(source, part):
            settle(part, goal)
    return goal


def restore(backup: Path, database: Path, now: datetime) -> Path | None:
    """Put a copy of a backup in the database's place; foreman does not run.

    :param now: in UTC, for the name of what was there.
    :return: where that is, if there was something.
    :raise NotCopied: the database is as it was.
    """
    backup, named, database = _resolved(backup), database, _resolved(database)
    with _in_one_line(f"{backup} cannot be restored to {database}"), closing(_open(backup)) as source:
        _need_own_link(named, database)
        if database.exists():
            if not database.is_file():
                raise NotCopied(f"{database} is not a regular file")
            _need_right(database)
            if database.samefile(backup):
                raise NotCopied("they are the same file")
        _need_room(source, database.parent)
        owner = (database if database.exists() else database.parent).stat()
        with _owned(database, owner), copied(source, part := companion(database, ".part")):
            _give(part, owner)
            before = _set_aside(database, owner, now)
            settle(part, database)
    return before


# -- refusing --------------------------------------------------------------------------------------------------------


@contextmanager
def _in_one_line(doing: str) -> Iterator[None]:
    try:
        yield
    except StoreLocked as error:
        raise NotCopied(f"{doing}: {error}; stop it first") from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise NotCopied(f"{doing}: {where}{error.strerror}") from error
    except (NotCopied, Unwritable, sqlite3.Error) as error:
        raise NotCopied(f"{doing}: {error}") from error


def _refuse(goal: Path, database: Path) -> None:
    """Refuse to write over anything but an older backup that nobody uses."""
    if not goal.parent.is_dir():
        raise NotCopied(f"there is no folder {goal.parent}")
    if goal in (database, *(companion(database, ending) for ending in COMPANIONS)):
        raise NotCopied("that is the database itself")
    for ending in COMPANIONS:
        if (beside := companion(goal, ending)).exists():  # a log left there would be read into the new file
            raise NotCopied(f"{beside} is there: that is, or was, a database in use")
    if not goal.exists():
        return
    if goal.samefile(database):
        raise NotCopied("that is the database itself")
    try:
        if not stat.S_ISREG(goal.stat().st_mode):
            raise NotCopied("it is not a regular file")
        with closing(sqlite3.connect(uri(goal, "mode=ro&immutable=1"), uri=True)) as connection:
            if version(connection) == 0:
                raise NotCopied("it exists, and is not a backup of foreman's")
    except sqlite3.Error as error:
        raise NotCopied(f"it exists, and is not a backup of foreman's ({error})") from error


def _need_room(source: sqlite3.Connection, folder: Path) -> None:
    """Refuse what would fill the disk, which may well be the one that foreman writes to."""
    ((pages,), (size,)) = (source.execute(f"PRAGMA page_{what}").fetchone() for what in ("count", "size"))
    free = shutil.disk_usage(folder).free
    if free < (needed := pages * size + ROOM):
        raise NotCopied(f"it needs {needed >> 20} MiB, and {folder} has {free >> 20} MiB")


# -- whose files they are --------------------------------------------------------------------------------------------


def _open(path: Path) -> sqlite3.Connection:
    """Open a foreman database."""
    if not path.is_file():
        raise NotCopied(f"there is no file {path}")
    _need_right(path)
    # Read-only SQLite leaves beside the file what it makes there.  But root must not play back another's journal.
    connection = _connect(path, "ro" if _is_of_others(path) else "rw")
    try:
        if version(connection) == 0:
            raise NotCopied(f"{path} is not a database of foreman's")
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(uri(path, f"mode={mode}"), uri=True, isolation_level=None)


def _need_right(path: Path) -> None:
    """Refuse whoever would make a log that the database's owner cannot open; root's SQLite gives it to the owner."""
    owner = path.stat().st_uid
    if os.geteuid() == owner:
        return
    try:
        # Changes nothing; root may, but not in every container.  No link is followed: the folder's owner may just have
        # put one there.
        os.chown(path, owner, -1, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EROFS:  # where nothing can be made
            raise NotCopied(f"{path} belongs to user {owner}: run this as that user, or as root") from error


def _is_of_others(path: Path) -> bool:
    """Whether this is root, at a database whose journal others may have made up.

    SQLite plays a journal back, and then deletes the file that is named in it: for root, any.

    :raise NotCopied: there is a journal.
    """
    anybodys = path.parent.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)  # as /tmp is
    if os.geteuid() != 0 or not (anybodys or any(each.stat().st_uid for each in (path, *path.parents))):
        return False
    if (journal := companion(path, "-journal")).exists():
        raise NotCopied(f"{journal} is there, which root does not touch: start foreman, or move it away")
    return True


def _need_own_link(named: Path, database: Path) -> None:
    """Refuse a link that somebody else put in the database's place: it would lead root to where only root may write.

    Asked after it was followed: nobody makes root's links but root.
    """
    if database == _resolved(named.parent) / named.name:
        return
    link = named.lstat()
    if not stat.S_ISLNK(link.st_mode) or link.st_uid not in (0, os.geteuid()):
        raise NotCopied(f"{named} is a link of user {link.st_uid}: name the file itself")


def _give(file: Path | int, owner: os.stat_result) -> None:
    if os.geteuid() != 0:
        return
    if isinstance(file, int):
        os.fchown(file, owner.st_uid, owner.st_gid)
    else:
        os.chown(file, owner.st_uid, owner.st_gid, follow_symlinks=False)


@contextmanager
def _owned(database: Path, owner: os.stat_result) -> Iterator[None]:
    lock = own(database)
    try:
        _give(lock, owner)
        yield
    finally:
        os.close(lock)


# -- the way back ----------------------------------------------------------------------------------------------------


def _set_aside(database: Path, owner: os.stat_result, now: datetime) -> Path | None:
    """Give what is in the database's place a second name, and see that no log lies beside the first.

    A log that lies beside another database than its own is read into it, and destroys it.
    """
    before = None
    if database.exists():
        before = companion(database, f".{_moment(now)}.old")
        if _is_of_others(database):
            _fold_by_copy(database, companion(database, ".old.part"), owner)
        else:
            _fold(database)
        before.hardlink_to(database)  # at no time is there no database: foreman would begin an empty one
    for ending in LOGS:
        if (beside := companion(database, ending)).exists():
            if before is None:
                raise NotCopied(f"{beside} is there without its database: move it away")
            beside.rename(companion(before, ending))
    return before


def _fold(database: Path) -> None:
    """Fold the log into the file, and have none, unless the file is beyond use.

    :raise sqlite3.Error: something else uses it, or it cannot be written.
    """
    with _beyond_use(), closing(_connect(database, "rw")) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")


def _fold_by_copy(database: Path, part: Path, owner: os.stat_result) -> None:
    """The same, by a copy in the file's place: before SQLite writes it plays a journal back, for root another's.

    After a crash in between the log says nothing new to the copy, and does no harm.
    """
    with _beyond_use(), closing(_connect(database, "ro")) as source:
        _need_room(source, database.parent)
        with copied(source, part):
            _give(part, owner)
            settle(part, database)
        for ending in LOGS:
            companion(database, ending).unlink(missing_ok=True)


@contextmanager
def _beyond_use() -> Iterator[None]:
    """Leave a file alone that is no database, or damaged."""
    try:
        yield
    except Damaged:
        pass
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))  # `resolve` raises on links in a circle


def _moment(now: datetime) -> str:
    return f"{now:%Y%m%dT%H%M%SZ}"
