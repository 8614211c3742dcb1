"""Host keys: shown with their fingerprints, enrolled by an explicit command, never by the first connection."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from core.config import Cluster, Node
from core.errors import HostKeyRefused
from core.remote import scan_host_key


@dataclass(frozen=True)
class HostKey:
    """The key that a node shows now, beside the one that is enrolled."""

    node: Node
    line: str
    """As in known_hosts: address, type, base64."""
    enrolled: str | None

    @property
    def fingerprint(self) -> str:
        """SHA256:… as ssh-keygen -l prints it."""
        digest = hashlib.sha256(base64.b64decode(self.line.split()[2])).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    @property
    def known(self) -> bool:
        """Whether exactly this key is enrolled."""
        return self.enrolled == self.line

    @property
    def changed(self) -> bool:
        """Whether another key is enrolled for this address."""
        return self.enrolled is not None and not self.known


def examine(cluster: Cluster, node: Node) -> HostKey:
    """Return the node's key as it shows it now. Raises NodeUnreachable."""
    line = " ".join(scan_host_key(cluster, node).split()[:3])
    return HostKey(node, line, _lines(cluster).get(line.split()[0]))


def refuse_changed(key: HostKey, *, replace: bool) -> None:
    """Raise HostKeyRefused for a key in place of another one, unless ``replace``."""
    if key.changed and not replace:
        raise HostKeyRefused(
            "another key is enrolled for this address",
            node=key.node.name,
            next_move="find out why it changed (reinstalled?), then say --replace",
        )


def enrol(cluster: Cluster, key: HostKey, *, replace: bool) -> None:
    """Write the key into the cluster's known_hosts. Raises HostKeyRefused for a changed key unless ``replace``."""
    refuse_changed(key, replace=replace)
    lines = {**_lines(cluster), key.line.split()[0]: key.line}
    cluster.state.mkdir(parents=True, exist_ok=True)
    fresh = cluster.known_hosts.with_name("known_hosts.new")
    fresh.write_text("".join(f"{line}\n" for line in lines.values()), encoding="utf-8")
    fresh.replace(cluster.known_hosts)


def _lines(cluster: Cluster) -> dict[str, str]:
    if not cluster.known_hosts.is_file():
        return {}
    text = cluster.known_hosts.read_text(encoding="utf-8")
    return {line.split()[0]: " ".join(line.split()[:3]) for line in text.splitlines() if len(line.split()) >= 3}
