"""The way to a node as OpenSSH sees it: its own `ssh -G` reads the user's configuration, for paramiko and rsync alike.

What the cluster's file says wins: address, user, and port and key where it names them. The rest comes from the user's
configuration, for the node's name or its address. Whatever that says, every hop is checked against the cluster's own
known_hosts, nothing asks, nothing is forwarded, and no shared connection is used.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core import process
from core.config import ROOT, Cluster, Node
from core.errors import CommandFailed, ConfigError
from core.hand import user

CONNECT_TIMEOUT = 10
MOST_PULSE = 5.0

_NOBODY = "sparkstack-nobody.invalid"
"""A name that no configuration knows: what is said of it is said of every host."""
_DEPTH = 8
"""Jump hosts behind jump hosts, after which it is taken for a circle."""
Answer = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Route:
    """How one SSH server is reached. ``proxy`` is the argv of a process that connects to it on stdin and stdout."""

    host: str
    port: int
    user: str
    identities: tuple[Path, ...]
    """Private keys in the order to try them; not all need to exist."""
    identities_only: bool
    """Whether other keys of the agent stay unused."""
    agent: str | None
    """Socket of the SSH agent."""
    proxy: tuple[str, ...] | None
    jumps: tuple[str, ...]
    """Jump hosts on the way as ProxyJump names them, the one nearest to us first."""
    known_as: str
    """Its name in known_hosts."""


def strict_options(cluster: Cluster) -> dict[str, str]:
    """Return what holds for every connection, whatever the user's configuration says."""
    beat = int(pulse(cluster))
    return {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": _quoted(str(cluster.known_hosts)),
        "GlobalKnownHostsFile": "/dev/null",
        "KnownHostsCommand": "none",
        "UpdateHostKeys": "no",
        "VerifyHostKeyDNS": "no",
        "CheckHostIP": "no",
        "NoHostAuthenticationForLocalhost": "no",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "GSSAPIDelegateCredentials": "no",
        "AddKeysToAgent": "no",
        "ControlMaster": "no",
        "ControlPath": "none",
        "PermitLocalCommand": "no",
        "RemoteCommand": "none",
        "RequestTTY": "no",
        "LogLevel": "INFO",
        "ConnectionAttempts": "1",
        "ConnectTimeout": str(CONNECT_TIMEOUT),
        "ServerAliveInterval": str(beat),
        "ServerAliveCountMax": str(round(cluster.silence / beat)),
    }


def pulse(cluster: Cluster) -> float:
    """Return the seconds between two signs of life: some fit into the silence that counts as a loss."""
    return min(MOST_PULSE, cluster.silence / 4)


def route(cluster: Cluster, node: Node) -> Route:
    """Return the way to a node. Raises ConfigError for a configuration that ssh cannot read."""
    config = _way_config(cluster)
    host, said = str(node.management), _answer_for(cluster, node, config)
    port = node.ssh_port if "ssh_port" in node.model_fields_set else int(_one(said, "port", "22"))
    tokens = {"h": host, "n": node.name, "p": str(port), "r": cluster.user, "%": "%"}
    jumps, proxy = _proxy(said, config, tokens)
    keys = (ROOT / cluster.identity,) if cluster.identity else _identities(said, tokens)
    return Route(
        host=host,
        port=port,
        user=cluster.user,
        identities=keys,
        identities_only=bool(cluster.identity) or _one(said, "identitiesonly", "no") == "yes",
        agent=_agent(said),
        proxy=proxy,
        jumps=jumps,
        known_as=known_name(host, port),
    )


def hops(cluster: Cluster, way: Route, depth: int = 0) -> Iterator[Route]:
    """Return the jump hosts on the way to ``way``, the nearest first. Raises ConfigError for a circle."""
    if depth > _DEPTH and way.jumps:
        raise ConfigError(
            f"the ProxyJump of {way.jumps[0]} leads in a circle", next_move="correct it in the SSH configuration"
        )
    for number, spec in enumerate(way.jumps):
        hop = _hop(cluster, spec, way.jumps[:number])
        if number == 0:
            yield from hops(cluster, hop, depth + 1)
        yield hop


def config_of(cluster: Cluster, node: Node, way: Route) -> Path:
    """Write what ssh needs for a node, whole, without the user's configuration; return the file's path."""
    proxy = {"ProxyCommand": shlex.join(way.proxy).replace("%", "%%")} if way.proxy else {}
    options = [
        *strict_options(cluster).items(),
        ("HostName", way.host),
        ("Port", str(way.port)),
        ("User", way.user),
        ("IdentitiesOnly", "yes" if way.identities_only else "no"),
        ("IdentityAgent", _quoted(way.agent.replace("%", "%%")) if way.agent else "none"),
        *(("IdentityFile", _quoted(str(path).replace("%", "%%"))) for path in way.identities),
        *([] if way.identities else [("IdentityFile", "none")]),
        *proxy.items(),
    ]
    return _written(cluster.state / "ssh" / f"{node.name}.conf", "".join(f"{key} {value}\n" for key, value in options))


def known_name(host: str, port: int) -> str:
    """Return the name of a server in known_hosts."""
    return host if port == 22 else f"[{host}]:{port}"


def parse_answer(text: str) -> Answer:
    """Read what `ssh -G` prints: a keyword in lower case and its value a line; some keywords come several times."""
    found: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        found[key] = (*found.get(key, ()), value)
    return found


def _answer_for(cluster: Cluster, node: Node, config: Path) -> Answer:
    """Ask for the node by its name where the configuration knows that, else by its address."""
    port = [f"-p{node.ssh_port}"] if "ssh_port" in node.model_fields_set else []
    words = ["-l", cluster.user, *port, "-o", f"HostName={node.management}"]
    nobody, by_name = (_ask(config, [*words, name]) for name in (_NOBODY, node.name))
    known = {**by_name, "host": ()} != {**nobody, "host": ()}
    return by_name if known else _ask(config, [*words, str(node.management)])


def _hop(cluster: Cluster, spec: str, before: tuple[str, ...]) -> Route:
    """Return the way to a jump host: over those before it, or as the configuration says."""
    config = _way_config(cluster)
    said = _ask(config, [_uri(spec)])
    host, port, user = (_one(said, key, "") for key in ("hostname", "port", "user"))
    tokens = {"h": host, "n": _one(said, "host", host), "p": port, "r": user, "%": "%"}
    jumps, proxy = (before, _through(config, before, host, port)) if before else _proxy(said, config, tokens)
    alias = _one(said, "hostkeyalias", "")
    return Route(
        host=host,
        port=int(port),
        user=user,
        identities=_identities(said, tokens),
        identities_only=_one(said, "identitiesonly", "no") == "yes",
        agent=_agent(said),
        proxy=proxy,
        jumps=jumps,
        known_as=alias or known_name(host, int(port)),
    )


def _ask(config: Path, words: Sequence[str]) -> Answer:
    try:
        done = process.run(["ssh", "-G", "-F", str(config), *words], timeout=CONNECT_TIMEOUT * 2)
    except CommandFailed as error:
        raise ConfigError(
            "ssh cannot read the SSH configuration",
            next_move=f"correct it; see `ssh -G {words[-1]}`",
            evidence=error.evidence or error.cause,
        ) from error
    return parse_answer(done.out)


def _proxy(said: Answer, config: Path, tokens: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    jump, command = _one(said, "proxyjump", "none"), _one(said, "proxycommand", "none")
    if jump != "none":
        jumps = tuple(jump.split(","))
        return jumps, _through(config, jumps, tokens["h"], tokens["p"])
    if command == "none":
        return (), None
    if _one(said, "proxyusefdpass", "no") == "yes":
        raise ConfigError(
            f"ProxyUseFdpass cannot be used here (for {tokens['h']})",
            next_move="give this host a ProxyCommand that passes the bytes on, or ProxyJump",
        )
    return (), ("sh", "-c", f"exec {_expanded(command, tokens)}")


def _through(config: Path, jumps: tuple[str, ...], host: str, port: str) -> tuple[str, ...]:
    """Return the ssh that passes bytes on to ``host`` from the last of the jump hosts."""
    before = ("-J", ",".join(jumps[:-1])) if jumps[:-1] else ()
    return ("ssh", "-F", str(config), *before, "-W", f"[{host}]:{port}", _uri(jumps[-1]))


def _uri(spec: str) -> str:
    return spec if spec.startswith("ssh://") else f"ssh://{spec}"


def _identities(said: Answer, tokens: Mapping[str, str]) -> tuple[Path, ...]:
    own = socket.gethostname()
    more = {**tokens, "d": str(Path.home()), "u": user(), "i": str(os.getuid()), "l": own, "L": own.partition(".")[0]}
    files = (value for value in said.get("identityfile", ()) if value != "none")
    return tuple(Path(os.path.expandvars(_expanded(value, more))).expanduser() for value in files)


def _agent(said: Answer) -> str | None:
    value = _one(said, "identityagent", "SSH_AUTH_SOCK").strip('"')
    if value == "none":
        return None
    if value == "SSH_AUTH_SOCK" or value.startswith("$"):
        return os.environ.get(value.strip("${}")) or None
    return value


def _expanded(value: str, tokens: Mapping[str, str]) -> str:
    """Put in what ssh_config(5), TOKENS, lists; a token that is not known here stays as it is."""
    return re.sub(r"%(.)", lambda found: tokens.get(found[1], found[0]), value)


def _one(said: Answer, key: str, default: str) -> str:
    return said[key][0] if key in said else default


def _way_config(cluster: Cluster) -> Path:
    """Write the configuration that every ssh on a way reads: ours first, which wins, then the user's, the system's."""
    own = (ROOT / cluster.ssh_config) if cluster.ssh_config else Path.home() / ".ssh" / "config"
    if cluster.ssh_config and not own.is_file():
        raise ConfigError(
            f"ssh_config {cluster.ssh_config} does not exist", next_move=f"correct it in the cluster {cluster.name}"
        )
    lines = [
        *(f"{key} {value}" for key, value in strict_options(cluster).items()),
        *(f"Include {_quoted(str(path))}" for path in (own, Path("/etc/ssh/ssh_config"))),
    ]
    return _written(cluster.state / "ssh" / "way.conf", "".join(f"{line}\n" for line in lines))


def _written(path: Path, text: str) -> Path:
    """Keep a file as it should be; commands that run beside us read it whole."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
    return path


def _quoted(value: str) -> str:
    return f'"{value}"'
