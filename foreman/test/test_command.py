"""The command `foreman`, as processes: on a terminal and off it, before a foreman in this process."""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
import sys
import termios
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest
import pytest_twisted
from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol
from twisted.python.failure import Failure

from foreman.ollama.fake import FakeModel
from foreman.test.harness import House, ask, chat, eventually, house, reactor

WORDS = "one two three four five"
BATCH = "".join(json.dumps(chat(model)) + "\n" for model in ("slow", "quick"))
TOKEN = "t0ken-of-the-test-0123456789"

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What moves a terminal's cursor or changes its colours."""


def models(**more: Any) -> dict[str, Any]:
    """A fake with a quick model, and one that takes its time for each word."""
    words = tuple(f" {word}" for word in WORDS.split())
    quick = FakeModel(name="quick", token_rate=1000.0, words=words)
    slow = FakeModel(name="slow", token_rate=2.0, words=words * 20)
    return {"models": [quick, slow], **more}


@define(eq=False)
class Typed(ProcessProtocol):
    """A command somebody has typed.

    :ivar shown: what it has printed; on a terminal, errors too.
    :ivar code: its exit code, None while it runs.
    """

    shown: str = ""
    errors: str = ""
    code: int | None = None
    _over: Deferred[int] = field(factory=Deferred)

    def outReceived(self, data: bytes) -> None:
        """Take note."""
        self.shown += data.decode()

    def errReceived(self, data: bytes) -> None:
        """Take note."""
        self.errors += data.decode()

    def processEnded(self, reason: Failure) -> None:
        """It is over."""
        ended: Any = reason.value
        self.code = -ended.signal if ended.exitCode is None else ended.exitCode
        self._over.callback(self.code)

    async def over(self) -> Typed:
        """Wait for its end."""
        await self._over
        return self

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        assert self.transport is not None
        self.transport.signalProcess("INT")


def type_in(
    folder: Path,
    url: str,
    *words: str,
    given: str = "",
    terminal: bool = False,
    environ: Mapping[str, str] | None = None,
    script: str | None = None,
) -> Typed:
    """Type `foreman …`, or a script of a shell; standard input has `given`, and then ends."""
    typed = Typed()
    settings = {"FOREMAN_URL": url, "XDG_CONFIG_HOME": str(folder), "HOME": str(folder), "TERM": "xterm-256color"}
    # COLUMNS and LINES would be believed before the terminal.
    clean = {name: value for name, value in os.environ.items() if not re.match("FOREMAN_|COLUMNS$|LINES$", name)}
    command = [sys.executable, "-m", "foreman.command", *words] if script is None else ["/bin/sh", "-c", script]
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = reactor.spawnProcess(
        typed, command[0], command, {**clean, **path, **settings, **(environ or {})}, str(folder), usePTY=terminal
    )
    if terminal:
        fcntl.ioctl(process.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    else:
        process.write(given.encode())
        process.closeStdin()
    return typed


async def run(house: House, *words: str, code: int = 0, **more: Any) -> Typed:
    """Type `foreman …` and wait for its end, which has this exit code."""
    typed = await type_in(house.folder, house.url, *words, **more).over()
    assert typed.code == code, (typed.shown, typed.errors)
    return typed


@pytest_twisted.ensureDeferred
async def test_ask() -> None:
    """`foreman ask` prints the answer; the text can come from a pipe, and --json gives the job."""
    async with house(**models()) as there:
        assert (await run(there, "ask", "quick", "hello")).shown.strip() == WORDS
        piped = await run(there, "ask", "quick", "-s", "Be brief.", "-o", "temperature=0", "--no-think", given="hello")
        assert piped.shown.strip() == WORDS
        asked = json.loads(there.fake.requests[-1].body)
        assert asked["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
        assert (asked["options"], asked["think"]) == ({"temperature": 0}, False)
        job = json.loads((await run(there, "ask", "quick", "hello", "--json")).shown)
        assert (job["state"], job["text"].strip(), job["attempt"]) == ("done", WORDS, 1)


@pytest_twisted.ensureDeferred
async def test_ask_streams_and_is_cancelled_by_ctrl_c() -> None:
    """The answer is printed as it comes; Ctrl-C cancels the job, and the exit code says so."""
    async with house(**models()) as there:
        typed = type_in(there.folder, there.url, "ask", "slow", "hello")
        await eventually(lambda: "two" in typed.shown, within=30)
        assert typed.code is None
        typed.interrupt()
        await typed.over()
        assert typed.code == 130
        (row,) = await there.rows()
        assert (row["state"], row["error_code"]) == ("failed", "cancelled")


@pytest_twisted.ensureDeferred
async def test_ask_is_cancelled_before_it_is_known_to_be_accepted() -> None:
    """Ctrl-C while the answer to the submission is on its way: the job does not run for nobody."""
    async with house(**models()) as there:
        held, over = Event(), Event()

        class Slow(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                headers = {name: value for name, value in self.headers.items() if name != "Host"}
                answer = httpx.post(there.url + self.path, content=body, headers=headers, timeout=60)
                if not held.is_set():
                    held.set()
                    over.wait()
                    return  # without an answer
                self.send_response(answer.status_code)
                self.end_headers()
                self.wfile.write(answer.content)

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        typed = type_in(there.folder, f"http://127.0.0.1:{server.server_port}", "ask", "slow", "hello")
        await eventually(held.is_set, within=30)
        typed.interrupt()
        assert (await typed.over()).code == 130
        over.set()
        server.shutdown()
        server.server_close()
        (row,) = await there.rows()
        assert (row["state"], row["error_code"]) == ("failed", "cancelled")


@pytest_twisted.ensureDeferred
async def test_nobody_reads() -> None:
    """`foreman ask … | head` ends as others do, and cancels the job; a closed or full output is no traceback."""
    async with house(**models()) as there:
        foreman = f'"{sys.executable}" -m foreman.command'
        piped = await run(there, script=f"({foreman} ask slow hello; echo $? >&2) | head -c 4")
        assert (piped.shown, piped.errors) == (" one", "141\n")
        (row,) = await there.rows()
        assert (row["state"], row["error_code"]) == ("failed", "cancelled")
        assert (await run(there, script=f"{foreman} jobs >&-")).errors == ""
        full = await run(there, script=f"{foreman} jobs >/dev/full", code=2)
        assert full.errors == "Error: [Errno 28] No space left on device\n"
        nowhere = await run(there, "artifacts", row["id"], "-o", "/dev/null/x", code=2)
        assert nowhere.errors.startswith("Error: [Errno 20]")


@pytest_twisted.ensureDeferred
async def test_what_is_printed_does_not_depend_on_the_place() -> None:
    """FORCE_COLOR makes no terminal of a pipe; an output that is not UTF-8 gets JSON all the same, and what it can."""
    wide = FakeModel(name="wide", token_rate=1000.0, words=(" \u4f60\u597d\u200e",))
    async with house(models=[wide]) as there:
        odd = {"FORCE_COLOR": "1", "PYTHONIOENCODING": "latin-1"}
        assert (await run(there, "ask", "wide", "hi", environ=odd)).shown == " ???\n"
        assert json.loads((await run(there, "ask", "wide", "hi", "--json", environ=odd)).shown)["text"] == wide.words[0]
        line = (await run(there, "jobs", environ=odd)).shown.splitlines()[0]
        assert line.split("\t")[1:3] == ["wide", "done"]
        job_id = line.split("\t")[0]
        assert job_id in (await run(there, "jobs", terminal=True, environ={"COLUMNS": "40"})).shown


@pytest_twisted.ensureDeferred
async def test_what_was_submitted_is_not_lost_sight_of() -> None:
    """Ctrl-C while it is waited for says which job goes on."""
    async with house(**models()) as there:
        typed = type_in(there.folder, there.url, "submit", "slow", "hello", "--wait")
        await eventually(lambda: there.fake.scheduler.generating, within=30)
        await eventually(lambda: there.foreman._jobs.lookout._waiting)  # it knows its job, and waits
        typed.interrupt()
        assert (await typed.over()).code == 130
        (row,) = await there.rows()
        assert f"job {row['id']} goes on" in typed.errors
        assert row["state"] == "working"
        await ask(there.url, "POST", f"/jobs/{row['id']}/cancel")


@pytest_twisted.ensureDeferred
async def test_what_may_have_been_submitted_is_not_lost_sight_of(tmp_path: Path) -> None:
    """Ctrl-C before foreman has answered says with which key a repeat is no second job."""
    heard: list[bytes] = []

    class Silent(Protocol):
        def dataReceived(self, data: bytes) -> None:
            heard.append(data)

    silent = Factory.forProtocol(Silent)
    port = reactor.listenTCP(0, silent, interface="127.0.0.1")
    typed = type_in(tmp_path, f"http://127.0.0.1:{port.getHost().port}", "submit", "slow", "hello", "--key", "mine")
    await eventually(lambda: heard, within=30)
    typed.interrupt()
    assert ((await typed.over()).code, "--key mine" in typed.errors) == (130, True)
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_the_token_of_the_file_goes_to_its_address(tmp_path: Path) -> None:
    """`foreman verify` shows the token of the settings file to nobody else; `--url` counts there, too."""
    seen: list[str | None] = []

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    Thread(target=server.serve_forever, daemon=True).start()
    other = f"http://127.0.0.1:{server.server_port}"
    (tmp_path / "foreman").mkdir()
    (tmp_path / "foreman" / "config.toml").write_text(f'url = "http://127.0.0.1:9"\ntoken = "{TOKEN}"\n')
    (tmp_path / "foreman" / "config.toml").chmod(0o600)
    verify = ("verify", "--direct", other, "--through")
    assert (await type_in(tmp_path, "", *verify, other).over()).code == 2
    assert (await type_in(tmp_path, "http://127.0.0.1:9", "--url", other, *verify[:3]).over()).code == 2
    assert set(seen) == {None}
    assert len(seen) == 4, "each was asked as the target, and whether it is a foreman"
    (tmp_path / "foreman" / "config.toml").write_text(f'url = "{other}/"\ntoken = "{TOKEN}"\n')
    await type_in(tmp_path, "", *verify, other).over()
    assert f"Bearer {TOKEN}" in seen
    server.shutdown()
    server.server_close()


@pytest_twisted.ensureDeferred
async def test_submit_wait_tail_and_artifacts(tmp_path: Path) -> None:
    """A submitted job has an id on a line; with it the job is waited for, read, shown and saved."""
    async with house(**models()) as there:
        job_id = (await run(there, "submit", "quick", "hello", "--metadata", '{"a": 1}')).shown.strip()
        assert re.fullmatch(r"[0-9A-Z]{26}", job_id)
        assert (await run(there, "wait", job_id)).shown == f"{job_id}\tdone\n"
        assert (await run(there, "tail", job_id)).shown.strip() == WORDS
        assert "state\tdone\n" in (await run(there, "show", job_id)).shown
        shown = json.loads((await run(there, "show", job_id, "--json")).shown)
        assert (shown["job_id"], shown["metadata"]) == (job_id, {"a": 1})
        folder = tmp_path / "left"
        written = (await run(there, "artifacts", job_id, "-o", str(folder))).shown.split()
        assert sorted(written) == sorted(map(str, folder.iterdir()))
        assert (folder / f"{job_id}.content.txt").read_text().strip() == WORDS
        assert json.loads((folder / f"{job_id}.completion.json").read_text())["done"] is True
        listed = (await run(there, "jobs", "--state", "done")).shown
        assert listed.split("\t")[:3] == [job_id, "quick", "done"]


@pytest_twisted.ensureDeferred
async def test_submit_a_file_a_batch_and_a_key(tmp_path: Path) -> None:
    """What is asked comes from a file too; a batch is a job a line; a key makes a repeat the same job."""
    async with house(**models()) as there:
        (tmp_path / "question").write_text("hello")
        first = (await run(there, "submit", "quick", "-f", str(tmp_path / "question"), "--key", "k")).shown
        assert (await run(there, "submit", "quick", "hello", "--key", "k")).shown == first
        lines = '{"messages": []}\n\n{"model": "slow", "messages": []}\n'
        ids = (await run(there, "submit", "quick", "--batch", "-", "--expires-in", "8h", given=lines)).shown.split()
        rows = {row["id"]: row for row in await there.rows()}
        assert [rows[each]["model"] for each in ids] == ["quick", "slow"]
        assert all(rows[each]["expires_at"] is not None for each in ids)
        wrong = await run(there, "submit", "--batch", "-", given='{"messages": []}\nnot json\n', code=2)
        assert "line 2 of the batch is not JSON" in wrong.errors
        refused = await run(there, "submit", "--batch", "-", given='{"messages": []}\n', code=4)
        assert "line 1: " in refused.errors


@pytest_twisted.ensureDeferred
async def test_submit_and_wait() -> None:
    """With --wait the answer is printed; with a batch, what became of each; a failed job ends it with 1."""
    async with house(**models()) as there:
        typed = type_in(there.folder, there.url, "submit", "--wait", "--batch", "-", given=BATCH)
        await eventually(lambda: "slow:latest" in there.fake.scheduler.generating, within=30)
        slow = (await ask(there.url, "GET", "/queue")).document["running"]["job_id"]
        await ask(there.url, "POST", f"/jobs/{slow}/cancel")
        await typed.over()
        states = dict(line.split("\t") for line in typed.shown.splitlines())
        assert (typed.code, states[slow], len(states)) == (1, "failed cancelled", 2)
        assert (await run(there, "submit", "quick", "hello", "--wait")).shown.strip() == WORDS
        shown = ESCAPES.sub("", (await run(there, "submit", "quick", "hello", "--wait", terminal=True)).shown)
        assert re.search(rf"^job [0-9A-Z]{{26}}\r\n.*{WORDS}\r\n$", shown, re.DOTALL)


@pytest_twisted.ensureDeferred
async def test_cancel_pause_resume_and_queue() -> None:
    """The queue stands still and goes on; it shows what waits; jobs are cancelled, whatever becomes of the others."""
    async with house(**models()) as there:
        assert (await run(there, "pause", "1h")).shown.startswith("paused until ")
        ids = [(await run(there, "submit", "quick", str(each))).shown.strip() for each in range(2)]
        queue = (await run(there, "queue")).shown.splitlines()
        assert "nothing runs; 2 queued; paused until" in queue[0]
        assert [line.split("\t")[:2] for line in queue[1:]] == [["1", ids[0]], ["2", ids[1]]]
        late = await run(there, "wait", *ids, "--timeout", "10ms", code=5)
        assert "the time given is over" in late.errors
        cancelled = await run(there, "cancel", "nosuch", ids[0], code=4)
        assert (cancelled.shown, cancelled.errors) == (
            f"{ids[0]}\tfailed cancelled\n",
            "nosuch: there is no such job\n",
        )
        assert (await run(there, "wait", ids[0], code=1)).shown == f"{ids[0]}\tfailed cancelled\n"
        assert json.loads((await run(there, "resume", "--json")).shown)["paused"] is False
        assert (await run(there, "wait", ids[1])).shown == f"{ids[1]}\tdone\n"


@pytest_twisted.ensureDeferred
async def test_status_and_the_token(tmp_path: Path) -> None:
    """Without the token a command says which setting to look at; the environment or the settings file brings it."""
    async with house({"TOKEN": TOKEN}, **models()) as there:
        refused = await run(there, "jobs", code=4)
        assert "(FOREMAN_TOKEN says the token, or FOREMAN_TOKEN_FILE, or the settings file)" in refused.errors
        stranger = (await run(there, "status")).shown
        assert ("models\t" in stranger, "token\tmissing or wrong" in stranger) == (False, True)
        known = (await run(there, "status", environ={"FOREMAN_TOKEN": TOKEN})).shown
        assert "target\tup " in known
        assert "models\tquick:latest, slow:latest\n" in known
        assert "token\t" not in known
        document = json.loads((await run(there, "status", "--json", environ={"FOREMAN_TOKEN": TOKEN})).shown)
        assert (document["target"]["state"], document["models"]) == ("up", ["quick:latest", "slow:latest"])
        asked = {"FOREMAN_TOKEN": TOKEN, "_FOREMAN_COMPLETE": "bash_complete", "COMP_CWORD": "2"}
        completed = await run(there, environ={**asked, "COMP_WORDS": "foreman ask q"})
        assert completed.shown == "plain,quick:latest\n"
        (tmp_path / "foreman").mkdir()
        path = tmp_path / "foreman" / "config.toml"
        path.write_text(f'url = "{there.url}"\ntoken = "{TOKEN}"\n')
        for mode, warned in ((0o644, True), (0o600, False)):
            path.chmod(mode)
            typed = await type_in(tmp_path, "", "jobs").over()
            assert (typed.code, "others can read it" in typed.errors) == (0, warned)
        assert typed.errors == ""


@pytest_twisted.ensureDeferred
async def test_not_there_and_wrong(tmp_path: Path) -> None:
    """A foreman that is not there, one that is something else and a wrong call have their exit codes and one line."""
    async with house(**models()) as there:
        submitted = type_in(tmp_path, "http://127.0.0.1:1", "submit", "slow", "hello", "--key", "mine")
        away = await type_in(tmp_path, "http://127.0.0.1:1", "status").over()
        assert (away.code, away.errors.count("\n")) == (3, 1)
        assert ((await submitted.over()).code, "--key mine" in submitted.errors) == (3, True)
        other = await run(there, "--url", there.fake.url, "status", code=3)
        assert "Traceback" not in other.errors
        for words in (
            ["submit"],
            ["ask", "quick", "a", "-f", __file__],
            ["pause", "soon"],
            ["--url", "nonsense", "jobs"],
        ):
            wrong = await run(there, *words, code=2)
            assert wrong.errors.splitlines()[-1].startswith("Error: ")


@pytest_twisted.ensureDeferred
async def test_wait_on_a_terminal() -> None:
    """On a terminal `foreman wait` is a table that moves, with a line for each job that is over."""
    async with house(**models()) as there:
        slow = (await run(there, "submit", "slow", "hello")).shown.strip()
        quick = (await run(there, "submit", "quick", "hello")).shown.strip()
        typed = type_in(there.folder, there.url, "wait", slow, quick, terminal=True)
        await eventually(lambda: re.search(rf"{slow} .*working +[0-9.]+ ", ESCAPES.sub("", typed.shown)), within=30)
        assert re.search(rf"{quick}  quick  queued +1 ", ESCAPES.sub("", typed.shown))
        await ask(there.url, "POST", f"/jobs/{slow}/cancel")
        await typed.over()
        assert typed.code == 1
        plain = ESCAPES.sub("", typed.shown)
        assert f"{slow}  failed cancelled  slow" in plain
        assert f"{quick}  done  quick" in plain


@pytest_twisted.ensureDeferred
async def test_on_a_terminal_nothing_moves_the_cursor_but_us() -> None:
    """What a model says cannot give orders to the terminal; off a terminal it is passed on as it is."""
    pieces = ("\x1b]0;owned\x07", "\x1b[2Jhi")
    model = FakeModel(name="rude", token_rate=1000.0, words=pieces)
    async with house(models=[model]) as there:
        assert (await run(there, "ask", "rude", "hello")).shown == "".join(pieces) + "\n"
        shown = (await run(there, "ask", "rude", "hello", terminal=True)).shown
        assert "owned" in shown
        assert not any(order in shown for order in ("\x1b]0", "\x07", "\x1b[2J"))


@pytest_twisted.ensureDeferred
async def test_queue_watched_on_a_terminal() -> None:
    """`foreman queue --watch` follows the queue until Ctrl-C."""
    async with house(**models()) as there:
        await run(there, "pause", "1h")
        typed = type_in(there.folder, there.url, "queue", "--watch", terminal=True)
        await eventually(lambda: "0 queued" in typed.shown, within=30)
        job_id = (await run(there, "submit", "quick", "hello")).shown.strip()
        await eventually(lambda: "1 queued" in typed.shown and job_id in typed.shown, within=30)
        typed.interrupt()
        assert (await typed.over()).code == 130


@pytest_twisted.ensureDeferred
async def test_serve(tmp_path: Path) -> None:
    """`foreman serve` is the daemon: it answers, and ends well when it is told to."""
    environ = {
        "FOREMAN_ADDR": "127.0.0.1:0",
        "FOREMAN_DB": str(tmp_path / "foreman.db"),
        "FOREMAN_OLLAMA_URL": "http://127.0.0.1:1",
    }
    typed = type_in(tmp_path, "", "serve", environ=environ)
    found = await eventually(lambda: re.search(r"listens on \S+:(\d+)\s", typed.shown), within=30)
    answer = await ask(f"http://127.0.0.1:{found[1]}", "GET", "/healthz")
    assert answer.document["degraded"] is True
    assert typed.transport is not None
    typed.transport.signalProcess("TERM")
    assert (await typed.over()).code == 0


@pytest_twisted.ensureDeferred
async def test_the_page_for_callers() -> None:
    """What docs/callers.md types works as it stands there, every line of it."""
    page = (Path(__file__).parents[2] / "docs" / "callers.md").read_text().partition("\n## The command\n")[2]
    examples, verifying = re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    async with house(**models()) as there:
        lines = (examples + verifying).replace("qwen3:30b", "quick").replace("http://127.0.0.1:8080", there.url)
        lines = lines.replace("http://127.0.0.1:11434", there.fake.url)
        script = f'set -e; foreman() {{ "{sys.executable}" -m foreman.command "$@"; }}\n{lines}'
        typed = type_in(there.folder, there.url, script=script)
        assert (await typed.over()).code == 0, (typed.shown, typed.errors)
        assert typed.shown.startswith(f" {WORDS}\n {WORDS}\n")
        assert len(list((there.folder / "answers").iterdir())) == 2
        assert len(await there.rows()) >= 4


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest_twisted.ensureDeferred
async def test_completion(shell: str, tmp_path: Path) -> None:
    """Each shell can complete the commands, whether or not there is a foreman."""
    typed = await type_in(tmp_path, "", "completion", shell).over()
    assert (typed.code, "_FOREMAN_COMPLETE" in typed.shown) == (0, True)
    asked = {
        "_FOREMAN_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": "foreman su",
        "COMP_CWORD": "su" if shell == "fish" else "1",
    }
    completed = await type_in(tmp_path, "", environ=asked).over()
    assert "submit" in completed.shown
