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
from core.units import in_service
from deploy.models.fetching import HUBS, PACKAGE, RUNNING, UNIT, scripts
from deploy.onnode.common import said

VERIFY_TIMEOUT = 4 * 3600


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


def verify(
    cluster: Cluster, profile: Profile, hosts: Hosts, models: list[Kept], on_line: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Read every file of the models again, all nodes at once. Raises ModelRefused when one is damaged or missing."""
    models = [one for one in models if not one.partial]
    by_node = {node: [one for one in models if one.node == node] for node in dict.fromkeys(one.node for one in models)}

    def on_node(node: str) -> list[dict[str, Any]]:
        _send_scripts(cluster, hosts[node])
        return [_verified(cluster, hosts[node], one, on_line) for one in by_node[node]]

    with ThreadPoolExecutor(max(1, len(by_node))) as pool:
        results = [found for part in pool.map(on_node, by_node) for found in part]
    wrong = [one for one in results if one["damaged"] or one["missing"] or one["error"]]
    if wrong:
        raise _refused(wrong, cluster, profile)
    return results


def _send_scripts(cluster: Cluster, host: Host) -> None:
    for place, sent in scripts(cluster):
        host.run(("mkdir", "-p", str(place)))
        host.push(sent, place, lambda _: None)


def _verified(cluster: Cluster, host: Host, model: Kept, on_line: Callable[[str], None]) -> dict[str, Any]:
    tools = PurePosixPath(cluster.root / "tools")
    argv = ("env", f"--chdir={tools}", "python3", "-E", "-s", "-m", f"{PACKAGE}.verify", model.folder)
    done = host.run(
        argv, check=False, timeout=VERIFY_TIMEOUT, on_line=lambda line: on_line(f"{model.node}: {model.folder}: {line}")
    )
    told = said(done.tail(1))
    if not told:
        raise CommandFailed(
            f"{model.folder} could not be verified", node=host.name, next_move="run it again", evidence=done.tail()
        )
    origin = {"repository": model.repository, "hub": model.hub, "revision": model.revision}
    place = {"node": model.node, "folder": model.folder}
    return {"damaged": [], "missing": [], **told, **place, **origin, "error": told.get("cause", "")}


def _refused(wrong: list[dict[str, Any]], cluster: Cluster, profile: Profile) -> ModelRefused:
    first = wrong[0]
    names = [*first["damaged"], *first["missing"]]
    cause = first["error"] or f"damaged files: {len(first['damaged'])}, missing: {len(first['missing'])}"
    lines = [f"{one['node']}: {one['folder']}: {', '.join([*one['damaged'], *one['missing']])}" for one in wrong]
    return ModelRefused(
        f"{first['folder']}: {cause}" + (f", the first: {names[0]}" if names else ""),
        node=first["node"],
        next_move=_again(first, cluster, profile),
        evidence="\n".join(lines),
    )


def _again(model: Mapping[str, Any], cluster: Cluster, profile: Profile) -> str:
    """Return the command that brings a model again: the same state of it, from where it came, into its folder."""
    hub, revision = model["hub"], model["revision"]
    by_hand = bool(hub) and hub not in HUBS
    source = " --from /FOLDER" if by_hand else f" --from {hub}" if hub else ""
    pinned = f" --revision {revision}" if revision else ""
    flags = f"{pinned}{source} --again --cluster {cluster.flag} --profile {profile.name}"
    command = f"invoke model.fetch {model['repository'] or 'REPOSITORY'}{flags}"
    return f"{command}, where /FOLDER is the folder on the node that it was taken from" if by_hand else command


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
    return bool(in_service(facts[node]))
