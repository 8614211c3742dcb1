"""What a node is: one read-only probe, one round trip, JSON; every fact is a command or file and a pure parser.

A capture is the raw answer ({fact: {"code": int, "out": str}}), so a saved one (`invoke facts --save FILE`) plans
exactly as the node itself would, and captured outputs are the parsers' test data.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from core import parsers
from core.config import Address, Cluster, Node, Profile, Subnet
from core.errors import ConfigError, FactsError
from core.host import Host
from core.remote import Hosts

Raw = Mapping[str, Any]
"""One fact of a capture: {"code": exit code, "out": text} or, of files, {"files": {path: text}}."""
Capture = Mapping[str, Raw]
"""All facts of one node, by name."""

NOT_ASKED: Raw = {"code": 127, "out": "", "files": {}}
UNITS = "sparkstack-*"
INSTALL_UNIT = "sparkstack-install"


@dataclass(frozen=True)
class NodeFacts:
    """One node as the probe saw it. Sizes in bytes, MTU in bytes, rates in Mb/s."""

    name: str
    hostname: str
    kernel: str
    architecture: str
    os: Mapping[str, str]
    glibc: tuple[int, int]
    python: tuple[int, int]
    cores: int
    memory_total: int
    memory_available: int
    disk_free: int
    addresses: Mapping[str, parsers.Interface]
    gpus: tuple[parsers.Gpu, ...]
    cuda: str | None
    hcas: tuple[parsers.Hca, ...]
    packages: frozenset[str]
    root_owner: str | None
    wheels: Mapping[str, int]
    """File name to size of every wheel in the node's wheel folder."""
    releases: Mapping[str, Mapping[str, Any]]
    """Release id to its completion record; a release without one is in `partial`."""
    partial: frozenset[str]
    current: str | None
    model_files: Mapping[str, int]
    model_origin: Mapping[str, Any] | None
    """What the lab's trainer notes beside a model it made; None for any other model."""
    units: Mapping[str, parsers.Unit]
    files: Mapping[str, str]
    """Path to content of the suite's own units and environment files."""
    processes: tuple[parsers.Process, ...]
    listening: tuple[parsers.Listener, ...] = ()
    token: bool = False
    """Whether the API gave a token when it was asked (on the head, when a question was given)."""

    def interface_of(self, address: Address) -> parsers.Interface | None:
        """Return the interface that carries ``address``."""
        return next((found for found in self.addresses.values() if address in found.ipv4), None)

    def interface_in(self, subnet: Subnet) -> parsers.Interface | None:
        """Return the first interface with an address in ``subnet``."""
        return next((found for found in self.addresses.values() if any(a in subnet for a in found.ipv4)), None)


Facts = Mapping[str, NodeFacts]
"""Facts of all nodes, by node name."""


@dataclass(frozen=True)
class Question:
    """What a probe asks beyond the machine itself: a profile's model, packages, and how to ask the head for a token."""

    profile: Profile | None = None
    packages: tuple[str, ...] = ()
    token_argv: tuple[str, ...] = ()


def gather(hosts: Hosts, cluster: Cluster, question: Question) -> Captures:
    """Probe all nodes at once and return the captures. Raises what the hosts raise, and FactsError."""
    with ThreadPoolExecutor(len(cluster.nodes)) as pool:
        asked = {
            node.name: pool.submit(_probe, hosts[node.name], probe_request(cluster, node, question))
            for node in cluster.nodes
        }
        return Captures({name: answer.result() for name, answer in asked.items()})


@dataclass(frozen=True)
class Captures:
    """Raw facts of all nodes, as saved by `invoke facts --save` and read by `--facts`."""

    nodes: Mapping[str, Capture]
    sources: Mapping[str, str] = field(default_factory=dict)

    def parsed(self) -> dict[str, NodeFacts]:
        """Parse every node's facts. Raises FactsError naming node and fact."""
        return {name: parse(name, capture) for name, capture in self.nodes.items()}

    def to_json(self) -> str:
        """Return the file format."""
        data = {"sources": self.sources, "nodes": self.nodes} if self.sources else {"nodes": self.nodes}
        return json.dumps(data, indent=1) + "\n"


def load_captures(path: Path) -> Captures:
    """Read a file of `invoke facts --save`. Raises ConfigError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        nodes, sources = data["nodes"], data.get("sources", {})
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", next_move="check the path") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} holds no facts: {error}", next_move="make it with invoke facts --save FILE"
        ) from error
    return Captures(nodes, sources)


def require_nodes(facts: Facts, nodes: tuple[Node, ...]) -> None:
    """Raise ConfigError unless there are facts of every node (a facts file may be of another cluster)."""
    missing = [node.name for node in nodes if node.name not in facts]
    if missing:
        raise ConfigError(
            f"the facts hold {', '.join(facts) or 'no node'}, not {', '.join(missing)}",
            next_move="use facts of this cluster, or name the cluster they belong to with --cluster",
        )


def probe_request(cluster: Cluster, node: Node, question: Question) -> dict[str, Any]:
    """Return what the probe is asked: {"commands": {fact: argv}, "files": {fact: [glob]}}. Pure."""
    root = cluster.root
    model = model_folder(cluster, question.profile) if question.profile else root / "models/-"
    token = {"token": list(question.token_argv)} if node == cluster.head and question.token_argv else {}
    return {
        "ours": rf"{re.escape(str(root))}/|ray::|raylet|gcs_server|VLLM::",
        "commands": {
            "uname": ["uname", "-a"],
            "glibc": ["getconf", "GNU_LIBC_VERSION"],
            "python": ["python3", "--version"],
            "cores": ["nproc"],
            "disk": ["df", "-PB1", str(root), str(root.parent), "/"],
            "addresses": ["ip", "-br", "addr"],
            "gpus": ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"],
            "cuda": ["/usr/local/cuda/bin/nvcc", "--version"],
            "hcas": ["ibdev2netdev"],
            "packages": [
                "dpkg-query",
                "-W",
                "-f",
                "${Package} ${db:Status-Status}\n",
                *(question.packages or ("libc6",)),
            ],
            "root": ["stat", "-c", "%U", str(root)],
            "wheels": ["find", f"{root}/wheels", "-maxdepth", "1", "-name", "*.whl", "-printf", "%f %s\n"],
            "releases": ["find", f"{root}/releases", "-mindepth", "1", "-maxdepth", "1", "-printf", "%f\n"],
            "current": ["readlink", f"{root}/current"],
            "model": ["find", "-L", str(model), "-maxdepth", "1", "-type", "f", "-printf", "%f %s\n"],
            "units": ["systemctl", "show", UNITS, "-p", ",".join(parsers.UNIT_PROPERTIES)],
            "install": ["systemctl", "show", INSTALL_UNIT, "-p", ",".join(parsers.UNIT_PROPERTIES)],
            "processes": ["ps", "-eww", "-o", "pid=,user:32=,args="],
            "listening": ["ss", "-Hltn"],
            **token,
        },
        "files": {
            "os": ["/etc/os-release"],
            "meminfo": ["/proc/meminfo"],
            "cgroup": ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"],
            "cgroup_usage": ["/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes"],
            "cgroup_stat": ["/sys/fs/cgroup/memory.stat", "/sys/fs/cgroup/memory/memory.stat"],
            "mtu": ["/sys/class/net/*/mtu"],
            "speed": ["/sys/class/net/*/speed"],
            "complete": [f"{root}/releases/*/complete.json"],
            "model_origin": [f"{model}/sparkstack.json"],
            "own": ["/etc/systemd/system/sparkstack-*.service", "/etc/sparkstack/*.env"],
        },
    }


def model_folder(cluster: Cluster, profile: Profile) -> PurePosixPath:
    """Return the folder of the profile's model on every node."""
    return PurePosixPath(cluster.root / "models" / profile.model)


# Runs on the node with nothing but the standard library, reads and never writes. Process names are matched here so
# that other people's command lines never leave the node.
_PROBE = """
import glob, json, os, re, subprocess, sys
os.environ["PATH"] += ":/usr/sbin:/sbin:/usr/local/cuda/bin"
os.environ["LC_ALL"] = "C"
request = json.loads(sys.argv[1])
facts = {}
for name, argv in request["commands"].items():
    try:
        options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
        done = subprocess.run(argv, timeout=20, **options)
        facts[name] = {"code": done.returncode, "out": done.stdout}
    except (OSError, subprocess.TimeoutExpired) as error:
        facts[name] = {"code": 127, "out": "", "error": str(error)}
for name, patterns in request["files"].items():
    found = {}
    for path in sorted(p for pattern in patterns for p in glob.glob(pattern)):
        try:
            with open(path, errors="replace") as file:
                found[path] = file.read()
        except OSError:
            continue
    facts[name] = {"code": 0, "files": found}
ours = re.compile(request["ours"])
lines = facts["processes"]["out"].splitlines(True)
facts["processes"]["out"] = "".join(line for line in lines if ours.search(line))
print(json.dumps(facts))
"""


def probe_argv(request: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the argv of the probe; packed, so that its own command line does not look like what it searches for."""
    packed = base64.b64encode(zlib.compress(_PROBE.encode())).decode()
    asked = base64.b64encode(zlib.compress(json.dumps(request).encode())).decode()
    code = (
        "import sys,zlib,base64 as b;u=lambda t:zlib.decompress(b.b64decode(t)).decode();"
        "c=u(sys.argv[1]);sys.argv[1:]=[u(sys.argv[2])];exec(c)"
    )
    return ("python3", "-c", code, packed, asked)


def _probe(host: Host, request: Mapping[str, Any]) -> Capture:
    done = host.run(probe_argv(request), timeout=60)
    try:
        answer: Capture = json.loads(done.out)
    except json.JSONDecodeError as error:
        raise FactsError(
            "the probe answered something that is not JSON",
            node=host.name,
            next_move="look for a login script that prints (~/.bashrc): it must be silent without a terminal",
            evidence=done.tail(5),
        ) from error
    return answer


def parse(name: str, capture: Capture) -> NodeFacts:
    """Parse one node's capture. Pure. Raises FactsError naming the fact that cannot be read."""
    reader = _Reader(name, capture)
    memory = reader.memory()
    uname = reader.out("uname", parsers.uname)
    return NodeFacts(
        name=name,
        hostname=uname.hostname,
        kernel=uname.kernel,
        architecture=uname.architecture,
        os=parsers.os_release(reader.file("os")),
        glibc=reader.out("glibc", parsers.glibc),
        python=reader.out("python", parsers.python_version),
        cores=reader.out("cores", int),
        memory_total=memory.total,
        memory_available=memory.available,
        disk_free=reader.out("disk", parsers.disk_free),
        addresses=parsers.interfaces(reader.text("addresses"), reader.files("mtu"), reader.files("speed")),
        gpus=parsers.gpus(reader.text("gpus")),
        cuda=parsers.cuda_release(reader.text("cuda")),
        hcas=parsers.hcas(reader.text("hcas")),
        packages=parsers.installed_packages(reader.text("packages")),
        root_owner=reader.text("root").strip() or None,
        wheels=parsers.names_and_sizes(reader.text("wheels")),
        releases=reader.releases(),
        partial=frozenset(reader.text("releases").split()) - set(reader.releases()),
        current=parsers.release_of_link(reader.text("current")),
        model_files=parsers.names_and_sizes(reader.text("model")),
        model_origin=json.loads(reader.file("model_origin") or "null"),
        units=parsers.units(reader.text("units") + "\n" + reader.text("install")),
        files=reader.files("own"),
        processes=parsers.processes(reader.text("processes")),
        listening=parsers.listeners(reader.text("listening")),
        token=parsers.token_came(reader.text("token")),
    )


class _Reader:
    """Access to a capture where facts that were not asked or failed read as empty."""

    def __init__(self, node: str, capture: Capture) -> None:
        self._node = node
        self._capture = capture

    def text(self, fact: str) -> str:
        return str(self._capture.get(fact, NOT_ASKED).get("out", ""))

    def files(self, fact: str) -> Mapping[str, str]:
        found: Mapping[str, str] = self._capture.get(fact, NOT_ASKED).get("files", {})
        return found

    def file(self, fact: str) -> str:
        return next(iter(self.files(fact).values()), "")

    def out(self, fact: str, parser: Any) -> Any:
        text = self.text(fact)
        try:
            return parser(text)
        except (ValueError, IndexError, KeyError) as error:
            raise FactsError(
                f"the fact {fact!r} cannot be read ({error})",
                node=self._node,
                next_move="run that command on the node by hand, and report its output as a bug",
                evidence=text[:500] or str(self._capture.get(fact, {}).get("error", "(it answered nothing)")),
            ) from error

    def memory(self) -> parsers.Memory:
        host = parsers.meminfo(self.file("meminfo"))
        return parsers.smaller_memory(
            host, self.files("cgroup").values(), self.file("cgroup_usage"), self.file("cgroup_stat")
        )

    def releases(self) -> dict[str, Mapping[str, Any]]:
        return {PurePosixPath(path).parent.name: json.loads(text) for path, text in self.files("complete").items()}
