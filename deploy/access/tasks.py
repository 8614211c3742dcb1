"""The task of access: host keys of nodes and jump hosts, and the keys between the nodes."""

from __future__ import annotations

from invoke.context import Context
from invoke.tasks import task

from core.choice import chosen_cluster
from core.command import Options, answer, ask, command, converge, look
from core.config import Cluster, Node
from core.errors import UsageError
from core.lock import locked
from core.question import Question
from core.remote import Hosts
from deploy.access import trust as keys
from deploy.access.peers import plan_forget, plan_keys, plan_peers
from deploy.access.trust import HostKey


@task(
    help={
        "cluster": "which machines (config/clusters)",
        "node": "only this node, with the jump hosts before it",
        "replace": "take the new key in place of the enrolled one",
        "nodes": "let each node read the suite's folder on the others, with a key of its own",
        "undo": "with --nodes: take that back",
        "yes": "do not ask",
        "dry-run": "show the keys, or the plan, and stop",
    }
)
@command
def trust(
    _: Context,
    cluster: str = "",
    node: str = "",
    replace: bool = False,
    nodes: bool = False,
    undo: bool = False,
    yes: bool = False,
    dry_run: bool = False,
) -> None:
    """Show the host keys of the nodes and of the jump hosts before them, and enrol them."""
    chosen = chosen_cluster(cluster)
    if (nodes and (node or replace or yes)) or (undo and not nodes):
        raise UsageError(
            "--nodes takes only --undo and --dry-run, and --undo belongs to it", next_move="leave the others out"
        )
    if nodes:
        _between_nodes(chosen, Options(dry_run), undo=undo)
        return
    done: dict[str, bool] = {}
    for member in [chosen.node(node)] if node else chosen.nodes:
        if not member.local:
            _way_to(chosen, member, done, replace=replace, yes=yes, dry_run=dry_run)


def _way_to(cluster: Cluster, node: Node, done: dict[str, bool], *, replace: bool, yes: bool, dry_run: bool) -> None:
    """Enrol what is on the way to a node, the nearest first: what is behind a jump host is seen only through it.

    ``done`` says of each server that was looked at whether it is enrolled now.
    """
    for way, jump in keys.places(cluster, node):
        if way.known_as not in done:
            key = keys.examine(cluster, node, way, jump=jump)
            done[way.known_as] = _enrolled(cluster, key, replace=replace, yes=yes, dry_run=dry_run)
        if jump and not done[way.known_as]:
            answer(f"{node.name}: what is behind jump host {way.known_as} can be seen once that is enrolled")
            return


def _enrolled(cluster: Cluster, key: HostKey, *, replace: bool, yes: bool, dry_run: bool) -> bool:
    """Show a key, and enrol it where that is agreed; say whether it is enrolled now."""
    name = key.node.name
    if key.known:
        answer(f"{name}: {key.fingerprint} of {key.title} is enrolled already")
        return True
    answer(f"{name}: {key.title} shows {key.fingerprint} ({key.kind})")
    keys.refuse_changed(key, replace=replace)
    if dry_run or not (yes or _agreed(name, key.kind)):
        return False
    with locked(cluster, "invoke trust"):
        keys.enrol(cluster, key, replace=replace)
    answer(f"{name}: enrolled in {cluster.known_hosts}")
    return True


def _agreed(name: str, kind: str) -> bool:
    file = f"/etc/ssh/ssh_host_{kind.removeprefix('ssh-').split('-')[0]}_key.pub"
    move = f"compare with `ssh-keygen -lf {file}` on the machine itself, then say --yes"
    return ask("Is that the fingerprint of the machine?", node=name, next_move=move)


def _between_nodes(cluster: Cluster, options: Options, *, undo: bool) -> None:
    """Make the keys where some are missing, then let each in on the others: the second plan needs the first's keys."""
    question = Question(access=True)
    if undo:
        converge("trust", cluster, question, lambda seen: plan_forget(cluster, seen), options)
        return
    with Hosts(cluster) as hosts:
        seen = look(cluster, question, options, hosts)
    plan_peers(cluster, seen)  # refuses what cannot be before a key is made
    if not plan_keys(cluster, seen).empty and not options.plan_only:
        converge("trust", cluster, question, lambda now: plan_keys(cluster, now), options)
    converge("trust", cluster, question, lambda now: plan_peers(cluster, now), options)
