"""What a node is asked: the request of the probe, commands and files by the name of their fact. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from core import access, condition, parsers, pythons, surroundings, wiring
from core.config import Cluster, Node, Profile

UNITS = "sparkstack-*"
INSTALL_UNIT = "sparkstack-install"
MODEL_MANIFEST = "sparkstack-model.json"
"""Beside the files of a model that was fetched: deploy/models/onnode/files.py says what is in it."""
CUDA = "/usr/local/cuda"
"""Where NVIDIA's packages and installers put the toolkit, or a link to it."""

OWN = (
    "/etc/systemd/system/sparkstack-*.service",
    "/etc/sparkstack/*",
    "/usr/local/lib/sparkstack/serve/*.py",
    "/usr/local/lib/sparkstack/serve/onnode/*.py",
)
"""Files of ours outside the suite's folder, as far as the SSH user may read them."""


@dataclass(frozen=True)
class Question:
    """What a probe asks beyond the machine itself: a profile's model, packages."""

    profile: Profile | None = None
    packages: tuple[str, ...] = ()
    inventory: bool = False
    """Whether to count the disk that releases use, and to read which wheels they name."""
    whole: bool = False
    """Whether to ask for the node's condition as well (core/condition.py)."""
    access: bool = False
    """Whether to ask for the keys between the nodes (core/access.py)."""
    wiring: bool = False
    """Whether to ask for the node's wiring (core/wiring.py)."""
    ours: bool = False
    """Whether to ask which processes are ours, by what they run (core/surroundings.py); `whole` asks that too."""


def probe_request(cluster: Cluster, node: Node, question: Question) -> dict[str, Any]:
    """Return what the probe is asked: {"commands": {fact: argv}, "files": {fact: [glob]}}. Pure."""
    root = cluster.root
    model = model_folder(cluster, question.profile) if question.profile else PurePosixPath(root / "models/-")
    machine = machine_request(root, question.packages)
    more = condition.request(cluster, node, model) if question.whole else {"commands": {}, "files": {}}
    wired = wiring.request() if question.wiring else {"commands": {}, "files": {}}
    return {
        "ours": rf"{re.escape(str(root))}/|ray::|raylet|gcs_server|VLLM::",
        "commands": {
            **machine["commands"],
            **more["commands"],
            **wired["commands"],
            "addresses": ["ip", "-br", "addr"],
            "root": ["stat", "-c", "%U", str(root)],
            "wheels": ["find", f"{root}/wheels", "-maxdepth", "1", "-name", "*.whl", "-printf", "%f %s\n"],
            "store": ["find", f"{root}/store", "-maxdepth", "2", "-type", "f", "-printf", "%P %s\n"],
            "releases": ["find", f"{root}/releases", "-mindepth", "1", "-maxdepth", "1", "-printf", "%f\n"],
            "builds": ["find", f"{root}/build", "-mindepth", "3", "-maxdepth", "3", "-path", "*/out/result.json"],
            "current": ["readlink", f"{root}/current"],
            "history": ["cat", f"{root}/history.jsonl"],
            "model": ["find", "-L", str(model), "-maxdepth", "1", "-type", "f", "-printf", "%f %s\n"],
            "units": ["systemctl", "show", UNITS, "-p", ",".join(parsers.UNIT_PROPERTIES)],
            "install": ["systemctl", "show", INSTALL_UNIT, "-p", ",".join(parsers.UNIT_PROPERTIES)],
            "processes": ["ps", "-eww", "-o", "pid=,user:32=,args="],
            "listening": ["ss", "-Hltn"],
            "entries": ["find", str(root), "-mindepth", "1", "-maxdepth", "1", "-printf", "%f\n"],
            **pythons.request(cluster),
            **(_disk_request(root) if question.inventory else {}),
            **(access.request(cluster) if question.access else {}),
            **(surroundings.ours_request(root) if question.ours else {}),
        },
        "files": {
            **machine["files"],
            **more["files"],
            **wired["files"],
            "mtu": ["/sys/class/net/*/mtu"],
            "hca_nets": ["/sys/class/infiniband/*/device/net/*/operstate"],
            "speed": ["/sys/class/net/*/speed"],
            "complete": [f"{root}/releases/*/complete.json"],
            **({"locks": [f"{root}/releases/*/stack.lock"]} if question.inventory else {}),
            "model_origin": [f"{model}/sparkstack.json"],
            "models": [f"{folder}/{MODEL_MANIFEST}" for folder in _model_folders(root, model)],
            "hooks": [f"{root}/releases/*{pythons.IN_RELEASE}"],
            "own": list(OWN),
            "state": ["/run/sparkstack/state.json"],
            "live": ["/run/sparkstack-vllm/live.json"],
            "port_range": ["/proc/sys/net/ipv4/ip_local_port_range"],
            "linger": [f"/var/lib/systemd/linger/{cluster.user}"],
            **({"model_config": [f"{model}/config.json"]} if question.profile else {}),
        },
    }


def machine_request(root: Path, packages: tuple[str, ...], python: str = "python3") -> dict[str, Any]:
    """Return what is asked of the machine itself: system, memory and disk, GPU, what builds wheels on it."""
    dpkg = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *(packages or ("libc6",))]
    return {
        "commands": {
            "uname": ["uname", "-a"],
            "glibc": ["getconf", "GNU_LIBC_VERSION"],
            "python": [python, "--version"],
            "headers": [python, "-I", "-S", "-c", _HEADERS],
            "cores": ["nproc"],
            "disk": ["df", "-PB1", str(root), str(root.parent), "/"],
            "gpus": ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"],
            "cuda": [f"{CUDA}/bin/nvcc", "--version"],
            "cuda_folder": ["readlink", "-e", CUDA],
            "nvcc_codes": [f"{CUDA}/bin/nvcc", "--list-gpu-code"],
            "ptxas_help": [f"{CUDA}/bin/ptxas", "--help"],
            "gcc": ["gcc", "-dumpfullversion", "-dumpversion"],
            "tools": ["which", *parsers.TOOLS],
            "hcas": ["ibdev2netdev"],
            "packages": dpkg,
        },
        "files": {
            "os": ["/etc/os-release"],
            "meminfo": ["/proc/meminfo"],
            "cgroup": ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"],
            "cgroup_usage": ["/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes"],
            "cgroup_stat": ["/sys/fs/cgroup/memory.stat", "/sys/fs/cgroup/memory/memory.stat"],
        },
    }


def _disk_request(root: Path) -> dict[str, Any]:
    du = ["du", "--block-size=1"]
    return {"used": [*du, "--count-links", "--max-depth=2", str(root)], "total": [*du, "--summarize", str(root)]}


_HEADERS = "import os, sysconfig; print(os.path.isfile(os.path.join(sysconfig.get_path('include'), 'Python.h')))"


def model_folder(cluster: Cluster, profile: Profile) -> PurePosixPath:
    """Return the folder of the profile's model on every node."""
    return PurePosixPath(cluster.root / "models" / profile.model)


def _model_folders(root: Path, model: PurePosixPath | Path) -> Iterator[str]:
    """Return patterns of the folders of models, and of those where one arrives."""
    for folder in (model, root / "models/*", root / "models/*/*"):
        yield str(folder)
        yield str(folder.parent / f".{folder.name}.incoming")


def model_command(cluster: Cluster, profile: Profile) -> str:
    """Return what brings the profile's model to the nodes; nothing where the profile does not say where it is from."""
    flags = f"--cluster {cluster.flag} --profile {profile.name}"
    if profile.repository is not None:
        return f"invoke model.fetch {profile.repository} {flags}"
    return f"invoke lab.model {flags}" if cluster.lab else ""
