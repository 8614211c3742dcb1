"""`invoke monitor` as plans: packages, files, units, and what every target must say; and all of it off again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import PurePosixPath

from core.config import Cluster, Node
from core.errors import UnfitNode
from core.facts import Facts, NodeFacts
from core.parsers import Unit
from core.plan import Later, Plan, Poll, Run, Step, Write, make_plan
from core.units import MONITOR, NODE_EXPORTER, PROMETHEUS, RUNNING, clean_argv, runs, stop_argv
from deploy import apt
from serve.cluster import UNIT_FOLDER
from serve.monitor import targets
from serve.monitor.files import CONFIG, OWN, files_of, units_of
from serve.monitor.scrape import EXPORTER_PORT, PROMETHEUS_PORT, Target, key_print, required

DEBIAN = {PROMETHEUS: "prometheus", NODE_EXPORTER: "prometheus-node-exporter"}
"""Our unit to the package that has its program; the package's own service has the package's name."""
PACKAGES = tuple(sorted(DEBIAN.values()))
WAIT = 90
"""Seconds until every target must have been scraped with success: some intervals."""
STAYS = (
    "Debian's packages stay, and their own services stay masked where we masked them; to end that, on a node: "
    f"sudo systemctl unmask {' '.join(PACKAGES)}"
)

Files = Mapping[PurePosixPath, str]

_REMOVE = 'rm -f -- "$@" && systemctl daemon-reload'


def plan_monitor(cluster: Cluster, facts: Facts) -> Plan:
    """Return what has every node watched; empty where everything runs as it should.

    A node whose files change, or where a unit does not run, is stopped before it is changed: interrupted anywhere, the
    next look finds it stopped. Raises UnfitNode where somebody else has a port.
    """
    for node in cluster.nodes:
        _require_ports(cluster, node, facts[node.name])
    wanted = {node.name: files_of(cluster, node, facts) for node in cluster.nodes}
    stale = [node for node in cluster.nodes if not _as_wanted(cluster, node, facts[node.name], wanted[node.name])]
    up = required(cluster, facts)
    return make_plan(
        f"watch {cluster.name} with Prometheus on {cluster.head.name}",
        [
            ("the service", _key_first(cluster, facts) if stale else ()),
            ("install Debian packages", (step for n in stale for step in _packages(cluster, n, facts[n.name]))),
            ("stop what changes", (step for n in stale for step in _stop(n, facts[n.name]))),
            ("configure", (step for n in stale for step in _configure(n, wanted[n.name], facts[n.name]))),
            ("start", (step for n in stale for step in _start(cluster, n))),
            ("wait for the targets", _wait(cluster, up) if stale else ()),
        ],
        _notes(cluster, up) if stale else (),
    )


def plan_off(cluster: Cluster, facts: Facts) -> Plan:
    """Return what takes units, files and the metrics kept so far off every node; empty where nothing is left."""
    seen = [(node, facts[node.name]) for node in cluster.nodes]
    stages = [
        ("stop", [step for node, one in seen for step in _stop(node, one)]),
        ("remove", [step for node, one in seen for step in _remove(node, _ours(one))]),
    ]
    return make_plan(f"watch {cluster.name} no longer", stages, (STAYS,) if any(steps for _, steps in stages) else ())


def _as_wanted(cluster: Cluster, node: Node, seen: NodeFacts, files: Files) -> bool:
    """Whether the node has exactly these files, and every unit of them runs, and will after a boot."""
    same = {path: seen.files[path] for path in _ours(seen)} == {str(path): text for path, text in files.items()}
    return same and all(_watches(seen.units.get(unit)) for unit in units_of(cluster, node))


def _watches(unit: Unit | None) -> bool:
    return unit is not None and unit.active == "active" and unit.enabled


def _ours(seen: NodeFacts) -> list[str]:
    return sorted(OWN & set(seen.files))


def _require_ports(cluster: Cluster, node: Node, seen: NodeFacts) -> None:
    addresses = {NODE_EXPORTER: (str(node.fabric), EXPORTER_PORT), PROMETHEUS: ("127.0.0.1", PROMETHEUS_PORT)}
    for unit in units_of(cluster, node):
        address, port = addresses[unit]
        taken = {one.address for one in seen.listening if one.port == port} & {address, "*", "0.0.0.0", "::"}  # noqa: S104
        if taken and not runs(seen, unit):
            raise UnfitNode(
                f"port {port} is taken: something listens on {', '.join(sorted(taken))}",
                node=node.name,
                next_move=f"see what it is: sudo ss -ltnp sport = {port}. If it is Debian's own service, which listens "
                f"everywhere: sudo systemctl disable --now {DEBIAN[unit]}",
            )


def _key_first(cluster: Cluster, facts: Facts) -> Iterator[Step]:
    head = cluster.head.name
    if not key_print(facts[head]):
        yield Later(
            node=head,
            title="have a key that opens vLLM's metrics",
            reason="the service makes it the first time",
            command=f"invoke serve --cluster {cluster.flag}",
        )


def _packages(cluster: Cluster, node: Node, seen: NodeFacts) -> Iterator[Step]:
    """Install what is missing; its own service is masked before, so that it never starts and listens everywhere."""
    missing = sorted({DEBIAN[unit] for unit in units_of(cluster, node)} - seen.packages)
    if missing:
        services = tuple(f"{name}.service" for name in missing)
        why = "Debian's own service starts with its package and listens on every interface"
        yield _root(node, f"mask {', '.join(services)}", why, ("systemctl", "mask", *services))
        yield from apt.install(node, missing, "it watches this node")


def _stop(node: Node, seen: NodeFacts) -> Iterator[Step]:
    units = sorted(name for name in MONITOR if name in seen.units and seen.units[name].active in (*RUNNING, "failed"))
    if units:
        yield _root(node, f"stop {', '.join(units)}", "what runs is not what is wanted", stop_argv(units))


def _configure(node: Node, files: Files, seen: NodeFacts) -> Iterator[Step]:
    yield from _remove(node, sorted(set(_ours(seen)) - {str(path) for path in files}))
    yield _root(node, "make the folder", "Prometheus's configuration goes there", ("mkdir", "-p", str(CONFIG.parent)))
    for path, content in sorted(files.items()):
        if seen.files.get(str(path)) != content:
            why = "it differs" if str(path) in seen.files else "it is new"
            yield Write(
                node=node.name, title=f"write {path.name}", reason=why, path=path, content=content, privileged=True
            )
    if CONFIG in files:
        check = ("promtool", "check", "config", "--syntax-only", str(CONFIG))
        yield _root(node, "check prometheus.yml", "what Prometheus cannot read is not started", check)
    yield _root(node, "reload systemd", "units changed", ("systemctl", "daemon-reload"))


def _start(cluster: Cluster, node: Node) -> Iterator[Step]:
    units = units_of(cluster, node)
    yield _root(
        node,
        f"start {', '.join(units)}",
        "and again at every boot",
        ("systemctl", "enable", "--now", "--quiet", *units),
    )


def _remove(node: Node, paths: list[str]) -> Iterator[Step]:
    """Take files away; with Prometheus's unit go its metrics, while systemd knows whose they are."""
    units = [name for name in MONITOR if str(UNIT_FOLDER / f"{name}.service") in paths]
    if units:
        yield _root(node, f"disable {', '.join(units)}", "no boot starts it", ("systemctl", "disable", "--now", *units))
    if PROMETHEUS in units:
        yield _root(node, "remove the metrics kept so far", f"{PROMETHEUS} goes", clean_argv(PROMETHEUS))
    if paths:
        why = "invoke monitor wrote them"
        yield _root(node, f"remove {len(paths)} files", why, ("sh", "-c", _REMOVE, "sh", *paths))


def _wait(cluster: Cluster, wanted: tuple[Target, ...]) -> Iterator[Step]:
    yield Poll(
        node=cluster.head.name,
        title=f"wait until {len(wanted)} targets are up",
        reason="Prometheus says it of each after its first scrape",
        argv=targets.ask_argv(),
        accept=partial(targets.all_up, wanted),
        failure=partial(targets.not_up, cluster.head.name, wanted),
        timeout=WAIT,
    )


def _notes(cluster: Cluster, up: tuple[Target, ...]) -> Iterator[str]:
    if not any(target.job == "vllm" for target in up):
        yield f"vLLM does not serve now: its target is down until invoke serve --cluster {cluster.flag}"


def _root(node: Node, title: str, reason: str, argv: tuple[str, ...]) -> Run:
    return Run(node=node.name, title=title, reason=reason, argv=argv, privileged=True)
