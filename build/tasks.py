"""Tasks of build/: build-wheels."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from invoke.context import Context
from invoke.tasks import task
from packaging.utils import canonicalize_name

from build.builder import Build, plan_wheels
from build.index import identity, index_part
from build.records import recorded
from core.choice import chosen_cluster, cluster_of_stack, stack_of
from core.command import Options, command, converge
from core.config import Cluster, Stack
from core.errors import UsageError
from core.facts import Facts, Question
from core.host import CONTROLLER
from core.plan import Plan
from wheels.manifest import folder, load
from wheels.target import common_target


@task(
    name="build-wheels",
    iterable=["index"],
    help={
        "stack": "which wheels (config/stacks); the cluster's when left out",
        "cluster": "for whose Python and architecture; without it the first cluster with that stack",
        "on": "node that compiles what is built from source",
        "index": "DISTRIBUTION=URL: another index for a distribution that has its own",
        "fallback": "take the stack's fallback where its own index cannot be had (read the message first)",
        "dry-run": "show the plan and stop",
        "json": "answer as JSON",
        "facts": "plan from a saved file, without touching a node",
    },
)
@command
def build_wheels(
    _: Context,
    stack: str = "",
    cluster: str = "",
    on: str = "",
    index: Sequence[str] | None = None,
    fallback: bool = False,
    dry_run: bool = False,
    json: bool = False,
    facts: str = "",
) -> None:
    """Build, extract and fetch every wheel of a stack into dist/, with its manifest and lock."""
    chosen = chosen_cluster(cluster) if cluster or not stack else cluster_of_stack(stack)
    wanted = stack_of(chosen, stack)
    if on:
        chosen.node(on)
    urls = _urls(index or ())
    options = Options(dry_run, json, Path(facts) if facts else None)

    def planner(seen: Facts) -> Plan:
        return _plan(chosen, wanted, seen, on, urls, fallback=fallback)

    converge("build-wheels", chosen, Question(), planner, options)


def _plan(cluster: Cluster, stack: Stack, seen: Facts, on: str, urls: dict[str, str], *, fallback: bool) -> Plan:
    target = common_target(cluster, seen)
    build = Build(
        stack=stack,
        target=target,
        index=index_part(stack, target, urls, fallback=fallback),
        index_lock=identity(stack, fallback=fallback),
        here=not on and platform.machine() == target.architecture,
        on=on or (CONTROLLER if platform.machine() == target.architecture else cluster.head.name),
        built=recorded(folder(stack, target)),
    )
    return plan_wheels(build, load(stack, target))


def _urls(flags: Sequence[str]) -> dict[str, str]:
    pairs = [flag.partition("=") for flag in flags]
    for name, _, url in pairs:
        if not url:
            raise UsageError(f"--index {name!r} has no URL", next_move="write --index torch=https://mirror/whl/cpu")
    return {canonicalize_name(name): url for name, _, url in pairs}
