"""The real process over the database of an older foreman, and of a newer one.

The newer foreman is a copy of this one with one more step of the schema.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import pytest_twisted

from foreman.test.harness import daemon, fake_ollama
from foreman.test.test_process_backup import all_done, ids, submitted, typed
from foreman.test.test_process_start import NOBODY, refusal

ROOT = Path(__file__).parents[2]
BACKUP = "foreman.db.v1.bak"


@pytest.fixture
def newer(tmp_path: Path) -> dict[str, str]:
    """Settings of the environment that make a daemon one of the newer foreman."""
    tree = tmp_path / "newer"
    shutil.copytree(ROOT / "foreman", tree / "foreman", ignore=shutil.ignore_patterns("test", "__pycache__"))
    shutil.copytree(ROOT / "twisted", tree / "twisted", ignore=shutil.ignore_patterns("__pycache__", "*dropin.cache*"))
    step = "ALTER TABLE jobs ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'; CREATE INDEX by_colour ON jobs (colour);"
    (tree / "foreman" / "work" / "schema" / "2.sql").write_text(step, encoding="utf-8")
    return {"PYTHONPATH": str(tree)}


def version(path: Path) -> int:
    """The schema."""
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def files(folder: Path) -> dict[str, bytes]:
    """The database, and what lies beside it; but for the pid."""
    return {path.name: path.read_bytes() for path in folder.glob("foreman.db*") if path.suffix != ".lock"}


@pytest_twisted.ensureDeferred
async def test_waiting_jobs_survive_an_upgrade_and_the_way_back(tmp_path: Path, newer: dict[str, str]) -> None:
    """After a crash, too, the newer foreman keeps a copy, upgrades, and runs what waits.

    The older one refuses what the newer has made, to the byte; with the copy it goes on from where it was.
    """
    async with fake_ollama() as fake:
        async with daemon(tmp_path, NOBODY) as older:
            jobs = {await submitted(older, model) for model in ("tiny-a", "tiny-b", "tiny-a")}
            await older.end(signal.SIGKILL)
        async with daemon(tmp_path, fake.url, start=False) as foreman:
            foreman.environment |= newer
            foreman.start()
            await foreman.ready()
            [told] = [line for line in foreman.lines("info") if "upgraded" in line]
            assert BACKUP in told
            await all_done(foreman, jobs)
            assert await foreman.end() == 0
        assert (version(tmp_path / "foreman.db"), version(tmp_path / BACKUP)) == (2, 1)
        assert ids(tmp_path / BACKUP) == jobs
        assert stat.S_IMODE((tmp_path / BACKUP).stat().st_mode) == 0o600

        before = files(tmp_path)
        async with daemon(tmp_path, NOBODY, start=False) as older:
            assert "foreman.db has schema 2, this foreman knows up to 1: run a newer foreman" in await refusal(older)
        assert files(tmp_path) == before

        await typed(tmp_path, "restore", BACKUP)
        async with daemon(tmp_path, fake.url) as older:
            await all_done(older, jobs)


def no_longer_than(size: int) -> Callable[[], None]:
    """Let a process make no longer files: to it the disk is full."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest_twisted.ensureDeferred
async def test_an_upgrade_without_room(tmp_path: Path, newer: dict[str, str]) -> None:
    """Where the copy finds no room there is no upgrade: one line, no remainder, and the older foreman goes on."""
    async with daemon(tmp_path, NOBODY) as older:
        jobs = {await submitted(older) for _ in range(3)}
        assert await older.end() == 0
    before = files(tmp_path)
    assert set(before) == {"foreman.db"}
    async with daemon(tmp_path, NOBODY, start=False) as foreman:
        foreman.environment |= newer
        foreman.before_exec = no_longer_than(len(before["foreman.db"]) - 4096)
        line = await refusal(foreman, os.EX_IOERR)
    assert "foreman.db cannot be used: no copy of it can be made before its upgrade to schema 2: disk I/O error" in line
    assert set(files(tmp_path)) == {"foreman.db"}
    assert (version(tmp_path / "foreman.db"), ids(tmp_path / "foreman.db")) == (1, jobs)
    async with fake_ollama() as fake, daemon(tmp_path, fake.url) as older:
        await all_done(older, jobs)
