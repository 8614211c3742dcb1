"""Keys between the nodes, as plans: made on each node, let in on the others for one thing, and taken back.

What is let in: reading the suite's folder by rsync (rrsync -ro), from the node's fabric address; no shell, no
forwarding, no writing. Only our own lines of authorized_keys are touched, the file is replaced in one piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from core.access import Access, fabric_name, key_name, mark
from core.config import Cluster, Node
from core.errors import UnfitNode, UsageError
from core.facts import Facts
from core.plan import Later, Plan, Run, Step, make_plan

_MAKE = """
set -e
umask 077
mkdir -p ~/.ssh
rm -f ~/.ssh/"$1" ~/.ssh/"$1.pub"
ssh-keygen -q -t ed25519 -N "" -C "$2" -f ~/.ssh/"$1"
"""

_AUTHORIZE = """
set -e
umask 077
mkdir -p ~/.ssh
file=$(readlink -f ~/.ssh/authorized_keys)
fresh=$file.sparkstack-new
mark=$1
shift
rm -f "$fresh"
if [ -e "$file" ]; then cp -p "$file" "$fresh"; else : > "$fresh"; fi
{
    if [ -e "$file" ]; then
        awk -v mark="$mark" '!(index($0, "restrict,from=") == 1 && index($NF, mark) == 1)' "$file"
    fi
    if [ $# -gt 0 ]; then printf '%s\\n' "$@"; fi
} > "$fresh"
sync "$fresh"
mv -T "$fresh" "$file"
"""

_KNOW = """
set -e
umask 077
file=~/.ssh/"$1.known_hosts"
shift
printf '%s\\n' "$@" > "$file.new"
sync "$file.new"
mv -T "$file.new" "$file"
"""

_FORGET = 'cd ~/.ssh && rm -f "$1" "$1.pub" "$1.known_hosts"'


def plan_keys(cluster: Cluster, facts: Facts) -> Plan:
    """Return what makes a key on every node that has none; empty where each has one."""
    return make_plan(_title(cluster), (("make keys", _make(cluster, facts)),))


def plan_peers(cluster: Cluster, facts: Facts) -> Plan:
    """Return what lets every node read the suite's folder on the others; empty where it is so.

    A key that is not made yet stands in the plan as something that comes first. Raises UsageError, UnfitNode.
    """
    if len(cluster.nodes) == 1:
        raise UsageError(
            f"{cluster.name} has one node, and so no other to let in",
            next_move=f"take back what an earlier cluster left: invoke trust --nodes --undo --cluster {cluster.flag}",
        )
    for node in cluster.nodes:
        _refuse_unfit(cluster, node, facts[node.name].access)
    return make_plan(
        _title(cluster),
        (
            ("make keys", _make(cluster, facts)),
            ("let the nodes in", (step for node in cluster.nodes for step in _let_in(cluster, node, facts))),
            ("enrol host keys of the fabric", (step for node in cluster.nodes for step in _know(cluster, node, facts))),
        ),
    )


def plan_forget(cluster: Cluster, facts: Facts) -> Plan:
    """Return what takes all of it back."""
    return make_plan(
        f"take back the keys between the nodes of {cluster.name}", (("take keys back", forget(cluster, facts)),)
    )


def forget(cluster: Cluster, facts: Facts) -> Iterator[Step]:
    """Return the steps that take our lines, keys and known hosts off every node."""
    for node in cluster.nodes:
        access = facts[node.name].access
        if access.authorized:
            yield _authorize(cluster, node, (), "they are to be let in no longer")
        if access.key or access.known:
            yield Run(
                node=node.name,
                title=f"remove ~/.ssh/{key_name(cluster)}",
                reason="no other node is to be reached with it any longer",
                argv=("sh", "-c", _FORGET, "sh", key_name(cluster)),
            )


def _title(cluster: Cluster) -> str:
    return f"let the nodes of {cluster.name} read each other's {cluster.root}"


def _make(cluster: Cluster, facts: Facts) -> Iterator[Step]:
    for node in cluster.nodes:
        if facts[node.name].access.key is None:
            yield Run(
                node=node.name,
                title=f"make ~/.ssh/{key_name(cluster)}",
                reason="the node has no key of its own for the others",
                argv=("sh", "-c", _MAKE, "sh", key_name(cluster), f"sparkstack {cluster.name} {node.name}"),
            )


def _let_in(cluster: Cluster, node: Node, facts: Facts) -> Iterator[Step]:
    peers = [peer for peer in cluster.nodes if peer != node]
    missing = [peer.name for peer in peers if facts[peer.name].access.key is None]
    if missing:
        yield Later(
            node=node.name,
            title=f"let in {', '.join(missing)}",
            reason="for reading the suite's folder by rsync, and nothing else",
            command="the key is made",
        )
        return
    access = facts[node.name].access
    lines = tuple(_line(cluster, peer, access, facts[peer.name].access) for peer in peers)
    if access.authorized != frozenset(lines):
        yield _authorize(cluster, node, lines, "for reading the suite's folder by rsync, and nothing else")


def _line(cluster: Cluster, peer: Node, here: Access, there: Access) -> str:
    """Return the line of authorized_keys for ``peer``; see sshd(8), AUTHORIZED_KEYS FILE FORMAT."""
    command = f"{here.rrsync} -ro {cluster.root}"
    return f'restrict,from="{peer.fabric}",command="{command}" {there.key} {mark(cluster)}{peer.name}'


def _authorize(cluster: Cluster, node: Node, lines: Sequence[str], reason: str) -> Run:
    others = ", ".join(peer.name for peer in cluster.nodes if peer != node) or "other nodes"
    return Run(
        node=node.name,
        title=f"{'let in' if lines else 'shut out'} {others} in ~/.ssh/authorized_keys",
        reason=reason,
        argv=("sh", "-c", _AUTHORIZE, "sh", mark(cluster), *lines),
    )


def _know(cluster: Cluster, node: Node, facts: Facts) -> Iterator[Step]:
    """Enrol what the other nodes say of themselves over connections whose host keys are known."""
    lines = tuple(
        f"{fabric_name(peer)} {key}"
        for peer in cluster.nodes
        if peer != node
        for key in facts[peer.name].access.host_keys
    )
    if facts[node.name].access.known != lines:
        yield Run(
            node=node.name,
            title=f"write {len(lines)} host keys into ~/.ssh/{key_name(cluster)}.known_hosts",
            reason="the other nodes are known by them at their fabric addresses",
            argv=("sh", "-c", _KNOW, "sh", key_name(cluster), *lines),
        )


def _refuse_unfit(cluster: Cluster, node: Node, access: Access) -> None:
    if access.user != cluster.user:
        raise UnfitNode(
            f"keys are made for {cluster.user}, and {access.user or 'nobody'} was asked there",
            node=node.name,
            next_move=f"run this as {cluster.user} where a node is this host (local = true)",
        )
    if access.rrsync is None:
        raise UnfitNode(
            "rrsync is not there, which keeps a key to one folder",
            node=node.name,
            next_move="sudo apt-get install rsync (3.2.4 or newer)",
        )
    if not access.host_keys:
        raise UnfitNode(
            "it has no readable host keys in /etc/ssh", node=node.name, next_move="make them: sudo ssh-keygen -A"
        )
