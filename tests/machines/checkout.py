"""A copy of the project for tests that change what it is made of: cluster files, stacks, sources, keys."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from core.config import Cluster
from tests.machines.command_line import CommandLine

LEFT_OUT = (
    ".git",
    ".work",
    ".venv",
    "dist",
    "__pycache__",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
)


@dataclass(frozen=True)
class Checkout:
    """A copy of the project in ``folder``; ``cluster`` is the real one, read from ``file``."""

    folder: Path
    cluster: Cluster
    file: Path

    def variant(self, name: str, *changes: tuple[str, str], known: bool = True) -> CommandLine:
        """Return the command line for the same machines with changes of the cluster file's text.

        Its host keys are enrolled, unless ``known`` is off; key and password program stay the real cluster's.
        """
        text = self.file.read_text(encoding="utf-8")
        text = text.replace(f".work/clusters/{self.cluster.name}/", f"{self.cluster.state}/")
        for old, new in changes:
            assert old in text, f"{old!r} is not in {self.file}"
            text = text.replace(old, new)
        (self.folder / "config" / "clusters" / f"{name}.toml").write_text(text, encoding="utf-8")
        shutil.rmtree(self.state(name), ignore_errors=True)
        self.state(name).mkdir(parents=True)
        if known:
            shutil.copy(self.cluster.known_hosts, self.state(name) / "known_hosts")
        return CommandLine(self.folder, name)

    def state(self, name: str) -> Path:
        """Return the folder of a variant's own state."""
        return self.folder / ".work" / "clusters" / name

    def share_wheels(self, project: Path, stack: str) -> None:
        """Give the copy the project's wheels of a stack, without a second copy of the bytes, in place of its own."""
        place = self.folder / "dist" / stack
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(project / "dist" / stack, place, copy_function=os.link)


def copy_project(source: Path, folder: Path) -> None:
    """Copy the project's files, not what was made from them."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True)
