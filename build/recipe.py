"""A recipe is data: where a wheel's source is, what builds it, and what must come out.

Recipes are `build/recipes/NAME.toml`; beside each lie NAME.lock (its build requirements with hashes, written by
`invoke build.lock`) and NAME/ (its patches). A variant is the same recipe with a few keys changed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from pydantic import AfterValidator, Field, model_validator

from build.tree import tree_hash
from core.config import ROOT, Environment, Model, Name, Size, load_data, read_toml
from core.errors import ConfigError
from core.mistakes import nearest
from wheels.target import Target

RECIPES = ROOT / "build" / "recipes"

WHOLE = ("source", "toolchain", "expected")
"""Tables that a variant replaces whole."""
INSTALLER = "pip==26.3"
"""Makes the build environment and drives the build backend; the build requirements of every recipe begin with it."""

REPRODUCIBLE: dict[str, str] = {
    "LC_ALL": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "SOURCE_DATE_EPOCH": "1764547200",
    "TZ": "UTC",
}
"""Environment of every build, below the recipe's own: the same source gives the same bytes."""


def _exact(requirement: str) -> str:
    try:
        parsed = Requirement(requirement)
    except InvalidRequirement as error:
        raise ValueError(f"{requirement!r} is not a requirement: {error}") from error
    pins = [specifier.operator for specifier in parsed.specifier]
    if pins != ["=="] or requirement.endswith(".*"):
        raise ValueError(f"{requirement} has no exact version (==)")
    return requirement


def _inside(path: Path) -> Path:
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{path} must lie within the project")
    return path


Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Exact = Annotated[str, AfterValidator(_exact)]
"""A requirement with one exact version."""
Inside = Annotated[Path, AfterValidator(_inside)]
Variable = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]


class Origin(Model):
    """Where files come from: a commit of a repository, a source distribution, an archive, or a folder of this project.

    Exactly one of ``repository``, ``sdist``, ``archive`` and ``path``.
    """

    path: Inside | None = None
    """Relative to the project."""
    repository: str | None = None
    reference: str | None = None
    """Tag or branch that the commit was found under; `invoke build.lock` resolves it again and compares."""
    commit: Commit | None = None
    submodules: bool = False
    sdist: Exact | None = None
    """A source distribution of the package index, like "flash-attn==2.7.4.post1"."""
    archive: str | None = None
    """URL of a .tar.gz, .tar.xz or .zip file; its single top folder is left out."""
    sha256: Sha256 | None = None
    """Of the source distribution or the archive."""

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if sum(bool(value) for value in (self.path, self.repository, self.sdist, self.archive)) != 1:
            raise ValueError('give one of "path", "repository", "sdist" and "archive"')
        if bool(self.repository) != bool(self.commit):
            raise ValueError('"repository" and "commit" belong together: a branch or a tag can move')
        if (self.reference or self.submodules) and not self.repository:
            raise ValueError('"reference" and "submodules" belong to a "repository"')
        if bool(self.sdist or self.archive) != bool(self.sha256):
            raise ValueError('"sha256" belongs to an "sdist" or an "archive", and each of them needs it')
        return self

    @property
    def pin(self) -> str:
        """What names the content: the commit or the hash; empty for a folder."""
        return self.commit or self.sha256 or ""


class Source(Origin):
    """The tree that is built."""

    git_head: bool = False
    """Leave a `.git` in the tree that answers `git rev-parse HEAD`, for builds that write the commit into the wheel."""


class Dependency(Origin):
    """A tree that the build would download by itself; ``variable`` tells it to use ours."""

    variable: Variable


class Patch(Model):
    """A change of the source, beside the recipe in build/recipes/NAME/."""

    file: str
    reason: str
    link: Annotated[str, Field(pattern=r"^https://")]
    """Where the fault or the change is discussed."""


class Toolchain(Model):
    """What the build machine needs besides the build requirements; checked before anything long begins."""

    compiler: bool = False
    """A C++ compiler."""
    gcc: tuple[int, int] | None = None
    """Oldest and newest major version of GCC that the source is known to build with, both included."""
    cuda: Annotated[str, Field(pattern=r"^\d+\.\d+$")] | None = None
    """Release of the CUDA toolkit (`nvcc --version`); absent where no device code is compiled."""
    headers: bool = False
    """Python's C headers (python3-dev)."""
    packages: tuple[str, ...] = ()
    """Further Debian packages."""


class Expected(Model):
    """What the wheel must look like, or it is not the one that was asked for."""

    tags: str
    """The wheel's tags; `{arch}` stands for the machine as `uname -m` says it, `{python}` for 312."""
    files: tuple[str, ...] = ()
    """Files it must hold."""
    device_code: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Library to the GPU code it must hold, where the stack has GPU architectures: `sm_121`, `sm_120f`, `compute_90`.

    `{architectures}` stands for the stack's own; in a library's name `*` stands for what depends on Python.
    """
    imports: tuple[str, ...] = ()
    """Modules that must import without anything else; tried under emulation after a cross build."""


class Recipe(Model):
    """How one distribution becomes a wheel."""

    name: Name
    variant: Name | None = None
    distribution: str
    version: str
    source: Source
    build_options: tuple[str, ...] = ()
    """Further options of setuptools' bdist_wheel, like "--py-limited-api=cp38"."""
    subdirectory: Inside | None = None
    """Where in the tree the Python project lies, when not at its top."""
    requires: Annotated[tuple[Exact, ...], Field(min_length=1)]
    """Build requirements, each with its exact version; NAME.lock holds them whole, with hashes."""
    needs: tuple[Name, ...] = ()
    """Components of the same stack that are built or fetched first and stand in the build environment."""
    environment: Environment = Field(default_factory=dict)
    """Environment of the build.

    Placeholders: `{architectures}` the stack's GPU architectures as nvcc names them, separated by semicolons;
    `{capabilities}` the same as PyTorch names them (12.1); `{jobs}` compilers at once; `{cuda}` the CUDA toolkit;
    `{venv}` the build environment; `{source}` the tree; `{python}` the interpreter's version (3.12).
    """
    dependencies: tuple[Dependency, ...] = ()
    patches: tuple[Patch, ...] = ()
    toolchain: Toolchain = Toolchain()
    memory_per_job: Size = 2 * 1024**3
    """What one compiler needs at most."""
    disk: Size = 2 * 1024**3
    """What the build writes at most."""
    threads_per_job: Annotated[int, Field(ge=1)] = 1
    """Threads of one job (NVCC_THREADS): jobs are cores divided by it."""
    cross: bool = False
    """Whether the build can be told to compile for another architecture (`--target`)."""
    expected: Expected
    requires_dist: tuple[str, ...] = ()
    """The wheel's run-time requirements as its METADATA will have them: what a resolver knows before it is built."""

    @model_validator(mode="after")
    def _patches_are_beside_it(self) -> Self:
        missing = [patch.file for patch in self.patches if not (RECIPES / self.name / patch.file).is_file()]
        if missing:
            raise ValueError(f"patches that are not in build/recipes/{self.name}/: {', '.join(missing)}")
        return self

    @property
    def title(self) -> str:
        """Name and variant, as people read it."""
        return f"{self.name} ({self.variant})" if self.variant else self.name

    @property
    def lock(self) -> Path:
        """The build requirements with hashes."""
        return RECIPES / f"{self.name}.lock"

    def patch_file(self, patch: Patch) -> Path:
        """Return where a patch lies."""
        return RECIPES / self.name / patch.file


def load_recipe(name: str, variant: str | None = None) -> Recipe:
    """Read `build/recipes/NAME.toml`, with the changes of a variant. Raises ConfigError when it is missing or wrong."""
    path = RECIPES / f"{name}.toml"
    if not path.is_file():
        raise _unknown(f"build/recipes/{name}.toml does not exist", name, recipe_names())
    data = read_toml(path)
    variants = data.pop("variants", {})
    if variant and variant not in variants:
        raise _unknown(f"{path.name} has no variant {variant!r}", variant, sorted(variants))
    changed = merged(data, {**variants[variant], "variant": variant}) if variant else data
    return load_data(Recipe, path, changed)


def recipe_names() -> list[str]:
    """Return the names of all recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def variant_names(name: str) -> list[str]:
    """Return the names of a recipe's variants."""
    return sorted(read_toml(RECIPES / f"{name}.toml").get("variants", {}))


def _unknown(cause: str, word: str, words: list[str]) -> ConfigError:
    return ConfigError(f"{cause}{nearest(word, words)}", next_move=f"use one of: {', '.join(words) or 'none'}")


def merged(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``data`` with ``changes``: tables are merged; those of WHOLE and all that is no table are replaced."""
    both = {
        key: merged(data[key], value) if isinstance(value, dict) and key not in WHOLE else value
        for key, value in changes.items()
        if isinstance(data.get(key), dict)
    }
    return {**data, **changes, **both}


def environment(recipe: Recipe, architectures: Sequence[str], **others: str) -> dict[str, str]:
    """Return the environment to build with, placeholders filled in; ``architectures`` as nvcc names them."""
    values = {
        "architectures": ";".join(architectures),
        "capabilities": ";".join(capability(name) for name in architectures),
        **others,
    }
    own = {key: _filled(text, values) for key, text in recipe.environment.items()}
    return {**REPRODUCIBLE, **own}


def capability(architecture: str) -> str:
    """Return an architecture as PyTorch names it: `121` is 12.1, `120f` is 12.0f."""
    digits, suffix = re.fullmatch(r"(\d+)([a-z]?)", architecture).groups()  # type: ignore[union-attr]
    return f"{digits[:-1]}.{digits[-1]}{suffix}"


def _filled(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{([a-z]+)\}", lambda found: values.get(found[1], found[0]), text)


def expected_wheel(recipe: Recipe, target: Target) -> str:
    """Return the file name that the build must give for a target."""
    distribution = canonicalize_name(recipe.distribution).replace("-", "_")
    tags = recipe.expected.tags.format(arch=target.architecture, python="{}{}".format(*target.python))
    return f"{distribution}-{recipe.version}-{tags}.whl"


def expected_files(recipe: Recipe, architectures: Sequence[str]) -> tuple[str, ...]:
    """Return the files that the wheel must hold; a `*` stands for anything."""
    return recipe.expected.files + (tuple(recipe.expected.device_code) if architectures else ())


def expected_code(recipe: Recipe, architectures: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the GPU code that each library must hold; empty where the stack has no GPU architectures."""
    own = tuple(f"sm_{name}" for name in architectures)
    wanted = recipe.expected.device_code if architectures else {}
    return {
        library: tuple(one for code in codes for one in (own if code == "{architectures}" else (code,)))
        for library, codes in wanted.items()
    }


def source_hash(recipe: Recipe, root: Path = ROOT) -> str:
    """Return the SHA-256 (hex) of what is built: source, dependencies and patches.

    A folder counts with its tree, a commit and a hash by themselves.
    """
    parts = [_content(recipe.source, root)]
    parts += [f"{other.variable} {_content(other, root)}" for other in recipe.dependencies]
    parts += [hashlib.sha256(recipe.patch_file(patch).read_bytes()).hexdigest() for patch in recipe.patches]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _content(origin: Origin, root: Path) -> str:
    return tree_hash(root / origin.path) if origin.path is not None else origin.pin


def recipe_hash(recipe: Recipe, architectures: Sequence[str], needs: Mapping[str, str]) -> str:
    """Return the identity of a build (SHA-256, hex): recipe, its lock, source, GPU architectures, what it needs.

    ``needs`` is, for each needed component, the identity of its build or the version that is fetched. What the recipe
    says of machines and of the result does not count, nor do reasons and links: they change no byte.
    """
    told = {"variant", "memory_per_job", "disk", "threads_per_job", "patches", "toolchain", "expected", "requires_dist"}
    lock = recipe.lock.read_text(encoding="utf-8") if recipe.lock.is_file() else ""
    parts = [
        json.dumps(recipe.model_dump(mode="json", exclude=told), sort_keys=True),
        hashlib.sha256(lock.encode()).hexdigest(),
        source_hash(recipe),
        json.dumps(list(architectures)),
        json.dumps(dict(sorted(needs.items()))),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
