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

from core.config import ROOT, WORK, load_cluster
from tests.builds.workshop import Workshop, build_unfinished, lay_out
from tests.machines.command_line import DEFAULT_SIGNALS, CommandLine, Ended
from tests.machines.harness import Lab

UNFINISHED, WHEELS = "unfinished", "wheels"


@dataclass(frozen=True)
class Beforehand:
    """The process, and the folder in which its results come."""

    folder: Path
    process: subprocess.Popen[bytes]

    def wait(self, what: str) -> Ended | None:
        """Return how a command of it ended; nothing when it has not come so far."""
        path = self.folder / f"{what}.json"
        while not path.exists() and self.process.poll() is None:
            time.sleep(0.2)
        if not path.exists():
            return None
        told = json.loads(path.read_text(encoding="utf-8"))
        return Ended(**{**told, "words": tuple(told["words"])})

    @property
    def shop(self) -> Workshop:
        """The copy of the project that it builds in."""
        return Workshop(self.folder / "workshop")

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
    for what in wanted:
        ended = _build(folder) if what == UNFINISHED else _wheels(cluster)
        fresh = folder / f"{what}.new"
        fresh.write_text(json.dumps(asdict(ended)), encoding="utf-8")
        fresh.rename(folder / f"{what}.json")


def _build(folder: Path) -> Ended:
    (folder / "workshop").mkdir()
    return build_unfinished(lay_out(folder / "workshop"))


def _wheels(file: Path) -> Ended:
    lab = Lab(load_cluster(str(file)))
    lab.up()
    return CommandLine(ROOT, lab.cluster.flag)("build-wheels", f"--stack={lab.cluster.stack}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
