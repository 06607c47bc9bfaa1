"""deploy/target/ollama.nft, loaded by the real nft into a network of its own, with foreman's machine and a stranger's.

Root makes such a network, and so does everybody where the kernel gives user namespaces; in Docker's containers, as they
are without options, nobody does.
"""

from __future__ import annotations

import subprocess
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

ASK = """
import socket, sys
for question in sys.argv[1].splitlines():
    source, _, to, port = question.split()
    number, _, udp = port.partition("/")
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as asking:
        asking.settimeout(5 if udp else 1)
        asking.bind((source, 0))
        try:
            asking.connect((to, int(number)))
            if udp:  # to a closed port: that it came, the kernel itself says
                asking.send(b"?")
                asking.recv(1)
        except ConnectionRefusedError:
            assert udp
        except TimeoutError:
            continue
    print(question)
"""
"""Prints those of its questions that get through."""

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
there "$PYTHON" -c "$ASK" "$ABROAD"
"$PYTHON" -c "$ASK" "$AT_HOME"
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

FOREMAN = ["192.0.2.10 to 192.0.2.1 11434"]
STRANGERS = ["192.0.2.11 to 192.0.2.1 11434", "2001:db8::10 to 2001:db8::1 11434"]
BESIDE = [
    "192.0.2.11 to 192.0.2.1 8080",
    "2001:db8::10 to 2001:db8::1 8080",
    "192.0.2.11 to 192.0.2.1 11434/udp",
    "2001:db8::10 to 2001:db8::1 53/udp",
]
AT_HOME = ["127.0.0.1 to 127.0.0.1 11434", "::1 to ::1 11434", "192.0.2.1 to 192.0.2.1 11434"]


@pytest.fixture(scope="module")
def apart() -> list[str]:
    """What runs a command in a network of its own: root's way, which goes in a chroot too, or everybody's."""
    ways = ["unshare", "--net"], ["unshare", "--user", "--map-root-user", "--net"]
    for way in ways:
        able = subprocess.run([*way, "ip", "link", "set", "lo", "up"], stderr=subprocess.DEVNULL, check=False)
        if able.returncode == 0:
            return way
    pytest.fail("nobody may make a network here: `make test-firewall` needs root's CAP_SYS_ADMIN, or user namespaces")


@pytest.mark.parametrize(
    ("rules", "let_in"),
    [
        ([], STRANGERS),
        ([RULES], []),
        # as after a change
        ([RULES, RULES], []),
        (["published", RULES], []),
    ],
    ids=["without", "with", "again", "container"],
)
def test_only_foreman_reaches_ollama(
    run: Run, apart: list[str], tmp_path: Path, rules: list[str], let_in: list[str]
) -> None:
    """Another machine's connection is dropped, by IPv6 too; the machine's own, other ports and UDP are as before."""
    (tmp_path / "published").write_text(PUBLISHED)
    environment = {"PYTHON": sys.executable, "LISTEN": LISTEN, "ASK": ASK}
    environment |= {"ABROAD": "\n".join([*FOREMAN, *STRANGERS, *BESIDE]), "AT_HOME": "\n".join(AT_HOME)}
    said = run(*apart, "sh", "-c", NETWORK, "network", *rules, cwd=tmp_path, env=environment).splitlines()
    assert said == [*FOREMAN, *let_in, *BESIDE, *AT_HOME]
