"""A sample a second of every node while it is measured: memory, swap, GPU memory, the fabric's bytes, the KV cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

from core.config import Cluster
from core.facts import NodeFacts
from core.host import Held
from core.parsers import record
from core.remote import Hosts
from core.units import VLLM
from serve.bench.record import Sample

INTERVAL = 1.0
"""Seconds between two samples."""
LIVE = f"/run/{VLLM}/live.json"

# Runs on a node with the system's Python until its stdin ends; reads only. A container's own limit counts where there
# is one: /proc/meminfo is the host's there.
_SAMPLER = """
import json, os, select, subprocess, sys, time
interval, interface, live = float(sys.argv[1]), sys.argv[2], sys.argv[3]
TOP = "/sys/fs/cgroup/memory"
GROUPS = (
    (TOP + ".max", TOP + ".current", TOP + ".stat", ""),
    (TOP + "/memory.limit_in_bytes", TOP + "/memory.usage_in_bytes", TOP + "/memory.stat", "total_"),
)
def read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
def table(text):
    rows = (line.replace(":", " ").split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
def memory():
    seen = table(read("/proc/meminfo"))
    total, free = seen["MemTotal"] * 1024, seen["MemAvailable"] * 1024
    for limit, usage, stat, whole in GROUPS:  # of control groups in versions 2 and 1; page cache is available
        limit, counts = read(limit).strip(), table(read(stat))
        if limit.isdecimal() and int(limit) < total:
            cache = counts.get(whole + "active_file", 0) + counts.get(whole + "inactive_file", 0)
            total, free = int(limit), max(0, int(limit) - int(read(usage) or 0) + cache)
    return {"memory_used": total - free, "memory_available": free,
            "swap_used": (seen.get("SwapTotal", 0) - seen.get("SwapFree", 0)) * 1024}
def gpu():
    argv = ["nvidia-smi", "--query-compute-apps=used_memory", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    rows = [line.strip() for line in done.stdout.splitlines()]
    return sum(int(row) for row in rows if row.isdecimal()) * 2**20 if done.returncode == 0 else None
def engine():
    try:
        found = json.loads(read(live))
        fresh = time.time() - found["at"] < 5
        return {key: found.get(key) for key in ("kv_cache", "running", "waiting")} if fresh else {}
    except (ValueError, KeyError, TypeError):
        return {}
while True:
    sent = read("/sys/class/net/%s/statistics/tx_bytes" % interface).strip() if interface else ""
    print(json.dumps({**memory(), "gpu_used": gpu(), "sent": int(sent) if sent else None, **engine()}), flush=True)
    if select.select([sys.stdin], [], [], interval)[0] and not os.read(0, 100):
        break
"""


def sampler_argv(interface: str, interval: float = INTERVAL) -> tuple[str, ...]:
    """Return the argv that prints a line of JSON each ``interval`` seconds until its stdin ends."""
    return ("python3", "-I", "-c", _SAMPLER, str(interval), interface, LIVE)


def parse(line: str, at: float) -> Sample | None:
    """Parse a line; None for one that is cut off."""
    try:
        return Sample.model_validate({**record(line), "at": round(at, 3)})
    except ValueError:
        return None


@dataclass
class Samples:
    """Samples of every node as they come, in seconds since ``began`` (monotonic)."""

    began: float = field(default_factory=monotonic)
    by_node: dict[str, list[Sample]] = field(default_factory=dict)

    def now(self) -> float:
        """Return the seconds since the beginning."""
        return monotonic() - self.began

    def take(self, node: str, held: Held) -> None:
        """Take lines until the sampler ends."""
        own = self.by_node.setdefault(node, [])
        while line := held.line():
            found = parse(line, self.now())
            if found is not None:
                own.append(found)

    def kept(self) -> dict[str, tuple[Sample, ...]]:
        """Return what has come until now."""
        return {node: tuple(own) for node, own in self.by_node.items()}


@contextmanager
def sampling(cluster: Cluster, hosts: Hosts, facts: Mapping[str, NodeFacts], samples: Samples) -> Iterator[Samples]:
    """Sample every node until the block ends. A node whose sampler breaks off is sampled up to there."""
    held: list[Held] = []
    with ThreadPoolExecutor(len(cluster.nodes)) as pool:
        try:
            taking: list[Future[None]] = []
            for node in cluster.nodes:
                interface = facts[node.name].interface_of(node.fabric)
                one = hosts[node.name].hold(sampler_argv(interface.name if interface else ""))
                held.append(one)
                taking.append(pool.submit(samples.take, node.name, one))
            yield samples
        finally:
            for one in held:
                one.close()
