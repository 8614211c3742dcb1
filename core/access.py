"""Keys between the nodes of a cluster: what they are called, and what a node has of them.

Each node has a key of its own (~/.ssh/sparkstack-CLUSTER) that never leaves it. On the other nodes it may do one thing:
read the suite's folder by rsync, from the node's own fabric address. It is for the owner: no command here uses it.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.config import Cluster, Node
from core.reader import Reader
from core.sshroute import known_name


@dataclass(frozen=True)
class Access:
    """What one node has of the keys between the nodes."""

    user: str = ""
    """Who is asked, and whose ~/.ssh this is; empty where nobody asked."""
    key: str | None = None
    """The node's public key: type and base64."""
    authorized: frozenset[str] = frozenset()
    """Our lines of authorized_keys."""
    known: tuple[str, ...] = ()
    """Lines of the known_hosts that the node's key is used with."""
    host_keys: tuple[str, ...] = ()
    """The node's host keys: type and base64."""
    rrsync: str | None = None
    """Path of rsync's program that keeps a key to one folder."""


def key_name(cluster: Cluster) -> str:
    """Return the name of the key's file in ~/.ssh; `.pub` and `.known_hosts` are beside it."""
    return f"sparkstack-{cluster.name}"


def mark(cluster: Cluster) -> str:
    """Return what the last word of our lines in authorized_keys begins with."""
    return f"sparkstack-node:{cluster.name}:"


def fabric_name(peer: Node) -> str:
    """Return the name of a node's fabric address in known_hosts."""
    return known_name(str(peer.fabric), peer.ssh_port)


def request(cluster: Cluster) -> dict[str, list[str]]:
    """Return the commands that a probe asks: {fact: argv}. Pure."""
    name = key_name(cluster)
    return {
        "access_user": ["id", "-un"],
        "access_key": ["sh", "-c", 'test -f ~/.ssh/"$1" && cat ~/.ssh/"$1.pub"', "sh", name],
        "access_authorized": ["sh", "-c", 'grep -F -- "$1" ~/.ssh/authorized_keys', "sh", f" {mark(cluster)}"],
        "access_known": ["sh", "-c", 'cat ~/.ssh/"$1.known_hosts"', "sh", name],
        "access_host_keys": ["sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub"],
        "access_rrsync": ["sh", "-c", "command -v rrsync"],
    }


def access(reader: Reader) -> Access:
    """Parse what a node has of them."""
    return Access(
        user=reader.out("access_user", str.strip),
        key=next(iter(reader.out("access_key", _keys)), None),
        authorized=frozenset(reader.out("access_authorized", _ours)),
        known=tuple(reader.out("access_known", str.splitlines)),
        host_keys=tuple(reader.out("access_host_keys", _keys)),
        rrsync=reader.out("access_rrsync", str.strip) or None,
    )


def _keys(text: str) -> list[str]:
    """Return type and base64 of every public key."""
    return sorted(" ".join(line.split()[:2]) for line in text.splitlines() if len(line.split()) > 1)


def _ours(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("restrict,from=")]
