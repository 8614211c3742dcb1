"""A bundle of all that a stack's builds take, for a machine without network: gathered by a plan, then written."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from build.bundle import write_bundle
from build.job import requirement_wheels
from build.request import Build
from build.stages import from_wheels, gather_steps, requirement_steps, requirements_folder, requirements_of
from build.toolkit import wheels_of
from core.config import DIST, shown
from core.host import CONTROLLER
from core.plan import Call, Plan, Report, Step, make_plan


def bundle_file(build: Build) -> Path:
    """Return where the bundle of a stack is written."""
    return DIST / "bundles" / f"{build.stack.name}-{build.target.tag}.tar"


def plan_bundle(build: Build) -> Plan:
    """Return what gathers sources, build requirements, toolkit and index part, and writes them as one file."""
    write = Call(
        node=CONTROLLER,
        title=f"write {shown(bundle_file(build))}",
        reason="everything that a build of this stack takes, each file by its hash",
        shown=f"on the other machine: invoke build.unbundle --file {bundle_file(build).name}",
        action=partial(_write, build),
    )
    return make_plan(f"a bundle of {build.stack.name}", [("gather", _gather(build)), ("write the bundle", [write])])


def _gather(build: Build) -> Iterator[Step]:
    for recipe in build.recipes.values():
        yield from gather_steps(build, recipe)
    yield from requirement_steps(build.index.all, build.target, f"wheels of {build.stack.name}")


def _write(build: Build, report: Report) -> None:
    extra = {f"{place}/{path.name}": path for place, path in _files(build)}
    write_bundle(build.recipes.values(), tuple(extra.items()), bundle_file(build), report)


def _files(build: Build) -> Iterator[tuple[str, Path]]:
    """Yield (folder in the bundle, file) of every wheel that a build takes."""
    site, target = build.site.target, build.target
    for recipe in build.recipes.values():
        locked = requirements_of(recipe, site)
        wheels = requirement_wheels(locked, requirements_folder(site))
        yield from ((f"requirements/{site.tag}", path) for path in wheels)
        if from_wheels(build, recipe):
            yield from ((f"files/{path.parent.name}", path) for path in wheels_of(build.toolkit_of(recipe)))
    wheels = requirement_wheels(build.index.all, requirements_folder(target))
    yield from ((f"requirements/{target.tag}", path) for path in wheels)
