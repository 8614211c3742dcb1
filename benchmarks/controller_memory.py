"""Memory of `invoke deploy` on the controller while it pushes all wheels of the stack to both machines.

    .venv/bin/python -m benchmarks.controller_memory [--cluster FILE]

README.md beside this file says what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import pair
from benchmarks.machine import machine
from core.config import Cluster, load_cluster
from core.remote import Hosts

RESULTS = Path(__file__).parent / "results"
MOST = 150
"""MB that all processes of the command may take together."""
INTERVAL = 0.1
"""Seconds between two looks."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 0 when the memory is as promised."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.controller_memory", description=__doc__)
    parser.add_argument("--cluster", default="local", help="which machines: one of config/clusters or a file (local)")
    parser.add_argument("--output", type=Path, default=RESULTS / "controller_memory.json", help="where the result goes")
    wish = parser.parse_args(argv)
    cluster = load_cluster(wish.cluster)
    pair.ready(cluster)
    pair.invoke(cluster, "deploy")
    _forget_wheels(cluster)
    result = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine(), **_watched(cluster)}
    result["as_promised"] = bool(result["pushed"]) and result["together_mb"] <= MOST
    wish.output.parent.mkdir(parents=True, exist_ok=True)
    wish.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"python alone {result['python_mb']} MB, all processes {result['together_mb']} MB at most\n")
    return 0 if result["as_promised"] else 1


def _forget_wheels(cluster: Cluster) -> None:
    with Hosts(cluster) as hosts:
        for host in hosts:
            host.run(("rm", "-rf", str(cluster.root / "wheels"), str(cluster.root / "store")))


def _watched(cluster: Cluster) -> dict[str, Any]:
    """Deploy, and look at the memory meanwhile."""
    together = python = looks = 0
    with ThreadPoolExecutor(1) as pool:
        deployment = pool.submit(pair.invoke, cluster, "deploy")
        while wait([deployment], timeout=INTERVAL).not_done:
            taken = _memory(os.getpid())
            together = max(together, sum(taken.values()))
            python = max(python, *taken.values(), 0)
            looks += 1
        said = deployment.result().err
    pushed = re.findall(r"(?:push|take) [^,\n]*, [\d.]+ \wB", said)
    return {
        "together_mb": together // 10**6,
        "python_mb": python // 10**6,
        "looks": looks,
        "pushed": sorted(set(pushed)),
    }


def _memory(parent: int) -> Mapping[int, int]:
    """Return the bytes of every descendant (RSS): what several share counts in each."""
    found: dict[int, int] = {}
    for process in _children(parent):
        found |= {process: _resident(process), **_memory(process)}
    return found


def _children(parent: int) -> list[int]:
    text = "".join(_read(path) for path in Path(f"/proc/{parent}/task").glob("*/children"))
    return [int(word) for word in text.split()]


def _resident(process: int) -> int:
    match = re.search(r"^Rss:\s+(\d+) kB", _read(Path(f"/proc/{process}/smaps_rollup")), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return ""


if __name__ == "__main__":
    sys.exit(main())
