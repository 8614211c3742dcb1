"""A folder that is filled with files of an image: below it and nowhere else, whatever their names are."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from core.errors import UsageError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class FreshFolder:
    """Makes files that are not there yet. Every folder on the way is opened as one: links are not gone through."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise UsageError(f"{path} is not empty", next_move="name another folder, or empty it")
        self._root = os.open(path, _FOLDER)
        self._last = ("", os.dup(self._root))

    def __enter__(self) -> FreshFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._root)
        os.close(self._last[1])

    def file(self, path: str, *, executable: bool) -> BinaryIO:
        """Make a file and give it open for writing; ``path`` is relative, in plain form (a/b/c)."""
        above, _, name = path.rpartition("/")
        file = os.fdopen(os.open(name, _NEW_FILE, 0o600, dir_fd=self._folder(above)), "wb")
        os.fchmod(file.fileno(), 0o755 if executable else 0o644)
        return file

    def link(self, path: str, other: str) -> None:
        """Give a file that is there another name as well."""
        source, target = (os.dup(self._folder(one.rpartition("/")[0])) for one in (path, other))
        try:
            names = (one.rpartition("/")[2] for one in (path, other))
            os.link(*names, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        finally:
            os.close(source)
            os.close(target)

    def _folder(self, path: str) -> int:
        """Return a folder, open, made where it is missing; it is ours until the next one is asked for."""
        if self._last[0] != path:
            place = os.dup(self._root)
            for name in path.split("/") if path else ():
                place = _entered(place, name)
            os.close(self._last[1])
            self._last = (path, place)
        return self._last[1]


def _entered(place: int, name: str) -> int:
    """Go into a folder, and close the one above."""
    try:
        with suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=place)
        return os.open(name, _FOLDER, dir_fd=place)
    finally:
        os.close(place)
