"""The two machines of a GPU host, and vLLM on them as units, in every way that is measured.

The standard library alone: it runs on the host as root, beside machines.sh.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PYTHON = "/opt/torch/.venv/bin/python3"
SITE = "/opt/site"
MODEL = "/opt/model"
CLIENT = "/opt/client.py"
NAME = "qwen2.5-32b"
A, B = "gx10-beee", "gx10-c6fb"
MANAGEMENT = {A: "192.168.34.100", B: "192.168.34.101"}
FABRIC = {A: "172.16.100.1", B: "172.16.100.2"}
VLLM = (PYTHON, "-m", "vllm.entrypoints.cli.main")
RAY = (PYTHON, "-m", "ray.scripts.scripts")
GUIDE = ("--gpu-memory-utilization", "0.80", "--max-model-len", "4096")
MULTI = ("--nnodes", "2", "--master-addr", FABRIC[A], "--master-port", "29501")
VLLM_UNIT, RAY_UNIT, BALANCE_UNIT = UNITS = ("bench-vllm", "bench-ray", "bench-balance")
MACHINES = Path("/opt/machines")
# the ranks of a machine, by their own titles, out of the units' control groups
KILL_RANK = """
for p in $(cat /sys/fs/cgroup/system.slice/*.service/cgroup.procs); do
    [ -e /proc/$p/cmdline ] || continue  # it has ended meanwhile
    title=$(tr '\\0' ' ' < /proc/$p/cmdline)
    case $title in VLLM::Worker*|ray::RayWorker*) kill -KILL $p; echo $p $title;; esac
done
"""
READY = 420
"""Seconds until the first token must have come."""

ENVIRONMENT = {
    "PYTHONPATH": SITE,
    "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64",
    "CUDA_HOME": "/usr/local/cuda",
    "PATH": "/usr/local/cuda/bin:/usr/local/nvidia/bin:/usr/local/bin:/usr/bin:/bin",
    "CUDA_VISIBLE_DEVICES": "0",
    "NCCL_SOCKET_IFNAME": "fab0",
    "GLOO_SOCKET_IFNAME": "fab0",
    "NCCL_IB_DISABLE": "1",
    # a host whose cards are shared with others: multicast over NVLink stays off
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
}


@dataclass(frozen=True)
class Setting:
    """How vLLM is started on each machine; ``url`` is what the client asks, on the first machine."""

    name: str
    flags: tuple[str, ...]
    parallel: tuple[str, ...] = ("--pipeline-parallel-size", "2")
    executor: str = "mp"
    replicas: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    more: bool = False
    """Whether to see, when its results are kept, where the time goes, and what the loss of a rank does."""
    tests: tuple[str, ...] = ("single", "low", "short", "long")

    @property
    def url(self) -> str:
        """The address that the client asks."""
        return f"http://{MANAGEMENT[A]}:{9000 if self.replicas else 8000}"


SOCKETS = {"NCCL_SOCKET_NTHREADS": "4", "NCCL_NSOCKS_PERTHREAD": "4"}
"""More threads for NCCL over TCP: one stream is bound by one core."""

SETTINGS = (
    Setting("guide", ("--enforce-eager", *GUIDE), executor="ray", more=True),
    Setting("mp-graphs", GUIDE, more=True),
    Setting("replicas-graphs", GUIDE, parallel=(), replicas=True),
    Setting("mp-graphs-small-steps", (*GUIDE, "--max-num-batched-tokens", "2048"), environment=SOCKETS),
    Setting("ray-graphs", GUIDE, executor="ray"),
    Setting("tp-graphs", GUIDE, parallel=("--tensor-parallel-size", "2"), tests=("single", "short", "long")),
    Setting("mp-piecewise", (*GUIDE, "--compilation-config", '{"cudagraph_mode":"PIECEWISE"}')),
)


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def ssh(node: str, script: str, *, root: bool = False, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a shell script on a machine."""
    argv = ["ssh", "-i", "/root/k", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    argv += ["-o", "LogLevel=ERROR", f"gx10@{MANAGEMENT[node]}", f"{'sudo ' * root}sh -c {shlex.quote(script)}"]
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 124, "", "timed out")


def environment(node: str, more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of every process on a machine."""
    return {**ENVIRONMENT, "VLLM_HOST_IP": FABRIC[node], "HOME": "/home/gx10", **more}


def start(unit: str, node: str, argv: Sequence[str], more: Mapping[str, str]) -> None:
    """Start a unit on a machine, as the suite would; its output goes to a log named after it."""
    words = ["systemd-run", f"--unit={unit}", "--uid=gx10", "--quiet", "--property=LimitNOFILE=65536"]
    words += ["--property=KillMode=control-group", "--property=TimeoutStopSec=20", "--property=StandardError=inherit"]
    words += [f"--property=StandardOutput=truncate:/home/gx10/{unit}.log", "--working-directory=/home/gx10"]
    words += [f"--setenv={key}={value}" for key, value in environment(node, more).items()]
    done = ssh(node, shlex.join([*words, *argv]), root=True)
    if done.returncode:
        raise RuntimeError(f"{unit} on {node}: {done.stdout[-800:]} {done.stderr[-800:]}")


def log_of(node: str, unit: str) -> str:
    """Read a unit's log on a machine."""
    path = MACHINES / node / f"root/home/gx10/{unit}.log"
    return path.read_text(errors="replace") if path.exists() else ""


def runs(node: str, unit: str) -> bool:
    """Whether a unit runs on a machine."""
    return ssh(node, f"systemctl is-active --quiet {unit}").returncode == 0


def ray_start(node: str, more: Mapping[str, str]) -> None:
    """Start Ray on a machine; its environment is that of the workers."""
    where = ["--head", "--port=6379", "--include-dashboard=false"] if node == A else [f"--address={FABRIC[A]}:6379"]
    argv = [*RAY, "start", "--block", *where, f"--node-ip-address={FABRIC[node]}", "--num-gpus=1", "--num-cpus=8"]
    start(RAY_UNIT, node, [*argv, "--object-store-memory=1073741824", "--disable-usage-stats"], more)


def begin(setting: Setting) -> None:
    """Start everything of a setting."""
    serve = (*VLLM, "serve", MODEL, "--served-model-name", NAME, "--load-format", "dummy", *setting.flags)
    serve += setting.parallel
    more, address = setting.environment, ("--host", MANAGEMENT[A], "--port", "8000")
    if setting.replicas:
        for node in (A, B):
            start(VLLM_UNIT, node, (*serve, "--host", MANAGEMENT[node], "--port", "8000"), more)
        backs = [f"{MANAGEMENT[node]}:8000" for node in (A, B)]
        start(BALANCE_UNIT, A, (PYTHON, CLIENT, "balance", "9000", *backs), {})
    elif setting.executor == "ray":
        ray_start(A, more)
        time.sleep(8)  # the worker looks for the head's store
        ray_start(B, more)
        time.sleep(8)
        tell = {**more, "RAY_ADDRESS": f"{FABRIC[A]}:6379"}
        start(VLLM_UNIT, A, (*serve, "--distributed-executor-backend", "ray", *address), tell)
    else:
        mp = ("--distributed-executor-backend", "mp", *MULTI)
        start(VLLM_UNIT, B, (*serve, *mp, "--node-rank", "1", "--headless"), more)
        start(VLLM_UNIT, A, (*serve, *mp, "--node-rank", "0", *address), more)


def token(url: str, timeout: float = 60) -> bool:
    """Whether a token comes."""
    body = json.dumps({"model": NAME, "prompt": "hello", "max_tokens": 1}).encode()
    request = urllib.request.Request(  # noqa: S310
        f"{url}/v1/completions", body, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply:  # noqa: S310
            return bool(json.load(reply)["usage"]["completion_tokens"])
    except (OSError, ValueError, KeyError):
        return False


def wait_ready(setting: Setting) -> float:
    """Wait for a token through every rank; return the seconds. Raises RuntimeError with the log's end."""
    began = time.monotonic()
    urls = [f"http://{MANAGEMENT[node]}:8000" for node in (A, B)] if setting.replicas else [setting.url]
    while time.monotonic() - began < READY:
        if all(token(url) for url in urls):
            return time.monotonic() - began
        if not runs(A, VLLM_UNIT):
            break
        time.sleep(1)
    raise RuntimeError("no token came:\n" + log_of(A, VLLM_UNIT)[-6000:] + "\n---- B\n" + log_of(B, VLLM_UNIT)[-3000:])


def stop() -> dict[str, Any]:
    """End everything: first SIGTERM to vLLM alone; return what the cards still held then, and at the end."""
    began = time.monotonic()
    for node in (A, B):
        ssh(node, f"systemctl kill --signal=TERM {VLLM_UNIT}", root=True)
    time.sleep(4)
    after = {"4 s after SIGTERM": gpu_memory()}
    for node in (A, B):
        ssh(node, f"systemctl stop {' '.join(UNITS)}; systemctl reset-failed {' '.join(UNITS)}", root=True, timeout=90)
    while sum(gpu_memory()) > 4000 and time.monotonic() - began < 60:
        time.sleep(1)
    after["at the end"] = gpu_memory()
    return {"seconds": round(time.monotonic() - began, 1), "memory_mib": after}


def gpu_memory() -> list[int]:
    """Return MiB in use on each card."""
    argv = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    return [int(line) for line in done.stdout.split() if line.isdecimal()]
