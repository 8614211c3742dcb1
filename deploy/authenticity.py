"""Only what was signed is installed, where the cluster names who may sign (`allowed_signers`).

Every node verifies for itself, before anything of the release is installed: the signature of manifest.json before
wheels travel, the wheels when they have arrived. `ROOT/signed/RELEASE/` holds what it goes by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from core.config import ROOT, Cluster, Node, Stack, shown
from core.errors import ConfigError, SignatureRefused
from core.facts import Facts, NodeFacts
from core.host import CONTROLLER
from core.plan import Later, Run, Step, Write
from core.process import Completed
from deploy.push import wheel_folder
from wheels.manifest import LOCK, MANIFEST, SIGNATURE, Manifest, folder, lock_text
from wheels.signature import NAMESPACE, refused, require_armour

SCRIPT = ROOT / "deploy" / "verify_release.py"
SIGNERS = "allowed_signers"
TIMEOUT = 900


@dataclass(frozen=True)
class Signed:
    """The texts that a node verifies a release by, under their names there."""

    files: tuple[tuple[str, str], ...]


def signed_release(cluster: Cluster, stack: Stack, manifest: Manifest, facts: Facts) -> Signed | None:
    """Return what the nodes verify by; None where nobody is named who may sign, or where every node has the release.

    Raises SignatureRefused for a release without signature, and for one whose lock is not what would be installed.
    """
    if cluster.allowed_signers is None or all(manifest.release in facts[node.name].releases for node in cluster.nodes):
        return None
    place = folder(stack, manifest.target)
    require_armour(place / MANIFEST, place / f"{MANIFEST}{SIGNATURE}")
    _require_lock(stack, manifest)
    names = (MANIFEST, f"{MANIFEST}{SIGNATURE}", LOCK)
    return Signed((*((name, _text(place / name)) for name in names), (SIGNERS, _signers(cluster))))


def _require_lock(stack: Stack, manifest: Manifest) -> None:
    """Refuse a manifest that names another lock than its own wheels give: that one is what gets installed."""
    if hashlib.sha256(lock_text(stack, manifest.target, manifest.wheels).encode()).hexdigest() != manifest.lock_sha256:
        raise SignatureRefused(
            f"the manifest of {manifest.release} names another lock than its wheels give",
            next_move=f"run invoke build-wheels --stack {stack.name} and sign what comes out",
        )


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise SignatureRefused(f"{shown(path)} cannot be read", next_move="build or fetch the release again") from error


def _signers(cluster: Cluster) -> str:
    path = ROOT / str(cluster.allowed_signers)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{shown(path)} cannot be read; the cluster {cluster.name} names it as allowed_signers",
            next_move="write it as ssh-keygen(1) says under ALLOWED SIGNERS, or take the key out",
        ) from error


def signed_folder(cluster: Cluster, release: str) -> PurePosixPath:
    """Return the folder of what a node verifies a release by."""
    return PurePosixPath(cluster.root / "signed" / release)


def signature_steps(
    cluster: Cluster, node: Node, seen: NodeFacts, manifest: Manifest, signed: Signed | None
) -> tuple[Step, ...]:
    """Have the node verify who signed the manifest, and that it names stack.lock; before wheels travel."""
    if signed is None or manifest.release in seen.releases:
        return ()
    place = signed_folder(cluster, manifest.release)
    make = Run(
        node=node.name,
        title="make the folder of what was signed",
        reason="the node verifies for itself",
        argv=("mkdir", "-p", str(place)),
    )
    writes = (
        Write(node=node.name, title=f"write {name}", reason="to verify", path=place / name, content=content)
        for name, content in signed.files
    )
    return (make, *writes, _verification(node, manifest, "verify the signature", str(place)))


def wheel_steps(
    cluster: Cluster, node: Node, seen: NodeFacts, manifest: Manifest, signed: Signed | None
) -> tuple[Step, ...]:
    """Have the node verify the wheels that have arrived by what was signed; before anything is installed."""
    if signed is None or manifest.release in seen.releases:
        return ()
    title = f"verify {len(manifest.wheels)} wheels by what was signed"
    places = (str(signed_folder(cluster, manifest.release)), str(wheel_folder(cluster)))
    return (_verification(node, manifest, title, *places),)


def _verification(node: Node, manifest: Manifest, title: str, place: str, *wheels: str) -> Run:
    return Run(
        node=node.name,
        title=title,
        reason="the cluster names who may sign",
        argv=("python3", "-c", SCRIPT.read_text(encoding="utf-8"), place, NAMESPACE, *wheels),
        timeout=TIMEOUT,
        failure=partial(_refusal, manifest.release, node.name),
    )


def _refusal(release: str, node: str, done: Completed) -> SignatureRefused:
    """Return the error for what deploy/verify_release.py said: ssh-keygen's words, or its own."""
    said = (done.out + done.err).strip()
    own = said.removeprefix("refused: ")
    if own == said or "ssh-keygen" in own or own.startswith("the signature"):
        return refused(release, said, node)
    return SignatureRefused(
        f"{release}: {own}",
        node=node,
        next_move="run the same command again; if it stays, find out who changes files in dist/ or on the node",
    )


def unsigned_steps(cluster: Cluster, stack: Stack) -> Iterator[Step]:
    """Return the signing that has to come first, for the plan of a release that is not built yet."""
    if cluster.allowed_signers is not None:
        yield Later(
            node=CONTROLLER,
            title=f"sign the release of {stack.name}",
            reason=f"every node verifies it by {cluster.allowed_signers}",
            command=f"invoke wheels.sign --stack {stack.name} --key PATH",
        )
