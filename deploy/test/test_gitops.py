"""What `deploy/gitops` makes of a cluster: right by Kubernetes' own schemas, as tight as it says, and it runs."""

from __future__ import annotations

import base64
import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fake_sops
import pytest
import yaml
from conftest import Run
from pytest_twisted import ensureDeferred

from foreman.config import SETTINGS, Configuration
from foreman.durations import parse_duration, parse_size
from foreman.errors import ConfigurationError
from foreman.test.harness import ask, daemon, fake_ollama
from foreman.web.site import BODIES_AT_ONCE

Object = dict[str, Any]

# Of the example's secrets alone, which foreman refuses.  It is not beside them, so that nobody takes it for his own.
THROWN_AWAY = "AGE-SECRET-KEY-1WSVG8G8R3ZN480F4XKXU29Q0MCZDMFFZ68MJNM36GYP6SE0ER3GSEGM7AJ"  # gitleaks:allow

SECRETS = {setting.variable for setting in SETTINGS if setting.secret}
KNOWN = {variable for setting in SETTINGS for variable in setting.variables}


def documents(path: Path) -> list[Object]:
    """The objects of a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def build(folder: Path) -> list[Object]:
    """What `kustomize build` makes of a folder, as far as the fields used here go; it knows no others.

    One thing is left out: the hash at the end of the generated ConfigMap's name, and of what refers to it.
    """
    top = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert (top["apiVersion"], top["kind"]) == ("kustomize.config.k8s.io/v1beta1", "Kustomization")
    assert set(top) <= {"apiVersion", "kind", "namespace", "resources", "images", "configMapGenerator"}
    forgotten = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml", *top["resources"]}
    assert not forgotten, "in no `resources`"
    made: list[Object] = []
    for name in top["resources"]:
        made += build(folder / name) if (folder / name).is_dir() else documents(folder / name)
    for generator in top.get("configMapGenerator", ()):
        assert set(generator) == {"name", "envs"}
        lines = [line for file in generator["envs"] for line in (folder / file).read_text().splitlines()]
        pairs = [line.split("=", 1) for line in lines if line and not line.startswith("#")]
        data = {name: value for name, value in pairs}  # noqa: C416 - two of the same name are an error
        assert len(data) == len(pairs)
        made.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data})
    for image in top.get("images", ()):
        assert set(image) == {"name", "newName", "newTag"}
        assert isinstance(image["newTag"], str), "kustomize takes no number"
        for container in containers(made):
            if container["image"].split(":")[0] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    for each in made if "namespace" in top else ():
        each["metadata"]["name" if each["kind"] == "Namespace" else "namespace"] = top["namespace"]
    return made


def containers(made: list[Object]) -> Iterator[Object]:
    """Every container of every deployment."""
    for each in made:
        if each["kind"] == "Deployment":
            pod = each["spec"]["template"]["spec"]
            yield from (*pod["containers"], *pod.get("initContainers", ()))


@pytest.fixture(scope="session")
def gitops(root: Path) -> Path:
    """The folder itself."""
    return root / "deploy" / "gitops"


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The key that the example's secrets were made for, as a file."""
    file = tmp_path_factory.mktemp("key") / "thrown-away.agekey"
    file.write_text(THROWN_AWAY + "\n")
    return file


@pytest.fixture(scope="session")
def objects(gitops: Path, key: Path) -> dict[tuple[str, str], Object]:
    """What Flux applies for the example, by kind and name: built, and decrypted."""
    made = build(gitops / "overlays" / "example")
    plain = [decrypted(each, key) if "sops" in each else each for each in made]
    return {(each["kind"], each["metadata"]["name"]): each for each in plain}


def decrypted(built: Object, key: Path) -> Object:
    """As Flux does it: after the build, which gave the object a namespace."""
    plain = fake_sops.decrypt({**built, "metadata": {"name": built["metadata"]["name"]}}, key)
    return {**plain, "metadata": built["metadata"]}


@pytest.fixture
def pod(objects: dict[tuple[str, str], Object]) -> Object:
    """The pod's spec."""
    spec: Object = objects["Deployment", "foreman"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def container(pod: Object) -> Object:
    """The only container of the pod."""
    (only,) = pod["containers"]
    assert "initContainers" not in pod
    assert isinstance(only, dict)
    return only


@pytest.fixture
def environment(container: Object, objects: dict[tuple[str, str], Object]) -> dict[str, str]:
    """The container's environment, as the kubelet makes it: `env` wins."""
    (source,) = container["envFrom"]
    settings = objects["ConfigMap", source["configMapRef"]["name"]]["data"]
    return {**settings, **{each["name"]: each["value"] for each in container["env"]}}


@pytest.fixture
def configuration(environment: dict[str, str], tmp_path: Path) -> Configuration:
    """The same as foreman reads it, with two secrets that are somebody's own."""
    (tmp_path / "secret").write_text("s3cret")
    files = {name: str(tmp_path / "secret") for name in environment if name.endswith("_FILE")}
    return Configuration.from_environment({**environment, **files})


# -- right ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_kubernetes_knows_every_field(
    run: Run, objects: dict[tuple[str, str], Object], tmp_path: Path, version: str
) -> None:
    """A cluster, from the oldest with ReadWriteOncePod to the newest, takes each object as it is written."""
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(objects.values()))
    told = run("kubernetes-validate", "--strict", "-k", version, tmp_path / "all.yaml")
    assert told.count(" passed ") == len(objects)


def test_a_mistyped_field_is_found(run: Run, objects: dict[tuple[str, str], Object], tmp_path: Path) -> None:
    """A field that Kubernetes does not know does not pass for one that it does."""
    deployment = copy.deepcopy(objects["Deployment", "foreman"])
    deployment["spec"]["template"]["spec"]["enableServiceLink"] = False
    (tmp_path / "deployment.yaml").write_text(yaml.safe_dump(deployment))
    assert "enableServiceLink" in run("kubernetes-validate", "--strict", tmp_path / "deployment.yaml", fails=True)


def test_flux_follows_the_overlay(gitops: Path, objects: dict[tuple[str, str], Object]) -> None:
    """Flux finds the folder, decrypts what is in it, and gives foreman five minutes more than its end may take."""
    source, sync = documents(gitops / "flux.yaml")
    assert (source["apiVersion"], source["kind"]) == ("source.toolkit.fluxcd.io/v1", "GitRepository")
    assert (sync["apiVersion"], sync["kind"]) == ("kustomize.toolkit.fluxcd.io/v1", "Kustomization")
    assert set(source["spec"]) == {"interval", "url", "ref", "secretRef"}
    spec = sync["spec"]
    assert set(spec) == {*("interval", "retryInterval", "timeout", "sourceRef", "path", "prune", "wait", "decryption")}
    assert spec["sourceRef"] == {"kind": "GitRepository", "name": source["metadata"]["name"]}
    assert source["metadata"]["namespace"] == sync["metadata"]["namespace"] == "flux-system"
    assert (gitops / Path(spec["path"]).relative_to("foreman") / "kustomization.yaml").is_file()
    assert spec["decryption"] == {"provider": "sops", "secretRef": {"name": "sops-age"}}
    pod = objects["Deployment", "foreman"]["spec"]["template"]["spec"]
    assert all(re.fullmatch("[0-9]+[smh]", spec[name]) for name in ("interval", "retryInterval", "timeout"))
    assert parse_duration(spec["timeout"]) >= pod["terminationGracePeriodSeconds"] + 5 * 60


def test_what_is_gone_from_git_does_not_delete_the_queue(gitops: Path, objects: dict[tuple[str, str], Object]) -> None:
    """Flux deletes what is no longer in git, but never the volume, nor the namespace with it."""
    assert documents(gitops / "flux.yaml")[1]["spec"]["prune"] is True
    for name in (("PersistentVolumeClaim", "foreman"), ("Namespace", "foreman")):
        assert objects[name]["metadata"]["annotations"]["kustomize.toolkit.fluxcd.io/prune"] == "disabled"
    page = (gitops.parents[1] / "docs" / "deploy" / "gitops.md").read_text()
    removed = re.findall("^kubectl delete (.+?)  ", page, re.MULTILINE)
    assert removed == ["-f flux.yaml", "namespace foreman"]  # else Flux would make the namespace anew


def test_calls_find_their_way(objects: dict[tuple[str, str], Object], container: Object, environment: Object) -> None:
    """From the ingress by the service to the port that foreman listens on."""
    backend = objects["Ingress", "foreman"]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    service = objects["Service", backend["name"]]["spec"]
    (port,) = service["ports"]
    assert port["name"] == backend["port"]["name"]
    labels = objects["Deployment", "foreman"]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    (listens,) = container["ports"]
    assert port["targetPort"] == listens["name"]
    assert environment["FOREMAN_ADDR"] == f":{listens['containerPort']}"


# -- tight ------------------------------------------------------------------------------------------------------------


def test_it_has_no_more_rights_than_it_needs(root: Path, pod: Object, container: Object) -> None:
    """Not root, no capability, no way to more, no key of the cluster; nothing of the node's own."""
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        **dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), 10001),
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert re.search(r"^USER 10001:10001$", (root / "Dockerfile").read_text(), re.MULTILINE)
    assert pod["automountServiceAccountToken"] is False
    assert not {"serviceAccountName", "hostNetwork", "hostPID", "hostIPC", "hostUsers"} & set(pod)
    assert [set(volume) - {"name"} for volume in pod["volumes"]] == [
        {"persistentVolumeClaim"},
        {"secret"},
        {"emptyDir"},
    ]
    assert all("hostPort" not in port for port in container["ports"])


def test_its_namespace_refuses_anything_looser(objects: dict[tuple[str, str], Object]) -> None:
    """The cluster itself holds every pod there to the strictest of its standards."""
    assert objects["Namespace", "foreman"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    elsewhere = [name for name, each in objects.items() if each["metadata"].get("namespace") != "foreman"]
    assert elsewhere == [("Namespace", "foreman")]


def test_whatever_it_writes_has_a_place(pod: Object, container: Object, configuration: Configuration) -> None:
    """The root is read-only: the database is on the volume; /tmp and memory have room for all bodies that wait."""
    places = {each["mountPath"]: each["name"] for each in container["volumeMounts"] if not each.get("readOnly")}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert "persistentVolumeClaim" in volumes[places[str(Path(configuration.db).parent)]]
    room = volumes[places["/tmp"]]["emptyDir"]["sizeLimit"]  # noqa: S108 - the container's own
    bodies = BODIES_AT_ONCE * configuration.max_body
    assert parse_size(f"{room}B") >= bodies
    assert parse_size(f"{container['resources']['limits']['memory']}B") >= 1.5 * bodies


def test_no_secret_is_in_the_environment(environment: dict[str, str], container: Object, pod: Object) -> None:
    """Secrets are files that foreman alone reads: an environment is what `kubectl describe` shows."""
    assert not SECRETS & set(environment)
    assert {"FOREMAN_TOKEN_FILE"} <= set(environment)
    assert all(set(each) == {"name", "value"} for each in container["env"])
    assert all(set(each) == {"configMapRef"} for each in container["envFrom"])
    (secret,) = (each["secret"] for each in pod["volumes"] if "secret" in each)
    assert secret["defaultMode"] == 0o440


def test_each_secret_file_is_there(
    environment: dict[str, str], container: Object, pod: Object, objects: dict[tuple[str, str], Object]
) -> None:
    """Each file that a setting names is a key of the Secret that is mounted there."""
    (volume,) = (each for each in pod["volumes"] if "secret" in each)
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == volume["name"])
    files = {value for name, value in environment.items() if name.endswith("_FILE")}
    keys = objects["Secret", volume["secret"]["secretName"]]["stringData"]
    assert files == {f"{mount['mountPath']}/{key}" for key in keys}


def test_there_is_never_a_second_one(objects: dict[tuple[str, str], Object]) -> None:
    """One pod, gone before the next one comes, on a volume that takes one pod."""
    spec = objects["Deployment", "foreman"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert objects["PersistentVolumeClaim", "foreman"]["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert not [kind for kind, _ in objects if kind == "HorizontalPodAutoscaler"]


def test_it_has_time_to_end(pod: Object, configuration: Configuration) -> None:
    """Kubernetes kills later than foreman itself would give the running job up."""
    assert pod["terminationGracePeriodSeconds"] >= configuration.shutdown_grace + 15


def test_it_has_time_to_change_a_large_database(container: Object) -> None:
    """A new version that copies and changes the database before it listens is not killed within an hour."""
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 60 * 60


def test_its_version_is_somebodys_decision(gitops: Path, container: Object) -> None:
    """An image has a tag that says what it is, and an overlay without one pulls nothing."""
    name, _, tag = container["image"].rpartition(":")
    assert "/" in name
    assert tag not in ("", "latest")
    (forgotten,) = containers(build(gitops / "base"))
    assert forgotten["image"] == "foreman:set-by-the-overlay"


def test_it_talks_to_whom_it_must(objects: dict[tuple[str, str], Object], configuration: Configuration) -> None:
    """By default to nobody and nobody to it but for names; the example adds its target, webhooks and Traefik."""
    labels = objects["Deployment", "foreman"]["spec"]["template"]["metadata"]["labels"]
    policies = [each["spec"] for (kind, _), each in objects.items() if kind == "NetworkPolicy"]
    for policy in policies:
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert all(rule["from"] and rule["ports"] for rule in policy.get("ingress", ()))
        assert all(rule["to"] and rule["ports"] for rule in policy["egress"])
    (incoming,) = objects["NetworkPolicy", "foreman-here"]["spec"]["ingress"]
    assert incoming["ports"] == [{"port": int(configuration.addr.text.removeprefix(":"))}]
    base = objects["NetworkPolicy", "foreman-nothing-but-names"]["spec"]
    assert "ingress" not in base
    assert {port["port"] for rule in base["egress"] for port in rule["ports"]} == {53}
    target = urlsplit(configuration.ollama_url)
    assert any(
        ip_address(str(target.hostname)) in ip_network(each["ipBlock"]["cidr"])
        and {"port": target.port} in rule["ports"]
        for rule in objects["NetworkPolicy", "foreman-here"]["spec"]["egress"]
        for each in rule["to"]
    )


def test_an_address_is_the_same_machine_everywhere(root: Path) -> None:
    """Copied from one page to the next: .10 is foreman's, whom the target's firewall lets in, .20 the target's."""
    folders = [root / name for name in ("docs", "deploy/gitops", "deploy/target", "deploy/compose")]
    files = [path for folder in folders for path in folder.rglob("*.*") if path.is_file()]
    said = "".join(path.read_text(errors="ignore") for path in files)
    assert set(re.findall(r"192\.0\.2\.(\d+):(8080|11434)\b", said)) == {("10", "8080"), ("20", "11434")}
    assert re.findall(r'foreman = "?192\.0\.2\.(\d+)', said) == ["10", "10"]


# -- running ----------------------------------------------------------------------------------------------------------


def test_foreman_knows_every_setting(environment: dict[str, str], pod: Object) -> None:
    """No name that would stop the start: none of ours, and none that Kubernetes makes up."""
    assert {name for name in environment if name.startswith("FOREMAN_")} == set(environment) <= KNOWN
    assert pod["enableServiceLinks"] is False


@ensureDeferred  # type: ignore[untyped-decorator]
async def test_foreman_runs_with_it(environment: dict[str, str], container: Object, tmp_path: Path) -> None:
    """The real daemon with the pod's environment: it starts, it answers the probes, and it wants the token."""
    (tmp_path / "secret").write_text("s3cret\n")
    files = {name: str(tmp_path / "secret") for name in environment if name.endswith("_FILE")}
    settings = {name.removeprefix("FOREMAN_"): value for name, value in {**environment, **files}.items()}
    async with fake_ollama() as fake:
        # What is different on this machine: the folders, the address and the target.
        here = {**settings, "DB": "foreman.db", "ADDR": "127.0.0.1:0", "OLLAMA_URL": fake.url}
        async with daemon(tmp_path, fake.url, here) as running:
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert container[probe]["httpGet"]["port"] == "http"
                assert await status(running.url, container[probe]["httpGet"]["path"]) == 200
            assert await status(running.url, "/api/tags") == 401
            assert await status(running.url, "/api/tags", Authorization="Bearer s3cret") == 200
            assert await running.end() == 0


async def status(url: str, path: str, **headers: str) -> int:
    """The status of the answer to a GET."""
    head = (await ask(url, "GET", path, headers=headers)).head
    assert head is not None
    return head[0]


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"FOREMAN_LOG_FORMAT": '"json"'}, "FOREMAN_LOG_FORMAT is '\"json\"', but must be"),
        ({"FOREMAN_LOG_FROMAT": "json"}, "FOREMAN_LOG_FROMAT is ***, but there is no such setting; did you mean"),
        ({"FOREMAN_OLLAMA_URL": "192.0.2.20:11434"}, "FOREMAN_OLLAMA_URL is '192.0.2.20:11434', but must be http://"),
        ({"FOREMAN_SYNC_WAIT": "5m"}, "FOREMAN_HOLD_LINE is '4m', but must be 0 or longer than FOREMAN_SYNC_WAIT"),
        ({"FOREMAN_TOKEN": "s3cret"}, "FOREMAN_TOKEN_FILE is '{}token', but may be given only without FOREMAN_TOKEN"),
        ({"missing": "webhook-secret"}, "FOREMAN_WEBHOOK_SECRET_FILE is '{}webhook-secret', but must be a file that"),
        (
            {"token": "PUBLIC EXAMPLE: make your own"},
            "FOREMAN_TOKEN_FILE is '{}token', but must be a file that holds printable ASCII without blanks",
        ),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_what_a_newcomer_gets_wrong_is_in_the_page(
    root: Path, environment: dict[str, str], tmp_path: Path, wrong: dict[str, str], line: str
) -> None:
    """A wrong setting stops the start with one line; the page has its beginning, and says what to do."""
    mounted = {name: "s3cret" for name in ("token", "webhook-secret") if wrong.get("missing") != name}
    for name, secret in mounted.items():
        (tmp_path / name).write_text(wrong.get(name, secret))
    here = {name: value.replace("/run/secrets/foreman", str(tmp_path)) for name, value in environment.items()}
    settings = {name: value for name, value in wrong.items() if name.startswith("FOREMAN_")}
    with pytest.raises(ConfigurationError) as caught:
        Configuration.from_environment({**here, **settings})
    assert str(caught.value).startswith(line.replace("{}", f"{tmp_path}/"))
    assert f"`{line.replace('{}', '/run/secrets/foreman/')}" in (root / "docs/deploy/gitops.md").read_text()


# -- secrets ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["secret.yaml", "registry.yaml"])
def encrypted(gitops: Path, request: pytest.FixtureRequest) -> Object:
    """One of the example's encrypted files."""
    (document,) = documents(gitops / "overlays" / "example" / request.param)
    return document


def test_what_is_encrypted_is_read_again(objects: dict[tuple[str, str], Object]) -> None:
    """With the key, and only so, the example's secrets are what they were."""
    secret = objects["Secret", "foreman"]
    assert secret["stringData"]["token"] == "PUBLIC EXAMPLE: make your own"
    registry = objects["Secret", "foreman-registry"]
    assert registry["type"] == "kubernetes.io/dockerconfigjson"
    login = json.loads(registry["stringData"][".dockerconfigjson"])["auths"]["registry.example.org"]
    assert base64.b64decode(login["auth"]) == b"you:PUBLIC EXAMPLE"


def test_nobody_runs_with_the_examples_secrets(objects: dict[tuple[str, str], Object]) -> None:
    """A foreman that somebody starts with them ends at once: the whole world knows them."""
    secret = objects["Secret", "foreman"]["stringData"]
    for name, key in (("FOREMAN_TOKEN", "token"), ("FOREMAN_WEBHOOK_SECRET", "webhook-secret")):
        with pytest.raises(ConfigurationError, match=rf"{name} is \*\*\*, but must be"):
            Configuration.from_environment({name: secret[key]})


def test_a_changed_value_is_found(encrypted: Object, key: Path) -> None:
    """Whoever can write to the repository, but has no key, cannot change a letter of a secret."""
    for name, text in encrypted["stringData"].items():
        # The first letter of the data, and another one in its place.
        at = text.index("data:") + 5
        other = "B" if text[at] == "A" else "A"
        changed = {**encrypted["stringData"], name: text[:at] + other + text[at + 1 :]}
        with pytest.raises(fake_sops.Refused, match=f"stringData:{re.escape(name)}: is not what was encrypted there"):
            fake_sops.decrypt({**encrypted, "stringData": changed}, key)


def test_a_moved_value_is_found(encrypted: Object, key: Path) -> None:
    """Nor can he give one secret the place of another."""
    moved = {f"other-{name}": text for name, text in encrypted["stringData"].items()}
    with pytest.raises(fake_sops.Refused, match="is not what was encrypted there"):
        fake_sops.decrypt({**encrypted, "stringData": moved}, key)


def test_what_is_in_clear_is_guarded_too(encrypted: Object, key: Path) -> None:
    """`sops` finds a change of what is not encrypted, such as the Secret's name; Flux does not look for that."""
    with pytest.raises(fake_sops.Refused, match="MAC mismatch"):
        fake_sops.decrypt({**encrypted, "metadata": {"name": "other"}}, key)


def test_nothing_secret_is_in_clear(gitops: Path) -> None:
    """Every value of every Secret here is encrypted, and no private key lies about."""
    for path in (path for path in gitops.rglob("*") if path.is_file()):
        assert "AGE-SECRET-KEY-" not in path.read_text()
        for document in documents(path) if path.suffix == ".yaml" and path.name != ".sops.yaml" else ():
            if document["kind"] == "Secret":
                values = [*document.get("stringData", {}).values(), *document.get("data", {}).values()]
                assert values
                assert all(fake_sops.ENCRYPTED.fullmatch(value) for value in values)
                assert document["sops"]["encrypted_regex"] == rules(gitops)["encrypted_regex"]
                assert re.search(rules(gitops)["path_regex"], str(path.relative_to(gitops)))


def rules(gitops: Path) -> dict[str, str]:
    """The only rule of .sops.yaml."""
    (rule,) = yaml.safe_load((gitops / ".sops.yaml").read_text())["creation_rules"]
    return dict(rule)


@pytest.fixture
def copied(gitops: Path, tmp_path: Path) -> Path:
    """Somebody's own copy of the folder."""
    return Path(shutil.copytree(gitops, tmp_path / "infra" / "foreman"))


@pytest.fixture
def tools(tmp_path: Path) -> dict[str, str]:
    """An environment in which `sops` is our stand-in, which takes from pipes alone, and no key is there yet."""
    sops = tmp_path / "bin" / "sops"
    sops.parent.mkdir()
    sops.write_text(f'#!/bin/sh\n[ -p /dev/stdin ] && exec "{sys.executable}" "{fake_sops.__file__}" "$@"\n')
    sops.chmod(0o755)
    keys = str(tmp_path / "home" / "keys.txt")
    return {"PATH": f"{sops.parent}:/usr/bin:/bin", "SOPS_AGE_KEY_FILE": keys}


def test_make_secrets_is_sound_shell(run: Run, gitops: Path) -> None:
    """It does the same in every shell."""
    run("shellcheck", gitops / "make-secrets")


def test_make_secrets_makes_secrets_that_foreman_takes(run: Run, copied: Path, tools: dict[str, str]) -> None:
    """One command makes a key and encrypts for it; nothing is on the disk in clear, not even by a Mac's old bash."""
    command = 'echo "p\'a\\"s s" | BASH_COMPAT=50 bash make-secrets example registry.example.org:5000 you'
    names = ("secret.yaml", "registry.yaml")
    examples = [documents(copied / "overlays/example" / name)[0] for name in names]
    told = run("sh", "-c", command, cwd=copied, env=tools)
    keys = Path(tools["SOPS_AGE_KEY_FILE"])
    assert keys.stat().st_mode & 0o777 == 0o600
    secret_file, registry_file = (documents(copied / "overlays/example" / name)[0] for name in names)
    secret = fake_sops.decrypt(secret_file, keys)["stringData"]
    Configuration.from_environment(
        {"FOREMAN_TOKEN": secret["token"], "FOREMAN_WEBHOOK_SECRET": secret["webhook-secret"]}
    )
    assert len(base64.b64decode(secret["token"])) == 32
    registry = fake_sops.decrypt(registry_file, keys)["stringData"]
    login = json.loads(registry[".dockerconfigjson"])["auths"]["registry.example.org:5000"]["auth"]
    assert base64.b64decode(login) == b"you:p'a\"s s"
    assert secret["token"] not in told
    # As the example has them, for whose names base/ looks.
    for mine, example in zip((secret_file, registry_file), examples, strict=True):
        assert mine["stringData"].keys() == example["stringData"].keys()
        assert all(mine[name] == example[name] for name in example.keys() - {"stringData", "sops"})


def test_make_secrets_never_overwrites_yours(run: Run, copied: Path, tools: dict[str, str]) -> None:
    """Run again, it leaves the token alone that callers have."""
    run(copied / "make-secrets", "example", cwd=copied, env=tools)
    before = (copied / "overlays/example/secret.yaml").read_bytes()
    assert "stays as it is" in run(copied / "make-secrets", "example", cwd=copied, env=tools)
    assert (copied / "overlays/example/secret.yaml").read_bytes() == before


def test_nothing_is_encrypted_for_nobody(run: Run, copied: Path, tools: dict[str, str]) -> None:
    """As long as no key of yours is in .sops.yaml `sops` refuses, and a file is not half written."""
    before = (copied / "overlays/example/secret.yaml").read_bytes()
    plain = 'echo "kind: Secret" | sops encrypt --filename-override overlays/example/secret.yaml /dev/stdin'
    assert "your-public-age-key" in run("sh", "-c", plain, cwd=copied, env=tools, fails=True)
    (copied / ".sops.yaml").write_text((copied / ".sops.yaml").read_text().replace("your-public-age-key", "age1wrong"))
    told = run(copied / "make-secrets", "example", cwd=copied, env=tools, fails=True)
    assert "make-secrets: sops did not encrypt overlays/example/secret.yaml" in told
    assert (copied / "overlays/example/secret.yaml").read_bytes() == before
    assert not list((copied / "overlays/example").glob("*.new"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "usage: ./make-secrets"),
        (("nowhere",), "there is no folder overlays/nowhere"),
        (("example/",), "'example/' is not the name of a folder in overlays/"),
        (("",), "'' is not the name of a folder in overlays/"),
        (("..",), "'..' is not the name of a folder in overlays/"),
        (("example", "", "you"), "'' is not the name of a registry"),
        (("example", "registry.example.org", ""), "'' is not the name of a user"),
        (("example", "registry.example.org", "you:me"), "'you:me' is not the name of a user"),
        (("example", "https://registry.example.org/", "you"), "is not the name of a registry"),
        (("example", "registry.example.org", "you"), "no password came"),
    ],
)
def test_make_secrets_says_what_is_wrong(
    run: Run, copied: Path, tools: dict[str, str], arguments: tuple[str, ...], line: str
) -> None:
    """Whatever it cannot work with is one line."""
    assert line in run(copied / "make-secrets", *arguments, cwd=copied, env=tools, fails=True)


def test_make_secrets_leaves_the_terminal_as_it_was(copied: Path, tools: dict[str, str]) -> None:
    """Ctrl-C at the question for the password, which is not shown: what is typed after it is."""
    controller, terminal = os.openpty()
    command = (copied / "make-secrets", "example", "registry.example.org", "you")
    with subprocess.Popen(
        command, cwd=copied, env=tools, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    ) as asked:
        while b"Password" not in os.read(controller, 4096):
            pass
        while termios.tcgetattr(terminal)[3] & termios.ECHO:
            pass
        asked.send_signal(signal.SIGINT)
        try:
            asked.wait(30)
        finally:
            asked.kill()
    assert termios.tcgetattr(terminal)[3] & termios.ECHO
    os.close(controller)
    os.close(terminal)
    assert "PUBLIC EXAMPLE" in (copied / "overlays/example/registry.yaml").read_text()


def test_make_secrets_without_sops(run: Run, copied: Path, tools: dict[str, str], tmp_path: Path) -> None:
    """A tool that is missing is named."""
    (tmp_path / "bin" / "sops").unlink()
    assert "sops is not installed" in run(copied / "make-secrets", "example", cwd=copied, env=tools, fails=True)


def test_a_new_version_is_one_line(run: Run, root: Path, copied: Path, tmp_path: Path) -> None:
    """What the pipeline does to the overlay is what the cluster runs, and all else stays."""
    repository = copied.parent
    me = {f"GIT_{who}_{what}": "ci@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for command in ("init --quiet --initial-branch=main", "add .", "commit --quiet --message=it"):
        run("git", *command.split(), cwd=repository, env=me)
    run("git", "clone", "--quiet", "--bare", repository, tmp_path / "bare.git")
    tag = "0123456789012345678901234567890123456789"  # of digits alone, as a commit may be: YAML would read a number
    image = ("--image", "registry.example.org/you/foreman", "--tag", tag)
    file = "foreman/overlays/example/kustomization.yaml"
    run(root / "deploy/scripts/set-image-tag", tmp_path / "bare.git", "--file", file, *image, env=me)
    run("git", "clone", "--quiet", tmp_path / "bare.git", tmp_path / "after")
    made = build(tmp_path / "after/foreman/overlays/example")
    assert [each["image"] for each in containers(made)] == [f"registry.example.org/you/foreman:{tag}"]
    changed = run("git", "diff", "--numstat", "HEAD~1", cwd=tmp_path / "after")
    assert changed.split() == ["1", "1", file]
