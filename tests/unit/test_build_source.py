"""A recipe's sources, assembled from real repositories and archives on loopback."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import build.recipe
from build.recipe import Recipe
from build.source import TIME, assemble, assembled, changed, place_of
from build.tree import copy_tree, remove_tree, settle, tree_hash
from core.errors import BuildFailed
from core.process import run
from tests.unit.gitserver import Server
from tests.unit.gitserver import serving as serving_git
from tests.unit.webserver import Web
from tests.unit.webserver import serving as serving_web

PATCH = "--- a/file\n+++ b/file\n@@ -1 +1 @@\n-one\n+two\n"


def archive(files: dict[str, str]) -> bytes:
    """Return a .tar.gz with one top folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(f"top-1/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


@dataclass
class World:
    """A project with its work folder, and servers that its recipes name."""

    root: Path
    git: Server
    web: Web
    lines: list[str]

    @property
    def work(self) -> Path:
        return self.root / ".work"

    def recipe(self, **changes: Any) -> Recipe:
        """Return a recipe that builds a folder, unless the changes say otherwise."""
        data = {
            "name": "x",
            "distribution": "x",
            "version": "1",
            "source": {"path": "project"},
            "requires": ["setuptools==80.9.0"],
            "expected": {"tags": "py3-none-any"},
        }
        return Recipe.model_validate({**data, **changes})

    def assemble(self, recipe: Recipe) -> Any:
        return assemble(recipe, self.lines.append, root=self.root, work=self.work)

    def assembled(self, recipe: Recipe) -> Any:
        return assembled(recipe, root=self.root, work=self.work)

    def archive(self, files: dict[str, str]) -> dict[str, str]:
        """Serve an archive and return the origin that pins it."""
        body = archive(files)
        self.web.pages["/dep.tar.gz"] = body
        return {"archive": f"{self.web.url}/dep.tar.gz", "sha256": hashlib.sha256(body).hexdigest()}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(build.recipe, "RECIPES", tmp_path / "recipes")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "file").write_text("one\n")
    (tmp_path / "recipes" / "x").mkdir(parents=True)
    (tmp_path / "recipes" / "x" / "change.patch").write_text(PATCH)
    with serving_git(tmp_path / "served") as git, serving_web() as web:
        yield World(tmp_path, git, web, [])


PATCHED = {"patches": [{"file": "change.patch", "reason": "because", "link": "https://example.org/1"}]}


def repository(world: World) -> dict[str, Any]:
    """Serve a repository with a submodule and return the origin that pins it."""
    leaf = world.git.repository("leaf")
    leaf_commit = leaf.commit({"leaf": "x\n"})
    top = world.git.repository("top")
    top.link("third_party/leaf", "../leaf.git", leaf_commit)
    commit = top.commit({"file": "one\n"})
    top.git("tag", "v1")
    return {"repository": world.git.url("top"), "commit": commit, "reference": "v1", "submodules": True}


@pytest.mark.processes
class TestAssembling:
    def test_a_commit_with_its_submodules_a_dependency_and_a_patch(self, world: World) -> None:
        origin = repository(world)
        dependency = {"variable": "DEP_SRC_DIR", **world.archive({"inc/dep.h": "x"})}
        recipe = world.recipe(source={**origin, "git_head": True}, dependencies=[dependency], **PATCHED)
        assert world.assembled(recipe) is None
        sources = world.assemble(recipe)
        assert sources.folder == place_of(recipe, root=world.root, work=world.work)
        assert (sources.source / "file").read_text() == "two\n"
        assert (sources.source / "third_party" / "leaf" / "leaf").read_text() == "x\n"
        assert (sources.dependency("DEP_SRC_DIR") / "inc" / "dep.h").read_text() == "x"
        head = run(["git", "-c", "safe.directory=*", "rev-parse", "HEAD"], cwd=sources.source)
        assert head.out.strip() == origin["commit"]
        assert world.assembled(recipe) == sources
        assert [(pin.place, pin.digest.partition(":")[0]) for pin in sources.pins] == [
            ("source", "gitCommit"),
            ("source/third_party/leaf", "gitCommit"),
            ("deps/DEP_SRC_DIR", "sha256"),
        ]
        record = json.loads((sources.folder / "complete.json").read_text())
        assert record["tree"] == tree_hash(sources.source)
        assert record["deps"] == {"DEP_SRC_DIR": tree_hash(sources.dependency("DEP_SRC_DIR"))}
        assert record["recipe"] == "x"

    def test_a_folder_of_the_project(self, world: World) -> None:
        (world.root / "project" / "__pycache__").mkdir()
        sources = world.assemble(world.recipe())
        assert sources.tree == tree_hash(world.root / "project")
        assert [path.name for path in sources.source.iterdir()] == ["file"]

    def test_a_second_time_nothing_is_done(self, world: World) -> None:
        recipe = world.recipe(source=repository(world))
        first = world.assemble(recipe)
        world.git.stop()
        world.lines.clear()
        assert world.assemble(recipe) == first
        assert world.lines == []

    def test_two_hosts_make_the_same(self, world: World) -> None:
        recipe = world.recipe(source={**repository(world), "git_head": True}, **PATCHED)
        first = world.assemble(recipe)
        remove_tree(world.work)
        previous = os.umask(0o077)
        try:
            second = world.assemble(recipe)
        finally:
            os.umask(previous)
        assert first == second
        assert (second.source / "file").stat().st_mode & 0o777 == 0o644

    def test_a_build_does_not_see_when_it_was_made(self, world: World) -> None:
        sources = world.assemble(world.recipe(source=repository(world)))
        assert {path.lstat().st_mtime for path in (sources.source, *sources.source.rglob("*"))} == {TIME}

    def test_other_pins_patches_or_shapes_have_another_folder(self, world: World) -> None:
        origin = repository(world)
        recipes = [
            world.recipe(),
            world.recipe(**PATCHED),
            world.recipe(source=origin),
            world.recipe(source={**origin, "git_head": True}),
            world.recipe(source={**origin, "submodules": False}),
            world.recipe(dependencies=[{"variable": "A", "path": "project"}]),
        ]
        assert len({place_of(recipe, root=world.root, work=world.work) for recipe in recipes}) == len(recipes)


@pytest.mark.processes
class TestWhatGoesWrong:
    def test_a_patch_that_does_not_fit_leaves_nothing(self, world: World) -> None:
        (world.root / "project" / "file").write_text("other\n")
        recipe = world.recipe(**PATCHED)
        with pytest.raises(BuildFailed, match=r"patch change\.patch does not apply: file, hunk 1"):
            world.assemble(recipe)
        assert world.assembled(recipe) is None
        assert [path.name for path in (world.work / "sources").iterdir() if path.is_dir()] == []

    def test_what_an_interrupted_run_left_is_made_anew(self, world: World) -> None:
        recipe = world.recipe(source=repository(world))
        folder = place_of(recipe, root=world.root, work=world.work)
        for left in (folder, folder.with_name(f"{folder.name}.new")):
            (left / "source").mkdir(parents=True)
            (left / "source" / "half").touch()
        assert world.assembled(recipe) is None
        assert not (world.assemble(recipe).source / "half").exists()

    def test_one_killed_in_the_middle_is_made_by_the_next_run(self, world: World, monkeypatch: Any) -> None:
        recipe = world.recipe(source=repository(world), **PATCHED)
        child = os.fork()
        if child == 0:
            monkeypatch.setattr("build.source.settle", lambda *_: os.kill(os.getpid(), 9))
            world.assemble(recipe)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
        assert world.assembled(recipe) is None
        left = [path.name for path in (world.work / "sources").iterdir() if path.is_dir()]
        assert left == [f"{place_of(recipe, root=world.root, work=world.work).name}.new"]
        assert changed(world.assemble(recipe)) is None
        assert [path.suffix for path in (world.work / "sources").iterdir() if path.is_dir()] == [""]

    @pytest.mark.parametrize("text", ["", "{", "{}", '{"tree": 1}'])
    def test_a_damaged_record_is_none(self, world: World, text: str) -> None:
        recipe = world.recipe()
        (world.assemble(recipe).folder / "complete.json").write_text(text)
        assert world.assembled(recipe) is None
        assert world.assemble(recipe) == world.assembled(recipe)

    def test_a_changed_tree_is_found_out_and_made_anew(self, world: World) -> None:
        dependency = {"variable": "DEP_SRC_DIR", **world.archive({"dep.h": "x"})}
        recipe = world.recipe(dependencies=[dependency])
        for place in ("source/file", "deps/DEP_SRC_DIR/dep.h"):
            sources = world.assemble(recipe)
            assert changed(sources) is None
            (sources.folder / place).write_text("changed")
            assert f"{place.rpartition('/')[0]} has changed" in str(changed(sources))
            assert changed(world.assemble(recipe)) is None
            assert any("the sources are made anew" in line for line in world.lines)

    def test_a_corrupt_archive_is_refused_and_the_next_run_goes_on(self, world: World) -> None:
        origin = world.archive({"file": "one\n"})
        body = world.web.pages["/dep.tar.gz"]
        world.web.pages["/dep.tar.gz"] = body[:-4] + b"\0\0\0\0"
        recipe = world.recipe(source=origin)
        with pytest.raises(BuildFailed, match="is not what the recipe names"):
            world.assemble(recipe)
        world.web.pages["/dep.tar.gz"] = body
        assert (world.assemble(recipe).source / "file").read_text() == "one\n"

    def test_a_source_archive_damaged_on_our_disk_is_fetched_again(self, world: World) -> None:
        origin = world.archive({"file": "one\n"})
        recipe = world.recipe(source=origin)
        sources = world.assemble(recipe)
        (world.work / "files" / origin["sha256"] / "dep.tar.gz").write_bytes(b"damaged")
        remove_tree(sources.folder)
        assert world.assemble(recipe) == sources
        assert any("dep.tar.gz is damaged" in line for line in world.lines)

    def test_a_tag_that_moved_stops_it(self, world: World) -> None:
        origin = repository(world)
        top = world.git.base / "top.git"
        run(["git", "-c", "user.name=T", "-c", "user.email=t@e", "commit", "--allow-empty", "-qm", "x"], cwd=top)
        run(["git", "tag", "--force", "v1"], cwd=top)
        with pytest.raises(BuildFailed, match=f"the tag v1 of .* has moved: pinned is {origin['commit']}"):
            world.assemble(world.recipe(source=origin))


class TestATree:
    def test_a_pipe_in_a_source_is_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(BuildFailed, match="neither a file, a link nor a folder"):
            tree_hash(tmp_path)

    def test_the_target_of_a_link_counts_and_is_not_followed(self, tmp_path: Path) -> None:
        link = tmp_path / "link"
        hashes = set()
        for target in ("/etc", "nowhere", "a b"):
            link.unlink(missing_ok=True)
            link.symlink_to(target)
            hashes.add(tree_hash(tmp_path))
        assert len(hashes) == 3

    def test_names_and_targets_do_not_run_into_each_other(self, tmp_path: Path) -> None:
        (tmp_path / "one").mkdir()
        (tmp_path / "two").mkdir()
        (tmp_path / "one" / "c").symlink_to("a b")
        (tmp_path / "two" / "b c").symlink_to("a")
        assert tree_hash(tmp_path / "one") != tree_hash(tmp_path / "two")

    def test_a_name_that_is_no_text_counts_too(self, tmp_path: Path) -> None:
        Path(os.fsdecode(bytes(tmp_path) + b"/\xff")).write_text("x")
        assert len(tree_hash(tmp_path)) == 64

    def test_many_files_hash_as_one_after_the_other(self, tmp_path: Path) -> None:
        total = hashlib.sha256()
        for number in range(200):
            (tmp_path / f"{number:03}").write_text(str(number))
            total.update(f"- {hashlib.sha256(str(number).encode()).hexdigest()} {number:03}\0".encode())
        assert tree_hash(tmp_path) == total.hexdigest()

    def test_a_copy_is_the_same_tree(self, tmp_path: Path) -> None:
        (tmp_path / "one" / "d").mkdir(parents=True)
        (tmp_path / "one" / "d" / "x").write_text("x")
        (tmp_path / "one" / "d" / "x").chmod(0o755)
        (tmp_path / "one" / "l").symlink_to("d/x")
        copy_tree(tmp_path / "one", tmp_path / "two")
        assert tree_hash(tmp_path / "one") == tree_hash(tmp_path / "two")

    def test_settling_changes_no_contents(self, tmp_path: Path) -> None:
        (tmp_path / "t" / "d").mkdir(parents=True)
        (tmp_path / "t" / "d" / "x").write_text("x")
        (tmp_path / "t" / "d" / "x").chmod(0o600)
        (tmp_path / "t" / "l").symlink_to("nowhere")
        before = tree_hash(tmp_path / "t")
        settle(tmp_path / "t", 1000)
        assert tree_hash(tmp_path / "t") == before
        assert {path.lstat().st_mtime for path in (tmp_path / "t").rglob("*")} == {1000}
