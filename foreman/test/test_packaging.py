"""However foreman is installed, `twistd foreman` is there, with everything it needs; callers need less, and get less.

Each way of installing gets a virtual environment of its own, which borrows packages of the one the tests run in, so
that nothing is downloaded; and the tree is copied first, so that building leaves nothing behind in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

CHECKOUT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="not a checkout")


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command that has to succeed, run without our settings and import paths."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("FOREMAN_", "PYTHON"))}
    ran = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is, or would be, committed."""
    copy = tmp_path_factory.mktemp("tree")
    anybodys = ("-c", "safe.directory=*")
    listed = run("git", *anybodys, "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=CHECKOUT)
    for name in listed.split("\0"):
        if name and (CHECKOUT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(CHECKOUT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built of it."""
    out = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "--wheel-dir", out, tree, cwd=out)
    (built,) = out.glob("foreman-*.whl")
    return built


def install(home: Path, *what: str | Path) -> Path:
    """Install foreman alone into the environment in `home`; returns its interpreter."""
    pip = (sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install", "--quiet", "--no-index")
    run(*pip, "--no-deps", "--no-build-isolation", "--ignore-installed", *what, cwd=home)
    return home / "bin" / "python"


@pytest.fixture(scope="module", params=["install .", "install -e .", "from a wheel"])
def python(request: pytest.FixtureRequest, tree: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment into which foreman was installed in one of the ways."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    (packages,) = home.glob("lib/python*/site-packages")
    # A line of a .pth file adds the folder, but not what the .pth files in it name: a foreman that is installed there
    # in the editable way is not seen.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    ways: dict[str, list[str | Path]] = {"install .": [tree], "install -e .": ["-e", tree], "from a wheel": [wheel]}
    return install(home, *ways[request.param])


TWISTD = ("-c", "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()")


def test_twistd_knows_foreman(python: Path, tmp_path: Path) -> None:
    """After each way of installing, `twistd` lists foreman and shows its options, from any folder."""
    assert "\n    foreman " in run(python, *TWISTD, "--help", cwd=tmp_path)
    assert "--ollama-url=" in run(python, *TWISTD, "foreman", "--help", cwd=tmp_path)


def test_what_is_imported_is_what_was_installed(python: Path, tmp_path: Path) -> None:
    """Every module is there and imports, and none of it comes from the checkout the tests run in."""
    script = """if True:
        import importlib, pkgutil, foreman
        for module in pkgutil.walk_packages(foreman.__path__, "foreman."):
            if not module.name.startswith("foreman.test"):
                importlib.import_module(module.name)
        print(foreman.__file__)
    """
    assert CHECKOUT not in Path(run(python, "-c", script, cwd=tmp_path).strip()).parents


def test_the_wheel_holds_what_is_no_module(tree: Path, wheel: Path) -> None:
    """The schema, the marker of types and the plugin are in the wheel, and no package was forgotten; tests stay out."""
    with ZipFile(wheel) as archive:
        held = set(archive.namelist())
    ours = {path.relative_to(tree).as_posix() for path in tree.glob("foreman/**/*") if path.suffix in (".py", ".sql")}
    assert {name for name in held if name.startswith("foreman/")} - {"foreman/py.typed"} == {
        name for name in ours if not name.startswith("foreman/test/")
    }
    assert {"foreman/py.typed", "twisted/plugins/foreman_plugin.py"} <= held
    assert any(name.endswith(".sql") for name in held)
    assert "twisted/__init__.py" not in held
    assert "twisted/plugins/__init__.py" not in held


# -- without the daemon ------------------------------------------------------------------------------------------------


def asked_for(distribution: metadata.Distribution) -> Iterable[metadata.Distribution]:
    """What a distribution needs here when none of its extras is named, and what that needs in turn, and so on."""
    for line in distribution.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed = metadata.distribution(requirement.name)
            yield needed
            yield from asked_for(needed)


@pytest.fixture(scope="module")
def small(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel and the packages that it asks for without an extra."""
    home = tmp_path_factory.mktemp("small")
    venv.create(home, symlinks=True)
    (packages,) = home.glob("lib/python*/site-packages")
    python = install(home, wheel)
    (itself,) = metadata.distributions(name="foreman", path=[str(packages)])
    for distribution in asked_for(itself):
        # The first part of each file's path: packages, modules, and the folder of the distribution itself.
        for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (packages / name).exists():
                (packages / name).symlink_to(Path(str(distribution.locate_file(name))))
    return python


def test_callers_get_the_client_without_the_daemon(small: Path, tmp_path: Path) -> None:
    """In an environment that has what foreman asks for and no extra, the client is there, and Twisted is not."""
    script = """if True:
        from importlib import metadata
        from pathlib import Path
        import attrs, click, httpx, platformdirs, rich
        import foreman.client
        assert not {"Twisted", "klein", "orjson"} & {found.name for found in metadata.distributions()}
        print(Path(foreman.client.__file__).parents[2])
    """
    assert CHECKOUT not in Path(run(small, "-c", script, cwd=tmp_path).strip()).parents


def test_backups_need_no_daemon(small: Path, tmp_path: Path) -> None:
    """There, too, `foreman backup` and `foreman restore` copy a database."""
    script = """if True:
        import sqlite3
        connection = sqlite3.connect("foreman.db")
        connection.execute("CREATE TABLE jobs (id TEXT)")
        connection.execute("PRAGMA user_version = 1")
        connection.close()
    """
    run(small, "-c", script, cwd=tmp_path)
    copy = run(small, "-m", "foreman.command", "backup", "copy.db", cwd=tmp_path).strip()
    before = run(small, "-m", "foreman.command", "restore", "copy.db", cwd=tmp_path).strip()
    assert (Path(copy), Path(before).exists()) == (tmp_path / "copy.db", True)
