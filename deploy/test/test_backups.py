"""docs/deploy/backups.md: its commands are run before a real daemon, its units and its pod judged by their tools.

Docker and kubectl are stood in for by scripts that run here what they would run in the container, where the page's
paths are those of a temporary folder.
"""

# mypy: disallow-untyped-decorators=False
# pytest-twisted's.
from __future__ import annotations

import os
import re
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import yaml
from conftest import ROOT, Run, kept_port
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from foreman.test.harness import Daemon, ask, chat, daemon

PAGE = (ROOT / "docs" / "deploy" / "backups.md").read_text()
BIN = Path(sys.executable).parent
NOBODY = "http://127.0.0.1:9"

DOCKER = """#!/bin/sh
case "$2" in
exec) shift 4; exec "$@" ;;
run) while [ "$1" != foreman ]; do shift; done; shift; exec sh "$@" ;;
esac
"""
KUBECTL = """#!/bin/sh
while [ $# -gt 0 ]; do if [ "$1" = -- ]; then shift; exec "$@"; fi; shift; done
"""
FLUX = "#!/bin/sh\n"
# The page's own day, also to a test that goes on over midnight.
DATE = """#!/bin/sh
[ "$*" = "-u +%F" ] && echo 2026-11-21
"""


def blocks(section: str, language: str) -> list[str]:
    """The code below a heading, as far as the next of any level."""
    (text,) = re.findall(rf"^#+ {re.escape(section)}\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [code for name, code in found if name == language]


class Machine:
    """A folder that holds what the page says a machine has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        for name in ("lib", "copies", "bin", "tmp"):
            (folder / name).mkdir()
        for name, script in (("docker", DOCKER), ("kubectl", KUBECTL), ("flux", FLUX), ("date", DATE)):
            (folder / "bin" / name).write_text(script)
            (folder / "bin" / name).chmod(0o755)

    def here(self, text: str) -> str:
        """The page's words, with this machine's places."""
        for theirs, ours in (
            ("/opt/foreman/bin/", ""),
            ("/var/lib/foreman/", f"{self.folder}/lib/"),
            ("/var/backups/foreman", f"{self.folder}/copies"),
            ("/data/", f"{self.folder}/lib/"),
            ("8099", str(self.port)),
        ):
            text = text.replace(theirs, ours)
        return re.sub(
            r"foreman-20\d{6}T\d{6}Z\.db", "$(ls -t foreman-2*Z.db | head -n 1)", text.replace("$(ls", "$(ls")
        )

    def run(self, script: str) -> Deferred[str]:
        """What a shell prints that does this; its failure is the test's."""
        return deferToThread(self._run, self.here(script))

    def _run(self, script: str) -> str:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FOREMAN_")}
        path = os.pathsep.join((str(self.folder / "bin"), str(BIN), os.environ["PATH"]))
        done = subprocess.run(
            [
                "timeout",
                "60",
                "bash",
                "-euo",
                "pipefail",
                "-c",
                f"trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{script}",
            ],
            cwd=self.folder / "copies",
            env={
                **clean,
                "PATH": path,
                "PYTHONPATH": str(ROOT),
                "HOME": str(self.folder),
                "TMPDIR": str(self.folder / "tmp"),
                "FOREMAN_DB": str(self.folder / "lib" / "foreman.db"),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, script + done.stdout + done.stderr
        return done.stdout

    def copies(self) -> list[Path]:
        """The copies there are."""
        return sorted((self.folder / "copies").glob("*.db"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine without a database."""
    return Machine(tmp_path)


def ids(path: Path) -> set[str]:
    """The jobs of a database."""
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        return {job for (job,) in connection.execute("SELECT id FROM jobs")}


async def submit(foreman: Daemon, **more: Any) -> str:
    """The id of a job that waits."""
    return str((await ask(foreman.url, "POST", "/jobs", chat("tiny-a", **more))).document["job_id"])


CONTAINERS = [pytest.param(0, id="compose"), pytest.param(1, id="kubernetes")]


@pytest_twisted.ensureDeferred
async def test_the_pages_commands_copy_and_restore(machine: Machine) -> None:
    """On a machine without containers: by hand, as the timer and as cron do it, and back."""
    async with daemon(machine.folder / "lib", NOBODY) as foreman:
        job = await submit(foreman)
        (by_hand,) = blocks("Make one", "sh")
        printed = await machine.run(by_hand)
        assert [str(path) for path in machine.copies()] == [printed.strip()]
        service, _timer = blocks("Every night", "ini")
        (cron,) = blocks("Every night", "")
        for lines in (re.findall(r"^ExecStart=(.*)$", service, re.MULTILINE), [cron.split(maxsplit=5)[5]]):
            (older,) = machine.copies()
            os.utime(older.rename(older.with_name("foreman-20200101T000000Z.db")), (0, 0))
            assert await machine.run("\n".join(lines)) in ("", f"{machine.copies()[-1]}\n")
            assert [ids(path) for path in machine.copies()] == [{job}]  # what was older has gone
        await submit(foreman)
        assert await foreman.end() == 0
        (back,) = (block for block in blocks("Restore", "sh") if block.startswith("foreman restore"))
        await machine.run(back.replace("/var/backups/foreman/", ""))
        assert ids(foreman.database) == {job}


@pytest.mark.parametrize("which", CONTAINERS)
@pytest_twisted.ensureDeferred
async def test_the_containers_commands_copy_and_restore(machine: Machine, which: int) -> None:
    """Out of a container goes a copy that only its owner can read, and back in it is the database."""
    outwards = blocks("Every night", "sh")[which]
    inwards = [block for block in blocks("Restore", "sh") if not block.startswith("foreman")][which]
    inside = machine.folder / "lib" / "backup.db"
    async with daemon(machine.folder / "lib", NOBODY) as foreman:
        job = await submit(foreman)
        for _ in range(2):  # the second takes the first one's place
            await machine.run(outwards)
            (copy,) = machine.copies()
            assert (ids(copy), copy.stat().st_mode & 0o777) == ({job}, 0o600)
            assert not inside.exists()
        taken = copy.rename(copy.with_name("taken"))
        inside.write_text("what a failed backup leaves alone")
        await machine.run(f"! {{\n{outwards}}}")
        assert machine.copies() == []  # what lay there has not become today's copy
        taken.rename(copy)
        await submit(foreman)
        assert await foreman.end() == 0
    await machine.run(inwards)
    assert ids(machine.folder / "lib" / "foreman.db") == {job}
    assert not (machine.folder / "lib" / "restore.db").exists()


@pytest_twisted.ensureDeferred
async def test_a_rehearsal_disturbs_nobody(machine: Machine) -> None:
    """A restored copy can be looked at: its jobs are listed, none runs, and no webhook is sent."""
    with closing(socket.create_server(("127.0.0.1", 0))) as hook:
        url = f"http://127.0.0.1:{hook.getsockname()[1]}/"
        async with daemon(machine.folder / "lib", NOBODY, {"WEBHOOK_ALLOW": "192.0.2.1 127.0.0.1"}) as foreman:
            job = await submit(foreman, state_webhook_url=url)
            hook.accept()[0].close()  # it tries to tell, and does not get through: that waits to be told again
            await machine.run(blocks("Make one", "sh")[0])
            await foreman.end()
        hook.setblocking(False)
        with suppress(BlockingIOError):  # what it has tried until it stopped
            while True:
                hook.accept()[0].close()
        (rehearsal,) = blocks("Try one", "sh")
        refused = (
            f"until curl -s http://127.0.0.1:8099/jobs/{job}/events | grep FOREMAN_WEBHOOK_ALLOW; do sleep 1; done"
        )
        with kept_port() as machine.port:
            listed = await machine.run(rehearsal.replace("kill %1", f"{refused}\nkill %1\nwait"))
        assert job in listed
        with pytest.raises(BlockingIOError):
            hook.accept()
        (restored,) = (machine.folder / "tmp").glob("*/foreman.db")  # nobody could know, and lay, the name before
        assert restored.parent.stat().st_mode & 0o777 == 0o700
        with closing(sqlite3.connect(restored)) as connection:
            assert connection.execute("SELECT id, state, attempt FROM jobs").fetchall() == [(job, "queued", 0)]


def test_systemd_takes_the_units(run: Run, tmp_path: Path) -> None:
    """The timer and its service are units, and each of the service's commands is there."""
    service, timer = blocks("Every night", "ini")
    (tmp_path / "bin").symlink_to(BIN)  # whose own path may have blanks
    (tmp_path / "foreman-backup.service").write_text(service.replace("/opt/foreman/bin", str(tmp_path / "bin")))
    (tmp_path / "foreman-backup.timer").write_text(timer)
    said = run("systemd-analyze", "verify", tmp_path / "foreman-backup.service", tmp_path / "foreman-backup.timer")
    assert [line for line in said.splitlines() if "foreman-backup" in line] == []


def test_kubernetes_takes_the_pod(run: Run, tmp_path: Path) -> None:
    """The pod that stands in for foreman is one, with foreman's volume, user and rights, and no more."""
    (text,) = blocks("Restore", "yaml")
    (tmp_path / "pod.yaml").write_text(text)
    assert " passed " in run("kubernetes-validate", "--strict", tmp_path / "pod.yaml")
    pod = yaml.safe_load(text)
    deployment = yaml.safe_load((ROOT / "deploy" / "gitops" / "base" / "deployment.yaml").read_text())
    theirs, ours = deployment["spec"]["template"]["spec"], pod["spec"]
    shared = ("automountServiceAccountToken", "enableServiceLinks", "imagePullSecrets", "securityContext")
    assert [ours[name] for name in shared] == [theirs[name] for name in shared]
    assert all(volume in theirs["volumes"] for volume in ours["volumes"])
    (mine,), (daemons,) = ours["containers"], theirs["containers"]
    assert mine["securityContext"] == daemons["securityContext"]
    for name in ("env", "volumeMounts"):
        assert all(each in daemons[name] for each in mine[name])
    labels = set(pod["metadata"].get("labels", {}).items())
    assert not labels & set(deployment["spec"]["selector"]["matchLabels"].items())  # the service sends nobody to it
