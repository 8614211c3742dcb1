"""A recipe is data: where a wheel's source is, what builds it, and what must come out.

Recipes are `build/recipes/NAME.toml`. Reading one touches nothing but that file; `source_hash` reads the source's tree.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from core.config import ROOT, Environment, Model, Name, load_model
from core.errors import BuildFailed, ConfigError
from core.mistakes import nearest

RECIPES = ROOT / "build" / "recipes"

Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

REPRODUCIBLE: dict[str, str] = {
    "LC_ALL": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "SOURCE_DATE_EPOCH": "1764547200",
    "TZ": "UTC",
}
"""Environment of every build, below the recipe's own: the same source gives the same bytes."""


class Source(Model):
    """A folder of this project, a commit of a repository, or a source distribution; exactly one of the three."""

    path: Path | None = None
    """Relative to the project."""
    repository: str | None = None
    commit: Commit | None = None
    submodules: bool = False
    sdist: str | None = None
    """URL of a source distribution."""
    sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if sum(bool(value) for value in (self.path, self.repository, self.sdist)) != 1:
            raise ValueError('give one of "path", "repository" and "sdist"')
        if bool(self.repository) != bool(self.commit):
            raise ValueError('"repository" and "commit" belong together: a branch or a tag can move')
        if bool(self.sdist) != bool(self.sha256):
            raise ValueError('"sdist" and "sha256" belong together')
        if self.path and (self.path.is_absolute() or ".." in self.path.parts):
            raise ValueError(f'"path" {self.path} must lie within the project')
        return self


class Dependency(Model):
    """A checkout that the build would download by itself; ``variable`` tells it to use ours."""

    variable: Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]
    repository: str
    reference: str
    submodules: bool = False


class Expected(Model):
    """What the wheel must look like, or it is not the one that was asked for."""

    tags: str
    """The wheel's tags; `{arch}` stands for the machine as `uname -m` says it."""
    files: tuple[str, ...]
    """Files it must hold."""
    files_with_device_code: tuple[str, ...] = ()
    """Files it must hold besides where GPU architectures were given."""


class Recipe(Model):
    """How one distribution becomes a wheel."""

    name: Name
    distribution: str
    version: str
    source: Source
    requires: Annotated[tuple[str, ...], Field(min_length=1)]
    """Build requirements, each with its exact version."""
    environment: Environment = Field(default_factory=dict)
    """Environment of the build; `{architectures}` stands for the stack's GPU architectures, separated by semicolons."""
    dependencies: tuple[Dependency, ...] = ()
    expected: Expected

    @model_validator(mode="after")
    def _requirements_are_exact(self) -> Self:
        loose = [requirement for requirement in self.requires if "==" not in requirement]
        if loose:
            raise ValueError(f"requires {', '.join(loose)} without an exact version (==)")
        return self

    @property
    def builds_here(self) -> bool:
        """Its source is a folder of this project, so that nothing has to be fetched."""
        return self.source.path is not None


def load_recipe(name: str) -> Recipe:
    """Read `build/recipes/NAME.toml`; raise ConfigError when it is missing or wrong."""
    path = RECIPES / f"{name}.toml"
    if not path.is_file():
        names = sorted(found.stem for found in RECIPES.glob("*.toml"))
        raise ConfigError(
            f"build/recipes/{name}.toml does not exist{nearest(name, names)}",
            next_move=f"use one of: {', '.join(names)}",
        )
    return load_model(Recipe, path)


def environment(recipe: Recipe, architectures: Sequence[str]) -> dict[str, str]:
    """Return the environment to build with, placeholders filled in; `architectures` as nvcc names them."""
    own = {key: value.replace("{architectures}", ";".join(architectures)) for key, value in recipe.environment.items()}
    return {**REPRODUCIBLE, **own}


def expected_wheel(recipe: Recipe, arch: str) -> str:
    """Return the file name that the build must give on a machine of ``arch`` (`uname -m`)."""
    distribution = recipe.distribution.replace("-", "_")
    return f"{distribution}-{recipe.version}-{recipe.expected.tags.format(arch=arch)}.whl"


def expected_files(recipe: Recipe, architectures: Sequence[str]) -> tuple[str, ...]:
    """Return the files that the wheel must hold."""
    return recipe.expected.files + (recipe.expected.files_with_device_code if architectures else ())


def source_hash(recipe: Recipe, root: Path = ROOT) -> str:
    """Return the SHA-256 (hex) of what is built: the tree of a folder, or the commit or hash that names the source."""
    source = recipe.source
    if source.path is not None:
        return tree_hash(root / source.path)
    return hashlib.sha256((source.commit or source.sha256 or "").encode()).hexdigest()


def tree_hash(folder: Path) -> str:
    """Return the SHA-256 (hex) over relative paths, executable bits and contents, in the order of the paths.

    Byte code is left out: running a source changes nothing. Raises BuildFailed for a missing folder and for anything
    that is neither a file nor a folder, links included.
    """
    if not folder.is_dir():
        raise BuildFailed(f"{folder} is not a folder", next_move="check the recipe's source.path")
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda found: found.relative_to(folder).as_posix()):
        if path.is_dir() and not path.is_symlink():
            continue
        if "__pycache__" not in path.parts:
            total.update(_entry(path, path.relative_to(folder).as_posix()))
    return total.hexdigest()


def _entry(path: Path, name: str) -> bytes:
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode):
        raise BuildFailed(f"{path} is neither a file nor a folder", next_move="keep plain files in a source")
    kind = "x" if mode & stat.S_IXUSR else "-"
    return f"{kind} {hashlib.sha256(path.read_bytes()).hexdigest()} {name}\0".encode()
