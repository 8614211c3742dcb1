"""What runs: the service as its head's supervisor says, what each node shows of it, and where the two do not agree.

Nothing old is shown as the truth: a file counts for as long as its writer renews it, by the clock of its own node.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from core.config import Cluster, Node
from core.errors import NotServing, SparkstackError
from core.facts import Facts, NodeFacts, gather_each
from core.parsers import Process, record_or_none, shown
from core.question import Question
from core.remote import Hosts
from core.units import RANK, RUNNING, SUPERVISOR, VLLM, runs
from serve.view.said import age, count, mapping, number, rows, span, text

RAY = "sparkstack-ray-"
SERVICE = "/etc/sparkstack/service.json"
STALE = 10.0
"""Seconds after which what a supervisor (every 2 s) or the model server (every second) wrote is not the truth."""
UNKNOWN, STOPPED = "unknown", "stopped"
"""Phases beside those of the supervisor: it cannot be known, and nobody wants the service to run."""
MOST = 20
"""Failures and notes of one node that are shown."""
KINDS = (
    ("starter", r"\bserve\.onnode\.(?:engine|raynodes)\b"),
    ("rank", r"^VLLM::Worker|^ray::RayWorker"),
    ("engine", r"^VLLM::EngineCore"),
    ("headless", r"/vllm serve\b.* --headless\b"),
    ("API server", r"^VLLM::APIServer|/vllm serve\b"),
    ("raylet", r"(?:^|/)raylet(?:\s|$)"),
    ("GCS", r"(?:^|/)gcs_server(?:\s|$)"),
    ("Ray", r"^ray::|/ray(?:/|\s)"),
)
"""Kinds of our processes, by the command: vLLM and Ray give their own titles."""


@dataclass(frozen=True)
class Failure:
    """An end of the service that nobody asked for; ``at`` in seconds since 1970."""

    at: float | None
    reason: str


@dataclass(frozen=True)
class Service:
    """The service as the head's supervisor says; times in seconds since 1970.

    ``said`` is the phase in its file, ``age`` how old that is in seconds; ``phase`` is it only where it is fresh.
    """

    phase: str
    said: str = ""
    age: float | None = None
    since: float | None = None
    reason: str = ""
    attempt: int = 0
    starts_at: float | None = None
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Requests:
    """The model server's own numbers; ``kv_cache`` from 0 to 1, ``age`` of the numbers in seconds."""

    age: float | None
    ready: bool
    running: int
    waiting: int
    tokens_per_second: float | None
    kv_cache: float | None
    last_token: float | None
    draining: bool
    error: str


@dataclass(frozen=True)
class NodeStatus:
    """One node; sizes in bytes. ``report`` is the age in seconds of what the head last heard of it.

    A node that does not answer has an ``error`` and its ``exit_code``, and nothing else.
    """

    name: str
    role: str
    release: str | None = None
    units: Mapping[str, str] | None = None
    ray: str = ""
    processes: Mapping[str, int] | None = None
    memory_available: int | None = None
    memory_total: int | None = None
    report: float | None = None
    notes: tuple[str, ...] = ()
    error: str = ""
    exit_code: int | None = None


@dataclass(frozen=True)
class Status:
    """The whole; ``now`` is the head's clock. ``doubts`` say where what is said and what is seen do not agree."""

    cluster: str
    api: str
    now: float
    wanted: bool
    serving: bool
    service: Service
    requests: Requests | None
    nodes: tuple[NodeStatus, ...]
    doubts: tuple[str, ...]


def look(cluster: Cluster, hosts: Hosts) -> tuple[Status, dict[str, SparkstackError]]:
    """Ask every node; return what was seen, and why each node that did not answer did not."""
    captures, silent = gather_each(hosts, cluster, Question())
    facts, unread = captures.parsed_each()
    return judge(cluster, facts, silent | unread), silent | unread


def judge(cluster: Cluster, facts: Facts, silent: Mapping[str, SparkstackError]) -> Status:
    """Return the status out of facts. Pure."""
    head = facts.get(cluster.head.name)
    wanted = any(_wants(seen) for seen in facts.values())
    service = _service(head, wanted=wanted)
    requests = _requests(head) if head else None
    doubts = tuple(_doubts(cluster, facts, service, requests, wanted=wanted))
    return Status(
        cluster=cluster.name,
        api=_api(head) or cluster.api_url,
        now=head.moment if head else 0.0,
        wanted=wanted,
        serving=_serves(head, service, requests),
        service=service,
        requests=requests,
        nodes=tuple(_node(cluster, node, facts, silent) for node in cluster.nodes),
        doubts=doubts,
    )


def as_data(status: Status) -> dict[str, Any]:
    """Return the status for programs."""
    return asdict(status)


def trouble(cluster: Cluster, status: Status, silent: Mapping[str, SparkstackError]) -> SparkstackError | None:
    """Return what the command ends with after its screen; None where the service serves, or nobody wants it to."""
    for node in cluster.nodes:
        if node.name in silent:
            return silent[node.name]
    if status.serving or not status.wanted:
        return None
    service = status.service
    moves = {
        "given-up": "invoke logs shows why; correct the cause, then invoke restart",
        UNKNOWN: "invoke logs --unit supervisor shows what became of the supervisor",
        "serving": "invoke logs --unit vllm shows what became of the model server",
    }
    return NotServing(
        f"the service is not serving: {service.phase}{f', {service.reason}' if service.reason else ''}",
        node=cluster.head.name,
        next_move=moves.get(service.phase, "invoke status --watch shows how it goes on"),
    )


def _wants(seen: NodeFacts) -> bool:
    unit = seen.units.get(SUPERVISOR)
    return unit is not None and (unit.enabled or unit.active in (*RUNNING, "failed"))


def _service(head: NodeFacts | None, *, wanted: bool) -> Service:
    if head is None:
        return Service(UNKNOWN, reason="the head does not answer")
    if not wanted:
        return Service(STOPPED)
    state = head.state
    said, old = text(state.get("phase")), age(number(state.get("at")), head.moment)
    if not said:
        return Service(UNKNOWN, reason="the supervisor has said nothing since the head started")
    failures = [mapping(row) for row in rows(state.get("failures"))[-MOST:]]
    fresh = is_fresh(old)
    return Service(
        phase=said if fresh else UNKNOWN,
        said=said,
        age=old,
        since=number(state.get("since")),
        reason=text(state.get("reason")) if fresh else f"the supervisor's last word, {said!r}, is {_old(old)}",
        attempt=count(state.get("attempt")),
        starts_at=number(state.get("not_before")) or None,
        failures=tuple(Failure(number(row.get("at")), text(row.get("reason"))) for row in failures),
    )


def is_fresh(old: float | None) -> bool:
    """Whether something of this age is renewed as it should be; from the future it is where the clock was set."""
    return old is not None and abs(old) <= STALE


def _old(old: float | None) -> str:
    if old is None:
        return "of an unknown time"
    return f"{span(old)} old" if old >= 0 else f"from {span(-old)} ahead: the head's clock was set"


def _requests(head: NodeFacts) -> Requests | None:
    live = head.live
    if not live:
        return None
    return Requests(
        age=age(number(live.get("at")), head.moment),
        ready=live.get("ready") is True,
        running=count(live.get("running")),
        waiting=count(live.get("waiting")),
        tokens_per_second=number(live.get("tokens_per_second")),
        kv_cache=number(live.get("kv_cache")),
        last_token=number(live.get("last_token")),
        draining=live.get("draining") is True,
        error=text(live.get("error")),
    )


def _serves(head: NodeFacts | None, service: Service, requests: Requests | None) -> bool:
    """Whether the supervisor says so, runs, and nothing that is seen speaks against it."""
    if head is None or service.phase != "serving" or not runs(head, SUPERVISOR):
        return False
    denied = requests is not None and is_fresh(requests.age) and not requests.ready
    return VLLM in head.units and head.units[VLLM].active == "active" and not denied


def _doubts(
    cluster: Cluster, facts: Facts, service: Service, requests: Requests | None, *, wanted: bool
) -> Iterator[str]:
    """Say where what is said and what is seen do not agree."""
    for name, seen in facts.items():
        supervised = runs(seen, SUPERVISOR)
        if wanted and not supervised:
            yield f"{name}: the supervisor does not run: nothing is started or ended there"
        if not wanted and seen.processes:
            yield f"{name}: {len(seen.processes)} processes of ours run, and nobody wants them to"
    head = facts.get(cluster.head.name)
    if head is not None and service.phase == "serving":
        yield from _doubts_of_serving(head, requests)
    if head is not None and service.phase not in (UNKNOWN, STOPPED):
        made = text(mapping(record_or_none(head.files.get(SERVICE, ""))).get("generation"))
        if made and made != text(head.state.get("generation")):
            yield "the supervisor has not taken up the service as it was last written: it goes by an earlier one"


def _doubts_of_serving(head: NodeFacts, requests: Requests | None) -> Iterator[str]:
    unit = head.units.get(VLLM)
    if unit is None or unit.active != "active":
        yield f"the supervisor says serving, and {VLLM} is {shown(unit.active) if unit else 'not there'}"
    if requests is None:
        yield "the model server says nothing of its requests"
    elif not is_fresh(requests.age):
        yield f"the model server's numbers are {_old(requests.age)}"
    elif not requests.ready:
        yield f"the supervisor says serving, and the model server is not ready{requests.error and ': '}{requests.error}"


def _api(head: NodeFacts | None) -> str:
    """Return the API's address as the service was last written."""
    made = record_or_none(head.files.get(SERVICE, "")) if head else {}
    return text(mapping(made.get("api")).get("url"))


def _node(cluster: Cluster, node: Node, facts: Facts, silent: Mapping[str, SparkstackError]) -> NodeStatus:
    role = "head" if node == cluster.head else "worker"
    if node.name not in facts:
        error = silent[node.name]
        return NodeStatus(node.name, role, error=text(error.cause), exit_code=error.exit_code)
    seen = facts[node.name]
    head = facts.get(cluster.head.name)
    heard = _part(head, node.name)
    notes = [text(note) for part in (heard, _part(seen, node.name)) for note in rows(part.get("notes"))[:MOST]]
    return NodeStatus(
        name=node.name,
        role=role,
        release=shown(seen.current) if seen.current else None,
        units={shown(name): shown(unit.active) for name, unit in sorted(seen.units.items(), key=_rank)},
        ray=_ray(seen, node == cluster.head, used=any(_ray_units(one) for one in facts.values())),
        processes=kinds(seen.processes),
        memory_available=seen.memory_available,
        memory_total=seen.memory_total,
        report=_report(head, heard),
        notes=tuple(dict.fromkeys(notes)),
    )


def _rank(item: tuple[str, Any]) -> tuple[bool, bool, str]:
    """Order units: the supervisor first, then those of the engine, then what else there is."""
    name = item[0]
    return name != SUPERVISOR, not name.startswith((RAY, VLLM, RANK)), name


def _part(seen: NodeFacts | None, name: str) -> Mapping[str, Any]:
    """Return what a node's supervisor says of a node."""
    return mapping(mapping(seen.state.get("nodes")).get(name)) if seen else {}


def _report(head: NodeFacts | None, heard: Mapping[str, Any]) -> float | None:
    """Return how old the node's last report to the head is by now: its age in the file and that of the file."""
    seen, old = number(heard.get("seen")), age(number(head.state.get("at")), head.moment) if head else None
    return None if seen is None or old is None else max(0.0, seen + old)


def _ray_units(seen: NodeFacts) -> list[str]:
    return [name for name in seen.units if name.startswith(RAY)]


def _ray(seen: NodeFacts, is_head: bool, *, used: bool) -> str:  # noqa: FBT001
    """Return how Ray is on a node: its unit and its own processes. Ray itself is not asked: that takes seconds."""
    if not used:
        return ""
    if not any(seen.units[name].active == "active" for name in _ray_units(seen)):
        return "down"
    have = kinds(seen.processes)
    missing = [kind for kind in ("raylet", *(["GCS"] if is_head else [])) if kind not in have]
    return f"no {' and no '.join(missing)}" if missing else "up"


def kinds(processes: tuple[Process, ...]) -> dict[str, int]:
    """Count processes of ours by kind. Pure."""
    found = Counter(_kind(process.command) for process in processes)
    return {kind: found[kind] for kind in (*(kind for kind, _ in KINDS), "other") if found[kind]}


def _kind(command: str) -> str:
    return next((kind for kind, pattern in KINDS if re.search(pattern, command)), "other")
