"""Tasks of lab/: two local machines, the demo's model, the demo."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from invoke.context import Context
from invoke.tasks import task

from core.choice import chosen_cluster, stack_of
from core.command import Options, answer, answer_json, command, converge, mend
from core.config import load_profile
from core.plan import Report
from core.question import Question
from core.screen import Screen
from lab import demo as walk
from lab import lifecycle, pending
from lab.training import plan_model

HELP = {"cluster": "which cluster's machines (config/clusters); it needs a [lab] table"}
CHANGE = {**HELP, "dry-run": "say what is to be done and stop", "json": "answer as JSON"}
NODE = {**CHANGE, "node": "which machine"}
LINK = {**NODE, "network": "fabric or management"}


@task(help=CHANGE)
@command
def up(_: Context, cluster: str = "local", dry_run: bool = False, json: bool = False) -> None:
    """Make the local machines, or start and mend them."""
    chosen = chosen_cluster(cluster)
    action = partial(lifecycle.up, chosen)
    mend("bring the machines up", partial(pending.up, chosen), action, Options(dry_run, json))


@task(help=CHANGE)
@command
def down(_: Context, cluster: str = "local", dry_run: bool = False, json: bool = False) -> None:
    """Power the machines off and remove their links; disks and keys stay."""
    chosen = chosen_cluster(cluster)
    action = partial(lifecycle.down, chosen)
    mend("take the machines down", partial(pending.down, chosen), action, Options(dry_run, json))


@task(help={**CHANGE, "base": "the cached root file system too"})
@command
def clean(_: Context, cluster: str = "local", base: bool = False, dry_run: bool = False, json: bool = False) -> None:
    """Remove the machines with all that was made for them, and list it."""
    chosen = chosen_cluster(cluster)

    def purge(report: Report) -> None:
        for what in lifecycle.purge(chosen, lambda _: None, base=base):
            report(f"removed: {what}")

    look = partial(pending.clean, chosen, with_base=base)
    mend("remove the machines", look, purge, Options(dry_run, json))


@task(help={**HELP, "json": "answer as JSON"})
@command
def status(_: Context, cluster: str = "local", json: bool = False) -> None:
    """Show the machines."""
    machines = lifecycle.status(chosen_cluster(cluster))
    if json:
        answer_json([vars(machine) for machine in machines])
        return
    for machine in machines:
        state = f"on since {machine.since:%F %T}" if machine.running and machine.since else "off"
        links = f"management {_link(machine.management_link)}, fabric {_link(machine.fabric_link)}"
        answer(f"{machine.name}: {state}, {links}, disk {machine.disk_used / 2**30:.1f} GiB used")


def _link(up: bool) -> str:
    return "up" if up else "cut"


@task(help=LINK)
@command
def cut(
    _: Context, node: str, cluster: str = "local", network: str = "fabric", dry_run: bool = False, json: bool = False
) -> None:
    """Cut a machine's link."""
    chosen = chosen_cluster(cluster)
    look = partial(pending.cut, lifecycle.place_of(chosen, node), lifecycle.known_network(chosen, network))
    mend("cut a link", look, lambda report: lifecycle.cut(chosen, node, report, network), Options(dry_run, json))


@task(help=LINK)
@command
def heal(
    _: Context, node: str, cluster: str = "local", network: str = "fabric", dry_run: bool = False, json: bool = False
) -> None:
    """Mend a machine's link."""
    chosen = chosen_cluster(cluster)
    look = partial(pending.heal, lifecycle.place_of(chosen, node), lifecycle.known_network(chosen, network))
    mend("mend a link", look, lambda report: lifecycle.heal(chosen, node, report, network), Options(dry_run, json))


@task(help=NODE)
@command
def kill(_: Context, node: str, cluster: str = "local", dry_run: bool = False, json: bool = False) -> None:
    """Cut a machine's power: nothing is synced, nothing is stopped."""
    chosen = chosen_cluster(cluster)
    look = partial(pending.kill, lifecycle.place_of(chosen, node))
    mend("cut the power", look, partial(lifecycle.kill, chosen, node), Options(dry_run, json))


@task(help=NODE)
@command
def boot(_: Context, node: str, cluster: str = "local", dry_run: bool = False, json: bool = False) -> None:
    """Switch a machine on again."""
    chosen = chosen_cluster(cluster)
    look = partial(pending.boot, lifecycle.place_of(chosen, node))
    mend("switch on", look, partial(lifecycle.boot, chosen, node), Options(dry_run, json))


@task(
    help={
        **HELP,
        "profile": "the profile that serves it (config/profiles)",
        "dry-run": "show the plan and stop",
        "json": "answer as JSON",
        "facts": "plan from a saved file, without touching a node",
    }
)
@command
def model(
    _: Context, cluster: str = "local", profile: str = "", dry_run: bool = False, json: bool = False, facts: str = ""
) -> None:
    """Train the tiny model of twenty answers on the head, and bring it to every node."""
    chosen = chosen_cluster(cluster)
    wanted, stack = load_profile(profile or chosen.profile), stack_of(chosen)
    options = Options(dry_run, json, Path(facts) if facts else None)
    question = Question(profile=wanted, packages=stack.packages)
    converge("lab.model", chosen, question, lambda seen: plan_model(chosen, stack, wanted, seen), options)


@task(help={**HELP, "dry-run": "say which commands it runs and stop"})
@command
def demo(_: Context, cluster: str = "local", dry_run: bool = False) -> None:
    """Walk the whole way on two local machines and show what came of it."""
    chosen = chosen_cluster(cluster)
    if dry_run:
        answer("\n".join(walk.shown(arguments) for _, arguments in walk.commands(chosen)))
        return
    stages = walk.run_stages(chosen, Screen().line)
    right = walk.answered(chosen)
    answer(walk.summary(stages, walk.service(chosen), right))
    answer(f'next: invoke chat "{walk.QUESTION}" --cluster {chosen.name}; make clean-demo removes the machines')
