"""Can these nodes take this stack? Facts in, findings out, each with the next move."""

from __future__ import annotations

from collections.abc import Iterator

from core.config import Cluster, Node, Stack
from core.facts import Facts, NodeFacts
from core.findings import Finding, apt_install
from core.plan import megabytes
from wheels.manifest import Manifest
from wheels.target import target_of

UNPACKED = 3.2
"""Bytes of an environment for a byte of wheel (measured on the cpu stack)."""


def examine(cluster: Cluster, stack: Stack, facts: Facts, manifest: Manifest | None) -> Iterator[Finding]:
    """Find what is wrong with every node for this stack (and, when it exists, these wheels)."""
    for node in cluster.nodes:
        seen = facts[node.name]
        yield from _network(cluster, node, seen)
        yield from _stack(stack, node, seen)
        if manifest is not None:
            yield from _wheels(cluster, manifest, node, seen)


def _network(cluster: Cluster, node: Node, seen: NodeFacts) -> Iterator[Finding]:
    fabric, management = seen.interface_of(node.fabric), seen.interface_of(node.management)
    where = f"cluster {cluster.name}"
    if len(cluster.nodes) == 1:
        return
    if fabric is None:
        found = seen.interface_in(cluster.fabric.subnet)
        has = f"; {found.name} has {found.ipv4[0]}" if found else ""
        yield Finding(node.name, f"no interface has the fabric address {node.fabric}{has}", f"correct it in {where}")
        return
    if management is not None and fabric.name == management.name:
        yield Finding(
            node.name,
            f"the fabric address {node.fabric} is on {fabric.name}, the management network's interface",
            f"give the cable's interface its own subnet and name that in {where}",
        )
    if not fabric.up:
        yield Finding(node.name, f"the fabric interface {fabric.name} is down", "check the cable on both nodes")


def _stack(stack: Stack, node: Node, seen: NodeFacts) -> Iterator[Finding]:
    if seen.architecture not in stack.platforms:
        yield Finding(
            node.name,
            f"it is {seen.architecture}, the stack {stack.name} is for {', '.join(stack.platforms)}",
            "choose another stack in the cluster's file",
        )
    python = "{}.{}".format(*seen.python)
    if python not in stack.python:
        yield Finding(
            node.name,
            f"its python3 is {python}, the stack {stack.name} holds wheels for {', '.join(stack.python)}",
            "install one of these as python3 on the node",
        )
    missing = sorted(set(stack.packages) - seen.packages)
    if missing:
        yield Finding(node.name, f"Debian packages are missing: {' '.join(missing)}", apt_install(missing))
    if stack.cuda and not seen.gpus:
        yield Finding(node.name, "nvidia-smi shows no GPU", "install the driver, or choose a stack without CUDA")


def _wheels(cluster: Cluster, manifest: Manifest, node: Node, seen: NodeFacts) -> Iterator[Finding]:
    target = manifest.target
    if (seen.architecture, seen.python) != (target.architecture, target.python):
        yield Finding(
            node.name,
            f"it is {target_of(seen).tag}, the wheels in hand are for {target.tag}",
            f"invoke build-wheels --cluster {cluster.flag}",
        )
    needed = 0 if manifest.release in seen.releases else int(manifest.size * UNPACKED)
    needed += sum(wheel.size for wheel in manifest.wheels if seen.wheels.get(wheel.filename) != wheel.size)
    if seen.disk_free < needed:
        yield Finding(
            node.name,
            f"the disk is full: {megabytes(seen.disk_free)} free below {cluster.root}, {megabytes(needed)} needed",
            "free space on the node, then run the same command again",
        )
