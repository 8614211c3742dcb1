"""A stack's components to wheels in dist/: fetch what is fetched, build what is built, check, write the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from packaging.utils import canonicalize_name, parse_wheel_filename

from build.images import extract_steps, listed_images
from build.index import fetch_steps
from build.job import link_or_copy, missing_wheels, requirement_wheels
from build.recipe import expected_wheel
from build.records import described
from build.request import Build
from build.stages import is_done, list_of, mkdir, requirements_folder, stages_of
from build.toolchain import examine
from core.apply import NOTE
from core.config import WORK, shown
from core.errors import BuildFailed
from core.findings import Finding, refuse_unfit
from core.host import CONTROLLER
from core.plan import Call, Plan, Report, Run, Step, make_plan
from wheels.gates import Verdict
from wheels.judge import judge
from wheels.lock import Locked
from wheels.manifest import Manifest, Wheel, damaged, describe, save


def plan_wheels(build: Build, manifest: Manifest | None) -> Plan:
    """Return what makes the stack's wheels for the target; empty when all are there and intact."""
    gone = set(damaged(build.stack, manifest)) if manifest else set()
    listed = {wheel.name: wheel for wheel in manifest.wheels if wheel.filename not in gone} if manifest else {}
    have = {**listed, **{wheel.name: wheel for wheel in build.built}}
    lost = {wheel.name for wheel in manifest.wheels} - have.keys() if manifest else set()
    fetched = tuple(_fetch(build, lost))
    extracted = tuple(extract_steps(build, have))
    refuse_unfit(_unfit(build, have))
    made = [stage for name in build.recipes for stage in stages_of(build, name, have.get(canonicalize_name(name)))]
    stale = manifest is None or manifest.index_lock != build.index_lock or have.keys() != _names(build)
    work = not build.only and bool(made or extracted or fetched or _facts(have) != _facts(listed) or stale)
    return make_plan(
        f"wheels of {build.stack.name} for {build.target.tag} in {shown(build.place)}",
        (
            ("fetch by hash", fetched),
            ("extract from images", extracted),
            *made,
            ("check and list", [_list_step(build)] if work else []),
        ),
        (f"unlike the guide, {name} {c.version}: {c.guide}" for name, c in build.stack.components.items() if c.guide),
    )


def _facts(wheels: Mapping[str, Wheel]) -> dict[str, Wheel]:
    """Return the wheels without notes: a record has its build's, the manifest those of the gates too."""
    return {name: wheel.model_copy(update={"notes": ()}) for name, wheel in wheels.items()}


def _unfit(build: Build, have: Mapping[str, Wheel]) -> Iterator[Finding]:
    """Find what keeps the machine that builds from the recipes that are to be built: before an hour is lost."""
    for name, recipe in build.recipes.items():
        if not is_done(build, name, have.get(canonicalize_name(name))):
            toolkit = build.toolkit or build.cross
            seen = build.site.seen
            yield from examine(recipe, build.stack.architectures, seen, build.site.name, build.target, toolkit=toolkit)


def _names(build: Build) -> set[str]:
    """Return the names of all wheels that the stack consists of."""
    return {canonicalize_name(name) for name in build.stack.components} | {item.name for item in build.index.all}


def _fetch(build: Build, lost: set[str]) -> Iterator[Step]:
    """Return what brings the index part that is not there, or is damaged (``lost``).

    Wheels that a bundle brought are taken, the others come from the index.
    """
    missing = {*missing_wheels(build.index.all, build.place), *(lost & {item.name for item in build.index.all})}
    if build.only and not any(need not in build.recipes for recipe in build.recipes.values() for need in recipe.needs):
        return
    if not missing:
        return
    folder = requirements_folder(build.target)
    here = missing - set(missing_wheels(build.index.all, folder))
    part = build.index.only(missing - here)
    argv = mkdir(build.place, WORK / "fetch")
    yield Run(node=CONTROLLER, title="make the folders", reason="wheels and lists go there", argv=argv)
    if here:
        yield _take_step(build, folder, here)
    yield from (list_of(locked) for locked in part.groups)
    yield from fetch_steps(part, build.target, build.place)


def _take_step(build: Build, folder: Path, names: set[str]) -> Call:
    items = [item for item in build.index.all if item.name in names]

    def take(report: Report) -> None:
        for wheel in requirement_wheels(items, folder):
            link_or_copy(wheel, build.place / wheel.name)
        report(f"{len(items)} wheels")

    return Call(
        node=CONTROLLER,
        title=f"take {len(items)} wheels that were fetched before",
        reason="each by its hash",
        shown=f"link {', '.join(sorted(names))} from {shown(folder)}",
        action=take,
    )


def _list_step(build: Build) -> Call:
    return Call(
        node=CONTROLLER,
        title="verify every wheel and write the manifest",
        reason="the manifest and stack.lock are what deploy goes by",
        shown=f"write {shown(build.place)}/manifest.json and stack.lock; remove wheels of no component",
        action=partial(_list, build),
    )


def _list(build: Build, report: Report) -> None:
    found = [*_listed_recipes(build), *listed_images(build), *_listed_index(build)]
    warnings = judge(found, build.stack, build.target, build.place, report)
    wheels = [_noted(wheel, warnings, report) for wheel in found]
    manifest = save(build.stack, build.target, wheels, build.index_lock)
    names = {wheel.filename for wheel in wheels}
    for stray in [path for path in build.place.glob("*.whl") if path.name not in names]:
        stray.unlink()
        report(f"removed {stray.name}: no component of the stack")
    report(f"{len(wheels)} wheels, release {manifest.release}")


def _noted(wheel: Wheel, warnings: Iterable[Verdict], report: Report) -> Wheel:
    """Return the wheel with what the gates say of it; on screen too, where it is not the wheel of an index."""
    own = tuple(f"{one.gate}: {one.cause}" for one in warnings if one.wheel == wheel.filename)
    if wheel.origin != "index":
        for line in own:
            report(f"{NOTE}{wheel.filename}: {line}")
    return wheel.model_copy(update={"notes": (*wheel.notes, *own)})


def _listed_recipes(build: Build) -> Iterator[Wheel]:
    for recipe in build.recipes.values():
        yield described(build.place, expected_wheel(recipe, build.target))


def _listed_index(build: Build) -> Iterator[Wheel]:
    files = {_parsed(path): path for path in build.place.glob("*.whl")}
    for item in build.index.all:
        path = files.get((item.name, item.version))
        if path is None:
            raise BuildFailed(f"{item.name}=={item.version} was not fetched", next_move="run the same command again")
        yield _verified(path, item)


def _parsed(path: Path) -> tuple[str, str]:
    name, version, _, _ = parse_wheel_filename(path.name)
    return str(name), str(version)


def _verified(path: Path, item: Locked) -> Wheel:
    wheel = describe(path, "index")
    if wheel.sha256 not in item.hashes:
        path.unlink()
        raise BuildFailed(
            f"{path.name} is not what the lock names (sha256 {wheel.sha256}); it was removed",
            next_move="run the same command again; if it stays, the index serves something else than was locked",
        )
    return wheel
