"""Which cluster a command means when it is not told."""

from __future__ import annotations

import os

from core.config import CONFIG, Address, Cluster, Network, Node, Stack, Subnet, load_cluster, load_stack
from core.errors import UsageError
from core.host import CONTROLLER

DEFAULT = "spark"


def chosen_cluster(flag: str) -> Cluster:
    """Return the cluster of the flag, else of the variable SPARKSTACK_CLUSTER, else `spark`."""
    return load_cluster(flag or os.environ.get("SPARKSTACK_CLUSTER", "") or DEFAULT)


def stack_of(cluster: Cluster, flag: str = "") -> Stack:
    """Return the cluster's stack; a flag must agree with it. Raises UsageError."""
    if flag and flag != cluster.stack:
        raise UsageError(
            f"--stack {flag} does not agree with the cluster {cluster.name}, whose stack is {cluster.stack}",
            next_move=f"leave --stack out, or write stack = {flag!r} into the cluster's file",
        )
    return load_stack(cluster.stack)


def cluster_of_stack(stack: str) -> Cluster:
    """Return a cluster to make this stack's wheels for: the first of config/clusters that has it, else the chosen one.

    Raises ConfigError for a stack that does not exist.
    """
    load_stack(stack)
    clusters = [load_cluster(path.stem) for path in sorted((CONFIG / "clusters").glob("*.toml"))]
    found = next((cluster for cluster in clusters if cluster.stack == stack), chosen_cluster(""))
    return found.model_copy(update={"stack": stack})


def this_host(stack: str) -> Cluster:
    """Return a cluster of this host alone, for what needs no node: its only node is called `controller`."""
    own, network = Address("127.0.0.1"), Network(subnet=Subnet("127.0.0.0/8"))
    return Cluster(
        name="this-host",
        stack=stack,
        profile="tiny",
        user="root",
        management=network,
        fabric=network,
        nodes=(Node(name=CONTROLLER, management=own, fabric=own, local=True),),
    )
