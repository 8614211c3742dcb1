"""An image layout on the disk (OCI image specification): a folder, or the same in a plain tar archive."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import tarfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from core.errors import ImageRefused, UsageError
from core.mistakes import nearest
from core.plan import Report, megabytes
from core.store import BLOCK
from wheels.images.documents import (
    LARGEST_DOCUMENT,
    Blobs,
    Descriptor,
    Document,
    Entry,
    Image,
    LayoutVersion,
    check_digest,
    choose,
    listed,
    parse,
    refused,
    resolve,
)

NAME = "org.opencontainers.image.ref.name"
VERSION = "1.0.0"
MOST_MEMBERS = 20_000
LARGEST_HEADER = 1024**2
"""Bytes of one header of an archive (long names, pax)."""
ALL_HEADERS = 64 * 1024**2
"""Bytes of all headers of an archive."""
COMPRESSED = {b"\x1f\x8b": "gunzip", b"\x28\xb5\x2f\xfd": "unzstd", b"\xfd7zXZ\x00": "unxz", b"BZh": "bunzip2"}
"""How a compressed archive begins, and what unpacks it."""
_UNREADABLE = (tarfile.TarError, EOFError, struct.error, OverflowError, ValueError)
_PINNED = re.compile(r"(.+?)(?:@(sha256:[0-9a-f]{64}))?", re.DOTALL)


class Files(Protocol):
    """The files of a layout by their names within it."""

    def size(self, name: str) -> int | None:
        """Return a file's bytes; None where it is not there."""

    def open(self, name: str) -> IO[bytes]:
        """Open a file that is there, at its beginning; what follows its end may be something else."""


@contextmanager
def open_folder(reference: str, place: str) -> Iterator[Blobs]:
    """Give the image in a folder, ``place`` being FOLDER[:TAG][@DIGEST]. Raises UsageError, ImageRefused."""
    path, tag, digest = _parted(place, "oci:FOLDER:TAG")
    if not path.is_dir():
        raise UsageError(f"{path} is no folder", next_move="write oci-archive:FILE:TAG for an archive")
    yield Layout(reference, f"oci:{path}", _Folder(path), tag, digest)


@contextmanager
def open_archive(reference: str, place: str) -> Iterator[Blobs]:
    """Give the image in a tar archive, ``place`` being FILE[:TAG][@DIGEST]. Raises UsageError, ImageRefused."""
    path, tag, digest = _parted(place, "oci-archive:FILE:TAG")
    if not path.is_file():
        raise UsageError(f"{path} is no file", next_move="write oci:FOLDER:TAG for a folder")
    yield Layout(reference, f"oci-archive:{path}", _Archive(path, _members(path)), tag, digest)


def _parted(place: str, form: str) -> tuple[Path, str, str]:
    """Return path, tag and digest; a path that is there as it is written has no tag behind it."""
    match = _PINNED.fullmatch(place)
    if match is None:
        raise UsageError("no path is named", next_move=f"write {form}")
    rest, digest = match[1], match[2] or ""
    if Path(rest).exists():
        return Path(rest), "", digest
    path, colon, tag = rest.rpartition(":")
    if not colon or not Path(path).exists():
        raise UsageError(f"there is no {path or rest}", next_move=f"write {form}")
    return Path(path), tag, digest


@dataclass(frozen=True)
class Layout:
    """Blobs of one image; ``place`` is the reference without tag, ``tag`` and ``digest`` may be empty."""

    reference: str
    place: str
    files: Files
    tag: str
    digest: str

    def image(self, platform: str) -> Image:
        """Return the image for a platform, every document verified by its digest."""
        version = parse(LayoutVersion, self._small("oci-layout"), "oci-layout").image_layout_version
        if version != VERSION:
            raise refused(f"its layout is of version {version[:20]!r}; {VERSION} is read")
        top = self._chosen(listed(self._small("index.json"), "index.json"), platform)
        document = Document(top, self.document(top))
        return resolve(self, document, platform, self.reference, f"{self.place}@{top.digest}")

    def document(self, wanted: Descriptor) -> bytes:
        """Return an index, manifest or configuration by its digest."""
        self._check_size(wanted)
        data = self._small(_name(wanted))
        self._check_digest(wanted, f"sha256:{hashlib.sha256(data).hexdigest()}")
        return data

    def read(self, blob: Descriptor, report: Report) -> Generator[bytes, None, None]:  # noqa: ARG002
        """Yield a blob's bytes; its size is checked before, its digest at the end."""
        self._check_size(blob)
        total = hashlib.sha256()
        with self.files.open(_name(blob)) as file:
            for block in _blocks(file, blob.size):
                total.update(block)
                yield block
        self._check_digest(blob, f"sha256:{total.hexdigest()}")

    def _small(self, name: str) -> bytes:
        size = self.files.size(name)
        if size is None:
            raise self._lacks(name)
        if size > LARGEST_DOCUMENT:
            raise refused(f"its {name} has {megabytes(size)}")
        with self.files.open(name) as file:
            return b"".join(_blocks(file, size))

    def _check_size(self, blob: Descriptor) -> None:
        size = self.files.size(_name(blob))
        if size is None:
            raise self._lacks(f"blob {blob.digest}")
        if size != blob.size:
            raise refused(f"its blob {blob.digest} has {size} bytes, {blob.size} are promised")

    def _check_digest(self, blob: Descriptor, found: str) -> None:
        if found != blob.digest:
            raise ImageRefused(
                f"{self.place}: the blob {blob.digest} is damaged: its digest is {found}",
                next_move="copy or export that image again",
            )

    def _lacks(self, what: str) -> ImageRefused:
        return ImageRefused(
            f"{self.place} has no {what}", next_move="export that image again (skopeo copy … oci:FOLDER:TAG)"
        )

    def _chosen(self, entries: list[Entry], platform: str) -> Descriptor:
        """Return what index.json has under the tag or digest; without them the one that there is."""
        named = [entry for entry in entries if _tag(entry)]
        if self.digest:
            found = [entry for entry in entries if entry.digest == self.digest]
        elif self.tag:
            found = [entry for entry in named if _tag(entry) == self.tag]
        else:
            found = named or entries
        names = sorted({_tag(entry) for entry in named})
        if not found:
            raise self._not_there(names)
        if not (self.digest or self.tag) and len(names) > 1:
            raise UsageError(f"{self.place} holds several images", next_move=f"name one: {', '.join(names)[:400]}")
        return found[0].descriptor() if len({entry.digest for entry in found}) == 1 else choose(found, platform)

    def _not_there(self, names: list[str]) -> UsageError:
        wanted = f"image {self.digest}" if self.digest else f"tag {self.tag!r}" if self.tag else "image"
        there = f"these tags are there: {', '.join(names)[:400]}" if names else "no tag is there"
        return UsageError(f"{self.place} has no {wanted}{nearest(self.tag, names)}", next_move=f"{there}; name one")


def _name(blob: Descriptor) -> str:
    return f"blobs/{check_digest(blob.digest).replace(':', '/')}"


def _tag(entry: Entry) -> str:
    return (entry.annotations or {}).get(NAME, "")


def _blocks(file: IO[bytes], size: int) -> Iterator[bytes]:
    """Yield that many bytes, or fewer where the file ends before."""
    while size and (block := file.read(min(BLOCK, size))):
        size -= len(block)
        yield block


@dataclass(frozen=True)
class _Folder:
    folder: Path

    def size(self, name: str) -> int | None:
        """Return a file's bytes; None where it is not there."""
        with suppress(FileNotFoundError, NotADirectoryError), self.open(name) as file:
            return os.fstat(file.fileno()).st_size
        return None

    def open(self, name: str) -> IO[bytes]:
        """Open a plain file; a pipe or a device would never end."""
        path = self.folder / name
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise refused(f"its {name} is no plain file")
        return file


@dataclass(frozen=True)
class _Archive:
    path: Path
    members: dict[str, tuple[int, int]]
    """Where a member's bytes begin in the archive, and how many they are."""

    def size(self, name: str) -> int | None:
        """Return a member's bytes; None where it is not there."""
        return self.members[name][1] if name in self.members else None

    def open(self, name: str) -> IO[bytes]:
        """Open the archive where the member's bytes begin."""
        file = self.path.open("rb")
        file.seek(self.members[name][0])
        return file


class _Careful:
    """A file for tarfile to read headers from: one that claims to be larger than any is not read into memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = ALL_HEADERS

    def read(self, size: int) -> bytes:
        """Read a header."""
        self._left -= size
        if not 0 <= size <= LARGEST_HEADER or self._left < 0:
            raise tarfile.ReadError("its headers are too large")
        return self._file.read(size)

    def seek(self, position: int) -> int:
        """Go to the next header."""
        return self._file.seek(position)

    def tell(self) -> int:
        """Say where we are."""
        return self._file.tell()


def _members(path: Path) -> dict[str, tuple[int, int]]:
    """Return the plain files of a tar archive by name. Raises ImageRefused for every other kind but folders."""
    members: dict[str, tuple[int, int]] = {}
    with path.open("rb") as file:
        _refuse_compressed(path, file.read(6))
        file.seek(0)
        try:
            with tarfile.open(fileobj=_Careful(file), mode="r:") as archive:  # type: ignore[call-overload]
                for info in archive:
                    _add(members, info)
        except _UNREADABLE as error:
            raise ImageRefused(
                f"{path} is no tar archive that can be read: {error or type(error).__name__}",
                next_move="export that image again (skopeo copy … oci-archive:FILE:TAG)",
            ) from error
    return members


def _add(members: dict[str, tuple[int, int]], info: tarfile.TarInfo) -> None:
    name = info.name.removeprefix("./")
    if info.isdir() and info.size == 0:
        return
    if name.startswith("/") or ".." in name.split("/"):
        raise refused(f"its archive has a member {name[:100]!r}, which leads out of it")
    if not info.isreg() or info.issparse() or info.size < 0:
        raise refused(f"its archive has a member {name[:100]!r}, which is no plain file")
    if name in members:
        raise refused(f"its archive has the member {name[:100]!r} twice")
    if len(members) >= MOST_MEMBERS:
        raise refused(f"its archive has more than {MOST_MEMBERS} members")
    members[name] = (info.offset_data, info.size)


def _refuse_compressed(path: Path, beginning: bytes) -> None:
    for magic, tool in COMPRESSED.items():
        if beginning.startswith(magic):
            raise ImageRefused(
                f"{path} is a compressed archive, whose members cannot be found by their place",
                next_move=f"unpack it with {tool} first",
            )
