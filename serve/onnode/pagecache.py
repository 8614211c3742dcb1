"""Pages of our own large files out of the page cache, where all of it cannot be dropped: in a container.

What reads a control group's use (vLLM on CPUs does) counts the pages of wheels and models that were copied as taken.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

LARGE = 1 << 20
"""Bytes from which on a file is worth it."""
PARTS = ("wheels", "store", "models", "releases")
"""Of the suite's folder."""


def forget(root: Path) -> int:
    """Have the kernel forget the pages of the large files in the suite's folder; return how many files it was asked of.

    Pages that somebody maps stay (posix_fadvise(2), POSIX_FADV_DONTNEED).
    """
    count = 0
    for path in _large(root):
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:  # it went away, or is none of a user's files
            continue
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            count += 1
        finally:
            os.close(file)
    return count


def _large(root: Path) -> Iterator[Path]:
    for part in PARTS:
        for folder, _, names in os.walk(root / part):
            for name in names:
                path = Path(folder, name)
                try:
                    if path.lstat().st_size >= LARGE:
                        yield path
                except OSError:
                    continue
