"""The Dockerfile's own steps, run without a container: what it builds is built, and what it starts starts.

`Image` walks the file that is there, instruction by instruction, in a folder that stands for `/`: absolute paths are
put below it, a copy of the Python that runs these tests is the base image's, and the files of the context pass through
.dockerignore.  Run by root, as in CI, foreman then is the user the image names; run by anybody else, it is that user,
who owns the folder and has taken the right to write from himself.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import tomllib
import uuid
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from attrs import define, field
from conftest import Run
from packaging.requirements import Requirement

import foreman
from foreman.config import Configuration

IS_ROOT = os.geteuid() == 0
VERSION = "0.1.0+test.1"
"""With the part after `+` that a build between two releases has."""


# -- the files ---------------------------------------------------------------------------------------------------------


def instructions(text: str) -> list[tuple[str, str]]:
    """A Dockerfile's instructions in order: the name, and the rest on one line."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines()) if name]


def passes(ignore: list[str], path: str) -> bool:
    """Whether .dockerignore lets a file into the context: the last line that matches it, or a folder above it, says."""
    parts = path.split("/")
    above = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    let_in = True
    for line in ignore:
        pattern = line.removeprefix("!")
        if any(matches(pattern, each) for each in above):
            let_in = line.startswith("!")
    return let_in


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern of .dockerignore matches a path as a whole; `*` stops at a slash, and `**/` is any folder."""
    if pattern.startswith("**/"):
        rest = pattern.removeprefix("**/")
        return any(matches(rest, path.split("/", skipped)[-1]) for skipped in range(path.count("/") + 1))
    wanted, found = pattern.split("/"), path.split("/")
    return len(wanted) == len(found) and all(map(fnmatchcase, found, wanted))


def expanded(text: str, variables: dict[str, str]) -> str:
    """`${NAME}` and `$NAME`, as an instruction other than RUN has them replaced."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda found: variables.get(found[1] or found[2], ""), text)


def assignments(text: str, variables: dict[str, str]) -> dict[str, str]:
    """What ENV or LABEL sets."""
    return dict(part.split("=", 1) for part in shlex.split(expanded(text, variables)))


# -- the walk ----------------------------------------------------------------------------------------------------------


@define
class Image:
    """A folder that stands for `/`, and what the Dockerfile says of how it is run.

    :ivar python: a copy of the Python that runs the tests.
    :ivar base: what the base image has in /usr/local.
    :ivar root: of the stage the walk is in; it keeps its name from stage to stage, since paths are built in.
    :ivar done: the last value of each other instruction.
    """

    context: Path
    python: Path
    base: Path
    root: Path
    given: dict[str, str]
    everywhere: dict[str, str] = field(factory=dict)
    arguments: dict[str, str] = field(factory=dict)
    environment: dict[str, str] = field(factory=dict)
    labels: dict[str, str] = field(factory=dict)
    done: dict[str, str] = field(factory=dict)
    stage: str = ""
    folder: str = "/"

    def walk(self, dockerfile: str) -> None:
        """Do what the file says."""
        for name, rest in instructions(dockerfile):
            step = {"FROM": self._from, "ARG": self._arg, "COPY": self._copy, "RUN": self._run}.get(name)
            variables = self.arguments | self.environment
            if step is not None:
                step(rest)
            elif name == "ENV":
                self.environment |= assignments(self._below(rest), variables)
            elif name == "LABEL":
                self.labels |= assignments(rest, variables)
            elif name == "WORKDIR":
                self.folder = rest
                self._place(rest).mkdir(parents=True)
            else:
                self.done[name] = rest

    def run_as(self, text: str, settings: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start what an instruction in exec form names, as the image's user in the image's environment."""
        uid, gid = map(int, self.done["USER"].split(":"))
        user: dict[str, Any] = {"user": uid, "group": gid, "extra_groups": []} if IS_ROOT else {}
        return subprocess.Popen(
            json.loads(text),
            cwd=self._place(self.folder),
            # A user without a name is at home in `/`, as container runtimes have it.
            env=self.environment | {"HOME": "/", "TMPDIR": str(self.root / "tmp")} | (settings or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **user,
        )

    def _place(self, path: str) -> Path:
        return self.root / self.folder.lstrip("/") / path if path[0] != "/" else self.root / path.lstrip("/")

    def _below(self, text: str) -> str:
        """The same with each absolute path in it put below the root; but for devices."""
        return re.sub(r"""(?<=[\s="':])(/(?!dev/)[\w.])|^(/\w)""", lambda found: f"{self.root}{found[0]}", text)

    def _from(self, rest: str) -> None:
        assert rest.split(maxsplit=1)[0] == "${BASE}"
        if self.root.exists():
            self.root.rename(self.root.with_name(self.stage))
        self.stage = rest.partition(" AS ")[2]
        shutil.copytree(self.base, self.root / "usr/local", symlinks=True, copy_function=os.link)
        (self.root / "tmp").mkdir()
        (self.root / "tmp").chmod(0o1777)
        self.folder, self.arguments = "/", {}
        self.environment = {"PATH": f"{self.root}/usr/local/bin:/usr/bin:/bin"}
        self.environment["LD_LIBRARY_PATH"] = str(self.python / "lib")

    def _arg(self, rest: str) -> None:
        name, _, default = rest.partition("=")
        known = self.arguments if self.root.exists() else self.everywhere
        known[name] = self.given.get(name, default or self.everywhere.get(name, ""))

    def _copy(self, rest: str) -> None:
        options = [word for word in rest.split() if word.startswith("--")]
        *sources, target = [word for word in rest.split() if not word.startswith("--")]
        home = self.context
        for option in options:
            assert option.startswith("--from="), option
            home = self.root.with_name(option.removeprefix("--from="))
        for source in sources:
            found, place = home / source.lstrip("/"), self._place(target)
            if found.is_dir():
                shutil.copytree(found, place, copy_function=os.link, symlinks=True, dirs_exist_ok=True)
            else:
                shutil.copy2(found, place / found.name if target.endswith("/") else place)

    def _run(self, rest: str) -> None:
        command = self._below(rest)
        if not IS_ROOT:  # nobody but root can give a file away
            command = command.replace("--owner=10001 --group=10001", "")
        if "--require-hashes" in command:  # the machine's own way to packages
            environment = {name: os.environ[name] for name in os.environ if not name.startswith(("FOREMAN", "PYTHON"))}
        else:  # what is not pinned comes from here, or not at all
            dead_end = "http://127.0.0.1:9"
            environment = {"HOME": str(self.root), "HTTPS_PROXY": dead_end, "PIP_INDEX_URL": dead_end}
        environment |= self.arguments | self.environment
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self._place(self.folder),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"RUN {rest}\n{done.stdout}{done.stderr}"


def stand_in(python: Path, place: Path) -> None:
    """Make `place` what the base image has in /usr/local: Python and pip.

    :param python: where a copy of this Python goes, since others may not look into a home of root's.
    """
    library = Path(sysconfig.get_path("stdlib"))
    left_out = shutil.ignore_patterns("test", "site-packages", "dist-packages", "config-*", "idlelib", "tkinter")
    shutil.copytree(library, python / "lib" / library.name, ignore=left_out, symlinks=True)
    library = Path(sysconfig.get_config_var("LIBDIR")) / sysconfig.get_config_var("INSTSONAME")
    # Debian's Python says that it is a shared library's, but has it within itself.
    if sysconfig.get_config_var("Py_ENABLE_SHARED") and library.exists():
        shutil.copy2(library, python / "lib")
    (python / "bin").mkdir()
    program = f"python{sysconfig.get_python_version()}"
    shutil.copy2(Path(sysconfig.get_config_var("BINDIR")) / program, python / "bin")
    environment = {"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": str(python / "lib")}
    command = [str(python / "bin" / program), "-m", "venv", str(place)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# -- built once --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def dockerfile(root: Path) -> str:
    """The file itself."""
    return (root / "Dockerfile").read_text()


@pytest.fixture(scope="session")
def ignore(root: Path) -> list[str]:
    """The lines of .dockerignore that say something."""
    lines = (root / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="session")
def checkout(root: Path) -> set[str]:
    """What is, or would be, committed."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if name and (root / name).is_file()}


@pytest.fixture(scope="session")
def image(
    tmp_path_factory: pytest.TempPathFactory, root: Path, dockerfile: str, ignore: list[str], checkout: set[str]
) -> Iterator[Image]:
    """What the Dockerfile makes of this checkout, once for all processes of a test run; the last removes it."""
    shared = tmp_path_factory.getbasetemp()
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is not None:
        shared = shared.parent
    place = Path(tempfile.gettempdir()) / f"foreman-image-{run or uuid.uuid4().hex}"
    given = {"BASE": "", "VERSION": VERSION}
    made = Image(place / "context", place / "python", place / "base", place / "root", given)
    told = place / "told.json"
    # The locks are not in the place: who comes while the last one removes it waits, and makes it anew.
    with (shared / "image.door").open("w") as door, (shared / "image.guests").open("w") as guests:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(guests, fcntl.LOCK_SH)
        try:
            if not told.exists():
                place.mkdir()
                for name in checkout:
                    if passes(ignore, name):
                        (made.context / name).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copy2(root / name, made.context / name)
                # Made where it is used, since pip's first line names it.
                stand_in(made.python, made.root / "usr/local")
                (made.root / "usr/local").rename(made.base)
                shutil.rmtree(made.root)
                made.walk(dockerfile)
                mounted = {each: each.stat().st_mode for each in (made.root / "data", made.root / "tmp")}
                subprocess.run(["chmod", "-R", "a-w", made.root], check=True)
                for writable, mode in mounted.items():
                    writable.chmod(mode)
                told.write_text(json.dumps([made.environment, made.labels, made.done, made.folder]))
            made.environment, made.labels, made.done, made.folder = json.loads(told.read_text())
            fcntl.flock(door, fcntl.LOCK_UN)
            yield made
        finally:
            fcntl.flock(door, fcntl.LOCK_EX)
            with suppress(BlockingIOError):  # somebody else is still in
                fcntl.flock(guests, fcntl.LOCK_EX | fcntl.LOCK_NB)
                subprocess.run(["chmod", "-R", "u+w", place], check=True)
                shutil.rmtree(place)


def ends(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit status of a process that ends by itself, and all it printed."""
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


# -- the promises ------------------------------------------------------------------------------------------------------


def test_the_linter_of_dockerfiles_has_nothing_to_say(run: Run) -> None:
    """`hadolint` finds no habit to break."""
    assert run("hadolint", "Dockerfile") == ""


def test_the_context_is_what_is_copied_and_nothing_else(dockerfile: str, ignore: list[str], checkout: set[str]) -> None:
    """Of a checkout with all that work leaves in it the builder gets what the Dockerfile copies, and no secret."""
    litter = {".env", "foreman.db", "foreman.db-wal", "deploy/compose/.env", "build/site/index.html", ".git/config"}
    litter |= {"foreman/__pycache__/tap.cpython-311.pyc", "twisted/plugins/dropin.cache", ".venv/bin/python"}
    litter |= {"foreman/test/clients/node_modules/ollama/package.json", "requirements/private.txt", "id_ed25519"}
    copied = [
        words.split()[:-1] for name, words in instructions(dockerfile) if name == "COPY" and "--from" not in words
    ]
    sources = {source for sources in copied for source in sources}
    assert all(any(path == source or path.startswith(f"{source}/") for path in checkout) for source in sources)
    context = {path for path in checkout | litter if passes(ignore, path)}
    everything = {path for path in checkout for source in sources if f"{path}/".startswith(f"{source}/")}
    pins = {path for path in everything if path.startswith("requirements/")}
    assert context == everything - pins | {"requirements/build.txt", "requirements/server.txt"}


def test_one_version(image: Image, dockerfile: str) -> None:
    """The build's VERSION is what the label, the package and foreman itself tell; without one it is this source's."""
    assert image.labels["org.opencontainers.image.version"] == VERSION
    script = "import foreman; from importlib.metadata import version; print(foreman.__version__, version('foreman'))"
    command = json.dumps(["python", "-c", script])
    assert ends(image.run_as(command)) == (0, f"{VERSION} {VERSION}\n")
    assert ("ARG", f"VERSION={foreman.__version__}") in instructions(dockerfile)


def test_what_is_in_it_is_what_is_pinned(image: Image, root: Path) -> None:
    """Of Python packages the image has the pins and foreman, complete and at one with each other, and no installer."""
    script = "from importlib.metadata import *; print(*{f'{each.name}=={each.version}' for each in distributions()})"
    status, listed = ends(image.run_as(json.dumps(["python", "-c", script])))
    assert status == 0
    pins = re.findall(r"^[\w.-]+==[\w.+]+", (root / "requirements" / "server.txt").read_text(), re.MULTILINE)
    assert {re.sub(r"[-_.]+(?=.*==)", "-", each).lower() for each in listed.split()} == {*pins, f"foreman=={VERSION}"}
    for name in ("pip", "setuptools"):
        assert list(image.base.glob(f"lib/python3*/site-packages/{name}"))
        assert list(image.root.glob(f"**/site-packages/{name}*")) == []


def test_what_builds_it_is_pinned(root: Path) -> None:
    """What turns the source into a package comes by hash as well: a new release of it changes no image by itself."""
    needs = tomllib.loads((root / "pyproject.toml").read_text())["build-system"]["requires"]
    pins = (root / "requirements" / "build.txt").read_text()
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+) \\\n    --hash=sha256:[0-9a-f]{64}", pins, re.MULTILINE))
    for requirement in map(Requirement, needs):
        assert requirement.specifier.contains(pinned[requirement.name])


def test_plugins_are_found_without_writing(image: Image) -> None:
    """The cache of twistd's plugins is in the image, newer by years than they, however a layer rounds times."""
    (cache,) = image.root.glob("opt/foreman/lib/python3*/site-packages/twisted/plugins/dropin.cache")
    plugins = list(cache.parent.glob("*.py"))
    assert {"foreman_plugin.py"} < {path.name for path in plugins}
    assert max(path.stat().st_mtime for path in plugins) < cache.stat().st_mtime - 365 * 86400


def test_its_user_may_write_data_and_nothing_else(image: Image) -> None:
    """It is nobody in particular, by number as Kubernetes wants to see it, and owns `/data` alone."""
    uid, gid = map(int, image.done["USER"].split(":"))
    assert 0 not in (uid, gid)
    search = json.dumps(["find", str(image.root), "-writable", "!", "-type", "l"])
    assert set(ends(image.run_as(search))[1].split()) == {str(image.root / "data"), str(image.root / "tmp")}
    assert (image.root / "data").stat().st_mode & 0o777 == 0o700
    assert image.done["VOLUME"] == "/data"


def test_a_life(image: Image) -> None:
    """It starts on a read-only root, is found well though the target is down, and ends with 0 when told to stop."""
    before = {path for path in image.root.rglob("*") if "data" not in path.parts}
    settings = {"FOREMAN_OLLAMA_URL": "http://127.0.0.1:9"}
    check = image.done["HEALTHCHECK"].partition(" CMD ")[2]
    assert image.environment["FOREMAN_ADDR"] == f":{image.done['EXPOSE']}"
    daemon = image.run_as(image.done["ENTRYPOINT"], settings | {"FOREMAN_ADDR": ":0"})
    try:
        assert daemon.stdout is not None
        said = [daemon.stdout.readline()]
        while said[-1] and "listens on" not in said[-1]:
            said.append(daemon.stdout.readline())
        port = re.search(r"listens on .*?(\d+)\D*$", said[-1])
        assert port, "".join(said)
        address = {"FOREMAN_ADDR": f":{port[1]}"}
        assert ends(image.run_as(check, address)) == (0, "")
        assert Path(image.environment["FOREMAN_DB"]).stat().st_mode & 0o777 == 0o600
        daemon.send_signal(getattr(signal, image.done["STOPSIGNAL"]))
        status, rest = ends(daemon)
    finally:
        daemon.kill()
    log = "".join(said) + rest
    assert status == 0, log
    assert f"foreman {VERSION} listens on" in log
    assert "plugin cache" not in log
    assert "Traceback" not in log
    status, why = ends(image.run_as(check, address))
    assert (status, "Connection refused" in why) == (1, True)
    assert {path for path in image.root.rglob("*") if "data" not in path.parts} == before
    assert {path.name for path in (image.root / "data").iterdir()} <= {"foreman.db", "foreman.db.lock"}


def test_the_command_is_there_too(image: Image) -> None:
    """`docker exec foreman foreman …` needs no home folder and no terminal."""
    assert ends(image.run_as('["foreman", "--version"]')) == (0, f"foreman {VERSION}\n")


def test_it_says_what_it_is(image: Image) -> None:
    """The labels of the OCI that registries and update bots read are there."""
    labels = {name.removeprefix("org.opencontainers.image.") for name in image.labels}
    assert labels == {"title", "description", "licenses", "version", "revision", "source", "created"}


@pytest.mark.parametrize("version", ["v0.1.0", "main-3f2a"])
def test_a_version_that_is_none_ends_the_build(image: Image, dockerfile: str, tmp_path: Path, version: str) -> None:
    """What is no version, or would be written otherwise by the package, makes no image that says two things."""
    [step] = [rest for name, rest in instructions(dockerfile) if name == "RUN" and "VERSION" in rest and "sed" in rest]
    build = Image(image.context, image.python, image.base, tmp_path, {})
    build.arguments["VERSION"] = version
    build.environment["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    shutil.copytree(image.context, tmp_path, dirs_exist_ok=True)
    with pytest.raises(AssertionError, match=version):
        build.walk(f"RUN {step}")


def test_the_page_is_right(root: Path, dockerfile: str, image: Image) -> None:
    """docs/deploy/container.md names the build arguments, the user's number, time enough to stop, Compose's bounds."""
    page = (root / "docs" / "deploy" / "container.md").read_text()
    steps = instructions(dockerfile)
    defaults = dict(rest.partition("=")[::2] for name, rest in steps if name == "ARG" and "=" in rest)
    table = dict(re.findall(r"^\| `([A-Z]+)` \| `?([^|`]+)`? \|", page, re.MULTILINE))
    said = {"VERSION": "that of the source"} | {name: "empty" for name, default in defaults.items() if not default}
    assert table == defaults | said
    uid, gid = image.done["USER"].split(":")
    assert f"install -d -o {uid} -g {gid} -m 0700" in page
    [line] = re.findall(r"^docker run .*?[^\\]$", page, re.MULTILINE | re.DOTALL)
    assert "$PWD" not in line  # typed again for an upgrade, in the checkout: it would mount a new, empty folder
    words = shlex.split(line)
    stop = int(words[words.index("--stop-timeout") + 1])
    assert stop > Configuration().shutdown_grace
    assert {"--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"} < set(words)
    same = yaml.safe_load((root / "deploy" / "compose" / "docker-compose.yml").read_text())["services"]["foreman"]
    bounds = [words[words.index(option) + 1] for option in ("--tmpfs", "--memory", "--pids-limit")]
    assert bounds == [*same["tmpfs"], same["mem_limit"], str(same["pids_limit"])]
    variables = [each for before, each in pairwise(words) if before == "--env"]
    Configuration.from_environment({each.partition("=")[0]: "" for each in variables})
    assert f"foreman:{image.done['VOLUME']}" in words
    assert f"8080:{image.done['EXPOSE']}" in words
