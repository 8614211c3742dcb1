"""Tasks of lab/: two local machines, the demo's model, the demo."""

from __future__ import annotations

from pathlib import Path

from invoke.context import Context
from invoke.tasks import task

from core.choice import chosen_cluster, stack_of
from core.command import Options, answer, answer_json, command, converge
from core.config import load_profile
from core.facts import Question
from core.screen import Screen
from lab import demo as walk
from lab import lifecycle
from lab.training import plan_model

HELP = {"cluster": "which cluster's machines (config/clusters); it needs a [lab] table"}


@task(help=HELP)
@command
def up(_: Context, cluster: str = "local") -> None:
    """Make the local machines, or start them again."""
    lifecycle.up(chosen_cluster(cluster), Screen().line)


@task(help=HELP)
@command
def down(_: Context, cluster: str = "local") -> None:
    """Power the machines off and remove their links; disks and keys stay."""
    lifecycle.down(chosen_cluster(cluster), Screen().line)


@task(help={**HELP, "base": "the cached root file system too"})
@command
def clean(_: Context, cluster: str = "local", base: bool = False) -> None:
    """Remove the machines with all that was made for them, and list it."""
    removed = lifecycle.purge(chosen_cluster(cluster), Screen().line, base=base)
    answer("\n".join(f"removed {item}" for item in removed) or "nothing to remove")


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


@task(help={**HELP, "node": "which machine", "network": "fabric or management"})
@command
def cut(_: Context, node: str, cluster: str = "local", network: str = "fabric") -> None:
    """Cut a machine's link."""
    lifecycle.cut(chosen_cluster(cluster), node, Screen().line, network)


@task(help={**HELP, "node": "which machine", "network": "fabric or management"})
@command
def heal(_: Context, node: str, cluster: str = "local", network: str = "fabric") -> None:
    """Mend a machine's link."""
    lifecycle.heal(chosen_cluster(cluster), node, Screen().line, network)


@task(help={**HELP, "node": "which machine"})
@command
def kill(_: Context, node: str, cluster: str = "local") -> None:
    """Cut a machine's power: nothing is synced, nothing is stopped."""
    lifecycle.kill(chosen_cluster(cluster), node, Screen().line)


@task(help={**HELP, "node": "which machine"})
@command
def boot(_: Context, node: str, cluster: str = "local") -> None:
    """Switch a machine on again."""
    lifecycle.boot(chosen_cluster(cluster), node, Screen().line)


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


@task(help=HELP)
@command
def demo(_: Context, cluster: str = "local") -> None:
    """Walk the whole way on two local machines and show what came of it."""
    chosen = chosen_cluster(cluster)
    stages = walk.run_stages(chosen, Screen().line)
    right = walk.answered(chosen)
    answer(walk.summary(stages, walk.service(chosen), right))
    answer(f'next: invoke chat "{walk.QUESTION}" --cluster {chosen.name}; make clean-demo removes the machines')
