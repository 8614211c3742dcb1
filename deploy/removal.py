"""Everything of ours off the nodes, as one plan: units, environment files, and what we put into the suite's folder.

Only names that the suite makes are removed from that folder; what else lies there stays, and keeps the folder.
"""

from __future__ import annotations

from collections.abc import Iterator

from core.config import Cluster, Node
from core.errors import InUse
from core.facts import Facts, NodeFacts
from core.plan import Plan, Run, Step, make_plan
from core.surroundings import OurProcess
from core.units import MONITOR, PREFIX, PROMETHEUS, RUNNING, clean_argv, runs, stop_argv
from deploy import conda
from deploy.access.peers import forget

OURS = frozenset(
    {
        *("releases", "wheels", "cache", "signed", "models", "build", "store", "python", "tools"),
        *("current", ".current.new", "history.jsonl", "history.jsonl.sparkstack-new"),
    }
)
"""What the suite makes in its folder on a node."""
MODELS = "models"
_PROMETHEUS = f"/etc/systemd/system/{PROMETHEUS}.service"

_FILES = """
rm -f -- "$@" /etc/systemd/system/*.wants/sparkstack-*.service || exit
rm -rf -- /etc/sparkstack/credentials /usr/local/lib/sparkstack /var/cache/sparkstack || exit
[ ! -d /etc/sparkstack ] || rmdir --ignore-fail-on-non-empty /etc/sparkstack || exit
systemctl daemon-reload
"""


def plan_remove(cluster: Cluster, facts: Facts, *, stop: bool = False, keep_models: bool = False) -> Plan:
    """Return what takes everything of ours off every node; empty where nothing is left.

    Raises InUse for a node where a unit of ours runs, unless ``stop`` says to end it, or a process that no unit holds.
    """
    _refuse_running(cluster, facts, stop=stop)
    seen = [(node, facts[node.name]) for node in cluster.nodes]
    return make_plan(
        f"remove sparkstack from {cluster.name} ({', '.join(node.name for node in cluster.nodes)})",
        (
            ("stop what runs", (step for node, one in seen for step in _stop(node, one))),
            ("take back the keys between the nodes", forget(cluster, facts)),
            ("remove units and environment files", (step for node, one in seen for step in _files(node, one))),
            (
                "remove releases, wheels and models" if not keep_models else "remove releases and wheels",
                (step for node, one in seen for step in _folder(cluster, node, one, keep_models=keep_models)),
            ),
        ),
        (note for node, one in seen for note in _notes(cluster, node, one, keep_models=keep_models)),
    )


def _refuse_running(cluster: Cluster, facts: Facts, *, stop: bool) -> None:
    for node in cluster.nodes:
        units, loose = _running(facts[node.name]), _loose(facts[node.name])
        if units and not stop:
            move = f"{_ending(cluster, units)}, or say --stop: it ends what runs, then removes it"
            raise InUse(f"it still runs {', '.join(units)}", node=node.name, next_move=move)
        if loose:
            raise InUse(
                f"it still runs {len(loose)} processes of ours that belong to no unit",
                node=node.name,
                next_move=f"end them on the node: kill {' '.join(str(one.pid) for one in loose)}",
                evidence="\n".join(
                    f"{one.pid} {one.command[:120]} (user {one.uid}, started by {one.starter})" for one in loose[:10]
                ),
            )


def _ending(cluster: Cluster, units: list[str]) -> str:
    """Return the commands that end these units: what watches goes on when the service is stopped."""
    commands = {"invoke monitor --off" if unit in MONITOR else "invoke stop": None for unit in units}
    return " and ".join(f"{command} --cluster {cluster.flag}" for command in sorted(commands, reverse=True))


def _loose(seen: NodeFacts) -> list[OurProcess]:
    """Return what would go on to run when our units have ended."""
    return [one for one in seen.condition.around.ours if not one.unit.startswith(PREFIX)]


def _running(seen: NodeFacts) -> list[str]:
    return sorted(name for name in seen.units if runs(seen, name))


def _stop(node: Node, seen: NodeFacts) -> Iterator[Step]:
    """End our units, the failed ones too, so that systemd forgets them; systemd orders them among each other."""
    kept = sorted(name for name, unit in seen.units.items() if unit.enabled)
    if kept:
        argv = ("systemctl", "disable", "--quiet", *kept)
        yield Run(node=node.name, title="start nothing at boot", reason="it goes", argv=argv, privileged=True)
    units = sorted(name for name, unit in seen.units.items() if unit.active in (*RUNNING, "failed"))
    if units:
        yield Run(
            node=node.name,
            title=f"stop {', '.join(units)}",
            reason="nothing of ours is to run",
            argv=stop_argv(units),
            privileged=True,
            timeout=180,
        )


def _files(node: Node, seen: NodeFacts) -> Iterator[Step]:
    if _PROMETHEUS in seen.files:
        yield Run(
            node=node.name,
            title="remove the metrics kept so far",
            reason="invoke monitor kept them; systemd knows where, while the unit is there",
            argv=clean_argv(PROMETHEUS),
            privileged=True,
        )
    if seen.files:
        yield Run(
            node=node.name,
            title=f"remove {len(seen.files)} files, the cache and the keys",
            reason="invoke serve and invoke monitor wrote them",
            argv=("sh", "-c", _FILES, "sh", *sorted(seen.files)),
            privileged=True,
        )


def _folder(cluster: Cluster, node: Node, seen: NodeFacts, *, keep_models: bool) -> Iterator[Step]:
    """Remove our names from the suite's folder, and the folder once nothing is in it."""
    for link in conda.our_links(cluster, seen):
        yield conda.unname(cluster, node, link, "it leads to a release of ours")
    ours = sorted(going(seen, keep_models=keep_models))
    if ours:
        yield Run(
            node=node.name,
            title=f"remove {', '.join(ours)} in {cluster.root}",
            reason="the suite made them",
            argv=("rm", "-rf", "--one-file-system", "--", *(str(cluster.root / name) for name in ours)),
            privileged=True,  # builds on a node leave files of root's
            timeout=900,
        )
    if seen.root_owner is not None and seen.entries == set(ours):
        yield Run(
            node=node.name,
            title=f"remove {cluster.root}",
            reason="nothing else is in it",
            argv=("rmdir", str(cluster.root)),
            privileged=True,
        )


def going(seen: NodeFacts, *, keep_models: bool) -> frozenset[str]:
    """Return the names in the suite's folder that are to go."""
    return seen.entries & (OURS - {MODELS} if keep_models else OURS)


def _notes(cluster: Cluster, node: Node, seen: NodeFacts, *, keep_models: bool) -> Iterator[str]:
    others = sorted(seen.entries - OURS)
    if others:
        yield f"{node.name}: {', '.join(others)} in {cluster.root} is not of the suite and stays"
    if keep_models and MODELS in seen.entries:
        yield f"{node.name}: {cluster.root / MODELS} stays, as --keep-models says"
