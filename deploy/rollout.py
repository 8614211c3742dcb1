"""The whole of `invoke deploy` as one plan: fit, push, install, check, switch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from core.config import Cluster, Node, Stack, shown
from core.facts import Facts, NodeFacts
from core.findings import refuse_unfit
from core.hand import NOBODY, Hand
from core.host import CONTROLLER
from core.plan import Later, Plan, Stage, Step, make_plan
from core.root import root_steps
from deploy import authenticity, conda, environment, interpreter, push
from deploy.authenticity import Signed
from deploy.doctor import examine
from deploy.switch import plan_switch
from wheels.manifest import Manifest, draft, folder
from wheels.target import Target


def plan_deploy(
    cluster: Cluster,
    stack: Stack,
    manifest: Manifest,
    facts: Facts,
    signed: Signed | None = None,
    *,
    hand: Hand = NOBODY,
) -> Plan:
    """Return what brings every node to the release of ``manifest``; empty when all are there. Raises UnfitNode.

    ``signed`` is what the nodes verify it by, where the cluster names who may sign; ``hand`` is noted with the release.
    """
    refuse_unfit(examine(cluster, stack, facts, manifest))
    source = folder(stack, manifest.target)
    switch = plan_switch(cluster, facts, manifest.release, hand)

    def on_all(steps: Callable[[Node, NodeFacts], tuple[Step, ...]]) -> Iterator[Step]:
        return (step for node in cluster.nodes for step in steps(node, facts[node.name]))

    return make_plan(
        f"deploy {manifest.release} to {cluster.name} ({', '.join(node.name for node in cluster.nodes)})",
        (
            ("prepare", on_all(lambda _, seen: root_steps(cluster, seen))),
            (
                "verify the signature",
                on_all(lambda node, seen: authenticity.signature_steps(cluster, node, seen, manifest, signed)),
            ),
            ("push wheels", push.push_steps(cluster, facts, manifest, source)),
            (
                "verify the wheels",
                on_all(lambda node, seen: authenticity.wheel_steps(cluster, node, seen, manifest, signed)),
            ),
            ("fetch Python", interpreter.fetch_steps(cluster, stack, facts, manifest)),
            (
                "bring Python",
                on_all(lambda node, seen: interpreter.bring_steps(cluster, stack, node, seen, manifest)),
            ),
            ("install", on_all(lambda node, seen: environment.install_steps(cluster, stack, node, seen, manifest))),
            (
                "check",
                on_all(lambda node, seen: environment.check_steps(cluster, stack, node, seen, manifest, hand=hand)),
            ),
            ("hooks", on_all(lambda node, seen: conda.hook_steps(cluster, stack, node, seen, manifest))),
            ("name", on_all(lambda node, seen: conda.name_steps(cluster, node, seen))),
            *switch.stages,
        ),
        undo=switch.undo,
    )


def plan_unbuilt(cluster: Cluster, stack: Stack, target: Target, facts: Facts) -> Plan:
    """Return the plan of a deployment whose wheels do not exist yet; its first step says so, so it cannot be run."""
    manifest = draft(stack, target).on(cluster)
    deployment = plan_deploy(cluster, stack, manifest, facts)
    build = Later(
        node=CONTROLLER,
        title=f"have the {len(manifest.wheels)} wheels of {stack.name} in {shown(folder(stack, target))}",
        reason="no manifest is there",
        command=f"invoke build-wheels --stack {stack.name}",
        shown="\n".join(_unbuilt(stack, manifest)),
    )
    first = Stage("wheels", (build, *authenticity.unsigned_steps(cluster, stack)))
    return replace(deployment, stages=(first, *deployment.stages))


def _unbuilt(stack: Stack, manifest: Manifest) -> Iterator[str]:
    yield f"invoke build-wheels --stack {stack.name}"
    for name, component in stack.components.items():
        yield f"{name}=={component.version}  from {component.origin}  sha256: not built"
    yield f"and {len(manifest.wheels) - len(stack.components)} that these need, by hash from {stack.lock}"
