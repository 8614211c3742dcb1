"""What a node is: one read-only probe, one round trip, JSON; every fact is a command or file and a pure parser.

A capture is the raw answer ({fact: {"code": int, "out": str}}), so a saved one (`invoke facts --save FILE`) plans
exactly as the node itself would, and captured outputs are the parsers' test data.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from time import time
from typing import Any

from core import access, condition, parsers, pythons, wiring
from core.config import WORK, Address, Cluster, Node, Subnet
from core.errors import ConfigError, FactsError, SparkstackError
from core.host import CONTROLLER, Host, SudoPassword
from core.local import LocalHost
from core.probe import probe_argv
from core.question import Question, machine_request, probe_request
from core.reader import Capture, Reader
from core.remote import Hosts


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
    """The release in use."""
    model_files: Mapping[str, int]
    model_origin: Mapping[str, Any] | None
    """What the lab's trainer notes beside a model it made; None for any other model."""
    units: Mapping[str, parsers.Unit]
    files: Mapping[str, str]
    """Path to content of the suite's own units and environment files."""
    processes: tuple[parsers.Process, ...]
    listening: tuple[parsers.Listener, ...] = ()
    port_range: tuple[int, int] = parsers.port_range("")
    """The first and the last port that the kernel gives to who asks for any."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """What the node's supervisor says of the service (serve/onnode/record.py); empty where none runs."""
    live: Mapping[str, Any] = field(default_factory=dict)
    """What vLLM's watch says of its tokens (serve/onnode/engine.py); on the head only."""
    lingers: bool = False
    """Whether the SSH user counts as logged in always: logind then leaves its shared memory alone."""
    toolchain: parsers.Toolchain = field(default_factory=parsers.Toolchain)
    """What builds wheels there."""
    builds: frozenset[str] = frozenset()
    """Names of the builds that have ended there and were not fetched yet."""
    history: tuple[parsers.Taken, ...] = ()
    """Releases in the order in which they were taken into use, the last one last."""
    entries: frozenset[str] = frozenset()
    """What the suite's folder holds."""
    used: Mapping[str, int] = field(default_factory=dict)
    """Path to bytes of what the suite's folder holds; files that several share count in each, once in the whole."""
    locks: Mapping[str, str] = field(default_factory=dict)
    """Release id to its stack.lock; like `used` only in an inventory."""
    condition: condition.Condition = field(default_factory=condition.Condition)
    """What the doctor looks at besides."""
    access: access.Access = field(default_factory=access.Access)
    """What the node has of the keys between the nodes."""
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Folder to manifest of every model that was fetched, or is arriving; an empty one where it is damaged."""
    store: Mapping[str, int] = field(default_factory=dict)
    """SHA-256 to size of every file in the node's store of wheels; `.incoming/SHA256` is one that is not whole."""
    wiring: wiring.Wiring | None = None
    """What `invoke network` looks at besides; None where it was not asked."""
    pythons: pythons.Pythons = field(default_factory=pythons.Pythons)
    """What environments can be made of."""
    hooks: Mapping[str, str] = field(default_factory=dict)
    """Release id to what `conda activate` reads there, where conda made it."""
    moment: float = 0.0
    """The node's own clock at the end of the probe, in seconds since 1970; 0 where it was not asked."""

    def interface_of(self, address: Address) -> parsers.Interface | None:
        """Return the interface that carries ``address``."""
        return next((found for found in self.addresses.values() if address in found.ipv4), None)

    def interface_in(self, subnet: Subnet) -> parsers.Interface | None:
        """Return the first interface with an address in ``subnet``."""
        return next((found for found in self.addresses.values() if any(a in subnet for a in found.ipv4)), None)


Facts = Mapping[str, NodeFacts]
"""Facts of all nodes, by node name."""


def gather(hosts: Hosts, cluster: Cluster, question: Question) -> Captures:
    """Probe all nodes at once and return the captures. Raises what the hosts raise, and FactsError."""
    captures, silent = gather_each(hosts, cluster, question)
    for error in silent.values():
        raise error
    return captures


def gather_each(hosts: Hosts, cluster: Cluster, question: Question) -> tuple[Captures, dict[str, SparkstackError]]:
    """Probe all nodes at once: the captures of those that answered, and why each other one did not, by name."""
    with ThreadPoolExecutor(len(cluster.nodes)) as pool:
        asked = {
            node.name: pool.submit(_probe, hosts[node.name], probe_request(cluster, node, question))
            for node in cluster.nodes
        }
    answers, silent = {}, {}
    for name, answer in asked.items():
        try:
            answers[name] = answer.result()
        except SparkstackError as error:
            silent[name] = error
    return Captures(answers), silent


@dataclass(frozen=True)
class Captures:
    """Raw facts of all nodes, as saved by `invoke facts --save` and read by `--facts`."""

    nodes: Mapping[str, Capture]
    sources: Mapping[str, str] = field(default_factory=dict)

    def parsed(self) -> dict[str, NodeFacts]:
        """Parse every node's facts. Raises FactsError naming node and fact."""
        return {name: parse(name, capture) for name, capture in self.nodes.items()}

    def parsed_each(self) -> tuple[dict[str, NodeFacts], dict[str, SparkstackError]]:
        """Parse every node's facts: those that can be read, and why each other node's cannot, by name."""
        facts: dict[str, NodeFacts] = {}
        silent: dict[str, SparkstackError] = {}
        for name, capture in self.nodes.items():
            try:
                facts[name] = parse(name, capture)
            except FactsError as error:
                silent[name] = error
        return facts, silent

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
    except (ValueError, KeyError, TypeError) as error:
        raise _no_facts(path, str(error)) from error
    if not _are_captures(nodes):
        raise _no_facts(path, "its nodes are not {name: {fact: answer}}")
    return Captures(nodes, sources)


def _are_captures(nodes: Any) -> bool:
    """Whether this has the shape of captures, down to text for every answer and every file."""
    if not isinstance(nodes, dict) or not all(isinstance(facts, dict) for facts in nodes.values()):
        return False
    return all(_is_answer(raw) for facts in nodes.values() for raw in facts.values())


def _is_answer(raw: Any) -> bool:
    files = raw.get("files", {}) if isinstance(raw, dict) else None
    return isinstance(files, dict) and all(isinstance(text, str) for text in (raw.get("out", ""), *files.values()))


def _no_facts(path: Path, why: str) -> ConfigError:
    return ConfigError(f"{path} holds no facts: {why}", next_move="make it with invoke facts --save FILE")


def require_nodes(facts: Facts, nodes: tuple[Node, ...]) -> None:
    """Raise ConfigError unless there are facts of every node (a facts file may be of another cluster)."""
    missing = [node.name for node in nodes if node.name not in facts]
    if missing:
        raise ConfigError(
            f"the facts hold {', '.join(facts) or 'no node'}, not {', '.join(missing)}",
            next_move="use facts of this cluster, or name the cluster they belong to with --cluster",
        )


def look_here(folder: Path = WORK, packages: tuple[str, ...] = ()) -> NodeFacts:
    """Probe this host as a machine that builds, with the Python we run on; free space is that of ``folder``.

    It has no network of a cluster and nothing that was deployed. Raises FactsError.
    """
    machine = machine_request(folder, packages, sys.executable)
    none = {"commands": {"processes": ["true"]}, "files": {}}
    request = {"ours": "^$", **{kind: {**machine[kind], **none[kind]} for kind in ("commands", "files")}}
    capture = _probe(LocalHost(CONTROLLER, SudoPassword(None)), request)
    return parse(CONTROLLER, {**capture, "addresses": {"code": 0, "out": "lo UNKNOWN 127.0.0.1/8"}})


def _probe(host: Host, request: Mapping[str, Any]) -> Capture:
    asked = time()
    done = host.run(probe_argv(request), timeout=60)
    try:
        return {**parsers.record(done.out), "asked": {"code": 0, "out": f"{asked:.3f} {time():.3f}\n"}}
    except ValueError as error:
        raise FactsError(
            "the probe answered something that is not JSON",
            node=host.name,
            next_move="look for a login script that prints (~/.bashrc): it must be silent without a terminal",
            evidence=done.tail(5),
        ) from error


def parse(name: str, capture: Capture) -> NodeFacts:
    """Parse one node's capture. Pure. Raises FactsError naming the fact that is missing or cannot be read."""
    reader = Reader(name, capture)
    uname = reader.needed("uname", parsers.uname)
    memory = reader.memory()
    releases = reader.records("complete")
    hooks = reader.files("hooks").items()
    return NodeFacts(
        name=name,
        hostname=uname.hostname,
        kernel=uname.kernel,
        architecture=uname.architecture,
        os=parsers.os_release(reader.file("os")),
        glibc=reader.needed("glibc", parsers.glibc),
        python=reader.needed("python", parsers.python_version),
        cores=reader.needed("cores", int),
        memory_total=memory.total,
        memory_available=memory.available,
        disk_free=reader.needed("disk", parsers.disk_free),
        addresses=reader.needed(
            "addresses", partial(parsers.interfaces, mtus=reader.files("mtu"), speeds=reader.files("speed"))
        ),
        gpus=reader.out("gpus", parsers.gpus),
        cuda=reader.out("cuda", parsers.cuda_release),
        hcas=reader.out("hcas", parsers.hcas)
        or reader.parsed("hca_nets", lambda _: parsers.hcas_in_sysfs(reader.files("hca_nets")), ""),
        packages=reader.out("packages", parsers.installed_packages),
        root_owner=reader.out("root", str.strip) or None,
        wheels=reader.out("wheels", parsers.names_and_sizes),
        releases=releases,
        partial=frozenset(reader.out("releases", str.split)) - set(releases),
        current=reader.out("current", parsers.release_of_link),
        model_files=reader.out("model", parsers.names_and_sizes),
        model_origin=next(iter(reader.records("model_origin").values()), None),
        units={**reader.out("units", parsers.units), **reader.out("install", parsers.units)},
        files=reader.files("own"),
        processes=reader.out("processes", parsers.processes),
        listening=reader.out("listening", parsers.listeners),
        port_range=reader.parsed("port_range", parsers.port_range, reader.file("port_range")),
        state=parsers.record_or_none(reader.file("state")),
        live=parsers.record_or_none(reader.file("live")),
        lingers=bool(reader.files("linger")),
        toolchain=_toolchain(reader),
        builds=reader.out("builds", parsers.ended_builds),
        history=reader.out("history", parsers.history),
        entries=frozenset(reader.out("entries", str.splitlines)),
        used={**reader.out("used", parsers.disk_used), **reader.out("total", parsers.disk_used)},
        locks={PurePosixPath(path).parent.name: text for path, text in reader.files("locks").items()},
        condition=condition.condition(reader),
        store=reader.out("store", parsers.names_and_sizes),
        access=access.access(reader),
        wiring=wiring.wiring(reader),
        models={
            str(PurePosixPath(path).parent): parsers.record_or_none(text)
            for path, text in reader.files("models").items()
        },
        pythons=reader.out("pythons", pythons.parse),
        hooks={path.removesuffix(pythons.IN_RELEASE).rpartition("/")[2]: text for path, text in hooks},
        moment=reader.out("clock", lambda text: float(text.split()[1]) if text.strip() else 0.0),
    )


def _toolchain(reader: Reader) -> parsers.Toolchain:
    return parsers.Toolchain(
        gcc=reader.asked("gcc", str.strip),
        programs=reader.asked("tools", parsers.program_names),
        cuda_folder=reader.asked("cuda_folder", str.strip),
        nvcc_codes=reader.asked("nvcc_codes", parsers.gpu_codes),
        ptxas_codes=reader.asked("ptxas_help", parsers.gpu_codes),
        headers=reader.asked("headers", parsers.yes),
    )
