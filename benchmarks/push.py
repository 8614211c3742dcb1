"""What a push of wheels to two nodes takes beside `rsync -a`: over a shaped uplink of 1 Gbit/s, and over a free one.

    .venv/bin/python -m benchmarks.push --cluster tests/clusters/lab-tests.toml

README.md beside this file says what is compared with what. As root: it makes local machines and shapes their network.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shlex
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks import pair
from benchmarks.machine import load, machine
from core.apply import Context, Journal, apply
from core.config import WORK, Cluster, load_cluster
from core.facts import gather
from core.host import BULK
from core.plan import Talk, make_plan
from core.process import run
from core.question import Question
from core.remote import Hosts
from core.root import root_steps
from core.screen import Screen
from core.sshhost import SshHost
from deploy.push import push_steps
from lab.network import shaped as slowed
from lab.place import bridge
from wheels.manifest import Manifest, Wheel
from wheels.target import Target

RESULTS = Path(__file__).parent / "results"
FOLDER = WORK / "benchmark" / "push"
SIZES = (400, 200, 100, 100, 80, 50, 30, 20, 10, 10)
"""Megabytes of the wheels: a large one and smaller ones, 1 GB in all."""
GIGABIT = 1e9
LINE = 0.9
"""The share of the line rate that a push to both has to reach, counted as one copy."""
FASTER = 1.8
MEMORY = 150
BOTH = "rsync to both"
FASTEST = f"times as fast as {BOTH}"
"""What the targets are about: `rsync -a` as everybody types it."""
EMPTY = 'cd "$1" && rm -rf store wheels rsync && mkdir rsync && sync'


@dataclass(frozen=True)
class Bench:
    """The machines, and what is pushed to them."""

    cluster: Cluster
    manifest: Manifest

    def ours(self, way: str) -> float:
        """Push to both; return the seconds from the plan to the last file that is on the disk of both."""
        cluster = self.cluster.model_copy(update={"push": way})
        with Hosts(cluster) as hosts:
            facts = gather(hosts, cluster, Question()).parsed()
            plan = make_plan("push", [("push", push_steps(cluster, facts, self.manifest, FOLDER))])
            began = perf_counter()
            assert all(isinstance(step, Talk) and step.size == self.manifest.size for step in plan.steps)
            apply(plan, Context(hosts, Screen(), Journal("benchmark")))
            return perf_counter() - began

    def theirs(self, nodes: int, ssh: Sequence[str] = ()) -> float:
        """Copy to so many nodes, side by side, with `rsync -a`; return the seconds until the last one has ended.

        ssh chooses the cipher by itself unless its options say which.
        """
        with Hosts(self.cluster) as hosts, ThreadPoolExecutor(nodes) as pool:
            argvs = [self._rsync(hosts, number, ssh) for number in range(nodes)]
            began = perf_counter()
            list(pool.map(run, argvs))
            return perf_counter() - began

    def _rsync(self, hosts: Hosts, number: int, ssh: Sequence[str]) -> list[str]:
        node = self.cluster.nodes[number]
        host = hosts[node.name]
        assert isinstance(host, SshHost)
        target = f"{self.cluster.user}@{node.management}:{self.cluster.root}/rsync/"
        return ["rsync", "-a", "-e", shlex.join([*host.ssh_argv(), *ssh]), f"{FOLDER}/", target]

    def prepare(self) -> None:
        """Have the suite's folder on both nodes."""
        with Hosts(self.cluster) as hosts:
            facts = gather(hosts, self.cluster, Question()).parsed()
            steps = [step for seen in facts.values() for step in root_steps(self.cluster, seen)]
            apply(make_plan("prepare", [("prepare", steps)]), Context(hosts, Screen(), Journal("benchmark")))

    def empty(self) -> None:
        """Have both nodes without a wheel, and nothing left to write."""
        with Hosts(self.cluster) as hosts:
            for host in hosts:
                host.run(("sh", "-c", EMPTY, "sh", str(self.cluster.root)))
        os.sync()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 0 when all is as promised."""
    wish = _arguments(argv)
    cluster = load_cluster(wish.cluster)
    pair.up(cluster)
    bench = Bench(cluster, _wheels())
    bench.prepare()
    result: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "load_before": load(),
        "bytes": bench.manifest.size,
        "shaped": _shaped(bench, wish.rounds),
        "unshaped": _unshaped(bench, wish.rounds),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6,
    }
    bench.empty()
    result["as_promised"] = _as_promised(result)
    wish.output.parent.mkdir(parents=True, exist_ok=True)
    wish.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(result))
    return 0 if result["as_promised"] else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.push", description=__doc__)
    parser.add_argument("--cluster", default="tests/clusters/lab-tests.toml", help="local machines to push to")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is measured (3)")
    parser.add_argument("--output", type=Path, default=RESULTS / "push.json", help="where the result goes")
    return parser.parse_args(argv)


def _wheels() -> Manifest:
    """Make files of random bytes, once."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    listed = []
    for number, size in enumerate(SIZES):
        path = FOLDER / f"benchmark_{number}-1.0-py3-none-any.whl"
        if not path.exists():
            with path.open("wb") as file:
                for _ in range(size):
                    file.write(os.urandom(10**6))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        name = f"benchmark-{number}"
        listed.append(
            Wheel(name=name, version="1.0", filename=path.name, sha256=digest, size=size * 10**6, origin="index")
        )
    target = Target(architecture="x86_64", python=(3, 11))
    return Manifest(stack="cpu", target=target, lock_sha256="b" * 64, index_lock="b" * 64, wheels=tuple(listed))


def _shaped(bench: Bench, rounds: int) -> dict[str, Any]:
    with slowed(bridge(bench.cluster, "management"), "1gbit"):  # Ethernet's headers count
        found = _in_turn(
            bench,
            rounds,
            {
                "ours": lambda: bench.ours("relay"),
                BOTH: lambda: bench.theirs(2),
                "rsync to one": lambda: bench.theirs(1),
            },
        )
    copy = bench.manifest.size * 8 / GIGABIT
    shares = [copy / seconds for seconds in found["ours"]]
    return {**_told(found), "one copy at line rate": round(copy, 3), "share of line rate": pair.spread(shares)}


def _unshaped(bench: Bench, rounds: int) -> dict[str, Any]:
    works = {
        "ours": lambda: bench.ours("auto"),
        BOTH: lambda: bench.theirs(2),
        f"{BOTH}, our cipher": lambda: bench.theirs(2, BULK),
    }
    return _told(_in_turn(bench, rounds, works))


def _in_turn(bench: Bench, rounds: int, works: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Measure each once a round; another one begins each round. One round before is not counted."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name in pair.turned(list(works), number):
            bench.empty()
            seconds = works[name]()
            pair.say(f"round {number}: {name}: {seconds:.2f} s (load {load()})")
            if number:
                found[name].append(seconds)
    return found


def _told(found: dict[str, list[float]]) -> dict[str, Any]:
    """Return spreads, how many times as fast as the others ours is, and each run."""
    faster = {
        f"times as fast as {name}": pair.spread(b / a for a, b in zip(found["ours"], seconds, strict=True))
        for name, seconds in found.items()
        if name.startswith(BOTH)
    }
    runs = {name: [round(one, 3) for one in seconds] for name, seconds in found.items()}
    return {**{name: pair.spread(seconds) for name, seconds in found.items()}, **faster, "runs": runs}


def _as_promised(result: dict[str, Any]) -> bool:
    shaped, unshaped = result["shaped"], result["unshaped"]
    return bool(
        shaped["share of line rate"]["median"] >= LINE
        and shaped[FASTEST]["median"] >= FASTER
        and unshaped[FASTEST]["median"] >= 1
        and result["peak_memory_mb"] <= MEMORY
    )


def table(result: dict[str, Any]) -> str:
    """Return the result for people."""
    lines = []
    for kind in ("shaped", "unshaped"):
        for name, one in result[kind].items():
            if name == "runs":
                continue
            row = pair.in_words(one) if isinstance(one, dict) else str(one)
            lines.append(f"{kind:9} {name:42} {row}")
    lines.append(f"memory    {result['peak_memory_mb']} MB")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
