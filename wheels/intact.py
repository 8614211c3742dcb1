"""What a recipe promises of a wheel's files; functions that raise BuildFailed, each with its own message."""

from __future__ import annotations

import fnmatch
import struct
import zipfile
import zlib
from pathlib import Path

from core.errors import BuildFailed

# what zipfile raises for damaged bytes, tried by changing each one of a wheel
UNREADABLE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)


def metadata_of(wheel: Path) -> bytes:
    """Return the METADATA of a wheel. Raises BuildFailed when it has none."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [
                name for name in archive.namelist() if name.endswith(".dist-info/METADATA") and name.count("/") == 1
            ]
            return archive.read(names[0])
    except (*UNREADABLE, IndexError) as error:
        raise BuildFailed(f"{wheel.name} has no METADATA: {error}", next_move="build it again") from error


def require_files(wheel: Path, names: tuple[str, ...]) -> None:
    """Refuse a wheel that is no intact zip or lacks a file that its recipe promises (names may hold `*`)."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            broken = archive.testzip()
            present = set(archive.namelist())
    except UNREADABLE as error:
        raise BuildFailed(f"{wheel.name} is not an intact zip file: {error}", next_move="build it again") from error
    if broken:
        raise BuildFailed(f"{wheel.name}: {broken} in it is damaged", next_move="build it again")
    missing = [name for name in names if not fnmatch.filter(present, name)]
    if missing:
        raise BuildFailed(
            f"{wheel.name} lacks {', '.join(missing)}", next_move="read the build's lines: a part was left out silently"
        )
