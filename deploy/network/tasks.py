"""The task of deploy/network: network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from invoke.context import Context
from invoke.tasks import task

from core.choice import chosen_cluster
from core.command import Options, asking, command, converge
from core.facts import Facts
from core.plan import Plan
from core.question import Question
from deploy.network.choice import named
from deploy.network.plan import DEADLINE, JUMBO, Wanted, plan_network, plan_revert

QUESTION = Question(wiring=True)


@task(
    iterable=["interface"],
    auto_shortflags=False,
    help={
        "cluster": "which machines (config/clusters)",
        "interface": "NAME on every node or NODE=NAME, instead of the port that the cable is in; may be said again",
        "mtu": "bytes of the largest packet",
        "deadline": "seconds after which a node takes the change back that nobody confirmed",
        "revert": "restore what was there before this command changed it",
        "yes": "do not ask",
        "dry-run": "show the plan and stop",
        "json": "answer as JSON",
        "facts": "plan from a saved file, without touching a node",
    },
)
@command
def network(
    _: Context,
    cluster: str = "",
    interface: Sequence[str] | None = None,
    mtu: int = JUMBO,
    deadline: int = DEADLINE,
    revert: bool = False,
    yes: bool = False,
    dry_run: bool = False,
    json: bool = False,
    facts: str = "",
) -> None:
    """Give the fabric its addresses and MTU; a node that is not reachable afterwards takes it back by itself."""
    chosen = chosen_cluster(cluster)
    options = Options(dry_run, json, Path(facts) if facts else None)
    wanted = Wanted(mtu, deadline, named(chosen, interface or ()))

    def plan(seen: Facts) -> Plan:
        return (plan_revert if revert else plan_network)(chosen, seen, wanted)

    agree = None if yes else asking("Change the network of the nodes so?", options, contents=False)
    converge("network", chosen, QUESTION, plan, options, agree=agree)
