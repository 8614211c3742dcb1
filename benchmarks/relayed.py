"""A model on a tmpfs of one machine, and the two ways to the other one: the suite's scripts, and rsync over ssh."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from core.config import ROOT, Cluster, Node
from core.host import Host
from core.remote import Hosts
from deploy.models.fetching import PACKAGE, PACKAGES

PLACE = PurePosixPath("/opt/relay")
PORT = 29790
OFFER = "sparkstack-bench-offer"
SHARDS = 4
ROOM = 1 << 30
"""Bytes that the suite leaves free."""
PYTHON = ("env", "-C", str(PLACE), "/usr/bin/python3", "-E", "-s")
_MAKE = f"""
import hashlib, json, os, sys
folder, size = sys.argv[1], int(sys.argv[2]) // {SHARDS}
os.mkdir(folder)
files = []
for number in range({SHARDS}):
    found, left, name = hashlib.sha256(), size, f"model-{{number}}.safetensors"
    with open(f"{{folder}}/{{name}}", "wb") as file:
        while left:
            block = os.urandom(min(left, 1 << 22))
            left -= file.write(block)
            found.update(block)
    files.append({{"path": name, "size": size, "sha256": found.hexdigest()}})
with open(f"{{folder}}/sparkstack-model.json", "w") as file:
    json.dump({{"format": 1, "repository": "made/here", "files": files}}, file)
"""
_KEY = """
set -e
mkdir -p -m 700 ~/.ssh && rm -f "$1/key" "$1/key.pub" && ssh-keygen -q -t ed25519 -N "" -f "$1/key"
ssh-keyscan -t ed25519 "$2" > "$1/known_hosts" 2>/dev/null && cat "$1/key.pub"
"""
_LIKE = 'cd "$1" && find . -name "*.safetensors" -printf "%f %s\\n" | sort'


@dataclass(frozen=True)
class Ends:
    """The machine that has the model, and the one that gets it."""

    cluster: Cluster
    source: Host
    target: Host
    listed: str
    """Names and sizes of the model's files."""

    def prepare(self, *, offered: bool) -> None:
        """Remove what arrived before; offer the model where the relay comes next."""
        self.source.run(("systemctl", "stop", OFFER), privileged=True, check=False)
        self.target.run(("rm", "-rf", str(PLACE / "arrived"), str(PLACE / ".arrived.incoming")))
        if offered:
            self._offer()

    def _offer(self) -> None:
        told = {"address": str(self._node(self.source).fabric), "port": PORT, "secret": secrets.token_hex(16)}
        for host, name, folder in ((self.source, "offer", "model"), (self.target, "take", "arrived")):
            host.write(PLACE / f"{name}.json", json.dumps({**told, "folder": str(PLACE / folder)}))
        unit = ("systemd-run", f"--unit={OFFER}", f"--uid={self.cluster.user}", "--collect", "--quiet")
        offer = (*PYTHON, "-m", f"{PACKAGE}.offer", str(PLACE / "offer.json"))
        self.source.run((*unit, *offer), privileged=True)
        listens = f"until ss -Hltn sport = :{PORT} | grep -q .; do sleep 0.1; done"
        self.source.run(("sh", "-c", listens), timeout=20)

    def relay(self) -> None:
        """Take the model as `invoke model.fetch` has it taken, verified by its manifest."""
        self.target.run((*PYTHON, "-m", f"{PACKAGE}.take", str(PLACE / "take.json")), timeout=600)

    def rsync(self, cipher: str = "") -> None:
        """Copy it with rsync over ssh, over the same network; ssh chooses the cipher unless one is given."""
        options = f"-i {PLACE}/key -o IdentitiesOnly=yes -o UserKnownHostsFile={PLACE}/known_hosts"
        ssh = f"ssh {options} -o BatchMode=yes{f' -c {cipher}' if cipher else ''}"
        where = f"{self.cluster.user}@{self._node(self.target).fabric}:{PLACE}/arrived/"
        self.source.run(("rsync", "-a", "-e", ssh, f"{PLACE}/model/", where), timeout=600)

    def require_arrived(self) -> None:
        """Raise where the other machine does not have every file."""
        if _listed(self.target, PLACE / "arrived") != self.listed:
            raise RuntimeError("the model did not arrive")

    def _node(self, host: Host) -> Node:
        return self.cluster.node(host.name)


def _listed(host: Host, folder: PurePosixPath) -> str:
    return host.run(("sh", "-c", _LIKE, "sh", str(folder))).out


@contextmanager
def laid_out(cluster: Cluster, hosts: Hosts, size: int) -> Iterator[Ends]:
    """Make a tmpfs on both machines, the model on the first, a key of its own for rsync; all goes at the end."""
    source, target = (hosts[node.name] for node in cluster.nodes[:2])
    try:
        for host in (source, target):
            _mount(cluster, host, size)
        source.run(("python3", "-c", _MAKE, str(PLACE / "model"), str(size)), timeout=300)
        public = source.run(("sh", "-c", _KEY, "sh", str(PLACE), str(cluster.node(target.name).fabric))).out
        _let_in(target, public)
        yield Ends(cluster, source, target, _listed(source, PLACE / "model"))
    finally:
        source.run(("systemctl", "stop", OFFER), privileged=True, check=False)
        target.run(("sed", "-i", "/relay-benchmark$/d", ".ssh/authorized_keys"), check=False)
        for host in (source, target):
            host.run(("umount", "--lazy", str(PLACE)), privileged=True, check=False)


def _mount(cluster: Cluster, host: Host, size: int) -> None:
    host.run(("umount", "--lazy", str(PLACE)), privileged=True, check=False)
    host.run(("install", "-d", "-o", cluster.user, str(PLACE)), privileged=True)
    options = f"size={size + ROOM + (1 << 28)},mode=755,uid={host.run(('id', '-u')).out.strip()}"
    host.run(("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(PLACE)), privileged=True)
    for folder in (package.replace(".", "/") for package in PACKAGES):
        host.run(("mkdir", "-p", str(PLACE / folder)))
        host.push(sorted((ROOT / folder).glob("*.py")), PLACE / folder, lambda _: None)


def _let_in(host: Host, public: str) -> None:
    kind, key, *_ = public.split()
    line = f"\n{kind} {key} relay-benchmark\n"
    host.run(("sh", "-c", 'printf %s "$1" >> .ssh/authorized_keys', "sh", line))
