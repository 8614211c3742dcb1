"""Every file that a node has while it serves: units, environment, what is wanted, our own code; rendered purely."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from core.config import RAY_PORTS, ROOT, Cluster, Node
from core.errors import ConfigError
from core.facts import Facts, NodeFacts
from core.units import SUPERVISOR
from deploy.environment import interpreter
from deploy.need import need_of
from deploy.shape import read_shape
from serve.api.tls import CADDYFILE, proxy_files
from serve.cluster import UNIT_FOLDER, Service
from serve.commands import WORKER_PORTS, environment_of, fabric_interface, rank_argv, vllm_argv
from serve.templates import render

ETC = PurePosixPath("/etc/sparkstack")
NODE_ENV = ETC / "node.env"
WANTED = ETC / "service.json"
FIREWALL = ETC / "firewall.nft"
CODE = PurePosixPath("/usr/local/lib/sparkstack")
MARKER = "made by sparkstack (invoke serve); changes are overwritten"
PACKAGES = ("nftables",)
"""Debian packages that a node needs besides those of its stack: what keeps Ray's ports closed."""


def files_of(service: Service, facts: Facts) -> dict[str, dict[PurePosixPath, str]]:
    """Return path and content of every file of every node, by node."""
    nodes = service.cluster.nodes
    files = {node.name: _plain(service, node, facts[node.name]) for node in nodes}
    wanted = {node.name: _wanted(service, node, facts) for node in nodes}
    generation = _generation(files, wanted)
    return {
        name: {**files[name], WANTED: json.dumps({"generation": generation, **wanted[name]}, indent=1) + "\n"}
        for name in files
    }


def _generation(files: Mapping[str, Mapping[PurePosixPath, str]], wanted: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a name for all of it: supervisors with another one are of another service."""
    told = [[node, str(path), text] for node, found in files.items() for path, text in found.items()]
    return hashlib.sha256(json.dumps([told, wanted], sort_keys=True).encode()).hexdigest()[:16]


def _plain(service: Service, node: Node, seen: NodeFacts) -> dict[PurePosixPath, str]:
    values = _values(service, node, seen)
    units = (SUPERVISOR, *service.units_of(node))
    environment = {key: env_value(key, value) for key, value in environment_of(service, node, seen).items()}
    return {
        **{UNIT_FOLDER / f"{name}.service": render(f"{name}.service", **values) for name in units},
        NODE_ENV: render("node.env", marker=MARKER, environment=environment),
        FIREWALL: render("firewall.nft", **values),
        **(proxy_files(service.cluster, MARKER) if node == service.cluster.head else {}),
        **code(),
    }


def _values(service: Service, node: Node, seen: NodeFacts) -> dict[str, Any]:
    cluster, python = service.cluster, interpreter(service.cluster, service.release)
    return {
        "marker": MARKER,
        "cluster": cluster,
        "node": node,
        "profile": service.profile,
        "service": service,
        "cuda": service.stack.cuda,
        "code": CODE,
        "python": python,
        "ray": python.parent / "ray",
        "worker_ports": WORKER_PORTS,
        "fabric": fabric_interface(cluster, node, seen),
        "closed": closed_ports(cluster, seen),
        "engine_url": cluster.engine_url.removesuffix("/v1"),
        "model_name": exec_word(service.profile.served_names[0]),
        "vllm": continued(vllm_argv(service)),
        "rank": continued(rank_argv(service, node)) if node in service.ranked else "",
        "home": python.is_relative_to("/home") or service.model.is_relative_to("/home"),
    }


def closed_ports(cluster: Cluster, seen: NodeFacts) -> tuple[str, ...]:
    """Return the TCP ports that only the fabric may reach, as nft writes ranges (docs/ports.md).

    Those that the node's kernel gives to who asks for any are among them: PyTorch's store of a Ray executor listens at
    one. Answers to our own connections are let in before.
    """
    ranges = (
        (cluster.ray_port, cluster.ray_port + RAY_PORTS - 1),
        (10001, WORKER_PORTS[1]),
        (cluster.master_port, cluster.master_port),
        (cluster.supervision.port, cluster.supervision.port),
        seen.port_range,
    )
    return tuple(str(first) if first == last else f"{first}-{last}" for first, last in merged(ranges))


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges that share nothing: nft takes no others in one set."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def _wanted(service: Service, node: Node, facts: Facts) -> dict[str, Any]:
    """Return the node's service.json (serve/onnode/wanted.py) but for its generation."""
    cluster, profile, own = service.cluster, service.profile, service.cluster.supervision
    return {
        "cluster": cluster.name,
        "profile": profile.name,
        "release": service.release,
        "node": node.name,
        "head": cluster.head.name,
        "addresses": {one.name: str(one.fabric) for one in cluster.nodes},
        "port": own.port,
        "stages": service.stages,
        "memory": {one.name: memory(service, facts[one.name]) for one in service.ranked},
        "limits": {"start": profile.ready_timeout, "delays": own.delays, "attempts": own.attempts, "lost": own.lost},
        "user": cluster.user,
        "root": str(cluster.root),
        "hook": own.hook,
        "api": {"url": cluster.api_url, "tls": cluster.api.tls is not None},
        "models": profile.served_names,
    }


def memory(service: Service, seen: NodeFacts) -> int:
    """Return the bytes that have to be available before a start, in steps of 256 MiB; 0 where nobody can tell."""
    text = seen.condition.model_config
    need = need_of(service.profile, read_shape(text) if text else None, seen).total
    step = 256 * 2**20
    return -(-need // step) * step if need else 0


def code() -> dict[PurePosixPath, str]:
    """Return our code that runs on nodes."""
    folder = ROOT / "serve" / "onnode"
    files = {CODE / "serve/__init__.py": '"""Copied by sparkstack."""\n'}
    for path in sorted(folder.glob("*.py")):
        files[CODE / "serve/onnode" / path.name] = path.read_text(encoding="utf-8")
    return files


def present(files: Mapping[PurePosixPath, str], seen: NodeFacts) -> bool:
    """Whether the node has exactly these files, and none of ours beside them."""
    return not lacking(files, seen) and not stale(files, seen)


def lacking(files: Mapping[PurePosixPath, str], seen: NodeFacts) -> list[PurePosixPath]:
    """Return the files that the node does not have, or has with another content."""
    return [path for path, content in files.items() if seen.files.get(str(path)) != content]


def stale(files: Mapping[PurePosixPath, str], seen: NodeFacts) -> list[str]:
    """Return files of serve/ that the node has and should not have; others' (monitor, keys) are left alone."""
    ours = re.compile(
        rf"{UNIT_FOLDER}/sparkstack-(supervisor|ray-head|ray-worker|vllm|rank|proxy)\.service|{CADDYFILE}|{CODE}/.*"
    )
    return sorted(path for path in seen.files if ours.fullmatch(path) and PurePosixPath(path) not in files)


def continued(argv: tuple[str, ...]) -> str:
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
