"""Start, stop and restart of the service as plans: facts say what runs, the plan brings it to what should."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath

from core.config import Cluster, Node
from core.errors import UnfitNode
from core.facts import Facts, NodeFacts
from core.plan import Later, Plan, Poll, Run, Step, Write, make_plan
from core.question import model_command
from core.units import ENGINE, PROXY, SUPERVISOR, runs, stop_argv
from serve import drain, flags, ready
from serve.api.keys import Secrets, credential_steps
from serve.api.tls import UNIT, require_proxy
from serve.cluster import UNIT_FOLDER, Service
from serve.deviations import deviations
from serve.files import CODE, PACKAGES, WANTED, files_of, lacking, present, stale
from serve.musts import doubts, require_musts
from serve.stopping import stop_stages

Files = Mapping[str, Mapping[PurePosixPath, str]]
"""Node name to path to content."""
CONFIGURE, START, FIRST_TOKEN = "configure", "start the supervisors", "first token"


@dataclass(frozen=True)
class Wish:
    """What is wanted besides that it serves: to begin anew in any case, and how long running requests may take."""

    restart: bool = False
    drain: float = 60


def plan_serve(service: Service, facts: Facts, fresh: Secrets, wish: Wish = Wish()) -> Plan:
    """Return what brings the service up with this release and profile; empty when it serves with them already.

    ``fresh`` are secrets for nodes that have none. What served before comes back where the new one does not come up.
    """
    cluster = service.cluster
    service.require_ranks()
    require_musts(service)
    files = files_of(service, facts)
    changed = [node for node in cluster.nodes if not present(files[node.name], facts[node.name])]
    keys = tuple(credential_steps(cluster, facts, fresh))
    down = [node for node in cluster.nodes if not _supervised(service, node, facts[node.name])]
    generation = ready.generation_of(files[cluster.head.name][WANTED])
    over = ready.fresh(facts[cluster.head.name]).get("phase") == "given-up"
    title = f"serve {service.profile.name} from {cluster.name} with {service.release}"
    notes = (*deviations(service, facts), *(f"doubtful: {doubt}" for doubt in doubts(service)))
    if not (changed or keys or down or over or wish.restart):
        wait = () if ready.serving(facts[cluster.head.name], generation) else _token(service, generation)
        boot = tuple(step for node in cluster.nodes for step in _at_boot(cluster, node, facts[node.name]))
        return make_plan(title, [("start at boot", boot), (FIRST_TOKEN, wait)], notes if wait else ())
    why = "restart was asked for" if wish.restart else "what runs is not what is wanted"
    return make_plan(
        title,
        [
            # where nothing runs nothing can be lost by a wrong one: vLLM refuses it itself, and sooner
            ("check the flags", (flags.check_step(service),) if changed and _anything(cluster, facts) else ()),
            *stop_stages(cluster, facts, why, wish.drain, partial(_kept, cluster)),
            ("secrets", keys),
            (CONFIGURE, (step for node in changed for step in _configure(node, files[node.name], facts[node.name]))),
            (
                "keep shared memory",
                (step for node in cluster.nodes for step in _linger(cluster, node, facts[node.name])),
            ),
            (
                START,
                (step for node in cluster.nodes for step in _start(cluster, node, _kept(cluster, node))),
            ),
            (FIRST_TOKEN, _token(service, generation)),
        ],
        notes,
        undo={
            "drain": drain.undo(cluster, facts),
            "stop": tuple(_on_again(cluster, facts)),
            CONFIGURE: tuple(_back(service, facts, files, changed)),
        },
    )


def require_model(service: Service, facts: Facts) -> None:
    """Raise UnfitNode for the first node that has no model in the profile's folder."""
    for name in nodes_without_model(service, facts):
        raise UnfitNode(
            f"the model {service.profile.model} is not in {service.model}",
            node=name,
            next_move=_model_command(service),
        )


def require_packages(service: Service, facts: Facts) -> None:
    """Raise UnfitNode for the first node that lacks what closes its ports, or serves TLS."""
    require_proxy(service.cluster, facts)
    for node in service.cluster.nodes:
        absent = [name for name in PACKAGES if name not in facts[node.name].packages]
        if absent:
            raise UnfitNode(
                f"Debian packages are missing: {' '.join(absent)}",
                node=node.name,
                next_move=f"on the node: sudo apt-get install -y --no-install-recommends {' '.join(absent)}",
            )


def _anything(cluster: Cluster, facts: Facts) -> bool:
    """Whether something of a service runs anywhere, which a mistake would cost."""
    return any(runs(facts[node.name], name) for node in cluster.nodes for name in (SUPERVISOR, *ENGINE))


def nodes_without_model(service: Service, facts: Facts) -> list[str]:
    """Return the nodes that do not have the profile's model."""
    return [node.name for node in service.cluster.nodes if "config.json" not in facts[node.name].model_files]


def plan_unready(service: Service, facts: Facts, fresh: Secrets, wish: Wish = Wish()) -> Plan:
    """Return the plan to serve also where a node lacks the release or the model: what has to come first is named."""
    cluster = service.cluster
    lacks = [node.name for node in cluster.nodes if facts[node.name].current != service.release]
    releases = (
        Later(
            node=name,
            title=f"deploy {service.release}",
            reason=f"in use is {facts[name].current or 'none'}",
            command=f"invoke deploy --cluster {cluster.flag}",
        )
        for name in lacks
    )
    models = (_model_later(service, name) for name in nodes_without_model(service, facts))
    served = plan_serve(service, facts, fresh, wish)
    before = make_plan(served.title, [("deploy", releases), ("model", models)])
    return replace(served, stages=before.stages + served.stages)


def _model_later(service: Service, node: str) -> Later:
    return Later(
        node=node,
        title=f"have the model in {service.model}",
        reason="no config.json is there",
        command=_model_command(service),
    )


def _model_command(service: Service) -> str:
    """Return what brings the profile's model to the nodes, in words where the profile does not say where it is from."""
    command = model_command(service.cluster, service.profile)
    return command or f"put the model's files into {service.model} on every node"


def _kept(cluster: Cluster, node: Node) -> tuple[str, ...]:
    """Return what is kept running on the node: its supervisor, and on the head the proxy where there is one."""
    return (SUPERVISOR, PROXY) if cluster.api.tls is not None and node == cluster.head else (SUPERVISOR,)


def _supervised(service: Service, node: Node, seen: NodeFacts) -> bool:
    return all(runs(seen, name) for name in _kept(service.cluster, node))


def _at_boot(cluster: Cluster, node: Node, seen: NodeFacts) -> Iterator[Step]:
    """Enable what runs and would not come back: `invoke stop` was cut off."""
    units = [name for name in _kept(cluster, node) if not seen.units[name].enabled]
    if units:
        argv = ("systemctl", "enable", "--quiet", *units)
        yield _root(node, f"enable {', '.join(units)}", "it runs, and no boot would start it", argv)


def _configure(node: Node, files: Mapping[PurePosixPath, str], seen: NodeFacts) -> Iterator[Step]:
    folders = sorted({str(path.parent) for path in files})
    yield _root(node, "make the folders", "units, environment and code go there", ("mkdir", "-p", *folders))
    for path in sorted(lacking(files, seen)):
        why = "it differs" if str(path) in seen.files else "it is new"
        yield _write(node, path, files[path], why)
    old = stale(files, seen)
    if old:
        yield _root(node, "remove stale files", "this node no longer has that part", ("rm", "-f", *old))
    yield _root(node, "reload systemd", "units changed", ("systemctl", "daemon-reload"))


def _back(service: Service, facts: Facts, files: Files, changed: list[Node]) -> Iterator[Step]:
    """Bring back the files of what served before; it starts again with the undo of the stop (`_on_again`)."""
    cluster = service.cluster
    if not changed or not _served(cluster, facts):
        return
    for node in cluster.nodes:
        seen, new = facts[node.name], files[node.name]
        proxies = [PROXY] if UNIT in new else []
        differ = [path for path in lacking(new, seen) if str(path) in seen.files]
        gone = [PurePosixPath(path) for path in stale(new, seen)]
        yield _root(
            node,
            "stop what did not come up",
            "what served before comes back",
            stop_argv([SUPERVISOR, *proxies, *ENGINE]),
        )
        for path in (*differ, *gone):
            yield _write(node, path, seen.files[str(path)], "what served before comes back")
        added = [str(path) for path in lacking(new, seen) if str(path) not in seen.files]
        if added:
            yield _root(node, "remove what was new", "what served before comes back", ("rm", "-f", *added))
        yield _root(node, "reload systemd", "units changed", ("systemctl", "daemon-reload"))


def _on_again(cluster: Cluster, facts: Facts) -> Iterator[Step]:
    """Start what served, with files of which nothing was changed yet, or that were brought back."""
    for node in cluster.nodes if _served(cluster, facts) else ():
        files = facts[node.name].files
        units = [name for name in (SUPERVISOR, PROXY) if str(UNIT_FOLDER / f"{name}.service") in files]
        if units:
            yield from _start(cluster, node, units)


def _served(cluster: Cluster, facts: Facts) -> bool:
    return ready.fresh(facts[cluster.head.name]).get("phase") == "serving"


def _linger(cluster: Cluster, node: Node, seen: NodeFacts) -> Iterator[Step]:
    if not seen.lingers:
        why = "logind removes the shared memory of a user who has logged out (RemoveIPC)"
        yield _root(node, f"let {cluster.user} linger", why, ("loginctl", "enable-linger", cluster.user))


def _write(node: Node, path: PurePosixPath, content: str, why: str) -> Write:
    title = f"write {path.relative_to(CODE)}" if path.is_relative_to(CODE) else f"write {path.name}"
    return Write(
        node=node.name,
        title=title,
        reason=why,
        path=path,
        content=content,
        code=path.is_relative_to(CODE),
        privileged=True,
    )


def _root(node: Node, title: str, reason: str, argv: tuple[str, ...]) -> Run:
    return Run(node=node.name, title=title, reason=reason, argv=argv, privileged=True)


def _start(cluster: Cluster, node: Node, units: Sequence[str]) -> Iterator[Step]:
    why = "it starts the ranks, now and at each boot" if node == cluster.head else "it obeys the head's"
    yield _root(node, f"enable and start {', '.join(units)}", why, ("systemctl", "enable", "--quiet", "--now", *units))


def _token(service: Service, generation: str) -> tuple[Step, ...]:
    step = Poll(
        node=service.cluster.head.name,
        title="wait for the first token",
        reason="ready means that a token came through every rank",
        argv=ready.look_argv(),
        accept=partial(ready.serves, generation=generation),
        failure=ready.too_slow,
        interval=0.25,
        timeout=service.profile.ready_timeout,
    )
    return (step,)
