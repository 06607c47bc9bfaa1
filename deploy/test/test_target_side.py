"""deploy/target: the models a machine gets, against FakeOllama as a process, and the settings Ollama gets there."""

from __future__ import annotations

import json
import os
import plistlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from attrs import define, field
from conftest import ROOT, Run

TARGET = ROOT / "deploy" / "target"
SCRIPT = TARGET / "pull-models.sh"
PAGE = (ROOT / "docs" / "deploy" / "target.md").read_text()
KNOWN = {
    "OLLAMA_HOST",
    "OLLAMA_KEEP_ALIVE",
    "OLLAMA_MAX_LOADED_MODELS",
    "OLLAMA_MODELS",
    "OLLAMA_NOPRUNE",
    "OLLAMA_NUM_PARALLEL",
}
"""Of the variables in envconfig/config.go of Ollama 0.33, those that foreman's files and its page may name."""

PLENTY = 10**9
CURL = """#!/bin/sh
for last; do :; done
echo "$last" >> "$0.log"
case $last in
*/api/version) exit "$(cat "$0.exit")" ;;
*/api/show) printf 404 ;;
*/api/pull) echo '{"status":"success"}' ;;
esac
"""
SLEEP = '#!/bin/sh\necho "$1" >> "$0.log"\n'
DF = """#!/bin/sh
echo "$2" >> "$0.log"
case $2 in *unseen*) exit 1 ;; esac
echo 'Filesystem 1024-blocks Used Available Capacity Mounted on'
echo "map of disk  99999999 1 $(cat "$0.free") 1% /a place"
"""
"""What a Mac's prints; the name of the file system has blanks."""


@define
class Stand:
    """A machine: the script runs there, with commands of ours that tell what they were asked.

    :ivar url: of its Ollama; `control`: of the control routes.
    """

    folder: Path
    url: str = ""
    control: str = ""
    shell: Sequence[str] = ("dash",)
    environment: dict[str, str] = field(factory=dict)

    def command(self, name: str, text: str) -> None:
        """Make a command of that name, found before the real one."""
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def said(self, name: str) -> list[str]:
        """What the calls of such a command were given."""
        log = self.folder / "bin" / f"{name}.log"
        return log.read_text().splitlines() if log.exists() else []

    def room(self, kilobytes: int) -> None:
        """Let `df` say so."""
        (self.folder / "bin" / "df.free").write_text(f"{kilobytes}")

    def roster(self, text: str) -> Path:
        """A roster of that text, byte by byte."""
        path = self.folder / "roster.txt"
        path.write_bytes(text.encode())
        return path

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """The script, in a group of its own as a terminal has it."""
        environment = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "OLLAMA_HOST": self.url,
            "OLLAMA_MODELS": str(self.folder),
            **self.environment,
        }
        command = [*self.shell, str(SCRIPT), *map(str, arguments)]
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def pull(self, *arguments: str | Path) -> tuple[int, str]:
        """The script's exit status and what it printed."""
        process = self.start(*arguments)
        printed, _ = process.communicate(timeout=60)
        return process.returncode, printed

    def act(self, name: str, **document: Any) -> Any:
        """Ask the control routes."""
        return asked(f"{self.control}/_fake/{name}", json.dumps(document).encode() if document else None)

    def pulls(self) -> list[str]:
        """The models that Ollama was asked to pull, in order."""
        requests = self.act("state?bodies=1")["requests"]
        return [json.loads(each["body"])["model"] for each in requests if each["path"] == "/api/pull"]

    def models(self) -> list[str]:
        """What it has now."""
        return sorted(model["name"] for model in asked(f"{self.url}/api/tags")["models"])


def asked(url: str, body: bytes | None = None) -> Any:
    """What is answered there, from JSON."""
    with urlopen(url, body, timeout=10) as answer:  # noqa: S310 - our own server
        return json.load(answer)


@pytest.fixture
def machine(tmp_path: Path) -> Stand:
    """A machine where curl, df and sleep are ours, and df tells of plenty of room."""
    made = Stand(tmp_path)
    for name, text in (("curl", CURL), ("df", DF), ("sleep", SLEEP)):
        made.command(name, text)
    made.room(PLENTY)
    (tmp_path / "bin" / "curl.exit").write_text("0")
    return made


@pytest.fixture
def stand(machine: Stand) -> Iterator[Stand]:
    """Such a machine with an Ollama, asked by the real curl: it has `old` and may pull `small`, and `large` of 9 GB."""
    options = ["--models", "old", "--pullable", "small,size=2000000;large,size=9000000000"]
    command = [sys.executable, "-m", "foreman.ollama.fake", *options]
    (machine.folder / "bin" / "curl").unlink()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        machine.url, machine.control = (process.stdout.readline().strip() for _ in range(2))
        yield machine
        process.kill()


ROSTER = "# what we use\r\nold\r\n\n  small:latest  # for titles\r\nlarge"


# macOS has bash for its sh, and original-awk for its awk.
@pytest.mark.parametrize("shell", [["dash"], ["bash", "--posix"]], ids="-".join)
@pytest.mark.parametrize("awk", ["mawk", "original-awk"])
def test_what_is_missing_is_pulled_and_the_rest_left_alone(stand: Stand, shell: list[str], awk: str) -> None:
    """A second run does nothing; comments, blank lines and a Windows editor's line ends are no matter."""
    found = shutil.which(awk)
    assert found, f"{awk} is not installed; Debian: apt-get install --no-install-recommends {awk}"
    stand.command("awk", f'#!/bin/sh\nexec {found} "$@"\n')
    stand.shell = shell
    status, printed = stand.pull(stand.roster(ROSTER))
    assert (status, stand.pulls()) == (0, ["small:latest", "large"])
    assert stand.models() == ["large:latest", "old:latest", "small:latest"]
    progress = [f"  {percent} % of 9000 MB" for percent in (0, 25, 50, 75, 100)]
    expected = ["large: pulling", "  pulling manifest", *progress, "  verifying sha256 digest", "  writing manifest"]
    lines = printed.splitlines()
    assert lines[0] == "old: is there"
    assert lines[lines.index("large: pulling") :] == [*expected, "  is there"]
    assert stand.pull(stand.roster(ROSTER)) == (0, "old: is there\nsmall:latest: is there\nlarge: is there\n")
    assert stand.pulls() == ["small:latest", "large"]


def test_with_update_all_are_asked_for(stand: Stand) -> None:
    """`--update` pulls what is there too: Ollama fetches what has changed."""
    assert stand.pull("--update", stand.roster("old"))[0] == 0
    assert stand.pulls() == ["old"]


@pytest.mark.parametrize("fault", ["cut", "error-line"])
def test_a_pull_that_breaks_is_tried_again_and_goes_on(stand: Stand, fault: str) -> None:
    """The network drops at half: a line says so, and the next try begins at half."""
    stand.act("faults", path="/api/pull", fault=fault, after=4)
    status, printed = stand.pull(stand.roster("large"))
    assert (status, stand.said("sleep")) == (0, ["5"])
    before, said, after = printed.partition("  what has come is kept; try 2 of 5 in 5 s\n")
    assert said
    assert ("Ollama says: max retries exceeded" in before) is (fault == "error-line")
    assert re.findall(r"(\d+) %", before) == ["0", "25", "50"]
    assert re.findall(r"(\d+) %", after) == ["50", "75", "100"]


def test_it_gives_up_after_five_tries_and_goes_on_with_the_others(stand: Stand) -> None:
    """One that does not come keeps no other waiting for ever, and the end names it."""
    stand.act("faults", path="/api/pull", fault="cut", model="large:latest", after=1, times=None)
    status, printed = stand.pull(stand.roster("large\nsmall"))
    assert (status, stand.said("sleep")) == (1, ["5", "10", "15", "20"])
    assert stand.pulls() == ["large"] * 5 + ["small"]
    assert printed.endswith("pull-models: not there: large\n")


def test_a_model_that_is_nowhere_is_not_asked_for_again(stand: Stand) -> None:
    """A mistyped name costs one question; what the registry said is shown."""
    status, printed = stand.pull(stand.roster("smal\nsmall"))
    assert (status, stand.said("sleep"), stand.pulls()) == (1, [], ["smal", "small"])
    assert "  Ollama says: pull model manifest: file does not exist\n" in printed
    assert printed.endswith("pull-models: not there: smal\n")


def test_a_disk_that_is_nearly_full_is_left_alone(stand: Stand) -> None:
    """With less than 5 GB free Ollama is not asked to pull anything."""
    stand.room(4_900_000)
    status, printed = stand.pull(stand.roster("old\nsmall"))
    assert (status, stand.pulls()) == (1, [])
    assert "no room: 0 MB are to come, 4900 MB are free at" in printed


def test_a_model_too_large_for_the_disk_does_not_come(stand: Stand) -> None:
    """Its size is what Ollama says: the pull ends before the first byte, and a smaller one still finds room."""
    stand.room(10_000_000)
    status, printed = stand.pull(stand.roster("large\nsmall"))
    assert (status, stand.said("sleep")) == (1, [])
    assert "no room: 9000 MB are to come, 10000 MB are free at" in printed
    assert "of 9000 MB" not in printed
    assert "small:latest" in stand.models()


def test_what_has_come_needs_no_more_room(stand: Stand) -> None:
    """Half of it is there: the other half is what has to fit."""
    stand.act("faults", path="/api/pull", fault="cut", after=4)
    stand.room(15_000_000)
    stand.command("sleep", '#!/bin/sh\necho 10000000 > "${0%/*}/df.free"\n')
    status, _ = stand.pull(stand.roster("large"))
    assert (status, stand.pulls()) == (0, ["large"] * 2)


def test_ctrl_c_leaves_what_has_come(stand: Stand) -> None:
    """It ends at once and says so; Ollama is left, and the next run goes on at half."""
    stand.act("faults", path="/api/pull", fault="hang-mid-stream", after=4)
    process = stand.start(stand.roster("large"))
    assert process.stdout is not None
    while "50 %" not in process.stdout.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, "\nstopped; what has come is kept, and the next run goes on there\n")
    deadline = time.monotonic() + 30
    while not any(each["outcome"] == "left" for each in stand.act("state")["requests"]):
        assert time.monotonic() < deadline
    assert re.findall(r"(\d+) %", stand.pull(stand.roster("large"))[1]) == ["50", "75", "100"]


WRONG = [
    "-old",
    "old new",
    "https://example.com/a/b",
    "../etc/passwd",
    "old:",
    '"old"',
    "hf.co/old",
    "a/b/c/d",
    "o\tld",
]


def test_bad_lines_are_named_before_anything_is_pulled(machine: Stand) -> None:
    """Every bad line, with its number; what cannot be shown on a terminal is not sent to it."""
    status, printed = machine.pull(machine.roster("\n".join(["small", *WRONG, "a\033[31m"])))
    assert (status, machine.said("curl")) == (2, [])
    shown = enumerate([*WRONG[:-1], "o?ld", "a?[31m"], 2)
    assert printed == "".join(f"pull-models: line {number} is no model: {line}\n" for number, line in shown)


GOOD = ["qwen3:30b", "org/name_1:v1.2-q4", "hf.co/user/Model-GGUF:Q4_K_M", "registry.example.org:5000/a/b"]


def test_every_form_of_a_name_is_taken(machine: Stand) -> None:
    """What `ollama pull` takes, the roster takes."""
    status, printed = machine.pull(machine.roster("\n".join(GOOD)))
    assert (status, printed) == (0, "".join(f"{name}: pulling\n  is there\n" for name in GOOD))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--updat"], "there is no option --updat; see --help"),
        (["a", "b"], "one roster at a time"),
        (["/nonexistent"], "cannot read the roster /nonexistent"),
        ([os.devnull], f"cannot read the roster {os.devnull}"),
        ([], f"{TARGET / 'models.txt'} names no model"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(machine: Stand, arguments: list[str], said: str) -> None:
    """One line, and nobody is asked; the example of a roster names nothing before somebody has written into it."""
    assert machine.pull(*arguments) == (2, f"pull-models: {said}\n")
    assert machine.said("curl") == []


def test_help_is_printed(machine: Stand) -> None:
    """--help tells the call, and asks nobody."""
    status, printed = machine.pull("--help")
    assert (status, printed.splitlines()[0]) == (0, "usage: pull-models.sh [--update] [ROSTER]")
    assert machine.said("curl") == []


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),  # noqa: S104 - nothing listens
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        (":8080", "http://127.0.0.1:8080"),
        ("[::]:8080", "http://[::1]:8080"),
        ("::1", "http://[::1]:11434"),
        ("mac.example.org", "http://mac.example.org:11434"),
        ("http://mac.example.org/", "http://mac.example.org:80"),
        ("https://mac.example.org", "https://mac.example.org:443"),
    ],
)
def test_it_asks_where_ollama_listens(machine: Stand, host: str, asked: str) -> None:
    """OLLAMA_HOST means what it means to the ollama command; if nobody answers, one line says where it was asked."""
    (machine.folder / "bin" / "curl.exit").write_text("7")
    machine.url = host
    status, printed = machine.pull(machine.roster("old"))
    assert (status, machine.said("curl")) == (2, [f"{asked}/api/version"])
    assert printed == (
        f"pull-models: no Ollama answers at {asked}; has it been started, and does it listen there (OLLAMA_HOST)?\n"
    )


@pytest.mark.parametrize(
    ("folder", "looked_at"),
    [("/srv/models", "/srv/models"), ("/srv/unseen/a", "/srv"), ("", "{home}/.ollama/models")],
)
def test_the_disk_of_the_models_is_looked_at(machine: Stand, folder: str, looked_at: str) -> None:
    """OLLAMA_MODELS or the usual place; of one that is not there yet, or not to be seen, what is above it."""
    installed = Path("/usr/share/ollama")  # by Ollama's installer, on this very machine
    looked_at = f"{installed}/.ollama/models" if not folder and installed.exists() else looked_at
    machine.environment["OLLAMA_MODELS"] = folder
    assert machine.pull(machine.roster("small"))[0] == 0
    assert machine.said("df")[-1] == looked_at.format(home=machine.folder)


def test_the_script_is_plain_sh(run: Run) -> None:
    """The linter of shells finds nothing that a POSIX shell lacks."""
    run("shellcheck", "--shell=sh", SCRIPT)


@pytest.mark.parametrize("name", ["foreman.ollama", "foreman.ollama-firewall"])
def test_a_plist_is_one(name: str) -> None:
    """It can be read, and its label is its name."""
    content = plistlib.loads((TARGET / f"{name}.plist").read_bytes())
    assert (content["Label"], content["RunAtLoad"]) == (name, True)
    assert all(isinstance(each, str) for each in content["ProgramArguments"])
    assert all(isinstance(each, str) for each in content.get("EnvironmentVariables", {}).values())


OLLAMA_SERVICE = """\
[Unit]
Description=Ollama Service
After=network-online.target

[Service]
ExecStart=/bin/true serve
User=daemon
Group=daemon
Restart=always
RestartSec=3

[Install]
WantedBy=multi-user.target
"""
"""As Ollama's installer writes it, but for the command and the user."""


@pytest.mark.parametrize("addition", ["", "Enviroment=A=B\n"], ids=["as it is", "mistyped"])
def test_systemd_takes_the_settings(run: Run, tmp_path: Path, addition: str) -> None:
    """Beside the service of Ollama's installer systemd finds nothing wrong with them."""
    service = tmp_path / "ollama.service"
    service.write_text(OLLAMA_SERVICE)
    drop_in = tmp_path / "ollama.service.d" / "foreman.conf"
    drop_in.parent.mkdir()
    drop_in.write_text((TARGET / "ollama-service.conf").read_text() + addition)
    said = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", service, fails=bool(addition))
    assert said.startswith(f"{drop_in}:") if addition else said == ""


def test_only_settings_that_ollama_has() -> None:
    """Neither the files nor the page name a variable that Ollama would not read."""
    texts = [PAGE, *(path.read_text() for path in TARGET.iterdir())]
    names = {name for text in texts for name in re.findall(r"(?<!FOREMAN_)OLLAMA_[A-Z_]+", text)}
    assert names == KNOWN


@pytest.mark.parametrize("name", [path.name for path in TARGET.iterdir()])
def test_the_page_says_where_each_file_goes(name: str) -> None:
    """Each file has its place in the page's table, and a file that says itself where it goes says the same."""
    row = next(line for line in PAGE.splitlines() if line.startswith("| ") and f"`{name}`" in line)
    place = re.search(r": `(~?/[^`]+)`", row)
    assert place or name in ("pull-models.sh", "models.txt")
    assert place is None or place[1] in (TARGET / name).read_text()
