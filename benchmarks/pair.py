"""The two machines that a measurement of deploy/ runs on, and the environment of what it is compared with."""

from __future__ import annotations

import statistics
import sys
import venv
from collections.abc import Iterable, Sequence
from pathlib import Path

from core.config import ROOT, WORK, Cluster
from core.process import Completed, run
from lab import lifecycle

TIMEOUT = 900


def say(line: str) -> None:
    """Tell how far it is."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def up(cluster: Cluster) -> None:
    """Have the machines run and answer."""
    lifecycle.up(cluster, say)


def ready(cluster: Cluster) -> None:
    """Have the machines run and answer, with wheels of the cluster's stack here."""
    up(cluster)
    invoke(cluster, "build-wheels", f"--stack={cluster.stack}")


def invoke(cluster: Cluster, *words: str) -> Completed:
    """Run a command of the suite for the machines. Raises CommandFailed."""
    program = Path(sys.executable).with_name("invoke")
    argv = [str(program), *words, f"--cluster={cluster.flag}"]
    return run(argv, cwd=ROOT, timeout=TIMEOUT, env={"PYTHONDONTWRITEBYTECODE": ""})  # as in anybody's shell


def environment(name: str, pins: Iterable[str]) -> Path:
    """Return a folder of programs from PyPI, in an environment of their own; made where it is not there yet."""
    place = WORK / "benchmark" / name
    wanted = "\n".join(pins)
    note = place / "pins"
    if not note.is_file() or note.read_text(encoding="utf-8") != wanted:
        venv.create(place, clear=True, with_pip=True)
        run([str(place / "bin" / "pip"), "install", "--quiet", *wanted.split("\n")], timeout=TIMEOUT)
        note.write_text(wanted, encoding="utf-8")
    return place / "bin"


def turned(kinds: Sequence[str], number: int) -> list[str]:
    """Let another one begin each round."""
    first = number % len(kinds)
    return [*kinds[first:], *kinds[:first]]


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return the median, the least and the most."""
    found = sorted(round(value, 4) for value in values)
    return {"median": round(statistics.median(found), 4), "least": found[0], "most": found[-1]}


def in_words(one: dict[str, float], digits: int = 2) -> str:
    """Return a median and its spread for a table."""
    return f"{one['median']:.{digits}f} ({one['least']:.{digits}f} to {one['most']:.{digits}f})"
