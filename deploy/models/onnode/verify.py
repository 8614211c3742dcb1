"""Reads a model on this node and compares every file with the manifest; it changes nothing.

`python3 -m deploy.models.onnode.verify FOLDER`; it says at last what it has read, and the paths of what is wrong:

    {"files": 14, "bytes": 65527841891, "damaged": [], "missing": []}
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deploy.models.onnode import files
from deploy.models.onnode.files import Entry
from deploy.onnode import common
from deploy.onnode.common import Progress, say

THREADS = 4


def main(folder: Path) -> int:
    """Say what is damaged or missing; return the exit code."""
    return common.ended(lambda: _verify(folder))


def _verify(folder: Path) -> int:
    entries = files.entries_of(files.read_manifest(folder))
    found = examine(folder, entries)
    say(json.dumps({"files": len(entries), "bytes": sum(entry.size for entry in entries), **found}))
    return 1 if any(found.values()) else 0


def examine(folder: Path, entries: tuple[Entry, ...]) -> dict[str, list[str]]:
    """Return the files that are "damaged" and those that are "missing"."""
    missing = [entry.path for entry in entries if not (folder / entry.path).is_file()]
    there = [entry for entry in entries if entry.path not in missing]
    with (
        Progress(sum(entry.size for entry in there)).shown() as progress,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        good = list(pool.map(lambda entry: _is_good(folder, entry, progress), there))
    return {
        "damaged": [entry.path for entry, fits in zip(there, good, strict=True) if not fits],
        "missing": missing,
    }


def _is_good(folder: Path, entry: Entry, progress: Progress) -> bool:
    return common.digests(folder / entry.path, progress.add)["sha256"] == entry.digest


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
