"""Archives are hostile until checked: every name, kind and size is looked at before anything of it is written.

Nothing is extracted by tarfile or zipfile themselves; they only read. What comes out are folders, plain files with or
without the executable bit, and links that stay within the tree.
"""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from build.tree import remove_tree
from core.errors import BuildFailed
from core.plan import megabytes
from core.store import full_disk_is_said

Kind = Literal["file", "folder", "link", "hard link"]

LONGEST = 4096
_UNREADABLE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error),
    *(NotImplementedError, RuntimeError, OverflowError, ValueError),
)
"""What the two libraries raise for damaged, encrypted or unknown contents."""


@dataclass(frozen=True)
class Limits:
    """How large an unpacked archive may be."""

    files: int = 500_000
    size: int = 32 * 1024**3
    """Bytes of all files together."""


@dataclass(frozen=True)
class Member:
    """One entry of an archive, as it calls itself."""

    name: str
    kind: Kind
    size: int = 0
    executable: bool = False
    target: str = ""
    read: Callable[[], IO[bytes]] | None = None


def unpack(archive: Path, destination: Path, limits: Limits = Limits()) -> None:
    """Unpack an archive (.tar with gzip, bzip2 or xz; .zip); of a single top folder, its contents.

    ``destination`` must not be there yet, and is not there after an error. Raises BuildFailed naming the entry.
    """
    fresh = destination.with_name(f".{destination.name}.unpacking")
    remove_tree(fresh)
    fresh.mkdir(parents=True)
    try:
        with full_disk_is_said(destination):
            _unpack(archive, fresh, limits)
            top = _top(fresh)
            _refuse_links_outside(archive, top)
            top.rename(destination)
    finally:
        remove_tree(fresh)


def _unpack(archive: Path, folder: Path, limits: Limits) -> None:
    tree = _Tree(archive.name, folder, limits)
    try:
        with closing(_members(archive)) as members:
            for member in members:
                tree.add(member)
    except _UNREADABLE as error:
        raise _unreadable(archive, error) from error
    except OSError as error:
        # zipfile seeks to where a damaged entry points, be it before the beginning; bz2's own errors have no number
        if error.errno not in (errno.EINVAL, None):
            raise
        raise _unreadable(archive, error) from error


def _unreadable(archive: Path, error: Exception) -> BuildFailed:
    return BuildFailed(
        f"{archive.name} cannot be unpacked: {error or type(error).__name__}",
        next_move="it is a damaged archive, or of a kind that is not read: .tar.gz, .tar.bz2, .tar.xz, .zip are",
    )


def _top(folder: Path) -> Path:
    entries = list(folder.iterdir())
    single = len(entries) == 1 and entries[0].is_dir() and not entries[0].is_symlink()
    return entries[0] if single else folder


def _refuse_links_outside(archive: Path, top: Path) -> None:
    """Look where links lead once all is there: one may lead through another."""
    root = top.resolve()
    for folder, folders, files in os.walk(root):
        for path in (Path(folder, name) for name in (*folders, *files)):
            if path.is_symlink() and not _real(path).is_relative_to(root):
                raise BuildFailed(
                    f"{archive.name}: {str(path.relative_to(root))!r} links out of the tree",
                    next_move="do not use that archive; nothing of it was kept",
                )


def _real(path: Path) -> Path:
    # Path.resolve() raises for links in a circle, which lead nowhere
    return Path(os.path.realpath(path))


def _members(archive: Path) -> Generator[Member, None, None]:
    if zipfile.is_zipfile(archive) and not tarfile.is_tarfile(archive):
        with zipfile.ZipFile(archive) as package:
            yield from (_zip_member(package, info) for info in package.infolist())
    else:
        with tarfile.open(archive, "r:*") as package:
            yield from (_tar_member(package, info) for info in package)


def _tar_member(package: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    if info.isdir():
        return Member(info.name, "folder")
    if info.issym():
        return Member(info.name, "link", target=info.linkname)
    if info.islnk():
        return Member(info.name, "hard link", target=info.linkname)
    if not info.isreg() or info.issparse():
        raise ValueError(f"{info.name!r} is neither a file, a link nor a folder")

    def read() -> IO[bytes]:
        file = package.extractfile(info)
        assert file is not None
        return file

    return Member(info.name, "file", info.size, bool(info.mode & stat.S_IXUSR), read=read)


def _zip_member(package: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    if not info.filename:  # Python's own is_dir() takes it for an index error
        raise ValueError("it holds a member without a name")
    mode = info.external_attr >> 16 if info.create_system == 3 else 0
    kind = stat.S_IFMT(mode)
    if info.is_dir():
        return Member(info.filename, "folder")
    if kind == stat.S_IFLNK:
        if info.file_size > LONGEST:
            raise ValueError(f"{info.filename!r} is a link of {info.file_size} bytes")
        return Member(info.filename, "link", target=package.read(info).decode())
    if kind not in {0, stat.S_IFREG}:
        raise ValueError(f"{info.filename!r} is neither a file, a link nor a folder")
    executable = bool(mode & stat.S_IXUSR)
    return Member(info.filename, "file", info.file_size, executable, read=lambda: package.open(info))


class _Tree:
    """What was written so far, by name; refuses what does not fit to it."""

    def __init__(self, archive: str, folder: Path, limits: Limits) -> None:
        self._archive = archive
        self._folder = folder
        self._limits = limits
        self._kinds: dict[tuple[str, ...], Kind] = {(): "folder"}
        self._size = 0

    def add(self, member: Member) -> None:
        """Write one member."""
        parts = self._parts(member.name, member)
        self._count(member, member.size)
        if member.kind == "folder":
            self._make_folders(parts, member)
            return
        if parts in self._kinds:
            raise self._refused(member, "is there twice")
        self._make_folders(parts[:-1], member)
        self._place(member, parts)

    def _parts(self, name: str, member: Member) -> tuple[str, ...]:
        parts = tuple(part for part in name.split("/") if part not in {"", "."})
        if name.startswith("/") or ".." in parts:
            raise self._refused(member, "leads out of the tree")
        if "\0" in name or len(name) > LONGEST or any(len(part.encode(errors="replace")) > 255 for part in parts):
            raise self._refused(member, "has a name that no file can have")
        if not parts and member.kind != "folder":
            raise self._refused(member, "has no name")
        return parts

    def _count(self, member: Member, size: int) -> None:
        self._size += size
        if size < 0 or self._size > self._limits.size:
            raise self._refused(member, f"makes it larger than {megabytes(self._limits.size)}")
        if len(self._kinds) > self._limits.files:
            raise self._refused(member, f"makes it more than {self._limits.files} entries")

    def _make_folders(self, parts: tuple[str, ...], member: Member) -> None:
        for length in range(1, len(parts) + 1):
            kind = self._kinds.get(parts[:length])
            if kind not in {None, "folder"}:
                raise self._refused(member, f"lies below {'/'.join(parts[:length])}, which is a {kind}")
            if kind is None:
                self._folder.joinpath(*parts[:length]).mkdir()
                self._kinds[parts[:length]] = "folder"

    def _place(self, member: Member, parts: tuple[str, ...]) -> None:
        path = self._folder.joinpath(*parts)
        match member.kind:
            case "link":
                self._link(member, path)
            case "hard link":
                self._copy(member, path)
            case _:
                self._write(member, path)
        self._kinds[parts] = "link" if member.kind == "link" else "file"

    def _write(self, member: Member, path: Path) -> None:
        assert member.read is not None
        left = member.size
        with member.read() as source, path.open("xb") as file:
            while left and (block := source.read(min(left, 1024**2))):
                file.write(block)
                left -= len(block)
        if left:
            raise self._refused(member, "ends too early")
        path.chmod(0o755 if member.executable else 0o644)

    def _copy(self, member: Member, path: Path) -> None:
        """Write a hard link as a file of its own: a build that changes one does not change the other."""
        original = self._parts(member.target, member)
        if self._kinds.get(original) != "file":
            raise self._refused(member, "links to what is no file of the archive before it")
        first = self._folder.joinpath(*original)
        self._count(member, first.stat().st_size)
        shutil.copy2(first, path)

    def _link(self, member: Member, path: Path) -> None:
        if member.target.startswith("/") or not member.target or "\0" in member.target or len(member.target) > LONGEST:
            raise self._refused(member, "links out of the tree")
        path.symlink_to(member.target)

    def _refused(self, member: Member, why: str) -> BuildFailed:
        return BuildFailed(
            f"{self._archive}: {member.name[:200]!r} {why}",
            next_move="do not use that archive; nothing of it was kept",
        )
