"""`invoke deploy` with nothing to do, against the same state declared in pyinfra and in Ansible.

    .venv/bin/python -m benchmarks.noop_deploy [--cluster FILE]

README.md beside this file says what is compared with what.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import pair
from benchmarks.declared import PINS, Declared, declare
from benchmarks.machine import load, machine
from core.config import DIST, WORK, Cluster, load_cluster
from core.process import Completed
from wheels.manifest import MANIFEST, Manifest

RESULTS = Path(__file__).parent / "results"
OURS = "invoke deploy"
UNSURE = "pyinfra, wheels by rsync"
"""Does not know that there is nothing to do; measured beside the others, and held to no target."""
MOST_SECONDS = 3.0
"""What ours may take, in the median."""
LEAST_RATIO = 3.0
"""How many times as long the others take at least, in the median."""


@dataclass(frozen=True)
class Run:
    """One run: seconds of wall clock; ``load`` is the machine's before it began."""

    kind: str
    seconds: float
    load: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 0 when time and ratios are as promised."""
    wish = _arguments(argv)
    cluster = load_cluster(wish.cluster)
    pair.ready(cluster)
    pair.invoke(cluster, "deploy")
    others = _declared(cluster)
    kinds: dict[str, Callable[[], Completed]] = {
        OURS: lambda: pair.invoke(cluster, "deploy"),
        "pyinfra": lambda: others.pyinfra("sync.py"),
        UNSURE: lambda: others.pyinfra("rsync.py"),
        "ansible-playbook": others.ansible,
    }
    pair.say("once each, not counted")
    said = {kind: run().tail(3) for kind, run in kinds.items()}
    runs = [_timed(kind, kinds[kind]) for number in range(wish.rounds) for kind in pair.turned(list(kinds), number)]
    result = _result(runs, said)
    wish.output.parent.mkdir(parents=True, exist_ok=True)
    wish.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(result))
    return 0 if result["as_promised"] else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.noop_deploy", description=__doc__)
    parser.add_argument("--cluster", default="local", help="which machines: one of config/clusters or a file (local)")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each that are timed (7)")
    parser.add_argument("--output", type=Path, default=RESULTS / "noop_deploy.json", help="where the result goes")
    return parser.parse_args(argv)


def _declared(cluster: Cluster) -> Declared:
    path = max((DIST / cluster.stack).glob(f"*/{MANIFEST}"), key=lambda found: found.stat().st_mtime)
    manifest = Manifest.model_validate_json(path.read_bytes())
    return declare(cluster, manifest, path.parent, WORK / "benchmark" / "noop")


def _timed(kind: str, run: Callable[[], Completed]) -> Run:
    before, start = load(), time.monotonic()
    run()
    seconds = time.monotonic() - start
    pair.say(f"  {kind}: {seconds:.2f} s")
    return Run(kind, round(seconds, 3), before)


def _result(runs: Sequence[Run], said: Mapping[str, str]) -> dict[str, Any]:
    seconds = {kind: [run.seconds for run in runs if run.kind == kind] for kind in said}
    ratios = {
        kind: pair.spread(theirs / ours for theirs, ours in zip(taken, seconds[OURS], strict=True))
        for kind, taken in seconds.items()
        if kind != OURS
    }
    fast = said[OURS] == "nothing to do" and statistics.median(seconds[OURS]) <= MOST_SECONDS
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "compared": list(PINS),
        "machine": machine(),
        "seconds": {kind: pair.spread(taken) for kind, taken in seconds.items()},
        "ratios": ratios,
        "as_promised": fast and all(ratio["median"] >= LEAST_RATIO for kind, ratio in ratios.items() if kind != UNSURE),
        "said": dict(said),
        "runs": [asdict(run) for run in runs],
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the result as Markdown."""
    lines = ["| nothing to do | seconds | times ours |", "|---|---|---|"]
    for kind, taken in result["seconds"].items():
        ratio = pair.in_words(result["ratios"][kind]) if kind in result["ratios"] else "1"
        lines.append(f"| {kind} | {pair.in_words(taken)} | {ratio} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
