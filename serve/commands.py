"""The commands of the ranks and their environment, as the guide's chapter 5 has them, on the addresses of the cluster.

The environment is in place before Ray starts: what is set later never reaches the workers
(https://docs.vllm.ai/en/stable/serving/parallelism_scaling/).
"""

from __future__ import annotations

from core.config import Cluster, Node
from core.errors import UnfitNode
from core.facts import NodeFacts
from core.ports import same_port
from deploy.environment import interpreter
from serve.cluster import Service

WORKER_PORTS = (10002, 19999)
"""Ports of Ray's own worker processes and drivers, first and last: its default, but said, so that a firewall can be."""
GUARD = "serve.onnode.guard.Guard"


def vllm_argv(service: Service) -> tuple[str, ...]:
    """Return the command of the API server and rank 0, as a person could paste it."""
    cluster, profile = service.cluster, service.profile
    return (
        *_served(service),
        *_parallel(service, cluster.head),
        *("--host", str(cluster.engine_host), "--port", str(cluster.api.port)),
        *("--middleware", GUARD, "--disable-uvicorn-access-log"),
        *profile.flags,
    )


def rank_argv(service: Service, node: Node) -> tuple[str, ...]:
    """Return the command of a worker's rank where vLLM itself spreads over nodes (executor mp)."""
    return (*_served(service), *_parallel(service, node), "--headless", *service.profile.flags)


def _served(service: Service) -> tuple[str, ...]:
    vllm = interpreter(service.cluster, service.release).parent / "vllm"
    return (str(vllm), "serve", str(service.model), "--served-model-name", *service.profile.served_names)


def _parallel(service: Service, node: Node) -> tuple[str, ...]:
    cluster, profile = service.cluster, service.profile
    sizes = (
        *("--pipeline-parallel-size", str(profile.pipeline_parallel)),
        *("--tensor-parallel-size", str(profile.tensor_parallel)),
        *("--distributed-executor-backend", profile.executor),
    )
    nodes = service.ranked
    if profile.executor == "ray" or len(nodes) == 1:
        return sizes
    return (
        *sizes,
        *("--nnodes", str(len(nodes)), "--node-rank", str(nodes.index(node))),
        *("--master-addr", str(cluster.head.fabric), "--master-port", str(cluster.master_port)),
    )


def environment_of(service: Service, node: Node, seen: NodeFacts) -> dict[str, str]:
    """Return the environment of every process of ours on ``node``: its own fabric address and interface first.

    NCCL, GLOO and TP are told the interface because their own choice is the default route, the management network
    (https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-socket-ifname).
    """
    cluster = service.cluster
    interface = fabric_interface(cluster, node, seen)
    network = {
        "VLLM_HOST_IP": str(node.fabric),
        "NCCL_SOCKET_IFNAME": interface,
        "GLOO_SOCKET_IFNAME": interface,
        "TP_SOCKET_IFNAME": interface,
    }
    if service.profile.executor == "ray":
        network["RAY_ADDRESS"] = f"{cluster.head.fabric}:{cluster.ray_port}"
        network["RAY_worker_niceness"] = "0"
    if service.ray_asks:
        network["RAY_AUTH_MODE"] = "token"
    halves = [hca.device for hca in seen.hcas if hca.up and same_port(hca.interface, interface)]
    if halves:
        network |= {"NCCL_IB_HCA": ",".join(halves), "NCCL_IB_DISABLE": "0"}
    return {**service.stack.environment, **service.profile.environment, **network}


def fabric_interface(cluster: Cluster, node: Node, seen: NodeFacts) -> str:
    """Return the interface that carries the node's fabric address. Raises UnfitNode when none does."""
    found = seen.interface_of(node.fabric)
    if found is None:
        raise UnfitNode(
            f"no interface has the fabric address {node.fabric}",
            node=node.name,
            next_move=f"invoke network --cluster {cluster.flag}, or correct the cluster {cluster.name}",
        )
    return cluster.fabric.interface or found.name
