"""What a node is wanted to serve, and its part in it: /etc/sparkstack/service.json, written by `invoke serve`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVICE = Path("/etc/sparkstack/service.json")
CREDENTIALS = Path("/etc/sparkstack/credentials")
RUN = Path("/run/sparkstack")
"""What goes with the supervisor: its state, the sign to drain, metrics."""


@dataclass(frozen=True)
class Limits:
    """Patience and persistence; all times in seconds.

    ``delays`` grow and stay at the last one; ``attempts`` is how many failures in a row end in giving up; ``lost`` is
    how long a node may be silent; ``stable`` is how long it has to serve until earlier failures are forgotten.
    """

    start: float
    delays: tuple[float, ...] = (2, 10, 30, 60, 120)
    attempts: int = 5
    lost: float = 12
    stable: float = 600
    memory: float = 120


@dataclass(frozen=True)
class Wanted:
    """The service, and which of its nodes this one is.

    ``stages`` are node to unit, one stage after the other; ``memory`` is node to bytes that have to be available before
    a start; ``root`` is the suite's folder.
    """

    generation: str
    cluster: str
    node: str
    head: str
    addresses: Mapping[str, str]
    port: int
    stages: tuple[Mapping[str, str], ...]
    memory: Mapping[str, int]
    limits: Limits
    user: str
    root: str = ""
    hook: tuple[str, ...] = ()

    @property
    def nodes(self) -> tuple[str, ...]:
        """Every node, the head first."""
        return tuple(self.addresses)

    @property
    def members(self) -> tuple[str, ...]:
        """The nodes that have a unit of it; one without is in nobody's way (mp with fewer ranks than nodes)."""
        return tuple(node for node in self.nodes if self.units_of(node))

    def units_of(self, node: str) -> tuple[str, ...]:
        """Return the units of a node in starting order."""
        return tuple(stage[node] for stage in self.stages if node in stage)

    def until(self, stage: int) -> Mapping[str, tuple[str, ...]]:
        """Return node to the units that run once this stage has begun."""
        begun = self.stages[: stage + 1]
        return {node: tuple(one[node] for one in begun if node in one) for node in self.nodes}


def parse(text: str) -> Wanted:
    """Parse the file. Raises ValueError, KeyError or TypeError for what is none."""
    data: dict[str, Any] = json.loads(text)
    limits = dict(data["limits"])
    limits["delays"] = tuple(limits["delays"])
    return Wanted(
        generation=data["generation"],
        cluster=data["cluster"],
        node=data["node"],
        head=data["head"],
        addresses=dict(data["addresses"]),
        port=int(data["port"]),
        stages=tuple(dict(stage) for stage in data["stages"]),
        memory={node: int(size) for node, size in data["memory"].items()},
        limits=Limits(**limits),
        user=data["user"],
        root=data.get("root", ""),
        hook=tuple(data.get("hook", ())),
    )
