"""What runs, on one screen: nodes, releases, units, Ray as it sees itself, and whether the API gives a token."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from core.config import Cluster, Node, Profile
from core.facts import NodeFacts, gather
from core.question import Question
from core.remote import Hosts
from serve import ray
from serve.cluster import START_ORDER


@dataclass(frozen=True)
class NodeStatus:
    """One node: its release, units (name to state), whether Ray has it, bytes of memory available."""

    name: str
    role: str
    release: str | None
    units: dict[str, str]
    ray: str
    memory_available: int
    processes: int


@dataclass(frozen=True)
class Status:
    """The whole service."""

    cluster: str
    api: str
    token: bool
    nodes: tuple[NodeStatus, ...]


def look(cluster: Cluster, profile: Profile, hosts: Hosts) -> Status:
    """Ask every node, Ray, and the API for a token."""
    question = Question(profile)
    facts = gather(hosts, cluster, question).parsed()
    head = facts[cluster.head.name]
    members: tuple[ray.RayNode, ...] = ()
    if head.current and "sparkstack-ray-head" in head.units and head.units["sparkstack-ray-head"].active == "active":
        argv = ray.nodes_argv(cluster, head.current)
        members = ray.parse(hosts[cluster.head.name].run(argv, check=False, timeout=90).out)
    nodes = tuple(_node(cluster, node, facts[node.name], members) for node in cluster.nodes)
    return Status(cluster.name, cluster.api_url, bool(head.live.get("ready")), nodes)


def _node(cluster: Cluster, node: Node, seen: NodeFacts, members: tuple[ray.RayNode, ...]) -> NodeStatus:
    return NodeStatus(
        name=node.name,
        role="head" if node == cluster.head else "worker",
        release=seen.current,
        units={name: seen.units[name].active for name in START_ORDER if name in seen.units},
        ray="alive" if ray.alive(members, node.fabric) else "absent",
        memory_available=seen.memory_available,
        processes=len(seen.processes),
    )


def as_data(status: Status) -> dict[str, Any]:
    """Return the status for programs."""
    return asdict(status)


def table(status: Status) -> str:
    """Return the status for people."""
    grid = Table(title=f"{status.cluster}: {status.api} ({'gives tokens' if status.token else 'no token'})")
    for column in ("node", "role", "release", "units", "Ray", "memory free"):
        grid.add_column(column, overflow="fold")
    for node in status.nodes:
        units = ", ".join(f"{name.removeprefix('sparkstack-')} {state}" for name, state in node.units.items()) or "none"
        memory = f"{node.memory_available / 2**30:.1f} GiB"
        grid.add_row(node.name, node.role, node.release or "none", units, node.ray, memory)
    text = StringIO()
    Console(file=text, width=110).print(grid)
    return text.getvalue()
