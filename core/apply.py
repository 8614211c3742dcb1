"""Runs a plan: stage by stage, all nodes at once, with progress, a journal and one clear error."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Event, Lock
from time import monotonic

from core import process
from core.config import WORK
from core.errors import ComesFirst, CommandFailed, Interrupted, SparkstackError
from core.host import Host
from core.job import follow_job
from core.plan import (
    Call,
    Job,
    Later,
    Plan,
    Poll,
    Pull,
    Push,
    Run,
    Stage,
    Step,
    Talk,
    Write,
    argv_of,
    command_of,
    shortened,
)
from core.process import Completed
from core.remote import Hosts
from core.screen import Row, Screen

NOTE = "note: "
"""What a line begins with that a step of our own reports and that is to stay on the screen."""


class Journal:
    """One JSON line a step in .work/journal/: when, where, what, how it ended, seconds; and all output beside it."""

    def __init__(self, command: str, folder: Path = WORK / "journal") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self.path = folder / f"{stamp}-{command}-{os.getpid()}.jsonl"
        self.output = self.path.with_suffix(".log")
        self._lock = Lock()

    def write(self, stage: str, step: Step, seconds: float, outcome: str) -> None:
        """Add a line."""
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "stage": stage,
            "node": step.node,
            "title": step.title,
            "command": shortened(command_of(step), 500),
            "seconds": round(seconds, 3),
            "outcome": outcome,
        }
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def line(self, node: str, line: str) -> None:
        """Keep a line that a step printed."""
        with self._lock, self.output.open("a", encoding="utf-8") as file:
            file.write(f"{node}: {line}\n")


@dataclass(frozen=True)
class Context:
    """What every step needs besides itself."""

    hosts: Hosts
    screen: Screen
    journal: Journal
    guard: Callable[[], None] = lambda: None
    """Raises what forbids to go on; asked before each stage."""


@dataclass(frozen=True)
class Signals:
    """What the nodes of a stage tell each other: one has failed, the user has interrupted."""

    failed: Event = field(default_factory=Event)
    interrupted: Event = field(default_factory=Event)
    units: dict[str, str] = field(default_factory=dict)
    """Node to the transient unit that a step runs there now: it would outlive our connection."""
    jobs: dict[str, str] = field(default_factory=dict)
    """Node to what is said of a job there that is meant to outlive it."""


def apply(plan: Plan, context: Context) -> None:
    """Run the plan. Raises the first error of a stage after the nodes at work have ended theirs, and Interrupted.

    Stages that can be undone are then undone on all their nodes, the last first; the error says how that went.

    A plan that holds a step which this version cannot run is refused before anything is done.
    """
    _refuse_later(plan)
    for node in dict.fromkeys(step.node for step in plan.steps if step.privileged):
        context.hosts[node].prepare_privileged()
    begun: list[Stage] = []
    for stage in plan.stages:
        try:
            context.guard()
            begun.append(stage)
            _run_stage(stage, context)
        except BaseException as error:
            back = [said for one in reversed(begun) for said in _take_back(one, context)]
            if isinstance(error, SparkstackError):
                error.evidence = "\n".join([error.evidence, *back]).strip()
            raise


def _take_back(stage: Stage, context: Context) -> Iterator[str]:
    """Undo a stage on every node that answers; say for each how it went."""
    for step in stage.undo:
        began = monotonic()
        try:
            run_step(step, context.hosts[step.node], partial(context.journal.line, step.node), Event())
        except SparkstackError as error:
            said = f"{step.node}: it could not {step.title}: {error.cause.removeprefix(f'{step.title}: ')}"
        else:
            said = f"{step.node}: {step.title}: done"
        context.journal.write(f"undo: {stage.title}", step, monotonic() - began, said)
        context.screen.line(f"  {said}")
        yield said


def _refuse_later(plan: Plan) -> None:
    later = [step for step in plan.steps if isinstance(step, Later)]
    if later:
        raise ComesFirst(
            f"{len(later)} steps of this plan cannot be run, the first: {later[0].title} ({later[0].label})",
            node=later[0].node,
            next_move="read the plan with --dry-run; nothing was changed",
        )


def _run_stage(stage: Stage, context: Context) -> None:
    signals = Signals()
    by_node = stage.by_node
    with context.screen.stage(stage.title, list(by_node)) as rows, ThreadPoolExecutor(len(by_node)) as pool:
        futures = {
            node: pool.submit(_run_node, stage.title, steps, rows[node], context, signals)
            for node, steps in by_node.items()
        }
        try:
            _await(set(futures.values()))
        except KeyboardInterrupt:
            signals.failed.set()
            signals.interrupted.set()
            left = _end(context, signals, set(futures.values()))
            raise Interrupted(
                f"interrupted during: {stage.title}",
                next_move="the same command goes on from here; what ran before still runs",
                evidence="\n".join(left),
            ) from None
    _raise_first(futures)


def _await(pending: set[Future[None]]) -> None:
    """Wait in short turns, so that Ctrl-C is seen."""
    while pending:
        _, pending = wait(pending, timeout=0.2)


def _end(context: Context, signals: Signals, pending: set[Future[None]]) -> list[str]:
    """End what is under way: units on nodes, connections and child processes, which cannot see Ctrl-C themselves.

    Returns what may be left, in words.
    """
    left = [said for node, unit in tuple(signals.units.items()) for said in _stop_unit(context.hosts[node], unit)]
    left += signals.jobs.values()
    context.hosts.close()
    process.end_all()
    wait(pending, timeout=30)
    return left


def _stop_unit(host: Host, unit: str) -> Iterator[str]:
    try:
        host.run(("systemctl", "stop", unit), privileged=True, timeout=30)
    except SparkstackError as error:
        yield f"{host.name}: {unit} may still run there, the same command ends it first ({error.cause})"


def _raise_first(futures: Mapping[str, Future[None]]) -> None:
    errors = [error for error in (future.exception() for future in futures.values()) if error is not None]
    if not errors:
        return
    first, *others = errors
    if isinstance(first, SparkstackError) and others:
        first.evidence = "\n".join([first.evidence, "also:", *map(str, others)]).strip()
    raise first


def _run_node(stage: str, steps: tuple[Step, ...], row: Row, context: Context, signals: Signals) -> None:
    for step in steps:
        if signals.failed.is_set():
            return
        row.begin(step.title)
        if isinstance(step, Job):
            row.say(step.reason)
        began = monotonic()
        try:
            on_line = partial(_take_line, context.journal, row, step)
            with _noted_unit(step, signals):
                run_step(step, context.hosts[step.node], on_line, signals.interrupted)
        except BaseException as error:
            signals.failed.set()
            row.end(f" failed: {type(error).__name__}")
            context.journal.write(stage, step, monotonic() - began, str(error))
            raise
        row.end()
        context.journal.write(stage, step, monotonic() - began, "ok")


@contextmanager
def _noted_unit(step: Step, signals: Signals) -> Iterator[None]:
    noted: dict[str, str] = {}
    match step:
        case Run(unit=str(unit)):
            noted, said = signals.units, unit
        case Job(unit=str(unit)):
            noted, said = signals.jobs, f"{step.node}: {unit} goes on, the same command follows it; end it: {step.hint}"
        case _:
            said = ""
    noted[step.node] = said
    try:
        yield
    finally:
        del noted[step.node]


def _take_line(journal: Journal, row: Row, step: Step, line: str) -> None:
    journal.line(step.node, line)
    if isinstance(step, Call | Talk) and line.startswith(NOTE):
        row.say(line.removeprefix(NOTE))
    row.now(step.watch(line) if isinstance(step, Job) else line)


def run_step(step: Step, host: Host, on_line: Callable[[str], None], interrupted: Event) -> None:
    """Do one step on its host; a wait ends when ``interrupted`` is set."""
    match step:
        case Run():
            _run(step, host, on_line)
        case Write():
            host.write(step.path, step.content, mode=step.mode, privileged=step.privileged)
        case Push() | Pull() | Talk():
            _transfer(step, host, on_line)
        case Poll():
            _poll(step, host, on_line, interrupted)
        case Call():
            step.action(on_line)
        case Job():
            follow_job(step, host, on_line, interrupted)
        case Later():
            raise ComesFirst(step.title, node=step.node, next_move=f"{step.command} comes first")


def _transfer(step: Push | Pull | Talk, host: Host, on_line: Callable[[str], None]) -> None:
    if isinstance(step, Talk):
        host.converse(step.argv, lambda conversation: step.talk(conversation, on_line))
        return
    if isinstance(step, Push):
        host.push(step.sources, step.destination, on_line)
        return
    step.destination.mkdir(parents=True, exist_ok=True)
    host.pull(step.source, step.destination, on_line)


def _run(step: Run, host: Host, on_line: Callable[[str], None]) -> None:
    check = step.failure is None
    if step.fresh:
        host.close()  # the next command opens another
    try:
        done = host.run(argv_of(step), privileged=step.privileged, timeout=step.timeout, check=check, on_line=on_line)
    except CommandFailed as error:
        error.cause = f"{step.title}: {error.cause}"
        error.next_move = step.hint or error.next_move
        raise
    if done.code and step.failure:
        raise step.failure(done)


def _poll(step: Poll, host: Host, on_line: Callable[[str], None], interrupted: Event) -> None:
    deadline = monotonic() + step.timeout
    while True:
        done: Completed = host.run(step.argv, privileged=step.privileged, check=False, timeout=step.timeout)
        try:
            if step.accept(done):
                return
            if monotonic() > deadline:
                raise step.failure(done)
        except SparkstackError as error:
            error.node = error.node or step.node
            raise
        on_line(done.tail(1))
        if interrupted.wait(step.interval):
            raise Interrupted(f"interrupted: {step.title}", node=step.node, next_move="run the same command again")
