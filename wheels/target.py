"""What wheels are made for, and which one target fits every node of a cluster."""

from __future__ import annotations

from core.config import Cluster, Model
from core.errors import UnfitNode
from core.facts import Facts, NodeFacts


class Target(Model):
    """What wheels are made for: architecture as `uname -m` says it, Python minor version, glibc."""

    architecture: str
    python: tuple[int, int]
    glibc: tuple[int, int] = (2, 36)

    @property
    def tag(self) -> str:
        """Folder name, e.g. "aarch64-cp312"."""
        return f"{self.architecture}-cp{self.python[0]}{self.python[1]}"

    @property
    def in_words(self) -> str:
        """Everything that a wheel has to fit, for people."""
        return "{}, Python {}.{}, glibc {}.{}".format(self.architecture, *self.python, *self.glibc)


def target_of(seen: NodeFacts) -> Target:
    """Return what wheels for this node are made for."""
    return Target(architecture=seen.architecture, python=seen.python, glibc=seen.glibc)


def common_target(cluster: Cluster, facts: Facts) -> Target:
    """Return the one target of all nodes, with the oldest glibc among them. Raises UnfitNode if they are not alike."""
    targets = {node.name: target_of(facts[node.name]) for node in cluster.nodes}
    head = targets[cluster.head.name]
    for name, target in targets.items():
        if target.tag != head.tag:
            raise UnfitNode(
                f"it is {target.tag}, the head {cluster.head.name} is {head.tag}: one release cannot fit both",
                node=name,
                next_move="make the nodes alike (operating system, python3)",
            )
    return head.model_copy(update={"glibc": min(target.glibc for target in targets.values())})
