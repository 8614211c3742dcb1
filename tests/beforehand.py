"""What takes minutes and waits for nobody is begun when the session begins: the tests that come first have one core.

It is a process of its own, for unit tests cannot start any, and it makes one thing after the other. The fixtures that
need them wait until they are there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.config import ROOT, WORK, load_cluster
from tests.builds.kernels import compile_all
from tests.builds.workshop import Unfinished, Workshop, build_unfinished, lay_out
from tests.machines.command_line import DEFAULT_SIGNALS, CommandLine, Ended
from tests.machines.harness import Lab

UNFINISHED, OBJECTS, WHEELS = "unfinished", "objects", "wheels"


@dataclass(frozen=True)
class Beforehand:
    """The process, and the folder in which its results come."""

    folder: Path
    process: subprocess.Popen[bytes]

    def wait(self, what: str) -> dict[str, Any] | None:
        """Wait until something is made and return what is told of it; nothing when it did not come to that."""
        path = self.folder / f"{what}.json"
        while not path.exists() and self.process.poll() is None:
            time.sleep(0.2)
        told: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        return told

    @property
    def unfinished(self) -> Unfinished | None:
        """The build that ends too early, in a copy of the project of its own."""
        told = self.wait(UNFINISHED)
        return told and Unfinished(_shop(self.folder), Ended(**{**told, "words": tuple(told["words"])}))

    def end(self) -> None:
        """End it, as Ctrl-C does, and leave nothing of it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait()
        shutil.rmtree(self.folder)


def begin(wanted: Sequence[str], cluster: Path) -> Beforehand:
    """Begin with what is wanted; ``cluster`` is the file of the machines."""
    WORK.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="workshop-beforehand-", dir=WORK))
    argv = [*DEFAULT_SIGNALS, sys.executable, "-m", "tests.beforehand", str(folder), str(cluster), *wanted]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    return Beforehand(folder, process)


def main(folder: Path, cluster: Path, wanted: Sequence[str]) -> None:
    """Make what is wanted, one after the other."""
    os.nice(5)
    makings = {
        UNFINISHED: lambda: _build(folder),
        OBJECTS: lambda: _compile(folder),
        WHEELS: lambda: _wheels(cluster),
    }
    for what in wanted:
        told = makings[what]()
        fresh = folder / f"{what}.new"
        fresh.write_text(json.dumps(told), encoding="utf-8")
        fresh.rename(folder / f"{what}.json")


def _shop(folder: Path) -> Workshop:
    return Workshop(folder / "workshop")


def _build(folder: Path) -> dict[str, Any]:
    _shop(folder).folder.mkdir()
    return asdict(build_unfinished(lay_out(_shop(folder).folder)))


def _compile(folder: Path) -> dict[str, Any]:
    told = json.loads((folder / f"{UNFINISHED}.json").read_text(encoding="utf-8"))
    compile_all(Unfinished(_shop(folder), Ended(**told)), _shop(folder), 1)
    return {}


def _wheels(file: Path) -> dict[str, Any]:
    lab = Lab(load_cluster(str(file)))
    lab.up()
    CommandLine(ROOT, lab.cluster.flag).works("build-wheels", f"--stack={lab.cluster.stack}")
    return {}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
