"""What steps need of a machine, wherever it is: run, write, push, pull."""

from __future__ import annotations

import getpass
import os
import secrets
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Protocol

from core import process
from core.config import ROOT
from core.errors import AuthenticationRefused, CommandFailed, UnfitNode
from core.process import Completed, Conversation

CONTROLLER = "controller"
"""The name of this host in a plan, beside the nodes' names."""

OnLine = Callable[[str], None]

RSYNC_FLAGS = (
    "--recursive",
    "--times",
    "--chmod=D755,F644",
    "--partial-dir=.partial",
    "--info=progress2",
    "--no-inc-recursive",
)

BULK = ("-T", "-oCompression=no", "-oIPQoS=throughput", "-oCiphers=^aes128-gcm@openssh.com,aes256-gcm@openssh.com")
"""For bytes in bulk: AES in hardware is cheaper than OpenSSH's first choice; where it is missing, the others follow."""


class Held(Protocol):
    """A process on a machine that runs until we let go of it, or until our connection breaks."""

    def line(self) -> str:
        """Return the next line that it prints; empty when it has ended, or says nothing for a while."""

    def beat(self) -> bool:
        """Give it a sign of life: a line to its stdin. False when it has ended or cannot be reached."""

    def close(self) -> None:
        """End it, and wait for its end as long as it can be reached."""


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

    def hold(self, argv: Sequence[str]) -> Held:
        """Start ``argv`` as a process that close() of this host does not end."""

    def converse(self, argv: Sequence[str], talk: Callable[[Conversation], object]) -> None:
        """Start ``argv`` and have ``talk`` talk with it over its input and output; raise CommandFailed on a bad end."""

    def prepare_privileged(self) -> None:
        """Have the sudo password at hand where sudo will ask for one: asked before a live display begins."""

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
            return self._printed(ROOT / program, node)
        if not sys.stdin.isatty():
            raise AuthenticationRefused(
                "sudo asks for a password and there is no terminal to ask on",
                node=node,
                next_move="set SUDO_ASKPASS to a program that prints it, or run this in a terminal",
            )
        return getpass.getpass(f"sudo password on {node}: ")

    @staticmethod
    def _printed(program: Path, node: str) -> str:
        try:
            return process.run([str(program)]).out.rstrip("\n")
        except CommandFailed as error:
            raise AuthenticationRefused(
                f"sudo asks for a password and {program} gives none",
                node=node,
                next_move="correct SUDO_ASKPASS, or askpass in the cluster's file: it has to print the password",
                evidence=error.cause,
            ) from error


def temporary_path() -> str:
    """Return a fresh name for a file that is about to be moved into place; it must be opened exclusively."""
    return f"/tmp/sparkstack-{secrets.token_hex(8)}"  # noqa: S108 - random, and opened with O_EXCL


def install(host: Host, temporary: str, path: PurePosixPath, mode: int, *, privileged: bool) -> None:
    """Move a temporary file to ``path``: copy beside it, sync, rename."""
    beside = f"{path}.sparkstack-new"
    script = 'install -m "$1" "$2" "$3" && sync "$3" && mv -T "$3" "$4"; code=$?; rm -f "$2"; exit $code'
    host.run(["sh", "-c", script, "sh", f"{mode:o}", temporary, beside, str(path)], privileged=privileged)


def checked(node: str, done: Completed) -> Completed:
    """Return ``done`` when its code is 0; else raise UnfitNode for a full disk, CommandFailed for all else."""
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
