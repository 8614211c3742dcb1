"""What the nodes' memory (and GPUs) can do, measured by the probe wheel of the release in use."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from core.config import Cluster
from core.errors import FactsError, UnfitNode
from core.host import Host
from core.remote import Hosts


def measure(cluster: Cluster, hosts: Hosts) -> dict[str, dict[str, Any]]:
    """Run the probe on every node at once; node name to its JSON (rates in GB/s and TFLOP/s).

    Raises UnfitNode for a node without a release.
    """
    with ThreadPoolExecutor(len(cluster.nodes)) as pool:
        return dict(pool.map(lambda node: (node.name, _measured(cluster, hosts[node.name])), cluster.nodes))


def _measured(cluster: Cluster, host: Host) -> dict[str, Any]:
    python = str(cluster.root / "current/venv/bin/python")
    if host.run(("test", "-x", python), check=False).code != 0:
        raise UnfitNode("it has no release in use", node=host.name, next_move="invoke deploy")
    done = host.run((python, "-m", "sparkstack_probe"), timeout=300)
    try:
        data: dict[str, Any] = json.loads(done.out)
    except json.JSONDecodeError as error:
        raise FactsError(
            "the probe printed something that is not JSON", node=host.name, next_move="report it", evidence=done.tail()
        ) from error
    return data


def table(measured: dict[str, dict[str, Any]]) -> str:
    """Return the rates for people: the median of the repeats and their spread."""
    grid = Table(title="memory and GPU rates, median (slowest to fastest)")
    for column in ("node", "what", "GB/s"):
        grid.add_column(column)
    for name, data in measured.items():
        for what in ("read", "write", "copy"):
            grid.add_row(name, f"memory {what}", _spread(data["memory"][what]))
        for device in data["devices"]["found"]:
            grid.add_row(name, f"{device['name']} copy", _spread(device["copy"]))
    text = StringIO()
    Console(file=text, width=100).print(grid)
    return text.getvalue()


def _spread(rate: dict[str, float]) -> str:
    return f"{rate['median']:.1f} ({rate['slowest']:.1f} to {rate['fastest']:.1f})"
