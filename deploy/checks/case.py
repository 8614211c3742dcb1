"""What a check looks at, and the form of its findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from core.condition import Condition
from core.config import Cluster, Node, Profile, Stack
from core.errors import SparkstackError
from core.facts import Facts, NodeFacts
from core.findings import Finding
from core.units import ENGINE, VLLM
from deploy.need import Need, need_of
from deploy.shape import Shape, read_shape
from wheels.manifest import Manifest


@dataclass(frozen=True)
class Direction:
    """What was measured from one node to another. None: it could not be measured, ``error`` says why.

    ``large`` in Mb/s of all streams, ``small`` in microseconds a message, ``largest`` in bytes a packet.
    """

    sender: str
    receiver: str
    large: float | None
    small: float | None
    largest: int | None
    error: str = ""


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
    silent: Mapping[str, SparkstackError] = field(default_factory=dict)
    """Why a node did not answer, by its name; of the others there are facts."""
    measured: tuple[Direction, ...] = ()
    """The fabric, where it was measured (`invoke doctor --link`)."""

    def nodes(self) -> Iterator[tuple[Node, NodeFacts, Condition]]:
        """Give every node that answered with its facts and its condition."""
        for node in self.cluster.nodes:
            if node.name not in self.silent:
                seen = self.facts[node.name]
                yield node, seen, seen.condition

    def serves(self, seen: NodeFacts) -> bool:
        """Whether the node works for a service of ours: units run there, and vLLM on the head as far as it answers."""
        head = self.cluster.head.name
        return bool(running(seen)) and (head in self.silent or VLLM in running(self.facts[head]))

    def shape(self, seen: NodeFacts) -> Shape | None:
        """Return the shape of the model: as the node has it, else as the suite knows it."""
        return read_shape(seen.condition.model_config or self.known_config)

    def need(self, seen: NodeFacts) -> Need:
        """Return what the profile needs of this node's memory."""
        return need_of(self.profile, self.shape(seen), seen)


Check = Callable[[Case], Iterator[Finding]]


def running(seen: NodeFacts) -> list[str]:
    """Name the units of a service of ours that run on the node."""
    return sorted(name for name in ENGINE if name in seen.units and seen.units[name].active in ("active", "activating"))


def gib(size: float) -> str:
    """Return bytes for people: "30.5 GiB"."""
    return f"{size / 2**30:.1f} GiB"
