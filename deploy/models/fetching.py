"""A model onto every node, as a plan: fetched on one of them, relayed to the others over the fabric.

The long work runs on the nodes as units (deploy/models/onnode), so it outlives our connection. What is secret (tokens,
proxies with passwords, the relay's own secret) goes there in files for one reader, which removes them at once.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from core.config import ROOT, Cluster, Node, Profile
from core.errors import CommandFailed, LockHeld, ModelRefused, RegistryRefused, SparkstackError, UnfitNode, UsageError
from core.facts import Facts, NodeFacts
from core.plan import Job, Plan, Poll, Push, Run, Step, Write, make_plan
from core.question import model_folder
from core.root import root_steps
from deploy.onnode.common import said

PACKAGE = "deploy.models.onnode"
PACKAGES = (PACKAGE, "deploy.onnode")
"""What is sent to a node: the work on models, and what it stands on."""

HUBS = {
    "huggingface": ("HF_ENDPOINT", "HF_TOKEN"),
    "modelscope": ("MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN", "MODELSCOPE_API_TOKEN"),
}
"""Hub to the variables that it alone is given."""

ADDRESSES = ("http_proxy", "https_proxy")
PROXIES = (*ADDRESSES, "no_proxy")
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]*")
UNIT = "sparkstack-model-"
"""What the names of units begin with that fetch a model or take it from another node."""

SERVER = "sparkstack-relay"
PORT = 29777
"""Of the relay, on the fabric address of the node that has the model."""

TIMEOUT = 7 * 24 * 3600
RUNNING = ("active", "activating")


@dataclass(frozen=True)
class Wanted:
    """One model, where it comes from, and where it belongs on every node."""

    cluster: Cluster
    repository: str
    revision: str
    source: str
    """A hub's name, or a folder on the node."""
    target: PurePosixPath
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    secret: str = field(default="", repr=False)
    """Of one relay, as hexadecimal digits."""
    again: bool = False
    """Look at every file again, also where the model is there."""

    @property
    def hub(self) -> str:
        """The hub's name, "folder" for a folder."""
        return self.source if self.source in HUBS else "folder"

    @property
    def tools(self) -> PurePosixPath:
        """Where the scripts lie on a node."""
        return PurePosixPath(self.cluster.root / "tools")

    @property
    def key(self) -> str:
        """What tells this work from other work on a node."""
        told = "\n".join((str(self.target), self.repository, self.revision, self.source))
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    @property
    def unit(self) -> str:
        """The unit that brings it to a node."""
        return f"{UNIT}{self.key}"

    def is_on(self, seen: NodeFacts) -> bool:
        """Whether the node has it, whole."""
        found = seen.models.get(str(self.target), {})
        if self.again or found.get("partial") or found.get("repository") != self.repository:
            return False
        return self.hub == found.get("hub") and self.revision in (found.get("revision"), found.get("commit"))

    def runs_on(self, seen: NodeFacts, unit: str = "") -> bool:
        """Whether an earlier command's work goes on there."""
        state = seen.units.get(unit or self.unit)
        return state is not None and state.active in RUNNING


def wanted(
    cluster: Cluster, profile: Profile, repository: str, *, revision: str, source: str, environ: Mapping[str, str]
) -> Wanted:
    """Return what a command names; the profile says where its own model belongs, and its revision. Raises UsageError.

    ``environ`` is this host's: what it says of hubs and proxies holds on the node too.
    """
    own = profile.repository == repository
    # the hubs keep repositories of their own: a commit of one is none of the other
    pinned = profile.revision if own and source == "huggingface" else None
    revision = revision or pinned or "main"
    if not REPOSITORY.fullmatch(repository) or ".." in repository:
        raise UsageError(f"{repository!r} names no repository", next_move="write it as the hub does: owner/name")
    if not REVISION.fullmatch(revision) or ".." in revision:
        raise UsageError(f"{revision!r} is no revision", next_move="name a commit, a branch or a tag")
    if source not in HUBS and not source.startswith("/"):
        raise UsageError(
            f"--from {source!r} is no hub and no folder",
            next_move=f"say {', '.join(HUBS)}, or a folder on the node, beginning with /",
        )
    folder = model_folder(cluster, profile) if own else PurePosixPath(cluster.root / "models" / repository)
    return Wanted(cluster, repository, revision, source, folder, _environment(source, environ))


def _environment(source: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the fetch is given. A proxy on our own loopback is none on a node."""
    names = (*HUBS.get(source, ()), *PROXIES, *map(str.upper, PROXIES))
    found = {name: environ[name] for name in names if environ.get(name)}
    return {name: value for name, value in found.items() if not (name.lower() in ADDRESSES and _is_own(value))}


def _is_own(address: str) -> bool:
    try:
        host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def plan_fetch(wanted: Wanted, on: Node, facts: Facts) -> Plan:
    """Return what puts the model onto every node; empty where all have it. ``on`` fetches it where no node has it."""
    cluster = wanted.cluster
    lacking = [node for node in cluster.nodes if not wanted.is_on(facts[node.name])]
    source = next((node for node in cluster.nodes if node not in lacking), on)
    fetched = [source] if source in lacking else []
    others = [node for node in lacking if node != source]
    involved = [*fetched, *([source, *others] if others else [])]
    return make_plan(
        f"the model {wanted.repository} ({wanted.revision}) on {cluster.name}",
        (
            ("prepare", (s for node in dict.fromkeys(involved) for s in _prepare(wanted, facts[node.name]))),
            ("fetch", (step for node in fetched for step in _fetch(wanted, facts[node.name]))),
            *(_relay(wanted, source, others, facts) if others else ()),
        ),
    )


def _prepare(wanted: Wanted, seen: NodeFacts) -> Iterator[Step]:
    if wanted.runs_on(seen):
        return
    places = [place for place, _ in scripts(wanted.cluster)]
    yield from root_steps(wanted.cluster, seen)
    yield Run(
        node=seen.name,
        title="make the folders",
        reason="the model goes there",
        argv=("mkdir", "-p", *map(str, places), str(wanted.target.parent)),
        hint=f"make {wanted.target.parent} on the node, owned by {wanted.cluster.user}",
    )
    for place, sent in scripts(wanted.cluster):
        yield Push(
            node=seen.name,
            title=f"send {len(sent)} scripts that do the work there",
            reason="a node needs nothing but its own python3",
            sources=sent,
            destination=place,
            size=sum(script.stat().st_size for script in sent),
        )


def scripts(cluster: Cluster) -> tuple[tuple[PurePosixPath, tuple[Path, ...]], ...]:
    """Return where the scripts go on a node, and which."""
    folders = [package.replace(".", "/") for package in PACKAGES]
    return tuple(
        (PurePosixPath(cluster.root / "tools" / one), tuple(sorted((ROOT / one).glob("*.py")))) for one in folders
    )


def _fetch(wanted: Wanted, seen: NodeFacts) -> Iterator[Step]:
    """Fetch on one node; an earlier command's fetch that still runs is followed."""
    if not wanted.runs_on(seen):
        told = {
            "hub": wanted.hub,
            "repository": wanted.repository,
            "revision": wanted.revision,
            "target": str(wanted.target),
            "folder": wanted.source if wanted.hub == "folder" else "",
            "environment": dict(wanted.environment),
        }
        names = ", ".join(sorted(wanted.environment))
        yield _request(wanted, seen, "fetch", told, f"with {names}" if names else "it says which model")
    yield _job(wanted, seen, f"fetch {wanted.repository} from {wanted.source}", "fetch", "no node has it")


def _relay(
    wanted: Wanted, source: Node, others: Sequence[Node], facts: Facts
) -> tuple[tuple[str, Iterator[Step]], ...]:
    """Serve on the source for the time that the others need; one that goes on since an earlier command is followed."""
    goes_on = wanted.runs_on(facts[source.name], SERVER) and all(wanted.runs_on(facts[node.name]) for node in others)
    before = iter(()) if goes_on else _offer(wanted, source, others, facts)
    stop = _stop(source.name, SERVER, "the others have the model")
    return (
        ("offer", before),
        ("relay", (step for node in others for step in _take(wanted, source, facts[node.name], follow=goes_on))),
        ("end the offer", iter((stop,))),
    )


def _offer(wanted: Wanted, source: Node, others: Sequence[Node], facts: Facts) -> Iterator[Step]:
    for node in others:
        if wanted.runs_on(facts[node.name]):
            yield _stop(node.name, wanted.unit, "it waits for a node that offers nothing any more")
    if wanted.runs_on(facts[source.name], SERVER):
        yield _stop(source.name, SERVER, "an earlier relay was cut off")
    yield _request(wanted, facts[source.name], "offer", _link(wanted, source), "with the secret of this relay")
    yield Run(
        node=source.name,
        title=f"offer the model at {source.fabric}:{PORT}",
        reason="for the time of the relay, to those who have its secret",
        argv=(
            *("systemd-run", f"--unit={SERVER}", f"--uid={wanted.cluster.user}", "--collect", "--quiet"),
            *("--property=Type=exec", f"--property=RuntimeMaxSec={TIMEOUT}"),
            *(f"--working-directory={wanted.tools}", *_argv(wanted, "offer")),
        ),
        privileged=True,
    )
    yield Poll(
        node=source.name,
        title="wait until it listens",
        reason="the others ask at once",
        argv=("ss", "-Hltn", f"sport = :{PORT}"),
        accept=lambda done: str(source.fabric) in done.out,
        failure=lambda _: UnfitNode(
            f"nothing listens at {source.fabric}:{PORT}",
            node=source.name,
            next_move=f"on the node: journalctl -u {SERVER}",
        ),
        timeout=20,
        interval=0.5,
    )


def _link(wanted: Wanted, source: Node) -> dict[str, object]:
    return {
        "address": str(source.fabric),
        "port": PORT,
        "secret": wanted.secret,
        "folder": str(wanted.target),
    }


def _take(wanted: Wanted, source: Node, seen: NodeFacts, *, follow: bool) -> Iterator[Step]:
    if not follow:
        yield _request(wanted, seen, "take", _link(wanted, source), "with the secret of this relay")
    yield _job(wanted, seen, f"take {wanted.repository} from {source.name}", "take", f"over the fabric {source.fabric}")


def _stop(node: str, unit: str, reason: str) -> Run:
    return Run(
        node=node, title=f"stop {unit}", reason=reason, argv=("systemctl", "stop", unit), privileged=True, timeout=90
    )


def _request_path(wanted: Wanted, what: str) -> PurePosixPath:
    return wanted.tools / f"{what}-{wanted.key}.json"


def _request(wanted: Wanted, seen: NodeFacts, what: str, told: Mapping[str, object], reason: str) -> Write:
    return Write(
        node=seen.name,
        title=f"write what to {what}",
        reason=reason,
        path=_request_path(wanted, what),
        content=json.dumps(told) + "\n",
        mode=0o600,
        secret=True,
    )


def _argv(wanted: Wanted, script: str) -> tuple[str, ...]:
    """Return what runs a script; -m finds it below the unit's own folder."""
    return ("/usr/bin/python3", "-E", "-s", "-m", f"{PACKAGE}.{script}", str(_request_path(wanted, script)))


def _job(wanted: Wanted, seen: NodeFacts, title: str, what: str, reason: str) -> Job:
    return Job(
        node=seen.name,
        title=title,
        reason=reason,
        argv=_argv(wanted, what),
        timeout=TIMEOUT,
        watch=str,
        failure=partial(failure, title, seen.name),
        unit=wanted.unit,
        user=wanted.cluster.user,
        privileged=True,
        # a node's own proxies are in that file on Debian and Ubuntu; what we bring is read after it
        properties=(f"WorkingDirectory={wanted.tools}", "EnvironmentFile=-/etc/environment", "UMask=0022"),
        log=str(wanted.tools / f"{wanted.key}.log"),
        hint=f"on the node: sudo systemctl stop {wanted.unit}",
    )


KINDS: Mapping[str, type[SparkstackError]] = {"damaged": ModelRefused, "disk": UnfitNode, "busy": LockHeld}
"""What a script calls its failure, to our error; any other kind is the hub's or the network's."""


def failure(title: str, node: str, how: str, lines: Sequence[str]) -> SparkstackError:
    """Return the error of work on a node that did not end well: what its last line says, else that line."""
    for line in reversed(lines[-5:]):
        told = said(line)
        if "error" in told:
            kind = KINDS.get(str(told["error"]), RegistryRefused)
            return kind(f"{title}: {told.get('cause')}", node=node, next_move=str(told.get("next")))
    return CommandFailed(
        f"{title}: {how}",
        node=node,
        next_move="the same command goes on from here; if it stays, report the lines above",
        evidence="\n".join(lines[-5:]),
    )
