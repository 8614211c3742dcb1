"""`invoke serve` to the first token, against `ray start` and `vllm serve` as a person types them, in the same run.

    .venv/bin/python -m benchmarks.serve_start [--cluster FILE] [--rounds N]

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

from benchmarks import pair
from benchmarks.machine import load, machine
from core.choice import stack_of
from core.config import Cluster, Node, load_cluster, load_profile
from core.errors import NotServing
from core.facts import gather
from core.question import Question
from core.remote import Hosts
from deploy.environment import interpreter
from serve.cluster import Service
from serve.commands import environment_of, vllm_argv

RESULTS = Path(__file__).parent / "results"
OURS, BARE = "invoke serve", "by hand"
MOST = 1.10
"""How many times as long as the bare start ours may take, in the median."""
PATIENCE = 600
"""Seconds that a start may take."""

_ASK = """
import json, sys, time, urllib.request
url, model, patience = sys.argv[1], sys.argv[2], float(sys.argv[3])
body = json.dumps({"model": model, "prompt": "hello", "max_tokens": 1}).encode()
request = urllib.request.Request(url + "/completions", body, {"Content-Type": "application/json"})
deadline = time.monotonic() + patience
while time.monotonic() < deadline:
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            sys.exit(0 if json.load(reply)["usage"]["completion_tokens"] else 1)
    except OSError:
        time.sleep(0.5)
sys.exit("no token")
"""


@dataclass(frozen=True)
class Run:
    """One start: seconds to the first token and until the command ended; ``load`` is this host's before it began."""

    kind: str
    seconds: float
    ended: float
    load: float


class Bare:
    """What a person types on the nodes: the same commands and environment, without anything that looks after them."""

    def __init__(self, service: Service, hosts: Hosts) -> None:
        cluster = service.cluster
        facts = gather(hosts, cluster, Question()).parsed()
        self._service, self._hosts = service, hosts
        self._environments = {
            node.name: {
                key: value
                for key, value in environment_of(service, node, facts[node.name]).items()
                if key != "RAY_AUTH_MODE"  # who types has no token
            }
            for node in cluster.nodes
        }

    def start(self) -> tuple[float, float]:
        """Start Ray on each node, one after the other as a person does, then vLLM; return when the first token came."""
        cluster, profile = self._service.cluster, self._service.profile
        ray = interpreter(cluster, self._service.release).parent / "ray"
        sizes = (f"--num-cpus={profile.ray_cpus}", "--num-gpus=1", f"--object-store-memory={profile.object_store}")
        quiet = ("--include-dashboard=false", "--disable-usage-stats")
        for node in cluster.nodes:
            own = f"--node-ip-address={node.fabric}"
            head = ("--head", own, f"--port={cluster.ray_port}", *quiet)
            joined = (f"--address={cluster.head.fabric}:{cluster.ray_port}", own, "--disable-usage-stats")
            self._run(node, (str(ray), "start", *(head if node == cluster.head else joined), *sizes))
        words = [word for word in vllm_argv(self._service) if word != "--disable-uvicorn-access-log"]
        guard = words.index("--middleware")
        vllm = (*words[:guard], *words[guard + 2 :])
        self._run(cluster.head, ("sh", "-c", 'nohup "$@" > /tmp/bare.log 2>&1 &', "sh", *vllm))
        url, name = cluster.engine_url, profile.served_names[0]
        done = self._run(cluster.head, ("python3", "-c", _ASK, url, name, str(PATIENCE)), check=False)
        if done:
            raise NotServing("the bare start gave no token", next_move="read /tmp/bare.log on the head")
        return time.time(), time.time()

    def end(self) -> None:
        """End all of it, as the guide does."""
        cluster = self._service.cluster
        ray = interpreter(cluster, self._service.release).parent / "ray"
        for node in cluster.nodes:
            self._run(node, ("pkill", "-9", "-f", "bin/vllm serve|VLLM::"), check=False)
            self._run(node, (str(ray), "stop", "--force"), check=False)
        time.sleep(2)

    def _run(self, node: Node, argv: Sequence[str], *, check: bool = True) -> int:
        words = [f"{key}={value}" for key, value in self._environments[node.name].items()]
        return self._hosts[node.name].run(("env", *words, *argv), check=check, timeout=PATIENCE + 30).code


def serve(cluster: Cluster) -> tuple[float, float]:
    """Run `invoke serve`; return when the head's supervisor had seen a token through every rank, and when it ended.

    The head's clock has to be ours, as that of local machines is.
    """
    pair.invoke(cluster, "serve")
    ended = time.time()
    told = json.loads(pair.invoke(cluster, "status", "--json").out)
    return float(told["service"]["since"]), ended


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 0 when ours takes no longer than promised."""
    wish = _arguments(argv)
    cluster = load_cluster(wish.cluster)
    pair.ready(cluster)
    pair.invoke(cluster, "deploy")
    pair.invoke(cluster, "lab.model")
    with Hosts(cluster) as hosts:
        bare = Bare(_service(cluster, hosts), hosts)
        kinds: dict[str, tuple[Callable[[], tuple[float, float]], Callable[[], object]]] = {
            OURS: (lambda: serve(cluster), lambda: pair.invoke(cluster, "stop", "--drain=0")),
            BARE: (bare.start, bare.end),
        }
        pair.invoke(cluster, "stop", "--all", "--drain=0")
        pair.say("once each, not counted")
        for kind, both in kinds.items():
            _timed(kind, *both)
        runs = [_timed(kind, *kinds[kind]) for n in range(wish.rounds) for kind in pair.turned(list(kinds), n)]
    result = _result(runs)
    wish.output.parent.mkdir(parents=True, exist_ok=True)
    wish.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(result))
    return 0 if result["as_promised"] else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_start", description=__doc__)
    parser.add_argument("--cluster", default="local", help="which machines: one of config/clusters or a file (local)")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each that are timed (3)")
    parser.add_argument("--output", type=Path, default=RESULTS / "serve_start.json", help="where the result goes")
    return parser.parse_args(argv)


def _service(cluster: Cluster, hosts: Hosts) -> Service:
    release = gather(hosts, cluster, Question()).parsed()[cluster.head.name].current
    return Service(cluster, stack_of(cluster), load_profile(cluster.profile), release or "")


def _timed(kind: str, start: Callable[[], tuple[float, float]], end: Callable[[], object]) -> Run:
    before, began = load(), time.time()
    try:
        token, ended = start()
    finally:
        end()
    pair.say(f"  {kind}: {token - began:.1f} s, ended after {ended - began:.1f} s")
    return Run(kind, round(token - began, 2), round(ended - began, 2), before)


def _result(runs: Sequence[Run]) -> dict[str, Any]:
    seconds = {kind: [run.seconds for run in runs if run.kind == kind] for kind in (OURS, BARE)}
    ratio = pair.spread(ours / bare for ours, bare in zip(seconds[OURS], seconds[BARE], strict=True))
    ended = pair.spread(run.ended for run in runs if run.kind == OURS)
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "seconds": {kind: pair.spread(taken) for kind, taken in seconds.items()},
        "ended": ended,
        "ratio": ratio,
        "as_promised": ratio["median"] <= MOST,
        "runs": [asdict(run) for run in runs],
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the result as Markdown."""
    lines = ["| to the first token | seconds |", "|---|---|"]
    lines += [f"| {kind} | {pair.in_words(taken, 1)} |" for kind, taken in result["seconds"].items()]
    lines.append(f"| the command has ended | {pair.in_words(result['ended'], 1)} |")
    lines.append(f"| ours to bare | {pair.in_words(result['ratio'])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
