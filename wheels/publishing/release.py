"""A release as a folder: wheels, what they are made of, hashes over all of it, and a package index at the same time.

`dist/releases/RELEASE/` holds the wheels and beside each its `.metadata`, `manifest.json`, `stack.lock`,
`sbom.cdx.json`, `provenance/NAME.intoto.json` for every wheel that no index had, the index pages below `simple/`,
`SHA256SUMS` over all of these and, with a key, `SHA256SUMS.sig` and `manifest.json.sig`. It is made beside and renamed:
there is never half a release. Made twice from the same wheels it has the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from core.config import DIST, shown
from core.errors import BuildFailed, PublishRefused
from core.plan import Report, megabytes
from core.store import digest, full_disk_is_said, held, plain_name
from wheels.intact import metadata_of
from wheels.manifest import LOCK, MANIFEST, SIGNATURE, Manifest
from wheels.provenance import statement
from wheels.publishing.index import METADATA, Offer, offer, pages
from wheels.sbom import release_sbom

RELEASES = DIST / "releases"
SBOM = "sbom.cdx.json"
PROVENANCE = "provenance/"
SUMS = "SHA256SUMS"
SIGNED = (SUMS, MANIFEST)
"""What is signed: the hashes of all files, and what a node installs by."""
WHEEL = ".whl"
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP}
"""Where a file system makes no hard link; then the file is copied."""


@dataclass(frozen=True)
class Part:
    """One file of a release: ``name`` below its folder with slashes, ``sha256`` in hex, ``size`` in bytes.

    Its content is ``data``, or the file ``source``.
    """

    name: str
    sha256: str
    size: int
    source: Path | None = None
    data: bytes = field(default=b"", repr=False)

    @property
    def last(self) -> str:
        """The name without its folders."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class Release:
    """A release as it is to be: all its files by name, signatures apart.

    ``unsigned`` says that signatures are still to be made.
    """

    manifest: Manifest
    parts: tuple[Part, ...]
    signatures: tuple[Part, ...] = ()
    unsigned: bool = False

    @property
    def name(self) -> str:
        """The release's id, and the name of its folder."""
        return self.manifest.release

    @property
    def files(self) -> tuple[Part, ...]:
        """All files, sorted by name."""
        return tuple(sorted((*self.parts, *self.signatures), key=lambda part: part.name))

    @property
    def wheels(self) -> tuple[Part, ...]:
        """The wheels alone."""
        return tuple(part for part in self.parts if part.name.endswith(WHEEL))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(part.size for part in self.files)

    def content(self, name: str) -> bytes:
        """Return the content of a part that is no wheel."""
        return next(part.data for part in self.parts if part.name == name)

    def lying_in(self, folder: Path) -> Release:
        """Return the release with the wheels of its finished folder for sources."""
        return replace(self, parts=tuple(replace(one, source=one.source and folder / one.name) for one in self.parts))

    def signed_in(self, folder: Path) -> Release:
        """Return the release with the signatures that lie in its folder."""
        there = (folder / f"{name}{SIGNATURE}" for name in SIGNED)
        return replace(
            self, signatures=tuple(_document(path.name, path.read_bytes()) for path in there if path.exists())
        )


def draw(manifest: Manifest, place: Path) -> Release:
    """Return the release of the wheels in ``place``; nothing is written, the wheels are not hashed yet.

    Raises BuildFailed when wheels, manifest and lock are not there or do not belong together.
    """
    _require_whole(manifest, place)
    wheels = [Part(one.filename, one.sha256, one.size, source=place / one.filename) for one in manifest.wheels]
    metadata = {f"{one.filename}{METADATA}": metadata_of(place / one.filename) for one in manifest.wheels}
    made = [one for one in manifest.wheels if one.origin != "index"]
    documents = {
        MANIFEST: (place / MANIFEST).read_bytes(),
        LOCK: (place / LOCK).read_bytes(),
        SBOM: release_sbom(manifest, place),
        **{f"{PROVENANCE}{one.name}.intoto.json": statement(manifest, one) for one in made},
        **metadata,
        **pages(offers_of(manifest, metadata.__getitem__)),
    }
    listed = sorted([*wheels, *(_document(name, data) for name, data in documents.items())], key=lambda one: one.name)
    sums = "".join(f"{part.sha256}  {part.name}\n" for part in listed).encode()
    return Release(manifest, tuple(sorted([*listed, _document(SUMS, sums)], key=lambda one: one.name)))


def offers_of(manifest: Manifest, metadata: Callable[[str], bytes], folder: str = "") -> list[Offer]:
    """Return an index's entries of a release; ``metadata`` gives the content of `WHEEL.metadata`."""
    return [offer(wheel, metadata(f"{wheel.filename}{METADATA}"), folder) for wheel in manifest.wheels]


def _document(name: str, data: bytes) -> Part:
    return Part(name, hashlib.sha256(data).hexdigest(), len(data), data=data)


def _require_whole(manifest: Manifest, place: Path) -> None:
    again = f"run invoke build-wheels --stack {manifest.stack}"
    for wheel in manifest.wheels:
        path = place / plain_name(wheel.filename)
        if not path.is_file() or path.stat().st_size != wheel.size:
            raise BuildFailed(f"{wheel.filename} is missing or cut off in {shown(place)}", next_move=again)
    if digest(place / LOCK) != manifest.lock_sha256:
        raise BuildFailed(f"{shown(place / LOCK)} is not the one that the manifest names", next_move=again)


def pending(release: Release, folder: Path) -> list[str]:
    """Say what is still to do until the folder holds the release; every file that is there is hashed.

    Raises PublishRefused when the folder holds something else.
    """
    if not folder.exists():
        return [f"{shown(folder)}: {len(release.files)} files, {megabytes(release.size)}"]
    there = set(names_in(folder))
    strange = sorted(there - {part.name for part in release.files} - {f"{name}{SIGNATURE}" for name in SIGNED})
    if strange:
        raise _other(folder, f"holds {strange[0]}, which is not in this release")
    for part in release.files:
        if part.name in there:
            _require_same(part, folder)
        elif part not in release.signatures:
            raise _other(folder, f"lacks {part.name}")
    return [f"{shown(folder / part.name)}" for part in release.signatures if part.name not in there]


def names_in(folder: Path) -> Iterator[str]:
    """Yield the files below a folder, with slashes, without what a killed command left of writing one."""
    files = (path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    return (path.relative_to(folder).as_posix() for path in files if not path.match(".*.new"))


def _require_same(part: Part, folder: Path) -> None:
    found = digest(folder / part.name)
    if found != part.sha256:
        raise _other(folder, f"holds another {part.name}: its sha256 is {found}, that of this release {part.sha256}")


def _other(folder: Path, what: str) -> PublishRefused:
    return PublishRefused(
        f"{shown(folder)} is there and {what}",
        next_move="a release is never changed: move that folder away if nobody has it, else make another release",
    )


def assemble(release: Release, folder: Path, report: Report) -> None:
    """Make the folder, or add the signatures that it lacks. Raises PublishRefused and BuildFailed."""
    with held(folder.parent / ".lock", f"publishes into {shown(folder.parent)}", report):
        todo = pending(release, folder)
        with full_disk_is_said(folder.parent):
            if todo and not folder.exists():
                _make(release, folder, report)
            elif todo:
                for part in release.signatures:
                    write(folder / part.name, part.data)


def _make(release: Release, folder: Path, report: Report) -> None:
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)  # what a killed command left
    try:
        report(f"{shown(folder)}: {len(release.files)} files, {megabytes(release.size)}")
        for part in release.files:
            _put(part, fresh / part.name, folder)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _put(part: Part, path: Path, folder: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if part.source is None:
        write(path, part.data)
        return
    if not _linked(part.source, path) and not any(_linked(found, path) for found in _beside(part, folder)):
        shutil.copyfile(part.source, path)
    _sync(path)
    found = digest(path)
    if found != part.sha256:
        raise BuildFailed(
            f"{part.source} is not the wheel that its manifest names: its sha256 is {found}, not {part.sha256}",
            next_move="delete it and run invoke build-wheels again",
        )


def _beside(part: Part, folder: Path) -> Iterator[Path]:
    """Yield the same file in the releases beside this one: they are on the same disk, and share most wheels."""
    return (path for path in sorted(folder.parent.glob(f"[!.]*/{part.name}")) if digest(path) == part.sha256)


def _linked(source: Path, path: Path) -> bool:
    try:
        os.link(source, path)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return False
    return True


def write(path: Path, data: bytes) -> None:
    """Write a file by rename, its bytes on the disk before it has its name."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(data)
    _sync(fresh)
    fresh.replace(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
