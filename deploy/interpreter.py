"""The Python of a release: one that the node has, or the stack's own, brought as an archive and checked there."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from core.backend import Interpreter, plain
from core.config import ROOT, WORK, Cluster, Node, Stack
from core.errors import UnfitNode
from core.facts import Facts, NodeFacts
from core.host import CONTROLLER
from core.plan import Call, Push, Report, Run, Step
from core.process import Completed
from wheels.manifest import Manifest
from wheels.target import archive_for, base_python

SCRIPT = ROOT / "deploy" / "unpack_python.py"

# A release's venv leads to it, so it has to start and to be whole before it gets its name.
_CHECK = "import bz2, ctypes, lzma, sqlite3, ssl, sys, venv, zlib; sys.exit(sys.version.split()[0] != sys.argv[1])"
_TAKE = '"$1.new/bin/python3" -I -c "$2" "$3" && sync --file-system "$1.new" && mv -T "$1.new" "$1" && rm -f "$4"'


def python_folder(cluster: Cluster) -> PurePosixPath:
    """Return the folder of the Pythons that were brought to a node."""
    return PurePosixPath(cluster.root / "python")


def wanted(cluster: Cluster, stack: Stack, seen: NodeFacts, manifest: Manifest) -> Interpreter | None:
    """Return the Python that has to be brought for a release, None where the node has one, or nothing can be."""
    if manifest.release in seen.releases or cluster.backend.conda:
        return None
    python = manifest.target.python
    return None if base_python(cluster, seen, python) else archive_for(stack, seen, python)


def interpreter_for(cluster: Cluster, stack: Stack, seen: NodeFacts, manifest: Manifest) -> str:
    """Return the interpreter that a release is made of; with conda, of the environment it is taken from."""
    python = manifest.target.python
    if found := base_python(cluster, seen, python):
        return f"{found}/bin/python" if cluster.backend.conda else found
    brought = archive_for(stack, seen, python)
    return str(python_folder(cluster) / brought.folder / f"bin/python{plain(python)}") if brought else "python3"


def fetch_steps(cluster: Cluster, stack: Stack, facts: Facts, manifest: Manifest) -> Iterator[Step]:
    """Have the archives here that nodes lack, once each."""
    seen = [facts[node.name] for node in cluster.nodes]
    needed = {one for node in seen if (one := _missing(cluster, stack, node, manifest)) is not None}
    for one in sorted(needed, key=lambda each: each.url):
        yield Call(
            node=CONTROLLER,
            title=f"have Python {one.version} for {one.platform}",
            reason="it travels as an archive, checked by hash",
            shown=f"fetch {one.url}, sha256 {one.sha256}, unless it is here",
            action=partial(_fetch, one),
        )


def _fetch(one: Interpreter, report: Report) -> None:
    """The store may have it under another name: an older version took the one in the URL."""
    from core.download import fetched  # noqa: PLC0415 - it takes its time to load, and few deployments fetch one

    fetched(one.url, one.sha256, one.archive, report).replace(stored(one))


def stored(one: Interpreter) -> Path:
    """Return where this host keeps the archive."""
    return WORK / "files" / one.sha256 / one.archive


def _missing(cluster: Cluster, stack: Stack, seen: NodeFacts, manifest: Manifest) -> Interpreter | None:
    one = wanted(cluster, stack, seen, manifest)
    return None if one is None or one.folder in seen.pythons.brought else one


def bring_steps(cluster: Cluster, stack: Stack, node: Node, seen: NodeFacts, manifest: Manifest) -> tuple[Step, ...]:
    """Bring the Python of the release to a node that has none of that version: push, check, unpack, try, take."""
    one = _missing(cluster, stack, seen, manifest)
    if one is None:
        return ()
    place = python_folder(cluster)
    archive, folder = place / one.archive, place / one.folder
    why = "the cluster's file says so" if cluster.backend.python == "brought" else _lacks(seen, one)
    return (
        Run(
            node=node.name,
            title="make the folder of Pythons",
            reason=why,
            argv=("sh", "-c", 'mkdir -p "$1" && rm -rf "$2"', "sh", str(place), f"{folder}.new"),
        ),
        Push(
            node=node.name,
            title=f"push Python {one.version}",
            reason=why,
            sources=(stored(one),),
            destination=place,
            size=0,
        ),
        Run(
            node=node.name,
            title="check its hash, and unpack it",
            reason="an archive is hostile until it was checked",
            argv=("python3", "-I", "-c", SCRIPT.read_text(encoding="utf-8"), str(archive), one.sha256, f"{folder}.new"),
            timeout=300,
            failure=partial(_refused, node.name, one),
        ),
        Run(
            node=node.name,
            title="start it, and take it",
            reason="it has to run on this node before anything is made of it",
            argv=("sh", "-c", _TAKE, "sh", str(folder), _CHECK, one.version, str(archive)),
            timeout=300,
            hint=f"see that {one.url} is of this architecture and holds version {one.version}",
        ),
    )


def _lacks(seen: NodeFacts, one: Interpreter) -> str:
    have = sorted({seen.python, *seen.pythons.found})
    return f"the node has Python {', '.join(map(plain, have))}, not {plain(one.minor)}"


def _refused(node: str, one: Interpreter, done: Completed) -> UnfitNode:
    said = done.tail(1).removeprefix("refused: ")
    return UnfitNode(
        f"the archive of Python {one.version} is not unpacked: {said}",
        node=node,
        next_move="run the same command again; if it stays, look where the archive in the stack's file comes from",
    )
