"""What is left to read when a test on the machines has failed."""

from __future__ import annotations

import shutil
from pathlib import Path

from core.config import Cluster
from lab.place import Place, places
from lab.power import ssh


def keep(cluster: Cluster, folder: Path) -> tuple[Path, ...]:
    """Copy consoles, supervisor logs and the journals of machines that answer into ``folder``; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    return tuple(path for place in places(cluster) for path in _keep(place, folder))


def _keep(place: Place, folder: Path) -> list[Path]:
    sources = [source for source in (place.console, place.log) if source.exists()]
    kept = [Path(shutil.copy(source, folder / f"{place.node.name}-{source.name}")) for source in sources]
    if place.alive:
        journal = folder / f"{place.node.name}-journal.log"
        journal.write_text(ssh(place, "journalctl", "--no-pager", "--lines=5000").out, encoding="utf-8")
        kept.append(journal)
    return kept
