"""The suite's own folder on a node."""

from __future__ import annotations

from core.config import Cluster
from core.facts import NodeFacts
from core.plan import Run, Step


def root_steps(cluster: Cluster, seen: NodeFacts) -> tuple[Step, ...]:
    """Make the suite's folder on the node, owned by the SSH user: the only privileged step before a service runs."""
    if seen.root_owner == cluster.user:
        return ()
    argv = ("install", "-d", "-m", "755", "-o", cluster.user, str(cluster.root))
    reason = "it does not exist" if seen.root_owner is None else f"it belongs to {seen.root_owner}"
    return (Run(node=seen.name, title=f"make {cluster.root}", reason=reason, argv=argv, privileged=True),)
