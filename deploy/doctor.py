"""Can these nodes take this stack, and serve this profile? Facts in, findings out, each with the next move.

`examine` is what `invoke deploy` asks before it brings wheels; CHECKS is all that `invoke doctor` asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from core.backend import plain
from core.config import Cluster, Node, Stack
from core.facts import Facts, NodeFacts
from core.findings import Finding, Severity, apt_install
from core.parsers import python_version
from core.plan import megabytes
from deploy import conda
from deploy.checks import fabric, gpu, leftovers, likeness, measured, memory, model, residents
from deploy.checks.case import Case, Check
from deploy.push import coming
from wheels.manifest import Manifest
from wheels.target import can_have, packages_for, target_of

UNPACKED = 3.2
"""Bytes of an environment for a byte of wheel (measured on the cpu stack)."""


def examine(cluster: Cluster, stack: Stack, facts: Facts, manifest: Manifest | None) -> Iterator[Finding]:
    """Find what is wrong with every node for this stack (and, when it exists, these wheels)."""
    for node in cluster.nodes:
        seen = facts[node.name]
        yield from _network(cluster, node, seen)
        yield from _stack(cluster, stack, node, seen)
        if manifest is not None:
            yield from _wheels(cluster, stack, manifest, node, seen)


def _network(cluster: Cluster, node: Node, seen: NodeFacts) -> Iterator[Finding]:
    fabric, management = seen.interface_of(node.fabric), seen.interface_of(node.management)
    where = f"cluster {cluster.name}"
    if len(cluster.nodes) == 1:
        return
    if fabric is None:
        found = seen.interface_in(cluster.fabric.subnet)
        has = f"; {found.name} has {found.ipv4[0]}" if found else ""
        move = f"invoke network --cluster {cluster.flag}, or correct it in {where}"
        yield Finding(node.name, f"no interface has the fabric address {node.fabric}{has}", move)
        return
    if management is not None and fabric.name == management.name:
        yield Finding(
            node.name,
            f"the fabric address {node.fabric} is on {fabric.name}, the management network's interface",
            f"give the cable's interface its own subnet and name that in {where}",
        )
    if not fabric.up:
        yield Finding(node.name, f"the fabric interface {fabric.name} is down", "check the cable on both nodes")


def _stack(cluster: Cluster, stack: Stack, node: Node, seen: NodeFacts) -> Iterator[Finding]:
    if seen.architecture not in stack.platforms:
        yield Finding(
            node.name,
            f"it is {seen.architecture}, the stack {stack.name} is for {', '.join(stack.platforms)}",
            "choose another stack in the cluster's file",
        )
    if not any(can_have(cluster, stack, seen, python_version(python)) for python in stack.python):
        yield _no_python(cluster, stack, node, seen)
    yield from conda.findings(cluster, node, seen)
    missing = sorted(set(packages_for(cluster, stack, seen)) - seen.packages)
    if missing:
        yield Finding(node.name, f"Debian packages are missing: {' '.join(missing)}", apt_install(missing))
    if stack.cuda and not seen.gpus:
        yield Finding(node.name, "nvidia-smi shows no GPU", "install the driver, or choose a stack without CUDA")


def _no_python(cluster: Cluster, stack: Stack, node: Node, seen: NodeFacts) -> Finding:
    if cluster.backend.python == "brought":
        move = (
            'name an archive under [[interpreters]] of the stack, or take python = "brought" out of the cluster\'s file'
        )
        return Finding(node.name, f"the stack {stack.name} brings no Python for {seen.architecture}", move)
    if cluster.backend.conda:
        has, versions = f"no environment in {cluster.miniforge} has a Python", sorted(seen.pythons.seeds)
        move = f"on the node, with a network: conda create --name python --yes python={stack.python[0]}"
    else:
        has, versions = f"its python3 is {plain(seen.python)}", sorted(seen.pythons.found)
        move = "install one of these on the node, or name an archive of one under [[interpreters]] of the stack"
    others = f" (there are {', '.join(map(plain, versions))})" if versions else ""
    return Finding(node.name, f"{has}{others}, the stack {stack.name} holds wheels for {', '.join(stack.python)}", move)


def _wheels(cluster: Cluster, stack: Stack, manifest: Manifest, node: Node, seen: NodeFacts) -> Iterator[Finding]:
    target = manifest.target
    pythons = [minor for minor in map(python_version, stack.python) if can_have(cluster, stack, seen, minor)]
    if seen.architecture != target.architecture or (pythons and target.python not in pythons):
        yield Finding(
            node.name,
            f"it is {target_of(seen, (pythons or [seen.python])[0]).tag}, the wheels in hand are for {target.tag}",
            f"invoke build-wheels --cluster {cluster.flag}",
        )
    needed = 0 if manifest.release in seen.releases else int(manifest.size * UNPACKED)
    needed += coming(seen, manifest)
    if seen.disk_free < needed:
        yield Finding(
            node.name,
            f"the disk is full: {megabytes(seen.disk_free)} free below {cluster.root}, {megabytes(needed)} needed",
            "free space on the node, then run the same command again",
        )


def _asked(one: Callable[[Case, Node, NodeFacts], Iterator[Finding]], meaning: str) -> Check:
    """Return a check out of one of the functions above, which deploy asks too."""

    def check(case: Case) -> Iterator[Finding]:
        for node, seen, _ in case.nodes():
            yield from (replace(finding, meaning=meaning) for finding in one(case, node, seen))

    return check


def _answers(case: Case) -> Iterator[Finding]:
    for name, error in case.silent.items():
        yield Finding(name, error.cause, error.next_move, "nothing else is known of this node")


CHECKS: Mapping[str, Check] = {
    "answers": _answers,
    "fabric address": _asked(
        lambda case, node, seen: _network(case.cluster, node, seen),
        "distributed traffic would have no way, or take the management network: a hang or a crawl, without a message",
    ),
    "driver answers": gpu.driver_answers,
    "system": _asked(
        lambda case, node, seen: _stack(case.cluster, case.stack, node, seen),
        "the wheels of the stack cannot be installed there, or do not run",
    ),
    "wheels": _asked(
        lambda case, node, seen: (
            _wheels(case.cluster, case.stack, case.manifest, node, seen) if case.manifest else iter(())
        ),
        "invoke deploy cannot bring the release there",
    ),
    "driver": gpu.driver_version,
    "GPU": gpu.capability,
    "CUDA toolkit": gpu.toolkit,
    "ranks": gpu.ranks,
    "both halves": fabric.halves,
    "one subnet": fabric.one_subnet,
    "RoCE addresses": fabric.gids,
    "GID index": fabric.gid_index,
    "MTU": fabric.mtu,
    "link rate": fabric.speed,
    "PCIe lanes": fabric.lanes,
    "route": fabric.way,
    "reachability": fabric.reach,
    "large packets": fabric.large,
    "measured way": measured.unmeasured,
    "measured rate": measured.rates,
    "measured messages": measured.small_messages,
    "measured packets": measured.packets,
    "model fits": memory.fits,
    "memory": memory.available,
    "page cache": memory.page_cache,
    "model known": memory.known,
    "model": model.revision,
    "swap": memory.swap,
    "GPU processes": leftovers.gpu_processes,
    "left behind": residents.left_behind,
    "started by hand": residents.held_by_hand,
    "half a service": leftovers.half_a_service,
    "other Ray or vLLM": leftovers.like_ours,
    "ports": leftovers.ports,
    "containers": leftovers.containers,
    "containers that return": residents.returning,
    "docker": residents.hidden_docker,
    "shared memory": residents.shared_memory,
    "sshd": leftovers.sshd,
    "one target": likeness.target,
    "versions": likeness.versions,
    "releases": likeness.releases,
    "clocks": likeness.clocks,
}
"""Every check by its name, in the order in which they are asked."""


@dataclass(frozen=True)
class Diagnosis:
    """A finding and the check that made it."""

    check: str
    finding: Finding


def diagnose(case: Case) -> tuple[Diagnosis, ...]:
    """Ask every check; the worst findings first."""
    found = [Diagnosis(name, finding) for name, check in CHECKS.items() for finding in check(case)]
    return tuple(sorted(found, key=lambda one: -one.finding.severity))


def worst(diagnoses: tuple[Diagnosis, ...]) -> Severity | None:
    """Return the worst severity, None without a finding."""
    return max((one.finding.severity for one in diagnoses), default=None)
