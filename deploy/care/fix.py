"""What `invoke doctor --fix` does: ends what our own services left behind, installs missing Debian packages, has logind
leave the services' shared memory alone.

Nothing that is not known to be ours is ended, and nothing while a service runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from core.config import Node
from core.ending import GRACE, end_argv
from core.errors import UnfitNode
from core.facts import NodeFacts
from core.plan import Plan, Run, Step, make_plan
from core.process import Completed
from core.units import PREFIX, stop_argv
from deploy import apt
from deploy.checks.case import Case
from deploy.checks.residents import left_over, loses_memory, what_is_held
from wheels.target import packages_for


def plan_fix(case: Case) -> Plan:
    """Return what mends the nodes as far as it is ours to do."""
    seen = [(node, one) for node, one, _ in case.nodes()]
    return make_plan(
        f"mend {case.cluster.name} ({', '.join(node.name for node, _ in seen)})",
        (
            ("stop what serves nobody", (step for node, one in seen for step in _units(case, node, one))),
            ("end what was left behind", (step for node, one in seen for step in _processes(case, node, one))),
            ("install Debian packages", (step for node, one in seen for step in _packages(case, node, one))),
            ("keep shared memory", (_linger(case, node) for node, one in seen if loses_memory(one))),
        ),
        _notes(case),
    )


def _units(case: Case, node: Node, seen: NodeFacts) -> Iterator[Step]:
    """Stop units whose ranks hold the GPU for a vLLM that has ended."""
    if case.serves(seen):
        return
    owners = seen.condition.owners
    on_gpu = {owners[one.pid].unit for one in seen.condition.gpu_processes if one.pid in owners}
    for unit in sorted(name.removesuffix(".service") for name in on_gpu if name.startswith(PREFIX)):
        if unit in seen.units and seen.units[unit].active == "active":
            yield Run(
                node=node.name,
                title=f"stop {unit}",
                reason="its processes hold GPU memory, and vLLM has ended",
                argv=stop_argv([unit]),
                privileged=True,
                timeout=90,
            )


def _processes(case: Case, node: Node, seen: NodeFacts) -> Iterator[Step]:
    found = list(left_over(case, seen))
    if found:
        yield Run(
            node=node.name,
            title=f"end {', '.join(f'process {process.pid}' for process in found)}",
            reason="; ".join(f"{one.command[:60]} holds {what_is_held(seen, one)}" for one in found),
            argv=end_argv(found),
            privileged=any(process.uid != seen.condition.around.uid for process in found),
            timeout=GRACE + 30,
            failure=partial(_stays, node),
        )


def _stays(node: Node, done: Completed) -> UnfitNode:
    return UnfitNode(
        "a left-over process does not end",
        node=node.name,
        next_move="look at it on the node (ps, dmesg); one that waits in the driver for ever goes with a reboot only",
        evidence=done.tail(5),
    )


def _linger(case: Case, node: Node) -> Run:
    user = case.cluster.user
    return Run(
        node=node.name,
        title=f"let {user} linger",
        reason=f"logind removes what the services share when the last session of {user} ends (RemoveIPC)",
        argv=("loginctl", "enable-linger", user),
        privileged=True,
    )


def _packages(case: Case, node: Node, seen: NodeFacts) -> Iterator[Step]:
    missing = sorted(set(packages_for(case.cluster, case.stack, seen)) - seen.packages)
    if missing:
        yield from apt.install(node, missing, f"the stack {case.stack.name} needs it")


def _notes(case: Case) -> Iterator[str]:
    for node, seen, _ in case.nodes():
        if case.serves(seen) and any(process.loose for process in seen.condition.around.ours):
            yield f"{node.name}: a service of ours runs; nothing is ended there"
