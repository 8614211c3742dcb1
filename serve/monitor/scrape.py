"""What Prometheus scrapes: vLLM on the head, a node exporter on every node; and on which network a device is.

Ray is no target of its own: without `ray[default]` its agent runs with `--minimal` and exports no metrics, and with it
the port would be open on every interface (ray/dashboard/agent.py, modules/reporter/reporter_agent.py, Ray 2.60.0).
Which units of Ray run the supervisors say, in text files that the node exporters hand on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from core.config import Cluster, Node
from core.facts import Facts, NodeFacts
from core.parsers import record_or_none
from core.ports import same_port
from core.units import VLLM, runs
from serve.api.keys import FINGERPRINTS, MONITOR_KEY, fingerprints
from serve.commands import fabric_interface
from serve.files import WANTED

PROMETHEUS_PORT, EXPORTER_PORT = 9090, 9100


@dataclass(frozen=True)
class Target:
    """Where Prometheus asks for metrics: its job, the node that they are about, ADDRESS:PORT."""

    job: str
    node: str
    address: str


@dataclass(frozen=True)
class Rule:
    """Devices of a node, as a pattern on "node;device", and the network that they carry."""

    pattern: str
    network: str


def vllm(cluster: Cluster, head: NodeFacts) -> Target:
    """Return vLLM's own address on the head as it was last served: with TLS behind the proxy, on loopback and plain."""
    api = record_or_none(head.files.get(str(WANTED), "{}")).get("api")
    said = api if isinstance(api, dict) else {}
    tls = said.get("tls", cluster.api.tls is not None)
    port = urlsplit(str(said.get("url", cluster.api_url))).port or cluster.api.port
    return Target("vllm", cluster.head.name, f"{'127.0.0.1' if tls else cluster.api_host}:{port}")


def exporters(cluster: Cluster) -> tuple[Target, ...]:
    """Return the node exporters, on the fabric."""
    return tuple(Target("node", node.name, f"{node.fabric}:{EXPORTER_PORT}") for node in cluster.nodes)


def required(cluster: Cluster, facts: Facts) -> tuple[Target, ...]:
    """Return the targets that have to be up: vLLM only while its unit says that it is ready."""
    head = facts[cluster.head.name]
    ready = runs(head, VLLM) and head.units[VLLM].active == "active"
    return ((vllm(cluster, head),) if ready else ()) + exporters(cluster)


def networks(cluster: Cluster, facts: Facts) -> Iterator[Rule]:
    """Say which devices of each node are the fabric's (both halves of a port, RDMA too), and which management's."""
    for node in cluster.nodes:
        seen = facts[node.name]
        yield _rule(node, _fabric_devices(cluster, node, seen), "fabric")
        management = seen.interface_of(node.management)
        if management is not None:
            yield _rule(node, {management.name}, "management")


def _fabric_devices(cluster: Cluster, node: Node, seen: NodeFacts) -> set[str]:
    interface = fabric_interface(cluster, node, seen)
    halves = [hca for hca in seen.hcas if same_port(hca.interface, interface)]
    return {interface, *(hca.interface for hca in halves), *(hca.device for hca in halves)}


def _rule(node: Node, devices: set[str], network: str) -> Rule:
    return Rule(f"{re.escape(node.name)};({'|'.join(map(re.escape, sorted(devices)))})", network)


def key_print(head: NodeFacts) -> str:
    """Return the fingerprint of the key that opens /metrics, as the head has it; empty where there is none yet."""
    return fingerprints(head.files.get(str(FINGERPRINTS), "")).get(MONITOR_KEY, "")
