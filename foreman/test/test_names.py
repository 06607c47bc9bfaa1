"""Model names compare as Ollama's do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreman.ollama.names import is_cloud, is_valid, normalise

PARTS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}", fullmatch=True)
NAMESPACES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,8}", fullmatch=True)
HOSTS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9.-]{0,8}(:[0-9]{1,4})?", fullmatch=True)
NAME_LIKE = st.text(alphabet="aB1:/.-_@ lckoudtes", max_size=30) | st.text(max_size=20)


@pytest.mark.parametrize(
    "name",
    [
        "tiny-a",
        "TINY-A",
        "tiny-a:latest",
        "Tiny-A:LATEST",
        "library/tiny-a",
        "Library/tiny-a",
        "registry.ollama.ai/library/tiny-a:latest",
        "https://registry.ollama.ai/library/tiny-a",
        "http://Registry.Ollama.AI/library/tiny-a",
        "  tiny-a ",
        "\u00a0tiny-a\t\n",
        "tiny-a:local",
        "tiny-a:latest:LOCAL",
    ],
)
def test_equal_names(name: str) -> None:
    """Every way to write a model's name that Ollama takes for the same model is the same model here."""
    assert normalise(name) == "tiny-a:latest"
    assert is_valid(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen3:30B", "qwen3:30b"),
        ("me/tiny-a", "me/tiny-a:latest"),
        ("host.example/me/tiny-a:x", "host.example/me/tiny-a:x"),
        ("host.example:5000/library/m", "host.example:5000/library/m:latest"),
        ("http://host.example:5000/me/m:7b:local", "host.example:5000/me/m:7b"),
        ("https:///me/m", "me/m:latest"),
        ("gpt-oss:20b-cloud", "gpt-oss:20b-cloud"),
        ("gpt-oss:20b:Cloud", "gpt-oss:20b-cloud"),
        ("m:cloud", "m:cloud"),
    ],
)
def test_other_names(name: str, expected: str) -> None:
    """What is not a default stays in the name, and tells models apart."""
    assert normalise(name) == expected
    assert is_valid(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "  ", "a b!", "x:", ":x", "/x", "x/", "x//y", "x@sha256:abc", "a/b/c/d/e", "https://m", "na.me/x"),
        *("x:cloud:local", "x:local:cloud", "m:-cloud", "x :local", "é", "-x", ".x", "x" * 81, "\x1cx"),
    ],
)
def test_malformed_names(name: str) -> None:
    """A malformed name is nobody's: it is told apart at once, and equals no model."""
    assert not is_valid(name)
    assert not is_valid(normalise(name))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("m:cloud", True),
        (" m:CLOUD ", True),
        ("gpt-oss:20b-cloud", True),
        ("gpt-oss:20b:cloud", True),
        ("m-cloud", False),
        ("cloud", False),
        ("m:local", False),
        ("m:local:cloud", False),
        ("host:5000/me/m-cloud", False),
        ("", False),
    ],
)
def test_cloud_names(name: str, expected: bool) -> None:
    """Models that run in the cloud are known by their names, so that they never wait in the queue."""
    assert is_cloud(name) is expected


@given(NAME_LIKE)
def test_normalising_is_stable(name: str) -> None:
    """A normalised name is its own normalised name, whatever it was made from."""
    once = normalise(name)
    assert normalise(once) == once
    assert is_valid(once) == is_valid(name)
    assert is_cloud(once) is is_cloud(name) or not is_valid(name)


@given(HOSTS, NAMESPACES, PARTS, PARTS, st.booleans())
def test_spelled_out_or_short(host: str, namespace: str, model: str, tag: str, upper: bool) -> None:
    """Scheme, case and blanks never tell two models apart."""
    name = f"{host}/{namespace}/{model}:{tag}"
    variant = f" http://{name.upper() if upper else name.lower()}\n"
    assert normalise(variant) == normalise(name)
