"""`invoke publish`: a release folder on this host, and the same files in other places.

Everything that could be refused is refused before anything is sent: another file under one of our names, wheels that
may not be given to others, development builds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from core.command import Options, mend
from core.config import DIST, Stack, shown
from core.errors import BuildFailed, PublishRefused, UsageError
from core.mistakes import nearest
from core.plan import Report
from wheels.manifest import MANIFEST, SIGNATURE, Manifest
from wheels.publishing import release as releases
from wheels.publishing.artifacts import artifacts
from wheels.publishing.github import github
from wheels.publishing.pypi import package_index
from wheels.publishing.release import SIGNED, Release
from wheels.publishing.shared import SharedFolder
from wheels.signature import sign

SHAPES = "folder:PATH, index:URL, oci:HOST/REPOSITORY, github:OWNER/REPOSITORY"


class Destination(Protocol):
    """A place that a release is sent to. Looking changes nothing; both may raise PublishRefused and RegistryRefused."""

    @property
    def address(self) -> str:
        """How it is written and shown, without secrets."""

    def pending(self, release: Release) -> list[str]:
        """Say what is still to do; nothing when the release is there."""

    def send(self, release: Release, folder: Path, report: Report) -> None:
        """Send what is missing from the release's own folder."""


@dataclass(frozen=True)
class Wish:
    """What the flags of publish ask for; ``target`` is a tag like "aarch64-cp312", ``key`` an SSH key to sign with."""

    stack: Stack
    target: str = ""
    to: tuple[str, ...] = ()
    private: bool = False
    key: Path | None = None


def publish(wish: Wish, options: Options) -> None:
    """Make the release's folder, sign it, send it to every destination, look at all of them again.

    Raises PublishRefused, RegistryRefused, BuildFailed, UsageError.
    """
    place = built(wish.stack, wish.target)
    manifest = read_manifest(place)
    destinations = tuple(destination(text) for text in wish.to)
    refuse_unfit(manifest, destinations, private=wish.private)
    folder = releases.RELEASES / manifest.release

    def pending() -> list[str]:
        release = drawn(manifest, place, folder, wish.key)
        return [*_pending_here(release, folder), *_pending_there(release, destinations)]

    def action(report: Report) -> None:
        _make(drawn(manifest, place, folder, wish.key), folder, wish.key, report)
        release = drawn(manifest, place, folder, wish.key)
        _pending_there(release, destinations)
        for one in destinations:
            one.send(release, folder, report)
        report(f"{manifest.release}: {shown(folder)}" + "".join(f", {one.address}" for one in destinations))

    mend(f"publish {manifest.release}", pending, action, options)


def destination(text: str) -> Destination:
    """Return the destination that ``--to`` names. Raises UsageError for what is none."""
    kind, colon, rest = text.partition(":")
    if not colon or not rest or kind not in KINDS:
        raise UsageError(
            f"--to {text[:200]!r} does not say what is there{nearest(kind, list(KINDS))}", next_move=f"write {SHAPES}"
        )
    return KINDS[kind](rest)


KINDS: dict[str, Callable[[str], Destination]] = {
    "folder": lambda text: SharedFolder(Path(text)),
    "index": package_index,
    "oci": artifacts,
    "github": github,
}


def built(stack: Stack, target: str) -> Path:
    """Return the folder of the wheels to publish. Raises UsageError where there are several, BuildFailed for none."""
    there = sorted(path.parent for path in (DIST / stack.name).glob(f"*/{MANIFEST}"))
    chosen = [path for path in there if path.name == target] if target else there
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise UsageError(
            f"the wheels of {stack.name} are there for {', '.join(path.name for path in there)}",
            next_move="name one of them with --target",
        )
    raise BuildFailed(
        f"there are no wheels of {stack.name}" + (f" for {target}" if target else ""),
        next_move=f"run invoke build-wheels --stack {stack.name}",
    )


def read_manifest(place: Path) -> Manifest:
    """Return the manifest of a folder of wheels. Raises BuildFailed when it cannot be read."""
    path = place / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        raise BuildFailed(
            f"{shown(path)} is not a manifest", next_move="delete it and run invoke build-wheels"
        ) from error


def refuse_unfit(manifest: Manifest, destinations: Sequence[Destination], *, private: bool) -> None:
    """Refuse to give away what may not be given. Raises PublishRefused."""
    others = [one.address for one in destinations if not isinstance(one, SharedFolder)]
    development = [wheel.filename for wheel in manifest.wheels if wheel.development]
    if others and development:
        raise PublishRefused(
            f"{manifest.release} holds development builds and is for folders only, not for {', '.join(others)}",
            next_move=f"run invoke build-wheels --stack {manifest.stack} without --development",
            evidence="\n".join(development),
        )
    kept = [wheel.filename for wheel in manifest.wheels if not wheel.redistributable]
    if others and kept and not private:
        raise PublishRefused(
            f"{len(kept)} wheels of {manifest.release} may not be given to others (the licence of the image that they "
            f"come from), and {', '.join(others)} may be open to everybody",
            next_move="if only you can read there, say so with --private; if their licence allows it, write "
            "redistributable = true into the stack and run invoke build-wheels",
            evidence="\n".join(kept),
        )


def drawn(manifest: Manifest, place: Path, folder: Path, key: Path | None) -> Release:
    """Return the release with the signatures that it has so far."""
    found = releases.draw(manifest, place).signed_in(folder)
    return replace(found, unsigned=key is not None and len(found.signatures) < len(SIGNED))


def _pending_here(release: Release, folder: Path) -> list[str]:
    signed = [part.name for part in release.signatures]
    wanted = [f"{name}{SIGNATURE}" for name in SIGNED if release.unsigned]
    return [*releases.pending(release, folder), *(f"{name} is signed" for name in wanted if name not in signed)]


def _pending_there(release: Release, destinations: Sequence[Destination]) -> list[str]:
    """Ask every destination. Raises PublishRefused before anything is sent to one of them."""
    return [f"{one.address}: {line}" for one in destinations for line in one.pending(release)]


def _make(release: Release, folder: Path, key: Path | None, report: Report) -> None:
    releases.assemble(release, folder, report)
    if key is None:
        return
    for name in SIGNED:
        if not (folder / f"{name}{SIGNATURE}").exists():
            sign(folder / name, key)
            report(f"{name} is signed")
