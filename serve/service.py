"""Start, stop and restart of the service as plans: facts say what runs, the plan brings it to what should."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath

from core.config import Cluster, Node
from core.errors import UnfitNode
from core.facts import Facts, NodeFacts
from core.plan import Later, Plan, Poll, Run, Step, Write, make_plan
from core.question import model_command
from core.token import ask_argv
from core.units import RUNNING, stop_argv
from serve import ray, ready
from serve.cluster import RAY_HEAD, RAY_WORKER, VLLM, Service, deviations, files_of, present

Files = Mapping[str, Mapping[PurePosixPath, str]]
"""Node name to path to content."""


def plan_serve(service: Service, facts: Facts, *, restart: bool = False) -> Plan:
    """Return what brings the service up with this release and profile; empty when it answers with them already."""
    cluster = service.cluster
    service.require_ranks()
    files = {node.name: files_of(service, node, facts[node.name]) for node in cluster.nodes}
    changed = [node for node in cluster.nodes if not present(files[node.name], facts[node.name])]
    down = [node for node in cluster.nodes if not _all_run(service, node, facts[node.name])]
    title = f"serve {service.profile.name} from {cluster.name} with {service.release}"
    notes = deviations(service, facts)
    if not changed and not down and not restart:
        wait = () if facts[cluster.head.name].token else _token(service, "the units run, no token came")
        return make_plan(title, [("first token", wait)], notes if wait else ())
    why = "restart was asked for" if restart else "what runs is not what is wanted"
    return make_plan(
        title,
        [
            *stop_stages(cluster, facts, why),
            ("configure", (step for node in changed for step in _configure(node, files[node.name], facts[node.name]))),
            ("start the Ray head", _start(cluster.head, RAY_HEAD, "the workers join it")),
            ("start the Ray workers", (step for n in cluster.workers for step in _start(n, RAY_WORKER, "it joins"))),
            ("check the Ray cluster", _ray_complete(service)),
            ("start vLLM", _start(cluster.head, VLLM, f"it serves {service.profile.name}")),
            ("first token", _token(service, "ready means that a token came through every rank")),
        ],
        notes,
    )


def plan_stop(cluster: Cluster, facts: Facts) -> Plan:
    """Return what ends the service on every node; empty when nothing of ours runs."""
    return make_plan(f"stop the service on {cluster.name}", stop_stages(cluster, facts, "stop was asked for"))


def stop_stages(cluster: Cluster, facts: Facts, reason: str) -> Iterator[tuple[str, Iterator[Step]]]:
    """Stop the units of every node that run; the API first, so that it ends its requests while Ray lives."""
    yield "stop the API", _stop(cluster, facts, (VLLM,), reason)
    yield "stop Ray", _stop(cluster, facts, (RAY_HEAD, RAY_WORKER), reason)


def _stop(cluster: Cluster, facts: Facts, units: tuple[str, ...], reason: str) -> Iterator[Step]:
    for node in cluster.nodes:
        for name in units:
            if _state(facts[node.name], name) in (*RUNNING, "failed"):
                argv = stop_argv([name])  # Ray ends with 1 when it is told to end
                yield Run(node=node.name, title=f"stop {name}", reason=reason, argv=argv, privileged=True, timeout=90)


def require_model(service: Service, facts: Facts) -> None:
    """Raise UnfitNode for the first node that has no model in the profile's folder."""
    for name in nodes_without_model(service, facts):
        raise UnfitNode(
            f"the model {service.profile.model} is not in {service.model}",
            node=name,
            next_move=_model_command(service),
        )


def nodes_without_model(service: Service, facts: Facts) -> list[str]:
    """Return the nodes that do not have the profile's model."""
    return [node.name for node in service.cluster.nodes if "config.json" not in facts[node.name].model_files]


def plan_unready(service: Service, facts: Facts, *, restart: bool = False) -> Plan:
    """Return the plan to serve also where a node lacks the release or the model: what has to come first is named."""
    cluster = service.cluster
    lacking = [node.name for node in cluster.nodes if facts[node.name].current != service.release]
    releases = (
        Later(
            node=name,
            title=f"deploy {service.release}",
            reason=f"in use is {facts[name].current or 'none'}",
            command=f"invoke deploy --cluster {cluster.flag}",
        )
        for name in lacking
    )
    models = (_model_later(service, name) for name in nodes_without_model(service, facts))
    served = plan_serve(service, facts, restart=restart)
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


def _state(seen: NodeFacts, unit: str) -> str:
    return seen.units[unit].active if unit in seen.units else "inactive"


def _all_run(service: Service, node: Node, seen: NodeFacts) -> bool:
    return all(_state(seen, unit) == "active" for unit in service.units_of(node))


def _configure(node: Node, files: Mapping[PurePosixPath, str], seen: NodeFacts) -> Iterator[Step]:
    folders = sorted({str(path.parent) for path in files})
    yield _root(node, "make the folders", "units and environment go there", ("mkdir", "-p", *folders))
    for path, content in sorted(files.items()):
        if seen.files.get(str(path)) != content:
            why = "it differs" if str(path) in seen.files else "it is new"
            yield Write(
                node=node.name, title=f"write {path.name}", reason=why, path=path, content=content, privileged=True
            )
    stale = sorted(set(seen.files) - {str(path) for path in files})
    if stale:
        yield _root(node, "remove stale units", "this node no longer has that part", ("rm", "-f", *stale))
    yield _root(node, "reload systemd", "units changed", ("systemctl", "daemon-reload"))


def _root(node: Node, title: str, reason: str, argv: tuple[str, ...]) -> Run:
    return Run(node=node.name, title=title, reason=reason, argv=argv, privileged=True)


def _start(node: Node, unit: str, reason: str) -> tuple[Step, ...]:
    return (_root(node, f"start {unit}", reason, ("systemctl", "start", unit)),)


def _ray_complete(service: Service) -> tuple[Step, ...]:
    cluster = service.cluster
    step = Poll(
        node=cluster.head.name,
        title=f"wait until Ray has {len(cluster.nodes)} nodes",
        reason="vLLM would wait for a missing node without saying so",
        argv=ray.nodes_argv(cluster, service.release),
        accept=partial(ray.complete, cluster),
        failure=partial(ray.incomplete, cluster),
        timeout=90,
    )
    return (step,)


def _token(service: Service, reason: str) -> tuple[Step, ...]:
    cluster, profile = service.cluster, service.profile
    step = Poll(
        node=cluster.head.name,
        title="wait for the first token",
        reason=reason,
        argv=ask_argv(cluster.api_url, profile.served_names[0], (VLLM, RAY_HEAD)),
        accept=ready.has_token,
        failure=ready.no_token,
        timeout=profile.ready_timeout,
        privileged=True,
    )
    return (step,)
