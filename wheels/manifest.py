"""The hand-off from build to deploy: which wheels a stack consists of, their hashes, sizes and origins.

`dist/STACK/PLATFORM-PYTHON/manifest.json` lists them; `stack.lock` beside it installs exactly them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from packaging.utils import canonicalize_name, parse_wheel_filename
from pydantic import Field, PrivateAttr, ValidationError

from core.config import DIST, ROOT, Cluster, Model, Stack
from core.errors import BuildFailed
from core.store import has_size
from wheels.ingredients import Ingredients, Tool
from wheels.lock import for_target, read_lock
from wheels.target import Target

MANIFEST = "manifest.json"
LOCK = "stack.lock"
SIGNATURE = ".sig"
"""Ends the name of a file's signature (wheels/signature.py)."""


class Wheel(Model):
    """One wheel file; ``size`` in bytes."""

    name: str
    version: str
    filename: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: int
    origin: Literal["source", "image", "index"]
    recipe: str | None = None
    """With origin "source": the hash of recipe and source that it was built from."""
    tree: str | None = None
    """With origin "source": the hash of the source tree, patches applied."""
    level: Annotated[int, Field(ge=0, le=3)] | None = None
    """How far a second build gave the same (build/reproduce.py says what the levels are); None: not tried."""
    differs: str | None = None
    """The first thing that differs between the two builds, where the level is not 1."""
    development: bool = False
    """Built with a compiler cache: not for a release."""
    notes: tuple[str, ...] = ()
    """What the build left out silently, and warnings."""
    image: str | None = None
    """With origin "image": registry/repository@sha256:digest."""
    layers: tuple[str, ...] = ()
    """With origin "image": the digests of the layers that its files lay in."""
    redistributable: bool = True
    """Whether `invoke publish` may give it to everybody."""
    toolchain: tuple[Tool, ...] = ()
    """With origin "source": the programs that built it."""
    made_of: Ingredients | None = None
    """What it was made of, kept here so that its provenance needs no recipe; None for what an index had."""


class Manifest(Model):
    """All wheels of a stack for one target."""

    stack: str
    target: Target
    lock_sha256: str
    """Of stack.lock: the identity of the set."""
    index_lock: str
    """SHA-256 of the lock files that the index part was fetched by."""
    wheels: tuple[Wheel, ...]
    _backend: str = PrivateAttr("")

    @property
    def release(self) -> str:
        """The release's id on a node: stack and identity of the set; `-dev` marks one with development builds in it.

        Of a manifest for a cluster whose environments conda makes it ends with `-conda`: that is another release.
        """
        mark = "-dev" if any(wheel.development for wheel in self.wheels) else ""
        return f"{self.stack}-{self.target.tag}-{self.lock_sha256[:10]}{mark}{self._backend}"

    def on(self, cluster: Cluster) -> Manifest:
        """Return it for the releases of a cluster."""
        copy = self.model_copy()
        copy._backend = "-conda" if cluster.backend.conda else ""
        return copy

    @property
    def size(self) -> int:
        """Bytes of all wheels."""
        return sum(wheel.size for wheel in self.wheels)


def folder(stack: Stack, target: Target) -> Path:
    """Return where the wheels of ``stack`` for ``target`` are kept on this host."""
    return DIST / stack.name / target.tag


def lock_text(stack: Stack, target: Target, wheels: Iterable[Wheel]) -> str:
    """Return the stack.lock of exactly these wheels, for `pip install --require-hashes --no-deps`."""
    rows = sorted(wheels, key=lambda wheel: wheel.name)
    lines = [f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}" for wheel in rows]
    return f"# stack {stack.name} for {target.tag}: every wheel of the set\n" + "\n".join(lines) + "\n"


def describe(path: Path, origin: Literal["source", "image", "index"], recipe: str | None = None) -> Wheel:
    """Return the manifest entry of a wheel file (reads it whole for the hash)."""
    name, version, _, _ = parse_wheel_filename(path.name)
    return Wheel(
        name=canonicalize_name(name),
        version=str(version),
        filename=path.name,
        sha256=sha256_of(path),
        size=path.stat().st_size,
        origin=origin,
        recipe=recipe,
    )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(stack: Stack, target: Target, wheels: Iterable[Wheel], index_lock: str) -> Manifest:
    """Write stack.lock and manifest.json, each by rename, and return the manifest; another manifest is not signed."""
    listed = tuple(sorted(wheels, key=lambda wheel: wheel.name))
    text = lock_text(stack, target, listed)
    digest = hashlib.sha256(text.encode()).hexdigest()
    manifest = Manifest(stack=stack.name, target=target, lock_sha256=digest, index_lock=index_lock, wheels=listed)
    place = folder(stack, target)
    described = json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n"
    if not _holds(place / MANIFEST, described):
        (place / f"{MANIFEST}{SIGNATURE}").unlink(missing_ok=True)
    _replace(place / LOCK, text)
    _replace(place / MANIFEST, described)
    return manifest


def load(stack: Stack, target: Target) -> Manifest | None:
    """Return the manifest of ``stack`` for ``target``, None when it was not built. Raises BuildFailed if unreadable."""
    path = folder(stack, target) / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BuildFailed(
            f"{path} is not a manifest", next_move=f"delete it and run invoke build-wheels --stack {stack.name}"
        ) from error


def draft(stack: Stack, target: Target) -> Manifest:
    """Return the manifest of wheels that are not there yet, for plans: hashes, sizes and file names not known."""
    wheels = {item.name: _drafted(item.name, item.version) for item in for_target(read_lock(ROOT / stack.lock), target)}
    for name, component in stack.components.items():
        wheels[canonicalize_name(name)] = _drafted(canonicalize_name(name), component.version, component.origin)
    listed = tuple(wheels[name] for name in sorted(wheels))
    return Manifest.model_construct(
        stack=stack.name, target=target, lock_sha256="not-built", index_lock="not-built", wheels=listed
    )


def _drafted(name: str, version: str, origin: Literal["source", "image", "index"] = "index") -> Wheel:
    filename = f"{name.replace('-', '_')}-{version}-….whl"
    return Wheel.model_construct(
        name=name, version=version, filename=filename, sha256="not built", size=0, origin=origin, recipe=None
    )


def planned(stack: Stack, target: Target) -> Manifest:
    """Return the manifest of the wheels at hand, or the draft of those to come."""
    return load(stack, target) or draft(stack, target)


def damaged(stack: Stack, manifest: Manifest) -> list[str]:
    """Return the names of wheel files that are missing or have another size than the manifest says."""
    place = folder(stack, manifest.target)
    return [wheel.filename for wheel in manifest.wheels if not has_size(place / wheel.filename, wheel.size)]


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
