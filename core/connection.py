"""One SSH connection: over the user's jump hosts, with the user's keys, to a host key that was enrolled.

The only importer of fabric and paramiko. Nothing here asks for anything: a key that is encrypted has to be in an agent.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from time import sleep
from typing import Any

import paramiko
from fabric import Config, Connection
from invoke.exceptions import AuthFailure, CommandTimedOut
from paramiko import Channel
from paramiko.agent import AgentSSH
from paramiko.auth_strategy import AuthSource, AuthStrategy, InMemoryPrivateKey, OnDiskPrivateKey
from paramiko.pkey import PublicBlob, UnknownKeyType
from paramiko.ssh_exception import AuthenticationException, BadHostKeyException, IncompatiblePeer, SSHException

from core.config import Cluster, Node
from core.errors import AuthenticationRefused, HostKeyRefused, NodeUnreachable, SparkstackError
from core.process import Tunnel
from core.sshroute import CONNECT_TIMEOUT, Route, pulse

__all__ = ["SSH_ERRORS", "AuthFailure", "Channel", "CommandTimedOut", "Connection", "connect", "shown_key"]

# what paramiko's thread would print of an error comes back as an exception too, and is named below
logging.getLogger("paramiko").addHandler(logging.NullHandler())

SSH_ERRORS = (SSHException, OSError, EOFError)
"""What paramiko raises when a connection is refused or lost."""
SUDO_PROMPT = "[sparkstack sudo] "
BANNER_TIMEOUT = 0.8 * CONNECT_TIMEOUT
"""Shorter than the timeout of the connection as a whole, which ends without saying what was waited for."""


def connect(cluster: Cluster, node: Node, way: Route) -> Connection:
    """Return an open connection to a node. Raises our errors for what is refused on the way, and SSH_ERRORS."""
    _require_made(cluster, node)
    keys = _Keys(way)
    overrides = {"sudo": {"prompt": SUDO_PROMPT}, "authentication": {"strategy_class": partial(_given, keys)}}
    with ExitStack() as stack:
        stack.callback(keys.close)
        tunnel = Tunnel(way.proxy) if way.proxy else None
        connection = Connection(
            way.host,
            user=way.user,
            port=way.port,
            # lazy, and an SSH configuration without a line: no file of fabric's or ssh's is read here, see sshroute.py
            config=Config(lazy=True, ssh_config=paramiko.SSHConfig(), overrides=overrides),
            connect_timeout=CONNECT_TIMEOUT,
            forward_agent=False,
            connect_kwargs={"banner_timeout": BANNER_TIMEOUT, **({"sock": tunnel} if tunnel else {})},
        )
        # fabric's default accepts unknown keys: https://docs.fabfile.org/en/latest/api/connection.html
        connection.client.set_missing_host_key_policy(_Refuse(cluster, node))
        if cluster.known_hosts.is_file():
            connection.client.load_host_keys(str(cluster.known_hosts))
        with _torn_down(connection, tunnel), _named(cluster, node, way, keys, tunnel):
            connection.open()
    _watch(connection.client.get_transport(), tunnel, cluster)
    return connection


def shown_key(cluster: Cluster, node: Node, way: Route, types: tuple[str, ...] = ()) -> tuple[str, str] | None:
    """Return type and base64 of the host key that a server shows, the best of ``types`` or of all it has.

    It is not trusted by this, and nobody logs in. None where it has no key of these types. Raises NodeUnreachable, and
    HostKeyRefused for a jump host before it.
    """
    _require_made(cluster, node)
    tunnel = Tunnel(way.proxy) if way.proxy else None
    try:
        with ExitStack() as stack:
            line: socket.socket = tunnel or socket.create_connection((way.host, way.port), CONNECT_TIMEOUT)
            stack.callback(line.close)
            with closing(paramiko.Transport(line)) as transport:
                transport.banner_timeout = BANNER_TIMEOUT
                if types and not _only(transport, types):
                    return None
                transport.start_client(timeout=CONNECT_TIMEOUT)
                key = transport.get_remote_server_key()
                return key.get_name(), key.get_base64()
    except IncompatiblePeer:
        return None
    except SSH_ERRORS as error:
        raise _on_the_way(cluster, node, tunnel) or NodeUnreachable(
            f"no SSH server answers on {way.host} port {way.port}",
            node=node.name,
            next_move=f"check power, cable and the address in the cluster {cluster.name}",
            evidence=tunnel.said() if tunnel else str(error),
        ) from error


def _require_made(cluster: Cluster, node: Node) -> None:
    """Refuse a local machine that `lab.up` has never made: somebody else may answer at its address.

    `lab.up` writes the host keys, and has the machines' subnets end at this host.
    """
    if cluster.lab is not None and not cluster.known_hosts.is_file():
        raise NodeUnreachable(
            "this local machine has never been made",
            node=node.name,
            next_move=f"invoke lab.up --cluster {cluster.flag}",
        )


def _only(transport: paramiko.Transport, types: tuple[str, ...]) -> bool:
    """Take host keys of these types only; False where none of them can be read here."""
    options = transport.get_security_options()
    signatures = {one for kind in types for one in (("rsa-sha2-512", "rsa-sha2-256") if kind == "ssh-rsa" else (kind,))}
    wanted = [kind for kind in options.key_types if kind in signatures]
    if wanted:
        options.key_types = wanted
    return bool(wanted)


@contextmanager
def _torn_down(connection: Connection, tunnel: Tunnel | None) -> Iterator[None]:
    """Leave nothing of a connection that was not made."""
    try:
        yield
    except BaseException:
        connection.client.close()
        if tunnel:
            tunnel.close()
        raise


@contextmanager
def _named(cluster: Cluster, node: Node, way: Route, keys: _Keys, tunnel: Tunnel | None) -> Iterator[None]:
    try:
        yield
    except BadHostKeyException as error:
        raise _changed_key(cluster, node, error) from error
    except AuthenticationException as error:
        raise _refused(cluster, node, way, keys, error) from error
    except SSH_ERRORS as error:
        refused = _on_the_way(cluster, node, tunnel) or _no_banner(cluster, node, way, error)
        if refused is None:
            raise
        raise refused from error


def _no_banner(cluster: Cluster, node: Node, way: Route, error: BaseException) -> NodeUnreachable | None:
    """Name what paramiko calls "Error reading SSH protocol banner": the port is taken by something that is no sshd."""
    if way.proxy or "SSH protocol banner" not in str(error):
        return None
    silent = isinstance(error.__context__, TimeoutError)
    what = f"says nothing for {BANNER_TIMEOUT:.0f} s" if silent else "closes the connection at once"
    return NodeUnreachable(
        f"no SSH server: what accepts connections at {way.host} port {way.port} {what}",
        node=node.name,
        next_move=f"check the address in the cluster {cluster.name}; a firewall, a proxy or a port forward on the way "
        "answers for machines that are off, and an sshd that starts or has too many logins closes connections",
        evidence=str(error),
    )


def _watch(transport: paramiko.Transport, tunnel: Tunnel | None, cluster: Cluster) -> None:
    """Have a connection end that has been silent for as long as the cluster allows."""
    transport.set_keepalive(pulse(cluster))
    if tunnel is not None:
        answered = Event()
        for body, seconds in ((_ask, pulse(cluster)), (_judge, cluster.silence)):
            Thread(target=body, args=(transport, answered, seconds), daemon=True).start()
    elif isinstance(transport.sock, socket.socket):
        transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(cluster.silence * 1000))


def _ask(transport: paramiko.Transport, answered: Event, seconds: float) -> None:
    """Ask the server for a sign of life again and again: behind a jump host the kernel cannot tell that it is gone."""
    while transport.is_active():
        with suppress(*SSH_ERRORS):  # the connection is closed
            transport.global_request("keepalive@openssh.com")
        answered.set()
        sleep(seconds)


def _judge(transport: paramiko.Transport, answered: Event, seconds: float) -> None:
    while transport.is_active():
        answered.clear()
        if not answered.wait(seconds):
            transport.close()


def _on_the_way(cluster: Cluster, node: Node, tunnel: Tunnel | None) -> SparkstackError | None:
    """Return what ssh refused on the way to the node: what it says itself is the evidence."""
    said = tunnel.said() if tunnel else ""
    if "Host key verification failed" in said:
        changed = "HAS CHANGED" in said
        replace = " --replace" if changed else ""
        return HostKeyRefused(
            "the host key of a jump host " + ("has CHANGED" if changed else "is not known"),
            node=node.name,
            next_move=f"invoke trust --cluster {cluster.flag} --node {node.name}{replace}",
            evidence=_lines_of_use(said),
        )
    if "Permission denied" in said:
        return AuthenticationRefused(
            "a jump host does not accept our keys",
            node=node.name,
            next_move="put the public key there, name the key in the SSH configuration, or add it to the agent",
            evidence=_lines_of_use(said),
        )
    if said:
        return NodeUnreachable(
            f"no way to {node.management}",
            node=node.name,
            next_move="try the ProxyJump or ProxyCommand of the SSH configuration by hand",
            evidence=_lines_of_use(said),
        )
    return None


def _lines_of_use(said: str) -> str:
    return "\n".join(line for line in said.splitlines() if line.strip("@ "))


def _refused(
    cluster: Cluster, node: Node, way: Route, keys: _Keys, error: AuthenticationException
) -> AuthenticationRefused:
    locked = ", ".join(map(str, keys.encrypted))
    if locked:
        return AuthenticationRefused(
            f"{way.user}@{way.host} was offered no key that it accepts; {locked} is encrypted and in no agent",
            node=node.name,
            next_move=f"ssh-add {keys.encrypted[0]}",
            evidence="\n".join(keys.notes),
        )
    key = cluster.identity or "the keys of the SSH agent and ~/.ssh"
    return AuthenticationRefused(
        f"{way.user}@{way.host} does not accept {key}",
        node=node.name,
        next_move=f"put the public key there: ssh-copy-id {way.user}@{way.host}",
        evidence="\n".join([*keys.notes, str(error).strip()]),
    )


def _changed_key(cluster: Cluster, node: Node, error: BadHostKeyException) -> HostKeyRefused:
    return HostKeyRefused(
        f"the host key of {node.management} has CHANGED: it is {error.key.fingerprint}, "
        f"enrolled is {error.expected_key.fingerprint}",
        node=node.name,
        next_move="find out why (reinstalled? another machine at that address?), then "
        f"invoke trust --cluster {cluster.flag} --node {node.name} --replace",
    )


class _Refuse(paramiko.MissingHostKeyPolicy):
    """Refuse an unknown host key with the command that enrols it."""

    def __init__(self, cluster: Cluster, node: Node) -> None:
        self._cluster = cluster
        self._node = node

    def missing_host_key(self, client: object, hostname: str, key: paramiko.PKey) -> None:  # noqa: ARG002 - paramiko's
        raise HostKeyRefused(
            f"the host key of {hostname} is not known ({key.get_name()} {key.fingerprint})",
            node=self._node.name,
            next_move=f"invoke trust --cluster {self._cluster.flag} --node {self._node.name}",
        )


def _given(keys: _Keys, **_: Any) -> _Keys:
    """Take the place of the class that fabric would make with its own configuration."""
    return keys


class _Keys(AuthStrategy):
    """The keys to try, in the order of OpenSSH: those of the files that the agent has, its others, the files."""

    def __init__(self, way: Route) -> None:
        super().__init__(ssh_config=paramiko.SSHConfig())
        self._way = way
        self._agent = _Agent()
        self.encrypted: list[Path] = []
        """Files that could not be used without their passphrase."""
        self.notes: list[str] = []

    def get_sources(self) -> Iterator[AuthSource]:
        """Return what to try."""
        if self._way.agent:
            self._agent.open(self._way.agent, self.notes)
        held = {key.asbytes(): key for key in self._agent.get_keys()}
        files = [path for path in self._way.identities if path.is_file()]
        public = {path: _public_part(path) for path in files}
        named = [held[blob] for blob in public.values() if blob in held]
        blind = any(blob is None for blob in public.values())  # the agent may hold it all the same
        others = [] if self._way.identities_only and not blind else [key for key in held.values() if key not in named]
        for key in (*named, *others):
            yield InMemoryPrivateKey(self._way.user, key)
        for path in files:
            if public[path] not in held and (private := self._loaded(path)):
                yield OnDiskPrivateKey(self._way.user, "python-config", path, private)

    def _loaded(self, path: Path) -> paramiko.PKey | None:
        try:
            return paramiko.PKey.from_path(path)
        except (TypeError, paramiko.PasswordRequiredException):  # cryptography's word for a passphrase that is missing
            self.encrypted.append(path)
        except (ValueError, OSError, SSHException, UnknownKeyType) as error:
            self.notes.append(f"{path} cannot be used: {error}")
        return None

    def close(self) -> None:
        """Let go of the agent."""
        self._agent.close()


def _public_part(path: Path) -> bytes | None:
    """Return the public key beside a private one."""
    public = path.with_name(f"{path.name}.pub")
    try:
        words = public.read_text(encoding="utf-8").split() if public.is_file() else []
        return PublicBlob.from_string(" ".join(words[:2])).key_blob if len(words) > 1 else None
    except (ValueError, OSError):
        return None


class _Agent(AgentSSH):
    """The SSH agent behind a socket; paramiko's own knows only the one of SSH_AUTH_SOCK."""

    def open(self, path: str, notes: list[str]) -> None:
        """Ask it for its keys; one that cannot be asked is as none, and noted."""
        line = socket.socket(socket.AF_UNIX)
        try:
            line.settimeout(CONNECT_TIMEOUT)
            line.connect(path)
            self._connect(line)  # type: ignore[attr-defined]
        except (OSError, SSHException) as error:
            line.close()
            notes.append(f"the SSH agent at {path} does not answer: {error}")

    def close(self) -> None:
        """Let go of it."""
        self._close()  # type: ignore[attr-defined]
