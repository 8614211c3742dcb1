"""The stages from a recipe to its wheel in dist/: sources, job folder, build, check; and a second build to compare."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from build import accept, site
from build.cross import cross_environment, strip_program, toolchain_file
from build.index import FETCH_TIMEOUT, platform_flags, requirements_file, requirements_text
from build.ingredients import ingredients, sbom_of
from build.job import CCACHE, CUDA, FIXED, Task, lay_out, missing_wheels, requirement_wheels
from build.needs import distribution_of, needed_wheels
from build.recipe import Recipe, environment, expected_wheel
from build.records import described
from build.request import Build
from build.site import Errand
from build.source import Sources, assemble, assembled
from build.times import expected_seconds
from build.toolchain import Jobs, jobs
from build.toolkit import toolkit_folder, toolkit_steps, wheels_of
from core.config import WORK, shown
from core.host import CONTROLLER
from core.plan import Call, Report, Run, Step, Write
from core.store import full_disk_is_said
from wheels.ingredients import Ingredients
from wheels.lock import Locked, for_target, read_lock
from wheels.manifest import Wheel
from wheels.target import Target

LANGUAGES = ("C", "CXX", "CUDA")
CUDA_ENVIRONMENT = {
    "CUDA_HOME": str(CUDA),
    "CUDACXX": str(CUDA / "bin" / "nvcc"),
    # else the name of a temporary file, with nvcc's process id in it, becomes a symbol
    "NVCC_APPEND_FLAGS": "--objdir-as-tempdir",
}
Stages = Iterator[tuple[str, list[Step]]]


def is_current(build: Build, name: str, have: Wheel | None) -> bool:
    """Say whether a component's wheel is what its recipe gives; one made with a compiler cache only for development.

    One that does not tell what it was made of was made by a version of the suite that did not write it down.
    """
    if have is None or have.recipe != build.identity(name) or have.made_of is None:
        return False
    return build.development or not have.development


def is_done(build: Build, name: str, have: Wheel | None) -> bool:
    """Say whether nothing of a component is to be built: neither its wheel nor, where asked for, one to compare."""
    return is_current(build, name, have) and not (build.verify and have is not None and have.level is None)


def stages_of(build: Build, name: str, have: Wheel | None) -> Stages:
    """Return the stages that build a component, and build it again to compare, as far as that is not done."""
    if is_done(build, name, have):
        return
    recipe = build.recipes[name]
    yield f"sources of {recipe.title}", list(gather_steps(build, recipe))
    if not is_current(build, name, have):
        yield from _build_stages(build, name)
    if build.verify:
        yield from _build_stages(build, name, again=True)


def _build_stages(build: Build, name: str, *, again: bool = False) -> Stages:
    """Return the stages from a recipe's sources to its wheel in dist/; with ``again`` to a second one to compare."""
    recipe, errand = build.recipes[name], _errand(build, name, again=again)
    busy = errand.running or errand.finished
    yield f"lay out {recipe.title}", [] if busy else [_lay_out_step(build, name, errand)]
    yield f"build {recipe.title}{' again' if again else ''}", list(site.steps(errand))
    yield f"check {recipe.title}", [_check_step(build, name, errand, again=again)]


def _lay_out_step(build: Build, name: str, errand: Errand) -> Call:
    return Call(
        node=CONTROLLER,
        title=f"lay out {shown(errand.local)}",
        reason="source, build requirements and runner, nothing else goes into a build",
        shown=_environment_text(build, build.recipes[name]),
        action=partial(_lay_out, build, name, errand),
    )


def gather_steps(build: Build, recipe: Recipe) -> Iterator[Step]:
    """Return what fetches everything that a build takes, as far as it is not there."""
    yield from _source_steps(recipe)
    locked, needed_by = requirements_of(recipe, build.site.target), f"build requirements of {recipe.title}"
    yield from requirement_steps(locked, build.site.target, needed_by)
    if from_wheels(build, recipe):
        yield from toolkit_steps(build.toolkit_of(recipe))


def _errand(build: Build, name: str, *, again: bool) -> Errand:
    recipe, identity = build.recipes[name], build.identity(name)
    wheel = expected_wheel(recipe, build.target)
    planned = _jobs(build, recipe)
    arch = f"-{build.target.architecture}" if build.cross else ""
    suffix = arch + ("-again" if again else "-development" if build.development else "")
    cross = f", for {build.target.architecture}" if build.cross else ""
    return Errand(
        site=build.site,
        name=f"{recipe.name}-{identity[:10]}{suffix}",
        title=f"build {wheel}",
        reason=f"recipe {recipe.title}, {identity[:10]}{cross}; {planned.words}",
        memory=planned.memory,
        with_cache=build.development,
        cuda=_cuda(build, recipe),
        expected_seconds=expected_seconds(build.site.name, recipe.title),
        host_name="again" if again else "sparkstack",
    )


def _jobs(build: Build, recipe: Recipe) -> Jobs:
    found = jobs(recipe, build.site.seen)
    if build.max_jobs is None:
        return found
    return replace(found, count=build.max_jobs, words=f"{build.max_jobs} jobs, as asked for")


def _cuda(build: Build, recipe: Recipe) -> str:
    """Return the folder of the toolkit that a build gets; empty where it compiles no device code."""
    if not build.uses_cuda(recipe):
        return ""
    if from_wheels(build, recipe):
        return str(toolkit_folder(build.toolkit_of(recipe)))
    return build.site.seen.toolchain.cuda_folder or "/usr/local/cuda"


def from_wheels(build: Build, recipe: Recipe) -> bool:
    """Say whether a build gets its CUDA toolkit from wheels."""
    return build.uses_cuda(recipe) and (build.toolkit or build.cross)


def _source_steps(recipe: Recipe) -> Iterator[Step]:
    if recipe.source.path is None and assembled(recipe) is None:
        yield Call(
            node=CONTROLLER,
            title=f"fetch the sources of {recipe.title}",
            reason="pinned by commit or hash",
            shown="\n".join(_sources(recipe)),
            action=partial(assemble, recipe),
        )


def _sources(recipe: Recipe) -> Iterator[str]:
    others = ((other, f", for {other.variable}") for other in recipe.dependencies)
    for origin, purpose in [(recipe.source, ""), *others]:
        if origin.repository:
            submodules = " with submodules" if origin.submodules else ""
            yield f"git fetch {origin.repository} {origin.commit}{submodules}{purpose}"
        else:
            pin = f" (sha256 {origin.sha256})" if origin.sha256 else ""
            yield f"fetch {origin.sdist or origin.archive or origin.path}{pin}{purpose}"
    yield from (f"apply {patch.file}: {patch.reason} ({patch.link})" for patch in recipe.patches)


def requirements_folder(target: Target) -> Path:
    """Return where the build requirements for machines like this are kept."""
    return WORK / "requirements" / target.tag


def requirements_of(recipe: Recipe, target: Target) -> tuple[Locked, ...]:
    """Return a recipe's locked build requirements that hold on a machine that builds."""
    return for_target(read_lock(recipe.lock), target)


def requirement_steps(locked: tuple[Locked, ...], target: Target, title: str) -> Iterator[Step]:
    """Return what fetches those wheels of a lock that are not in the folder of requirements; ``title`` says whose."""
    into = requirements_folder(target)
    missing = missing_wheels(locked, into)
    if not missing:
        return
    wanted = tuple(item for item in locked if item.name in missing)
    yield Run(node=CONTROLLER, title="make the folders", reason="lists go there", argv=mkdir(into, WORK / "fetch"))
    yield list_of(wanted)
    yield Run(
        node=CONTROLLER,
        title=f"fetch {len(wanted)} {title}",
        reason=f"by hash, for {target.in_words}",
        argv=(
            *(sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--progress-bar=off"),
            *("--no-deps", "--require-hashes", "--only-binary=:all:", f"--dest={into}", *platform_flags(target)),
            f"--requirement={requirements_file(wanted)}",
        ),
        timeout=FETCH_TIMEOUT,
    )


def mkdir(*folders: Path) -> tuple[str, ...]:
    """Return the argv that makes folders."""
    return ("mkdir", "-p", *map(str, folders))


def list_of(locked: tuple[Locked, ...]) -> Write:
    """Return the step that writes a requirements file of exactly these."""
    return Write(
        node=CONTROLLER,
        title="list what to fetch",
        reason="each with the hashes that the lock allows",
        path=PurePosixPath(requirements_file(locked)),
        content=requirements_text(locked),
    )


def _environment(build: Build, recipe: Recipe) -> dict[str, str]:
    """Return the build's whole environment; the recipe's own word counts more than ours."""
    count = str(_jobs(build, recipe).count)
    own = environment(
        recipe,
        build.stack.architectures,
        jobs=count,
        cuda=str(CUDA),
        venv=str(FIXED / "venv"),
        source=str(FIXED / "source"),
        python="{}.{}".format(*build.target.python),
    )
    deps = {other.variable: str(FIXED / "deps" / other.variable) for other in recipe.dependencies}
    ours = {"MAX_JOBS": count, "CMAKE_BUILD_PARALLEL_LEVEL": count, **_launchers(build)}
    cuda = CUDA_ENVIRONMENT if build.uses_cuda(recipe) else {}
    return {**ours, **cuda, **own, **deps, **_cross(build)}


def _launchers(build: Build) -> dict[str, str]:
    if not (build.development and build.site.seen.toolchain.ccache):
        return {}
    launchers = {f"CMAKE_{kind}_COMPILER_LAUNCHER": "ccache" for kind in LANGUAGES}
    return {"CCACHE_DIR": str(CCACHE), **launchers}


def _cross(build: Build) -> dict[str, str]:
    return cross_environment(build.site.target.architecture, build.target.architecture, folder=FIXED / "in", cuda=CUDA)


def _environment_text(build: Build, recipe: Recipe) -> str:
    return "\n".join(f"{key}={value}" for key, value in sorted(_environment(build, recipe).items()))


def _lay_out(build: Build, name: str, errand: Errand, report: Report) -> None:
    recipe = build.recipes[name]
    sources = assemble(recipe, report)  # hashes again what is there
    wheels = _wheels(build, recipe)
    task = Task(
        recipe=recipe,
        wheel=expected_wheel(recipe, build.target),
        environment=_environment(build, recipe),
        strip=strip_program(build.site.target.architecture, build.target.architecture),
        files=(toolchain_file(build.target.architecture),) if build.cross else (),
        sbom=sbom_of(recipe, _made_of_what(build, recipe, sources)),
    )
    with full_disk_is_said(errand.local):
        lay_out(errand.local, task, sources, wheels)
    report(f"{shown(errand.local)}: {len(wheels)} wheels, tree {sources.tree[:10]}")


def _wheels(build: Build, recipe: Recipe) -> list[Path]:
    """Return the wheels of the build environment. Raises BuildFailed for one that is missing or not as locked."""
    needed = needed_wheels(recipe.needs, build.place, build.site.target)
    taken = {distribution_of(path) for path in needed}
    own = requirement_wheels(requirements_of(recipe, build.site.target), requirements_folder(build.site.target))
    return [*needed, *(path for path in own if distribution_of(path) not in taken)]


def _made_of_what(build: Build, recipe: Recipe, sources: Sources) -> Ingredients:
    toolkit = wheels_of(build.toolkit_of(recipe)) if from_wheels(build, recipe) else ()
    return ingredients(recipe, build.stack.architectures, sources, _wheels(build, recipe), toolkit)


def _check_step(build: Build, name: str, errand: Errand, *, again: bool) -> Call:
    wheel = expected_wheel(build.recipes[name], build.target)
    if again:
        return Call(
            node=CONTROLLER,
            title=f"compare {wheel} with the first one",
            reason="--verify",
            shown=f"compare {shown(errand.local / 'out' / wheel)} with {shown(build.place / wheel)}",
            action=partial(_compare, build, name, errand),
        )
    return Call(
        node=CONTROLLER,
        title=f"check {wheel}",
        reason="only the wheel that was asked for enters the stack",
        shown=f"move {shown(errand.local / 'out' / wheel)} to {shown(build.place)}",
        action=partial(_accept, build, name, errand),
    )


def _accept(build: Build, name: str, errand: Errand, report: Report) -> None:
    recipe = build.recipes[name]
    sources = assembled(recipe)
    made_of = _made_of_what(build, recipe, sources) if sources else None
    accept.accept(replace(_result_of(build, name, errand), made_of=made_of), build.place, report)


def _compare(build: Build, name: str, errand: Errand, report: Report) -> None:
    first = described(build.place, expected_wheel(build.recipes[name], build.target))
    accept.verify(first, _result_of(build, name, errand), build.place, report)


def _result_of(build: Build, name: str, errand: Errand) -> accept.Made:
    recipe = build.recipes[name]
    sources = assembled(recipe)
    return accept.Made(
        recipe=recipe,
        stack=build.stack,
        folder=errand.local,
        wheel=expected_wheel(recipe, build.target),
        identity=build.identity(name),
        tree=sources.tree if sources else "",
        site=build.site.name,
        log=errand.log,
        development=build.development,
        cross=build.target.architecture if build.cross else "",
    )
