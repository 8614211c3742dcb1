"""A recipe's sources: the pinned tree, patched, and the trees of what it depends on, in `.work/sources/KEY/`.

`source/` is what is built, `deps/VARIABLE/` what the build is told to use, `complete.json` comes last: without it a
folder is what an interrupted run left, and is made anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from build.archive import unpack
from build.patch import apply_patch
from build.recipe import REPRODUCIBLE, Origin, Recipe, source_hash
from build.sdist import fetch_sdist
from build.submodules import gather, write
from build.tree import copy_tree, remove_tree, settle, tree_hash
from core.config import ROOT, WORK, Model, shown
from core.download import fetched, public
from core.plan import Report
from core.store import full_disk_is_said, held, plain_name

LAYOUT = 1
"""Counts up when the same pins give other trees."""
TIME = int(REPRODUCIBLE["SOURCE_DATE_EPOCH"])


class Pin(Model):
    """One origin of a tree, for provenance."""

    place: str
    """`source`, `deps/VARIABLE`, or a submodule below one of them."""
    origin: str
    """URL of the repository or archive, NAME==VERSION, or a folder of this project."""
    digest: str
    """`gitCommit:` or `sha256:`, and hex."""


class Record(Model):
    """complete.json."""

    recipe: str
    tree: str
    """tree_hash() of `source`, patches applied."""
    deps: dict[str, str]
    """tree_hash() of each dependency, by variable."""
    pins: tuple[Pin, ...]


class Sources(Record):
    """Assembled sources and where they are."""

    folder: Path

    @property
    def source(self) -> Path:
        """The tree that is built."""
        return self.folder / "source"

    def dependency(self, variable: str) -> Path:
        """Return the tree that an environment variable is to name."""
        return self.folder / "deps" / variable


def assemble(recipe: Recipe, report: Report, *, root: Path = ROOT, work: Path = WORK) -> Sources:
    """Return the recipe's sources, made where they are not there or were changed since.

    Raises BuildFailed when a pin cannot be had, is another file, or a patch does not apply; HostNotReady when the disk
    is full. Nothing half-made remains; what was fetched stays for the next run.
    """
    folder = place_of(recipe, root=root, work=work)
    with held(folder.with_name(f".{folder.name}.lock"), f"makes the sources of {recipe.title}", report):
        there = assembled(recipe, root=root, work=work)
        if there is not None:
            problem = changed(there)
            if problem is None:
                return there
            report(f"{problem}; the sources are made anew")
        with full_disk_is_said(folder):
            return _make(recipe, folder, report, root, work)


def assembled(recipe: Recipe, *, root: Path = ROOT, work: Path = WORK) -> Sources | None:
    """Return the sources that assemble() has made, without looking at the trees; None where there are none."""
    folder = place_of(recipe, root=root, work=work)
    try:
        record = Record.model_validate_json((folder / "complete.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None
    return Sources(folder=folder, **dict(record))


def place_of(recipe: Recipe, *, root: Path = ROOT, work: Path = WORK) -> Path:
    """Return the folder of a recipe's sources: the same pins and patches have the same one."""
    shape = [recipe.source.git_head, *(origin.submodules for _, origin in _origins(recipe))]
    key = hashlib.sha256(json.dumps([LAYOUT, source_hash(recipe, root), shape]).encode()).hexdigest()
    return work / "sources" / key[:32]


def changed(sources: Sources) -> str | None:
    """Say which tree is not what it was when it was made; None where all are."""
    trees = {"source": sources.tree, **{f"deps/{variable}": tree for variable, tree in sources.deps.items()}}
    for name, recorded in trees.items():
        place = sources.folder / name
        if not place.is_dir() or tree_hash(place) != recorded:
            return f"{shown(place)} has changed"
    return None


def _origins(recipe: Recipe) -> Iterator[tuple[str, Origin]]:
    """Yield (place below the folder, origin) of every tree."""
    yield "source", recipe.source
    yield from ((f"deps/{other.variable}", other) for other in recipe.dependencies)


def _make(recipe: Recipe, folder: Path, report: Report, root: Path, work: Path) -> Sources:
    with _fresh(folder) as fresh:
        pins = [
            pin for place, one in _origins(recipe) for pin in _tree(one, place, fresh, report, root=root, work=work)
        ]
        for patch in recipe.patches:
            apply_patch(fresh / "source", recipe.patch_file(patch), report)
        if recipe.source.git_head and recipe.source.commit:
            write_git_head(fresh / "source", recipe.source.commit)
        trees = {place: fresh / place for place, _ in _origins(recipe)}
        for tree in trees.values():
            settle(tree, TIME)
        hashes = {place: tree_hash(tree) for place, tree in trees.items()}
        deps = {other.variable: hashes[f"deps/{other.variable}"] for other in recipe.dependencies}
        record = Record(recipe=recipe.title, tree=hashes["source"], deps=deps, pins=tuple(pins))
        (fresh / "complete.json").write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    report(f"sources of {recipe.title}: tree {record.tree[:12]}")
    return Sources(folder=folder, **dict(record))


@contextmanager
def _fresh(folder: Path) -> Iterator[Path]:
    """Give a folder to fill; it gets the name ``folder`` when the block succeeds and is removed when it does not."""
    fresh = folder.with_name(f"{folder.name}.new")
    remove_tree(fresh)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        remove_tree(folder)
        fresh.rename(folder)
    finally:
        remove_tree(fresh)


def _tree(origin: Origin, place: str, fresh: Path, report: Report, *, root: Path, work: Path) -> list[Pin]:
    """Make one tree at ``fresh/place`` and say where all of it comes from."""
    destination = fresh / place
    destination.parent.mkdir(parents=True, exist_ok=True)
    if origin.path is not None:
        copy_tree(root / origin.path, destination)
        return [Pin(place=place, origin=str(origin.path), digest=f"sha256:{tree_hash(destination)}")]
    if origin.repository and origin.commit:
        return _git_tree(origin, place, destination, report, work)
    unpack(origin_file(origin, report, work=work), destination)
    name = origin.sdist or public(str(origin.archive))
    return [Pin(place=place, origin=name, digest=f"sha256:{origin.sha256}")]


def _git_tree(origin: Origin, place: str, destination: Path, report: Report, work: Path) -> list[Pin]:
    assert origin.repository
    assert origin.commit
    pins = gather(origin.repository, origin.commit, origin.reference, report, submodules=origin.submodules, work=work)
    write(pins, destination)
    return [
        Pin(place=f"{place}/{pin.place}".rstrip("/"), origin=public(pin.mirror.url), digest=f"gitCommit:{pin.commit}")
        for pin in pins
    ]


def origin_file(origin: Origin, report: Report, *, work: Path = WORK) -> Path:
    """Return the stored file of a source distribution or an archive, fetched where it is not there."""
    assert origin.sha256
    if origin.sdist:
        return fetch_sdist(origin.sdist, origin.sha256, report, work=work)
    url = str(origin.archive)
    name = plain_name(public(url).rpartition("/")[2])
    return fetched(url, origin.sha256, name, report, work=work)


def write_git_head(tree: Path, commit: str) -> None:
    """Leave a `.git` that answers `git rev-parse HEAD` and knows nothing else; always the same bytes."""
    git = tree / ".git"
    for name in ("objects/info", "objects/pack", "refs/heads", "refs/tags"):
        (git / name).mkdir(parents=True)
    (git / "HEAD").write_text(f"{commit}\n", encoding="ascii")
    config = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n"
    (git / "config").write_text(config, encoding="ascii")
