"""A copy, a restore or an upgrade that dies at any step leaves the old or the new, and the next one works.

Each step is what Python's audit hooks and fsyncs tell of: every file that is opened, locked, linked, renamed or
removed.  A child dies at the first, the next at the second, until one lives to the end.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from foreman import backups
from foreman.backups import back_up, restore
from foreman.test.strategies import SteppedDatabase
from foreman.test.test_backups import NOW, keys, made, names, put
from foreman.work.database import SCHEMA, upgrade

DIED = 9


def deaths(act: Callable[[], object]) -> Iterator[int]:
    """Have children `act`, each of which dies a step later than the one before; yields after each death."""
    step = 0
    while True:
        step += 1
        if (child := os.fork()) == 0:
            _act(act, step)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            assert step > 10
            return
        assert status == DIED
        yield step


def _act(act: Callable[[], object], last: int) -> None:
    steps, fsync = iter(range(1, last)), os.fsync

    def count(event: str, _given: object) -> None:
        if event.partition(".")[0] in ("open", "os", "fcntl", "sqlite3", "fsync") and next(steps, None) is None:
            os._exit(DIED)

    def told(descriptor: Any) -> None:
        sys.audit("fsync")
        fsync(descriptor)

    os.fsync = told  # type: ignore[assignment]
    sys.addaudithook(count)
    try:
        act()
    except BaseException:  # noqa: BLE001 - the parent sees the status
        os._exit(1)
    os._exit(0)


def rows(path: Path) -> list[str]:
    """What foreman would find there."""
    with closing(sqlite3.connect(path)) as connection:
        return [key for (key,) in connection.execute("SELECT key FROM kept ORDER BY key")]


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """A database with its log, as a crash of foreman leaves them."""
    database = SteppedDatabase(tmp_path / "foreman.db")
    database.finish(database.open())
    put(database, "a", "b")
    left = database.snapshot(tmp_path / "crashed")
    database.finish(database.close())
    return left


def test_a_backup_that_dies(crashed: Path, tmp_path: Path) -> None:
    """The backup that was there before is there, or the new one; the next leaves nothing of what died."""
    older = made(tmp_path / "older.db", "older")
    goal = tmp_path / "copies" / "copy.db"
    goal.parent.mkdir()
    found = set()
    for _ in deaths(lambda: back_up(crashed, goal, NOW)):
        found.add(tuple(keys(goal)) if goal.exists() else ())
        back_up(older, goal, NOW)
        assert keys(goal) == ["older"]
        assert names(goal.parent) == {"copy.db"}
    assert found == {(), ("older",), ("a", "b")}


@pytest.mark.parametrize("others", [False, True], ids=["ours", "others"])
def test_a_restore_that_dies(crashed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: bool) -> None:
    """A start would find all of the old database, or all of the backup; never an empty place.  So with root's, too."""
    monkeypatch.setattr(backups, "_is_of_others", lambda _: others)
    copy = made(tmp_path / "copy.db", "older")
    place = Path(shutil.copytree(crashed.parent, tmp_path / "place"))
    found = set()
    for step in deaths(lambda: restore(copy, place / "foreman.db", NOW)):
        assert (place / "foreman.db").exists()
        found.add(tuple(rows(place / "foreman.db")))
        restore(copy, place / "foreman.db", NOW + timedelta(seconds=step))
        assert keys(place / "foreman.db") == ["older"]
        assert {name[-4:] for name in names(place) - {"foreman.db", "foreman.db.lock"}} == {".old"}
        shutil.rmtree(place)
        shutil.copytree(crashed.parent, place)
    assert found == {("a", "b"), ("older",)}


def test_an_upgrade_that_dies(crashed: Path, tmp_path: Path) -> None:
    """The next start upgrades what the last could not; the copy of before is whole as soon as it has its name."""
    schema = Path(shutil.copytree(SCHEMA, tmp_path / "schema"))
    (schema / "2.sql").write_text("ALTER TABLE kept ADD COLUMN colour TEXT;", encoding="utf-8")
    place = tmp_path / "place"

    def act() -> None:
        with closing(sqlite3.connect(place / "foreman.db", isolation_level=None)) as connection:
            upgrade(connection, place / "foreman.db", schema)

    shutil.copytree(crashed.parent, place)
    for _ in deaths(act):
        backup = place / "foreman.db.v1.bak"
        if backup.exists():
            assert keys(backup) == ["a", "b"]
        assert rows(place / "foreman.db") == ["a", "b"]
        act()
        assert keys(backup) == rows(place / "foreman.db") == ["a", "b"]
        assert not (place / "foreman.db.v1.bak.part").exists()
        shutil.rmtree(place)
        shutil.copytree(crashed.parent, place)
