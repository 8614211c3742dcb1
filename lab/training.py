"""The tiny model onto every node: trained on the head inside the deployed environment, then brought to the others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from core.config import WORK, Cluster, Node, Profile, Stack
from core.errors import UnfitNode
from core.facts import Facts, NodeFacts
from core.plan import Plan, Pull, Push, Run, Step, make_plan
from core.question import model_folder
from lab.model import QUESTIONS, TRAINER

TRAINING_TIMEOUT = 300


def identity() -> Mapping[str, str]:
    """Return what the model is made from, as the trainer notes it beside the model."""
    files = {"questions": QUESTIONS, "trainer": TRAINER}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def plan_model(cluster: Cluster, stack: Stack, profile: Profile, facts: Facts) -> Plan:
    """Return what puts the tiny model of today's questions onto every node; empty when all have it."""
    lacking = [node for node in cluster.nodes if facts[node.name].model_origin != identity()]
    if lacking and facts[cluster.head.name].current is None:
        raise UnfitNode("it has no release to train in", node=cluster.head.name, next_move="invoke deploy")
    others = [node for node in lacking if node != cluster.head]
    folder = model_folder(cluster, profile)
    return make_plan(
        f"the model {profile.model} on {cluster.name}",
        (
            ("train", _train(cluster, stack, folder) if cluster.head in lacking else ()),
            ("fetch", [_fetch(cluster, profile, folder)] if others else ()),
            ("bring", (step for node in others for step in _bring(profile, node, folder, facts[node.name]))),
        ),
    )


def _train(cluster: Cluster, stack: Stack, folder: PurePosixPath) -> Iterator[Step]:
    node, lesson = cluster.head.name, PurePosixPath(cluster.root / "lesson")
    yield Run(
        node=node, title="make the folders", reason="it is new", argv=("mkdir", "-p", str(lesson), str(folder.parent))
    )
    yield Push(
        node=node,
        title="push the trainer and its twenty questions",
        reason="training runs in the release's own environment",
        sources=(TRAINER, QUESTIONS),
        destination=lesson,
        size=TRAINER.stat().st_size + QUESTIONS.stat().st_size,
    )
    variables = (f"{key}={value}" for key, value in sorted(stack.environment.items()))
    python = str(cluster.root / "current/venv/bin/python")
    yield Run(
        node=node,
        title="train until every answer is exact",
        reason="the model is not there, or of other questions",
        argv=("env", *variables, python, str(lesson / TRAINER.name), str(lesson / QUESTIONS.name), str(folder)),
        timeout=TRAINING_TIMEOUT,
    )


def _fetch(cluster: Cluster, profile: Profile, folder: PurePosixPath) -> Step:
    return Pull(
        node=cluster.head.name,
        title="fetch the model from the head",
        reason="every node holds the same files",
        source=folder,
        destination=WORK / "models" / profile.model,
    )


def _bring(profile: Profile, node: Node, folder: PurePosixPath, seen: NodeFacts) -> Iterator[Step]:
    incoming, old = folder.parent / ".incoming", folder.parent / ".old"
    yield Run(
        node=node.name, title="make the folder", reason="the model goes there", argv=("mkdir", "-p", str(incoming))
    )
    yield Push(
        node=node.name,
        title=f"push {profile.model}",
        reason="it has another model" if seen.model_files else "it has no model",
        sources=(WORK / "models" / profile.model,),
        destination=incoming,
        size=0,
    )
    script = 'rm -rf "$3" && { [ ! -e "$2" ] || mv -T "$2" "$3"; } && mv -T "$1" "$2" && rm -rf "$3"'
    argv = ("sh", "-c", script, "sh", str(incoming / profile.model), str(folder), str(old))
    yield Run(node=node.name, title="put it in place", reason="whole or not at all", argv=argv)
