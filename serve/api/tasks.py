"""Tasks of the API: its key, and a question."""

from __future__ import annotations

import os
from pathlib import Path

from invoke.context import Context
from invoke.tasks import task

from core.choice import chosen_cluster
from core.command import Options, answer, answer_json, command, converge
from core.config import load_profile
from core.question import Question
from core.remote import Hosts
from serve.api.chat import ask
from serve.api.endpoint import find, read_key
from serve.api.keys import Secrets, plan_rotate

CLUSTER = "which machines (config/clusters)"
JSON = "answer as JSON"


@task(help={"cluster": CLUSTER})
@command
def show(_: Context, cluster: str = "") -> None:
    """Print the API's key, and nothing else."""
    chosen = chosen_cluster(cluster)
    with Hosts(chosen) as hosts:
        answer(read_key(chosen, hosts[chosen.head.name]))


@task(
    help={
        "cluster": CLUSTER,
        "dry-run": "show the plan and stop",
        "json": JSON,
        "facts": "plan from a saved file, without touching a node",
    }
)
@command
def rotate(_: Context, cluster: str = "", dry_run: bool = False, json: bool = False, facts: str = "") -> None:
    """Replace the API's key; the old one is refused at once, and nothing restarts."""
    chosen = chosen_cluster(cluster)
    options = Options(dry_run, json, Path(facts) if facts else None)
    fresh = Secrets.fresh()
    converge("key.rotate", chosen, Question(), lambda seen: plan_rotate(chosen, seen, fresh), options)
    if not options.plan_only and not json:
        answer(f"the old key is refused from now on; the new one: invoke key.show --cluster {chosen.flag}")


@task(
    help={
        "prompt": "what to ask",
        "cluster": CLUSTER,
        "profile": "which model, and how (config/profiles)",
        "json": JSON,
    }
)
@command
def chat(_: Context, prompt: str, cluster: str = "", profile: str = "", json: bool = False) -> None:
    """Ask the model and print its answer as it comes."""
    chosen = chosen_cluster(cluster)
    name = load_profile(profile or chosen.profile).served_names[0]
    with Hosts(chosen) as hosts:
        endpoint = find(chosen, hosts[chosen.head.name], os.environ.get("SPARKSTACK_API_KEY", ""))
    if json:
        answer_json(ask(endpoint, name, prompt, lambda _: None))
        return
    ask(endpoint, name, prompt, lambda piece: print(piece, end="", flush=True))
    print()
