"""What the doctor says: a page for people, data for programs, and an exit code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import PurePosixPath
from typing import Any

from core.config import CONFIG, Cluster, Profile, Stack
from core.errors import Doubtful, SparkstackError, UnfitNode
from core.facts import Facts
from core.findings import Severity
from deploy.checks.case import Case, Direction, gib
from deploy.doctor import CHECKS, Diagnosis, worst
from wheels.manifest import Manifest, load
from wheels.target import common_target

VERDICTS = {
    None: "can serve this profile",
    Severity.NOTE: "can serve this profile",
    Severity.WARNING: "can serve this profile, with doubts",
    Severity.PROBLEM: "cannot serve this profile",
}
CODES = {Severity.WARNING: Doubtful.exit_code, Severity.PROBLEM: UnfitNode.exit_code}
"""Exit codes by worst severity; 0 without a warning."""


def case_of(
    cluster: Cluster,
    stack: Stack,
    profile: Profile,
    facts: Facts,
    *,
    silent: Mapping[str, SparkstackError] | None = None,
    measured: tuple[Direction, ...] = (),
) -> Case:
    """Return the case, with the wheels at hand where one target fits all nodes and with the model as far as known."""
    answered = cluster.model_copy(update={"nodes": tuple(n for n in cluster.nodes if n.name not in (silent or {}))})
    manifest = _wheels_for(answered, stack, facts) if answered.nodes else None
    known = CONFIG / "models" / f"{PurePosixPath(profile.model).name}.json"
    config = known.read_text(encoding="utf-8") if known.is_file() else ""
    return Case(cluster, stack, profile, facts, manifest and manifest.on(cluster), config, silent or {}, measured)


def _wheels_for(cluster: Cluster, stack: Stack, facts: Facts) -> Manifest | None:
    try:
        target = common_target(cluster, facts, stack)
    except UnfitNode:
        return None
    return load(stack, target)


def exit_code(found: tuple[Diagnosis, ...]) -> int:
    """Return what the worst finding is to a script."""
    severity = worst(found)
    return 0 if severity is None else CODES.get(severity, 0)


def page(case: Case, found: tuple[Diagnosis, ...]) -> str:
    """Return everything on one page: the verdict, what the memory is for, the findings with the worst first."""
    names = ", ".join(node.name for node in case.cluster.nodes)
    counts = ", ".join(
        f"{number} {severity.word}{'s' * (number != 1)}"
        for severity in reversed(Severity)
        for number in [sum(one.finding.severity == severity for one in found)]
    )
    head = f"{names} {VERDICTS[worst(found)]} ({case.profile.name}, stack {case.stack.name})"
    return "\n".join([head, *_memory(case), *_links(case), *_findings(found), "", f"{len(CHECKS)} checks: {counts}"])


def _memory(case: Case) -> Iterator[str]:
    for node, seen, _ in case.nodes():
        need = case.need(seen)
        has = f"{gib(seen.memory_available)} of {gib(seen.memory_total)} available"
        if need.inside is None or need.total is None:
            yield f"  {node.name}: {has}"
            continue
        parts = f"{gib(need.weights or 0)} of weights, {gib(need.kv_cache or 0)} of KV cache at least"
        tokens = f", {need.tokens:,} tokens of KV cache to be expected" if need.tokens is not None else ""
        yield f"  {node.name}: {has}, {gib(need.total)} needed ({parts}){tokens}"


def _links(case: Case) -> Iterator[str]:
    """Give a line a direction that was measured."""
    for one in case.measured:
        rate = f"{one.large / 1000:.2f} Gb/s" if one.large is not None else "no rate"
        small = f"{one.small:.0f} µs a message of 10 KiB" if one.small is not None else "no message"
        packet = f"packets up to {one.largest} bytes" if one.largest is not None else "no packet"
        yield f"  {one.sender} to {one.receiver}: {rate}, {small}, {packet}"


def _findings(found: tuple[Diagnosis, ...]) -> Iterator[str]:
    """Give every finding once, with all the nodes that it was made on."""
    alike: dict[Diagnosis, list[str]] = {}
    for one in found:
        alike.setdefault(replace(one, finding=replace(one.finding, node="")), []).append(one.finding.node)
    for one, nodes in alike.items():
        yield ""
        yield f"{one.finding.severity.word}: {', '.join(nodes)}: {one.finding.cause}"
        yield f"  meaning: {one.finding.meaning}"
        yield f"  next: {one.finding.next_move}"


def as_data(case: Case, found: tuple[Diagnosis, ...]) -> dict[str, Any]:
    """Return the same for programs; sizes in bytes."""
    severity = worst(found)
    needs = {node.name: case.need(seen) for node, seen, _ in case.nodes()}
    return {
        "cluster": case.cluster.name,
        "stack": case.stack.name,
        "profile": case.profile.name,
        "serves": severity != Severity.PROBLEM,
        "worst": severity.word if severity is not None else None,
        "checks": list(CHECKS),
        "findings": [
            {
                "check": one.check,
                "severity": one.finding.severity.word,
                "node": one.finding.node,
                "finding": one.finding.cause,
                "meaning": one.finding.meaning,
                "next": one.finding.next_move,
            }
            for one in found
        ],
        "silent": sorted(case.silent),
        "links": [asdict(one) for one in case.measured],
        "memory": {
            node.name: {
                **asdict(needs[node.name]),
                "needed": needs[node.name].total,
                "available": seen.memory_available,
                "total": seen.memory_total,
            }
            for node, seen, _ in case.nodes()
        },
    }
