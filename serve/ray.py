"""The Ray cluster as Ray itself sees it: nodes by fabric address, alive or not, with their GPUs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from core.config import Address, Cluster
from core.errors import NotServing
from core.process import Completed
from deploy.environment import interpreter

# `ray list nodes` needs the dashboard, which is off; ray.nodes() asks the head's control store.
_NODES = """
import json, logging, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
keys = {"address": "NodeManagerAddress", "alive": "Alive", "resources": "Resources"}
print(json.dumps([{short: node[long] for short, long in keys.items()} for node in ray.nodes()]))
"""


@dataclass(frozen=True)
class RayNode:
    """A node in Ray's list; ``gpus`` as it was started with."""

    address: str
    alive: bool
    gpus: float


def nodes_argv(cluster: Cluster, release: str) -> tuple[str, ...]:
    """Return the argv that lists Ray's nodes on the head."""
    address = f"{cluster.head.fabric}:{cluster.ray_port}"
    return (
        *("env", "RAY_USAGE_STATS_ENABLED=0", f"VLLM_HOST_IP={cluster.head.fabric}", "timeout", "60"),
        *(str(interpreter(cluster, release)), "-c", _NODES, address),
    )


def parse(text: str) -> tuple[RayNode, ...]:
    """Parse the JSON line; Ray's own notices around it are passed over. Empty when there is none."""
    for line in reversed(text.splitlines()):
        if line.startswith("[{"):  # lines of Ray's own may begin with "[2026-…"
            rows: list[dict[str, Any]] = json.loads(line)
            return tuple(RayNode(row["address"], row["alive"], row["resources"].get("GPU", 0)) for row in rows)
    return ()


def alive(nodes: tuple[RayNode, ...], address: Address) -> bool:
    """Whether Ray has a living node at this fabric address."""
    return any(node.alive and node.address == str(address) for node in nodes)


def missing(cluster: Cluster, nodes: tuple[RayNode, ...]) -> list[str]:
    """Return the names of nodes that Ray does not have alive."""
    return [node.name for node in cluster.nodes if not alive(nodes, node.fabric)]


def complete(cluster: Cluster, done: Completed) -> bool:
    """Whether every node of the cluster has joined with its GPU."""
    nodes = parse(done.out)
    return not missing(cluster, nodes) and sum(node.gpus for node in nodes if node.alive) >= len(cluster.nodes)


def incomplete(cluster: Cluster, done: Completed) -> NotServing:
    """Return the error for nodes that did not join in time."""
    nodes = parse(done.out)
    absent = missing(cluster, nodes)
    return NotServing(
        f"Ray has {sum(node.alive for node in nodes)} of {len(cluster.nodes)} nodes; "
        f"{', '.join(absent) or 'a GPU'} is missing",
        node=absent[0] if absent else None,
        next_move="check that the nodes reach each other on the fabric (ping), then invoke logs",
        evidence=done.tail(3),
    )
