"""The models that nodes have: listed, read again, taken off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import StringIO
from pathlib import PurePosixPath
from typing import Any

from rich.console import Console
from rich.table import Table

from core.config import Cluster, Profile
from core.errors import CommandFailed, ModelRefused, UsageError
from core.facts import Facts
from core.findings import Finding, refuse_unfit
from core.host import Host
from core.plan import Plan, Run, make_plan, megabytes
from core.question import model_folder
from core.remote import Hosts
from deploy.models.fetching import PACKAGE, RUNNING, UNIT, said, scripts

VERIFY_TIMEOUT = 4 * 3600
SERVICE = "sparkstack-vllm"


@dataclass(frozen=True)
class Kept:
    """A model on a node; ``size`` in bytes."""

    node: str
    folder: str
    repository: str
    hub: str
    revision: str
    commit: str
    files: int
    size: int
    partial: bool = False
    """It is arriving, or was when its fetch was cut off."""


def kept_models(facts: Facts, repository: str = "") -> Iterator[Kept]:
    """Return the models on the nodes, or those of one repository; of a damaged manifest the folder only."""
    for node, seen in facts.items():
        for folder, manifest in sorted(seen.models.items()):
            if repository in ("", manifest.get("repository")):
                yield _kept(node, folder, manifest)


def _kept(node: str, folder: str, manifest: Mapping[str, Any]) -> Kept:
    files = manifest.get("files", [])
    sizes = [one["size"] for one in files if type(one.get("size")) is int] if _is_list_of_objects(files) else []
    repository, hub, revision, commit = (str(manifest.get(key, "")) for key in _WORDS)
    partial = manifest.get("partial") is True
    return Kept(node, folder, repository, hub, revision, commit, len(sizes), sum(sizes), partial)


_WORDS = ("repository", "hub", "revision", "commit")


def _is_list_of_objects(found: object) -> bool:
    return isinstance(found, list) and all(isinstance(one, dict) for one in found)


def require_some(found: list[Kept], repository: str, cluster: Cluster) -> None:
    """Raise UsageError where no node has a model of that repository."""
    if not found and repository:
        raise UsageError(
            f"no node of {cluster.name} has {repository}",
            next_move=f"invoke model.list --cluster {cluster.flag} shows what they have",
        )


def table(models: list[Kept]) -> str:
    """Return the models for people."""
    grid = Table()
    for column in ("node", "model", "from", "commit", "files", "size", "folder"):
        grid.add_column(column, overflow="fold")
    for one in models:
        commit = one.commit[:12] or one.revision
        size = ("", "arriving") if one.partial else (str(one.files), megabytes(one.size))
        cells = (one.repository or "(damaged manifest)", one.hub, commit, *size)
        grid.add_row(one.node, *cells, one.folder)
    text = StringIO()
    Console(file=text, width=140).print(grid)
    return text.getvalue()


def verify(cluster: Cluster, hosts: Hosts, models: list[Kept], on_line: Callable[[str], None]) -> list[dict[str, Any]]:
    """Read every file of the models again, all nodes at once. Raises ModelRefused when one is damaged or missing."""
    models = [one for one in models if not one.partial]
    by_node = {node: [one for one in models if one.node == node] for node in dict.fromkeys(one.node for one in models)}

    def on_node(node: str) -> list[dict[str, Any]]:
        return [_verified(cluster, hosts[node], one, on_line) for one in by_node[node]]

    with ThreadPoolExecutor(max(1, len(by_node))) as pool:
        results = [found for part in pool.map(on_node, by_node) for found in part]
    wrong = [one for one in results if one["damaged"] or one["missing"] or one["error"]]
    if wrong:
        raise _refused(wrong, cluster)
    return results


def _verified(cluster: Cluster, host: Host, model: Kept, on_line: Callable[[str], None]) -> dict[str, Any]:
    tools = PurePosixPath(cluster.root / "tools")
    for place, sent in scripts(cluster):
        host.run(("mkdir", "-p", str(place)))
        host.push(sent, place, lambda _: None)
    argv = ("env", f"--chdir={tools}", "python3", "-E", "-s", "-m", f"{PACKAGE}.verify", model.folder)
    done = host.run(
        argv, check=False, timeout=VERIFY_TIMEOUT, on_line=lambda line: on_line(f"{model.node}: {model.folder}: {line}")
    )
    told = said(done.tail(1))
    if not told:
        raise CommandFailed(
            f"{model.folder} could not be verified", node=host.name, next_move="run it again", evidence=done.tail()
        )
    base = {"node": model.node, "folder": model.folder, "repository": model.repository, "error": told.get("cause", "")}
    return {"damaged": [], "missing": [], **told, **base}


def _refused(wrong: list[dict[str, Any]], cluster: Cluster) -> ModelRefused:
    first = wrong[0]
    names = [*first["damaged"], *first["missing"]]
    cause = first["error"] or f"damaged files: {len(first['damaged'])}, missing: {len(first['missing'])}"
    lines = [f"{one['node']}: {one['folder']}: {', '.join([*one['damaged'], *one['missing']])}" for one in wrong]
    return ModelRefused(
        f"{first['folder']}: {cause}" + (f", the first: {names[0]}" if names else ""),
        node=first["node"],
        next_move=f"invoke model.fetch {first['repository'] or 'REPOSITORY'} --again --cluster {cluster.flag}",
        evidence="\n".join(lines),
    )


def plan_remove(cluster: Cluster, profile: Profile, repository: str, facts: Facts) -> Plan:
    """Return what takes a model off every node. Raises UnfitNode while it is served, UsageError for one of nobody."""
    models = list(kept_models(facts, repository))
    served = str(model_folder(cluster, profile))
    refuse_unfit(
        Finding(one.node, f"{one.folder} is being served", f"invoke stop --cluster {cluster.flag}")
        for one in models
        if one.folder == served and _serves(facts, one.node)
    )
    refuse_unfit(
        Finding(one.node, f"{unit} brings a model just now", f"on the node: sudo systemctl stop {unit}")
        for one in models
        if one.partial
        for unit, state in facts[one.node].units.items()
        if unit.startswith(UNIT) and state.active in RUNNING
    )
    steps = (
        Run(
            node=one.node,
            title=f"remove {one.folder}",
            reason=f"{'what has arrived' if one.partial else megabytes(one.size)} of {repository}",
            argv=("rm", "-rf", "--", one.folder),
            timeout=600,
        )
        for one in models
    )
    return make_plan(f"take {repository} off {cluster.name}", (("remove", steps),))


def _serves(facts: Facts, node: str) -> bool:
    units = facts[node].units
    return any(name.startswith((SERVICE, "sparkstack-ray")) and unit.active in RUNNING for name, unit in units.items())
