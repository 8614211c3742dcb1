"""The plan that gives the fabric its addresses and MTU, or takes them away again; every change is guarded. Pure.

The guard (deploy/network/guard.py) is armed on all nodes before anything changes on one. A change is confirmed over a
connection made after it; until then each node takes it back by itself: at the end of its time, at its next boot, or at
once when another node's did not work and it is told so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from core.config import Cluster, Node
from core.errors import InUse, NetworkReverted, UnfitNode, UsageError
from core.facts import Facts, NodeFacts
from core.plan import Plan, Run, Step, Write, make_plan
from core.process import Completed
from core.units import in_service
from core.wiring import GUARD, Wiring
from deploy.network.choice import End, choose, wiring_of
from deploy.network.files import WRITERS

JUMBO = 9000
"""MTU of the fabric, in bytes; drivers begin with 1500."""
LEAST_MTU, MOST_MTU = 1280, 9978
"""What IPv6 asks for, and what ConnectX's driver takes."""
DEADLINE = 120
"""Seconds after which a node takes a change back that nobody confirmed."""
LEAST_DEADLINE, MOST_DEADLINE = 10, 3600
ARM, CHANGE, CHECK, CONFIRM = "arm the guard", "change the network", "check the fabric", "confirm"
APPLY_UNIT = "fabric-guard-apply"
SCRIPT = GUARD / "guard.py"

_BACK = '[ ! -e "$0" ] || exec python3 -I "$0" back "$1"'


@dataclass(frozen=True)
class Wanted:
    """What is asked for: MTU in bytes, seconds until a node helps itself, interfaces named by node."""

    mtu: int = JUMBO
    deadline: int = DEADLINE
    interfaces: Mapping[str, tuple[str, ...]] | None = None

    def check(self) -> None:
        """Raise UsageError for numbers that cannot be."""
        if not LEAST_MTU <= self.mtu <= MOST_MTU:
            raise UsageError(f"--mtu {self.mtu} cannot be", next_move=f"say one of {LEAST_MTU} to {MOST_MTU}")
        if not LEAST_DEADLINE <= self.deadline <= MOST_DEADLINE:
            move = f"say one of {LEAST_DEADLINE} to {MOST_DEADLINE} seconds"
            raise UsageError(f"--deadline {self.deadline} cannot be", next_move=move)


@dataclass(frozen=True)
class Change:
    """A change of one node's network: ``data`` is what the guard reads, ``reasons`` why, in words."""

    node: Node
    data: Mapping[str, Any]
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()


def plan_network(cluster: Cluster, facts: Facts, wanted: Wanted) -> Plan:
    """Return what gives every node its fabric address and MTU; empty where all is so. Raises UnfitNode, InUse."""
    wanted.check()
    if len(cluster.nodes) == 1:
        raise UsageError(f"{cluster.name} has one node, and so no fabric", next_move="serve with it as it is")
    _refuse_waiting(cluster, facts)
    names = wanted.interfaces or {}
    ends = [choose(cluster, node, facts[node.name], names.get(node.name, ())) for node in cluster.nodes]
    changes = [change for end in ends for change in _change(cluster, end, wanted)]
    return _plan(cluster, facts, f"give the fabric of {cluster.name} its addresses and MTU {wanted.mtu}", changes)


def plan_revert(cluster: Cluster, facts: Facts, wanted: Wanted) -> Plan:
    """Return what restores the network as it was before us; empty where nothing of ours is left."""
    wanted.check()
    _refuse_waiting(cluster, facts)
    changes = [change for node in cluster.nodes for change in _reversal(node, facts[node.name], wanted)]
    return _plan(cluster, facts, f"restore the fabric of {cluster.name} as it was", changes)


def _refuse_waiting(cluster: Cluster, facts: Facts) -> None:
    for node in cluster.nodes:
        pending = wiring_of(node, facts[node.name]).pending
        if pending is not None:
            raise InUse(
                f"a change of its network waits to be confirmed, and is taken back at {pending.get('until', '?')}",
                node=node.name,
                next_move=f"wait until then, then say it again; or on the node: sudo python3 {SCRIPT} revert",
            )


def _change(cluster: Cluster, end: End, wanted: Wanted) -> Iterator[Change]:
    """Give the change of a node, if it needs one."""
    address = f"{end.node.fabric}/{cluster.fabric.subnet.prefixlen}"
    links = {end.wire.name: {"mtu": wanted.mtu, "addresses": [address], "up": True}}
    links |= {half.name: {"mtu": wanted.mtu, "addresses": [], "up": True} for half in end.halves}
    how = manager(end.node, end.wiring)
    files = WRITERS[how](end.wire.name, tuple(half.name for half in end.halves), address, wanted.mtu)
    reasons = tuple(_reasons(end, address, wanted, files))
    if not reasons:
        return
    notes = [f"{end.node.name}: {one.name} has an address of its own and is left as it is" for one in end.left]
    others = {other.name: str(other.fabric) for other in cluster.nodes if other != end.node}
    yield Change(
        end.node,
        _data(
            {"how": how, "files": _with_old(end.wiring, files), "links": links},
            {"source": str(end.node.fabric), "others": others, "mtu": wanted.mtu, "by_hand": False, "final": False},
            wanted,
            _ours(end.wiring),
        ),
        (f"{end.wire.name}: {end.why}", *reasons),
        tuple(notes),
    )


def manager(node: Node, wiring: Wiring) -> str:
    """Return what configures the node's network: netplan, else networkd. Raises UnfitNode for anything else."""
    if wiring.netplan:
        return "netplan"
    if "systemd-networkd" in wiring.managers:
        return "networkd"
    what = "NetworkManager without netplan" if wiring.managers else "neither netplan nor systemd-networkd"
    raise UnfitNode(
        f"{what} configures its network",
        node=node.name,
        next_move="install netplan (sudo apt-get install netplan.io), or give the address there yourself: "
        f"nmcli con add type ethernet ifname NAME ip4 {node.fabric}/PREFIX 802-3-ethernet.mtu {JUMBO}",
    )


def _reasons(end: End, address: str, wanted: Wanted, files: Mapping[str, Any]) -> Iterator[str]:
    """Say what is not so yet. What somebody else configured well, with a larger MTU too, needs nothing of ours."""
    ours = _ours(end.wiring)
    if address not in map(str, end.wire.given):
        has = ", ".join(str(one) for one in end.wire.given)
        yield f"it has {has}, not {address}" if has else f"it has no address, not {address}"
    for wire in (end.wire, *end.halves):
        if wire.mtu < wanted.mtu or (ours and wire.mtu != wanted.mtu):
            yield f"the MTU of {wire.name} is {wire.mtu}"
    if ours:
        yield from _changed_files(end.wiring, ours, files)


def _changed_files(wiring: Wiring, ours: Mapping[str, Any], files: Mapping[str, Any]) -> Iterator[str]:
    """Say which files of ours are not as they have to be, or not as we left them."""
    kept = {path: entry for path, entry in ours["change"]["files"].items() if entry is not None}
    if kept != files:
        yield "our file is for something else"
        return
    for path in files:
        if list(wiring.files.get(path, ())) != ours["written"].get(path):
            yield f"{path} is gone, or was changed"


def _ours(wiring: Wiring) -> Mapping[str, Any]:
    """Return the record of what we configured; nothing where it was taken away, or cannot be read."""
    record = wiring.confirmed or {}
    return record if record and not record["change"]["final"] else {}


def _with_old(wiring: Wiring, files: Mapping[str, Any]) -> dict[str, Any]:
    """Return the files, and as nothing those of an earlier change that are not among them."""
    ours = _ours(wiring)
    return {**dict.fromkeys(ours["change"]["files"] if ours else ()), **files}


def _data(
    change: Mapping[str, Any], checks: Mapping[str, Any], wanted: Wanted, ours: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the guard reads; its id is never that of the change before it, which may be the same again."""
    before = ours["change"]["id"] if ours else ""
    digest = hashlib.sha256(json.dumps([change, checks, before], sort_keys=True).encode()).hexdigest()
    return {"id": digest[:12], **change, **checks, "deadline": wanted.deadline}


def _reversal(node: Node, seen: NodeFacts, wanted: Wanted) -> Iterator[Change]:
    wiring = wiring_of(node, seen)
    ours = _ours(wiring)
    if ours:
        links = {name: state for name, state in ours["original"]["links"].items() if name in wiring.wires}
        checks = {"source": "", "others": {}, "mtu": 0, "by_hand": True, "final": True}
        yield Change(
            node,
            _data({**ours["original"], "links": links}, checks, wanted, ours),
            ("it is as invoke network made it",),
        )


def _plan(cluster: Cluster, facts: Facts, title: str, changes: Iterable[Change]) -> Plan:
    made = list(changes)
    for change in made:
        if units := in_service(facts[change.node.name]):
            raise InUse(
                f"it serves ({', '.join(units)}), and a change of the fabric would break that",
                node=change.node.name,
                next_move=f"invoke stop --cluster {cluster.flag}, then say it again",
            )
    return make_plan(
        title,
        (
            (ARM, (step for change in made for step in _arm(change))),
            (CHANGE, (_apply(change) for change in made)),
            (CHECK, (_check(change) for change in made)),
            (CONFIRM, (_confirm(change) for change in made)),
        ),
        (note for change in made for note in _notes(change)),
        undo={ARM: tuple(_back(change) for change in made)},
    )


def _arm(change: Change) -> Iterator[Step]:
    node, seconds = change.node.name, change.data["deadline"]
    yield Run(
        node=node,
        title=f"make {GUARD}",
        reason="the guard lies there",
        argv=("install", "-d", "-m", "755", str(GUARD)),
        privileged=True,
    )
    yield Write(
        node=node,
        title="write the guard",
        reason="it takes the change back when it is not confirmed",
        path=SCRIPT,
        content=Path(__file__).with_name("guard.py").read_text(encoding="utf-8"),
        mode=0o755,
        privileged=True,
    )
    yield Write(
        node=node,
        title="write what is to be",
        reason="; ".join(change.reasons),
        path=GUARD / "change.json",
        content=json.dumps(change.data) + "\n",
        privileged=True,
    )
    yield _guard(
        change,
        "arm",
        f"keep what is there, and take the change back in {seconds} s or at the next boot",
        "a node that is not reachable afterwards has to help itself",
    )


def _apply(change: Change) -> Run:
    step = _guard(change, "apply", _title(change), "; ".join(change.reasons))
    # as a unit: it goes on to its end when it takes our connection with it
    return replace(step, unit=APPLY_UNIT)


def _title(change: Change) -> str:
    """Name the files that are written and those that go."""
    written = [path for path, entry in change.data["files"].items() if entry is not None]
    gone = [path for path, entry in change.data["files"].items() if entry is None]
    said = [f"write {', '.join(written)}"] if written else []
    said += [f"remove {', '.join(gone)}"] if gone else []
    return f"{' and '.join(said) or 'change nothing'}, and apply ({change.data['how']})"


def _check(change: Change) -> Run:
    others = ", ".join(change.data["others"])
    packets = f"packets of {change.data['mtu']} bytes come back from {others}"
    return _guard(
        change,
        "check",
        f"links are as wanted, {packets}" if others else "links are as they were",
        "over a new connection: an old one may outlive the way to it",
        fresh=True,
    )


def _confirm(change: Change) -> Run:
    reason = f"without it the change is taken back {change.data['deadline']} s after the guard was armed"
    return _guard(change, "confirm", "keep the change", reason, fresh=True)


def _guard(change: Change, word: str, title: str, reason: str, *, fresh: bool = False) -> Run:
    return Run(
        node=change.node.name,
        title=title,
        reason=reason,
        argv=("python3", "-I", str(SCRIPT), word),
        privileged=True,
        fresh=fresh,
        failure=partial(_reverted, change),
    )


def _reverted(change: Change, done: Completed) -> NetworkReverted:
    return NetworkReverted(
        done.tail(1) or f"the guard ended with {done.code}",
        node=change.node.name,
        next_move="what was changed is taken back; see cable, switch and the other end (invoke doctor), then again",
        evidence=done.tail(5) if done.tail(5) != done.tail(1) else "",
    )


def _back(change: Change) -> Run:
    return Run(
        node=change.node.name,
        title="restore the network as it was",
        reason="all nodes or none",
        argv=("sh", "-c", _BACK, str(SCRIPT), change.data["id"]),
        privileged=True,
        timeout=90,
    )


def _notes(change: Change) -> Iterator[str]:
    yield from change.notes
    for path, entry in change.data["files"].items():
        if entry is not None:
            lines = entry["content"].rstrip("\n").replace("\n", "\n    ")
            yield f"{change.node.name}: {path} (mode {entry['mode']:o}) becomes\n    {lines}"
