"""Sheets of wheels for people and programs: what is in them, what the gates say, whether they fit each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core.config import WORK, Stack
from core.errors import BuildFailed, UsageError, WheelRefused
from core.plan import megabytes
from wheels.fatbin import in_words
from wheels.gates import Candidate, Verdict, candidate, some
from wheels.judge import members_of, origin_of, verdicts_of
from wheels.manifest import folder, load
from wheels.requirements import Change, Conflict, Rules, conflicts, cure
from wheels.sheet import Library, Sheet, sheet_of
from wheels.tags import fits
from wheels.target import Target

DEFAULT = Target(architecture="aarch64", python=(3, 12), glibc=(2, 39))
"""What wheels without a platform are looked at for where no stack says it: a Spark."""
STYLES = {"refused": "bold red", "warning": "yellow"}
LISTED = 12
"""Libraries with GPU code, or requirements, that a sheet for people lists."""


@dataclass(frozen=True)
class Inspection:
    """What is known of the files: verdicts only where a stack was given."""

    wheels: tuple[Candidate, ...]
    target: Target
    stack: str
    verdicts: tuple[Verdict, ...]
    conflicts: tuple[Conflict, ...]
    changes: tuple[Change, ...]

    @property
    def refused(self) -> bool:
        """Whether a gate refuses one of them."""
        return any(verdict.severity == "refused" for verdict in self.verdicts)


def inspect(
    files: Sequence[Path], stack: Stack | None = None, *, target: Target | None = None, work: Path = WORK
) -> Inspection:
    """Read the wheels, ask the gates where a stack is given, and look whether they fit each other.

    The files are not taken for a whole set: what they require besides each other is not missing. The names of torch
    are compared with the torch among them, else with the one in the stack's folder of wheels, where it is there.
    Raises WheelRefused for a file that is no wheel, UsageError for none at all.
    """
    if not files:
        raise UsageError("no file was named", next_move="name wheels: --file A.whl --file B.whl")
    read = [candidate(path.name, "index", sheet_of(path, work=work)) for path in files]
    known = [Candidate(one.filename, origin_of(one.name, stack), one.sheet) for one in read]
    goal = target or (_target_of_stack(stack, known) if stack else _target_of_wheels(known))
    rules = Rules.of(stack.without if stack else (), stack.overrides if stack else (), complete=False)
    torch = _torch_of(stack, goal, work) if stack else None
    members = members_of(known)
    return Inspection(
        wheels=tuple(known),
        target=goal,
        stack=stack.name if stack else "",
        verdicts=verdicts_of(known, stack, goal, rules, torch=torch) if stack else (),
        conflicts=conflicts(members, goal, rules),
        changes=cure(members, goal, rules),
    )


def _target_of_stack(stack: Stack, known: Sequence[Candidate]) -> Target:
    """Return the first target of the stack that all wheels fit, else its first."""
    glibc = tuple(int(part) for part in stack.glibc.split(".")) if stack.glibc else DEFAULT.glibc
    pythons = [tuple(int(part) for part in text.split(".")) for text in stack.python]
    targets = [
        Target.model_validate({"architecture": architecture, "python": python, "glibc": glibc})
        for architecture, python in product(stack.platforms, pythons)
    ]
    return next((one for one in targets if all(fits(wheel.tags, one) for wheel in known)), targets[0])


def _target_of_wheels(known: Sequence[Candidate]) -> Target:
    """Return a target as the wheels' own tags name it: markers are looked at for that."""
    machines = ("aarch64", "x86_64")
    pythons = ((3, minor) for minor in range(14, 8, -1))
    targets = [
        Target(architecture=machine, python=python, glibc=DEFAULT.glibc)
        for python, machine in product(pythons, machines)
    ]
    return next((one for one in (DEFAULT, *targets) if all(fits(wheel.tags, one) for wheel in known)), DEFAULT)


def _torch_of(stack: Stack, target: Target, work: Path) -> tuple[str, Sheet] | None:
    """Return the torch among the stack's wheels; None where they are not there."""
    try:
        manifest = load(stack, target)
        wheel = next((one for one in manifest.wheels if one.name == "torch"), None) if manifest else None
        return (
            (wheel.version, sheet_of(folder(stack, target) / wheel.filename, wheel.sha256, work=work))
            if wheel
            else None
        )
    except (BuildFailed, WheelRefused):
        return None


def as_data(found: Inspection) -> dict[str, Any]:
    """Return everything for programs."""
    return {
        "target": found.target.tag,
        "stack": found.stack or None,
        "wheels": [_wheel_data(one) for one in found.wheels],
        "verdicts": [asdict(verdict) for verdict in found.verdicts],
        "conflicts": [asdict(one) for one in found.conflicts],
        "cure": [asdict(one) for one in found.changes],
    }


def _wheel_data(wheel: Candidate) -> dict[str, Any]:
    data = wheel.sheet.model_dump(mode="json", exclude={"form", "exports"})
    for row, library in zip(data["libraries"], wheel.sheet.libraries, strict=True):
        row["code"] = [str(code) for code in library.code]
    tags = sorted(str(tag) for tag in wheel.tags)
    return {
        "file": wheel.filename,
        "origin": wheel.origin,
        "file_tags": tags,
        **data,
        "exports": len(wheel.sheet.exports),
    }


def show(found: Inspection, console: Console) -> None:
    """Print a sheet a wheel, then what the gates say and how the wheels fit each other."""
    for wheel in found.wheels:
        console.print(f"[bold]{escape(wheel.filename)}[/]")
        console.print(_table(_rows(wheel)))
    if found.stack:
        console.print(f"[bold]Gates[/] of the stack {found.stack} on {found.target.in_words}")
        for verdict in found.verdicts:
            console.print(f"[{STYLES[verdict.severity]}]{verdict.severity}[/] {escape(str(verdict))}")
            console.print(f"  next: {escape(verdict.next_move)}", style="dim")
        if not found.verdicts:
            console.print("they pass all of them")
    if found.conflicts:
        console.print("[bold]They do not fit each other[/]")
        console.print(
            _table(
                [
                    (one.wish.by, f"requires {one.wish.of}{one.wish.specifier}, here is {one.found}")
                    for one in found.conflicts
                ]
            )
        )
        console.print("[bold]Smallest cure[/]")
        for change in found.changes:
            console.print(escape(str(change)))


def _table(rows: Sequence[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(f"  {escape(name)}", escape(text))
    return table


def _rows(wheel: Candidate) -> list[tuple[str, str]]:
    sheet = wheel.sheet
    inside = ", ".join(sheet.tags)
    rows = [
        ("distribution", f"{sheet.name} {sheet.version}"),
        ("size", f"{megabytes(sheet.size)}, unpacked {megabytes(sheet.unpacked)} in {sheet.files} files"),
        ("sha256", sheet.sha256),
        ("tags", some(sorted(str(tag) for tag in wheel.tags), LISTED)),
        ("tags in WHEEL", inside),
        ("made by", sheet.generator),
        ("Python", sheet.requires_python or "any"),
        ("licence", sheet.licence.in_words or "says nothing of it"),
        ("requires", some(sheet.requires, LISTED) or "nothing"),
        ("RECORD", some(sheet.problems) or "true"),
        *_library_rows(sheet.libraries),
    ]
    return [row for row in rows if row[1]]


def _library_rows(libraries: Sequence[Library]) -> Iterator[tuple[str, str]]:
    if not libraries:
        return
    machines = sorted({one.machine for one in libraries if one.machine})
    glibc = max((one.glibc for one in libraries if one.glibc), default=None)
    yield "libraries", f"{len(libraries)} for {', '.join(machines)}"
    yield "glibc", "{}.{} or newer".format(*glibc) if glibc else "any"
    yield "names of torch", _count(libraries, "torch")
    yield "names of Python", _count(libraries, "python")
    yield "RPATH", some(sorted({path for one in libraries for path in one.rpath if path}), LISTED)
    coded = [one for one in libraries if one.code]
    yield from (("GPU code", f"{one.name}: {in_words(one.code)}") for one in coded[:LISTED])
    if len(coded) > LISTED:
        yield "GPU code", f"and {len(coded) - LISTED} more libraries"


def _count(libraries: Sequence[Library], kind: str) -> str:
    users = [one for one in libraries if getattr(one, kind)]
    names = {name for one in users for name in getattr(one, kind)}
    return f"{len(names)} in {len(users)} libraries" if users else ""
