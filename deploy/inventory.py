"""What is where: the releases of every node, which is in use and which was before, since when, by whom, how large."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from core.config import Cluster, Node
from core.facts import Facts, NodeFacts
from core.plan import megabytes
from deploy.environment import release_folder
from deploy.switch import before, previous, taken


@dataclass(frozen=True)
class Kept:
    """One release on one node; ``since`` and ``by`` say when and by whom it was last taken into use."""

    node: str
    release: str
    state: str
    """"in use", "previous" (what a rollback goes back to), "kept", "unfinished", or "in use, unfinished"."""
    stack: str
    serving: bool
    """Whether a unit or a process of the service names it."""
    since: str
    by: str
    size: int | None
    """Bytes on the disk; a file that other releases have too counts in each of them."""


def inventory(cluster: Cluster, facts: Facts) -> tuple[Kept, ...]:
    """Return the releases of all nodes, the one in use first, then those before it."""
    return tuple(kept for node in cluster.nodes for kept in _of_node(cluster, node, facts[node.name]))


def _of_node(cluster: Cluster, node: Node, seen: NodeFacts) -> Iterator[Kept]:
    serving = served(cluster, seen)
    for release in (*in_order(seen), *sorted(seen.partial)):
        last = next((one for one in reversed(seen.history) if one.release == release), None)
        if release == seen.current:
            last = taken(seen)
        yield Kept(
            node=node.name,
            release=release,
            state=_state(seen, release),
            stack=str(seen.releases.get(release, {}).get("stack", "")),
            serving=release in serving,
            since=last.at.strip("?") if last else "",
            by=last.by.strip("?") if last else "",
            size=seen.used.get(str(release_folder(cluster, release))),
        )


def in_order(seen: NodeFacts) -> tuple[str, ...]:
    """Return the complete releases: the one in use, those before it, then those never used, the newest first."""
    used = [*([seen.current] if seen.current in seen.releases else []), *before(seen)]
    rest = sorted(seen.releases.keys() - set(used), key=lambda one: (str(seen.releases[one].get("at", "")), one))
    return (*(one for one in used if one), *reversed(rest))


def _state(seen: NodeFacts, release: str) -> str:
    if release in seen.partial:
        return "in use, unfinished" if release == seen.current else "unfinished"
    if release == seen.current:
        return "in use"
    return "previous" if release == previous(seen) else "kept"


def served(cluster: Cluster, seen: NodeFacts) -> frozenset[str]:
    """Return the releases that units and processes of the service name on a node, whatever `current` is."""
    texts = (*seen.files.values(), *(process.command for process in seen.processes))
    pattern = re.compile(rf"{re.escape(str(cluster.root))}/releases/([^/\s'\"]+)/")
    return frozenset(found for text in texts for found in pattern.findall(text))


def differing(cluster: Cluster, facts: Facts) -> str:
    """Return in words how the nodes' releases in use differ; nothing where they are the same."""
    current = {node.name: facts[node.name].current for node in cluster.nodes}
    if len(set(current.values())) == 1:
        return ""
    return ", ".join(f"{name} has {release or 'none'}" for name, release in current.items())


def as_data(cluster: Cluster, facts: Facts) -> dict[str, Any]:
    """Return the inventory for programs."""
    nodes = {
        node.name: {"used": facts[node.name].used.get(str(cluster.root)), "free": facts[node.name].disk_free}
        for node in cluster.nodes
    }
    releases = [asdict(kept) for kept in inventory(cluster, facts)]
    return {"same": not differing(cluster, facts), "nodes": nodes, "releases": releases}


def table(cluster: Cluster, facts: Facts) -> str:
    """Return the inventory for people."""
    grid = Table(title=f"releases on {cluster.name}")
    for column in ("node", "release", "state", "since", "by", "size"):
        grid.add_column(column, overflow="fold")
    for kept in inventory(cluster, facts):
        state = f"{kept.state}, serving" if kept.serving else kept.state
        grid.add_row(kept.node, kept.release, state, kept.since or "not noted", kept.by, _size(kept.size))
    text = StringIO()
    Console(file=text, width=120).print(grid)
    return text.getvalue() + "\n".join(_words(cluster, facts)) + "\n"


def _words(cluster: Cluster, facts: Facts) -> Iterator[str]:
    for node in cluster.nodes:
        seen = facts[node.name]
        used, free = _size(seen.used.get(str(cluster.root))), _size(seen.disk_free)
        yield f"{node.name}: {used} in {cluster.root} (what several releases share counts once), {free} free"
    if odd := differing(cluster, facts):
        yield f"the nodes are not on one release: {odd}"
        yield f"next: invoke deploy --cluster {cluster.flag}, or invoke rollback --cluster {cluster.flag}"


def _size(size: int | None) -> str:
    return "?" if size is None else megabytes(size)
