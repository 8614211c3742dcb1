"""Tasks of deploy/models: fetch, list, verify, remove."""

from __future__ import annotations

import os
import secrets
from dataclasses import asdict, replace
from pathlib import Path

from invoke.context import Context
from invoke.tasks import task

from core.choice import chosen_cluster
from core.command import Options, answer, answer_json, command, converge, look
from core.config import Cluster, Profile, load_profile
from core.question import Question
from core.remote import Hosts
from core.screen import Screen
from deploy.models import keeping
from deploy.models.fetching import plan_fetch, wanted

REMOVED = {
    "repository": "which model, as the hub names it",
    "cluster": "which machines (config/clusters)",
    "profile": "whose model folder is looked at too (config/profiles)",
}


def _profile(cluster: Cluster, flag: str) -> Profile:
    return load_profile(flag or cluster.profile)


@task(
    auto_shortflags=False,
    help={
        "repository": "which model, as the hub names it: Qwen/Qwen2.5-32B-Instruct",
        "revision": "commit, branch or tag; the profile's where it is the profile's model, else main",
        "from": "huggingface, modelscope, or a folder on the node",
        "profile": "whose model folder it goes into when it is that profile's model (config/profiles)",
        "on": "the node that fetches where none has it; the head otherwise",
        "again": "look at every file again, and fetch those that are damaged or missing",
        "cluster": "which machines (config/clusters)",
        "dry-run": "show the plan and stop",
        "json": "answer as JSON",
        "facts": "plan from a saved file, without touching a node",
    },
)
@command
def fetch(
    _: Context,
    repository: str,
    revision: str = "",
    from_: str = "huggingface",
    profile: str = "",
    on: str = "",
    again: bool = False,
    cluster: str = "",
    dry_run: bool = False,
    json: bool = False,
    facts: str = "",
) -> None:
    """Bring a model to every node: fetched on one, verified, relayed to the others over the fabric."""
    chosen = chosen_cluster(cluster)
    member = chosen.node(on) if on else chosen.head
    served = _profile(chosen, profile)
    model = replace(
        wanted(chosen, served, repository, revision=revision, source=from_, environ=os.environ),
        secret=secrets.token_hex(32),
        again=again,
    )
    converge(
        "model.fetch",
        chosen,
        Question(served),
        lambda seen: plan_fetch(model, member, seen),
        Options(dry_run, json, Path(facts) if facts else None),
        again=lambda seen: plan_fetch(replace(model, again=False), member, seen),
    )


@task(
    name="list",
    help={
        "cluster": "which machines (config/clusters)",
        "profile": "whose model folder is looked at too (config/profiles)",
        "json": "answer as JSON",
        "facts": "plan from a saved file, without touching a node",
    },
)
@command
def list_models(_: Context, cluster: str = "", profile: str = "", json: bool = False, facts: str = "") -> None:
    """Show which models are on which nodes, where from, and how large."""
    chosen = chosen_cluster(cluster)
    with Hosts(chosen) as hosts:
        options = Options(facts=Path(facts) if facts else None)
        seen = look(chosen, Question(_profile(chosen, profile)), options, hosts)
    found = list(keeping.kept_models(seen))
    answer_json([asdict(one) for one in found]) if json else answer(keeping.table(found) if found else "no models")


@task(
    help={
        "repository": "only this model",
        "cluster": "which machines (config/clusters)",
        "profile": "whose model folder is looked at too (config/profiles)",
        "json": "answer as JSON",
    }
)
@command
def verify(_: Context, repository: str = "", cluster: str = "", profile: str = "", json: bool = False) -> None:
    """Read the models on all nodes again and compare every file with what was fetched."""
    chosen = chosen_cluster(cluster)
    served = _profile(chosen, profile)
    with Hosts(chosen) as hosts:
        seen = look(chosen, Question(served), Options(), hosts)
        found = list(keeping.kept_models(seen, repository))
        keeping.require_some(found, repository, chosen)
        results = keeping.verify(chosen, served, hosts, found, Screen().line)
    if json:
        answer_json(results)
    for one in [] if json else results:
        answer(f"{one['node']}: {one['folder']}: {one['files']} files are as they were fetched")


@task(
    help={
        **REMOVED,
        "dry-run": "show the plan and stop",
        "json": "answer as JSON",
        "facts": "plan from a saved file, without touching a node",
    }
)
@command
def remove(
    _: Context,
    repository: str,
    cluster: str = "",
    profile: str = "",
    dry_run: bool = False,
    json: bool = False,
    facts: str = "",
) -> None:
    """Take a model off every node."""
    chosen = chosen_cluster(cluster)
    served = _profile(chosen, profile)
    options = Options(dry_run, json, Path(facts) if facts else None)
    converge(
        "model.remove",
        chosen,
        Question(served),
        lambda seen: keeping.plan_remove(chosen, served, repository, seen),
        options,
    )
