"""Which process runs on which node, with which environment: release and profile to unit files, purely.

The environment is in place before Ray starts: what is set later never reaches the workers
(https://docs.vllm.ai/en/stable/serving/parallelism_scaling/).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from core.config import Cluster, Node, Profile, Stack
from core.errors import ConfigError, UnfitNode, UsageError
from core.facts import Facts, NodeFacts
from core.ports import same_port
from core.question import model_folder
from deploy.checks.gpu import FEWER_RANKS
from deploy.environment import interpreter

RAY_HEAD, RAY_WORKER, VLLM = "sparkstack-ray-head", "sparkstack-ray-worker", "sparkstack-vllm"
START_ORDER = (RAY_HEAD, RAY_WORKER, VLLM)
NODE_ENV = PurePosixPath("/etc/sparkstack/node.env")
UNIT_FOLDER = PurePosixPath("/etc/systemd/system")
WORKER_PORTS = (10002, 19999)
"""Ports of Ray's own worker processes and drivers, first and last: its default, but said, so that a firewall can be."""
MARKER = "made by sparkstack (invoke serve); changes are overwritten"

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "units"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701 - unit files, not HTML; values are quoted by exec_word and env_value
)


@dataclass(frozen=True)
class Service:
    """Everything that decides what runs: machines, wheels, model, release."""

    cluster: Cluster
    stack: Stack
    profile: Profile
    release: str

    @property
    def model(self) -> PurePosixPath:
        """The model's folder on every node."""
        return model_folder(self.cluster, self.profile)

    def require_ranks(self) -> None:
        """Raise UsageError when the profile needs more GPUs than the nodes have, one each."""
        have, ranks = len(self.cluster.nodes), self.profile.ranks
        if ranks > have:
            raise UsageError(
                f"the profile {self.profile.name} needs {ranks} GPUs, {self.cluster.name} has {have} nodes of one",
                next_move=FEWER_RANKS,
            )

    def units_of(self, node: Node) -> tuple[str, ...]:
        """Return the units that run on ``node``, in starting order."""
        if self.profile.executor != "ray":
            raise ConfigError(
                f"profile {self.profile.name}: the executor {self.profile.executor!r} is not built yet",
                next_move='use executor = "ray"',
            )
        return (RAY_HEAD, VLLM) if node == self.cluster.head else (RAY_WORKER,)


def files_of(service: Service, node: Node, seen: NodeFacts) -> dict[PurePosixPath, str]:
    """Return path and content of every unit and environment file of ``node``."""
    bin_folder = interpreter(service.cluster, service.release).parent
    values = {
        "marker": MARKER,
        "cluster": service.cluster,
        "node": node,
        "profile": service.profile,
        "worker_ports": WORKER_PORTS,
        "ray": bin_folder / "ray",
        "vllm": _continued(vllm_argv(service)),
    }
    files = {
        UNIT_FOLDER / f"{name}.service": _TEMPLATES.get_template(f"{name}.service.j2").render(values)
        for name in service.units_of(node)
    }
    environment = {key: env_value(key, value) for key, value in environment_of(service, node, seen).items()}
    files[NODE_ENV] = _TEMPLATES.get_template("node.env.j2").render(marker=MARKER, environment=environment)
    return files


def vllm_argv(service: Service) -> tuple[str, ...]:
    """Return the command of the API server, as the guide's chapter 5.2 has it, on the addresses of the cluster."""
    cluster, profile = service.cluster, service.profile
    return (
        str(interpreter(cluster, service.release).parent / "vllm"),
        *("serve", str(service.model)),
        *("--served-model-name", *profile.served_names),
        *("--pipeline-parallel-size", str(profile.pipeline_parallel)),
        *("--tensor-parallel-size", str(profile.tensor_parallel)),
        *("--distributed-executor-backend", profile.executor),
        *("--host", str(cluster.api_host), "--port", str(cluster.api.port)),
        *profile.flags,
    )


def environment_of(service: Service, node: Node, seen: NodeFacts) -> dict[str, str]:
    """Return the environment of every process of ours on ``node``: its own fabric address and interface first.

    NCCL, GLOO and TP are told the interface because their own choice is the default route, the management network
    (https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-socket-ifname).
    """
    cluster = service.cluster
    interface = fabric_interface(cluster, node, seen)
    network = {
        "VLLM_HOST_IP": str(node.fabric),
        "RAY_ADDRESS": f"{cluster.head.fabric}:{cluster.ray_port}",
        "NCCL_SOCKET_IFNAME": interface,
        "GLOO_SOCKET_IFNAME": interface,
        "TP_SOCKET_IFNAME": interface,
    }
    halves = [hca.device for hca in seen.hcas if hca.up and same_port(hca.interface, interface)]
    if halves:
        network |= {"NCCL_IB_HCA": ",".join(halves), "NCCL_IB_DISABLE": "0"}
    return {**service.stack.environment, **service.profile.environment, **network}


def fabric_interface(cluster: Cluster, node: Node, seen: NodeFacts) -> str:
    """Return the interface that carries the node's fabric address. Raises UnfitNode when none does."""
    found = seen.interface_of(node.fabric)
    if found is None:
        raise UnfitNode(
            f"no interface has the fabric address {node.fabric}",
            node=node.name,
            next_move=f"invoke network --cluster {cluster.flag}, or correct the cluster {cluster.name}",
        )
    return cluster.fabric.interface or found.name


def deviations(service: Service, facts: Facts) -> tuple[str, ...]:
    """Return what differs from the guide's chapter 5, each with its reason; nothing for a profile that is not its own.

    First what the suite does otherwise, as far as it is true of this cluster, then what the profile itself changes.
    """
    own = service.profile.guide
    found = () if own is None else (*_of_suite(service, facts), *(f"{what}: {why}" for what, why in own.items()))
    return tuple(f"unlike the guide, {text}" for text in found)


def _of_suite(service: Service, facts: Facts) -> Iterator[str]:
    cluster, profile, head = service.cluster, service.profile, service.cluster.head
    yield "systemd units in place of nohup: their environment is there before Ray starts, and stop leaves no process"
    yield f"the API listens on {cluster.api_host} only: it asks nobody for a key"
    if profile.executor == "ray":
        yield "Ray's dashboard is off: CVE-2023-48022 lets anyone run code through it"
        yield (
            f"Ray plans with {profile.ray_cpus} CPUs and {profile.object_store / 2**30:g} GiB of object store a node, "
            "not with all CPUs and 30 % of the memory: the GPU lives in the same memory"
        )
    if cluster.workers:
        environment = environment_of(service, head, facts[head.name])
        yield "each node has its own VLLM_HOST_IP, not the head's: vLLM finds its workers by these addresses in Ray"
        yield "the workers have a --node-ip-address: without it Ray takes that of the default route, the management one"
        interface = environment["NCCL_SOCKET_IFNAME"]
        yield f"NCCL, Gloo and TensorPipe are held to {interface}: left alone they take the default route's interface"
        if "NCCL_IB_HCA" in environment:
            yield f"NCCL_IB_HCA={environment['NCCL_IB_HCA']}: each half of the port carries half of its rate"
    if service.stack.environment:
        names = ", ".join(service.stack.environment)
        yield f"{names}: the stack sets them, config/stacks/{service.stack.name}.toml says why"


def _continued(argv: tuple[str, ...]) -> str:
    """Return argv for ExecStart, an option a line."""
    lines: list[list[str]] = [[]]
    for word in argv:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(exec_word(word))
    return " \\\n    ".join(" ".join(words) for words in lines)


def exec_word(word: str) -> str:
    """Quote a word for ExecStart=; raises ConfigError for one with control characters.

    Quotes go around a whole word, and a backslash, % and $ mean something in them too: systemd.syntax(7), Quoting, and
    systemd.service(5), COMMAND LINES.
    """
    _refuse_controls("a vllm argument", word)
    escaped = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[A-Za-z0-9@%$+=:,./_-]+", escaped):
        return escaped
    return f"'{escaped}'" if "'" not in escaped else '"' + escaped.replace('"', '\\"') + '"'


def env_value(key: str, value: str) -> str:
    """Quote a value for EnvironmentFile= (systemd.exec(5)); raises ConfigError for one with control characters."""
    _refuse_controls(key, value)
    return value if re.fullmatch(r"[\w./:,@+-]*", value) else '"' + re.sub(r'(["\\$`])', r"\\\1", value) + '"'


def _refuse_controls(what: str, value: str) -> None:
    """A line break would end the line; systemd drops a variable with any other control character, without an error."""
    if any(unicodedata.category(character) == "Cc" and character != "\t" for character in value):
        raise ConfigError(
            f"{what} holds a line break or another control character",
            next_move="remove it from the profile or the stack",
        )


def present(files: Mapping[PurePosixPath, str], seen: NodeFacts) -> bool:
    """Whether the node has exactly these files (and no unit of ours beside them)."""
    return {str(path): content for path, content in files.items()} == dict(seen.files)
