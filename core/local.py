"""This host as a node."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from core import process
from core.host import RSYNC_FLAGS, Held, OnLine, SudoPassword, checked, install, temporary_path
from core.process import Completed, Conversation


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
            stdin = self._password(self.name) + "\n" if self._sudo_asks() else None
            argv = ["sudo", "-k", "-S", "-p", "", "--", *argv]
        if on_line is not None and stdin is None:
            done = process.follow(argv, on_line, check=False, timeout=timeout)
        else:
            done = process.run(argv, check=False, timeout=timeout, stdin=stdin)
        return checked(self.name, done) if check else done

    def write(self, path: PurePosixPath, content: str, *, mode: int = 0o644, privileged: bool = False) -> None:
        """Replace the file at ``path`` atomically."""
        temporary = Path(temporary_path())
        temporary.touch(0o600, exist_ok=False)  # some contents are secret
        temporary.write_text(content, encoding="utf-8")
        install(self, str(temporary), path, mode, privileged=privileged)

    def push(self, sources: Sequence[Path], destination: PurePosixPath, on_line: OnLine) -> None:
        """Copy files into ``destination``."""
        argv = ["rsync", *RSYNC_FLAGS, *map(str, sources), f"{destination}/"]
        checked(self.name, process.follow(argv, on_line, check=False))

    def pull(self, source: PurePosixPath, destination: Path, on_line: OnLine) -> None:
        """Make the folder ``destination`` equal to ``source``."""
        argv = ["rsync", *RSYNC_FLAGS, "--delete", f"{source}/", f"{destination}/"]
        checked(self.name, process.follow(argv, on_line, check=False))

    def hold(self, argv: Sequence[str]) -> Held:
        """Start ``argv`` here, beside us."""
        return process.Piped(argv)

    def converse(self, argv: Sequence[str], talk: Callable[[Conversation], object]) -> None:
        """Start ``argv`` here and have ``talk`` talk with it."""
        checked(self.name, process.converse(argv, talk))

    def prepare_privileged(self) -> None:
        """Have the sudo password at hand where sudo will ask for one."""
        if self._sudo_asks():
            self._password(self.name)

    def _sudo_asks(self) -> bool:
        return os.geteuid() != 0 and process.run(["sudo", "-kn", "true"], check=False).code != 0

    def close(self) -> None:
        """Nothing is open."""
