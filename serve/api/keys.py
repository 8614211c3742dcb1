"""The service's credentials: who has which, how a node is given what it lacks, and how the API's key is replaced. Pure.

Each is 256 random bits, one line of hexadecimal digits in a file that root alone reads. Beside them lie their
fingerprints for all to read: the guard knows a key by them, and a plan sees by them what is there.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from core.config import Cluster, Node
from core.errors import NotServing
from core.facts import Facts
from core.plan import Plan, Run, Step, Write, make_plan

API_KEY, MONITOR_KEY, LINK_KEY, RAY_TOKEN = "api-key", "monitor-key", "link-key", "ray-token"
OF_HEAD, OF_ALL = (API_KEY, MONITOR_KEY), (LINK_KEY, RAY_TOKEN)
"""What the head alone has, and what is the same on every node."""
FOLDER = PurePosixPath("/etc/sparkstack/credentials")
FINGERPRINTS = PurePosixPath("/etc/sparkstack/credentials.json")


@dataclass(frozen=True)
class Secrets:
    """Credentials that a plan may write; nothing shows them."""

    api_key: str = field(repr=False)
    monitor_key: str = field(repr=False)
    link_key: str = field(repr=False)
    ray_token: str = field(repr=False)

    @classmethod
    def fresh(cls) -> Secrets:
        """Return credentials that nobody has seen."""
        return cls(*(secrets.token_hex(32) for _ in range(4)))

    def text(self, name: str) -> str:
        """Return the credential of this name."""
        return {
            API_KEY: self.api_key,
            MONITOR_KEY: self.monitor_key,
            LINK_KEY: self.link_key,
            RAY_TOKEN: self.ray_token,
        }[name]


def path_of(name: str) -> PurePosixPath:
    """Return where a credential lies on a node."""
    return FOLDER / name


def fingerprint(key: str) -> str:
    """Return the SHA-256 by which a credential is known."""
    return hashlib.sha256(key.encode()).hexdigest()


def fingerprints(text: str) -> dict[str, str]:
    """Parse credentials.json: name to fingerprint. What is none is left out, so that a fresh one takes its place."""
    try:
        data = json.loads(text or "{}")
    except ValueError:
        return {}
    found = data.items() if isinstance(data, dict) else ()
    return {name: value for name, value in found if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)}


def lacking(cluster: Cluster, facts: Facts) -> dict[str, tuple[str, ...]]:
    """Return what each node has to be given, by its name: what it lacks, and of all nodes what is not the same on all.

    Nodes that lack nothing are left out.
    """
    known = {node.name: _known(facts, node) for node in cluster.nodes}
    uneven = [name for name in OF_ALL if len({found.get(name) for found in known.values()}) > 1]
    wanted = {
        node.name: tuple(n for n in names_of(cluster, node) if n in uneven or n not in known[node.name])
        for node in cluster.nodes
    }
    return {node: names for node, names in wanted.items() if names}


def names_of(cluster: Cluster, node: Node) -> tuple[str, ...]:
    """Return the names of the credentials that a node has."""
    return (*OF_HEAD, *OF_ALL) if node == cluster.head else OF_ALL


def credential_steps(cluster: Cluster, facts: Facts, fresh: Secrets) -> Iterator[Step]:
    """Return what gives every node the credentials that it lacks; the API key that the head has stays."""
    for node in cluster.nodes:
        names = lacking(cluster, facts).get(node.name, ())
        stale = _known(facts, node).keys() - set(names_of(cluster, node))
        if stale:
            yield _remove(node, stale)
        if names or stale:
            reason = "the node lacks it, or the nodes' differ"
            yield from _given(cluster, node, facts, {name: fresh.text(name) for name in names}, reason)


def rotate_steps(cluster: Cluster, facts: Facts, fresh: Secrets) -> Iterator[Step]:
    """Return what replaces the API key on the head; nothing when it has this one."""
    if _known(facts, cluster.head).get(API_KEY) != fingerprint(fresh.api_key):
        reason = "the old one is to be refused"
        yield from _given(cluster, cluster.head, facts, {API_KEY: fresh.api_key}, reason)


def plan_rotate(cluster: Cluster, facts: Facts, fresh: Secrets) -> Plan:
    """Return the plan that replaces the API key; nothing restarts. Raises NotServing when the head has none yet."""
    if API_KEY not in _known(facts, cluster.head):
        raise no_key(cluster)
    title = f"replace the API key of {cluster.name}"
    return make_plan(title, [("replace the key", rotate_steps(cluster, facts, fresh))])


def no_key(cluster: Cluster) -> NotServing:
    """Return the error for a head that has no API key yet."""
    return NotServing(
        "there is no API key yet: serving makes it",
        node=cluster.head.name,
        next_move=f"invoke serve --cluster {cluster.flag}",
    )


def _known(facts: Facts, node: Node) -> dict[str, str]:
    return fingerprints(facts[node.name].files.get(str(FINGERPRINTS), ""))


def _given(cluster: Cluster, node: Node, facts: Facts, keys: Mapping[str, str], reason: str) -> Iterator[Step]:
    """Write credentials, then their fingerprints: cut in between, the next plan still sees what lacks."""
    if keys:
        yield _root(
            node, "make the folder of credentials", "root alone reads it", ("install", "-d", "-m", "700", FOLDER)
        )
    for name, key in keys.items():
        yield Write(
            node=node.name,
            title=f"write the {name}",
            reason=reason,
            path=path_of(name),
            content=f"{key}\n",
            mode=0o600,
            secret=True,
            privileged=True,
        )
    kept = {name: value for name, value in _known(facts, node).items() if name in names_of(cluster, node)}
    known = {**kept, **{name: fingerprint(key) for name, key in keys.items()}}
    yield Write(
        node=node.name,
        title=f"write {FINGERPRINTS.name}",
        reason="what is there is known by its SHA-256",
        path=FINGERPRINTS,
        content=json.dumps(known, indent=1, sort_keys=True) + "\n",
        privileged=True,
    )


def _remove(node: Node, names: Iterable[str]) -> Run:
    paths = sorted(path_of(name) for name in names)
    return _root(
        node, "remove credentials of another role", "this node has no use for them", ("rm", "-f", "--", *paths)
    )


def _root(node: Node, title: str, reason: str, argv: tuple[str | PurePosixPath, ...]) -> Run:
    return Run(node=node.name, title=title, reason=reason, argv=tuple(map(str, argv)), privileged=True)
