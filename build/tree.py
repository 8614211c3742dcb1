"""Source trees on disk: their hash, their copy, and one form for what a build could see besides the contents."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from core.errors import BuildFailed

THREADS = min(16, 2 * (os.cpu_count() or 1))
"""More than cores: a cold disk answers many questions at once."""
CHUNK = 64
"""Files that a thread takes at once; most are small."""
LEFT_OUT = "__pycache__"


def tree_hash(folder: Path) -> str:
    """Return the SHA-256 (hex) over relative paths, executable bits and contents, in the order of the paths.

    A link counts with its target. Byte code and empty folders are left out: running a source changes nothing. Raises
    BuildFailed for a missing folder and for anything that is neither file, link nor folder.
    """
    if not folder.is_dir():
        raise BuildFailed(f"{folder} is not a folder", next_move="check the recipe's source.path")
    entries = sorted(_entries(str(folder), ""))
    chunks = [entries[start : start + CHUNK] for start in range(0, len(entries), CHUNK)]
    total = hashlib.sha256()
    with ThreadPoolExecutor(THREADS) as threads:
        for part in threads.map(_chunk, chunks):
            total.update(part)
    return total.hexdigest()


def _entries(folder: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield (name relative to the tree, path) of all that is not a folder."""
    with os.scandir(folder) as found:
        for entry in found:
            if not entry.is_dir(follow_symlinks=False):
                yield prefix + entry.name, entry.path
            elif entry.name != LEFT_OUT:
                yield from _entries(entry.path, f"{prefix}{entry.name}/")


def _chunk(entries: list[tuple[str, str]]) -> bytes:
    return b"".join(_entry(Path(path), name) for name, path in entries)


def _entry(path: Path, name: str) -> bytes:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return os.fsencode(f"l {path.readlink()}\0{name}\0")
    if not stat.S_ISREG(mode):
        raise BuildFailed(f"{path} is neither a file, a link nor a folder", next_move="keep plain files in a source")
    kind = "x" if mode & stat.S_IXUSR else "-"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return os.fsencode(f"{kind} {digest} {name}\0")


def copy_tree(folder: Path, destination: Path) -> None:
    """Copy a folder of the project, links as links, byte code left out; ``destination`` must not be there yet."""
    shutil.copytree(folder, destination, symlinks=True, ignore=shutil.ignore_patterns(LEFT_OUT))


def settle(folder: Path, seconds: int) -> None:
    """Give all in the tree one time (seconds since 1970) and plain modes: a build does not see who made it, or when."""
    for name, _, files in os.walk(folder, topdown=False):
        for file in files:
            _settle(Path(name, file), seconds)
        _settle(Path(name), seconds)


def _settle(path: Path, seconds: int) -> None:
    mode = path.lstat().st_mode
    if not stat.S_ISLNK(mode):
        path.chmod(0o755 if stat.S_ISDIR(mode) or mode & stat.S_IXUSR else 0o644)
    os.utime(path, (seconds, seconds), follow_symlinks=False)


def remove_tree(folder: Path) -> None:
    """Remove a folder and all below it, read-only ones too; one that is not there is no error."""
    for name, _, _ in os.walk(folder):
        Path(name).chmod(0o755)
    if folder.exists():
        shutil.rmtree(folder)
