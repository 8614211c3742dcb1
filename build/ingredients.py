"""What goes into a build, as data: known before it begins, told inside the wheel, and checked when it comes back.

It is taken from what this host holds, each file hashed, and not from what a build says of itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.utils import parse_wheel_filename
from pydantic import ValidationError

from build.recipe import Recipe
from build.source import Sources
from core.errors import BuildFailed
from wheels.ingredients import Ingredients, Patch, Pinned, Source, Tool
from wheels.manifest import sha256_of
from wheels.sbom import PLACE, sbom_in, wheel_sbom


def ingredients(
    recipe: Recipe, architectures: tuple[str, ...], sources: Sources, wheels: Iterable[Path], toolkit: Iterable[Path]
) -> Ingredients:
    """Return what a recipe's wheel is made of; reads ``wheels``, those of the build environment, whole for the hash.

    The toolkit's lie in the store, each in the folder that is its hash.
    """
    return Ingredients(
        recipe=recipe.name,
        variant=recipe.variant,
        architectures=architectures,
        sources=tuple(Source(**pin.model_dump()) for pin in sources.pins),
        patches=tuple(
            Patch(file=patch.file, sha256=sha256_of(recipe.patch_file(patch)), link=patch.link)
            for patch in recipe.patches
        ),
        requirements=tuple(sorted((_pinned(path, sha256_of(path)) for path in wheels), key=_by_name)),
        toolkit=tuple(sorted((_pinned(path, path.parent.name) for path in toolkit), key=_by_name)),
    )


def _pinned(path: Path, sha256: str) -> Pinned:
    name, version, *_ = parse_wheel_filename(path.name)
    return Pinned(name=str(name), version=str(version), filename=path.name, sha256=sha256)


def _by_name(pinned: Pinned) -> str:
    return pinned.filename


def sbom_of(recipe: Recipe, made_of: Ingredients) -> str:
    """Return the text of the SBOM that the recipe's wheel is to hold."""
    return wheel_sbom(recipe.distribution, recipe.version, made_of).decode()


def require_sbom(wheel: Path, recipe: Recipe, made_of: Ingredients) -> None:
    """Refuse a wheel whose SBOM is not the one that its build was given."""
    if sbom_in(wheel) != sbom_of(recipe, made_of).encode():
        raise BuildFailed(
            f"{wheel.name} was not built of what is there now: its SBOM ({PLACE}) says otherwise, or is missing",
            next_move="run the same command again; it builds this wheel anew",
        )


def toolchain(result: Mapping[str, Any]) -> tuple[Tool, ...]:
    """Return the programs that a runner's result.json names, by name; none where an older runner wrote it."""
    try:
        tools = (Tool(name=name, **told) for name, told in sorted(result["tools"].items()))
        return tuple(tools)
    except (KeyError, TypeError, AttributeError, ValidationError):
        return ()
