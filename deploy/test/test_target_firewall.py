"""deploy/target/ollama.nft, loaded by the real nft into a network of its own, with foreman's machine and a stranger's.

No privileges are needed where the kernel gives everybody a user namespace; elsewhere root's are.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import ROOT, Run

RULES = str(ROOT / "deploy" / "target" / "ollama.nft")

LISTEN = """
import socket, time
kept = [socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) for port in (11434, 8080)]
print("listens", flush=True)
time.sleep(60)
"""

CONNECT = """
import socket, sys
source, to, port = sys.argv[1:]
try:
    socket.create_connection((to, int(port)), 1, (source, 0)).close()
    print(f"{source} to {to} {port}")
except TimeoutError:
    pass
"""

# No answer is needed, and no listener: to a closed port the kernel itself says that the datagram came.
DATAGRAM = """
import socket, sys
source, to, port = sys.argv[1:]
with socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.settimeout(5)
    sender.bind((source, 0))
    sender.connect((to, int(port)))
    sender.send(b"?")
    try:
        sender.recv(1)
    except ConnectionRefusedError:
        print(f"{source} to {to} {port}/udp")
    except TimeoutError:
        pass
"""

NETWORK = """
set -eu
"$PYTHON" -c "$LISTEN" > listens &
listener=$!
unshare --net sleep 60 &
other=$!
trap 'kill $listener $other' EXIT
until [ -s listens ]; do kill -0 $listener; done
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do kill -0 $other; done
ip link add here type veth peer name there netns $other
ip link set lo up
ip link set here up
ip address add 192.0.2.1/24 dev here
ip address add 2001:db8::1/64 dev here nodad
there() { nsenter --target $other --net "$@"; }
there ip link set there up
there ip address add 192.0.2.10/24 dev there
there ip address add 192.0.2.11/24 dev there
there ip address add 2001:db8::10/64 dev there nodad
for rules in "$@"; do nft --file "$rules"; done
there "$PYTHON" -c "$CONNECT" 192.0.2.10 192.0.2.1 11434
there "$PYTHON" -c "$CONNECT" 192.0.2.11 192.0.2.1 11434
there "$PYTHON" -c "$CONNECT" 2001:db8::10 2001:db8::1 11434
there "$PYTHON" -c "$CONNECT" 192.0.2.11 192.0.2.1 8080
there "$PYTHON" -c "$CONNECT" 2001:db8::10 2001:db8::1 8080
there "$PYTHON" -c "$DATAGRAM" 192.0.2.11 192.0.2.1 11434
there "$PYTHON" -c "$DATAGRAM" 2001:db8::10 2001:db8::1 53
"$PYTHON" -c "$CONNECT" 127.0.0.1 127.0.0.1 11434
"$PYTHON" -c "$CONNECT" ::1 ::1 11434
"$PYTHON" -c "$CONNECT" 192.0.2.1 192.0.2.1 11434
"""
"""Ollama's machine is .1, foreman .10, and .11 somebody else."""

PUBLISHED = """
table ip published {
    chain incoming {
        type nat hook prerouting priority dstnat
        tcp dport 11434 redirect to :8080
    }
}
"""
"""What comes to Ollama's port goes to another, as to a container."""

STRANGERS = ["192.0.2.11 to 192.0.2.1 11434", "2001:db8::10 to 2001:db8::1 11434"]
OTHERS = [
    "192.0.2.11 to 192.0.2.1 8080",
    "2001:db8::10 to 2001:db8::1 8080",
    "192.0.2.11 to 192.0.2.1 11434/udp",
    "2001:db8::10 to 2001:db8::1 53/udp",
    "127.0.0.1 to 127.0.0.1 11434",
    "::1 to ::1 11434",
    "192.0.2.1 to 192.0.2.1 11434",
]


@pytest.mark.parametrize(
    ("rules", "reached"),
    [
        ([], [*STRANGERS, *OTHERS]),
        ([RULES], OTHERS),
        # as after a change
        ([RULES, RULES], OTHERS),
        (["published", RULES], OTHERS),
    ],
    ids=["without", "with", "again", "container"],
)
def test_only_foreman_reaches_ollama(run: Run, tmp_path: Path, rules: list[str], reached: list[str]) -> None:
    """Another machine's connection is dropped, by IPv6 too; the machine's own, other ports and UDP are as before."""
    (tmp_path / "published").write_text(PUBLISHED)
    network = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", NETWORK, "network"]
    environment = {"PYTHON": sys.executable, "LISTEN": LISTEN, "CONNECT": CONNECT, "DATAGRAM": DATAGRAM}
    said = run(*network, *rules, cwd=tmp_path, env=environment).splitlines()
    assert said == ["192.0.2.10 to 192.0.2.1 11434", *reached]
