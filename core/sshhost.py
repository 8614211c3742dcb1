"""A node over SSH: commands are argv lists that are quoted in one place; the sudo password goes over stdin."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from threading import Lock

from core import process
from core.config import Cluster, Node
from core.connection import SSH_ERRORS, SUDO_PROMPT, AuthFailure, Channel, CommandTimedOut, Connection, connect
from core.errors import AuthenticationRefused, CommandFailed, NodeUnreachable, SparkstackError, UnfitNode
from core.host import BULK, RSYNC_FLAGS, Held, OnLine, SudoPassword, checked, install, temporary_path
from core.process import Completed, Conversation
from core.sshroute import CONNECT_TIMEOUT, Route, config_of, route


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
        done = Completed(tuple(argv), result.exited, result.stdout, result.stderr.replace(SUDO_PROMPT, ""))
        if done.code == -1:
            raise self._lost("the connection broke while a command ran")
        return checked(self.name, done) if check else done

    def write(self, path: PurePosixPath, content: str, *, mode: int = 0o644, privileged: bool = False) -> None:
        """Replace the file at ``path`` atomically: to a temporary name over SFTP, then `install` and rename."""
        temporary = temporary_path()
        with self._named_errors(f"write {path}", CONNECT_TIMEOUT):
            connection = self._connected()
            try:
                with connection.sftp().open(temporary, "wx") as file:
                    file.chmod(0o600)  # before anything is in it: some contents are secret
                    file.write(content.encode())
            except SSH_ERRORS as error:
                if connection.is_connected:
                    raise self._not_written(path, error) from error
                raise
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
        self._be_let_in()
        silence = f"--timeout={self._cluster.silence:.0f}"
        argv = ["rsync", silence, *RSYNC_FLAGS, "-e", shlex.join(self.ssh_argv()), *arguments]
        done = process.follow(argv, on_line, check=False)
        # https://download.samba.org/pub/rsync/rsync.1#EXIT_VALUES: 10, 12, 30, 35, and ssh's 255, are the connection's
        if done.code in (10, 12, 30, 35, 255) and "No space left" not in done.out:
            raise self._lost("the connection broke during the transfer", done.tail(5))
        checked(self.name, done)

    @cached_property
    def _way(self) -> Route:
        return route(self._cluster, self._node)

    def ssh_argv(self) -> list[str]:
        """Return the ssh command (without the address) that goes the way of our own connections, by the same rules."""
        return ["ssh", "-F", str(config_of(self._cluster, self._node, self._way))]

    def hold(self, argv: Sequence[str]) -> Held:
        """Start ``argv`` on the node over a connection of its own: close() ends what is under way on the other one."""
        command = shlex.join(argv)
        with self._named_errors(command, CONNECT_TIMEOUT), ExitStack() as stack:
            connection = self._open()
            stack.callback(connection.close)
            channel = connection.client.get_transport().open_session(timeout=CONNECT_TIMEOUT)
            channel.settimeout(self._cluster.silence)
            channel.exec_command(command)
            stack.pop_all()
        return _SshHeld(connection, channel)

    def converse(self, argv: Sequence[str], talk: Callable[[Conversation], object]) -> None:
        """Start ``argv`` on the node over an ssh of its own, which is faster than paramiko, and talk with it."""
        self._be_let_in()
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

    def _be_let_in(self) -> None:
        """Have a refused key or host key told apart before a program of its own connects, which says a code only."""
        if self._connection is None or not self._connection.is_connected:
            self.run(["true"])

    def _connected(self) -> Connection:
        with self._lock:
            if self._connection is None or not self._connection.is_connected:
                self._connection = self._open()
            return self._connection

    def _open(self) -> Connection:
        return connect(self._cluster, self._node, self._way)

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
        except SSH_ERRORS as error:
            cause = f"no SSH connection to {self._node.management} port {self._way.port}"
            raise self._lost(cause, str(error)) from error

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

    def _not_written(self, path: PurePosixPath, error: Exception) -> UnfitNode:
        """SFTP says a full disk as "Failure" (its protocol has no code for it), other causes by name."""
        return UnfitNode(
            f"write {path} failed: {error}",
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


class _SshHeld:
    """A process on a node that ends when its stdin does."""

    def __init__(self, connection: Connection, channel: Channel) -> None:
        self._connection = connection
        self._channel = channel
        self._output = channel.makefile("r")

    def line(self) -> str:
        """Return the next line of its output; empty at its end, or after a long silence."""
        try:
            return str(self._output.readline())
        except SSH_ERRORS:
            return ""

    def beat(self) -> bool:
        """Write a line to its stdin; False when it has ended or the connection is broken."""
        try:
            self._channel.sendall(b"\n")
        except SSH_ERRORS:
            return False
        return not self._channel.exit_status_ready()

    def close(self) -> None:
        """End its stdin, wait until it has ended, and close the connection."""
        try:
            self._channel.shutdown_write()
            self._channel.status_event.wait(CONNECT_TIMEOUT)
        except SSH_ERRORS:
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
