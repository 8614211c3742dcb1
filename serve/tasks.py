"""Tasks of serve/: serve, restart, stop."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from invoke.context import Context
from invoke.tasks import task

from core.choice import chosen_cluster, stack_of
from core.command import Options, answer, command, converge
from core.config import Cluster, Stack, load_profile
from core.errors import UnfitNode
from core.facts import Facts, gather
from core.plan import Plan
from core.question import Question
from core.remote import Hosts
from serve.api.keys import Secrets
from serve.api.tls import PACKAGE
from serve.cluster import Service
from serve.files import PACKAGES
from serve.service import Wish, plan_serve, plan_unready, require_model, require_packages
from serve.stopping import plan_stop, require_nothing_left
from wheels.manifest import planned
from wheels.target import common_target

HELP = {
    "cluster": "which machines (config/clusters)",
    "profile": "which model, and how (config/profiles)",
    "dry-run": "show the plan and stop",
    "json": "answer as JSON",
    "facts": "plan from a saved file, without touching a node",
}


SERVE_HELP = {
    **HELP,
    "tls": "the API speaks HTTPS, by a certificate of its own (Caddy)",
    "drain": "seconds that running requests have to end, where something serves already",
}


@task(help=SERVE_HELP)
@command
def serve(
    _: Context,
    cluster: str = "",
    profile: str = "",
    tls: bool = False,
    drain: int = 60,
    dry_run: bool = False,
    json: bool = False,
    facts: str = "",
) -> None:
    """Start the service and keep it up; ends when a token came through every rank."""
    options = Options(dry_run, json, Path(facts) if facts else None)
    chosen = chosen_cluster(cluster)
    _converge("serve", chosen.with_tls() if tls else chosen, profile, options, Wish(drain=drain))


@task(help=SERVE_HELP)
@command
def restart(
    _: Context,
    cluster: str = "",
    profile: str = "",
    tls: bool = False,
    drain: int = 60,
    dry_run: bool = False,
    json: bool = False,
    facts: str = "",
) -> None:
    """Stop the service on every node, then start it again."""
    options = Options(dry_run, json, Path(facts) if facts else None)
    chosen = chosen_cluster(cluster)
    _converge("restart", chosen.with_tls() if tls else chosen, profile, options, Wish(restart=True, drain=drain))


def _converge(name: str, cluster: Cluster, profile_name: str, options: Options, wish: Wish) -> None:
    profile = load_profile(profile_name or cluster.profile)
    stack = stack_of(cluster)
    question = Question(profile=profile, packages=(*stack.packages, *PACKAGES, PACKAGE))
    fresh = Secrets.fresh()

    def planner(facts: Facts, *, wish: Wish) -> Plan:
        release = _release(cluster, stack, facts)
        if options.plan_only:
            wanted = release or planned(stack, common_target(cluster, facts, stack)).on(cluster).release
            return plan_unready(Service(cluster, stack, profile, wanted), facts, fresh, wish)
        service = Service(cluster, stack, profile, release or _no_release(cluster, facts))
        require_model(service, facts)
        require_packages(service, facts)
        return plan_serve(service, facts, fresh, wish)

    again = partial(planner, wish=replace(wish, restart=False))
    converge(name, cluster, question, partial(planner, wish=wish), options, again=again)


def _release(cluster: Cluster, stack: Stack, facts: Facts) -> str | None:
    """Return the release of the stack that every node has in use, None where they differ."""
    head = facts[cluster.head.name]
    record = head.releases.get(head.current or "", {})
    same = all(facts[node.name].current == head.current for node in cluster.nodes)
    return head.current if same and record.get("stack") == stack.name else None


def _no_release(cluster: Cluster, facts: Facts) -> NoReturn:
    current = {node.name: facts[node.name].current for node in cluster.nodes}
    odd = next((name for name, value in current.items() if value != current[cluster.head.name]), cluster.head.name)
    said = ", ".join(f"{name} has {value or 'none'}" for name, value in current.items())
    raise UnfitNode(
        f"the nodes are not on one release of {cluster.stack}: {said}",
        node=odd,
        next_move=f"invoke deploy --cluster {cluster.flag}",
    )


@task(
    help={
        **{key: text for key, text in HELP.items() if key != "profile"},
        "drain": "seconds that running requests have to end; 0 ends them at once",
        "all": "also what watches (invoke monitor), and processes of ours that no unit holds any more",
    }
)
@command
def stop(
    _: Context,
    cluster: str = "",
    drain: int = 60,
    all: bool = False,
    dry_run: bool = False,
    json: bool = False,
    facts: str = "",
) -> None:
    """Stop the service on every node, and check that no process of ours is left."""
    chosen = chosen_cluster(cluster)
    options = Options(dry_run, json, Path(facts) if facts else None)
    question = Question(ours=True)
    converge("stop", chosen, question, lambda seen: plan_stop(chosen, seen, drain, everything=all), options)
    if options.plan_only:
        return
    with Hosts(chosen) as hosts:
        left = gather(hosts, chosen, question).parsed()
    require_nothing_left(chosen, left, everything=all)
    if not json:
        answer("no process of ours is left on " + ", ".join(left))
