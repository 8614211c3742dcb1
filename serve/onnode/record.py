"""What a supervisor writes down for others: its state as JSON, and as metrics in Prometheus' text form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serve.onnode import clock
from serve.onnode.decide import UP, Failure, Phase, Seen, State
from serve.onnode.wanted import RUN, Wanted

STATE = RUN / "state.json"
METRICS = RUN / "metrics" / "sparkstack.prom"
SERVED = Path("/var/lib/sparkstack/served.json")
"""Which service has served here, over every boot."""


def head(state: State, wanted: Wanted, seen: Mapping[str, Seen], now: float) -> dict[str, Any]:
    """Return the head's state file: the whole service."""
    return {
        "at": now,
        "node": wanted.node,
        "role": "head",
        "generation": wanted.generation,
        "phase": state.phase.value,
        "since": state.since,
        "attempt": state.attempt,
        "serial": state.serial,
        "started": _started(seen.get(wanted.node), state.serial),
        "stage": state.stage,
        "not_before": state.not_before,
        "reason": state.reason,
        "failed": state.failed,
        "over": state.over,
        "serving_since": state.since if state.phase is Phase.SERVING else None,
        "served": state.served,
        "row": [asdict(one) for one in state.row],
        "failures": [asdict(one) for one in state.failures],
        "nodes": {node: _node(seen.get(node), now) for node in wanted.nodes},
    }


def worker(wanted: Wanted, seen: Seen, alone: str, now: float, since: float) -> dict[str, Any]:
    """Return a worker's state file; ``alone`` says why it has no head, where it has none."""
    return {
        "at": now,
        "node": wanted.node,
        "role": "worker",
        "generation": wanted.generation,
        "phase": "alone" if alone else "obeying",
        "since": since,
        "serial": seen.serial,
        "started": sorted(seen.started),
        "reason": alone,
        "failures": [],
        "nodes": {wanted.node: _node(seen, now)},
    }


def _started(seen: Seen | None, serial: int) -> list[str]:
    """Return what was started by this order; a report from before it knows another's."""
    return sorted(seen.started) if seen is not None and seen.serial == serial else []


def _node(seen: Seen | None, now: float) -> dict[str, Any]:
    if seen is None:
        return {"seen": None, "units": {}, "memory_available": None, "notes": []}
    return {
        "seen": round(now - seen.at, 1),
        "units": {name: unit.active for name, unit in seen.units.items()},
        "memory_available": seen.memory,
        "notes": list(seen.notes),
    }


def state(text: str, generation: str) -> State | None:
    """Return the state that a head's file holds; None where it is of another service, or none at all."""
    try:
        data = json.loads(text)
        if data["generation"] != generation or data["role"] != "head":
            return None
        # by how much the time of day has jumped meanwhile; less than a second is the clocks' own drift
        jumped = round(clock.BEGAN - float(data.get("clock", clock.BEGAN)))
        return State(
            phase=Phase(data["phase"]),
            since=data["since"] + jumped,
            reason=data["reason"],
            attempt=data["attempt"],
            serial=data["serial"],
            stage=data["stage"],
            not_before=data["not_before"] + jumped,
            served=data["served"],
            row=tuple(Failure(**one) for one in data["row"]),
            failures=tuple(Failure(**one) for one in data["failures"]),
            failed=data["failed"],
            over=data["over"],
        )
    except (ValueError, KeyError, TypeError):
        return None


def order(text: str, generation: str) -> tuple[int, frozenset[str]]:
    """Return the order that a node had when its file was written, and which units it had started by it.

    0 and none where it is of another service, or no such file.
    """
    try:
        data = json.loads(text)
        if data["generation"] != generation:
            return 0, frozenset()
        return int(data["serial"]), frozenset(str(name) for name in data["started"])
    except (ValueError, KeyError, TypeError):
        return 0, frozenset()


def serve(generation: str, at: float) -> None:
    """Write down that a service serves; ``at`` in seconds since the epoch. Raises OSError."""
    write(SERVED, json.dumps({"generation": generation, "at": at}) + "\n")


def served(generation: str) -> float | None:
    """Return when this service served last as far as it was written down, None for one that never has."""
    try:
        data = json.loads(SERVED.read_text(encoding="utf-8"))
        return float(data["at"]) if data["generation"] == generation else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def metrics(data: Mapping[str, Any]) -> str:
    """Return a state file as metrics (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
    return "".join(f"{line}\n" for line in _metrics(data))


def _metrics(data: Mapping[str, Any]) -> Iterator[str]:
    yield "# TYPE sparkstack_phase gauge"
    phases = [phase.value for phase in Phase] if data["role"] == "head" else ["obeying", "alone"]
    yield from (f'sparkstack_phase{{phase="{phase}"}} {int(data["phase"] == phase)}' for phase in phases)
    if data["role"] == "head":
        yield "# TYPE sparkstack_attempts_total counter"
        yield f"sparkstack_attempts_total {data['attempt']}"
        yield "# TYPE sparkstack_failures_total counter"
        yield f"sparkstack_failures_total {data['failed']}"
        yield "# TYPE sparkstack_serving_seconds gauge"
        serving = data["serving_since"]
        yield f"sparkstack_serving_seconds {max(0, data['at'] - serving) if serving else 0:.0f}"
        yield from _ray(data)
    yield "# TYPE sparkstack_unit_up gauge"
    for node, one in data["nodes"].items():
        for unit, active in one["units"].items():
            yield f'sparkstack_unit_up{{node="{node}",unit="{unit}"}} {int(active in UP)}'
    yield "# TYPE sparkstack_memory_available_bytes gauge"
    for node, one in data["nodes"].items():
        if one["memory_available"] is not None:
            yield f'sparkstack_memory_available_bytes{{node="{node}"}} {one["memory_available"]}'


def _ray(data: Mapping[str, Any]) -> Iterator[str]:
    """Ray's nodes as their units tell: `ray start --block` ends with its raylet. Each has one GPU."""
    units = [(unit, active) for one in data["nodes"].values() for unit, active in one["units"].items()]
    ray = [active in UP for unit, active in units if unit.startswith("sparkstack-ray-")]
    if ray:
        yield "# TYPE sparkstack_ray_nodes_alive gauge"
        yield f"sparkstack_ray_nodes_alive {sum(ray)}"
        yield "# TYPE sparkstack_ray_gpus gauge"
        yield f"sparkstack_ray_gpus {sum(ray)}"


def write(path: Path, text: str) -> None:
    """Replace a file in one piece; readers never see half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.chmod(0o644)
    beside.replace(path)
