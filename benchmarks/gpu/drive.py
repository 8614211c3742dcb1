"""Settings of vLLM on two machines with one GPU each, measured one after the other, without the suite.

Runs as root on the host of both machines with the standard library (README.md beside it says how). Everything that a
setting gave is written as soon as it is there; a setting that fails is noted, and the next one begins.

    drive.py host OUT            all settings, then the faults
    drive.py client URL OUT N    on a machine: the tests, N times, in one process with vLLM's own benchmark
    drive.py balance PORT A B    on a machine: connections to PORT go to A and B in turn
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import shlex
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PYTHON = "/opt/torch/.venv/bin/python3"
SITE = "/opt/site"
MODEL = "/opt/model"
SELF = "/opt/drive.py"
NAME = "qwen2.5-32b"
A, B = "gx10-beee", "gx10-c6fb"
MANAGEMENT = {A: "192.168.34.100", B: "192.168.34.101"}
FABRIC = {A: "172.16.100.1", B: "172.16.100.2"}
VLLM = (PYTHON, "-m", "vllm.entrypoints.cli.main")
RAY = (PYTHON, "-m", "ray.scripts.scripts")
GUIDE = ("--gpu-memory-utilization", "0.80", "--max-model-len", "4096")
MULTI = ("--nnodes", "2", "--master-addr", FABRIC[A], "--master-port", "29501")
VLLM_UNIT, RAY_UNIT, BALANCE_UNIT = UNITS = ("bench-vllm", "bench-ray", "bench-balance")
MACHINES = Path("/tmp/machines")  # noqa: S108 - where machines.sh has them
# the ranks of a machine, by their own titles, out of our units' control groups
KILL_RANK = """
for p in $(cat /sys/fs/cgroup/system.slice/bench-*.service/cgroup.procs); do
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

TESTS: Mapping[str, Sequence[str]] = {
    "single": ("512", "128", "2", "inf", "1"),
    "low": ("512", "256", "30", "2", ""),
    "short": ("256", "128", "50", "inf", ""),
    "long": ("512", "512", "100", "inf", ""),
}
"""Input and output tokens, requests, rate, concurrency: the guide's three and one stream."""


@dataclass(frozen=True)
class Setting:
    """How vLLM is started on each machine; ``url`` is what the client asks, on the first machine."""

    name: str
    flags: tuple[str, ...]
    parallel: tuple[str, ...] = ("--pipeline-parallel-size", "2")
    executor: str = "mp"
    replicas: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    profile: bool = False
    """Whether to see where the processes spend their time, in a run that is not counted."""
    tests: tuple[str, ...] = ("single", "low", "short", "long")

    @property
    def url(self) -> str:
        """The address that the client asks."""
        return f"http://{MANAGEMENT[A]}:{9000 if self.replicas else 8000}"


SETTINGS = (
    Setting("guide", ("--enforce-eager", *GUIDE), executor="ray", profile=True),
    Setting("mp-graphs", GUIDE, profile=True),
    Setting("replicas-graphs", GUIDE, parallel=(), replicas=True),
    Setting("mp-graphs-batch", (*GUIDE, "--max-num-batched-tokens", "8192", "--async-scheduling")),
    Setting("ray-graphs", GUIDE, executor="ray"),
    Setting("tp-graphs", GUIDE, parallel=("--tensor-parallel-size", "2"), tests=("single", "short", "long")),
    Setting("mp-piecewise", (*GUIDE, "--compilation-config", '{"cudagraph_mode":"PIECEWISE"}')),
)


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


# ---- the machines


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
        start(BALANCE_UNIT, A, (PYTHON, SELF, "balance", "9000", *backs), {})
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


# ---- measuring


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
    argv = ["env", *(f"{key}={value}" for key, value in environment(A, {}).items()), PYTHON, SELF, "client"]
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


def one(setting: Setting, out: Path, repeats: int) -> bool:
    """Start, measure and stop one setting; write what came."""
    result: dict[str, Any] = {"setting": setting.name, "flags": setting.flags, "parallel": setting.parallel}
    result |= {"executor": setting.executor, "replicas": setting.replicas, "environment": dict(setting.environment)}
    samples: list[dict[str, Any]] = []
    try:
        with sampled(samples):
            begin(setting)
            result["ready_seconds"] = round(wait_ready(setting), 1)
            say(f"{setting.name}: ready in {result['ready_seconds']} s")
            result["runs"] = [json.loads(line) for line in measure(setting, repeats).splitlines() if line[:1] == "{"]
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
    return "runs" in result


def faults(out: Path) -> None:
    """Kill the second machine's rank of what runs now; see what the other card still holds, and what the API says."""
    table: list[dict[str, Any]] = []

    def look(what: str) -> None:
        row = {"what": what, "memory_mib": gpu_memory(), "health": health(), "at": round(time.time(), 1)}
        table.append(row)
        say(f"fault: {row}")
        (out / "faults.json").write_text(json.dumps(table, indent=1))

    look("before")
    killed = ssh(
        B, "pkill -KILL -f '[V]LLM::|[R]ayWorker' && echo killed || ps -eo pid,args | grep -i -E 'vllm|ray' | head"
    )
    look(f"worker on {B} killed with SIGKILL: {killed.stdout.strip()[:300]}")
    for seconds in (5, 10, 15):
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
    """Measure all settings until the time is up; the faults come last, on whatever runs then."""
    out, began = Path(given.out), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    attempt("facts", lambda: facts(out, Path(given.probes)))
    attempt("probe", lambda: probe(out, Path(given.sources)))
    wanted = [setting for setting in SETTINGS if not given.only or setting.name in given.only.split(",")]
    last = False
    for place, setting in enumerate(wanted):
        left = given.seconds - (time.monotonic() - began)
        if left < given.least:
            say(f"{left:.0f} s are left: {setting.name} and what follows are not run")
            break
        say(f"{setting.name}: begins, {left:.0f} s are left")
        worked = one(setting, out, given.repeats)
        if worked and setting.profile and not given.no_profile:
            attempt("stacks", lambda setting=setting: where_time_goes(setting, out))  # type: ignore[misc]
        left = given.seconds - (time.monotonic() - began)
        last = place == len(wanted) - 1 or left < given.least
        if last and worked:
            attempt("faults", lambda: faults(out))
        (out / f"{setting.name}.stop.json").write_text(json.dumps(stop(), indent=1))
    (out / "done").write_text("done\n")
    say("done")


def attempt(what: str, action: Callable[[], object]) -> None:
    """Do something that the rest does not depend on."""
    try:
        action()
    except (OSError, ValueError, KeyError, RuntimeError, subprocess.SubprocessError) as error:
        say(f"{what}: {type(error).__name__}: {error}")


# ---- on a machine


def client(given: argparse.Namespace) -> None:
    """Warm up, then run every test so many times in rounds; print the figures of each run as a JSON line."""
    from vllm.benchmarks.serve import add_cli_args, main_async  # noqa: PLC0415 - only there

    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    folder, seed = Path(given.folder), int(time.time()) % 100_000 * 1000
    folder.mkdir(parents=True, exist_ok=True)
    names = given.tests.split(",")

    def run(name: str, number: int, output: str = "") -> None:
        tokens, answer, prompts, rate, limit = TESTS[name]
        target = folder / f"{name}-{number}.json"
        words = ["--backend", "openai", "--base-url", given.url, "--endpoint", "/v1/completions"]
        words += ["--model", given.model, "--served-model-name", NAME, "--dataset-name", "random"]
        words += ["--random-input-len", tokens, "--random-output-len", output or answer, "--num-prompts", prompts]
        words += ["--request-rate", rate, *(["--max-concurrency", limit] if limit else []), "--ignore-eos"]
        words += ["--seed", str(seed + 10 * number + names.index(name)), "--ready-check-timeout-sec", "60"]
        words += ["--percentile-metrics", "ttft,tpot,itl", "--metric-percentiles", "99", "--disable-tqdm"]
        words += ["--save-result", "--result-dir", str(folder), "--result-filename", target.name]
        with contextlib.redirect_stdout(sys.stderr):
            asyncio.run(main_async(parser.parse_args(words)))
        if number:
            found = json.loads(target.read_text())
            kept = {key: value for key, value in found.items() if not isinstance(value, list)}
            print(json.dumps({"test": name, "run": number, **kept}), flush=True)

    run(names[-1], 0, "32")
    for number in range(1, given.repeats + 1):
        for name in names:
            run(name, number)


def balance(given: argparse.Namespace) -> None:
    """Hand connections to the addresses in turn."""
    turn = itertools.cycle([address.split(":") for address in given.backs])

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address, port = next(turn)
        try:
            inner, outer = await asyncio.open_connection(address, int(port))
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, outer), pump(inner, writer))

    async def main() -> None:
        server = await asyncio.start_server(take, "0.0.0.0", given.port, backlog=512)  # noqa: S104 - a throwaway host
        await server.serve_forever()

    asyncio.run(main())


def words() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one_ = commands.add_parser("host")
    one_.add_argument("out")
    one_.add_argument("--seconds", type=float, default=1300)
    one_.add_argument("--least", type=float, default=200, help="seconds that a setting needs at least")
    one_.add_argument("--repeats", type=int, default=2)
    one_.add_argument("--only", default="", help="settings by name, separated by commas")
    one_.add_argument("--no-profile", action="store_true")
    one_.add_argument("--probes", default="/opt/probes")
    one_.add_argument("--sources", default="/opt/probe")
    one_.set_defaults(action=host)
    two = commands.add_parser("client")
    two.add_argument("url")
    two.add_argument("folder")
    two.add_argument("repeats", type=int)
    two.add_argument("--tests", default=",".join(TESTS))
    two.add_argument("--model", default=MODEL)
    two.set_defaults(action=client)
    three = commands.add_parser("balance")
    three.add_argument("port", type=int)
    three.add_argument("backs", nargs="+")
    three.set_defaults(action=balance)
    return parser.parse_args()


if __name__ == "__main__":
    chosen = words()
    chosen.action(chosen)
