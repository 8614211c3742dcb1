"""What a test of builds holds in its hand: a copy of the project, its command line, and what it made."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.machines.command_line import CommandLine, Ended


@dataclass(frozen=True)
class Workshop:
    """A copy of the project in ``folder``."""

    folder: Path

    @property
    def invoke(self) -> CommandLine:
        """The command line in the copy; the cluster is told by the stack or the target."""
        return CommandLine(self.folder, "")

    def builds(self, stack: str, target: str, *flags: str, timeout: float = 900) -> Ended:
        """Build a stack for an architecture on this host; it must end with 0."""
        return self.invoke.works("build-wheels", f"--stack={stack}", f"--target={target}", *flags, timeout=timeout)

    def manifest(self, stack: str, target: str) -> dict[str, Any]:
        """Return the wheels of a manifest by name."""
        (path,) = (self.folder / "dist" / stack).glob(f"{target}-*/manifest.json")
        return {wheel["name"]: wheel for wheel in json.loads(path.read_text(encoding="utf-8"))["wheels"]}

    def wheel(self, stack: str, target: str, name: str) -> Path:
        """Return a wheel that was made."""
        (path,) = (self.folder / "dist" / stack).glob(f"{target}-*/{name}-*.whl")
        return path

    def wheels(self, stack: str) -> list[str]:
        """Return the names of all wheel files of a stack, whether a manifest lists them or not."""
        return sorted(path.name for path in (self.folder / "dist" / stack).glob("*/*.whl"))

    def forget(self, stack: str) -> None:
        """Remove what was made of a stack."""
        shutil.rmtree(self.folder / "dist" / stack, ignore_errors=True)

    def jobs(self) -> list[str]:
        """Return the job folders that are there."""
        return sorted(path.name for path in (self.folder / ".work" / "build").glob("*") if path.is_dir())
