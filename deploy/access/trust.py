"""Host keys: shown with their fingerprints, enrolled by an explicit command, never by the first connection."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from core.config import Cluster, Node
from core.connection import shown_key
from core.errors import HostKeyRefused, NodeUnreachable
from core.sshroute import Route, hops, route


@dataclass(frozen=True)
class HostKey:
    """The key that a server shows now, beside those that are enrolled: the node's, or a jump host's before it."""

    node: Node
    name: str
    """As in known_hosts: address, or [address]:port."""
    kind: str
    key: str
    """Base64."""
    enrolled: Mapping[str, str]
    """Kind to key."""
    jump: bool = False

    @property
    def line(self) -> str:
        """As in known_hosts: name, kind, base64."""
        return f"{self.name} {self.kind} {self.key}"

    @property
    def fingerprint(self) -> str:
        """SHA256:… as ssh-keygen -l prints it."""
        digest = hashlib.sha256(base64.b64decode(self.key)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    @property
    def title(self) -> str:
        """Whose key it is, for people."""
        return f"jump host {self.name}" if self.jump else self.name

    @property
    def known(self) -> bool:
        """Whether exactly this key is enrolled."""
        return self.enrolled.get(self.kind) == self.key

    @property
    def changed(self) -> bool:
        """Whether only other keys are enrolled under this name."""
        return bool(self.enrolled) and not self.known


def places(cluster: Cluster, node: Node) -> Iterator[tuple[Route, bool]]:
    """Return every server on the way to the node, the nearest first, and the node; and whether it is a jump host."""
    way = route(cluster, node)
    for hop in hops(cluster, way):
        yield hop, True
    yield way, False


def examine(cluster: Cluster, node: Node, way: Route, *, jump: bool = False) -> HostKey:
    """Return the key that a server shows now: of a kind that is enrolled, else the best that it has.

    Raises NodeUnreachable, and HostKeyRefused for a jump host before it that is not enrolled.
    """
    enrolled = _enrolled(cluster, way.known_as)
    shown = (shown_key(cluster, node, way, tuple(enrolled)) if enrolled else None) or shown_key(cluster, node, way)
    if shown is None:
        raise NodeUnreachable(
            f"{way.known_as} has no host key of a kind that is known here",
            node=node.name,
            next_move="make one there: ssh-keygen -A, as root",
        )
    return HostKey(node, way.known_as, *shown, enrolled, jump)


def refuse_changed(key: HostKey, *, replace: bool) -> None:
    """Raise HostKeyRefused for a key in place of another one, unless ``replace``."""
    if key.changed and not replace:
        raise HostKeyRefused(
            f"another key is enrolled for this address ({key.title})",
            node=key.node.name,
            next_move="find out why it changed (reinstalled?), then say --replace",
        )


def enrol(cluster: Cluster, key: HostKey, *, replace: bool) -> None:
    """Write the key into the cluster's known_hosts, whose lock the caller holds.

    Raises HostKeyRefused for a changed key unless ``replace``, also where another command enrolled the other meanwhile.
    """
    now = HostKey(key.node, key.name, key.kind, key.key, _enrolled(cluster, key.name), key.jump)
    refuse_changed(now, replace=replace)
    lines = [line for line in (_without(line, key.name) for line in _lines(cluster)) if line]
    cluster.state.mkdir(parents=True, exist_ok=True)
    fresh = cluster.known_hosts.with_name("known_hosts.new")
    fresh.write_text("".join(f"{line}\n" for line in [*lines, key.line]), encoding="utf-8")
    fresh.replace(cluster.known_hosts)


def _without(line: str, name: str) -> str:
    """Return a line without this name, empty when it has no other; what is no entry stays as it is."""
    names, *rest = line.split()
    left = [one for one in names.split(",") if one != name]
    return " ".join([",".join(left), *rest]) if left else ""


def _enrolled(cluster: Cluster, name: str) -> dict[str, str]:
    """Return the keys that are enrolled under a name: kind to base64."""
    return {kind: key for names, kind, key in _entries(cluster) if name in names.split(",")}


def _entries(cluster: Cluster) -> Iterator[tuple[str, str, str]]:
    for line in _lines(cluster):
        words = line.split()
        if len(words) >= 3 and not line.startswith(("#", "@")):
            yield words[0], words[1], words[2]


def _lines(cluster: Cluster) -> list[str]:
    if not cluster.known_hosts.is_file():
        return []
    return [line for line in cluster.known_hosts.read_text(encoding="utf-8").splitlines() if line.strip()]
