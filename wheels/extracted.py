"""Records of wheels that were taken out of images: `extracted/NAME.json` beside them, with the image they came from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import ValidationError

from core.config import Model, Stack
from core.store import has_size

RECORDS = "extracted"


class Extracted(Model):
    """One wheel that was taken out of an image; ``size`` in bytes, ``layers`` the digests that its files came from."""

    name: str
    version: str
    filename: str
    sha256: str
    size: int
    tags: tuple[str, ...]
    kind: Literal["installed", "wheel"]
    """Whether it was installed there, or left over as a file."""
    site: str
    """The folder of the image that it lay in, relative to the root."""
    reference: str
    """The image as it was asked for."""
    image: str
    """The image with the digest that gives the same one again."""
    manifest: str
    """Digest of the manifest of ``platform``."""
    platform: str
    layers: tuple[str, ...]


def record(place: Path, made: Extracted) -> None:
    """Write down that a wheel in the folder was taken; the wheel that a former record names goes."""
    path = place / RECORDS / f"{made.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    for former in recorded(place):
        if former.name == made.name and former.filename != made.filename:
            (place / former.filename).unlink()
    fresh = path.with_suffix(".new")
    fresh.write_text(made.model_dump_json(indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def recorded(place: Path) -> tuple[Extracted, ...]:
    """Return the wheels in a folder that were extracted and are still there, with their size."""
    found = (_read(path) for path in sorted((place / RECORDS).glob("*.json")))
    return tuple(one for one in found if one and has_size(place / one.filename, one.size))


def _read(path: Path) -> Extracted | None:
    try:
        return Extracted.model_validate_json(path.read_bytes())
    except ValidationError:  # of another version of the suite, or damaged: the wheel is taken once more
        return None


def taken_components(stack: Stack, place: Path) -> Iterator[Extracted]:
    """Yield the wheels in a folder that are the stack's components out of images, of these versions and images."""
    wanted = {str(canonicalize_name(name)): one for name, one in stack.components.items() if one.origin == "image"}
    for one in recorded(place):
        component = wanted.get(one.name)
        if component and component.image == one.reference and same_version(component.version, one.version):
            yield one


def same_version(one: str, other: str) -> bool:
    """Say whether two spellings are one version, with its local part (`+cu130`)."""
    try:
        return Version(one) == Version(other)
    except InvalidVersion:
        return False
