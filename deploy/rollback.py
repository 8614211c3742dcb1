"""Back to a release that is still on every node, as one plan: check it, then switch to it on all nodes or on none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from core.config import Cluster, Node
from core.errors import UnfitNode, UsageError
from core.facts import Facts, NodeFacts
from core.hand import NOBODY, Hand
from core.mistakes import nearest
from core.plan import Plan, Run, make_plan
from deploy.environment import import_step
from deploy.inventory import differing, served
from deploy.switch import before, last, plan_switch


def wanted_release(cluster: Cluster, facts: Facts, to: str = "") -> str:
    """Return the release to go back to: ``to``, or else the one before the one in use.

    A rollback that was cut off goes on to where it went. Where the nodes differ otherwise (a deployment was cut off) it
    is the release which all of them had noted last. Raises UsageError for a release that no node has, UnfitNode for one
    that a node lacks, or where there is none.
    """
    if to:
        _require(cluster, facts, to)
        return to
    if under_way := _under_way(cluster, facts):
        return under_way
    if odd := differing(cluster, facts):
        return _noted_by_all(cluster, facts, odd)
    head = facts[cluster.head.name]
    found = next((one for one in before(head) if _lacking(cluster, facts, one) is None), None)
    if found is None:
        raise UnfitNode(
            f"no release before {head.current or 'any'} is on every node",
            node=cluster.head.name,
            next_move=f"invoke releases --cluster {cluster.flag}, then name one with --to",
        )
    return found


def _under_way(cluster: Cluster, facts: Facts) -> str | None:
    """Return the release in use somewhere that was noted before on every node, but not as the last one."""
    seen = [facts[node.name] for node in cluster.nodes]
    known = {one.current for one in seen if one.current != last(one)}
    noted = [{taken.release for taken in one.history} & one.releases.keys() for one in seen]
    return next((release for release in sorted(filter(None, known)) if all(release in one for one in noted)), None)


def _noted_by_all(cluster: Cluster, facts: Facts, odd: str) -> str:
    noted = {last(facts[node.name]) for node in cluster.nodes}
    release = noted.pop()
    if noted or release is None or _lacking(cluster, facts, release) is not None:
        raise UnfitNode(
            f"the nodes are not on one release, and had none in common before: {odd}",
            node=cluster.head.name,
            next_move=f"invoke releases --cluster {cluster.flag}, then name one with --to",
        )
    return release


def _require(cluster: Cluster, facts: Facts, release: str) -> None:
    there = sorted({name for node in cluster.nodes for name in facts[node.name].releases})
    if release not in there:
        raise UsageError(
            f"no node has a complete release {release}{nearest(release, there)}",
            next_move=f"use one of: {', '.join(there)}" if there else f"invoke deploy --cluster {cluster.flag}",
        )
    if node := _lacking(cluster, facts, release):
        raise UnfitNode(
            f"the release {release} is not complete there",
            node=node.name,
            next_move="choose one that every node has (invoke releases), or deploy that release's stack again",
        )


def _lacking(cluster: Cluster, facts: Facts, release: str) -> Node | None:
    return next((node for node in cluster.nodes if release not in facts[node.name].releases), None)


def plan_rollback(cluster: Cluster, facts: Facts, release: str, *, hand: Hand = NOBODY) -> Plan:
    """Return what brings every node to a release that all of them have; empty when it is in use already."""
    _require(cluster, facts, release)
    moving = [node for node in cluster.nodes if facts[node.name].current != release]
    switch = plan_switch(cluster, facts, release, hand)
    return make_plan(
        f"roll {cluster.name} back to {release} ({', '.join(node.name for node in cluster.nodes)})",
        (
            ("check", (_imports(cluster, node, facts[node.name], release) for node in moving)),
            *switch.stages,
        ),
        _notes(cluster, facts, release) if moving else (),
        undo=switch.undo,
    )


def _imports(cluster: Cluster, node: Node, seen: NodeFacts, release: str) -> Run:
    """A driver or a system library may have changed since the release was made."""
    record = seen.releases[release]
    step = import_step(cluster, node, release, record.get("imports", ()), record.get("environment", {}))
    return replace(step, hint="nothing was switched; it loaded when it was made, so see what changed on the node since")


def _notes(cluster: Cluster, facts: Facts, release: str) -> Iterator[str]:
    others = {one for node in cluster.nodes for one in served(cluster, facts[node.name])} - {release}
    if others:
        yield f"the service still names {', '.join(sorted(others))}: invoke restart takes it to {release}"
