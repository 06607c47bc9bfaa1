"""A stand-in for `sops`, which no package registry carries: it reads and writes SOPS's own format, YAML and age only.

It is what the tests run `make-secrets` with, and what made the example overlay's secrets.  The format: each value is
AES-256-GCM with its path as additional data; the key of all values is encrypted by age, which is the real one here; a
MAC, SHA-512 over all values in their order, is encrypted beside them.

    fake_sops.py encrypt --filename-override <file> /dev/stdin      as .sops.yaml in this folder says
    fake_sops.py decrypt <file>                                     by the key in SOPS_AGE_KEY_FILE
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ENCRYPTED = re.compile(r"ENC\[AES256_GCM,data:(.+),iv:(.+),tag:(.+),type:str\]")


class Refused(Exception):
    """sops ends with a line and another status than 0."""


def _sealed(key: bytes, text: str, path: str) -> str:
    nonce = os.urandom(32)
    whole = AESGCM(key).encrypt(nonce, text.encode(), path.encode())
    data, iv, tag = (base64.b64encode(part).decode() for part in (whole[:-16], nonce, whole[-16:]))
    return f"ENC[AES256_GCM,data:{data},iv:{iv},tag:{tag},type:str]"


def _opened(key: bytes, text: str, path: str) -> str:
    match = ENCRYPTED.fullmatch(text)
    if match is None:
        raise Refused(f"{path} is not encrypted")
    data, iv, tag = (base64.b64decode(part) for part in match.groups())
    try:
        return AESGCM(key).decrypt(iv, data + tag, path.encode()).decode()
    except InvalidTag:
        raise Refused(f"{path} is not what was encrypted there") from None


def _changed(tree: Any, change: Callable[[str, tuple[str, ...]], str], path: tuple[str, ...] = ()) -> Any:
    """The same tree with another text at each leaf; as in SOPS the indices of lists are no part of a path."""
    if isinstance(tree, dict):
        return {key: _changed(value, change, (*path, key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_changed(value, change, path) for value in tree]
    return change(tree, path)


def _age(*arguments: str, given: bytes) -> bytes:
    done = subprocess.run(["age", *arguments], input=given, capture_output=True, check=False)
    if done.returncode:
        raise Refused(done.stderr.decode().strip())
    return done.stdout


def encrypt(document: dict[str, Any], recipient: str, regex: str) -> dict[str, Any]:
    """The document with the texts below the keys that match encrypted, and SOPS's own `sops` beside them.

    :param document: its leaves are texts.
    :raise Refused: age does not know such a recipient.
    """
    key, digest, now = os.urandom(32), hashlib.sha512(), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    wrapped = _age("--encrypt", "--armor", "--recipient", recipient, given=key).decode()

    def change(text: str, path: tuple[str, ...]) -> str:
        digest.update(text.encode())
        return _sealed(key, text, ":".join(path) + ":") if any(re.search(regex, part) for part in path) else text

    changed = _changed(document, change)
    mac = _sealed(key, digest.hexdigest().upper(), now)
    age = [{"recipient": recipient, "enc": wrapped}]
    return {
        **changed,
        "sops": {"age": age, "lastmodified": now, "mac": mac, "encrypted_regex": regex, "version": "3.9.4"},
    }


def decrypt(document: dict[str, Any], identity: str | Path) -> dict[str, Any]:
    """What was encrypted.

    :param identity: the file with the private key.
    :raise Refused: the key is another one, or something has been changed, moved, added or taken away.
    """
    sops, digest = document["sops"], hashlib.sha512()
    key = _age("--decrypt", "--identity", str(identity), given=sops["age"][0]["enc"].encode())

    def change(text: str, path: tuple[str, ...]) -> str:
        if any(re.search(sops["encrypted_regex"], part) for part in path):
            text = _opened(key, text, ":".join(path) + ":")
        digest.update(text.encode())
        return text

    changed = _changed({name: value for name, value in document.items() if name != "sops"}, change)
    if _opened(key, sops["mac"], sops["lastmodified"]) != digest.hexdigest().upper():
        raise Refused("MAC mismatch")
    return changed  # type: ignore[no-any-return]


def _rule(file: str) -> dict[str, str]:
    for rule in yaml.safe_load(Path(".sops.yaml").read_text())["creation_rules"]:
        if re.search(rule["path_regex"], file):
            return dict(rule)
    raise Refused("error loading config: no matching creation rules found")


def main(*arguments: str) -> str:
    """What `sops` prints for these arguments.

    :raise Refused: it would end with an error.
    """
    match arguments:
        case ("encrypt", "--filename-override", file, "/dev/stdin"):
            rule = _rule(file)
            made = encrypt(yaml.safe_load(sys.stdin), rule["age"], rule["encrypted_regex"])
        case ("decrypt", file):
            made = decrypt(yaml.safe_load(Path(file).read_text()), os.environ["SOPS_AGE_KEY_FILE"])
        case _:
            raise Refused(f"the stand-in does not know {arguments}")
    # Block scalars for texts of several lines, as SOPS writes them.
    yaml.SafeDumper.add_representer(
        str,
        lambda dumper, text: dumper.represent_scalar(
            "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
        ),
    )
    text: str = yaml.safe_dump(made, sort_keys=False, indent=4, width=10**6)
    return text


if __name__ == "__main__":
    try:
        sys.stdout.write(main(*sys.argv[1:]))
    except Refused as error:
        sys.exit(f"sops: {error}")
