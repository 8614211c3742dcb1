"""A node, here or over SSH: run, write, push. The only importer of fabric.

Host keys are verified against the cluster's own known_hosts and nothing else; commands are argv lists that are quoted
in one place; the sudo password is asked once a run, kept in memory and goes over stdin.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import NoReturn, Protocol

import paramiko
from fabric import Config, Connection
from invoke.exceptions import AuthFailure, CommandTimedOut
from paramiko.ssh_exception import AuthenticationException, BadHostKeyException, NoValidConnectionsError, SSHException

from core import process
from core.config import ROOT, Cluster, Node
from core.errors import AuthenticationRefused, CommandFailed, HostKeyRefused, NodeUnreachable, UnfitNode
from core.process import Completed

CONTROLLER = "controller"
"""The name of this host in a plan, beside the nodes' names."""
CONNECT_TIMEOUT = 10
SILENCE_LIMIT = 20
"""Seconds without any answer after which a connection counts as lost."""

OnLine = Callable[[str], None]


class Host(Protocol):
    """One machine that steps run on."""

    name: str

    def run(
        self,
        argv: Sequence[str],
        *,
        privileged: bool = False,
        check: bool = True,
        timeout: float = 120,
        on_line: OnLine | None = None,
    ) -> Completed:
        """Run ``argv``; raise CommandFailed on a code other than 0 unless ``check`` is off."""

    def write(self, path: PurePosixPath, content: str, *, mode: int = 0o644, privileged: bool = False) -> None:
        """Replace the file at ``path`` atomically."""

    def push(self, sources: Sequence[Path], destination: PurePosixPath, on_line: OnLine) -> None:
        """Copy files and folders into the folder ``destination``, resuming and skipping what is there."""

    def pull(self, source: PurePosixPath, destination: Path, on_line: OnLine) -> None:
        """Make the local folder ``destination`` equal to the folder ``source``."""

    def close(self) -> None:
        """End every connection; commands under way fail."""


class SudoPassword:
    """The sudo password of a run: asked once, when it is first needed, and kept in memory only."""

    def __init__(self, askpass: Path | None) -> None:
        self._askpass = askpass
        self._lock = Lock()
        self._value: str | None = None

    def __call__(self, node: str) -> str:
        """Return the password; ``node`` is named in the prompt."""
        with self._lock:
            if self._value is None:
                self._value = self._ask(node)
            return self._value

    def _ask(self, node: str) -> str:
        program = self._askpass or os.environ.get("SUDO_ASKPASS")
        if program:
            return process.run([str(ROOT / program)]).out.rstrip("\n")
        if not sys.stdin.isatty():
            raise AuthenticationRefused(
                "sudo asks for a password and there is no terminal to ask on",
                node=node,
                next_move="set SUDO_ASKPASS to a program that prints it, or run this in a terminal",
            )
        return getpass.getpass(f"sudo password on {node}: ")


class LocalHost:
    """This host as a node."""

    def __init__(self, name: str, password: SudoPassword) -> None:
        self.name = name
        self._password = password

    def run(
        self,
        argv: Sequence[str],
        *,
        privileged: bool = False,
        check: bool = True,
        timeout: float = 120,
        on_line: OnLine | None = None,
    ) -> Completed:
        """Run ``argv`` here."""
        stdin = None
        if privileged and os.geteuid() != 0:
            needs_password = process.run(["sudo", "-kn", "true"], check=False).code != 0
            stdin = self._password(self.name) + "\n" if needs_password else None
            argv = ["sudo", "-k", "-S", "-p", "", "--", *argv]
        if on_line is not None and stdin is None:
            done = process.follow(argv, on_line, check=False, timeout=timeout)
        else:
            done = process.run(argv, check=False, timeout=timeout, stdin=stdin)
        return _checked(self.name, done) if check else done

    def write(self, path: PurePosixPath, content: str, *, mode: int = 0o644, privileged: bool = False) -> None:
        """Replace the file at ``path`` atomically."""
        temporary = Path(f"/tmp/sparkstack-{secrets.token_hex(8)}")  # noqa: S108 - random name, created with O_EXCL
        with temporary.open("x", encoding="utf-8") as file:
            file.write(content)
        _install(self, str(temporary), path, mode, privileged=privileged)

    def push(self, sources: Sequence[Path], destination: PurePosixPath, on_line: OnLine) -> None:
        """Copy files into ``destination``."""
        argv = ["rsync", *_RSYNC_FLAGS, *map(str, sources), f"{destination}/"]
        _checked(self.name, process.follow(argv, on_line, check=False))

    def pull(self, source: PurePosixPath, destination: Path, on_line: OnLine) -> None:
        """Make the folder ``destination`` equal to ``source``."""
        argv = ["rsync", *_RSYNC_FLAGS, "--delete", f"{source}/", f"{destination}/"]
        _checked(self.name, process.follow(argv, on_line, check=False))

    def close(self) -> None:
        """Nothing is open."""


_RSYNC_FLAGS = (
    "--recursive",
    "--times",
    "--chmod=D755,F644",
    "--partial-dir=.partial",
    "--info=progress2",
    "--no-inc-recursive",
)


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
            self._lost("the connection broke while a command ran")
        return _checked(self.name, done) if check else done

    def write(self, path: PurePosixPath, content: str, *, mode: int = 0o644, privileged: bool = False) -> None:
        """Replace the file at ``path`` atomically: to a temporary name over SFTP, then `install` and rename."""
        temporary = f"/tmp/sparkstack-{secrets.token_hex(8)}"  # noqa: S108 - random name, opened with O_EXCL
        with (
            self._named_errors(f"write {path}", CONNECT_TIMEOUT),
            self._connected().sftp().open(temporary, "wx") as file,
        ):
            file.write(content.encode())
        _install(self, temporary, path, mode, privileged=privileged)

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
        argv = ["rsync", f"--timeout={SILENCE_LIMIT}", *_RSYNC_FLAGS, "-e", shlex.join(self.ssh_argv()), *arguments]
        done = process.follow(argv, on_line, check=False)
        # https://download.samba.org/pub/rsync/rsync.1#EXIT_VALUES: 10, 12, 30, 35 and ssh's own 255 are the connection's
        if done.code in (10, 12, 30, 35, 255) and "No space left" not in done.out:
            self._lost("the connection broke during the transfer", done.tail(5))
        _checked(self.name, done)

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
        except BadHostKeyException as error:
            raise _changed_key(self._cluster, self._node, error) from error
        except AuthenticationException as error:
            self._refused(error)
        except AuthFailure as error:
            raise AuthenticationRefused(
                f"sudo refused the password of {self._cluster.user}", node=self.name, next_move="check it and run again"
            ) from error
        except CommandTimedOut as error:
            raise CommandFailed(
                f"`{command[:200]}` did not end within {timeout:.0f} s",
                node=self.name,
                next_move="look at the node's load and disk, then run the same command again",
            ) from error
        except (NoValidConnectionsError, OSError, EOFError) as error:
            if self._connection is not None and self._connection.is_connected:
                self._not_written(command, error)
            self._lost(f"no SSH connection to {self._node.management} port {self._node.ssh_port}", str(error))
        except SSHException as error:
            if "authentication" in str(error).lower():
                self._refused(error)
            self._lost("the SSH connection failed", str(error))

    def _refused(self, error: Exception) -> NoReturn:
        key = self._cluster.identity or "the keys of the SSH agent and ~/.ssh"
        user, address = self._cluster.user, self._node.management
        raise AuthenticationRefused(
            f"{user}@{address} does not accept {key}",
            node=self.name,
            next_move=f"put the public key there: ssh-copy-id {user}@{address}",
            evidence=str(error),
        ) from error

    def _not_written(self, command: str, error: Exception) -> NoReturn:
        """SFTP says a full disk as "Failure" (its protocol has no code for it), other causes by name."""
        raise UnfitNode(
            f"{command} failed: {error}",
            node=self.name,
            next_move="look at free disk space (df -h) and permissions on the node, then run the same command again",
        ) from error

    def _lost(self, cause: str, evidence: str = "") -> NoReturn:
        raise NodeUnreachable(
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
            next_move=f"invoke trust --cluster {self._cluster.name} --node {self._node.name}",
        )


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
        f"the host key of {node.management} has CHANGED: {error.key.fingerprint}, enrolled {error.expected_key.fingerprint}",
        node=node.name,
        next_move="find out why (reinstalled? another machine at that address?), then "
        f"invoke trust --cluster {cluster.name} --node {node.name} --replace",
    )


def _install(host: Host, temporary: str, path: PurePosixPath, mode: int, *, privileged: bool) -> None:
    """Move a temporary file to ``path``: copy beside it, sync, rename."""
    beside = f"{path}.sparkstack-new"
    script = 'install -m "$1" "$2" "$3" && sync "$3" && mv -T "$3" "$4"; code=$?; rm -f "$2"; exit $code'
    host.run(["sh", "-c", script, "sh", f"{mode:o}", temporary, beside, str(path)], privileged=privileged)


def _checked(node: str, done: Completed) -> Completed:
    if done.code == 0:
        return done
    command = shlex.join(done.argv)
    if "No space left on device" in done.out + done.err:
        raise UnfitNode(
            f"the disk is full (`{command[:120]}` ended with {done.code})",
            node=node,
            next_move="free space on the node, then run the same command again: what has arrived is kept",
            evidence=done.tail(3),
        )
    raise CommandFailed(
        f"`{' '.join(command.split())[:160]}` ended with {done.code}",
        node=node,
        next_move="read the lines above; the same command goes on from here",
        evidence=done.tail(),
    )
