"""Wheels to every node: what is missing travels, and is checked by hash where it arrived."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from core.config import Cluster, Node
from core.facts import NodeFacts
from core.plan import Push, Run, Step, Write, megabytes
from wheels.manifest import Manifest, Wheel


def wheel_folder(cluster: Cluster) -> PurePosixPath:
    """Return the folder that holds the wheels of all releases on a node."""
    return PurePosixPath(cluster.root / "wheels")


def push_steps(cluster: Cluster, node: Node, seen: NodeFacts, manifest: Manifest, source: Path) -> tuple[Step, ...]:
    """Copy the wheels of the manifest that the node lacks (by name and size), then verify by hash."""
    missing = tuple(wheel for wheel in manifest.wheels if seen.wheels.get(wheel.filename) != wheel.size)
    installed = manifest.release in seen.releases
    if installed and not missing:
        return ()
    place = wheel_folder(cluster)
    # before an installation all of them: one that is there may have been damaged by a power loss, or cut off unverified
    verified = missing if installed else manifest.wheels
    return (
        *(_travel(node, manifest, missing, source, place) if missing else ()),
        *_verification(node, verified, place, place / f"{manifest.release}.sha256"),
    )


def _travel(
    node: Node, manifest: Manifest, missing: tuple[Wheel, ...], source: Path, place: PurePosixPath
) -> tuple[Step, ...]:
    size = sum(wheel.size for wheel in missing)
    return (
        Run(node=node.name, title="make the wheel folder", reason="wheels go there", argv=("mkdir", "-p", str(place))),
        Push(
            node=node.name,
            title=f"push {len(missing)} wheels, {megabytes(size) if size else 'sizes not known yet'}",
            reason=f"{len(manifest.wheels) - len(missing)} of {len(manifest.wheels)} are there",
            sources=tuple(source / wheel.filename for wheel in missing),
            destination=place,
            size=size,
        ),
    )


def _verification(node: Node, wheels: tuple[Wheel, ...], place: PurePosixPath, sums: PurePosixPath) -> tuple[Step, ...]:
    return (
        Write(
            node=node.name,
            title="write the expected hashes",
            reason="to verify",
            path=sums,
            content=_sums(place, wheels),
        ),
        Run(
            node=node.name,
            title=f"verify {len(wheels)} wheels",
            reason="what is installed is what was built; a damaged one is removed",
            argv=("sh", "-c", _VERIFY, "sh", str(sums)),
            timeout=600,
            hint="the same command pushes them again; if that does not help, check the node's disk and memory",
        ),
    )


# Names of wheels and of their folder hold no blanks or colons (PEP 427, check_folder).
_VERIFY = """
said=$(LC_ALL=C sha256sum --check --quiet "$1" 2>&1) && exit 0
printf '%s\\n' "$said"
printf '%s\\n' "$said" | sed -n 's/: FAILED.*//p' | xargs -r rm -f --
exit 1
"""


def _sums(place: PurePosixPath, wheels: tuple[Wheel, ...]) -> str:
    return "".join(f"{wheel.sha256}  {place / wheel.filename}\n" for wheel in wheels)
