"""Unpacks on a node the archive of a Python, hostile until it was checked; standard library only, and alone.

    python3 unpack_python.py ARCHIVE SHA256 FOLDER

The archive is in the layout of python-build-standalone's `install_only`: all of it below `python/`. What lies there
becomes FOLDER, which must not exist. Nothing is unpacked of a file with another hash, nor of an archive that holds
anything but files, folders and links that stay inside. Says what is not so and ends with 1.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import sys
import tarfile
import zlib
from collections.abc import Sequence
from itertools import dropwhile
from pathlib import Path
from typing import IO

TOP = "python"
LARGEST = 2 * 1024**3
MOST = 50_000
BLOCK = 1024**2


def main(argv: Sequence[str]) -> int:
    """Unpack; return the exit code."""
    archive, sha256, folder = argv
    try:
        with Path(archive).open("rb") as file:
            require_hash(file, sha256)
            with tarfile.open(fileobj=file, mode="r:gz") as tar:
                members = checked(tar)
                unpack(tar, members, Path(folder))
    except (OSError, ValueError, EOFError, tarfile.TarError, zlib.error) as error:
        print(f"refused: {error}")
        return 1
    return 0


def require_hash(file: IO[bytes], sha256: str) -> None:
    """Raise ValueError for another file than the one that was named; it is read from its beginning afterwards."""
    digest = hashlib.sha256()
    while block := file.read(BLOCK):
        digest.update(block)
    if digest.hexdigest() != sha256:
        raise ValueError(f"the sha256 of the archive is {digest.hexdigest()}, named is {sha256}")
    file.seek(0)


def checked(tar: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """Return the members by their path below python/. Raises ValueError for what no honest archive has."""
    members: dict[str, tarfile.TarInfo] = {}
    size = 0
    for member in tar:
        path = inside(member.name)
        size += member.size
        if path in members:
            raise ValueError(f"{member.name!r} is in it twice")
        if len(members) >= MOST or size > LARGEST:
            raise ValueError(f"it is too large: more than {MOST} files or {LARGEST} bytes")
        members[path] = member
    for path, member in members.items():
        require_plain(path, member, members)
    return members


def inside(name: str) -> str:
    """Return a path below python/, "" for that folder itself. Raises ValueError for any other."""
    parts = name.rstrip("/").removeprefix("./").split("/")
    if parts[0] != TOP or any(part in ("", ".", "..") for part in parts) or not name.isprintable():
        raise ValueError(f"{name!r} is not below {TOP}/")
    return "/".join(parts[1:])


def require_plain(path: str, member: tarfile.TarInfo, members: dict[str, tarfile.TarInfo]) -> None:
    """Raise ValueError for what is no file, folder or link, leads out, or lies below something that is no folder."""
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise ValueError(f"{member.name!r} is neither file, folder nor link")
    above = path
    while above := posixpath.dirname(above):
        if above in members and not members[above].isdir():
            raise ValueError(f"{member.name!r} lies below {above!r}, which is no folder")
    if member.issym():
        # behind a part that may be a link itself, ".." leads to where nobody has looked
        behind = dropwhile(lambda part: part == "..", member.linkname.split("/"))
        if member.linkname.startswith("/") or ".." in behind:
            raise ValueError(f"{member.name!r} leads out of it")
        inside(posixpath.normpath(posixpath.join(TOP, posixpath.dirname(path), member.linkname)))
    if member.islnk() and not members.get(inside(member.linkname), member).isreg():
        raise ValueError(f"{member.name!r} is a second name of no file")


def unpack(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], folder: Path) -> None:
    """Write the members: files first, links when no file can be written through them any more."""
    folder.mkdir(mode=0o755)
    for path, member in members.items():
        if member.isreg() or member.isdir():
            target = folder / path
            (target if member.isdir() else target.parent).mkdir(mode=0o755, parents=True, exist_ok=True)
            if member.isreg():
                write(tar, member, target)
    for path, member in members.items():
        (folder / path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if member.issym():
            (folder / path).symlink_to(member.linkname)
        elif member.islnk():
            os.link(folder / inside(member.linkname), folder / path)


def write(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Write one file, executable for all or for none."""
    source = tar.extractfile(member)
    if source is None:
        raise ValueError(f"{member.name!r} has no content")
    with target.open("xb") as out:
        while block := source.read(BLOCK):
            out.write(block)
    target.chmod(0o755 if member.mode & 0o100 else 0o644)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
