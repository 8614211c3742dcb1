"""Settings of vLLM on two machines with one GPU each, measured one after the other, without the suite.

Runs as root on the host of both machines with the standard library (README.md beside it says how). Everything that a
setting gave is written as soon as it is there; a setting that fails is noted, and the next one begins.

    drive.py OUT --seconds N     all settings in that time
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.machines import (
    CLIENT,
    KILL_RANK,
    MANAGEMENT,
    PYTHON,
    RAY_UNIT,
    SETTINGS,
    SITE,
    UNITS,
    VLLM_UNIT,
    A,
    B,
    Setting,
    begin,
    environment,
    gpu_memory,
    log_of,
    say,
    ssh,
    stop,
    token,
    wait_ready,
)


@contextlib.contextmanager
def sampled(into: list[dict[str, Any]]) -> Iterator[None]:
    """Sample the cards' memory and use once a second."""
    ended = threading.Event()

    def take() -> None:
        argv = ["nvidia-smi", "--query-gpu=memory.used,utilization.gpu,power.draw", "--format=csv,noheader,nounits"]
        while not ended.wait(1):
            done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
            into.append({"at": round(time.time(), 1), "cards": done.stdout.strip().splitlines()})

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(40)


def measure(setting: Setting, repeats: int) -> str:
    """Run the client on the first machine; return what it printed, a JSON line for each run."""
    argv = ["env", *(f"{key}={value}" for key, value in environment(A, {}).items()), PYTHON, CLIENT, "bench"]
    argv += [setting.url, "/home/gx10/bench", str(repeats), "--tests", ",".join(setting.tests)]
    done = ssh(A, shlex.join(argv), timeout=540)
    if done.returncode:
        raise RuntimeError(f"the client ended with {done.returncode}: {done.stdout[-500:]} {done.stderr[-3000:]}")
    return done.stdout


def where_time_goes(setting: Setting, folder: Path) -> None:
    """Sample the stacks of every process of vLLM while the third test runs once more."""
    thread = threading.Thread(target=lambda: measure(Setting("x", (), tests=("long",)), 1), daemon=True)
    thread.start()
    time.sleep(20)
    for path in sorted(Path("/proc").glob("[0-9]*/cmdline")):
        with contextlib.suppress(OSError):
            name = path.read_text(errors="replace").replace("\0", " ").strip()[:40]
            if name.startswith(("VLLM::", "ray::RayWorker")):
                stacks(path.parent.name, name, folder / f"{setting.name}.{path.parent.name}.stacks.txt")
    thread.join(90)


def stacks(pid: str, name: str, target: Path) -> None:
    """Sample the stacks of one process for two seconds."""
    argv = [f"{SITE}/bin/py-spy", "record", "-p", pid, "-d", "2", "-r", "50", "-f", "raw", "-o", str(target)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    say(f"py-spy {pid} {name}: {done.returncode} {done.stderr.strip()[-120:]}")


def one(setting: Setting, out: Path, given: argparse.Namespace) -> None:
    """Start and measure one setting and write what came; then see where its time goes, and what a lost rank does."""
    result: dict[str, Any] = {"setting": setting.name, "flags": setting.flags, "parallel": setting.parallel}
    result |= {"executor": setting.executor, "replicas": setting.replicas, "environment": dict(setting.environment)}
    samples: list[dict[str, Any]] = []
    try:
        with sampled(samples):
            begin(setting)
            result["ready_seconds"] = round(wait_ready(setting), 1)
            say(f"{setting.name}: ready in {result['ready_seconds']} s")
            result["runs"] = [
                json.loads(line) for line in measure(setting, given.repeats).splitlines() if line[:1] == "{"
            ]
        for run in result["runs"]:
            say(
                f"{setting.name} {run['test']}: {run['output_throughput']:.1f} tok/s, TPOT {run['mean_tpot_ms']:.1f} ms"
            )
    except (RuntimeError, subprocess.TimeoutExpired, OSError, KeyError, ValueError) as error:
        result["error"] = str(error)
        say(f"{setting.name}: {str(error)[-1500:]}")
    result["samples"] = samples
    result["logs"] = {f"{node} {unit}": log_of(node, unit)[-200_000:] for node in (A, B) for unit in UNITS}
    (out / f"{setting.name}.json").write_text(json.dumps(result, indent=1))
    if "runs" in result and setting.more and not given.plain:
        attempt("stacks", lambda: where_time_goes(setting, out))
        attempt("faults", lambda: faults(setting, out))


def faults(setting: Setting, out: Path) -> None:
    """Kill the second machine's rank; see what the other card still holds, and what the API says."""
    table: list[dict[str, Any]] = []

    def look(what: str) -> None:
        row = {"what": what, "memory_mib": gpu_memory(), "health": health(), "at": round(time.time(), 1)}
        table.append(row)
        say(f"fault: {row}")
        (out / f"faults-{setting.name}.json").write_text(json.dumps(table, indent=1))

    look("before")
    killed = ssh(B, KILL_RANK, root=True)
    look(f"worker on {B} killed with SIGKILL: {killed.stdout.strip()[:300]}")
    for seconds in (5, 10):
        time.sleep(seconds)
        look(f"{seconds} s later")
    look(f"a completion is answered: {token(f'http://{MANAGEMENT[A]}:8000', timeout=20)}")
    for unit in (VLLM_UNIT, RAY_UNIT):
        for node in (A, B):
            ssh(node, f"systemctl stop {unit}", root=True, timeout=90)
        look(f"{unit} stopped on both")


def health() -> str:
    """Return what /health answers."""
    try:
        with urllib.request.urlopen(f"http://{MANAGEMENT[A]}:8000/health", timeout=5) as reply:
            return str(reply.status)
    except urllib.error.HTTPError as error:
        return str(error.code)
    except OSError as error:
        return f"{type(error).__name__}: {error}"[:100]


def facts(out: Path, probes: Path) -> None:
    """Keep what the suite's own probe sees on both machines, and the GPU facts that nvidia-smi and CUDA give."""
    for path in sorted(probes.glob("probe-*.json")):
        node = {"probe-a.json": A, "probe-b.json": B}[path.name]
        done = ssh(node, shlex.join(json.loads(path.read_text())), timeout=90)
        (out / f"facts-{node}.json").write_text(done.stdout or done.stderr)
    asked = {
        "nvidia-smi": "nvidia-smi",
        "query-gpu": "nvidia-smi --query-gpu=name,compute_cap,driver_version --format=csv,noheader",
        "topology": "nvidia-smi topo -m",
        "module": "cat /proc/driver/nvidia/version",
        "nvcc": "/usr/local/cuda/bin/nvcc --version; /usr/local/cuda/bin/nvcc --list-gpu-code",
        "ptxas": "/usr/local/cuda/bin/ptxas --help",
        "cpu": "lscpu; free -b; uname -a; cat /etc/os-release",
    }
    said = {
        name: subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False).stdout
        for name, script in asked.items()
    }
    (out / "host-facts.json").write_text(json.dumps(said, indent=1))


def probe(out: Path, sources: Path) -> None:
    """Build the probe's two libraries as its CMakeLists.txt does, and measure memory and both cards."""
    package = sources / "sparkstack_probe"
    flags = ["-O3", "-std=c++17", "-fvisibility=hidden", "-fno-tree-loop-distribute-patterns"]
    argv = ["g++", *flags, "-shared", "-fPIC", "-pthread", str(sources / "src/memory.cpp"), "-o"]
    subprocess.run([*argv, str(package / "libprobe_memory.so")], check=True, timeout=120)
    argv = ["/usr/local/cuda/bin/nvcc", "-O3", "-std=c++17", "-arch=native", "-shared", "-Xcompiler", "-fPIC"]
    argv += ["-cudart", "static", str(sources / "src/device.cu"), "-o", str(package / "libprobe_device.so")]
    subprocess.run(argv, check=True, timeout=180)
    done = subprocess.run(
        [PYTHON, "-m", "sparkstack_probe", "--size", "1GiB"],
        cwd=sources,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64"},
    )
    (out / "probe.json").write_text(done.stdout or done.stderr)
    say(f"probe: {done.stdout[:1500]} {done.stderr[-500:]}")


def host(given: argparse.Namespace) -> None:
    """Measure all settings until the time is up."""
    out, began = Path(given.out), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    attempt("probe", lambda: probe(out, Path(given.sources)))
    while any(ssh(node, "true").returncode for node in (A, B)) and time.monotonic() - began < 120:
        time.sleep(1)  # they boot
    attempt("facts", lambda: facts(out, Path(given.probes)))
    wanted = [setting for setting in SETTINGS if not given.only or setting.name in given.only.split(",")]
    for setting in wanted:
        left = given.seconds - (time.monotonic() - began)
        if left < given.least:
            say(f"{left:.0f} s are left: {setting.name} and what follows are not run")
            break
        say(f"{setting.name}: begins, {left:.0f} s are left")
        one(setting, out, given)
        (out / f"{setting.name}.stop.json").write_text(json.dumps(stop(), indent=1))
    (out / "done").write_text("done\n")
    say("done")


def attempt(what: str, action: Callable[[], object]) -> None:
    """Do something that the rest does not depend on."""
    try:
        action()
    except (OSError, ValueError, KeyError, RuntimeError, subprocess.SubprocessError) as error:
        say(f"{what}: {type(error).__name__}: {error}")


def words() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--seconds", type=float, default=1300)
    parser.add_argument("--least", type=float, default=200, help="seconds that a setting needs at least")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", default="", help="settings by name, separated by commas")
    parser.add_argument("--plain", action="store_true", help="neither stacks nor faults")
    parser.add_argument("--probes", default="/opt/probes")
    parser.add_argument("--sources", default="/opt/probe")
    return parser.parse_args()


if __name__ == "__main__":
    host(words())
