"""What each lock is resolved from, and what stands above its entries."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, timedelta
from importlib.metadata import version
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import Version

from build.metadata import Stub, stubs_of
from build.recipe import RECIPES, Recipe, load_recipe, recipe_names, variant_names
from build.resolver import Wanted, flags
from core.config import Component, Index, Stack, shown
from core.errors import BuildFailed
from wheels.lock import entries

RECIPES_AS_OF = date(2026, 11, 24)
"""Last day (UTC) of uploads to the index that count for build requirements which no recipe names itself."""
PYTHON = "3.11"
"""Oldest minor version that wheels are built for."""
UNKNOWN = "known-when-its-lock-is-written"
_IDENTITY = re.compile(r"^(# (\S+)==\S+ built by \S+, recipe) \S+$", re.MULTILINE)


def recipes_of(stack: Stack) -> tuple[str, ...]:
    """Return the recipes that a stack is built by, and those of the same versions of what it takes from elsewhere."""
    named = {component.recipe or name: component.version for name, component in stack.components.items()}
    recipes = ((load_recipe(name), version_) for name, version_ in named.items() if name in recipe_names())
    return tuple(one.name for one, version_ in recipes if Version(one.version).public == Version(version_).public)


def every_variant(recipes: Iterable[str]) -> Iterator[Recipe]:
    """Return the recipes, plain and in each variant."""
    return (load_recipe(name, variant) for name in recipes for variant in (None, *variant_names(name)))


def wanted_by_recipe(name: str) -> Wanted:
    """Return what stands in a recipe's build environment: what it ``needs`` brings its requirements, not itself."""
    recipes = tuple(every_variant([name]))
    needs = {need for recipe in recipes for need in recipe.needs if (RECIPES / f"{need}.toml").is_file()}
    needed = tuple(load_recipe(need) for need in sorted(needs))
    stubs = tuple(Stub(recipe.name, recipe.version, recipe.requires_dist) for recipe in needed)
    own = dict.fromkeys(requirement for recipe in recipes for requirement in recipe.requires)
    return Wanted(
        label=f"build/recipes/{name}.toml",
        requirements=(*own, *(f"{stub.name}=={stub.version}" for stub in stubs)),
        python=PYTHON,
        stubs=stubs,
        exclude_newer=_end_of(RECIPES_AS_OF),
    )


def wanted_by_stack(stack: Stack) -> Wanted:
    """Return what the index part of a stack is resolved from; what has an index of its own is left out."""
    apart = _apart(stack.indexes)
    resolved = {name: c for name, c in stack.components.items() if canonicalize_name(name) not in apart}
    return Wanted(
        label=_label(stack),
        requirements=(*(f"{name}=={c.version}" for name, c in resolved.items()), *stack.requires),
        python=min(stack.python, key=Version),
        stubs=stubs_of(stack),
        without=tuple(sorted({*stack.without, *apart})),
        overrides=tuple(stack.overrides),
        platform=f"{stack.platforms[0]}-manylinux_{stack.glibc.replace('.', '_')}" if stack.glibc else None,
        exclude_newer=_end_of(stack.exclude_newer) if stack.exclude_newer else None,
    )


def wanted_by_fallback(stack: Stack, index: Index, lock: str) -> Wanted:
    """Return what takes the place of an index's own distributions, besides what the stack's ``lock`` holds already."""
    own = {str(canonicalize_name(name)) for name in index.distributions}
    held = {str(canonicalize_name(entry.split("==")[0])) for entry in entries(lock)} - own
    return Wanted(
        label=_label(stack),
        requirements=tuple(f"{name}=={Version(stack.components[name].version).public}" for name in index.distributions),
        python=min(stack.python, key=Version),
        without=tuple(sorted({*stack.without, *held} - own)),
        exclude_newer=_end_of(stack.exclude_newer) if stack.exclude_newer else None,
    )


def wanted_by_toolkit(source: Path) -> Wanted:
    """Return what a list of build/toolkits asks for: exactly those wheels, for every machine."""
    wheels = tuple(entries(source.read_text(encoding="utf-8")))
    return Wanted(label=shown(source), requirements=wheels, python=PYTHON, alone=True)


def toolkit_header(wanted: Wanted) -> str:
    """Return what stands above the lock of a CUDA toolkit."""
    return f"# The wheels of {wanted.label}: x86_64 and aarch64.\n#\n{_made_by(wanted, 'invoke build.lock')}"


def recipe_header(wanted: Wanted) -> str:
    """Return what stands above a recipe's build requirements."""
    stack = " and ".join(stub.name for stub in wanted.stubs)
    whole = f"With {stack} of the stack they are" if stack else "They are"
    return (
        f"# Build requirements of {wanted.label}: x86_64 and aarch64, Python {wanted.python} and newer, wheels only.\n"
        f"# {whole} the whole environment of the build, installed with --no-deps.\n"
        f"#\n{_made_by(wanted, 'invoke build.lock')}"
    )


def stack_header(stack: Stack, wanted: Wanted) -> str:
    """Return what stands above the index part of a stack: how it was made, and what it does not hold."""
    machines = f"{' and '.join(stack.platforms)}, Python {', '.join(stack.python)}"
    glibc = f", glibc up to {stack.glibc}" if stack.glibc else ""
    apart = [f"{name}=={c.version} {_origin(c)}" for name, c in stack.components.items() if c.origin != "index"]
    told = "".join(f"# {line}\n" for line in ("Not of an index, resolved by what their recipes require:", *apart))
    return (
        f"# The index part of the {stack.name} stack: {machines}{glibc}, wheels only.\n"
        f"# It leaves requirements out on purpose ({wanted.label}, [without]), so it is installed with --no-deps.\n"
        f"#\n{_made_by(wanted, f'invoke build.lock --stack {stack.name}')}{f'#{chr(10)}{told}' if apart else ''}"
    )


def fallback_header(stack: Stack, index: Index, wanted: Wanted) -> str:
    """Return what stands above the lock that takes the place of an index of its own."""
    names = ", ".join(sorted(index.distributions))
    return (
        f"# For hosts that reach no index with {names} of the {stack.name} stack: that of the default index.\n"
        f"# It takes the place of {names} in {stack.lock}; the rest of that lock stays.\n"
        f"#\n{_made_by(wanted, f'invoke build.lock --stack {stack.name}')}"
    )


def identified(text: str, named: Mapping[str, str]) -> str:
    """Return a stack's lock in which each recipe's line ends with the identity of its build."""
    return _IDENTITY.sub(lambda found: f"{found[1]} {named.get(found[2], UNKNOWN)}", text)


def carried(lock: str, stack: Stack) -> str:
    """Return the entries, as they are, of distributions that have an index of their own: nothing resolves them.

    Raises BuildFailed where the lock has none for the version that the stack names.
    """
    return "".join(_entry(lock, stack, index, name) for index in stack.indexes for name in index.distributions)


def _entry(lock: str, stack: Stack, index: Index, name: str) -> str:
    pin = f"{canonicalize_name(name)}=={stack.components[name].version}"
    found = re.search(rf"^{re.escape(pin)} .*\n([ \t].*\n)*", lock, re.MULTILINE)
    if found is None:
        raise BuildFailed(
            f"{stack.lock} has no entry for {pin}, which comes from an index of its own",
            next_move=f"write it there by hand, with the hashes that {index.url} shows for it",
        )
    return found[0]


def _end_of(day: date) -> str:
    """Return the end of a day as uv takes it; a day alone would be one of this host's time zone."""
    return f"{(day + timedelta(days=1)).isoformat()}T00:00:00Z"


def _apart(indexes: Iterable[Index]) -> set[str]:
    return {canonicalize_name(name) for index in indexes for name in index.distributions}


def _label(stack: Stack) -> str:
    return f"config/stacks/{stack.name}.toml"


def _origin(component: Component) -> str:
    if component.origin == "source":
        return f"built by build/recipes/{component.recipe}.toml, recipe {UNKNOWN}"
    return f"extracted from {component.image}"


def _made_by(wanted: Wanted, command: str) -> str:
    words = [word for word in flags(wanted) if word not in {"wanted", "stubs", "--find-links", "--quiet"}]
    own = " ".join(words[: words.index("--no-header") + 1])
    told = f"Made by `{command}` with uv {version('uv')}: uv pip compile {own}"
    lines = textwrap.wrap(told, 117, break_on_hyphens=False, break_long_words=False)
    return "".join(f"# {line}\n" for line in lines)
