"""Tasks of build/: build-wheels, build.lock, build.bundle, build.unbundle, build.stop."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from invoke.context import Context
from invoke.tasks import task
from packaging.utils import canonicalize_name

from build import site
from build.builder import plan_wheels
from build.bundle import read_bundle
from build.carry import plan_bundle
from build.images import taken_wheels
from build.index import identity, index_part
from build.lock import lock as make_lock
from build.records import recorded
from build.request import Build, packages_of
from build.site import Site, plan_stop
from core.choice import chosen_cluster, cluster_of_stack, stack_of, this_host
from core.command import Options, command, converge
from core.config import Cluster, Stack
from core.errors import UsageError
from core.facts import Facts, look_here
from core.mistakes import nearest
from core.plan import Plan, make_plan
from core.question import Question
from core.screen import Screen
from wheels.manifest import folder, load
from wheels.target import Target, common_target, target_of


@dataclass(frozen=True)
class Wish:
    """What the flags of build-wheels ask for."""

    cluster: Cluster
    stack: Stack
    on: str = ""
    target: str = ""
    urls: Mapping[str, str] = field(default_factory=dict)
    fallback: bool = False
    verify: bool = False
    development: bool = False
    toolkit: bool = False
    jobs: int | None = None
    only: frozenset[str] = frozenset()


@task(
    name="build-wheels",
    iterable=["index", "only"],
    help={
        "stack": "which wheels (config/stacks); the cluster's when left out",
        "cluster": "for whose Python and architecture; without it the first cluster with that stack",
        "only": "build this component alone, with what it needs; nothing is listed (may be repeated)",
        "on": "node that compiles what is built from source; the build there outlives this command",
        "target": "architecture to compile for on this host (aarch64), instead of a cluster's; no node is asked",
        "verify": "build everything twice and compare; the level reached stands in the manifest",
        "development": "use ccache where the machine has it; what is made of such wheels is marked -dev",
        "toolkit": "take the CUDA toolkit from wheels, by hash, instead of this machine's",
        "jobs": "compilers at once, instead of what memory and cores allow",
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
    only: Sequence[str] | None = None,
    on: str = "",
    target: str = "",
    verify: bool = False,
    development: bool = False,
    toolkit: bool = False,
    jobs: int = 0,
    index: Sequence[str] | None = None,
    fallback: bool = False,
    dry_run: bool = False,
    json: bool = False,
    facts: str = "",
) -> None:
    """Build, extract and fetch every wheel of a stack into dist/, with its manifest and lock."""
    chosen = _cluster(stack, cluster, target)
    wish = Wish(
        cluster=chosen,
        stack=stack_of(chosen),
        on=on,
        target=target,
        urls=_urls(index or ()),
        fallback=fallback,
        verify=verify,
        development=development,
        toolkit=toolkit,
        jobs=jobs or None,
        only=frozenset(only or ()),
    )
    _refuse(wish)
    options = Options(dry_run, json, Path(facts) if facts else None)
    question = Question(packages=packages_of(wish.stack, cross=False))
    converge("build-wheels", chosen, question, lambda seen: _plan(wish, seen), options)


@task(
    help={
        "stack": "whose lock and recipes; the cluster's when left out",
        "cluster": "whose stack",
        "offline": "ask no repository whether pins still hold, and no index: resolve from what uv has kept",
        "dry-run": "show how the locks would differ and stop",
        "json": "answer as JSON",
    }
)
@command
def lock(
    _: Context, stack: str = "", cluster: str = "", offline: bool = False, dry_run: bool = False, json: bool = False
) -> None:
    """Make the locks of a stack and of its recipes again, and show how they differ."""
    make_lock(stack_of(_cluster(stack, cluster, "")), Options(dry_run, json), offline=offline)


@task(
    help={
        "stack": "which wheels; the cluster's when left out",
        "cluster": "for whose Python and architecture",
        "on": "node that is to build without network; this host when left out and of the same architecture",
        "target": "architecture that a host like this one is to compile for, instead of a cluster's",
        "toolkit": "with the CUDA toolkit",
        "dry-run": "show the plan and stop",
        "json": "answer as JSON",
        "facts": "plan from a saved file, without touching a node",
    }
)
@command
def bundle(
    _: Context,
    stack: str = "",
    cluster: str = "",
    on: str = "",
    target: str = "",
    toolkit: bool = False,
    dry_run: bool = False,
    json: bool = False,
    facts: str = "",
) -> None:
    """Write all that builds of a stack take into one file, for a machine without network."""
    chosen = _cluster(stack, cluster, target)
    wish = Wish(cluster=chosen, stack=stack_of(chosen), on=on, target=target, toolkit=toolkit)
    _refuse(wish)
    options = Options(dry_run, json, Path(facts) if facts else None)
    nothing = make_plan("the bundle is written", ())
    converge(
        "build.bundle",
        chosen,
        Question(),
        lambda seen: plan_bundle(_build(wish, seen)),
        options,
        again=lambda _: nothing,
    )


@task(help={"file": "what build.bundle wrote"})
@command
def unbundle(_: Context, file: str) -> None:
    """Take in a bundle: every file is checked, then build-wheels finds it as if it had fetched it."""
    read_bundle(Path(file), Screen().line)


@task(
    help={
        "cluster": "which cluster; without it SPARKSTACK_CLUSTER, else spark",
        "on": "only this node",
        "dry-run": "show the plan and stop",
        "json": "answer as JSON",
    }
)
@command
def stop(_: Context, cluster: str = "", on: str = "", dry_run: bool = False, json: bool = False) -> None:
    """End builds that run on nodes; what they had compiled is lost."""
    chosen = chosen_cluster(cluster)
    if on:
        chosen.node(on)
    converge("build.stop", chosen, Question(), lambda seen: plan_stop(chosen, seen, on), Options(dry_run, json))


def _cluster(stack: str, cluster: str, target: str) -> Cluster:
    if target and not cluster:
        return this_host(stack)
    if not stack:
        return chosen_cluster(cluster)
    return chosen_cluster(cluster).model_copy(update={"stack": stack}) if cluster else cluster_of_stack(stack)


def _refuse(wish: Wish) -> None:
    _refuse_unknown(wish)
    if wish.on:
        wish.cluster.node(wish.on)
    if wish.on and (wish.target or wish.toolkit):
        raise UsageError(
            "--on builds with what the node is and has: --target and --toolkit are for this host",
            next_move="leave one of them out",
        )
    if wish.verify and wish.development:
        raise UsageError(
            "--verify compares builds for a release, --development makes none", next_move="leave one of them out"
        )


def _refuse_unknown(wish: Wish) -> None:
    built = [name for name, component in wish.stack.components.items() if component.origin == "source"]
    for name in wish.only - set(built):
        raise UsageError(
            f"--only {name}: the stack {wish.stack.name} does not build it{nearest(name, built)}",
            next_move=f"use one of: {', '.join(built) or 'none'}",
        )


def _plan(wish: Wish, seen: Facts) -> Plan:
    build = _build(wish, seen)
    return plan_wheels(build, load(build.stack, build.target))


def _build(wish: Wish, seen: Facts) -> Build:
    stack = wish.stack
    target = _target(wish, seen)
    packages = packages_of(stack, cross=bool(wish.target))
    where = _site(wish, seen, target, packages)
    place = folder(stack, target)
    return Build(
        stack=stack,
        target=target,
        index=index_part(stack, target, wish.urls, fallback=wish.fallback),
        index_lock=identity(stack, fallback=wish.fallback),
        site=where,
        built=(*recorded(place), *taken_wheels(stack, place)),
        development=wish.development,
        verify=wish.verify,
        cross=where.target.architecture != target.architecture,
        toolkit=wish.toolkit,
        max_jobs=wish.jobs,
        only=wish.only,
    )


def _target(wish: Wish, seen: Facts) -> Target:
    if not wish.target:
        return common_target(wish.cluster, seen, wish.stack)
    own = target_of(look_here())
    return own.model_copy(update={"architecture": wish.target})


def _site(wish: Wish, seen: Facts, target: Target, packages: tuple[str, ...]) -> Site:
    """Return where to build: on the node that was named, here where that fits, else on the head."""
    here = wish.target or platform.machine() == target.architecture
    if not wish.on and here:
        return site.controller(look_here(packages=packages))
    return site.node(wish.cluster, seen[wish.on or wish.cluster.head.name])


def _urls(flags: Sequence[str]) -> dict[str, str]:
    pairs = [flag.partition("=") for flag in flags]
    for name, _, url in pairs:
        if not url:
            raise UsageError(f"--index {name!r} has no URL", next_move="write --index torch=https://mirror/whl/cpu")
    return {canonicalize_name(name): url for name, _, url in pairs}
