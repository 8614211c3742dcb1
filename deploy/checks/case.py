"""What a check looks at, and the form of its findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from core.condition import Condition
from core.config import Cluster, Node, Profile, Stack
from core.facts import Facts, NodeFacts
from core.findings import Finding
from deploy.need import Need, need_of
from deploy.shape import Shape, read_shape
from wheels.manifest import Manifest


@dataclass(frozen=True)
class Case:
    """Machines, what they are to serve, and what was seen of them."""

    cluster: Cluster
    stack: Stack
    profile: Profile
    facts: Facts
    manifest: Manifest | None = None
    known_config: str = ""
    """The config.json of the profile's model as the suite knows it, for nodes that do not have the model yet."""

    def nodes(self) -> Iterator[tuple[Node, NodeFacts, Condition]]:
        """Give every node with its facts and its condition."""
        for node in self.cluster.nodes:
            seen = self.facts[node.name]
            yield node, seen, seen.condition

    def serves(self, seen: NodeFacts) -> bool:
        """Whether the node works for a service of ours: units run there, and vLLM on the head."""
        return bool(running(seen)) and VLLM in running(self.facts[self.cluster.head.name])

    def shape(self, seen: NodeFacts) -> Shape | None:
        """Return the shape of the model: as the node has it, else as the suite knows it."""
        return read_shape(seen.condition.model_config or self.known_config)

    def need(self, seen: NodeFacts) -> Need:
        """Return what the profile needs of this node's memory."""
        return need_of(self.profile, self.shape(seen), seen)


SERVING = ("sparkstack-ray", "sparkstack-vllm")
"""How the units begin that hold memory and ports while a model is served."""
VLLM = "sparkstack-vllm"
"""The unit of the engine and the API, on the head."""

Check = Callable[[Case], Iterator[Finding]]


def running(seen: NodeFacts) -> list[str]:
    """Name the units of a service of ours that run on the node."""
    active = (unit.name for unit in seen.units.values() if unit.active in ("active", "activating"))
    return sorted(name for name in active if name.startswith(SERVING))


def gib(size: float) -> str:
    """Return bytes for people: "30.5 GiB"."""
    return f"{size / 2**30:.1f} GiB"
