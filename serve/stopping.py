"""The end of the service: draining, the supervisors, what they started, and whatever else of ours still lives."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from core.config import Cluster, Node
from core.ending import GRACE, end_argv
from core.errors import NotServing
from core.facts import Facts, NodeFacts
from core.plan import Plan, Run, Step, make_plan
from core.surroundings import OurProcess
from core.units import ENGINE, PREFIX, PROXY, RUNNING, SERVICE, SUPERVISOR, stop_argv
from serve import drain


def plan_stop(cluster: Cluster, facts: Facts, patience: float = 60, *, everything: bool = False) -> Plan:
    """Return what ends the service on every node; empty when nothing of ours runs. ``patience`` in seconds.

    ``everything`` includes what only watches, and processes that no unit holds any more.
    """
    rest = (step for node in cluster.nodes for step in _rest(node, facts[node.name])) if everything else ()
    return make_plan(
        f"stop the service on {cluster.name}",
        (*stop_stages(cluster, facts, "stop was asked for", patience), ("end what is left", rest)),
        undo={"drain": drain.undo(cluster, facts)},
    )


def stop_stages(
    cluster: Cluster,
    facts: Facts,
    reason: str,
    patience: float,
    again: Callable[[Node], Collection[str]] = lambda _: (),
) -> Iterator[tuple[str, tuple[Step, ...]]]:
    """Let running requests end, then end the supervisors, which end what they started, and whatever is left.

    ``again`` are a node's units that are started right after: whatever comes between, the next boot starts them.
    """
    yield "drain", tuple(drain.steps(cluster, facts, patience))
    yield "stop", tuple(step for node in cluster.nodes for step in _stop(node, facts[node.name], reason, again(node)))


def _stop(node: Node, seen: NodeFacts, reason: str, again: Collection[str]) -> Iterator[Step]:
    units = [name for name in (SUPERVISOR, PROXY, *reversed(ENGINE)) if _there(seen, name)]
    kept = [
        name for name in (SUPERVISOR, PROXY) if name not in again and name in seen.units and seen.units[name].enabled
    ]
    if kept:
        argv = ("systemctl", "disable", "--quiet", *kept)
        yield Run(node=node.name, title="start nothing at boot", reason=reason, argv=argv, privileged=True)
    if units:
        title = f"stop {', '.join(name.removeprefix(PREFIX) for name in units)}"
        yield Run(node=node.name, title=title, reason=reason, argv=stop_argv(units), privileged=True, timeout=180)


def _rest(node: Node, seen: NodeFacts) -> Iterator[Step]:
    """End other units of ours that run, and processes whose unit or starter is gone."""
    units = sorted(name for name in seen.units if name not in SERVICE and _there(seen, name))
    if units:
        title, argv = f"stop {', '.join(units)}", stop_argv(units)
        yield Run(node=node.name, title=title, reason="--all", argv=argv, privileged=True, timeout=180)
    loose = [one for one in seen.condition.around.ours if one.loose and not one.unit.startswith(PREFIX)]
    if loose:
        yield Run(
            node=node.name,
            title=f"end {', '.join(f'process {one.pid}' for one in loose)}",
            reason="; ".join(one.command[:60] for one in loose[:5]),
            argv=end_argv(loose),
            privileged=True,
            timeout=GRACE + 30,
        )


def _there(seen: NodeFacts, name: str) -> bool:
    unit = seen.units.get(name)
    return unit is not None and unit.active in (*RUNNING, "failed")


def require_nothing_left(cluster: Cluster, facts: Facts, *, everything: bool) -> None:
    """Raise NotServing for the first node where a process of ours still lives, with who holds it."""
    for node in cluster.nodes:
        left = [one for one in facts[node.name].condition.around.ours if everything or not _watches(one)]
        if not left:
            continue
        by_hand = f"end them where they were started, or on the node: kill {' '.join(str(one.pid) for one in left)}"
        loose = any(one.loose for one in left) and not everything
        raise NotServing(
            f"{len(left)} processes of ours are left",
            node=node.name,
            next_move=f"invoke stop --all --cluster {cluster.flag}" if loose else by_hand,
            evidence="\n".join(f"{one.pid} {one.command[:120]} ({one.unit}, by {one.starter})" for one in left[:10]),
        )


def _watches(process: OurProcess) -> bool:
    """Whether it belongs to a unit of ours that is none of the service's (invoke monitor)."""
    name = process.unit.removesuffix(".service")
    return name.startswith(PREFIX) and name not in SERVICE
