"""One file for a host without network: written, carried, read, and refused when anything of it was changed."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import build.recipe
from build.bundle import INDEX, read_bundle, write_bundle
from build.recipe import Recipe
from build.source import assemble
from build.source import changed as changed_tree
from build.tree import remove_tree
from core.errors import BuildFailed, UsageError
from core.process import run
from core.store import digest
from tests.unit.gitserver import serving as serving_git
from tests.unit.test_build_source import World, repository
from tests.unit.webserver import serving as serving_web

pytestmark = pytest.mark.processes


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(build.recipe, "RECIPES", tmp_path / "recipes")
    (tmp_path / "project").mkdir()
    with serving_git(tmp_path / "served") as git, serving_web() as web:
        yield World(tmp_path, git, web, [])


def with_all_kinds(world: World) -> Recipe:
    """Return a recipe of a repository with a submodule, an archive and a folder."""
    dependencies = [
        {"variable": "DEP_SRC_DIR", **world.archive({"dep.h": "x"})},
        {"variable": "OWN_SRC_DIR", "path": "project"},
    ]
    return world.recipe(source=repository(world), dependencies=dependencies)


def written(world: World, recipe: Recipe, name: str = "bundle.tar") -> Path:
    wheel = world.root / "w-1-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    target = world.root / name
    extra = [("requirements/x/w-1-py3-none-any.whl", wheel)]
    write_bundle([recipe], extra, target, world.lines.append, work=world.work)
    return target


def changed(bundle: Path, change: Any) -> Path:
    """Write the bundle again with its members (name to bytes, in order) changed."""
    with tarfile.open(bundle) as tar:
        members = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
    entries = change(members) or members
    with tarfile.open(bundle, "w") as tar:
        for name, body in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return bundle


def test_a_host_without_network_makes_the_same_sources_from_it(world: World, tmp_path: Path) -> None:
    recipe = with_all_kinds(world)
    bundle = written(world, recipe)
    first = world.assemble(recipe)
    world.git.stop()
    world.web.pages.clear()
    elsewhere = tmp_path / "elsewhere"
    names = read_bundle(bundle, world.lines.append, work=elsewhere)
    second = assemble(recipe, world.lines.append, root=world.root, work=elsewhere)
    assert (second.tree, second.deps, second.pins) == (first.tree, first.deps, first.pins)
    assert changed_tree(second) is None
    assert (elsewhere / "requirements" / "x" / "w-1-py3-none-any.whl").read_bytes() == b"wheel"
    assert [name.partition("/")[0] for name in names] == ["files", "git", "git", "requirements"]
    assert not (elsewhere / "bundle").exists()


def test_it_is_the_same_bytes_again(world: World) -> None:
    recipe = with_all_kinds(world)
    first = digest(written(world, recipe, "one.tar"))
    remove_tree(world.work)
    assert digest(written(world, recipe, "two.tar")) == first


def test_it_may_be_read_twice_and_into_mirrors_that_have_other_pins(world: World, tmp_path: Path) -> None:
    recipe = with_all_kinds(world)
    bundle = written(world, recipe)
    elsewhere = tmp_path / "elsewhere"
    top = world.git.base / "top.git"
    run(["git", "-c", "user.name=T", "-c", "user.email=t@e", "commit", "--allow-empty", "-qm", "x"], cwd=top)
    newer = run(["git", "rev-parse", "HEAD"], cwd=top).out.strip()
    other = world.recipe(source={"repository": world.git.url("top"), "commit": newer})
    assemble(other, world.lines.append, root=world.root, work=elsewhere)
    for _ in range(2):
        read_bundle(bundle, world.lines.append, work=elsewhere)
    world.git.stop()
    assemble(recipe, world.lines.append, root=world.root, work=elsewhere)


def flipped(kind: str) -> Any:
    def change(members: dict[str, bytes]) -> None:
        name = next(name for name in members if name.startswith(kind))
        members[name] = members[name][:-1] + bytes([members[name][-1] ^ 1])

    return change


def without(kind: str) -> Any:
    return lambda members: {name: body for name, body in members.items() if not name.startswith(kind)}


def plus(name: str, *, listed: bool = False) -> Any:
    def change(members: dict[str, bytes]) -> dict[str, bytes]:
        if listed:
            index = json.loads(members[INDEX])
            index["files"][name] = {"sha256": "0" * 64, "size": 1}
            members[INDEX] = json.dumps(index).encode()
        return {**members, name: b"x"}

    return change


def last_first(members: dict[str, bytes]) -> dict[str, bytes]:
    return dict(reversed(members.items()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flipped("git/"), r"was changed: git/.*\.pack is not what its index says"),
        (flipped("files/"), r"was changed: files/.*dep\.tar\.gz is not what its index says"),
        (flipped("requirements/"), r"was changed: requirements/x/w-1-py3-none-any\.whl is not"),
        (flipped(INDEX), f"has an {INDEX} that cannot be read"),
        (without("git/"), "lacks git/"),
        (without(INDEX), f"does not begin with {INDEX}"),
        (last_first, f"does not begin with {INDEX}"),
        (plus("requirements/more.whl"), "holds 'requirements/more.whl', which does not belong there"),
        (plus("requirements/../../x", listed=True), "which does not belong there"),
        (plus("/etc/x", listed=True), "which does not belong there"),
        (plus("mirrors/x", listed=True), "which does not belong there"),
        (plus(f"git/../x.git/{'0' * 40}.pack", listed=True), "which does not belong there"),
    ],
)
def test_a_changed_one_is_refused_before_anything_of_it_is_used(
    world: World, tmp_path: Path, change: Any, message: str
) -> None:
    bundle = changed(written(world, with_all_kinds(world)), change)
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(BuildFailed, match=message) as caught:
        read_bundle(bundle, world.lines.append, work=elsewhere)
    assert "nothing of it was used" in caught.value.cause
    assert [path.name for path in elsewhere.iterdir()] == [".bundle.lock"]


def test_one_that_names_another_pack_by_a_pinned_commit_is_refused(world: World, tmp_path: Path) -> None:
    """Its index agrees; git hashes every object again."""
    recipe = with_all_kinds(world)

    def exchange(members: dict[str, bytes]) -> dict[str, bytes]:
        one, two = (name for name in members if name.startswith("git/"))
        members[one], members[two] = members[two], members[one]
        index = json.loads(members[INDEX])
        index["files"][one], index["files"][two] = index["files"][two], index["files"][one]
        return {**members, INDEX: json.dumps(index).encode()}

    bundle = changed(written(world, recipe), exchange)
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(BuildFailed, match=r"does not hold .* whole"):
        read_bundle(bundle, world.lines.append, work=elsewhere)
    assert not list(elsewhere.rglob("*.pack"))


@pytest.mark.parametrize("body", [b"", b"no tar", b"x" * 20_000])
def test_what_is_no_bundle_is_refused(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(body)
    with pytest.raises(BuildFailed, match=f"the bundle {tmp_path}/x.tar "):
        read_bundle(tmp_path / "x.tar", print, work=tmp_path / "work")


def test_one_cut_short_or_missing_is_refused(world: World, tmp_path: Path) -> None:
    bundle = written(world, with_all_kinds(world))
    bundle.write_bytes(bundle.read_bytes()[:2500])
    with pytest.raises(BuildFailed, match="nothing of it was used"):
        read_bundle(bundle, print, work=tmp_path / "work")
    with pytest.raises(BuildFailed, match="cannot be read: No such file"):
        read_bundle(tmp_path / "none.tar", print, work=tmp_path / "work")


@pytest.mark.parametrize("name", ["x", "files/x", "requirements/../x", "/requirements/x", "requirements/.x", "git/x"])
def test_what_the_caller_adds_has_its_places(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no place in a bundle"):
        write_bundle([], [(name, tmp_path)], tmp_path / "b.tar", print, work=tmp_path / "work")
