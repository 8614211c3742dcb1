"""A model from one machine to the other, both on tmpfs: the suite's relay against rsync over ssh.

    .venv/bin/python -m benchmarks.model_relay [--cluster FILE]

README.md beside this file says what is compared with what.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import pair, relayed
from benchmarks.machine import load, machine
from benchmarks.meter import Meter
from benchmarks.relayed import Ends
from core.config import load_cluster
from core.remote import Hosts

RESULTS = Path(__file__).parent / "results"
OURS, RSYNC, QUICK = "relay", "rsync over ssh", "rsync over ssh, aes128-gcm"
LEAST_RATE, MOST_PROCESSOR = 2.0, 1 / 3
"""Of rsync's, with ssh's own settings: what the relay promises in the median."""
GB = 10**9


@dataclass(frozen=True)
class Run:
    """One relay: seconds of wall clock, and of processors in both machines; ``load`` is the host's before it began."""

    kind: str
    seconds: float
    processor: float
    load: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 0 when rate and processor time are as promised."""
    wish = _arguments(argv)
    cluster = load_cluster(wish.cluster)
    pair.up(cluster)
    with Hosts(cluster) as hosts, relayed.laid_out(cluster, hosts, wish.size) as ends, Meter.of(cluster) as meter:
        kinds: dict[str, Callable[[], object]] = {
            OURS: ends.relay,
            RSYNC: ends.rsync,
            QUICK: lambda: ends.rsync("aes128-gcm@openssh.com"),
        }
        pair.say("once each, not counted")
        for kind, relay in kinds.items():
            _timed(kind, relay, ends, meter)
        runs = [
            _timed(kind, kinds[kind], ends, meter)
            for number in range(wish.rounds)
            for kind in pair.turned(list(kinds), number)
        ]
    result = _result(runs, wish.size)
    wish.output.parent.mkdir(parents=True, exist_ok=True)
    wish.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(result))
    return 0 if result["as_promised"] else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model_relay", description=__doc__)
    parser.add_argument("--cluster", default="local", help="which machines: one of config/clusters or a file (local)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each that are timed (5)")
    parser.add_argument("--size", type=int, default=2 * GB, help="bytes of the model (2 GB)")
    parser.add_argument("--output", type=Path, default=RESULTS / "model_relay.json", help="where the result goes")
    return parser.parse_args(argv)


def _timed(kind: str, relay: Callable[[], object], ends: Ends, meter: Meter) -> Run:
    """Relay once; what arrived is looked at and removed."""
    ends.prepare(offered=kind == OURS)
    before, used, start = load(), meter.seconds(), time.monotonic()
    relay()
    seconds, used = time.monotonic() - start, meter.seconds() - used
    ends.require_arrived()
    pair.say(f"  {kind}: {seconds:.2f} s, {used:.2f} s of processors")
    return Run(kind, round(seconds, 3), round(used, 3), before)


def _result(runs: Sequence[Run], size: int) -> dict[str, Any]:
    by_kind = {kind: [run for run in runs if run.kind == kind] for kind in (OURS, RSYNC, QUICK)}
    ratios = {
        kind: {
            "rate": pair.spread(a.seconds / b.seconds for a, b in zip(theirs, by_kind[OURS], strict=True)),
            "processor": pair.spread(b.processor / a.processor for a, b in zip(theirs, by_kind[OURS], strict=True)),
        }
        for kind, theirs in by_kind.items()
        if kind != OURS
    }
    promised = ratios[RSYNC]
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "bytes": size,
        "machine": machine(),
        "gb_per_second": {
            kind: pair.spread(size / GB / run.seconds for run in found) for kind, found in by_kind.items()
        },
        "processor_seconds_per_gb": {
            kind: pair.spread(run.processor / size * GB for run in found) for kind, found in by_kind.items()
        },
        "ratios": ratios,
        "as_promised": promised["rate"]["median"] >= LEAST_RATE and promised["processor"]["median"] <= MOST_PROCESSOR,
        "runs": [asdict(run) for run in runs],
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the result as Markdown."""
    lines = [
        "| way | GB/s | processor s per GB | relay's rate to it | relay's processor time to it |",
        "|---" * 5 + "|",
    ]
    for kind, rate in result["gb_per_second"].items():
        used = result["processor_seconds_per_gb"][kind]
        ratio = result["ratios"].get(kind)
        words = [pair.in_words(ratio[what]) for what in ("rate", "processor")] if ratio else ["1", "1"]
        lines.append(f"| {' | '.join((kind, pair.in_words(rate), pair.in_words(used), *words))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
