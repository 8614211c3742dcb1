"""Locks made again: build requirements of recipes, and the index part of a stack, each entry with its hashes.

A lock is a file that git knows. It follows from recipes and stack, and from an index as it was on a day that they
name: made again, it is the same.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from build.locktext import (
    carried,
    every_variant,
    fallback_header,
    identified,
    recipe_header,
    recipes_of,
    stack_header,
    toolkit_header,
    wanted_by_fallback,
    wanted_by_recipe,
    wanted_by_stack,
    wanted_by_toolkit,
)
from build.recipe import load_recipe
from build.references import problems as moved
from build.request import identities
from build.resolver import resolve
from build.toolkit import toolkit_lists
from core.command import Options, answer, answer_json, show_plan
from core.config import ROOT, Index, Stack, shown
from core.errors import BuildFailed
from core.host import CONTROLLER
from core.plan import Call, Plan, Report, as_data, as_text, make_plan
from core.screen import Screen
from wheels.lock import entries


@dataclass(frozen=True)
class LockFile:
    """A lock as it is and as it should be; ``before`` is empty where there is none."""

    path: Path
    before: str
    after: str

    @property
    def changed(self) -> bool:
        """Whether it has to be written."""
        return self.before != self.after


@dataclass(frozen=True)
class Locks:
    """Files as they should be, and what stands in the way of others."""

    stack: Stack
    files: tuple[LockFile, ...]
    problems: tuple[str, ...]

    @property
    def plan(self) -> Plan:
        """The files to write, each with its difference."""
        title = f"locks of {self.stack.name} and of its recipes"
        return make_plan(title, [(title, [_step(file) for file in self.files if file.changed])], self.problems)

    def require_sound(self) -> None:
        """Raise BuildFailed when a pin has moved, cannot be found or asked for, or a lock cannot be made."""
        if self.problems:
            raise BuildFailed(
                f"{len(self.problems)} pins or locks are not in order; the other locks are",
                next_move="take them one by one; --offline asks no repository",
                evidence="\n".join(self.problems),
            )


def lock(stack: Stack, options: Options, *, offline: bool = False) -> None:
    """Make the locks of a stack and of its recipes again, show how they differ, and write them unless in a dry run.

    Raises BuildFailed at the end, after all that can be written is written, for every pin that is not in order.
    """
    screen = Screen()
    locks = make_locks(stack, screen.line, offline=offline)
    if options.plan_only:
        show_plan(locks.plan, options)
    else:
        write(locks, screen.line)
        data = {"changed": not locks.plan.empty, **as_data(locks.plan)}
        answer_json(data) if options.as_json else answer(as_text(locks.plan))
    locks.require_sound()


def make_locks(stack: Stack, report: Report, *, offline: bool = False) -> Locks:
    """Resolve everything; nothing is written.

    Without ``offline`` every repository is asked whether the pinned commits are still what their names say. What
    cannot be made is a problem, and the rest is made.
    """
    recipes = recipes_of(stack)
    problems = [] if offline else list(moved(every_variant(recipes), report))
    files: list[LockFile] = []
    for name in recipes:
        report(f"resolve the build requirements of {name}")
        files += _tried(partial(_recipe_file, name, offline=offline), problems)
    changed = any(file.changed for file in files)
    for source in toolkit_lists(stack.cuda):
        report(f"resolve {shown(source)}")
        files += _tried(partial(_toolkit_file, source, offline=offline), problems)
    report(f"resolve {stack.name}: {len(stack.components)} components")
    files += _tried(partial(_stack_file, stack, offline=offline, identify=not changed), problems)
    for index in stack.indexes:
        if index.fallback_lock and files and files[-1].path == ROOT / stack.lock:
            files += _tried(partial(_fallback_file, stack, index, files[-1].after, offline=offline), problems)
    return Locks(stack, tuple(files), tuple(problems))


def write(locks: Locks, report: Report) -> None:
    """Write what changed, each by rename.

    The recipes' come first, then the stack's, which names each build by a hash that covers the recipe's lock.
    """
    for file in locks.files:
        own = file.path == ROOT / locks.stack.lock
        text = identified(file.after, identities(locks.stack)) if own else file.after
        if text != file.before:
            fresh = file.path.with_name(file.path.name + ".new")
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(file.path)
            report(f"wrote {shown(file.path)}")


def _tried(make: Callable[[], LockFile], problems: list[str]) -> list[LockFile]:
    try:
        return [make()]
    except BuildFailed as error:
        problems.append("\n".join(filter(None, (error.cause, error.evidence, f"next: {error.next_move}"))))
        return []


def _file(path: Path, text: str) -> LockFile:
    return LockFile(path, path.read_text(encoding="utf-8") if path.is_file() else "", text)


def _recipe_file(name: str, *, offline: bool) -> LockFile:
    wanted = wanted_by_recipe(name)
    return _file(load_recipe(name).lock, recipe_header(wanted) + resolve(wanted, offline=offline))


def _toolkit_file(source: Path, *, offline: bool) -> LockFile:
    wanted = wanted_by_toolkit(source)
    return _file(source.with_suffix(".lock"), toolkit_header(wanted) + resolve(wanted, offline=offline))


def _stack_file(stack: Stack, *, offline: bool, identify: bool) -> LockFile:
    """Make the stack's lock; its builds can be named (``identify``) only when the recipes' locks are written."""
    wanted, path = wanted_by_stack(stack), ROOT / stack.lock
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    text = stack_header(stack, wanted) + carried(before, stack) + resolve(wanted, offline=offline)
    return LockFile(path, before, identified(text, identities(stack) if identify else {}))


def _fallback_file(stack: Stack, index: Index, held: str, *, offline: bool) -> LockFile:
    wanted = wanted_by_fallback(stack, index, held)
    text = fallback_header(stack, index, wanted) + resolve(wanted, offline=offline)
    return _file(ROOT / str(index.fallback_lock), text)


def _step(file: LockFile) -> Call:
    lines = difference(file)
    come = sum(line.startswith("+") and not line.startswith("+++") for line in lines)
    go = sum(line.startswith("-") and not line.startswith("---") for line in lines)
    return Call(
        node=CONTROLLER,
        title=f"write {shown(file.path)}",
        reason=f"{come} lines come, {go} go" if lines else "what it says of its entries changes, no entry does",
        shown="\n".join(lines),
        action=lambda _: None,  # write() writes them all, in their order
    )


def difference(file: LockFile) -> list[str]:
    """Return the unified diff for people: an entry is one line, its hashes are counted and fingerprinted."""
    name = shown(file.path)
    return list(difflib.unified_diff(_lines(file.before), _lines(file.after), name, name, n=0, lineterm=""))


def _lines(text: str) -> list[str]:
    notes = [line for line in text.splitlines() if line.startswith("#")]
    return notes + [_short(entry) for entry in entries(text)]


def _short(entry: str) -> str:
    first, *hashes = re.split(r"\s+--hash=sha256:", entry)
    digest = hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()
    return f"{first} ({len(hashes)} hashes, {digest[:8]})"
