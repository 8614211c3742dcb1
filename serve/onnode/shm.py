"""Shared memory that a killed rank has left in /dev/shm: nobody maps it any more, and it holds memory until removed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

FOLDER = Path("/dev/shm")  # noqa: S108 - not a temporary file: the folder that is swept
OURS = re.compile(r"(psm_|sem\.mp-|nccl-|torch_|plasma|__KMP_REGISTERED_LIB_)")
"""How the segments of Python's shared_memory, multiprocessing, NCCL, PyTorch, Ray and OpenMP are called."""


def sweep(uid: int) -> tuple[str, ...]:
    """Remove the segments of a user that no process maps; return their names."""
    found = [path for path in FOLDER.iterdir() if OURS.match(path.name)]
    # looked for after the folder was read: what comes meanwhile is not in the list, what is mapped meanwhile is here
    mapped = set(mapped_names(texts(Path("/proc").glob("[0-9]*/maps"))))
    removed = []
    for path in found:
        try:
            if path.name not in mapped and path.is_file() and path.stat().st_uid == uid:
                path.unlink()
                removed.append(path.name)
        except FileNotFoundError:
            continue
    return tuple(sorted(removed))


def mapped_names(maps: Iterable[str]) -> Iterator[str]:
    """Return the names in /dev/shm that are mapped, out of texts of /proc/PID/maps."""
    for text in maps:
        yield from re.findall(r"\s/dev/shm/(.+?)(?: \(deleted\))?$", text, re.MULTILINE)


def texts(paths: Iterable[Path]) -> Iterator[str]:
    """Return what can be read of these files; a process may end meanwhile."""
    for path in paths:
        try:
            yield path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
