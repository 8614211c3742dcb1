"""Configuration: TOML files to frozen models, read once.

A cluster says which machines, a stack which wheels, a profile which model and how it is served. Every mistake is
refused with the file, the key, what was expected and the nearest spelling.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from core.api import Api, Tls
from core.backend import Backend, Interpreter
from core.errors import ConfigError, UsageError
from core.fields import Address, Environment, Folder, Model, Name, Size, Subnet, parse_size
from core.mistakes import explain, nearest
from core.supervision import Supervision

# the kinds of values of core/fields.py and core/api.py are found here too
__all__ = ("Address", "Api", "Environment", "Folder", "Model", "Name", "Size", "Subnet", "Tls", "parse_size")

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "config"
WORK = ROOT / ".work"
DIST = ROOT / "dist"

RAY_PORTS = 3
"""Ports from `ray_port` on that Ray listens at: its control store, node manager, object manager."""

M = TypeVar("M", bound="Model")


class Network(Model):
    """A named network of the cluster."""

    subnet: Subnet
    interface: str | None = None
    """Only where facts cannot find it by address."""


class Node(Model):
    """One machine of the cluster; the first one is the head."""

    name: Name
    management: Address
    fabric: Address
    ssh_port: Annotated[int, Field(ge=1, le=65535)] = 22
    local: bool = False
    """The node is the host that runs this suite: no SSH."""


class Lab(Model):
    """How the local machines of a cluster are made (`invoke lab.up`); absent for clusters of real machines."""

    disk: Size = 12 * 1024**3
    memory: Size = 5 * 1024**3
    password_sudo: tuple[Name, ...] = ()
    """Names of machines where sudo asks for a password, as it does on a Spark."""


class Cluster(Model):
    """One to N nodes with a management network and a fabric between them."""

    name: Name
    stack: Name
    profile: Name
    """What `invoke serve` serves when no other profile is named."""
    user: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]*$")]
    root: Folder = Path("/opt/sparkstack")
    """Where releases, wheels and models live on every node."""
    management: Network
    fabric: Network
    nodes: Annotated[tuple[Node, ...], Field(min_length=1)]
    api: Api = Api()
    ray_port: Annotated[int, Field(ge=1, le=65533)] = 6379
    master_port: Annotated[int, Field(ge=1, le=65535)] = 29501
    """Where the ranks meet on the head's fabric address, with the executor mp."""
    supervision: Supervision = Supervision()
    backend: Backend = Backend()
    """What makes the environment of a release."""
    identity: Path | None = None
    """SSH private key, relative to the project; without it the agent and ~/.ssh/config decide."""
    ssh_config: Path | None = None
    """SSH configuration that counts in place of ~/.ssh/config, relative to the project."""
    allowed_signers: Path | None = None
    """Who may sign releases (ssh-keygen(1), ALLOWED SIGNERS), relative to the project; nodes then install no other."""
    push: Literal["auto", "direct", "relay"] = "auto"
    """How wheels reach the nodes: each from here, or one from here and the others from it over the fabric."""
    silence: Annotated[float, Field(ge=4, le=600)] = 20
    """Seconds without an answer after which a connection counts as lost; a lock on a node lives half as long again."""
    askpass: Path | None = None
    """A program that prints the sudo password, as SUDO_ASKPASS; without it the terminal is asked once."""
    lab: Lab | None = None
    _given: str = PrivateAttr("")

    @property
    def flag(self) -> str:
        """What `--cluster` takes for this cluster: its name, or the path that it was read from."""
        return self._given or self.name

    @property
    def miniforge(self) -> Path:
        """The owner's Miniforge on a node; without the key it lies where the guide has it."""
        return self.backend.miniforge or Path("/home") / self.user / "miniforge3"

    @property
    def prefix(self) -> Path:
        """The environment as conda knows it: a link to that of the release in use."""
        return self.backend.prefix or self.miniforge / "envs" / self.backend.name

    @property
    def head(self) -> Node:
        """The node that runs the Ray head and the API."""
        return self.nodes[0]

    @property
    def workers(self) -> tuple[Node, ...]:
        """Every node but the head."""
        return self.nodes[1:]

    @property
    def state(self) -> Path:
        """Folder on this host for what belongs to this cluster: known hosts, lock, lab disks."""
        return WORK / "clusters" / self.name

    @property
    def known_hosts(self) -> Path:
        """Our own known_hosts file for this cluster."""
        return self.state / "known_hosts"

    @property
    def api_host(self) -> Address:
        """Address that the API listens on."""
        return self.head.management if self.api.listen == "management" else Address("127.0.0.1")

    @property
    def api_url(self) -> str:
        """Base URL of the OpenAI API, as clients use it."""
        tls = self.api.tls
        name = tls.name if isinstance(tls, Tls) else None
        return f"{'https' if tls else 'http'}://{name or self.api_host}:{self.api.port}/v1"

    @property
    def engine_host(self) -> Address:
        """Address that vLLM itself listens on: with TLS the proxy has the other one."""
        return Address("127.0.0.1") if self.api.tls else self.api_host

    @property
    def engine_url(self) -> str:
        """Base URL of vLLM itself, on the head."""
        return f"http://{self.engine_host}:{self.api.port}/v1"

    def with_tls(self) -> Cluster:
        """Return this cluster with its API behind TLS. Raises UsageError where the API listens on loopback."""
        if self.api.listen == "loopback":
            raise UsageError(
                "--tls is for an API on the management network; this one listens on the head's own loopback",
                next_move=f'leave --tls out, or write listen = "management" into the cluster {self.name}',
            )
        return (
            self if self.api.tls else self.model_copy(update={"api": self.api.model_copy(update={"tls": "internal"})})
        )

    def node(self, name: str) -> Node:
        """Return the node called ``name``; raise ConfigError with the nearest spelling."""
        for node in self.nodes:
            if node.name == name:
                return node
        names = [node.name for node in self.nodes]
        raise ConfigError(
            f"cluster {self.name} has no node {name!r}{nearest(name, names)}",
            next_move=f"use one of: {', '.join(names)}",
        )

    @model_validator(mode="after")
    def _networks_are_two(self) -> Self:
        if self.management.subnet.overlaps(self.fabric.subnet) and len(self.nodes) > 1:
            raise ValueError("fabric.subnet and management.subnet are the same network; the fabric needs its own")
        return self

    @model_validator(mode="after")
    def _addresses_are_in_their_network(self) -> Self:
        for node in self.nodes:
            for kind in ("management", "fabric"):
                address: Address = getattr(node, kind)
                subnet: Subnet = getattr(self, kind).subnet
                if address not in subnet:
                    raise ValueError(f"nodes.{node.name}.{kind} {address} is not in {kind}.subnet {subnet}")
                if subnet.prefixlen < 31 and address in {subnet.network_address, subnet.broadcast_address}:
                    raise ValueError(f"nodes.{node.name}.{kind} {address} belongs to the network itself, not to a node")
        return self

    @model_validator(mode="after")
    def _nodes_differ(self) -> Self:
        for kind in ("name", "management", "fabric"):
            values = [getattr(node, kind) for node in self.nodes]
            if len(set(values)) < len(values):
                raise ValueError(f"two nodes have the same {kind}")
        if sum(node.local for node in self.nodes) > 1:
            raise ValueError("only one node can be this host (local = true)")
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.api.port in range(self.ray_port, self.ray_port + RAY_PORTS):
            raise ValueError(
                f"api.port is {self.api.port}; Ray has ray_port {self.ray_port} and the two ports after it"
            )
        return self

    @model_validator(mode="after")
    def _lab_names_are_nodes(self) -> Self:
        unknown = set(self.lab.password_sudo) - {node.name for node in self.nodes} if self.lab else set()
        if unknown:
            raise ValueError(f"lab.password_sudo names no node: {', '.join(sorted(unknown))}")
        return self


class Component(Model):
    """One distribution of a stack and where it comes from."""

    origin: Literal["source", "image", "index"]
    version: str
    recipe: str | None = None
    """With origin "source": the file in build/recipes, without .toml."""
    variant: str | None = None
    """The recipe's variant, where it is not the plain one."""
    image: str | None = None
    """With origin "image": registry/repository@sha256:digest."""
    redistributable: bool | None = None
    """Whether others may be given the wheel; without the key, what comes from an image may not (NVIDIA's licence)."""
    guide: str | None = None
    """Only where the version is not the guide's: which one that has, and why it is another here."""

    @property
    def may_be_given(self) -> bool:
        """Whether `invoke publish` may give the wheel to everybody."""
        return self.origin != "image" if self.redistributable is None else self.redistributable

    @model_validator(mode="after")
    def _origin_has_its_key(self) -> Self:
        wanted = {"source": "recipe", "image": "image"}.get(self.origin)
        if wanted and getattr(self, wanted) is None:
            raise ValueError(f'origin "{self.origin}" needs the key "{wanted}"')
        return self


class Index(Model):
    """A package index besides the default one, for named distributions only."""

    url: str
    distributions: tuple[str, ...]
    fallback_note: str = ""
    """What a user should know when the distribution can be had only from the default index (size, kind)."""
    fallback_lock: Path | None = None
    """Lock that takes the place of these distributions when the user agrees to that (`--fallback`)."""


class Stack(Model):
    """A set of components that fit each other, and the lock that holds the index part by hash."""

    name: Name
    description: str
    lock: Path
    """Hashed requirements of the index part, relative to the project."""
    platforms: tuple[str, ...]
    """Architectures as `uname -m` says them."""
    python: tuple[str, ...]
    """Python minor versions of the nodes that the lock holds wheels for."""
    interpreters: tuple[Interpreter, ...] = ()
    """Pythons that are brought to nodes which have none of these versions."""
    cuda: str | None = None
    architectures: tuple[str, ...] = ()
    """GPU architectures that device code is built for and has to run on, as nvcc names them (`121`)."""
    components: dict[str, Component]
    indexes: tuple[Index, ...] = ()
    glibc: Annotated[str, Field(pattern=r"^2\.\d+$")] | None = None
    """Newest glibc that a wheel may ask for; without it the lock is for every machine (one of the wheels must fit)."""
    exclude_newer: date | None = None
    """Last day (UTC) of uploads to the index that count when the lock is made; the same day gives the same lock."""
    requires: tuple[str, ...] = ()
    """Requirements of the index part besides those of the components and what they require."""
    overrides: dict[str, str] = Field(default_factory=dict)
    """Requirements that take the place of every other one on the same distribution, each with its reason."""
    without: dict[str, str] = Field(default_factory=dict)
    """Required distributions left out on purpose, each with its reason."""
    imports: tuple[str, ...] = ()
    """Modules that must import on every node before a release is taken into use."""
    packages: tuple[str, ...] = ()
    """Debian packages that every node needs."""
    environment: Environment = Field(default_factory=dict)
    """Environment of every process of the stack."""


class Profile(Model):
    """One model, and how it is served."""

    name: Name
    model: str
    """Folder on every node; relative paths are below the cluster root's models/."""
    repository: str | None = None
    """Where `invoke model.fetch` has it from, as the hubs name it: owner/name."""
    revision: str | None = None
    """Its commit on Hugging Face (or a branch or tag, which may be another model tomorrow)."""
    served_names: Annotated[tuple[str, ...], Field(min_length=1)]
    pipeline_parallel: Annotated[int, Field(ge=1)] = 1
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    executor: Literal["ray", "mp"] = "ray"
    flags: tuple[str, ...] = ()
    """Further `vllm serve` arguments, one word each."""
    environment: Environment = Field(default_factory=dict)
    ray_cpus: Annotated[int, Field(ge=1)] = 2
    """Logical CPUs that Ray may plan with on each node; vLLM needs few."""
    object_store: Size = 1024**3
    """Ray's shared memory on each node; vLLM passes little through it."""
    ready_timeout: Annotated[int, Field(gt=0)] = 300
    """Seconds until the first token must have come."""
    stall_timeout: Annotated[int, Field(ge=5)] = 25
    """Seconds without any move of a token, while somebody waits for one, after which all ranks are ended."""
    guide: dict[str, str] | None = None
    """Only in a profile that is the guide's: what it does otherwise, each with its reason; plans to serve note it."""

    @property
    def ranks(self) -> int:
        """GPUs that it needs in all."""
        return self.pipeline_parallel * self.tensor_parallel


def load_cluster(name: str) -> Cluster:
    """Read `config/clusters/NAME.toml`, or the file that a path names."""
    cluster = _load(Cluster, _file("clusters", name))
    cluster._given = name
    return cluster


def load_stack(name: str) -> Stack:
    """Read `config/stacks/NAME.toml`, or the file that a path names."""
    return _load(Stack, _file("stacks", name))


def load_profile(name: str) -> Profile:
    """Read `config/profiles/NAME.toml`, or the file that a path names."""
    return _load(Profile, _file("profiles", name))


def load_model(model: type[M], path: Path) -> M:
    """Read any TOML file as ``model``; ``name`` is the file's stem unless the file says otherwise.

    Raises ConfigError with the file, the key and the nearest spelling.
    """
    return _load(model, path)


def shown(path: Path) -> str:
    """Return a path as people read it: relative to the project where it lies within."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _file(kind: str, name: str) -> Path:
    if name.endswith(".toml"):
        return Path(name)
    path = CONFIG / kind / f"{name}.toml"
    if "/" in name or not path.is_file():
        names = sorted(found.stem for found in (CONFIG / kind).glob("*.toml"))
        raise ConfigError(
            f"config/{kind}/{name}.toml does not exist{nearest(name, names)}",
            next_move=f"use one of: {', '.join(names)}; or give a path that ends in .toml",
        )
    return path


def _load(model: type[M], path: Path) -> M:
    return load_data(model, path, read_toml(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file as it is. Raises ConfigError when it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{shown(path)} cannot be read: {error.strerror}", next_move="check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown(path)} is not TOML: {error}", next_move="correct that line") from error


def load_data(model: type[M], path: Path, data: Mapping[str, Any]) -> M:
    """Return what was read from ``path`` as ``model``. Raises ConfigError as load_model() does."""
    try:
        # through JSON, because there pydantic can be strict (no "8000" for a port) and still read addresses from text
        return model.model_validate_json(json.dumps({"name": path.stem, **data}, default=str), strict=True)
    except ValidationError as error:
        raise explain(shown(path), model, error) from error
