"""Tasks of serve/: serve, restart, stop, chat."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NoReturn

from invoke.context import Context
from invoke.tasks import task

from core.choice import chosen_cluster, stack_of
from core.command import Options, answer, answer_json, command, converge
from core.config import Cluster, Stack, load_profile
from core.errors import NotServing, UnfitNode
from core.facts import Facts, gather
from core.plan import Plan
from core.question import Question
from core.remote import Hosts
from core.token import ask_argv
from serve.chat import ask
from serve.cluster import Service
from serve.service import plan_serve, plan_stop, plan_unready, require_model
from wheels.manifest import planned
from wheels.target import common_target

HELP = {
    "cluster": "which machines (config/clusters)",
    "profile": "which model, and how (config/profiles)",
    "dry-run": "show the plan and stop",
    "json": "answer as JSON",
    "facts": "plan from a saved file, without touching a node",
}


@task(help=HELP)
@command
def serve(
    _: Context,
    cluster: str = "",
    profile: str = "",
    dry_run: bool = False,
    json: bool = False,
    facts: str = "",
) -> None:
    """Start the Ray cluster and vLLM; ends when a token came through every rank."""
    options = Options(dry_run, json, Path(facts) if facts else None)
    _converge("serve", chosen_cluster(cluster), profile, options, restart=False)


@task(help=HELP)
@command
def restart(
    _: Context,
    cluster: str = "",
    profile: str = "",
    dry_run: bool = False,
    json: bool = False,
    facts: str = "",
) -> None:
    """Stop the service on every node, then start it again."""
    options = Options(dry_run, json, Path(facts) if facts else None)
    _converge("restart", chosen_cluster(cluster), profile, options, restart=True)


def _converge(name: str, cluster: Cluster, profile_name: str, options: Options, *, restart: bool) -> None:
    profile = load_profile(profile_name or cluster.profile)
    stack = stack_of(cluster)
    question = Question(
        profile=profile,
        packages=stack.packages,
        token_argv=ask_argv(cluster.api_url, profile.served_names[0], timeout=15),
    )

    def planner(facts: Facts, *, again: bool) -> Plan:
        release = _release(cluster, stack, facts)
        if options.plan_only:
            wanted = release or planned(stack, common_target(cluster, facts, stack)).on(cluster).release
            return plan_unready(Service(cluster, stack, profile, wanted), facts, restart=restart)
        service = Service(cluster, stack, profile, release or _no_release(cluster, facts))
        require_model(service, facts)
        return plan_serve(service, facts, restart=restart and not again)

    converge(name, cluster, question, partial(planner, again=False), options, again=partial(planner, again=True))


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


@task(help={key: text for key, text in HELP.items() if key != "profile"})
@command
def stop(
    _: Context,
    cluster: str = "",
    dry_run: bool = False,
    json: bool = False,
    facts: str = "",
) -> None:
    """Stop the service on every node, and check that no process of ours is left."""
    chosen = chosen_cluster(cluster)
    options = Options(dry_run, json, Path(facts) if facts else None)
    converge("stop", chosen, Question(), lambda seen: plan_stop(chosen, seen), options)
    if options.plan_only:
        return
    with Hosts(chosen) as hosts:
        left = gather(hosts, chosen, Question()).parsed()
    for name, seen in left.items():
        if seen.processes:
            shown = "\n".join(f"{process.pid} {process.user} {process.command[:120]}" for process in seen.processes)
            raise NotServing("processes of ours are left", node=name, next_move="end them: kill PID", evidence=shown)
    if not json:
        answer("no process of ours is left on " + ", ".join(left))


@task(help={"prompt": "what to ask", "cluster": HELP["cluster"], "profile": HELP["profile"], "json": HELP["json"]})
@command
def chat(_: Context, prompt: str, cluster: str = "", profile: str = "", json: bool = False) -> None:
    """Ask the model and print its answer as it comes."""
    chosen = chosen_cluster(cluster)
    name = load_profile(profile or chosen.profile).served_names[0]
    if json:
        answer_json(ask(chosen, name, prompt, lambda _: None))
        return
    ask(chosen, name, prompt, lambda piece: print(piece, end="", flush=True))
    print()
