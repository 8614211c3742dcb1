"""Tasks of deploy/: facts, probe, deploy, releases, rollback, remove."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from invoke.context import Context
from invoke.tasks import task

from core.choice import chosen_cluster, stack_of
from core.command import Options, answer, answer_json, asking, command, converge, look
from core.config import Cluster, Stack, load_profile
from core.errors import BuildFailed, UsageError
from core.facts import Facts, NodeFacts, gather
from core.findings import refuse_unfit
from core.hand import Hand
from core.plan import Plan
from core.question import Question
from core.remote import Hosts
from deploy import inventory
from deploy import probe as rates
from deploy.authenticity import signed_release
from deploy.collect import LEAST, plan_collect
from deploy.doctor import examine
from deploy.removal import plan_remove
from deploy.rollback import plan_rollback, wanted_release
from deploy.rollout import plan_deploy, plan_unbuilt
from wheels.manifest import damaged, load
from wheels.target import common_target


@task(
    help={
        "cluster": "which machines (config/clusters)",
        "save": "keep what the probe saw in this file, for --facts",
        "json": "the raw answers, for programs",
    }
)
@command
def facts(_: Context, cluster: str = "", save: str = "", json: bool = False) -> None:
    """Probe every node, read only, in one round trip each."""
    chosen = chosen_cluster(cluster)
    with Hosts(chosen) as hosts:
        profile = load_profile(chosen.profile)
        packages = stack_of(chosen).packages
        everything = Question(profile, packages, inventory=True, whole=True, access=True, wiring=True)
        captures = gather(hosts, chosen, everything)
    if save:
        Path(save).write_text(captures.to_json(), encoding="utf-8")
    if json:
        answer_json(captures.nodes)
        return
    for seen in captures.parsed().values():
        answer(_sheet(chosen, seen))


def _sheet(cluster: Cluster, seen: NodeFacts) -> str:
    """Return one node's facts for people."""
    fabric = seen.interface_in(cluster.fabric.subnet)
    gpus = ", ".join(f"{gpu.name} ({gpu.capability})" for gpu in seen.gpus)
    rows = {
        "system": f"{seen.os.get('PRETTY_NAME', '?')}, {seen.architecture}, kernel {seen.kernel}",
        "python3": ".".join(map(str, seen.python)),
        "memory": f"{seen.memory_available / 2**30:.1f} of {seen.memory_total / 2**30:.1f} GiB available",
        "disk": f"{seen.disk_free / 2**30:.1f} GiB free",
        "GPU": gpus or "none",
        "fabric": f"{fabric.name}, MTU {fabric.mtu}" if fabric else "not found",
        "release": seen.current or "none",
        "models": ", ".join(map(_model, seen.models.values())) or "none fetched",
    }
    return "\n".join([seen.name, *(f"  {key:8} {value}" for key, value in rows.items())])


def _model(manifest: Mapping[str, Any]) -> str:
    name = str(manifest.get("repository", "a damaged one"))
    return f"{name} (arriving)" if manifest.get("partial") else name


@task(help={"cluster": "which machines (config/clusters)", "json": "answer as JSON"})
@command
def probe(_: Context, cluster: str = "", json: bool = False) -> None:
    """Measure the memory (and GPUs) of every node with the deployed release's probe."""
    chosen = chosen_cluster(cluster)
    with Hosts(chosen) as hosts:
        measured = rates.measure(chosen, hosts)
    answer_json(measured) if json else answer(rates.table(measured))


@task(
    help={
        "cluster": "which machines (config/clusters)",
        "stack": "which wheels; must agree with the cluster",
        "dry-run": "show the plan and stop",
        "json": "answer as JSON",
        "facts": "plan from a saved file, without touching a node",
    }
)
@command
def deploy(
    _: Context,
    cluster: str = "",
    stack: str = "",
    dry_run: bool = False,
    json: bool = False,
    facts: str = "",
) -> None:
    """Bring the same release to every node: push, install offline by hash, check, switch."""
    chosen = chosen_cluster(cluster)
    wanted = stack_of(chosen, stack)
    options = Options(dry_run, json, Path(facts) if facts else None)
    question = Question(packages=wanted.packages)
    converge("deploy", chosen, question, lambda seen: _plan(chosen, wanted, seen, options), options)


def _plan(cluster: Cluster, stack: Stack, seen: Facts, options: Options) -> Plan:
    target = common_target(cluster, seen, stack)
    found = load(stack, target)
    manifest = found and found.on(cluster)
    if manifest is None and options.plan_only:
        return plan_unbuilt(cluster, stack, target, seen)
    refuse_unfit(examine(cluster, stack, seen, manifest))  # wheels are of no use to a node that cannot take them
    gone = damaged(stack, manifest) if manifest else []
    if manifest is None or gone:
        what = f"{len(gone)} wheels are missing or damaged ({gone[0]})" if gone else "there are none"
        raise BuildFailed(
            f"no wheels of {stack.name} for {target.tag}: {what}",
            next_move=f"invoke build-wheels --stack {stack.name} --cluster {cluster.flag}",
        )
    return plan_deploy(cluster, stack, manifest, seen, signed_release(cluster, stack, manifest, seen), hand=Hand.mine())


HELP = {
    "cluster": "which machines (config/clusters)",
    "dry-run": "show the plan and stop",
    "json": "answer as JSON",
    "facts": "plan from a saved file, without touching a node",
}


@task(
    help={
        **HELP,
        "collect": "remove releases, wheels and cache that nothing needs; never the release in use or the one before",
        "keep": f"with --collect: how many releases stay on each node, {LEAST} or more",
    }
)
@command
def releases(
    _: Context,
    cluster: str = "",
    collect: bool = False,
    keep: int = LEAST,
    dry_run: bool = False,
    json: bool = False,
    facts: str = "",
) -> None:
    """Show which releases are where, since when, by whom, and their size; or remove what nothing needs."""
    chosen = chosen_cluster(cluster)
    options = Options(dry_run, json, Path(facts) if facts else None)
    question = Question(inventory=True)
    if keep < LEAST or (keep != LEAST and not collect):
        raise UsageError(
            f"--keep {keep} cannot be", next_move=f"say --collect --keep N with {LEAST} or more, or leave --keep out"
        )
    if collect:
        _say_notes(
            converge("releases", chosen, question, lambda seen: plan_collect(chosen, seen, keep), options), options
        )
        return
    with Hosts(chosen) as hosts:
        seen = look(chosen, question, options, hosts)
    answer_json(inventory.as_data(chosen, seen)) if json else answer(inventory.table(chosen, seen))


@task(help={**HELP, "to": "which release; without it the one before the one in use"})
@command
def rollback(
    _: Context, cluster: str = "", to: str = "", dry_run: bool = False, json: bool = False, facts: str = ""
) -> None:
    """Take the release before this one (or another) into use again, on all nodes or on none."""
    chosen = chosen_cluster(cluster)
    options = Options(dry_run, json, Path(facts) if facts else None)
    _say_notes(converge("rollback", chosen, Question(), _rollback_planner(chosen, to), options), options)


def _say_notes(plan: Plan, options: Options) -> None:
    """Say after the work what a reader of the plan would have known."""
    if plan.notes and not (options.plan_only or options.as_json or plan.empty):
        answer("\n".join(f"note: {note}" for note in plan.notes))


def _rollback_planner(cluster: Cluster, to: str) -> Callable[[Facts], Plan]:
    """Plan for one release throughout: seen afterwards, the one before would be the one that we came from."""
    wanted: list[str] = []

    def plan(seen: Facts) -> Plan:
        if not wanted:
            wanted.append(wanted_release(cluster, seen, to))
        return plan_rollback(cluster, seen, wanted[0], hand=Hand.mine())

    return plan


@task(
    help={
        **HELP,
        "stop": "end what still runs, too",
        "keep-models": "leave the models",
        "yes": "do not ask",
    }
)
@command
def remove(
    _: Context,
    cluster: str = "",
    stop: bool = False,
    keep_models: bool = False,
    yes: bool = False,
    dry_run: bool = False,
    json: bool = False,
    facts: str = "",
) -> None:
    """Take everything of ours but the network off the nodes (units, releases, wheels, models); asks first."""
    chosen = chosen_cluster(cluster)
    options = Options(dry_run, json, Path(facts) if facts else None)

    def plan(seen: Facts) -> Plan:
        return plan_remove(chosen, seen, stop=stop, keep_models=keep_models)

    agree = None if yes else asking("Remove all of this from the nodes?", options)
    _say_notes(converge("remove", chosen, Question(access=True, ours=True), plan, options, agree=agree), options)
