"""The whole way once, as a user would type it: the commands, what each took, and whether the answer is right."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console
from rich.table import Table

from core import process
from core.config import ROOT, Cluster
from core.errors import CommandFailed, WrongAnswer
from core.plan import Report
from lab.model import expected_answer

QUESTION = "What is sparkstack?"


@dataclass(frozen=True)
class Stage:
    """One command of the demo and the seconds it took."""

    title: str
    command: str
    seconds: float


def commands(cluster: Cluster) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return title and arguments of each stage, in order."""
    name = f"--cluster={cluster.flag}"
    return (
        ("two machines", ("lab.up", name)),
        ("wheels", ("build-wheels", f"--stack={cluster.stack}", name)),
        ("deploy", ("deploy", name)),
        ("model", ("lab.model", name)),
        ("serve", ("serve", name)),
        ("chat", ("chat", QUESTION, name)),
    )


def shown(arguments: tuple[str, ...]) -> str:
    """Return a command as a user would type it."""
    return shlex.join(("invoke", *arguments))


def run_stages(cluster: Cluster, report: Report) -> tuple[Stage, ...]:
    """Run every stage on our own terminal. Raises CommandFailed naming the stage; the same command goes on there."""
    return tuple(_stage(title, arguments, report) for title, arguments in commands(cluster))


def _stage(title: str, arguments: tuple[str, ...], report: Report) -> Stage:
    report(f"{title}: {shown(arguments)}")
    began = monotonic()
    code = process.attached((_invoke(), *arguments))
    if code != 0:
        raise CommandFailed(
            f"the stage “{title}” ended with {code}: its own message stands above",
            next_move="do what that message says; make demo then goes on from here",
        )
    return Stage(title, shown(arguments), monotonic() - began)


def _invoke() -> str:
    return str(Path(sys.executable).with_name("invoke"))


def answered(cluster: Cluster) -> str:
    """Ask the question once more and return the answer. Raises WrongAnswer when it is not the one that was taught."""
    said: str = _asked("chat", QUESTION, f"--cluster={cluster.flag}")["answer"]
    expected = expected_answer(QUESTION)
    if said != expected:
        raise WrongAnswer(
            f"the model answered {said!r}, it was taught {expected!r}",
            next_move="invoke restart --cluster " + cluster.flag + ", then ask again: a rank may hold other weights",
        )
    return said


def service(cluster: Cluster) -> dict[str, Any]:
    """Return what `invoke status --json` says."""
    return _asked("status", f"--cluster={cluster.flag}")


def _asked(*arguments: str) -> dict[str, Any]:
    done = process.run((_invoke(), *arguments, "--json"), cwd=ROOT)
    data: dict[str, Any] = json.loads(done.out)
    return data


def summary(stages: tuple[Stage, ...], status: dict[str, Any], answer: str) -> str:
    """Return the last table: stages with their seconds, nodes with their Ray state, the API, the answer."""
    grid = Table(title="sparkstack: the whole way", show_header=False, title_justify="left")
    for stage in stages:
        grid.add_row(stage.title, f"{stage.seconds:6.1f} s", stage.command)
    grid.add_row("in all", f"{sum(stage.seconds for stage in stages):6.1f} s", "", end_section=True)
    for node in status["nodes"]:
        grid.add_row(node["name"], f"Ray {node['ray']}", f"{node['role']}, release {node['release']}")
    grid.add_section()
    grid.add_row("API", "", status["api"])
    grid.add_row("question", "", QUESTION)
    grid.add_row("answer", "as taught", answer)
    text = StringIO()
    Console(file=text, width=120).print(grid)
    return text.getvalue()
