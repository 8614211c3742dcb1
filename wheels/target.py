"""What wheels are made for, and which one target fits every node of a cluster."""

from __future__ import annotations

import re

from core.backend import Interpreter, Minor
from core.config import Cluster, Model, Stack
from core.errors import UnfitNode
from core.facts import Facts, NodeFacts
from core.parsers import python_version


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


def target_of(seen: NodeFacts, python: Minor | None = None) -> Target:
    """Return what wheels for this node are made for, with its own python3 or that version."""
    return Target(architecture=seen.architecture, python=python or seen.python, glibc=seen.glibc)


def common_target(cluster: Cluster, facts: Facts, stack: Stack | None = None) -> Target:
    """Return the one target of all nodes, with the oldest glibc among them. Raises UnfitNode if they are not alike.

    With a stack it is for a Python that all of them have, or can be brought, where there is one that the stack takes.
    """
    python = python_for(cluster, facts, stack) if stack else None
    targets = {node.name: target_of(facts[node.name], python) for node in cluster.nodes}
    head = targets[cluster.head.name]
    for name, target in targets.items():
        if target.tag != head.tag:
            raise UnfitNode(
                f"it is {target.tag}, the head {cluster.head.name} is {head.tag}: one release cannot fit both",
                node=name,
                next_move="make the nodes alike (operating system, python3)",
            )
    return head.model_copy(update={"glibc": min(target.glibc for target in targets.values())})


def python_for(cluster: Cluster, facts: Facts, stack: Stack) -> Minor | None:
    """Return the version of Python that a release gets on all nodes; None where no version of the stack can be had.

    The head's python3 comes first, then the stack's order; what is there comes before what has to be brought.
    """
    seen = [facts[node.name] for node in cluster.nodes]
    own = facts[cluster.head.name].python
    minors = sorted(map(python_version, stack.python), key=lambda minor: minor != own)
    there = (minor for minor in minors if all(base_python(cluster, one, minor) for one in seen))
    brought = (minor for minor in minors if all(can_have(cluster, stack, one, minor) for one in seen))
    return next(there, None) or next(brought, None)


def can_have(cluster: Cluster, stack: Stack, seen: NodeFacts, minor: Minor) -> bool:
    """Say whether the cluster's backend can make an environment of that Python on a node."""
    return bool(base_python(cluster, seen, minor) or (not cluster.backend.conda and archive_for(stack, seen, minor)))


def base_python(cluster: Cluster, seen: NodeFacts, minor: Minor) -> str | None:
    """Return the node's own interpreter of that version, or with conda the environment to take it from."""
    if cluster.backend.conda:
        return seen.pythons.seeds.get(minor) if seen.pythons.conda else None
    if cluster.backend.python == "brought":
        return None
    return "python3" if seen.python == minor else seen.pythons.found.get(minor)


def packages_for(cluster: Cluster, stack: Stack, seen: NodeFacts) -> tuple[str, ...]:
    """Return the stack's Debian packages for a node; Python's headers only where that Python is Debian's own."""
    return tuple(name for name in stack.packages if not _needless_headers(cluster, seen, name))


def _needless_headers(cluster: Cluster, seen: NodeFacts, package: str) -> bool:
    """A Python that is brought, conda's or uv's has its headers with it."""
    named = re.fullmatch(r"python(3\.\d+)-dev", package)
    if named is None:
        return False
    python = None if cluster.backend.conda else base_python(cluster, seen, python_version(named[1]))
    return python is None or not (python == "python3" or python.startswith("/usr/bin/"))


def archive_for(stack: Stack, seen: NodeFacts, minor: Minor) -> Interpreter | None:
    """Return the Python that the stack brings to such a node."""
    fitting = (one for one in stack.interpreters if (one.platform, one.minor) == (seen.architecture, minor))
    return next(fitting, None)
