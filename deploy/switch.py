"""`current` on all nodes or on none: made ready everywhere, renamed at once, checked, noted; or switched back.

Each step before the rename may fail without any effect. What fails after it switches back every node that answers.
`ROOT/history.jsonl` names the releases that stayed in use, so a switch that was taken back is not in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import PurePosixPath

from core.config import Cluster, Node
from core.errors import UnfitNode
from core.facts import Facts, NodeFacts
from core.hand import Hand
from core.parsers import Taken
from core.plan import Run, Step, Write
from core.process import Completed

HISTORY = "history.jsonl"
REMEMBERED = 100
"""Lines that a history keeps."""
SWITCH = "switch"
NOTE = "note what is in use"

_READY = 'cd "$1" && test -s "releases/$2/complete.json" && ln -sfn "releases/$2" .current.new && sync .'
_SWITCH = 'cd "$1" && mv -T .current.new current && sync .'
_BACK = """
cd "$1" && rm -f .current.new || exit
[ "$(readlink current)" = "releases/$2" ] || exit 0
if [ -n "$3" ]; then ln -sfn "releases/$3" .current.new && mv -T .current.new current; else rm current; fi
sync .
"""

# Runs with the release's own Python, found through `current`: it has to be the one in the release's folder, and every
# wheel of the release's lock has to be installed beside it. A release that lacks some is none: its record goes, so that
# the next deployment makes it anew.
_HEALTH = """
import importlib.metadata, os, re, sys
folder = sys.argv[1]
def plain(name):
    return re.sub("[-_.]+", "-", name).lower()
if os.path.realpath(sys.prefix) != os.path.realpath(folder + "/venv"):
    sys.exit("current leads to " + os.path.realpath(sys.prefix))
with open(folder + "/stack.lock") as lock:
    wanted = {plain(name) for name in re.findall(r"(?m)^([A-Za-z0-9._-]+)==", lock.read())}
have = {plain(found.metadata["Name"] or "") for found in importlib.metadata.distributions()}
lacking = sorted(wanted - have)
if not wanted:
    sys.exit("its stack.lock names no wheel")
if lacking:
    os.unlink(folder + "/complete.json")
    sys.exit(f"{len(lacking)} of {len(wanted)} wheels are not installed: " + " ".join(lacking[:10]))
"""
# A Python that does not even start (the system's was replaced: 126, 127, or a signal for what it did itself) cannot
# take the record away itself. One that was ended from outside, as when our connection is lost, says nothing of it.
_CHECK = """
"$1" -I -c "$2" "$3"; code=$?
case $code in 126|127|132|134|135|139) rm -f "$3/complete.json";; esac
exit $code
"""


@dataclass(frozen=True)
class Switch:
    """The stages that take a release into use, and how each of them is undone."""

    stages: tuple[tuple[str, tuple[Step, ...]], ...]
    undo: Mapping[str, tuple[Step, ...]]


def plan_switch(cluster: Cluster, facts: Facts, release: str, hand: Hand) -> Switch:
    """Return what takes a complete release into use on every node; no steps where it is in use and noted."""
    seen = {node: facts[node.name] for node in cluster.nodes}
    moving = [node for node in cluster.nodes if seen[node].current != release]
    unsure = [node for node in cluster.nodes if node in moving or last(seen[node]) != release]
    return Switch(
        stages=(
            ("prepare the switch", tuple(_ready(cluster, node, release) for node in moving)),
            (SWITCH, tuple(_switch(cluster, node, seen[node], release) for node in moving)),
            ("check what is in use", tuple(_health(cluster, node, release) for node in unsure)),
            (NOTE, tuple(_note(cluster, node, seen[node], release, hand) for node in unsure)),
        ),
        undo={
            SWITCH: tuple(_back(cluster, node, seen[node], release) for node in moving),
            NOTE: tuple(_forget(cluster, node, seen[node]) for node in unsure),
        },
    )


def last(seen: NodeFacts) -> str | None:
    """Return the release that was noted last on a node."""
    return seen.history[-1].release if seen.history else None


def taken(seen: NodeFacts) -> Taken | None:
    """Return when and by whom the release in use was taken into use; None where that was not noted."""
    return seen.history[-1] if seen.history and seen.history[-1].release == seen.current else None


def previous(seen: NodeFacts) -> str | None:
    """Return the release that was in use before the one in use now, of those that are still there."""
    return next(before(seen), None)


def before(seen: NodeFacts) -> Iterator[str]:
    """Return the complete releases that were in use before the one in use now, the latest first, each once."""
    noted = dict.fromkeys(one.release for one in reversed(seen.history))
    return (release for release in noted if release != seen.current and release in seen.releases)


def _ready(cluster: Cluster, node: Node, release: str) -> Run:
    return Run(
        node=node.name,
        title=f"make the link to {release} beside current",
        reason="nothing is switched unless every node can",
        argv=("sh", "-c", _READY, "sh", str(cluster.root), release),
    )


def _switch(cluster: Cluster, node: Node, seen: NodeFacts, release: str) -> Run:
    return Run(
        node=node.name,
        title=f"switch current to {release}",
        reason=f"it is {seen.current}" if seen.current else "there is none",
        argv=("sh", "-c", _SWITCH, "sh", str(cluster.root)),
    )


def _back(cluster: Cluster, node: Node, seen: NodeFacts, release: str) -> Run:
    return Run(
        node=node.name,
        title=f"switch back to {seen.current}" if seen.current else "take current away again",
        reason="all nodes or none",
        argv=("sh", "-c", _BACK, "sh", str(cluster.root), release, seen.current or ""),
    )


def _health(cluster: Cluster, node: Node, release: str) -> Run:
    current = cluster.root / "current/venv/bin/python"
    return Run(
        node=node.name,
        title="check the release through current",
        reason="it has to be the one that was meant, and whole",
        argv=("sh", "-c", _CHECK, "sh", str(current), _HEALTH, str(cluster.root / "releases" / release)),
        failure=partial(_not_whole, cluster, node, release),
    )


def _not_whole(cluster: Cluster, node: Node, release: str, done: Completed) -> UnfitNode:
    return UnfitNode(
        f"the release {release} is not whole: {done.tail(1) or f'its Python ended with {done.code}'}",
        node=node.name,
        next_move=f"invoke releases --cluster {cluster.flag} shows what each node has; invoke deploy makes it anew",
        evidence=done.tail(5) if done.tail(2) != done.tail(1) else "",
    )


def _note(cluster: Cluster, node: Node, seen: NodeFacts, release: str, hand: Hand) -> Write:
    unnoted = [Taken(seen.current, "?", "?")] if seen.current not in (None, release, last(seen)) else []
    lines = [*seen.history, *unnoted, Taken(release, hand.at, hand.by)][-REMEMBERED:]
    return Write(
        node=node.name,
        title="note the release, the time and who did it",
        reason=f"the last one noted is {last(seen) or 'none'}",
        path=PurePosixPath(cluster.root / HISTORY),
        content=_text(lines),
    )


def _forget(cluster: Cluster, node: Node, seen: NodeFacts) -> Write:
    """A node that keeps the line of a switch that was taken back would have a rollback, and a collection, go wrong."""
    return Write(
        node=node.name,
        title="take the note back",
        reason="all nodes or none",
        path=PurePosixPath(cluster.root / HISTORY),
        content=_text(seen.history),
    )


def _text(lines: Iterable[Taken]) -> str:
    return "".join(json.dumps(asdict(line)) + "\n" for line in lines)
