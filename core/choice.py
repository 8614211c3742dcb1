"""Which cluster a command means when it is not told."""

from __future__ import annotations

import os

from core.config import CONFIG, Cluster, Stack, load_cluster, load_stack
from core.errors import UsageError
from core.mistakes import nearest

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
    """Return the first cluster of config/clusters whose stack this is. Raises UsageError when there is none."""
    clusters = [load_cluster(path.stem) for path in sorted((CONFIG / "clusters").glob("*.toml"))]
    for cluster in clusters:
        if cluster.stack == stack:
            return cluster
    stacks = sorted({cluster.stack for cluster in clusters})
    raise UsageError(
        f"no cluster has the stack {stack!r}{nearest(stack, stacks)}",
        next_move=f"name a cluster with --cluster; their stacks are {', '.join(stacks)}",
    )
