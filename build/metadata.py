"""Wheels of metadata only: what a resolver has to know of a distribution that no index has in this version."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

from build.recipe import RECIPES, load_recipe
from core.config import Component, Stack


@dataclass(frozen=True)
class Stub:
    """A distribution as a resolver sees it."""

    name: str
    version: str
    requires: tuple[str, ...] = ()


def stub_of(name: str, component: Component) -> Stub:
    """Return what is known of a component that is built or extracted, before that is done.

    Requirements come from its recipe; those of an extracted one from the recipe of its own name, where there is one.
    """
    recipe = component.recipe or (name if (RECIPES / f"{name}.toml").is_file() else None)
    requires = load_recipe(recipe, component.variant).requires_dist if recipe else ()
    return Stub(canonicalize_name(name), component.version, requires)


def stubs_of(stack: Stack) -> tuple[Stub, ...]:
    """Return the stubs of all components that do not come from an index."""
    return tuple(stub_of(name, one) for name, one in stack.components.items() if one.origin != "index")


def write_stubs(folder: Path, stubs: Iterable[Stub]) -> None:
    """Write a wheel for each, for uv's --find-links."""
    folder.mkdir(parents=True, exist_ok=True)
    for stub in stubs:
        stem = f"{stub.name.replace('-', '_')}-{stub.version}"
        with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
            for name, text in _files(stub).items():
                wheel.writestr(f"{stem}.dist-info/{name}", text)


def _files(stub: Stub) -> dict[str, str]:
    metadata = ["Metadata-Version: 2.1", f"Name: {stub.name}", f"Version: {stub.version}"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in stub.requires]
    wheel = ["Wheel-Version: 1.0", "Generator: sparkstack", "Root-Is-Purelib: true", "Tag: py3-none-any"]
    return {"METADATA": "\n".join(metadata) + "\n", "WHEEL": "\n".join(wheel) + "\n", "RECORD": ""}
