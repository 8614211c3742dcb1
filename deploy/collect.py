"""What no release needs any more goes, as one plan. The release in use, the one before it, and what serves stay."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from core.config import Cluster, Node
from core.facts import Facts, NodeFacts
from core.plan import Plan, Run, Step, make_plan, megabytes
from core.question import INSTALL_UNIT
from core.units import runs
from deploy.authenticity import signed_folder
from deploy.environment import release_folder
from deploy.inventory import in_order, served
from deploy.switch import previous

LEAST = 2
"""The release in use and the one before it."""

# What was signed goes before the release, without which nobody would look for it. Of that the record goes first and for
# good: what is left of an interrupted removal is an unfinished release, not a damaged one.
_REMOVE = """
rm -rf --one-file-system "$2" || exit
if [ -e "$1" ]; then rm -f "$1/complete.json" && sync "$1" && rm -rf --one-file-system "$1"; fi
"""

# uv keeps each unpacked wheel once and links its files into releases: one whose files have no second name is not used.
# What points to it goes first, or else uv 0.13 takes the wheel for unpacked and fails.
_PRUNE = """
import os, shutil, sys
from pathlib import Path
cache = Path(sys.argv[1])
def used(archive):
    return any(os.lstat(os.path.join(top, name)).st_nlink > 1 for top, _, names in os.walk(archive) for name in names)
unused = {os.fsencode(archive.name): archive for archive in cache.glob("archive-v*/*") if not used(archive)}
for path in [path for path in cache.glob("wheels-v*/**/*") if path.is_symlink() or path.is_file()]:
    text = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
    if any(name in text for name in unused):
        path.unlink()
for archive in unused.values():
    shutil.rmtree(archive)
"""


# A file goes with every name that it has; only then its space is free.
_FORGET = """
import json, os, sys
from pathlib import Path
root = Path(sys.argv[1])
files, names = map(json.loads, sys.argv[2:])
gone = [path for path in (root / "store" / one for one in files) if path.exists()]
inodes = {os.stat(path).st_ino for path in gone}
others = [path for path in (root / "wheels").glob("*.whl") if path.name in names or os.stat(path).st_ino in inodes]
for path in [*others, *gone]:
    path.unlink()
"""
_IS_SHA256 = re.compile(r"[0-9a-f]{64}").fullmatch


def plan_collect(cluster: Cluster, facts: Facts, keep: int = LEAST) -> Plan:
    """Return what removes all but the ``keep`` releases used last; never one that a node uses, had before or serves."""
    stay = staying(cluster, facts, keep)
    going = {node: _going(facts[node.name], stay) for node in cluster.nodes}
    return make_plan(
        f"collect what no release needs on {cluster.name}",
        (
            (
                "remove releases",
                (step for node in cluster.nodes for step in _releases(cluster, node, facts[node.name], going[node])),
            ),
            (
                "remove Pythons",
                (step for node in cluster.nodes for step in _pythons(node, facts[node.name], stay)),
            ),
            (
                "remove wheels",
                (step for node in cluster.nodes for step in _wheels(cluster, node, facts[node.name], stay)),
            ),
            ("free the cache", (_prune(cluster, node) for node in cluster.nodes if going[node])),
        ),
        (note for node in cluster.nodes for note in _notes(node, facts[node.name])),
    )


def staying(cluster: Cluster, facts: Facts, keep: int = LEAST) -> frozenset[str]:
    """Return the complete releases that no node may lose: what one of them needs stays on all."""
    return frozenset(release for node in cluster.nodes for release in _needed(cluster, facts[node.name], keep))


def _needed(cluster: Cluster, seen: NodeFacts, keep: int) -> Iterator[str]:
    yield from (one for one in (seen.current, previous(seen)) if one)
    yield from served(cluster, seen)
    # without a history nobody knows which one was in use before
    yield from in_order(seen)[: max(keep, LEAST)] if seen.history else seen.releases


def _going(seen: NodeFacts, stay: frozenset[str]) -> tuple[str, ...]:
    unfinished = () if runs(seen, INSTALL_UNIT) else seen.partial - {seen.current} - stay
    return tuple(sorted({*(seen.releases.keys() - stay), *unfinished}))


def _releases(cluster: Cluster, node: Node, seen: NodeFacts, going: tuple[str, ...]) -> Iterator[Step]:
    for release in going:
        place = release_folder(cluster, release)
        size = seen.used.get(str(place))
        yield Run(
            node=node.name,
            title=f"remove {release}" + (f", {megabytes(size)}" if size else ""),
            reason="it was never finished" if release in seen.partial else "no node uses it, nor did before",
            argv=("sh", "-c", _REMOVE, "sh", str(place), str(signed_folder(cluster, release))),
            timeout=600,
        )


def _wheels(cluster: Cluster, node: Node, seen: NodeFacts, stay: frozenset[str]) -> Iterator[Step]:
    names, files = unneeded_wheels(seen, stay), unneeded_files(seen, stay)
    if names or files:
        # most have both; what has one of the two only is counted by the larger sum
        size = max(sum(seen.store[one] for one in files), sum(seen.wheels[name] for name in names))
        yield Run(
            node=node.name,
            title=f"remove {max(len(files), len(names))} wheels, {megabytes(size)}",
            reason="no release that stays names them",
            argv=("python3", "-c", _FORGET, str(cluster.root), json.dumps(files), json.dumps(names)),
        )


def unneeded_files(seen: NodeFacts, stay: frozenset[str]) -> list[str]:
    """Return the files of a node's store whose hash is in no lock of its releases; none where a lock is not known."""
    here = _locked(seen, stay)
    known = {sha256 for release in here for sha256 in re.findall(r"sha256:([0-9a-f]{64})", seen.locks[release])}
    return sorted(set(filter(_IS_SHA256, seen.store)) - known) if here else []


def _pythons(node: Node, seen: NodeFacts, stay: frozenset[str]) -> Iterator[Step]:
    """Remove what was brought and no release was made of.

    Nothing while an installation runs, or while a release that stays has lost its record: it says what it was made of.
    """
    made_of = [str(seen.releases[release].get("python", "")) for release in seen.releases.keys() & stay]
    gone = [path for path in seen.pythons.brought.values() if path not in made_of]
    if gone and not runs(seen, INSTALL_UNIT) and not seen.partial & stay:
        yield Run(
            node=node.name,
            title=f"remove {len(gone)} Pythons",
            reason="no release that stays was made of them",
            argv=("rm", "-rf", "--one-file-system", "--", *(str(PurePosixPath(path).parent.parent) for path in gone)),
        )


def unneeded_wheels(seen: NodeFacts, stay: frozenset[str]) -> list[str]:
    """Return the wheels of a node that no lock of its releases names; none where a lock is not known."""
    here = _locked(seen, stay)
    named = {pair for release in here for pair in re.findall(r"(?m)^([\w.-]+)==([^\s\\]+)", seen.locks[release])}
    return sorted(name for name in seen.wheels if _named(name) not in (None, *named)) if here else []


def _locked(seen: NodeFacts, stay: frozenset[str]) -> set[str]:
    """Return the releases whose wheels are needed; none where the lock of one is not known."""
    here = (seen.releases.keys() & stay) | (seen.partial if runs(seen, INSTALL_UNIT) else set())
    return set(here) if here <= seen.locks.keys() else set()


def _named(filename: str) -> tuple[str, str] | None:
    try:
        name, version, _, _ = parse_wheel_filename(filename)
    except InvalidWheelFilename:
        return None  # not ours to judge
    return name, str(version)


def _prune(cluster: Cluster, node: Node) -> Run:
    return Run(
        node=node.name,
        title="free what only the removed releases had of the cache",
        reason="files that releases share have more than one name",
        argv=("python3", "-c", _PRUNE, str(cluster.root / "cache")),
        timeout=600,
    )


def _notes(node: Node, seen: NodeFacts) -> Iterator[str]:
    if seen.releases and not seen.history:
        yield f"{node.name}: no switch was noted there yet, so every complete release stays"
    if runs(seen, INSTALL_UNIT):
        yield f"{node.name}: an installation runs, so what is unfinished stays"
