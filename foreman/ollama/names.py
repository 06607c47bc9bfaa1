"""Model names as Ollama compares them: `[scheme://][host/][namespace/]model[:tag]`, in any case, with defaults.

From Ollama's `types/model/name.go` and `internal/modelref`.
"""

from __future__ import annotations

import re
from functools import lru_cache

from attrs import frozen

_HOST = "registry.ollama.ai"
_NAMESPACE = "library"
_TAG = "latest"

LONGEST_KEPT = 200
"""Characters of a name that is not parsed again each time: one call names a few models some ten times."""

# What Go calls white space; Python's own idea also has the separators U+001C to U+001F.
_BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))

_VALID_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_VALID_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_VALID_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")


def normalise(name: str) -> str:
    """The one spelling that all equal names share, such as `tiny-a:latest`, `me/tiny-a:7b` or `host/me/tiny-a:7b`.

    A malformed name is only trimmed: it equals no other.
    """
    parsed = _parse(name)
    if parsed is None:
        return name.strip(_BLANKS)
    model = f"{parsed.model}:{parsed.tag}"
    if parsed.host != _HOST:
        return f"{parsed.host}/{parsed.namespace}/{model}"
    return model if parsed.namespace == _NAMESPACE else f"{parsed.namespace}/{model}"


def is_valid(name: str) -> bool:
    """Whether the name is well formed; any other is answered `invalid model name`."""
    return _parse(name) is not None


def is_cloud(name: str) -> bool:
    """Whether the name asks for a model that runs elsewhere (`:cloud`, or a tag ending in `-cloud`)."""
    base, source = _split_source(name.strip(_BLANKS))
    return source == "cloud" and _split_source(base)[1] is None


@frozen(kw_only=True)
class _Name:
    """A well-formed name in lower case with every part filled in; a cloud model's tag is `cloud` or ends so."""

    host: str
    namespace: str
    model: str
    tag: str


def _parse(name: str) -> _Name | None:
    """The parts of a name, None if it is malformed."""
    return _parse_anew(name) if len(name) > LONGEST_KEPT else _parse_once(name)


def _parse_anew(name: str) -> _Name | None:
    text, source = _split_source(name.strip(_BLANKS))
    if source is not None and _split_source(text)[1] is not None:
        return None  # `:local` and `:cloud` at once

    tag = _TAG
    # A colon before the last slash belongs to the host's port or to the scheme.
    tagged = text.rfind(":") > text.rfind("/")
    if tagged:
        text, _, tag = text.rpartition(":")
    text, slash, model = text.rpartition("/")
    if slash and not text:
        return None
    before, slash, namespace = text.rpartition("/")
    if slash and not (before and namespace):
        return None
    # Schemes are not compared, and not looked at either.
    host = (before.partition("://")[2] if "://" in before else before) or _HOST
    namespace = namespace or _NAMESPACE

    well_formed = (
        _VALID_HOST.fullmatch(host)
        and _VALID_NAMESPACE.fullmatch(namespace)
        and _VALID_PART.fullmatch(model)
        and _VALID_PART.fullmatch(tag)
    )
    if not well_formed:
        return None
    if source == "cloud":
        tag = f"{tag}-cloud" if tagged else "cloud"
    return _Name(host=host.lower(), namespace=namespace.lower(), model=model.lower(), tag=tag.lower())


_parse_once = lru_cache(1000)(_parse_anew)


def _split_source(text: str) -> tuple[str, str | None]:
    """The name without its last `:local` or `:cloud`, and which of the two it was.

    A tag that ends in `-cloud` counts as `cloud` and is left without that end.
    """
    base, colon, suffix = text.rpartition(":")
    if not colon:
        return text, None
    suffix = suffix.strip(_BLANKS)
    if suffix.lower() in ("cloud", "local"):
        return base, suffix.lower()
    if "/" not in suffix and suffix.lower().endswith("-cloud"):
        return f"{base}:{suffix[: -len('-cloud')]}", "cloud"
    return text, None
