"""A node over SSH, and the nodes of a cluster together. The only importer of fabric.

Host keys are verified against the cluster's own known_hosts and nothing else; commands are argv lists that are quoted
in one place; the sudo password is asked once a run, kept in memory and goes over stdin.
"""

from __future__ import annotations

import logging
import shlex
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from threading import Lock

import paramiko
from fabric import Config, Connection
from invoke.exceptions import AuthFailure, CommandTimedOut
from paramiko.ssh_exception import AuthenticationException, BadHostKeyException, SSHException

from core import process
from core.config import ROOT, Cluster, Node
from core.errors import (
    AuthenticationRefused,
    CommandFailed,
    HostKeyRefused,
    NodeUnreachable,
    SparkstackError,
    UnfitNode,
)
from core.host import BULK, CONTROLLER, RSYNC_FLAGS, Held, Host, OnLine, SudoPassword, checked, install, temporary_path
from core.local import LocalHost
from core.process import Completed, Conversation

# what paramiko's thread would print of an error comes back as an exception too, and is named below
logging.getLogger("paramiko").addHandler(logging.NullHandler())

CONNECT_TIMEOUT = 10
SILENCE_LIMIT = 20
"""Seconds without any answer after which a connection counts as lost."""


class SshHost:
    """A node over SSH."""

    def __init__(self, cluster: Cluster, node: Node, password: SudoPassword) -> None:
        self.name = node.name
        self._cluster = cluster
        self._node = node
        self._password = password
        self._lock = Lock()
        self._connection: Connection | None = None
        self._sudo_asks: bool | None = None

    def run(
        self,
        argv: Sequence[str],
        *,
        privileged: bool = False,
        check: bool = True,
        timeout: float = 120,
        on_line: OnLine | None = None,
    ) -> Completed:
        """Run ``argv`` on the node; this is the one place where an argv list becomes a string for a shell."""
        command = shlex.join(argv)
        options = {"hide": True, "warn": True, "in_stream": False, "timeout": timeout, "encoding": "utf-8"}
        if on_line is not None:
            options |= {"out_stream": _Lines(on_line), "hide": "err"}
        with self._named_errors(command, timeout):
            connection = self._connected()
            if privileged:
                password = self._password(self.name) if self._asks_for_password(connection) else ""
                result = connection.sudo(command, password=password, **options)
            else:
                result = connection.run(command, **options)
        done = Completed(tuple(argv), result.exited, result.stdout, result.stderr.replace(_PROMPT, ""))
        if done.code == -1:
            raise self._lost("the connection broke while a command ran")
        return checked(self.name, done) if check else done

    def write(self, path: PurePosixPath, content: str, *, mode: int = 0o644, privileged: bool = False) -> None:
        """Replace the file at ``path`` atomically: to a temporary name over SFTP, then `install` and rename."""
        temporary = temporary_path()
        with (
            self._named_errors(f"write {path}", CONNECT_TIMEOUT),
            self._connected().sftp().open(temporary, "wx") as file,
        ):
            file.chmod(0o600)  # before anything is in it: some contents are secret
            file.write(content.encode())
        install(self, temporary, path, mode, privileged=privileged)

    def push(self, sources: Sequence[Path], destination: PurePosixPath, on_line: OnLine) -> None:
        """Copy files into ``destination`` with rsync over the same key and known hosts."""
        self._rsync([*map(str, sources), f"{self._address}:{destination}/"], on_line)

    def pull(self, source: PurePosixPath, destination: Path, on_line: OnLine) -> None:
        """Make the local folder ``destination`` equal to the node's ``source``."""
        self._rsync(["--delete", f"{self._address}:{source}/", f"{destination}/"], on_line)

    @property
    def _address(self) -> str:
        return f"{self._cluster.user}@{self._node.management}"

    def _rsync(self, arguments: Sequence[str], on_line: OnLine) -> None:
        self.run(["true"])  # a refused key or host key is told apart here, better than from rsync's code
        argv = ["rsync", f"--timeout={SILENCE_LIMIT}", *RSYNC_FLAGS, "-e", shlex.join(self.ssh_argv()), *arguments]
        done = process.follow(argv, on_line, check=False)
        # https://download.samba.org/pub/rsync/rsync.1#EXIT_VALUES: 10, 12, 30, 35, and ssh's 255, are the connection's
        if done.code in (10, 12, 30, 35, 255) and "No space left" not in done.out:
            raise self._lost("the connection broke during the transfer", done.tail(5))
        checked(self.name, done)

    def ssh_argv(self) -> list[str]:
        """Return the ssh command (without the address) that holds to the same rules as our own connections."""
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self._cluster.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "ConnectTimeout": str(CONNECT_TIMEOUT),
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": str(SILENCE_LIMIT // 5),
        }
        identity = (
            ["-i", str(ROOT / self._cluster.identity), "-o", "IdentitiesOnly=yes"] if self._cluster.identity else []
        )
        return [
            "ssh",
            "-p",
            str(self._node.ssh_port),
            *identity,
            *(f"-o{key}={value}" for key, value in options.items()),
        ]

    def hold(self, argv: Sequence[str]) -> Held:
        """Start ``argv`` on the node over a connection of its own: close() ends what is under way on the other one."""
        command = shlex.join(argv)
        with self._named_errors(command, CONNECT_TIMEOUT), ExitStack() as stack:
            connection = self._open()
            stack.callback(connection.close)
            channel = connection.client.get_transport().open_session(timeout=CONNECT_TIMEOUT)
            channel.settimeout(SILENCE_LIMIT)
            channel.exec_command(command)
            stack.pop_all()
        return _SshHeld(connection, channel)

    def converse(self, argv: Sequence[str], talk: Callable[[Conversation], object]) -> None:
        """Start ``argv`` on the node over an ssh of its own, which is faster than paramiko, and talk with it."""
        self.run(["true"])  # as for rsync
        done = process.converse([*self.ssh_argv(), *BULK, self._address, shlex.join(argv)], talk)
        if done.code == 255:
            raise self._lost("the connection broke during the transfer", done.tail(5))
        checked(self.name, replace(done, argv=tuple(argv)))

    def prepare_privileged(self) -> None:
        """Have the sudo password at hand where sudo will ask for one."""
        with self._named_errors("sudo -kn true", CONNECT_TIMEOUT):
            if self._asks_for_password(self._connected()):
                self._password(self.name)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def _connected(self) -> Connection:
        with self._lock:
            if self._connection is None or not self._connection.is_connected:
                self._connection = self._open()
            return self._connection

    def _open(self) -> Connection:
        cluster, node = self._cluster, self._node
        keys = {"key_filename": str(ROOT / cluster.identity), "allow_agent": False} if cluster.identity else {}
        connection = Connection(
            str(node.management),
            user=cluster.user,
            port=node.ssh_port,
            config=Config(overrides={"sudo": {"prompt": _PROMPT}}),
            connect_timeout=CONNECT_TIMEOUT,
            connect_kwargs={**keys, "look_for_keys": not keys, "banner_timeout": CONNECT_TIMEOUT},
        )
        # fabric's default accepts unknown keys: https://docs.fabfile.org/en/latest/api/connection.html
        connection.client.set_missing_host_key_policy(_Refuse(cluster, node))
        if cluster.known_hosts.is_file():
            connection.client.load_host_keys(str(cluster.known_hosts))
        connection.open()
        transport = connection.client.get_transport()
        transport.set_keepalive(5)
        transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_LIMIT * 1000)
        return connection

    def _asks_for_password(self, connection: Connection) -> bool:
        if self._sudo_asks is None:
            probe = connection.run("sudo -kn true", hide=True, warn=True, in_stream=False, timeout=CONNECT_TIMEOUT * 2)
            self._sudo_asks = not probe.ok
        return self._sudo_asks

    @contextmanager
    def _named_errors(self, command: str, timeout: float) -> Iterator[None]:
        """Turn what paramiko and fabric raise into our errors."""
        try:
            yield
        except (AuthFailure, CommandTimedOut) as error:
            raise self._of_fabric(error, command, timeout) from error
        except (SSHException, OSError, EOFError) as error:
            raise self._of_ssh(error, command) from error

    def _of_fabric(self, error: AuthFailure | CommandTimedOut, command: str, timeout: float) -> SparkstackError:
        if isinstance(error, AuthFailure):
            return AuthenticationRefused(
                f"sudo refused the password of {self._cluster.user}", node=self.name, next_move="check it and run again"
            )
        return CommandFailed(
            f"`{command[:200]}` did not end within {timeout:.0f} s",
            node=self.name,
            next_move="look at the node's load and disk, then run the same command again",
        )

    def _of_ssh(self, error: Exception, command: str) -> SparkstackError:
        if isinstance(error, BadHostKeyException):
            return _changed_key(self._cluster, self._node, error)
        # paramiko says "No authentication methods available" with its general exception
        if isinstance(error, AuthenticationException) or "authentication" in str(error).lower():
            return self._refused(error)
        if self._connection is not None and self._connection.is_connected:
            return self._not_written(command, error)
        return self._lost(f"no SSH connection to {self._node.management} port {self._node.ssh_port}", str(error))

    def _refused(self, error: Exception) -> AuthenticationRefused:
        key = self._cluster.identity or "the keys of the SSH agent and ~/.ssh"
        user, address = self._cluster.user, self._node.management
        return AuthenticationRefused(
            f"{user}@{address} does not accept {key}",
            node=self.name,
            next_move=f"put the public key there: ssh-copy-id {user}@{address}",
            evidence=str(error),
        )

    def _not_written(self, command: str, error: Exception) -> UnfitNode:
        """SFTP says a full disk as "Failure" (its protocol has no code for it), other causes by name."""
        return UnfitNode(
            f"{command} failed: {error}",
            node=self.name,
            next_move="look at free disk space (df -h) and permissions on the node, then run the same command again",
        )

    def _lost(self, cause: str, evidence: str = "") -> NodeUnreachable:
        return NodeUnreachable(
            cause,
            node=self.name,
            next_move="check power, cable and address; the same command goes on where this one stopped",
            evidence=evidence,
        )


_PROMPT = "[sparkstack sudo] "


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


class _SshHeld:
    """A process on a node that ends when its stdin does."""

    def __init__(self, connection: Connection, channel: paramiko.Channel) -> None:
        self._connection = connection
        self._channel = channel
        self._output = channel.makefile("r")

    def line(self) -> str:
        """Return the next line of its output; empty at its end, or after a long silence."""
        try:
            return str(self._output.readline())
        except (SSHException, OSError):
            return ""

    def beat(self) -> bool:
        """Write a line to its stdin; False when it has ended or the connection is broken."""
        try:
            self._channel.sendall(b"\n")
        except (SSHException, OSError, EOFError):
            return False
        return not self._channel.exit_status_ready()

    def close(self) -> None:
        """End its stdin, wait until it has ended, and close the connection."""
        try:
            self._channel.shutdown_write()
            self._channel.status_event.wait(CONNECT_TIMEOUT)
        except (SSHException, OSError, EOFError):
            pass  # the connection is gone, and so is it before long
        finally:
            self._connection.close()


class _Lines:
    """A stream for fabric that hands on whole lines."""

    encoding = "utf-8"

    def __init__(self, on_line: OnLine) -> None:
        self._on_line = on_line
        self._rest = ""

    def write(self, text: str) -> None:
        """Take text as it comes."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._on_line(line)

    def flush(self) -> None:
        """Whole lines are handed on at once."""


class Hosts:
    """The nodes of a cluster as hosts; a context manager that closes them."""

    def __init__(self, cluster: Cluster) -> None:
        password = SudoPassword(cluster.askpass)
        self._controller = LocalHost(CONTROLLER, password)
        self._hosts: dict[str, Host] = {
            node.name: LocalHost(node.name, password) if node.local else SshHost(cluster, node, password)
            for node in cluster.nodes
        }

    def __getitem__(self, name: str) -> Host:
        """Return a node's host, or this one by the name `controller`."""
        return self._controller if name == CONTROLLER else self._hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; commands under way on other threads fail."""
        for host in self._hosts.values():
            host.close()


def scan_host_key(cluster: Cluster, node: Node) -> str:
    """Return the known_hosts line of the Ed25519 host key that the node shows now; it is not trusted by this."""
    done = process.run(
        ["ssh-keyscan", "-T", str(CONNECT_TIMEOUT), "-t", "ed25519", "-p", str(node.ssh_port), str(node.management)],
        check=False,
        timeout=CONNECT_TIMEOUT * 2,
    )
    lines = [line for line in done.out.splitlines() if line and not line.startswith("#")]
    if not lines:
        raise NodeUnreachable(
            f"no SSH server answers on {node.management} port {node.ssh_port}",
            node=node.name,
            next_move=f"check power, cable and the address in the cluster {cluster.name}",
        )
    return lines[0]


def _changed_key(cluster: Cluster, node: Node, error: BadHostKeyException) -> HostKeyRefused:
    return HostKeyRefused(
        f"the host key of {node.management} has CHANGED: it is {error.key.fingerprint}, "
        f"enrolled is {error.expected_key.fingerprint}",
        node=node.name,
        next_move="find out why (reinstalled? another machine at that address?), then "
        f"invoke trust --cluster {cluster.flag} --node {node.name} --replace",
    )
