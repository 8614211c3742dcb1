"""What a command is going to do, as frozen data: steps in stages, made by pure functions from configuration and facts.

A stage runs on all its nodes at once, the steps of one node in order; the next stage starts when all are done.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeAlias

from core.process import Completed, Conversation


class Report(Protocol):
    """Takes one line of progress for people."""

    def __call__(self, line: str, /) -> None:
        """Show ``line``."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every step has: where, what, why."""

    node: str
    title: str
    reason: str
    privileged: bool = False


@dataclass(frozen=True, kw_only=True)
class Run(Common):
    """Run ``argv`` on the node; with ``unit`` as a transient systemd unit, so that it can be found again and stopped.

    ``timeout`` is in seconds, ``user`` whom a unit runs as. ``hint`` is the next move when it fails; ``failure`` makes
    an error of its own from what the command said.
    """

    argv: tuple[str, ...]
    timeout: float = 120
    unit: str | None = None
    user: str = "root"
    hint: str = ""
    failure: Callable[[Completed], Exception] | None = field(default=None, compare=False)
    fresh: bool = False
    """Over a connection made anew: an old one may live on where no new one gets through."""


@dataclass(frozen=True, kw_only=True)
class Write(Common):
    """Replace a small text file on the node atomically."""

    path: PurePosixPath
    content: str = field(repr=False)
    mode: int = 0o644
    secret: bool = False
    """The content is shown nowhere."""
    code: bool = False
    """The content is a program of ours: people read it where it is from, programs in --json."""


@dataclass(frozen=True, kw_only=True)
class Push(Common):
    """Copy files of this host into a folder on the node (rsync; what is there already does not travel)."""

    sources: tuple[Path, ...]
    destination: PurePosixPath
    size: int
    """Bytes that have to travel, for the screen; 0 where nobody knows yet."""


@dataclass(frozen=True, kw_only=True)
class Pull(Common):
    """Make a folder of this host equal to a folder of the node (rsync)."""

    source: PurePosixPath
    destination: Path


@dataclass(frozen=True, kw_only=True)
class Poll(Common):
    """Run ``argv`` again and again until ``accept`` is true of what it answers.

    ``accept`` may raise to end the wait early; ``failure`` makes the error from the last answer when time is up.
    """

    argv: tuple[str, ...]
    accept: Callable[[Completed], bool] = field(compare=False)
    failure: Callable[[Completed], Exception] = field(compare=False)
    timeout: float
    interval: float = 1


@dataclass(frozen=True, kw_only=True)
class Call(Common):
    """Work on this host that is not one command; ``shown`` says it in words, ``action`` does it."""

    shown: str
    action: Callable[[Report], object] = field(compare=False)


@dataclass(frozen=True, kw_only=True)
class Talk(Common):
    """Talk with a process on the node over its input and output; ``shown`` says it in words, ``talk`` does it."""

    argv: tuple[str, ...]
    shown: str
    talk: Callable[[Conversation, Report], object] = field(compare=False)
    size: int = 0
    """Bytes that have to travel."""


@dataclass(frozen=True, kw_only=True)
class Job(Common):
    """Long work: a process of this host or, with ``unit``, a transient unit of the node that outlives our connection.

    A unit of that name that runs already is followed, not started again. ``timeout`` is in seconds; ``watch`` turns a
    line of output into what is shown meanwhile; ``failure`` makes the error from how it ended and all its lines.
    """

    argv: tuple[str, ...]
    timeout: float
    watch: Callable[[str], str] = field(compare=False)
    failure: Callable[[str, Sequence[str]], Exception] = field(compare=False)
    unit: str | None = None
    user: str = "root"
    properties: tuple[str, ...] = ()
    """Of the unit, as `systemd-run --property` takes them."""
    log: str = "/dev/null"
    """Where the unit's output goes on the node; the beginning of each run empties it."""
    hint: str = ""
    """How to end a unit that is left running."""


@dataclass(frozen=True, kw_only=True)
class Later(Common):
    """What ``command`` has to do before the rest of a plan can be run; ``shown`` is what that would bring."""

    command: str
    shown: str = ""

    @property
    def label(self) -> str:
        """What stands in the way, for people."""
        return f"comes first: {self.command}"


Step: TypeAlias = Run | Write | Push | Pull | Poll | Call | Talk | Job | Later


@dataclass(frozen=True)
class Stage:
    """Steps that have one barrier behind them."""

    title: str
    steps: tuple[Step, ...]
    undo: tuple[Step, ...] = ()
    """What takes it back on each of its nodes when it, or a stage after it, does not end well."""

    @property
    def by_node(self) -> dict[str, tuple[Step, ...]]:
        """Steps of each node, in order."""
        nodes = dict.fromkeys(step.node for step in self.steps)
        return {node: tuple(step for step in self.steps if step.node == node) for node in nodes}


@dataclass(frozen=True)
class Plan:
    """What a command does, in stages; an empty plan means that everything is as it should be."""

    title: str
    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()
    """What a reader should know besides the steps: deviations, warnings."""

    @property
    def steps(self) -> Iterator[Step]:
        """All steps, stage by stage."""
        return (step for stage in self.stages for step in stage.steps)

    @property
    def empty(self) -> bool:
        """Whether nothing is to do."""
        return not self.stages


def make_plan(
    title: str,
    stages: Iterable[tuple[str, Iterable[Step]]],
    notes: Iterable[str] = (),
    undo: Mapping[str, Iterable[Step]] | None = None,
) -> Plan:
    """Make a plan of (title, steps) pairs; stages without steps are left out. ``undo`` is by title of a stage."""
    made = ((name, tuple(steps)) for name, steps in stages)
    back = undo or {}
    return Plan(
        title, tuple(Stage(name, steps, tuple(back.get(name, ()))) for name, steps in made if steps), tuple(notes)
    )


def command_of(step: Step, *, whole: bool = True) -> str:
    """Return what the step runs, as a person could paste it; scripts in it are left out where it is not ``whole``."""
    sudo = "sudo " if step.privileged else ""
    match step:
        case Run() | Job():
            return sudo + _joined(argv_of(step), whole=whole)
        case Write():
            return f"{sudo}write {step.path} (mode {step.mode:o}, {len(step.content.encode())} bytes)"
        case Push():
            names = ", ".join(source.name for source in step.sources[:3])
            more = f" and {len(step.sources) - 3} more" if len(step.sources) > 3 else ""
            size = f" ({megabytes(step.size)})" if step.size else ""
            return f"rsync {names}{more}{size} to {step.destination}"
        case Pull():
            return f"rsync {step.node}:{step.source}/ to {step.destination}"
        case Poll():
            return f"every {step.interval:g} s, up to {step.timeout:g} s: {sudo}{_joined(step.argv, whole=whole)}"
        case Call() | Talk() | Later():
            return step.shown


def _joined(argv: tuple[str, ...], *, whole: bool) -> str:
    """Join argv for a shell; a word of many lines is a script, of which a reader needs to know that it is there."""
    if whole:
        return shlex.join(argv)
    lines = ((word, word.strip().count("\n") + 1) for word in argv)
    return " ".join(f"'(script of {n} lines, whole in --json)'" if n > 1 else shlex.quote(word) for word, n in lines)


def argv_of(step: Run | Job) -> tuple[str, ...]:
    """Return the argv that is run: the step's own, or that which makes a unit of it."""
    if step.unit is None:
        return step.argv
    return as_job(step) if isinstance(step, Job) else as_unit(step)


def as_unit(step: Run) -> tuple[str, ...]:
    """Return the argv that runs the step's argv as a transient systemd unit and waits for it."""
    return (
        *("systemd-run", f"--unit={step.unit}", f"--uid={step.user}", "--collect", "--wait", "--pipe", "--quiet"),
        *("--property=KillMode=control-group", "--property=OOMPolicy=kill"),
        *step.argv,
    )


def as_job(step: Job) -> tuple[str, ...]:
    """Return the argv that starts the step's argv as a transient unit and does not wait for it."""
    properties = ("KillMode=control-group", "OOMPolicy=kill", f"StandardOutput=truncate:{step.log}", *step.properties)
    return (
        *("systemd-run", f"--unit={step.unit}", f"--uid={step.user}", "--quiet", "--property=Type=exec"),
        *(f"--property={one}" for one in (*properties, "StandardError=inherit")),
        *step.argv,
    )


def as_text(plan: Plan, *, contents: bool = True) -> str:
    """Return the plan for people: stages, steps with reasons, commands, and the files it writes."""
    if plan.empty:
        return "nothing to do"
    lines = [plan.title]
    for number, stage in enumerate(plan.stages, 1):
        lines.append(f"\n{number}. {stage.title}")
        for step in stage.steps:
            lines += _step_lines(step, contents=contents)
        lines += [f"   {step.node}: if this or a later stage fails: {step.title}" for step in stage.undo]
    lines += ["", *(f"note: {note}" for note in plan.notes)] if plan.notes else []
    return "\n".join(lines)


_HASHES = re.compile(r"( --hash=sha256:[0-9a-f]{64}){2,}")


def _step_lines(step: Step, *, contents: bool) -> list[str]:
    later = f"  [{step.label}]" if isinstance(step, Later) else ""
    lines = [f"   {step.node}: {step.title} — {step.reason}{later}"]
    command = shortened(command_of(step, whole=False)).replace("\n", "\n        ")
    if command:
        lines.append(f"      $ {command}")
    if contents and isinstance(step, Write) and not (step.secret or step.code):
        lines += _content_lines(step.content.splitlines())
    return lines


def _content_lines(content: list[str], most: int = 100, width: int = 160) -> list[str]:
    """Show a file's lines; of a list too long to read the beginning, and many hashes in a line are counted."""
    content = [_HASHES.sub(lambda found: f" ({found[0].count(':')} hashes)", line) for line in content]
    shown = [f"      | {line if len(line) <= width else line[:width] + '…'}" for line in content]
    kept = 10
    return (
        shown if len(shown) <= most else [*shown[:kept], f"      | … {len(shown) - kept} more lines, whole in --json"]
    )


def shortened(command: str, limit: int = 2000) -> str:
    """Cut the middle out of a very long command (an embedded script), saying how much is missing."""
    if len(command) <= limit:
        return command
    kept = limit // 2
    return f"{command[:kept]} …({len(command) - 2 * kept} characters)… {command[-kept:]}"


def as_data(plan: Plan) -> dict[str, object]:
    """Return the plan for programs (`--json`)."""
    return {
        "title": plan.title,
        "notes": list(plan.notes),
        "stages": [
            {
                "title": stage.title,
                "steps": [_step_data(step) for step in stage.steps],
                **({"undo": [_step_data(step) for step in stage.undo]} if stage.undo else {}),
            }
            for stage in plan.stages
        ],
    }


def _step_data(step: Step) -> dict[str, object]:
    data: dict[str, object] = {
        "kind": type(step).__name__.lower(),
        "node": step.node,
        "title": step.title,
        "reason": step.reason,
        "privileged": step.privileged,
        "command": command_of(step),
    }
    if isinstance(step, Write) and not step.secret:
        data["content"] = step.content
    if isinstance(step, Later):
        data["comes_first"] = step.command
    return data


def megabytes(size: float) -> str:
    """Return a size in bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
