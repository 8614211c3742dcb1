"""A stack's components to wheels in dist/: build what is built, fetch what is fetched, check, write the manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from packaging.utils import canonicalize_name, parse_wheel_filename

from build.index import IndexPart, fetch_steps, requirements_file, requirements_text
from build.recipe import Recipe, environment, expected_files, expected_wheel, load_recipe, source_hash
from build.records import record
from core.config import ROOT, WORK, Stack, shown
from core.errors import BuildFailed
from core.host import CONTROLLER
from core.plan import Call, Later, Plan, Report, Run, Step, Write, make_plan
from wheels.gates import require_files
from wheels.lock import Locked
from wheels.manifest import Manifest, Wheel, damaged, describe, folder, save
from wheels.target import Target

BUILD_TIMEOUT = 6 * 3600


@dataclass(frozen=True)
class Build:
    """What a plan of wheels is made from."""

    stack: Stack
    target: Target
    index: IndexPart
    index_lock: str
    here: bool = True
    """Whether this host builds for the target; else a node has to."""
    on: str = CONTROLLER
    built: tuple[Wheel, ...] = ()
    """What is built already, whether a manifest lists it or not."""

    @property
    def place(self) -> Path:
        """The folder that the wheels go to."""
        return folder(self.stack, self.target)

    @property
    def recipes(self) -> dict[str, Recipe]:
        """Recipes of the components that are built, by component."""
        built = {name: c.recipe for name, c in self.stack.components.items() if c.origin == "source" and c.recipe}
        return {name: load_recipe(recipe) for name, recipe in built.items()}


def recipe_hash(recipe: Recipe, stack: Stack) -> str:
    """Return the identity of a build: recipe, source and GPU architectures (SHA-256, hex)."""
    parts = [recipe.model_dump_json(), source_hash(recipe), json.dumps(stack.architectures)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def plan_wheels(build: Build, manifest: Manifest | None) -> Plan:
    """Return what makes the stack's wheels for the target; empty when all are there and intact."""
    gone = set(damaged(build.stack, manifest)) if manifest else set()
    listed = {wheel.name: wheel for wheel in manifest.wheels if wheel.filename not in gone} if manifest else {}
    have = {**listed, **{wheel.name: wheel for wheel in build.built}}
    built = [step for name, recipe in _outdated(build, have) for step in build_steps(build, name, recipe)]
    images = [name for name, component in build.stack.components.items() if component.origin == "image"]
    extracted = [_extract_later(build, name) for name in images if canonicalize_name(name) not in have]
    fetched = _fetch(build) if _lacks_index_part(build, manifest, have) else ()
    work = bool(built or extracted or fetched or have != listed or have.keys() - _names(build))
    return make_plan(
        f"wheels of {build.stack.name} for {build.target.tag} in {shown(build.place)}",
        (
            ("build from source", built),
            ("extract from images", extracted),
            ("fetch by hash", fetched),
            ("check and list", [_list_step(build)] if work else []),
        ),
        (f"unlike the guide, {name} {c.version}: {c.guide}" for name, c in build.stack.components.items() if c.guide),
    )


def _names(build: Build) -> set[str]:
    """Return the names of all wheels that the stack consists of."""
    return {canonicalize_name(name) for name in build.stack.components} | {item.name for item in build.index.all}


def _outdated(build: Build, have: dict[str, Wheel]) -> Iterator[tuple[str, Recipe]]:
    for name, recipe in build.recipes.items():
        wheel = have.get(canonicalize_name(name))
        if wheel is None or wheel.recipe != recipe_hash(recipe, build.stack):
            yield name, recipe


def _lacks_index_part(build: Build, manifest: Manifest | None, have: dict[str, Wheel]) -> bool:
    same = manifest is not None and manifest.index_lock == build.index_lock
    return not same or any(item.name not in have for item in build.index.all)


def build_steps(build: Build, name: str, recipe: Recipe) -> tuple[Step, ...]:
    """Return the steps from a recipe to its wheel in dist/."""
    if not recipe.builds_here or not build.here:
        return (_build_later(build, name, recipe),)
    work = WORK / "build" / recipe.name
    source, out = work / "source", work / "out"
    wheel = expected_wheel(recipe, build.target.architecture)
    variables = [f"{key}={value}" for key, value in environment(recipe, build.stack.architectures).items()]
    step = partial(Run, node=CONTROLLER)
    return (
        step(title=f"clear {shown(work)}", reason="a build begins from nothing", argv=("rm", "-rf", str(work))),
        step(title=f"make {shown(work)}", reason="it is the build's own", argv=("mkdir", "-p", str(work))),
        step(
            title=f"copy the source of {name}",
            reason="backends write into the tree",
            argv=("cp", "-RT", str(ROOT / str(recipe.source.path)), str(source)),
        ),
        step(
            title=f"build {wheel}",
            reason=f"recipe {recipe.name}, {recipe_hash(recipe, build.stack)[:10]}",
            argv=("env", *variables, *_pip_wheel(source, out)),
            timeout=BUILD_TIMEOUT,
            hint=f"read the lines above; the tree is kept in {shown(work)}",
        ),
        Call(
            node=CONTROLLER,
            title=f"check {wheel}",
            reason="only the wheel that was asked for enters the stack",
            shown=f"move {shown(out / wheel)} to {shown(build.place)}",
            action=partial(_accept, build, recipe, out / wheel),
        ),
    )


def _pip_wheel(source: Path, out: Path) -> tuple[str, ...]:
    return (
        *(sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"),
        *("--no-cache-dir", f"--wheel-dir={out}", str(source)),
    )


def _accept(build: Build, recipe: Recipe, wheel: Path, report: Report) -> None:
    if not wheel.is_file():
        found = ", ".join(path.name for path in wheel.parent.glob("*.whl")) or "nothing"
        raise BuildFailed(
            f"the build gave {found}, expected {wheel.name}",
            next_move=f"correct version or tags in build/recipes/{recipe.name}.toml",
        )
    require_files(wheel, expected_files(recipe, build.stack.architectures))
    build.place.mkdir(parents=True, exist_ok=True)
    shutil.move(wheel, build.place / wheel.name)
    record(build.place, describe(build.place / wheel.name, "source", recipe_hash(recipe, build.stack)))
    report(f"{wheel.name} is as the recipe says")


def _build_later(build: Build, name: str, recipe: Recipe) -> Later:
    wheel = expected_wheel(recipe, build.target.architecture)
    variables = " ".join(f"{key}={value}" for key, value in environment(recipe, build.stack.architectures).items())
    lines = [
        *_sources(recipe),
        f"pip install {' '.join(recipe.requires)}",
        f"{variables} pip wheel --no-deps --no-build-isolation .",
        *([f"rsync {build.on}:{wheel} to {shown(build.place)}"] if build.on != CONTROLLER else []),
    ]
    return Later(
        node=build.on,
        title=f"build {wheel}",
        reason=f"component {name}, sha256: not built",
        feature="building from a fetched source, and on a node",
        shown="\n".join(lines),
    )


def _sources(recipe: Recipe) -> Iterator[str]:
    source = recipe.source
    if source.repository:
        yield _git(source.repository, str(source.commit), submodules=source.submodules)
    else:
        yield f"fetch {source.sdist} (sha256 {source.sha256})" if source.sdist else f"copy {source.path}"
    for other in recipe.dependencies:
        fetched = _git(other.repository, other.reference, submodules=other.submodules)
        yield f"{fetched}, for {other.variable}"


def _git(repository: str, reference: str, *, submodules: bool) -> str:
    return f"git fetch {repository} {reference}{' with submodules' if submodules else ''}"


def _extract_later(build: Build, name: str) -> Later:
    component = build.stack.components[name]
    return Later(
        node=CONTROLLER,
        title=f"extract {name}=={component.version}",
        reason=f"component {name}, sha256: not built",
        feature="extracting wheels from an image",
        shown=f"invoke wheels.extract --image {component.image} --dist {name}",
    )


def _fetch(build: Build) -> tuple[Step, ...]:
    groups = (*(locked for _, locked in build.index.others if locked), build.index.default)
    lists = (
        Write(
            node=CONTROLLER,
            title="list what to fetch",
            reason="each with the hashes that the lock allows",
            path=PurePosixPath(requirements_file(locked)),
            content=requirements_text(locked),
        )
        for locked in groups
    )
    folders = ("mkdir", "-p", str(build.place), str(WORK / "fetch"))
    return (
        Run(node=CONTROLLER, title="make the folders", reason="wheels and lists go there", argv=folders),
        *lists,
        *fetch_steps(build.index, build.target, build.place),
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
    wheels = [*_listed_recipes(build), *_listed_index(build)]
    manifest = save(build.stack, build.target, wheels, build.index_lock)
    names = {wheel.filename for wheel in wheels}
    for stray in [path for path in build.place.glob("*.whl") if path.name not in names]:
        stray.unlink()
        report(f"removed {stray.name}: no component of the stack")
    report(f"{len(wheels)} wheels, release {manifest.release}")


def _listed_recipes(build: Build) -> Iterator[Wheel]:
    for recipe in build.recipes.values():
        path = build.place / expected_wheel(recipe, build.target.architecture)
        yield describe(path, "source", recipe_hash(recipe, build.stack))


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
