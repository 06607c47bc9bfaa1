"""`.gitea/workflows`: what the files say, and the delivery's steps, run by bash with the tools they really call.

skopeo and git are the real ones, before a small registry of ours; only the builder, and ssh's network, are played.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import ipaddress
import json
import os
import re
import shutil
import ssl
import subprocess
import tarfile
import threading
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from cryptography import x509

from foreman.test.certificates import certificate

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / ".gitea" / "workflows"
# YAML 1.1 reads the key `on` as true.
CI, CD = (yaml.safe_load((WORKFLOWS / name).read_text().replace("\non:", "\n'on':")) for name in ("ci.yml", "cd.yml"))
STEPS: list[dict[str, Any]] = [step for step in CD["jobs"]["deliver"]["steps"] if "run" in step]
JOBS: list[dict[str, Any]] = [*CI["jobs"].values(), *CD["jobs"].values()]
PAGE = ROOT / "docs" / "deploy" / "delivery.md"


# What the files say.


def test_they_are_workflows(run: Any) -> None:
    """As their schema has it; Gitea's dialect is GitHub's."""
    run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *sorted(WORKFLOWS.iterdir()))


def test_ci_runs_what_decides_a_landing() -> None:
    """On every push and pull request, with Python 3.11, and it is `.ci/run` as a container may; main is cd's."""
    assert CI["on"] == {"push": {"branches-ignore": ["main"]}, "pull_request": None}
    assert [step["run"] for step in CI["jobs"]["check"]["steps"] if "run" in step] == [".ci/run --unprivileged"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    python = [step["with"] for step in CI["jobs"]["check"]["steps"] if "setup-python" in step.get("uses", "")]
    assert python == [{"python-version": "3.11"}]


def test_what_is_delivered_has_passed_the_same_checks() -> None:
    """Nothing but a push to main delivers, and only after ci's own job, for that very commit."""
    assert CD["on"] == {"push": {"branches": ["main"]}}
    assert CD["jobs"]["check"] == CI["jobs"]["check"]
    assert CD["jobs"]["deliver"]["needs"] == "check"
    assert "if" not in CD["jobs"]["deliver"]


def test_two_deliveries_do_not_run_at_once_where_gitea_knows_how() -> None:
    """Whole runs wait in the order of their pushes, and none is cut off."""
    assert CD["concurrency"] == {"group": "cd", "cancel-in-progress": False}


def test_jobs_may_little_and_end() -> None:
    """They read the repository, no more, and are given up after an hour."""
    for workflow in (CI, CD):
        assert workflow["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] == 60 and "permissions" not in job for job in JOBS)


def test_actions_are_pinned() -> None:
    """To a commit, with the version beside it for people: a tag can be moved."""
    for path in WORKFLOWS.iterdir():
        for line in path.read_text().splitlines():
            if "uses:" in line:
                assert re.fullmatch(r" +- uses: actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)


def test_nothing_can_be_injected() -> None:
    """Values reach a script by its environment alone, and all of them are the operator's variables and secrets."""
    for path in WORKFLOWS.iterdir():
        text = path.read_text()
        inserted = re.findall(r"^ +([A-Z_]+): \$\{\{ (?:vars|secrets)\.(\w+) \}\}$", text, re.MULTILINE)
        assert len(inserted) == text.count("${{")
        assert all(name == of for name, of in inserted)


def test_secrets_are_given_to_the_steps_that_use_them() -> None:
    """Not to a whole job, whose other steps run other people's programs."""
    assert all("secrets." not in json.dumps(job.get("env")) for job in (CD, *JOBS))
    for step in STEPS[1:]:
        for name, value in step.get("env", {}).items():
            assert "secrets." not in str(value) or f'"${name}"' in step["run"]


def test_no_secret_is_on_a_command_line() -> None:
    """Where everybody on the machine could read it: secrets are given to the shell alone, which writes them down."""
    for step in STEPS:
        for name, value in step.get("env", {}).items():
            lines = [line.strip() for line in step["run"].splitlines() if f"${name}" in line and "secrets." in value]
            assert all(re.match(r"printf (%s|'%s\\n') \"\$\w+\" [>|] |if \[ -n ", line) for line in lines)


def test_the_checked_code_gets_no_token() -> None:
    """The job that runs the tests leaves no credential beside them."""
    assert CI["jobs"]["check"]["steps"][0]["with"] == {"persist-credentials": False}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step["name"])
def test_the_steps_are_good_shell(run: Any, step: dict[str, Any], tmp_path: Path) -> None:
    """By shellcheck, as the bash that runs them."""
    (tmp_path / "step").write_text(step["run"])
    run("shellcheck", "--shell=bash", tmp_path / "step")


def test_the_page_lists_what_is_to_be_set() -> None:
    """docs/deploy/delivery.md has each variable and each secret in its table, under the right kind, and no other."""
    used = set(re.findall(r"\b(vars|secrets)\.(\w+)", (WORKFLOWS / "cd.yml").read_text()))
    rows = re.findall(r"^\| `([A-Z_]+)` \| (variable|secret)", PAGE.read_text(), re.MULTILINE)
    assert {(f"{kind}s".replace("variables", "vars"), name) for name, kind in rows} == used


def test_nobodys_network_is_in_them() -> None:
    """No host but the one that the builder's client comes from."""
    hosts = {host for path in WORKFLOWS.iterdir() for host in re.findall(r"https?://([^/\"\s]+)", path.read_text())}
    assert hosts == {"github.com"}


# The delivery, run.


class Registry(http.server.ThreadingHTTPServer):
    """Takes images at `self.address` over TLS from those who log in as ci with s3cret-registry."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Push)
        certificate(folder, x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "root.pem", folder / "key.pem")
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.authority = (folder / "root.pem").read_text()
        self.address = f"127.0.0.1:{self.server_port}"
        self.blobs: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.full = False
        self.asked = False

    def handle_error(self, *_: object) -> None:
        """A client that does not trust us hangs up: no news."""


class Push(http.server.BaseHTTPRequestHandler):
    """What a push needs of the registry's protocol."""

    protocol_version = "HTTP/1.1"
    server: Registry

    def log_message(self, *_: object) -> None:
        """Keeps quiet."""

    def reply(self, status: int, **headers: str) -> None:
        """An answer without a body."""
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def body(self) -> bytes:
        """The request's, whole."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def answer(self) -> None:
        """All methods."""
        self.server.asked = True
        body, path = self.body(), urlsplit(self.path).path
        known = "Basic " + base64.b64encode(b"ci:s3cret-registry").decode()
        last = path.rsplit("/", 1)[-1]
        match self.command, path.split("/")[-2]:
            case _ if self.headers.get("Authorization") != known:
                self.reply(401, WWW_Authenticate='Basic realm="registry"')
            case "GET", "v2":
                self.reply(200)
            case "HEAD", "blobs":
                self.reply(200 if last in self.server.blobs else 404)
            case "POST", "uploads":
                self.reply(202, Location=f"{path}{uuid.uuid4()}")
            case "PATCH", "uploads":
                self.server.uploads[last] = body
                self.reply(202, Location=path)
            case "PUT", "uploads":
                (digest,) = parse_qs(urlsplit(self.path).query)["digest"]
                self.server.blobs[digest] = self.server.uploads.pop(last, b"") + body
                self.reply(507 if self.server.full else 201)
            case "PUT", "manifests":
                self.server.manifests[path] = body
                self.reply(201)
            case _:
                self.reply(404)

    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = answer  # noqa: N815 - the names are http.server's


def archive(path: Path) -> None:
    """An OCI archive of one image with one layer, as a builder leaves it."""
    blobs: dict[str, bytes] = {}

    def blob(kind: str, content: bytes) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = content
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w"):
        pass
    unpacked = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [f"sha256:{unpacked}"]}}
    manifest = {
        "schemaVersion": 2,
        "config": blob("config.v1+json", json.dumps(config).encode()),
        "layers": [blob("layer.v1.tar", layer.getvalue())],
    }
    index = {"schemaVersion": 2, "manifests": [blob("manifest.v1+json", json.dumps(manifest).encode())]}
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(index).encode()}
    with tarfile.open(path, "w") as tar:
        for name, content in (files | {f"blobs/sha256/{name}": content for name, content in blobs.items()}).items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


BUILDCTL = """#!/bin/sh
printf '%s\\n' "$@" > "$PLAYED/buildctl"
while [ "$1" != build ]; do
    if [ "$1" = --tlsdir ]; then cat "$2/ca.pem" "$2/cert.pem" "$2/key.pem" > "$PLAYED/tls"; fi
    shift
done
if [ -e "$PLAYED/no-builder" ]; then echo 'error: failed to list workers: connection refused' >&2; exit 1; fi
for last in "$@"; do :; done
cp "$PLAYED/archive.tar" "${last#type=oci,dest=}"
"""
SSH = """#!/bin/sh
printf '%s\\n' "$@" >> "$PLAYED/ssh"
while [ $# -gt 2 ]; do
    if [ "$1" = -i ]; then stat -c %a "$2" > "$PLAYED/key"; cat "$2" >> "$PLAYED/key"; fi
    case "$1" in UserKnownHostsFile=*) cat "${1#*=}" > "$PLAYED/known_hosts" ;; esac
    shift
done
exec sh -c "$2"
"""
MANIFEST = "images:\n  - name: foreman\n    newName: {image}\n    newTag: {tag}\n"


class Delivery:
    """A repository of manifests, a registry, and the workspace of a job, for which an operator has set everything."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self.folder, self.registry = folder, registry
        self.image = f"{registry.address}/team/foreman"
        self.played, self.temporary, self.bin = folder / "played", folder / "temporary", folder / "bin"
        for made in (self.played, self.temporary, self.bin, folder / "home"):
            made.mkdir()
        for name, script in (("buildctl", BUILDCTL), ("ssh", SSH)):
            (self.bin / name).write_text(script)
            (self.bin / name).chmod(0o755)
        archive(self.played / "archive.tar")
        self.infra, self.workspace = self.repository("infra"), self.repository("service") / "work"
        shutil.copytree(ROOT / "deploy" / "scripts", self.workspace / "deploy" / "scripts")
        self.commit(self.infra / "work", "foreman.yaml", MANIFEST.format(image=self.image, tag='"0.0.0"'))
        (self.workspace / "foreman").mkdir()
        self.commit(self.workspace, "foreman/__init__.py", '__version__ = "1.2.3"\n')
        self.sha = self.commit(self.workspace, "Dockerfile", "FROM scratch\n")
        self.vars = {
            "IMAGE": self.image,
            "BUILDKIT_ADDRESS": "tcp://build.example.com:1234",
            "REGISTRY_USER": "ci",
            "REGISTRY_CA": registry.authority,
            "INFRA_REPOSITORY": f"ssh://git@git.example.com{self.infra}/bare.git",
            "INFRA_FILE": "foreman.yaml",
            "INFRA_KNOWN_HOSTS": "git.example.com ssh-ed25519 AAAA",
        }
        self.secrets = {"REGISTRY_PASSWORD": "s3cret-registry", "INFRA_DEPLOY_KEY": "s3cret-key\ns3cret-end"}

    def git(self, *arguments: str, cwd: Path) -> str:
        """What git prints."""
        who = {
            f"GIT_{role}_{what}": "dev@example.com" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        return subprocess.run(
            ["git", *arguments], cwd=cwd, env={**os.environ, **who}, text=True, check=True, stdout=subprocess.PIPE
        ).stdout.strip()

    def repository(self, name: str) -> Path:
        """A folder with `bare.git` and its clone `work`."""
        folder = self.folder / name
        folder.mkdir()
        self.git("init", "--quiet", "--bare", "--initial-branch=main", "bare.git", cwd=folder)
        self.git("clone", "--quiet", "bare.git", "work", cwd=folder)
        return folder

    def commit(self, work: Path, file: str, text: str) -> str:
        """Committed and pushed; the commit's id."""
        (work / file).write_text(text)
        self.git("add", file, cwd=work)
        self.git("commit", "--quiet", "--message", f"feat: {file}", cwd=work)
        self.git("push", "--quiet", "origin", "HEAD:main", cwd=work)
        return self.git("rev-parse", "HEAD", cwd=work)

    def hook(self, name: str, script: str) -> None:
        """A hook of the manifests' repository."""
        hook = self.infra / "bare.git" / "hooks" / name
        hook.write_text(f"#!/bin/sh\n{script}\n")
        hook.chmod(0o755)

    def deployed(self) -> str:
        """What the repository of manifests has."""
        return self.git("show", "main:foreman.yaml", cwd=self.infra / "bare.git")

    def step(self, step: dict[str, Any], **overrides: str) -> tuple[int, str]:
        """Runs one step as the runner does: its exit code, and what it prints; no secret is printed or left behind."""
        contexts = {"vars": self.vars, "secrets": self.secrets}
        given = {**CD["jobs"]["deliver"]["env"], **step.get("env", {})}
        for name, value in given.items():
            if match := re.fullmatch(r"\$\{\{ (vars|secrets)\.(\w+) \}\}", value):
                given[name] = contexts[match[1]].get(match[2], "")
        (self.temporary / "script").write_text(step["run"])
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", self.temporary / "script"],
            cwd=self.workspace,
            env={
                "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
                "HOME": str(self.folder / "home"),
                "TMPDIR": str(self.folder / "home"),
                "RUNNER_TEMP": str(self.temporary),
                "GITHUB_PATH": str(self.temporary / "path"),
                "GITHUB_SHA": self.sha,
                "GITHUB_SERVER_URL": "https://git.example.com",
                "GITHUB_REPOSITORY": "team/foreman",
                "PLAYED": str(self.played),
                **given,
                **overrides,
            },
            text=True,
            check=False,
            timeout=100,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert "s3cret" not in done.stdout
        assert not [path for path in (self.folder / "home").rglob("*") if path.is_file()]
        return done.returncode, done.stdout

    def run(self) -> tuple[str, str]:
        """All steps, until one fails: its name ("" if none does), and what the last one printed."""
        said = ""
        for step in STEPS:
            code, said = self.step(step)
            if code:
                return step["name"], said
        return "", said


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """On loopback."""
    server = Registry(tmp_path)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def delivery(tmp_path: Path, registry: Registry) -> Delivery:
    """In which everything is set, and works."""
    assert shutil.which("skopeo"), "skopeo is not installed: apt-get install --no-install-recommends skopeo"
    return Delivery(tmp_path, registry)


def test_a_commit_is_delivered(delivery: Delivery, registry: Registry) -> None:
    """The image is in the registry by the commit's id, and the manifest names it; git.example.com is who it says."""
    assert delivery.run() == (
        "",
        f"set-image-tag: foreman.yaml on main: {delivery.image}:0.0.0 -> {delivery.image}:{delivery.sha}\n",
    )
    assert list(registry.manifests) == [f"/v2/team/foreman/manifests/{delivery.sha}"]
    assert delivery.deployed() == MANIFEST.format(image=delivery.image, tag=f'"{delivery.sha}"').strip()
    assert (delivery.played / "key").read_text() == "600\ns3cret-key\ns3cret-end\n"
    assert (delivery.played / "known_hosts").read_text() == "git.example.com ssh-ed25519 AAAA\n"
    assert {"StrictHostKeyChecking=yes", "BatchMode=yes", "git@git.example.com"} <= set(
        (delivery.played / "ssh").read_text().splitlines()
    )
    # Nothing that one step trusts of another stands where other jobs may write.
    assert {path.name for path in delivery.temporary.iterdir()} <= {"script", "path"}
    built = (delivery.played / "buildctl").read_text().splitlines()
    assert built[:3] == ["--addr", "tcp://build.example.com:1234", "build"]
    when = delivery.git("show", "--no-patch", "--format=%cI", cwd=delivery.workspace).strip()
    assert {
        f"build-arg:VERSION=1.2.3+g{delivery.sha[:12]}",
        f"build-arg:REVISION={delivery.sha}",
        f"build-arg:CREATED={when}",
    } <= set(built)
    # Again, as when somebody presses "re-run": nothing to change is no failure.
    assert delivery.run() == (
        "",
        f"set-image-tag: nothing to change: foreman.yaml has {delivery.image}:{delivery.sha} already\n",
    )


def test_a_slow_run_does_not_undo_a_newer_one(delivery: Delivery) -> None:
    """The older commit's image is pushed, the newer one stays deployed, and that is no failure."""
    older = delivery.sha
    delivery.sha = delivery.commit(delivery.workspace, "Dockerfile", "FROM scratch\n# newer\n")
    assert delivery.run()[0] == ""
    newer, delivery.sha = delivery.sha, older
    failed, said = delivery.run()
    assert (failed, f"which is newer than {older}" in said) == ("", True)
    assert newer in delivery.deployed()


@pytest.mark.parametrize(
    "name", ["IMAGE", "BUILDKIT_ADDRESS", "REGISTRY_USER", "INFRA_REPOSITORY", "INFRA_FILE", "INFRA_KNOWN_HOSTS"]
)
def test_a_missing_variable_is_named(delivery: Delivery, name: str) -> None:
    """By the first step, with where to set it, before anything is built."""
    del delivery.vars[name]
    assert delivery.run() == (
        STEPS[0]["name"],
        f"{name} is not set: add it in this repository's Settings, Actions, Variables\n",
    )


def test_all_that_is_missing_is_named_at_once(delivery: Delivery) -> None:
    """Secrets too; of the builder's three all or none."""
    delivery.vars.clear()
    delivery.secrets = {"BUILDKIT_CERT": "s3cret"}
    failed, said = delivery.run()
    assert failed == STEPS[0]["name"]
    assert [line.split()[0] for line in said.splitlines() if line.endswith("Variables")] == [
        *("IMAGE", "BUILDKIT_ADDRESS", "REGISTRY_USER", "INFRA_REPOSITORY", "INFRA_FILE", "INFRA_KNOWN_HOSTS")
    ]
    assert [line.split()[0] for line in said.splitlines() if line.endswith("Secrets")] == [
        *("REGISTRY_PASSWORD", "INFRA_DEPLOY_KEY", "BUILDKIT_CA", "BUILDKIT_KEY")
    ]


@pytest.mark.parametrize(
    "image",
    [
        *("foreman", "registry.example.com/foreman:latest", "registry.example.com/foreman@sha256:00"),
        *("team/foreman", "https://registry.example.com/team/foreman", "registry.example.com/team/foreman "),
        *("registry.example.com/Team/foreman", "registry.example.com/team/foreman/", '"registry.example.com/foreman"'),
    ],
)
def test_an_image_without_a_registry_or_with_a_tag_is_refused(delivery: Delivery, image: str) -> None:
    """By the first step, with an example."""
    delivery.vars["IMAGE"] = image
    failed, said = delivery.run()
    assert failed == STEPS[0]["name"]
    assert f"IMAGE is {image}: " in said


def test_the_builder_asks_who_we_are(delivery: Delivery) -> None:
    """With the three secrets set, buildctl gets them as files, which are gone afterwards."""
    delivery.secrets |= {"BUILDKIT_CA": "s3cret-a", "BUILDKIT_CERT": "s3cret-b", "BUILDKIT_KEY": "s3cret-c"}
    assert delivery.run()[0] == ""
    assert (delivery.played / "tls").read_text() == "s3cret-a\ns3cret-b\ns3cret-c\n"


@pytest.mark.parametrize("base", ["", "docker.io/library/python:3.11-slim@sha256:00"])
def test_a_base_image_can_be_pinned(delivery: Delivery, base: str) -> None:
    """BASE is what the Dockerfile builds upon; not set, nothing is said of it, and the Dockerfile's own holds."""
    delivery.vars["BASE"] = base
    assert delivery.run()[0] == ""
    built = (delivery.played / "buildctl").read_text().splitlines()
    given = [(before, line) for before, line in pairwise(built) if "build-arg:BASE" in line]
    assert given == ([("--opt", f"build-arg:BASE={base}")] if base else [])
    assert "ARG BASE=" in (ROOT / "Dockerfile").read_text()


def test_a_builder_that_cannot_be_reached(delivery: Delivery, registry: Registry) -> None:
    """The build is red with buildctl's words; nothing is pushed, nothing deployed."""
    (delivery.played / "no-builder").touch()
    failed, said = delivery.run()
    assert (failed, "connection refused" in said) == ("Build the image", True)
    assert not registry.manifests
    assert "0.0.0" in delivery.deployed()


@pytest.mark.parametrize("wrong", ["password", "authority", "port", "full"])
def test_a_registry_that_does_not_take_it(delivery: Delivery, registry: Registry, wrong: str) -> None:
    """Wrong password, unknown certificate, nobody there, no space: the push is red, and nothing is deployed."""
    match wrong:
        case "password":
            delivery.secrets["REGISTRY_PASSWORD"] = "s3cret-wrong"
        case "authority":
            del delivery.vars["REGISTRY_CA"]
        case "port":
            delivery.vars["IMAGE"] = "127.0.0.1:1/team/foreman"
        case _:
            registry.full = True
    failed, said = delivery.run()
    words = {
        "password": "invalid username/password",
        "authority": "certificate",
        "port": "connection refused",
        "full": "507",
    }
    assert (failed, words[wrong] in said) == ("Push the image", True), said
    assert not registry.manifests
    assert registry.asked is (wrong in {"password", "full"})  # the password went to nobody else
    assert "0.0.0" in delivery.deployed()


def test_a_conflict_is_solved_once_and_then_red(delivery: Delivery) -> None:
    """Somebody's push in between is kept and built upon; a branch that refuses us twice is red, and unchanged."""
    delivery.commit(delivery.infra / "work", "other.yaml", "a: 1\n")
    other = delivery.git("rev-parse", "main", cwd=delivery.infra / "bare.git")
    delivery.git("update-ref", "refs/heads/main", "main~1", cwd=delivery.infra / "bare.git")
    delivery.hook("update", f"env -u GIT_QUARANTINE_PATH git update-ref refs/heads/main {other}")
    assert delivery.run()[0] == ""
    assert delivery.git("rev-parse", "main~1", cwd=delivery.infra / "bare.git") == other
    before = delivery.deployed()
    delivery.sha = delivery.commit(delivery.workspace, "Dockerfile", "FROM scratch\n# newer\n")
    delivery.hook("pre-receive", "echo 'main is protected' >&2; exit 1")
    failed, said = delivery.run()
    assert failed == "Set the tag in the infrastructure repository"
    assert "the push to main was refused twice, so nothing is changed" in said
    assert "main is protected" in said
    assert delivery.deployed() == before


def test_another_branch(delivery: Delivery) -> None:
    """INFRA_BRANCH, where it is not the repository's own."""
    delivery.git("branch", "production", "main", cwd=delivery.infra / "bare.git")
    delivery.vars["INFRA_BRANCH"] = "production"
    assert "on production" in delivery.run()[1]
    assert "0.0.0" in delivery.deployed()


def test_a_builders_client_that_was_tampered_with_is_not_run(delivery: Delivery) -> None:
    """What is downloaded is unpacked only if it is what its pin says; then it is found by the steps after."""
    (step,) = (step for step in STEPS if step["name"] == "Get the tools")
    with tarfile.open(delivery.played / "release.tar.gz", "w:gz") as tar:
        tar.add(delivery.bin / "buildctl", "bin/buildctl")
    (delivery.bin / "buildctl").unlink()
    (delivery.bin / "curl").write_text('#!/bin/sh\ncp "$PLAYED/release.tar.gz" "$2"\n')
    (delivery.bin / "curl").chmod(0o755)
    # Of a pull request's job, on a runner without containers: it would be called where `deliver` says `git`.
    (delivery.temporary / "bin").mkdir()
    (delivery.temporary / "bin" / "git").write_text("a stranger's")
    code, said = delivery.step(step)
    assert (code, "FAILED" in said) == (1, True)
    assert not (delivery.temporary / "path").exists()
    pin = hashlib.sha256((delivery.played / "release.tar.gz").read_bytes()).hexdigest()
    assert delivery.step(step, SHA256_x86_64=pin, SHA256_aarch64=pin)[0] == 0
    folder = Path((delivery.temporary / "path").read_text().removesuffix("\n"))
    assert [path.name for path in folder.iterdir()] == ["buildctl"]
    assert os.access(folder / "buildctl", os.X_OK)
