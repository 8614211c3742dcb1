"""What a plan of wheels is made from: stack, target, machine that builds, and what is there already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from build.cross import cross_packages
from build.index import IndexPart
from build.recipe import Recipe, load_recipe, recipe_hash
from build.site import Site
from build.toolkit import Toolkit
from core.config import Component, Stack
from core.errors import UsageError
from wheels.manifest import Wheel, folder
from wheels.target import Target


@dataclass(frozen=True)
class Build:
    """What a plan of wheels is made from."""

    stack: Stack
    target: Target
    index: IndexPart
    index_lock: str
    site: Site
    built: tuple[Wheel, ...] = ()
    """What is built already, whether a manifest lists it or not."""
    development: bool = False
    """With the compiler cache that the machine has; such wheels are not for a release."""
    verify: bool = False
    """Build everything twice and compare."""
    cross: bool = False
    """The wheels are for another architecture than the site's."""
    toolkit: bool = False
    """The CUDA toolkit comes from wheels, not from the machine that builds; a cross build has it so in any case."""
    max_jobs: int | None = None
    """Compilers at once, where the user says it."""
    only: frozenset[str] = frozenset()
    """Components that are built alone, with what they need; empty for all of the stack, which then is listed."""

    @property
    def place(self) -> Path:
        """The folder that the wheels go to."""
        return folder(self.stack, self.target)

    @property
    def recipes(self) -> dict[str, Recipe]:
        """Recipes of the components that are built, by component, each after those that it needs."""
        found = recipes_of(self.stack)
        return {
            name: recipe for name, recipe in found.items() if not self.only or name in _with_needs(found, self.only)
        }

    def uses_cuda(self, recipe: Recipe) -> bool:
        """Say whether device code is compiled."""
        return recipe.toolchain.cuda is not None and bool(self.stack.architectures)

    def toolkit_of(self, recipe: Recipe) -> Toolkit:
        """Return the toolkit of wheels for a recipe; what compiles against torch needs libraries too."""
        release = str(recipe.toolchain.cuda)
        return Toolkit(release, self.site.target.architecture, self.target.architecture, libraries=bool(recipe.needs))

    def identity(self, name: str) -> str:
        """Return what names the build of a component: its inputs, hashed."""
        return identities(self.stack)[name]


def recipes_of(stack: Stack) -> dict[str, Recipe]:
    """Return the recipes of a stack's built components, each after those that it needs. Raises UsageError on a ring."""
    found = {name: _recipe_of(c) for name, c in stack.components.items() if c.origin == "source"}
    ordered: dict[str, Recipe] = {}
    while len(ordered) < len(found):
        ready = [n for n in found if n not in ordered and not (set(found[n].needs) & found.keys()) - ordered.keys()]
        if not ready:
            rest = ", ".join(sorted(found.keys() - ordered.keys()))
            raise UsageError(f"the recipes of {rest} need each other", next_move="correct their key needs")
        ordered |= {name: found[name] for name in ready}
    return ordered


def _with_needs(recipes: Mapping[str, Recipe], names: Iterable[str]) -> set[str]:
    """Return the names and all that they need, directly or not."""
    found = set(names)
    for name in found & recipes.keys():
        found |= _with_needs(recipes, recipes[name].needs)
    return found


def _recipe_of(component: Component) -> Recipe:
    return load_recipe(str(component.recipe), component.variant)


def identities(stack: Stack) -> dict[str, str]:
    """Return what names each component's content: of a built one the hash of all that goes into it (hex)."""
    named = {name: f"{c.origin} {c.version}" for name, c in stack.components.items() if c.origin != "source"}
    for name, recipe in recipes_of(stack).items():
        missing = [need for need in recipe.needs if need not in named]
        if missing:
            raise UsageError(
                f"the recipe {recipe.title} needs {', '.join(missing)}, which the stack {stack.name} does not have",
                next_move="add the component to the stack, or take a recipe that does without",
            )
        named[name] = recipe_hash(recipe, stack.architectures, {need: named[need] for need in recipe.needs})
    return named


def packages_of(stack: Stack, *, cross: bool) -> tuple[str, ...]:
    """Return the Debian packages that a machine needs to build the stack: what its probe has to ask for."""
    own = {name for recipe in recipes_of(stack).values() for name in recipe.toolchain.packages}
    return tuple(sorted(own | set(cross_packages() if cross else ())))
