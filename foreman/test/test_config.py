"""The settings: what is read, what is refused and how it is told."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreman.config import SETTINGS, Configuration, page
from foreman.errors import ConfigurationError
from foreman.kinds import Allowed, Secret, Wake


def read(**settings: str) -> Configuration:
    """The configuration of an environment with these, named without FOREMAN_."""
    return Configuration.from_environment({f"FOREMAN_{name}": value for name, value in settings.items()})


def refusal(environ: dict[str, str], overrides: dict[str, str] | None = None) -> str:
    """The line with which an environment is refused."""
    with pytest.raises(ConfigurationError) as caught:
        Configuration.from_environment(environ, overrides or {})
    line = str(caught.value)
    assert line.isprintable()
    return line


# -- what is read ----------------------------------------------------------------------------------------------------


def test_an_empty_environment_is_a_whole_configuration() -> None:
    """With nothing set there is a configuration, and every default is the documented one."""
    config = Configuration.from_environment({})
    assert config == Configuration()
    assert attrs.asdict(config, recurse=False, filter=lambda field, _: not field.name.startswith("_")) == {
        "ollama_url": "http://127.0.0.1:11434",
        "ollama_token": None,
        "addr": config.addr,
        "token": None,
        "db": "foreman.db",
        "embed_model": None,
        "keep_alive": -1,
        "poll_interval": 30,
        "load_timeout": 600,
        "stall_timeout": 300,
        "answer_timeout": 7200,
        "max_run": 7200,
        "max_result": 64 * 2**20,
        "sync_wait": 180,
        "hold_line": 240,
        "origins": (),
        "max_attempts": 3,
        "max_queue": 1_000_000,
        "max_body": 64 * 2**20,
        "job_ttl": 604_800,
        "artifact_inline_max": 256 * 2**10,
        "webhook_secret": None,
        "webhook_secret_old": None,
        "webhook_allow": Allowed(),
        "model_admin": False,
        "wake": None,
        "shutdown_grace": 30,
        "log_format": "text",
        "log_level": "info",
    }


GOOD: list[tuple[str, str, object]] = [
    ("ollama_url", "https://Laptop.local:443/", "https://laptop.local:443"),
    ("ollama_url", "http://[::1]:11434", "http://[::1]:11434"),
    ("ollama_url", "HTTP://laptop", "http://laptop"),
    ("token", "s3cret+/=", Secret("s3cret+/=")),
    ("ollama_token", "x", Secret("x")),
    ("db", "/var/lib/foreman/foreman.db", "/var/lib/foreman/foreman.db"),
    ("db", "my files/.foreman's #1 %20.db", "my files/.foreman's #1 %20.db"),
    ("embed_model", "hf.co/nomic-ai/nomic-embed-text:v1.5", "hf.co/nomic-ai/nomic-embed-text:v1.5"),
    ("keep_alive", "0", 0),
    ("keep_alive", "-1", -1),
    ("keep_alive", "300", 300),
    ("keep_alive", "15m", "15m"),
    ("keep_alive", "-1m", "-1m"),
    ("poll_interval", "100ms", 0.1),
    ("max_result", "1", 1),
    ("max_body", "512MiB", 512 * 2**20),
    ("artifact_inline_max", "0", 0),
    ("hold_line", "0", 0),
    ("origins", "https://a.example, app://* *", ("https://a.example", "app://*", "*")),
    ("max_attempts", "1", 1),
    ("webhook_secret", "pässword ", Secret("pässword ".encode())),
    ("webhook_secret", "\udcff", Secret(b"\xff")),
    ("webhook_secret", "whsec_c2VjcmV0", Secret(b"secret")),
    ("model_admin", "on", True),
    ("wake", "AA-bb-CC-00-11-22", Wake(mac=bytes.fromhex("aabbcc001122"))),
    ("wake", "aa:bb:cc:00:11:22@10.0.0.255", Wake(mac=bytes.fromhex("aabbcc001122"), broadcast="10.0.0.255")),
    ("log_format", "json", "json"),
    ("log_level", "debug", "debug"),
]


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_a_good_value_is_read(name: str, text: str, value: object) -> None:
    """Each setting takes what its page says it takes."""
    assert getattr(read(**{name.upper(): text}), name) == value


@pytest.mark.parametrize(
    ("text", "endpoint", "loopback"),
    [
        ("127.0.0.1:8080", "tcp:8080:backlog=1024:interface=127.0.0.1", True),
        ("localhost:0", "tcp:0:backlog=1024:interface=localhost", True),
        ("0.0.0.0:80", "tcp:80:backlog=1024:interface=0.0.0.0", False),
        ("laptop:80", "tcp:80:backlog=1024:interface=laptop", False),
        (":8080", "tcp:8080:backlog=1024", False),
        ("[::1]:8080", r"tcp6:8080:backlog=1024:interface=\:\:1", True),
        ("[::]:8080", r"tcp6:8080:backlog=1024:interface=\:\:", False),
        ("tcp:8080", "tcp:8080", False),
        ("tcp:8080:interface=127.0.0.1", "tcp:8080:interface=127.0.0.1", True),
        (r"tcp6:port=1:interface=\:\:1", r"tcp6:port=1:interface=\:\:1", True),
        ("unix:/run/foreman.sock:mode=660", "unix:/run/foreman.sock:mode=660", True),
    ],
)
def test_an_address_is_read(text: str, endpoint: str, loopback: bool) -> None:
    """I can say where to listen shortly, or as a Twisted endpoint, and foreman knows who can reach it."""
    addr = read(ADDR=text).addr
    assert (addr.endpoint, addr.loopback) == (endpoint, loopback)


def test_networks_and_hosts_are_told_apart() -> None:
    """FOREMAN_WEBHOOK_ALLOW takes both, separated by commas or blanks."""
    allowed = read(WEBHOOK_ALLOW="10.0.0.0/8,Hooks.Example  ::1 192.0.2.7").webhook_allow
    assert [str(network) for network in allowed.networks] == ["10.0.0.0/8", "::1/128", "192.0.2.7/32"]
    assert allowed.hosts == ("hooks.example",)


# -- what is refused -------------------------------------------------------------------------------------------------

BAD = {
    "OLLAMA_URL": [
        *(
            "laptop:11434",
            "ftp://laptop",
            "http://",
            "http:///x",
            "http://laptop/api",
            "http://laptop?x",
            "http://laptop#",
        ),
        *(
            "http://u:p@laptop",
            "http://laptop:",
            "http://laptop:0",
            "http://laptop:65536",
            "http://lap top",
            "http://ümlaut",
        ),
        *(
            "http://[::1",
            "http://[fe80::1%25eth0]",
            "http://10.0.0.256",
            "http://laptop\\x",
            "http://-x",
            "http://my_laptop.lan:11434",
            "http://lap\ntop",
        ),
    ],
    "TOKEN": ["two words", "tab\t", "ümlaut", "\x7f"],
    "OLLAMA_TOKEN": ["two words", "new\nline"],
    "ADDR": [
        *("8080", "localhost", "localhost:", "localhost:65536", "localhost:x", "::1:8080", "[::1]", "[127.0.0.1]:80"),
        *(
            "tcp:x",
            "ssl:443:privateKey=/nowhere.pem",
            "carrier:pigeon:7",
            "pigeon:coop",
            "stdio:",
            "1.2.3:80",
            "a b:80",
        ),
    ],
    "DB": [
        *(":memory:", "file:x", "a\0b", " ", "a.db ", "\ta.db", "a.db\r", "a\nb.db", '"a.db"', "'a.db'"),
        *("folder/", ".", "..", "a/.", "a/.."),
    ],
    "EMBED_MODEL": ["two words", "modèle", "x" * 400],
    "KEEP_ALIVE": ["soon", "1.5", "7d", "--1m", "5 m", "1" * 10],
    "POLL_INTERVAL": ["0", "99ms", "30", "-30s", "soon"],
    "LOAD_TIMEOUT": ["0", "10"],
    "STALL_TIMEOUT": ["0", "5 m"],
    "ANSWER_TIMEOUT": ["0", "2 hours"],
    "MAX_RUN": ["0", "2H"],
    "MAX_RESULT": ["0", "64MB", "513MiB"],
    "SYNC_WAIT": ["-1s", "180"],
    "HOLD_LINE": ["never", "-1s", "3m", "1s"],
    "ORIGINS": ["example.com", "https://a/b", "https://*.*.example", "https://", "null"],
    "MAX_ATTEMPTS": ["0", "-1", "3.0", "1001", "three", "٣"],
    "MAX_QUEUE": ["0", "1e6", "1_000", "9999999999"],
    "MAX_BODY": ["0", "1GiB", "1.5MiB"],
    "JOB_TTL": ["0", "7"],
    "ARTIFACT_INLINE_MAX": ["-1", "256K"],
    "WEBHOOK_SECRET": [
        "whsec_",
        "whsec_not base64",
        "whsec_abc",
        "whsec_c2Vj!cmV0",
        '"whsec_c2VjcmV0"',
        "\ufeffwhsec_c2VjcmV0",
    ],
    "WEBHOOK_SECRET_OLD": ["whsec_!", "old"],
    "WEBHOOK_ALLOW": ["10.0.0.1/8", "10.0.0.0/33", "http://x", "*.example", "300.1.1.1", " ", ","],
    "MODEL_ADMIN": ["true", "1", "ON", "yes"],
    "WAKE": [
        "aa:bb:cc:dd:ee",
        "aabbccddeeff",
        "aa:bb:cc:dd:ee:gg",
        "aa:bb:cc:dd:ee:ff@",
        "aa:bb:cc:dd:ee:ff@10.0.0.256",
    ],
    "SHUTDOWN_GRACE": ["-1s", "30"],
    "LOG_FORMAT": ["xml", "JSON"],
    "LOG_LEVEL": ["trace", "critical", "INFO"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
def test_a_bad_value_is_refused_in_one_line(name: str, text: str) -> None:
    """A bad value stops the start with one line that names the variable, the value and what is allowed."""
    line = refusal({f"FOREMAN_{name}": text})
    assert line.startswith(f"FOREMAN_{name} is ")
    assert re.search(", but (must be|may be given only) .", line)
    shown = "***" if "TOKEN" in name or "SECRET" in name or "@laptop" in text else text[:200]
    assert shown in line or repr(shown)[1:-1] in line


def test_every_setting_can_be_wrong() -> None:
    """No setting takes whatever it is given."""
    assert set(BAD) == {setting.variable.removeprefix("FOREMAN_") for setting in SETTINGS}


@pytest.mark.parametrize(
    ("name", "near"), [("FOREMAN_OLAMA_URL", "FOREMAN_OLLAMA_URL"), ("FOREMAN_DB_FILE", "FOREMAN_DB"), ("FOREMAN_", "")]
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, near: str) -> None:
    """A mistyped name does not pass in silence; foreman says which I may have meant, and keeps its value to itself."""
    line = refusal({name: "hunter2"})
    assert line.startswith(f"{name} is ***")
    assert f"did you mean {near}" in line
    assert "hunter2" not in line


def test_what_is_not_foremans_is_passed_over() -> None:
    """The client's FOREMAN_URL and the rest of the environment are none of its business."""
    environ = {"FOREMAN_URL": "nonsense", "PATH": "/bin", "OLLAMA_HOST": "x", "foreman_db": "y"}
    assert Configuration.from_environment(environ) == Configuration()


def test_the_line_is_held_only_after_the_wait_for_the_target() -> None:
    """FOREMAN_HOLD_LINE is longer than FOREMAN_SYNC_WAIT, or 0."""
    assert "FOREMAN_SYNC_WAIT, which is '5m'" in refusal({"FOREMAN_SYNC_WAIT": "5m"})
    assert read(SYNC_WAIT="5m", HOLD_LINE="301s").hold_line == 301
    assert read(SYNC_WAIT="5m", HOLD_LINE="0").hold_line == 0


def test_a_value_cannot_flood_the_line() -> None:
    """The one line stays readable when the value is a novel."""
    assert len(refusal({"FOREMAN_LOG_LEVEL": "x" * 10_000})) < 400


# -- secrets ---------------------------------------------------------------------------------------------------------

SECRETS = ["OLLAMA_TOKEN", "TOKEN", "WEBHOOK_SECRET", "WEBHOOK_SECRET_OLD"]


def test_secrets_print_as_stars() -> None:
    """However a configuration is printed, no secret shows."""
    config = read(**dict.fromkeys(SECRETS, "hunter2"))
    assert "hunter2" not in f"{config} {config!r} {config.token} {config.token!r:>9} {list(config.effective())}"
    assert config.token is not None
    assert config.token.reveal() == "hunter2"
    assert config.webhook_secret is not None
    assert config.webhook_secret.reveal() == b"hunter2"


@pytest.mark.parametrize("name", ["TOKEN", "OLLAMA_TOKEN", "WEBHOOK_SECRET"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_can_be_a_file(tmp_path: Path, name: str, end: str) -> None:
    """Any secret may be given as a file, with or without a newline at its end."""
    file = tmp_path / "secret"
    file.write_bytes(f"hunter2{end}".encode())
    assert read(**{f"{name}_FILE": str(file)}) == read(**{name: "hunter2"})


def test_a_secret_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    """A secret that is mounted wrongly stops the start, instead of leaving the door open."""
    empty = tmp_path / "empty"
    empty.write_text("\n")
    huge = tmp_path / "huge"
    huge.write_text("x" * 2**20)
    for file, reason in [
        (tmp_path / "none", "No such file"),
        (tmp_path, "Is a directory"),
        (empty, "holds a secret"),
        (huge, "less than 32KiB"),
        ("a\0b", "can be read"),
    ]:
        line = refusal({"FOREMAN_TOKEN_FILE": str(file)})
        assert line.startswith("FOREMAN_TOKEN_FILE is '")
        assert reason in line


@pytest.mark.parametrize("name", ["TOKEN", "OLLAMA_TOKEN", "WEBHOOK_SECRET"])
def test_what_a_secret_file_holds_wrongly_is_told_with_its_name(tmp_path: Path, name: str) -> None:
    """Who has put a secret into a file is told of that file, and what it must hold, never what it holds."""
    file = tmp_path / "secret"
    file.write_text("\ufeffwhsec_hunter2\n\n")
    line = refusal({f"FOREMAN_{name}_FILE": str(file)})
    assert line.startswith(f"FOREMAN_{name}_FILE is '{file}', but must be a file that holds ")
    assert "hunter2" not in line


@pytest.mark.parametrize("name", ["TOKEN", "OLLAMA_TOKEN"])
def test_a_token_in_quotes_is_refused(name: str) -> None:
    """Docker's --env-file, for one, leaves quotes in: foreman would ask callers for them, too."""
    for quoted in ('"hunter2"', "'hunter2'", '"'):
        assert "not in quotes" in refusal({f"FOREMAN_{name}": quoted})
    read(**{name: "it's"})


def test_a_secret_is_given_once(tmp_path: Path) -> None:
    """The variable and its file together are refused, since nobody knows which is meant."""
    line = refusal({"FOREMAN_TOKEN": "hunter2", "FOREMAN_TOKEN_FILE": str(tmp_path)})
    assert "only without FOREMAN_TOKEN" in line
    assert "hunter2" not in line


def test_a_password_in_the_url_is_not_shown() -> None:
    """A URL with a user is refused without printing the password."""
    for url in ("http://me:hunter2@laptop", "me:hunter2@laptop", "http://me:hunter2/@laptop", "http://me:\nhunter2@x"):
        assert "hunter2" not in refusal({"FOREMAN_OLLAMA_URL": url})


# -- options, sources, the page --------------------------------------------------------------------------------------


def test_options_override_the_environment(tmp_path: Path) -> None:
    """What is said on the command line wins, even over the other way to give a secret, and even when it is empty."""
    environ = {"FOREMAN_DB": "a.db", "FOREMAN_TOKEN_FILE": str(tmp_path / "none"), "FOREMAN_EMBED_MODEL": "nomic"}
    overrides = {"FOREMAN_DB": "b.db", "FOREMAN_TOKEN": "x", "FOREMAN_EMBED_MODEL": ""}
    config = Configuration.from_environment(environ, overrides)
    assert config == Configuration(db="b.db", token=Secret("x"))
    assert "no such setting" in refusal({}, {"FOREMAN_X": "1"})


def test_an_empty_value_is_none() -> None:
    """`FOREMAN_TOKEN=` in a compose file is the same as leaving it out."""
    assert read(**{setting.variable.removeprefix("FOREMAN_"): "" for setting in SETTINGS}) == Configuration()


def test_the_effective_settings_say_where_they_come_from() -> None:
    """The log at start shows every setting in force, readable, with its source."""
    config = Configuration.from_environment(
        {"FOREMAN_TOKEN": "x", "FOREMAN_JOB_TTL": "36h"}, {"FOREMAN_MAX_BODY": "1024"}
    )
    lines = {name: (value, source) for name, value, source in config.effective()}
    assert list(lines) == [setting.variable for setting in SETTINGS]
    assert lines["FOREMAN_TOKEN"] == ("***", "environment")
    assert lines["FOREMAN_OLLAMA_TOKEN"] == ("", "default")
    assert lines["FOREMAN_JOB_TTL"] == ("1d12h", "environment")
    assert lines["FOREMAN_MAX_BODY"] == ("1KiB", "option")
    assert lines["FOREMAN_MODEL_ADMIN"] == ("off", "default")


def test_the_page_is_the_table() -> None:
    """docs/configuration.md is what `python -m foreman.config` prints."""
    file = Path(__file__).parents[2] / "docs" / "configuration.md"
    if not file.exists():
        pytest.skip("not a checkout")
    assert file.read_text() == page()


@given(st.sampled_from([name for setting in SETTINGS for name in setting.variables]), st.text())
def test_no_value_is_answered_with_anything_but_a_line(name: str, text: str) -> None:
    """Whatever is in the environment, I get a configuration or one line that says what is wrong."""
    lines = []
    try:
        Configuration.from_environment({name: text})
    except ConfigurationError as error:
        lines.append(str(error))
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, text, value in GOOD if not isinstance(value, Secret)]
)
def test_what_is_shown_reads_back(name: str, text: str) -> None:
    """A line of the log at start can be copied into the environment and means the same."""
    config = read(**{name.upper(): text})
    shown = {variable: value for variable, value, _ in config.effective()}
    assert Configuration.from_environment(shown) == config
