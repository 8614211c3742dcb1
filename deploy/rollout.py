"""The whole of `invoke deploy` as one plan: fit, push, install, check, switch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from core.config import Cluster, Node, Stack
from core.facts import Facts, NodeFacts
from core.plan import Later, Plan, Step, make_plan
from deploy import environment, push
from deploy.doctor import examine, refuse_unfit
from wheels.manifest import Manifest, folder
from wheels.target import Target


def plan_deploy(cluster: Cluster, stack: Stack, manifest: Manifest, facts: Facts) -> Plan:
    """Return what brings every node to the release of ``manifest``; empty when all are there. Raises UnfitNode."""
    refuse_unfit(examine(cluster, stack, facts, manifest))
    source = folder(stack, manifest.target)

    def on_all(steps: Callable[[Node, NodeFacts], tuple[Step, ...]]) -> Iterator[Step]:
        return (step for node in cluster.nodes for step in steps(node, facts[node.name]))

    return make_plan(
        f"deploy {manifest.release} to {cluster.name} ({', '.join(node.name for node in cluster.nodes)})",
        (
            ("prepare", on_all(lambda node, seen: push.root_steps(cluster, node, seen))),
            ("push wheels", on_all(lambda node, seen: push.push_steps(cluster, node, seen, manifest, source))),
            ("install", on_all(lambda node, seen: environment.install_steps(cluster, stack, node, seen, manifest))),
            ("check", on_all(lambda node, seen: environment.check_steps(cluster, stack, node, seen, manifest))),
            ("switch", on_all(lambda node, seen: environment.switch_steps(cluster, node, seen, manifest.release))),
        ),
    )


def plan_unbuilt(cluster: Cluster, stack: Stack, target: Target, facts: Facts) -> Plan:
    """Return the plan of a deployment whose wheels do not exist yet: what will travel, with hashes to come."""
    refuse_unfit(examine(cluster, stack, facts, None))
    components = [f"{name}=={component.version}  sha256: not built" for name, component in stack.components.items()]
    python = environment.interpreter(cluster, f"{stack.name}-{target.tag}-(not built)")

    def later(title: str, reason: str, shown: str) -> Iterator[Step]:
        feature = f"the wheels of {stack.name}: invoke build-wheels --stack {stack.name}"
        return (
            Later(node=node.name, title=title, reason=reason, feature=feature, shown=shown) for node in cluster.nodes
        )

    return make_plan(
        f"deploy {stack.name} (not built) to {cluster.name}",
        (
            (
                "prepare",
                (step for node in cluster.nodes for step in push.root_steps(cluster, node, facts[node.name])),
            ),
            ("push wheels", later("push the stack's wheels", "none is on the node", "\n        ".join(components))),
            ("install", later("install the stack's wheels", "offline, by hash", f"{python} -m pip install …")),
            ("switch", later("switch current", "to the new release", f"{cluster.root}/current")),
        ),
    )
