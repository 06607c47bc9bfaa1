"""`deploy/scripts/set-image-tag`: on texts, and on real repositories that others push to as well."""

from __future__ import annotations

import os
import runpy
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "scripts" / "set-image-tag"
IMAGE = "registry.example.com:5000/team/foreman"
OLD, NEW = "1" * 39 + "a", "2" * 39 + "b"
MANIFEST = f"""\
apiVersion: apps/v1
kind: Deployment
spec:
  template:
    spec:
      containers:
        - name: foreman
          image: {IMAGE}:{OLD}
          ports: []  # image: {IMAGE}:{OLD}
        - name: exporter
          image: {IMAGE}-exporter:{OLD}
"""
IDENTITY = {
    "GIT_AUTHOR_NAME": "delivery",
    "GIT_AUTHOR_EMAIL": "delivery@example.com",
    "GIT_COMMITTER_NAME": "delivery",
    "GIT_COMMITTER_EMAIL": "delivery@example.com",
}

_script: dict[str, Any] = runpy.run_path(str(SCRIPT))
edited: Callable[[str, str, str], tuple[str, str]] = _script["edited"]
Refused: type[Exception] = _script["Refused"]


# On texts.


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("image: {0}:old", "image: {0}:new"),
        ("  - image: {0}:old", "  - image: {0}:new"),
        ("  image: '{0}:old'", "  image: '{0}:new'"),
        ('  image: "{0}:old"  # why', '  image: "{0}:new"  # why'),
        ("  image:   {0}:old\t# {{a: b}}\r", "  image:   {0}:new\t# {{a: b}}\r"),
        ("  image: {0}", "  image: {0}:new"),
        ("  image: {0}:old@sha256:" + "0" * 64, "  image: {0}:new"),
        ("  image: '{0}@sha256:" + "0" * 64 + "' # pinned", "  image: '{0}:new' # pinned"),
    ],
)
def test_a_manifest_names_the_image_in_many_ways(line: str, wanted: str) -> None:
    """Quoted, commented, with a digest (which belonged to the old tag), without a tag: that changes, no other byte."""
    before, after = (f"a: 1\r\n{text.format(IMAGE)}\n\n# end" for text in (line, wanted))
    assert edited(before, IMAGE, "new")[0] == after


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ("- name: {0}\n  newTag: old\n", "- name: {0}\n  newTag: new\n"),
        (
            "  - name: foreman\n    newName: {0}\n    newTag: old # x\n",
            "  - name: foreman\n    newName: {0}\n    newTag: new # x\n",
        ),
        ('- newTag: "old"\r\n  name: "{0}"\r\n', '- newTag: "new"\r\n  name: "{0}"\r\n'),
        (
            "# them\n- name: a\n  newTag: old\n- name: {0}\n  newTag: 'old'",
            "# them\n- name: a\n  newTag: old\n- name: {0}\n  newTag: 'new'",
        ),
    ],
)
def test_a_kustomization_names_it_in_images(entry: str, wanted: str) -> None:
    """By name, or by a newName; the tags of the entries beside it stay."""
    before, after = (f"resources: [x.yaml]\nimages:\n{text}".format(IMAGE) for text in (entry, wanted))
    assert edited(before, IMAGE, "new")[0] == after


def test_the_overlay_that_we_ship_is_one_of_them() -> None:
    """The kustomization of deploy/gitops, as a cluster's repository has it."""
    overlay = (SCRIPT.parents[1] / "gitops" / "overlays" / "example" / "kustomization.yaml").read_text()
    text, there = edited(overlay, "registry.example.org/you/foreman", NEW)
    assert text == overlay.replace(f'newTag: "{there}"', f'newTag: "{NEW}"') != overlay


@pytest.mark.parametrize(
    "text",
    [
        "image: {0}-exporter:old",
        "image: {0}/worker:old",
        "image: other/{0}:old",
        "image: registry.example.net:5000/team/foreman:old",
        "image: team/foreman:old",
        "image: registry.example.com:5000/team/foremen:old",
        "image: registryxexample.com:5000/team/foreman:old",
        "# image: {0}:old",
        "a: b  # image: {0}:old",
        "myimage: {0}:old",
        "image: {0}:old and more",
        "image: {0}:old#no-comment",
        "image: '{0}:old",
        "data:\n  deployment.yaml: |\n    image: {0}:old\n",
        "args:\n  - >-  # folded\n    image: {0}:old\n\n    image: {0}:old\n",
        "images:\n- name: {0}-exporter\n  newTag: old",
        "images:\n- name: {0}\n  newName: other/foreman\n  newTag: old",
        "patches:\n- name: {0}\n  newTag: old",
        "images: []\nothers:\n- name: {0}\n  newTag: old",
        "images:\n# - name: {0}\n#   newTag: old",
        "images:\n- name: a\n---\n- name: {0}\n  newTag: old",
        "images:\n- {{name: {0}, newTag: old}}",
        "",
    ],
)
def test_what_only_looks_like_it_is_another_image(text: str) -> None:
    """A longer or shorter name, another registry, a comment, a text within the text: not found, which is said."""
    with pytest.raises(Refused, match=f"no line of {IMAGE}"):
        edited(text.format(IMAGE), IMAGE, "new")


def test_what_follows_a_text_is_read_again() -> None:
    """A script in a manifest hides the image lines within it, and not the one after it."""
    text = "- command: >\n\n    image: {0}:{2}\n  args:\n    - |\n      image: {0}:{2}\n  image: {0}:{1}\n"
    assert edited(text.format(IMAGE, "old", "old"), IMAGE, "new") == (text.format(IMAGE, "new", "old"), "old")


def test_all_places_of_one_version_move_together() -> None:
    """A pod that runs the image twice, as an init container too, gets both set."""
    text = f"initContainers:\n- image: {IMAGE}:old\ncontainers:\n- image: '{IMAGE}:old'\n"
    assert edited(text, IMAGE, "new") == (text.replace(":old", ":new"), "old")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- image: {0}:old\n- image: {0}:older\n", r"several versions of .*: old \(line 1\), older \(line 2\)"),
        ("- image: {0}:new\n- image: {0}\n", r"several versions of .*: new \(line 1\), no tag \(line 2\)"),
        ("images:\n- name: {0}\n  digest: sha256:00\n  newTag: old\n", r"line 3: a digest, which wins over newTag"),
        ("images:\n- name: {0}\n  newName: {0}\n", r"line 3: an entry of `images:` without a newTag"),
    ],
)
def test_what_is_ambiguous_is_refused(text: str, says: str) -> None:
    """Two versions of the image, or a digest that would hide the tag: a person decides, and is told the lines."""
    with pytest.raises(Refused, match=says):
        edited(text.format(IMAGE), IMAGE, "new")


TAGS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,39}", fullmatch=True) | st.from_regex(r"[0-9e]{40}", fullmatch=True)
OTHERS = st.lists(
    st.sampled_from(
        [
            "",
            "\r",
            "# é \udcff",
            f"- image: {IMAGE}-exporter:x",
            f"other: {IMAGE}:x\t",
            "  - |\r",
            "key: value  ",
            "\x85\u2028\x0c",
        ]
    )
)


@given(
    st.tuples(OTHERS, OTHERS), TAGS, TAGS, st.sampled_from(["", "'", '"']), st.sampled_from(["", "  # c", "\r", " "])
)
def test_only_the_wanted_bytes_change(
    around: tuple[list[str], list[str]], old: str, new: str, quote: str, rest: str
) -> None:
    """Whatever surrounds the line stays; again, it changes nothing; YAML reads the tag as that text."""
    before, after = around
    line = "image: {q}{i}:{t}{q}{r}"
    text, there = edited("\n".join([*before, line.format(q=quote, i=IMAGE, t=old, r=rest), *after]), IMAGE, new)
    assert (text, there) == ("\n".join([*before, line.format(q=quote, i=IMAGE, t=new, r=rest), *after]), old)
    assert edited(text, IMAGE, new) == (text, new)
    kustomization = f"images:\n- name: {IMAGE}\n  newTag: {quote}{old}{quote}{rest}\n"
    text, _ = edited(kustomization, IMAGE, new)
    if old != new:
        assert yaml.safe_load(text)["images"][0]["newTag"] == new
    assert edited(text, IMAGE, new) == (text, new)


# On repositories.


class Infra:
    """A bare repository `infra.git` with one manifest, and somebody who pushes to it as well."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bare = folder / "infra.git"
        self.home = folder / "home"
        self.home.mkdir()
        self.git("init", "--quiet", "--bare", "--initial-branch=main", str(self.bare), cwd=folder)
        self.git("clone", "--quiet", str(self.bare), "colleague", cwd=folder)
        self.colleague = folder / "colleague"
        self.push("apps/foreman.yaml", MANIFEST)

    @property
    def environment(self) -> dict[str, str]:
        """Nobody's own settings; temporary files where a test can see what is left of them."""
        outside = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        here = {"HOME": str(self.home), "TMPDIR": str(self.home), "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}
        return {**outside, **IDENTITY, **here}

    def git(self, *arguments: str, cwd: Path | None = None) -> str:
        """What git prints, in the bare repository if nothing else is said."""
        return subprocess.run(
            ["git", *arguments],
            cwd=cwd or self.bare,
            env=self.environment,
            text=True,
            check=True,
            stdout=subprocess.PIPE,
        ).stdout

    def push(self, file: str, text: str) -> None:
        """The colleague commits and pushes."""
        path = self.colleague / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
        self.git("add", file, cwd=self.colleague)
        self.git("commit", "--quiet", "--message", f"feat: {file}", cwd=self.colleague)
        self.git("push", "--quiet", "origin", "HEAD:main", cwd=self.colleague)

    def hook(self, name: str, script: str) -> None:
        """A hook of the bare repository."""
        path = self.bare / "hooks" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def file(self, branch: str = "main") -> str:
        """The manifest, as it is in the bare repository."""
        return subprocess.run(
            ["git", "show", f"{branch}:apps/foreman.yaml"], cwd=self.bare, check=True, stdout=subprocess.PIPE
        ).stdout.decode()

    def commits(self) -> int:
        """How many there are on main."""
        return int(self.git("rev-list", "--count", "main"))

    def set(
        self, *more: str, tag: str = NEW, repository: str = "", env: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """The script's exit code, and what it says; it may have left nothing behind."""
        done = subprocess.run(
            [
                SCRIPT,
                repository or str(self.bare),
                "--file",
                "apps/foreman.yaml",
                "--image",
                IMAGE,
                "--tag",
                tag,
                *more,
            ],
            env={name: value for name, value in {**self.environment, **(env or {})}.items() if value},
            text=True,
            check=False,
            timeout=100,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert not list(self.home.iterdir())
        return done.returncode, done.stdout


@pytest.fixture
def infra(tmp_path: Path) -> Infra:
    """With one manifest, at OLD."""
    return Infra(tmp_path)


def test_the_tag_is_set_and_pushed(infra: Infra) -> None:
    """One commit, by whom the environment says, with a message that says what and from what; other lines stay."""
    code, said = infra.set()
    assert code == 0
    assert said == f"set-image-tag: apps/foreman.yaml on main: {IMAGE}:{OLD} -> {IMAGE}:{NEW}\n"
    assert infra.file() == MANIFEST.replace(
        f"image: {IMAGE}:{OLD}\n          ports", f"image: {IMAGE}:{NEW}\n          ports"
    )
    log = infra.git("log", "-1", "--format=%an %ae %s%n%b")
    assert (
        log
        == f"delivery delivery@example.com chore: foreman {NEW}\napps/foreman.yaml: {IMAGE}:{OLD} -> {IMAGE}:{NEW}\n\n"
    )


def test_nothing_to_change_is_a_success(infra: Infra) -> None:
    """The same again is no second commit, and says so."""
    infra.set()
    code, said = infra.set()
    assert (code, infra.commits()) == (0, 2)
    assert said == f"set-image-tag: nothing to change: apps/foreman.yaml has {IMAGE}:{NEW} already\n"


@pytest.mark.parametrize("form", [b"# \xff\r\nimage: %b:%b\r\n\x00", b"# x\nimage: %b:%b", b"# x\r\nimage: %b:%b\n"])
def test_bytes_that_are_no_text_and_line_ends_stay(infra: Infra, form: bytes) -> None:
    """CRLF, LF, both, no newline at the end, bytes that are no UTF-8: kept, even where git is set to convert."""
    raw = form % (IMAGE.encode(), OLD.encode())
    (infra.colleague / "apps/foreman.yaml").write_bytes(raw)
    infra.git("commit", "--quiet", "--all", "--message", "x", cwd=infra.colleague)
    infra.git("push", "--quiet", "origin", "HEAD:main", cwd=infra.colleague)
    converts = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.autocrlf", "GIT_CONFIG_VALUE_0": "true"}
    assert infra.set(env=converts)[0] == 0
    shown = subprocess.run(
        ["git", "show", "main:apps/foreman.yaml"], cwd=infra.bare, check=True, stdout=subprocess.PIPE
    )
    assert shown.stdout == raw.replace(OLD.encode(), NEW.encode())


def test_somebody_elses_push_in_between_is_kept(infra: Infra) -> None:
    """A push that comes between our clone and our push is not lost, and ours comes on top of it."""
    other = MANIFEST.replace("ports: []", "ports: [8080]")
    (infra.colleague / "apps/foreman.yaml").write_text(other)
    infra.git("commit", "--quiet", "--all", "--message", "feat: a port", cwd=infra.colleague)
    infra.git("push", "--quiet", "origin", "HEAD:refs/heads/theirs", cwd=infra.colleague)
    # The first push finds main moved to theirs while it was under way.
    infra.hook("update", 'env -u GIT_QUARANTINE_PATH git update-ref refs/heads/main "$(git rev-parse theirs)"')
    code, said = infra.set()
    assert (code, infra.commits()) == (0, 3), said
    assert "ports: [8080]" in infra.file()
    assert f"image: {IMAGE}:{NEW}\n" in infra.file()


def test_a_push_in_between_that_set_the_same_tag_is_enough(infra: Infra) -> None:
    """Two runs of one commit, of which the other was quicker: nothing left to do, and no empty commit."""
    (infra.colleague / "apps/foreman.yaml").write_text(MANIFEST.replace(OLD, NEW))
    infra.git("commit", "--quiet", "--all", "--message", "chore: quicker", cwd=infra.colleague)
    infra.git("push", "--quiet", "origin", "HEAD:refs/heads/theirs", cwd=infra.colleague)
    infra.hook("update", 'env -u GIT_QUARANTINE_PATH git update-ref refs/heads/main "$(git rev-parse theirs)"')
    code, said = infra.set()
    assert (code, infra.commits()) == (0, 2), said
    assert "nothing to change" in said


def test_a_remote_that_refuses_is_asked_twice_and_then_it_fails(infra: Infra) -> None:
    """A protected branch: tried once more, then an error with the remote's own words, and nothing is changed."""
    infra.hook("pre-receive", "echo x >> asked; echo main is protected >&2; exit 1")
    code, said = infra.set()
    assert (code, infra.commits(), infra.file()) == (1, 1, MANIFEST)
    assert (infra.bare / "asked").read_text() == "x\nx\n"
    assert "the push to main was refused twice, so nothing is changed" in said
    assert "main is protected" in said


def test_a_remote_that_cannot_be_reached(infra: Infra) -> None:
    """One line of ours and git's reason, at once, without a question at a terminal."""
    code, said = infra.set(repository="http://127.0.0.1:1/infra.git")
    assert code == 1
    assert said.startswith("set-image-tag: git clone ended with 128: ")
    assert "127.0.0.1" in said


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--branch", "production"], "Remote branch production not found"),
        (["--file", "apps/other.yaml"], "apps/other.yaml: no such file on branch main"),
        (["--file", "../home"], "../home: no such file on branch main"),
        (["--file", "/etc/hostname"], "/etc/hostname: no such file on branch main"),
        (["--image", "registry.example.com/foreman"], "no line of registry.example.com/foreman"),
    ],
)
def test_what_is_not_there_is_named(infra: Infra, more: list[str], says: str) -> None:
    """A wrong branch, file or image: an error that names it, and nothing is changed."""
    code, said = infra.set(*more)
    assert (code, infra.commits()) == (1, 1)
    assert says in said


def test_a_link_that_leads_out_of_the_repository_is_not_followed(infra: Infra) -> None:
    """Whoever may push there does not get to write files of the machine that runs this."""
    outside = infra.folder / "outside.yaml"
    outside.write_text(MANIFEST)
    (infra.colleague / "link.yaml").symlink_to(outside)
    infra.git("add", "link.yaml", cwd=infra.colleague)
    infra.git("commit", "--quiet", "--message", "feat: a link", cwd=infra.colleague)
    infra.git("push", "--quiet", "origin", "HEAD:main", cwd=infra.colleague)
    code, said = infra.set("--file", "link.yaml")
    assert (code, "link.yaml: no such file on branch main" in said) == (1, True)
    assert outside.read_text() == MANIFEST


def test_another_branch(infra: Infra) -> None:
    """With a branch given it is that one, and main stays."""
    infra.git("branch", "production", "main")
    assert infra.set("--branch", "production")[0] == 0
    assert NEW in infra.file("production")
    assert infra.file() == MANIFEST


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--tag", "a/b"], "--tag: a tag is at most 128 letters"),
        (["--tag", "é"], "--tag"),
        (["--tag", "x" * 129], "--tag"),
        (["--tag", "a\nb"], "--tag"),
        (["--tag", ""], "--tag"),
        (["--image", f"{IMAGE}:x"], "--image: the name alone"),
        (["--image", f"{IMAGE}@sha256:00"], "--image: the name alone"),
        (["--image", "https://registry.example.com/foreman"], "--image: the name alone"),
        (["--image", ""], "--image: the name alone"),
    ],
)
def test_what_is_no_tag_and_no_name_is_refused_at_once(infra: Infra, more: list[str], says: str) -> None:
    """Before anything is cloned, as a mistake of the command line."""
    code, said = infra.set(*more, repository="http://127.0.0.1:1/")
    assert code == 2
    assert says in said


def test_a_password_in_the_url_is_refused_and_not_shown(infra: Infra) -> None:
    """It would be seen in the list of processes; nor is it printed on the way out."""
    code, said = infra.set(repository="https://ci:s3cret@git.example.com/infra.git")
    assert code == 2
    assert "GIT_ASKPASS" in said
    assert "s3cret" not in said


def test_git_s_words_lose_what_a_setting_put_into_the_url(infra: Infra) -> None:
    """A machine whose git settings add a token to URLs does not show it in the error either."""
    code, said = infra.set(
        repository="http://127.0.0.1:1/infra.git",
        env={
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "url.http://ci:s3cret@127.0.0.1:1/.insteadOf",
            "GIT_CONFIG_VALUE_0": "http://127.0.0.1:1/",
        },
    )
    assert code == 1
    assert "s3cret" not in said


@pytest.mark.parametrize("role", ["AUTHOR", "COMMITTER"])
def test_nobody_s_name_is_made_up(infra: Infra, role: str) -> None:
    """Without an author it fails, and says what to set, rather than commit as root@some-host."""
    code, said = infra.set(env={f"GIT_{role}_NAME": "", f"GIT_{role}_EMAIL": ""})
    assert (code, infra.commits()) == (1, 1)
    assert "GIT_AUTHOR_NAME, GIT_AUTHOR_EMAIL" in said


def test_it_can_be_run_as_it_is() -> None:
    """Executable, for Python 3, and its help names all it takes."""
    assert SCRIPT.stat().st_mode & stat.S_IXOTH
    helped = subprocess.run([SCRIPT, "--help"], text=True, check=True, stdout=subprocess.PIPE).stdout
    assert all(option in helped for option in ("--file", "--image", "--tag", "--branch", "--service"))


# Which of two commits is the newer.


class Service:
    """The service's repository: `service.git`, and its clone as a job has it, with commits one on top of the other."""

    def __init__(self, infra: Infra) -> None:
        self.infra = infra
        self.clone = infra.folder / "service"
        infra.git("init", "--quiet", "--bare", "--initial-branch=main", "service.git", cwd=infra.folder)
        infra.git("clone", "--quiet", "service.git", "service", cwd=infra.folder)
        infra.git("clone", "--quiet", "service.git", "developer", cwd=infra.folder)
        self.first, self.second = self.commit(), self.commit()
        infra.git("fetch", "--quiet", cwd=self.clone)
        infra.git("checkout", "--quiet", "main", cwd=self.clone)

    def commit(self) -> str:
        """A developer's, pushed; its id."""
        where = self.infra.folder / "developer"
        self.infra.git("commit", "--quiet", "--allow-empty", "--message", "feat: x", cwd=where)
        self.infra.git("push", "--quiet", "origin", "HEAD:main", cwd=where)
        return self.infra.git("rev-parse", "HEAD", cwd=where).strip()

    def set(self, tag: str) -> tuple[int, str]:
        """As the job of that commit does."""
        return self.infra.set("--service", str(self.clone), tag=tag)


@pytest.fixture
def service(infra: Infra) -> Service:
    """With two commits."""
    return Service(infra)


def test_a_newer_commit_replaces_an_older_one_and_never_the_reverse(infra: Infra, service: Service) -> None:
    """A run that was slow, or is run again, leaves the newer commit where it is; that is no failure."""
    assert service.set(service.first)[0] == 0  # what was there is no commit of the service's
    assert service.set(service.second)[0] == 0
    code, said = service.set(service.first)
    assert (code, infra.commits()) == (0, 3)
    assert f"{IMAGE}:{service.second}, which is newer than {service.first}" in said


def test_a_commit_that_came_after_the_job_s_clone_is_known_as_newer(infra: Infra, service: Service) -> None:
    """The older run has never heard of the newer commit, since it was pushed later: it looks, and leaves it."""
    third = service.commit()
    infra.push("apps/foreman.yaml", MANIFEST.replace(OLD, third))
    code, said = service.set(service.second)
    assert (code, infra.commits()) == (0, 2)
    assert f"{third}, which is newer than {service.second}" in said


def test_the_newer_run_was_quicker_in_the_last_moment(infra: Infra, service: Service) -> None:
    """The newer tag comes between the older run's clone and its push: the second look sees it."""
    (infra.colleague / "apps/foreman.yaml").write_text(MANIFEST.replace(OLD, service.second))
    infra.git("commit", "--quiet", "--all", "--message", "chore: newer", cwd=infra.colleague)
    infra.git("push", "--quiet", "origin", "HEAD:refs/heads/theirs", cwd=infra.colleague)
    infra.hook("update", 'env -u GIT_QUARANTINE_PATH git update-ref refs/heads/main "$(git rev-parse theirs)"')
    code, said = service.set(service.first)
    assert (code, infra.commits()) == (0, 2), said
    assert "which is newer than" in said


def test_after_a_rollback_the_next_commit_is_delivered(infra: Infra, service: Service) -> None:
    """Somebody set an older commit by hand: that is no reason to hold back the next one."""
    third = service.commit()
    infra.push("apps/foreman.yaml", MANIFEST.replace(OLD, service.first))
    infra.git("fetch", "--quiet", cwd=service.clone)
    assert service.set(third)[0] == 0
    assert third in infra.file()


def test_a_tag_that_is_no_commit_is_replaced(infra: Infra, service: Service) -> None:
    """What was there before the first delivery, even if it has the name of a branch."""
    infra.push("apps/foreman.yaml", MANIFEST.replace(OLD, "main"))
    assert service.set(service.first)[0] == 0
    assert service.first in infra.file()


def test_a_commit_of_a_rewritten_history_is_replaced(infra: Infra, service: Service) -> None:
    """What is deployed exists nowhere any more: nothing newer stands on it, so the new commit is set."""
    infra.push("apps/foreman.yaml", MANIFEST.replace(OLD, "f" * 40))
    assert service.set(service.second)[0] == 0
    assert service.second in infra.file()


def test_when_it_cannot_be_known_nothing_is_changed(infra: Infra, service: Service) -> None:
    """A shallow clone, a tag that is no commit, a service that cannot be reached: an error, not a guess."""
    infra.push("apps/foreman.yaml", MANIFEST.replace(OLD, "f" * 40))
    (infra.folder / "service.git").rename(infra.folder / "gone.git")
    code, said = service.set(service.second)
    assert (code, "git fetch" in said) == (1, True)
    code, said = service.set("e" * 40)
    assert (code, "is no commit of" in said) == (1, True)
    infra.git("clone", "--quiet", "--depth=1", f"file://{infra.folder}/gone.git", "shallow", cwd=infra.folder)
    service.clone = infra.folder / "shallow"
    code, said = service.set(service.second)
    assert (code, "is a shallow clone" in said) == (1, True)
    assert infra.commits() == 2
