"""deploy/compose: the file as compose reads it with a filled .env, and the real daemon in each service's environment.

Compose itself needs no place here: its schema judges the form, and what it does with `${…}` is a few lines below.
"""

# mypy: disallow-untyped-decorators=False
# pytest-twisted's.
from __future__ import annotations

import http.client
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import yaml
from conftest import ROOT, Run
from twisted.internet.threads import deferToThread

from foreman.config import SETTINGS, Configuration
from foreman.durations import parse_duration
from foreman.errors import ConfigurationError
from foreman.test.harness import daemon, fake_ollama
from foreman.web.site import BODIES_AT_ONCE

FOLDER = ROOT / "deploy" / "compose"
COMPOSE, EXAMPLE = FOLDER / "docker-compose.yml", FOLDER / ".env.example"
PAGE = ROOT / "docs" / "deploy" / "compose.md"
SERVICES = ("foreman", "second")
TOKEN = "a-token-for-the-test"
MINE = {
    "TRAEFIK_HOST": "foreman.example.org",
    "TRAEFIK_CERTRESOLVER": "example",
    "FOREMAN_OLLAMA_URL": "http://laptop.example.org:11434",
    "SECOND_TRAEFIK_HOST": "second.example.org",
    "SECOND_OLLAMA_URL": "http://desktop.example.org:11434",
}
"""What a reader of the page puts into .env."""

DEMANDED = (
    "IMAGE",
    "TRAEFIK_HOST",
    "TRAEFIK_NETWORK",
    "TRAEFIK_ENTRYPOINT",
    "FOREMAN_OLLAMA_URL",
    "FOREMAN_TOKEN_FILE",
)


# -- what compose does -------------------------------------------------------------------------------------------------


class Missing(Exception):
    """Compose stops here, and says this."""


def variables(text: str) -> dict[str, str]:
    """The variables that an env file sets."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def interpolated(text: str, env: Mapping[str, str]) -> str:
    """`${…}` replaced as compose does it.

    :raise Missing: for what the text demands.
    """

    def replacement(found: re.Match[str]) -> str:
        name, colon, kind, rest = found.groups()
        value = env.get(name)
        there = bool(value) if colon else value is not None
        if kind == "?" and not there:
            raise Missing(f"{name}: {rest}")
        if kind == "+":
            return rest if there else ""
        return value if there and value is not None else rest if kind == "-" else ""

    # Once more for what stands around another.
    for _ in range(2):
        text = re.sub(r"\$\{(\w+)(?:(:?)([-?+])([^{}]*))?\}", replacement, text)
    return text


def loaded(env: Mapping[str, str]) -> Any:
    """The compose file with the variables of .env put in, each value by itself."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: walk(each) for name, each in value.items()}
        if isinstance(value, list):
            return [walk(each) for each in value]
        return interpolated(value, env) if isinstance(value, str) else value

    return walk(yaml.safe_load(COMPOSE.read_text()))


def filled(**more: str) -> dict[str, str]:
    """A .env as the page has it made."""
    return variables(EXAMPLE.read_text()) | MINE | more


def environment(env: Mapping[str, str], service: str) -> dict[str, str]:
    """The environment of a service's container: its .env, and what the compose file sets beside it."""
    described = loaded(env)["services"][service]
    assert described["env_file"] == ".env"
    return {**env, **described["environment"]}


# -- the files ---------------------------------------------------------------------------------------------------------


def test_compose_takes_the_file(run: Run) -> None:
    """The compose file is what the Compose Specification calls one."""
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)


def test_every_setting_is_in_the_example() -> None:
    """The example has each setting once, secrets as files, and what is commented there is the default."""
    text = EXAMPLE.read_text()
    lines = re.findall(r"^(#?)(FOREMAN_\w+)=(.*)$", text, re.MULTILINE)
    assert [value for comment, name, value in lines if not comment] == ["", "./secrets/token"]
    shown = {name: value for comment, name, value in lines if comment}
    assert len({name for _, name, _ in lines}) == len(lines)
    wanted = {setting.variables[-1]: setting.default for setting in SETTINGS}
    # These two are the container's, and set in the compose file.
    set_there = loaded(filled())["x-settings"]
    del wanted["FOREMAN_ADDR"], wanted["FOREMAN_DB"]
    assert {"FOREMAN_ADDR", "FOREMAN_DB"} <= set(set_there)
    assert {name for _, name, _ in lines} == set(wanted)
    assert shown == {name: wanted[name] for name in shown}
    Configuration.from_environment(shown)


def test_the_example_and_the_file_name_the_same() -> None:
    """Each variable that the compose file reads is in .env.example, and what is there and no setting is read."""
    read = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))
    offered = set(re.findall(r"^#?(\w+)=", EXAMPLE.read_text(), re.MULTILINE))
    assert read <= offered
    assert {name for name in offered - read if not name.startswith("FOREMAN_")} == set()


@pytest.mark.parametrize("name", DEMANDED)
def test_what_is_missing_is_said(name: str) -> None:
    """A value that nobody can guess stops compose, with its name and where to set it."""
    with pytest.raises(Missing, match=rf"^{name}: set it in \.env"):
        loaded(filled(**{name: ""}))
    loaded(filled())


def test_an_empty_resolver_is_an_answer() -> None:
    """Where Traefik has a certificate already, no resolver is named; where the line is gone, compose stops."""
    loaded(filled(TRAEFIK_CERTRESOLVER=""))
    env = filled()
    del env["TRAEFIK_CERTRESOLVER"]
    with pytest.raises(Missing, match=r"^TRAEFIK_CERTRESOLVER"):
        loaded(env)


def test_a_second_target_without_an_address_is_said() -> None:
    """Without SECOND_OLLAMA_URL the second foreman runs with no target at all, but says what is missing."""
    env = environment(filled(SECOND_OLLAMA_URL=""), "second")
    with pytest.raises(ConfigurationError, match=r"SECOND_OLLAMA_URL is not set in \.env"):
        Configuration.from_environment(env)


def test_nobody_is_asked_to_certify_a_name_that_is_not_set() -> None:
    """Without SECOND_TRAEFIK_HOST the second router has a name that no caller uses, and no resolver of certificates."""
    name = "traefik.http.routers.foreman-second"
    for host, rule, resolver in (("", "second.invalid", ""), ("second.example.org", "second.example.org", "example")):
        labels = loaded(filled(SECOND_TRAEFIK_HOST=host))["services"]["second"]["labels"]
        assert labels[f"{name}.rule"] == f"Host(`{rule}`)"
        assert labels[f"{name}.tls.certresolver"] == resolver


# -- what a security reviewer asks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_the_container_can_do_little(name: str) -> None:
    """No port is published, nothing but the volume is written, no right is left, and all that can grow is bounded."""
    service = loaded(filled())["services"][name]
    assert not {"ports", "privileged", "cap_add", "devices", "network_mode", "pid", "ipc", "user"} & set(service)
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    (volume,) = service["volumes"]
    assert volume.endswith(":/data")
    assert service["environment"]["FOREMAN_DB"].startswith("/data/")
    assert service["environment"]["TMPDIR"] == "/data"
    bodies = BODIES_AT_ONCE * Configuration.from_environment({}).max_body
    assert int(service["mem_limit"].removesuffix("g")) * 2**30 >= 1.5 * bodies
    assert service["pids_limit"]
    assert service["cpus"] <= 1  # more than a machine has is refused
    assert service["ulimits"]["nofile"] >= 65536
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


def test_two_targets_share_no_database_and_no_name() -> None:
    """The two foremen have a volume and a host name each, and routers that do not collide."""
    services = loaded(filled())["services"]
    assert len({str(services[name]["volumes"]) for name in SERVICES}) == 2
    labels = [services[name]["labels"] for name in SERVICES]
    shared = set(labels[0]) & set(labels[1])
    assert shared == {"traefik.enable", "traefik.docker.network"}
    rules = [value for each in labels for label, value in each.items() if label.endswith(".rule")]
    assert rules == ["Host(`foreman.example.org`)", "Host(`second.example.org`)"]
    assert services["second"]["profiles"] == ["second"]
    assert "profiles" not in services["foreman"]


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_is_in_the_environment(name: str) -> None:
    """Each secret is a file below /run/secrets, where its variable says, if it is given at all; and else it is none."""
    secrets = {setting.variable: setting.variables[-1] for setting in SETTINGS if setting.secret}
    env = filled(**{file: f"./secrets/{variable}" for variable, file in secrets.items()})
    described = loaded(env)
    service = described["services"][name]
    for file in secrets.values():
        inside = service["environment"][file]
        if name == "second" and file == "FOREMAN_OLLAMA_TOKEN_FILE":
            assert inside == ""  # it is the first target's
            assert "ollama-token" not in service["secrets"]
            continue
        assert inside.startswith("/run/secrets/")
        assert inside.removeprefix("/run/secrets/") in service["secrets"]
        assert described["secrets"][inside.removeprefix("/run/secrets/")]["file"] == env[file]
    assert environment(filled(FOREMAN_OLLAMA_TOKEN="first's"), "second")["FOREMAN_OLLAMA_TOKEN"] == ""
    without = loaded(filled())
    assert {each["file"] for each in without["secrets"].values()} == {"./secrets/token", "/dev/null"}


@pytest.mark.parametrize("name", SERVICES)
def test_the_container_is_asked_and_stopped_as_the_image_has_it(name: str) -> None:
    """The health check is the image's, Traefik is told the port that foreman has, and a stop has the time it needs."""
    service = loaded(filled())["services"][name]
    image = (ROOT / "Dockerfile").read_text()
    assert json.dumps(service["healthcheck"]["test"][1:]) in image
    (port,) = [value for label, value in service["labels"].items() if label.endswith("server.port")]
    assert service["environment"]["FOREMAN_ADDR"] == f":{port}"
    grace = Configuration.from_environment({}).shutdown_grace
    assert parse_duration(service["stop_grace_period"]) >= grace + 10
    assert (FOLDER / service["build"] / "Dockerfile").exists()


def test_traefik_cuts_no_call_short() -> None:
    """The entry point of the snippet is the one that .env.example names, and nothing in it bounds a call."""
    snippet = yaml.safe_load((FOLDER / "traefik" / "entrypoint.yml").read_text())
    ((name, point),) = snippet["entryPoints"].items()
    assert name == variables(EXAMPLE.read_text())["TRAEFIK_ENTRYPOINT"]
    timeouts = point["transport"]["respondingTimeouts"]
    assert (timeouts["readTimeout"], timeouts["writeTimeout"]) == ("0s", "0s")
    assert snippet["serversTransport"]["forwardingTimeouts"] == {"responseHeaderTimeout": "0s"}


def test_what_may_hold_a_secret_is_its_makers_alone() -> None:
    """A secret can stand in .env, too: as the page makes it, nobody else on the machine reads it."""
    assert re.findall(r"^(.*) \.env\.example \.env$", PAGE.read_text(), re.MULTILINE) == ["install -m 0600"]


# -- the daemon --------------------------------------------------------------------------------------------------------


def status(url: str, headers: Mapping[str, str]) -> int:
    """What `GET /api/tags` is answered with."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.request("GET", "/api/tags", headers=dict(headers))
    answer = connection.getresponse().status
    connection.close()
    return answer


@pytest.mark.parametrize("name", SERVICES)
@pytest_twisted.ensureDeferred
async def test_foreman_starts_and_answers_by_the_name_that_callers_use(tmp_path: Path, name: str) -> None:
    """With the environment of the container the real daemon starts, and takes calls as Traefik hands them on."""
    host = MINE["TRAEFIK_HOST"] if name == "foreman" else MINE["SECOND_TRAEFIK_HOST"]
    forwarded = {
        "Host": host,
        "X-Forwarded-For": "192.0.2.7",
        "X-Forwarded-Host": host,
        "X-Forwarded-Port": "443",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Server": "traefik",
        "X-Real-Ip": "192.0.2.7",
    }
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    given = environment(filled(), name)
    settings = {key.removeprefix("FOREMAN_"): value for key, value in given.items() if key.startswith("FOREMAN_")}
    token = tmp_path / Path(settings["TOKEN_FILE"]).name
    token.write_text(f"{TOKEN}\n")
    async with fake_ollama() as fake:
        # Where it is in the container stands for where it is here; each has its like.
        here = {"OLLAMA_URL": fake.url, "ADDR": ":0", "DB": "foreman.db", "TOKEN_FILE": str(token)}
        async with daemon(tmp_path, fake.url, settings | here) as foreman:
            assert await deferToThread(status, foreman.url, forwarded | bearer) == 200
            assert await deferToThread(status, foreman.url, forwarded) == 401
            page = {"Origin": f"https://{host}"}
            assert await deferToThread(status, foreman.url, forwarded | bearer | page) == 200
            stranger = {"Origin": "https://stranger.example.com"}
            assert await deferToThread(status, foreman.url, forwarded | bearer | stranger) == 403
            assert await foreman.end() == 0
