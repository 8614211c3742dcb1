"""Plans of wheels: what is built, fetched and listed, and what is left alone."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

import pytest

from build import builder, recipe
from build.builder import Build, plan_wheels, recipe_hash
from build.index import IndexPart
from build.recipe import expected_wheel, load_recipe
from core.apply import run_step
from core.config import Component, Stack, load_stack
from core.errors import BuildFailed
from core.host import SudoPassword
from core.local import LocalHost
from core.plan import Call, Later, Plan, Run, Write, as_text, command_of
from tests.unit.samples import SPARK, X86
from wheels import manifest as manifests
from wheels.lock import Locked
from wheels.manifest import Manifest, describe, folder, load, save, sha256_of

RECIPE = """
distribution = "small-thing"
version = "1.0"
requires = ["setuptools==84.2.1"]
[source]
path = "build/sources/vllm-metadata"
[expected]
tags = "py3-none-any"
files = ["small_thing/__init__.py"]
"""


@dataclass(frozen=True)
class World:
    """A stack of one built and two fetched wheels in a folder of its own."""

    stack: Stack
    build: Build
    recipes: Path
    out: Path

    @property
    def place(self) -> Path:
        return folder(self.stack, X86)

    def wheel(self, filename: str, *files: str) -> Path:
        self.place.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(self.place / filename, "w") as archive:
            for name in files or ("x",):
                archive.writestr(name, filename)
        return self.place / filename

    def all_built(self) -> Manifest:
        made = recipe_hash(load_recipe("small"), self.stack)
        wheels = [
            describe(self.wheel("small_thing-1.0-py3-none-any.whl", "small_thing/__init__.py"), "source", made),
            *(describe(self.wheel(f"{name}-2.0-py3-none-any.whl"), "index") for name in ("one", "two")),
        ]
        return save(self.stack, X86, wheels, self.build.index_lock)

    def with_index(self, *names: str) -> Build:
        """Return the build with the hashes of the wheels that lie there."""
        hashes = {name: sha256_of(self.place / f"{name}-2.0-py3-none-any.whl") for name in names}
        locked = tuple(Locked(name, "2.0", frozenset([digest]), None, "") for name, digest in hashes.items())
        return replace(self.build, index=IndexPart(locked, ()))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "small.toml").write_text(RECIPE)
    monkeypatch.setattr(recipe, "RECIPES", recipes)
    monkeypatch.setattr(builder, "WORK", tmp_path / "work")
    monkeypatch.setattr(manifests, "DIST", tmp_path / "dist")
    components = {
        "small-thing": Component(origin="source", version="1.0", recipe="small"),
        "one": Component(origin="index", version="2.0"),
    }
    stack = Stack(
        name="test", description="", lock=Path("x.lock"), platforms=("x86_64",), python=("3.11",), components=components
    )
    locked = tuple(Locked(name, "2.0", frozenset(["a" * 64]), None, "") for name in ("one", "two"))
    return World(stack, Build(stack, X86, IndexPart(locked, ()), "lock-1"), recipes, tmp_path / "work/build/small/out")


def stages(plan: Plan) -> list[str]:
    return [stage.title for stage in plan.stages]


def test_nothing_is_to_do_when_every_wheel_is_there_and_intact(world: World) -> None:
    assert plan_wheels(world.build, world.all_built()).empty


def test_without_a_manifest_everything_is_built_fetched_and_listed(world: World) -> None:
    plan = plan_wheels(world.build, None)
    assert stages(plan) == ["build from source", "fetch by hash", "check and list"]
    titles = [step.title for step in plan.steps]
    assert "build small_thing-1.0-py3-none-any.whl" in titles
    assert "fetch 2 wheels for x86_64, Python 3.11, glibc 2.36" in titles


def test_a_changed_recipe_is_built_anew_and_nothing_is_fetched(world: World) -> None:
    have = world.all_built()
    (world.recipes / "small.toml").write_text(RECIPE + "# a note\n")
    assert plan_wheels(world.build, have).empty, "a comment is no change"
    (world.recipes / "small.toml").write_text(RECIPE.replace("[expected]", '[environment]\nA = "1"\n[expected]'))
    plan = plan_wheels(world.build, have)
    assert stages(plan) == ["build from source", "check and list"]
    assert any(isinstance(step, Run) and "A=1" in step.argv for step in plan.steps)


def test_other_gpu_architectures_are_another_build(world: World) -> None:
    changed = replace(world.build, stack=world.stack.model_copy(update={"architectures": ("121",)}))
    assert "build from source" in stages(plan_wheels(changed, world.all_built()))


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("cut")], ids=["missing", "truncated"])
@pytest.mark.parametrize(("prefix", "stage"), [("small", "build from source"), ("two", "fetch by hash")])
def test_a_wheel_that_is_missing_or_truncated_is_made_again(world: World, damage, prefix: str, stage: str) -> None:  # type: ignore[no-untyped-def]
    have = world.all_built()
    damage(next(world.place.glob(f"{prefix}*")))
    assert stages(plan_wheels(world.build, have)) == [stage, "check and list"]


def test_a_changed_lock_is_fetched_by(world: World) -> None:
    plan = plan_wheels(replace(world.build, index_lock="lock-2"), world.all_built())
    assert stages(plan) == ["fetch by hash", "check and list"]


def test_a_wheel_of_no_component_any_more_is_delisted(world: World) -> None:
    have = world.all_built()
    fewer = replace(world.build, index=IndexPart(world.build.index.default[:1], ()))
    assert stages(plan_wheels(fewer, have)) == ["check and list"]


def test_listing_writes_the_manifest_and_removes_strays(world: World) -> None:
    world.all_built()
    world.wheel("stray-1-py3-none-any.whl")
    (world.place / "manifest.json").unlink()
    build = world.with_index("one", "two")
    said = apply_last(plan_wheels(replace(build, index_lock="lock-1"), None))
    listed = load(world.stack, X86)
    assert listed is not None
    assert [wheel.name for wheel in listed.wheels] == ["one", "small-thing", "two"]
    assert not list(world.place.glob("stray*"))
    assert said == [
        "removed stray-1-py3-none-any.whl: no component of the stack",
        f"3 wheels, release {listed.release}",
    ]
    assert plan_wheels(build, listed).empty


def test_a_wheel_that_is_not_what_the_lock_names_is_removed_and_refused(world: World) -> None:
    world.all_built()
    with pytest.raises(BuildFailed, match=r"one-2\.0-py3-none-any\.whl is not what the lock names"):
        apply_last(plan_wheels(world.build, None))
    assert not list(world.place.glob("one*"))


def test_a_wheel_that_was_not_fetched_is_named(world: World) -> None:
    world.all_built()
    build = world.with_index("one", "two")
    (world.place / "two-2.0-py3-none-any.whl").unlink()
    with pytest.raises(BuildFailed, match=r"two==2\.0 was not fetched"):
        apply_last(plan_wheels(build, None))


def apply_last(plan: Plan) -> list[str]:
    step = plan.stages[-1].steps[-1]
    assert isinstance(step, Call)
    said: list[str] = []
    step.action(said.append)
    return said


class TestAcceptance:
    """What comes out of a build is what the recipe expects, or it does not enter."""

    @pytest.fixture
    def out(self, world: World) -> Path:
        world.out.mkdir(parents=True)
        return world.out

    def accept(self, world: World) -> list[str]:
        (build, _, _) = plan_wheels(world.build, None).stages
        return apply_last(replace(plan_wheels(world.build, None), stages=(build,)))

    def make(self, folder: Path, name: str, *files: str) -> None:
        with zipfile.ZipFile(folder / name, "w") as archive:
            for file in files:
                archive.writestr(file, "")

    def test_the_expected_wheel_enters(self, world: World, out: Path) -> None:
        self.make(out, "small_thing-1.0-py3-none-any.whl", "small_thing/__init__.py")
        assert self.accept(world) == ["small_thing-1.0-py3-none-any.whl is as the recipe says"]
        assert (world.place / "small_thing-1.0-py3-none-any.whl").is_file()

    def test_another_version_is_refused(self, world: World, out: Path) -> None:
        self.make(out, "small_thing-1.0.dev1-py3-none-any.whl", "small_thing/__init__.py")
        with pytest.raises(
            BuildFailed, match=r"the build gave small_thing-1\.0\.dev1-py3-none-any\.whl, expected small"
        ):
            self.accept(world)

    @pytest.mark.usefixtures("out")
    def test_no_wheel_is_refused(self, world: World) -> None:
        with pytest.raises(BuildFailed, match="the build gave nothing, expected"):
            self.accept(world)

    def test_a_wheel_without_its_files_is_refused(self, world: World, out: Path) -> None:
        self.make(out, "small_thing-1.0-py3-none-any.whl", "small_thing/other.py")
        with pytest.raises(BuildFailed, match=r"lacks small_thing/__init__\.py"):
            self.accept(world)
        assert not list(world.place.glob("*.whl"))


class TestGuide:
    """The guide's stack for a Spark: complete, and honest about what cannot run yet."""

    @pytest.fixture
    def plan(self) -> Plan:
        guide = load_stack("guide")
        locked = (Locked("ray", "2.52.1", frozenset(["a" * 64]), None, ""),)
        return plan_wheels(Build(guide, SPARK, IndexPart(locked, ()), "lock", here=False, on="gx10-beee"), None)

    def later(self, plan: Plan) -> Iterator[Later]:
        return (step for step in plan.steps if isinstance(step, Later))

    def test_what_is_built_and_extracted_is_not_built_yet(self, plan: Plan) -> None:
        assert [(step.node, step.title.split("-")[0]) for step in self.later(plan)] == [
            ("gx10-beee", "build torch"),
            ("gx10-beee", "build triton"),
            ("gx10-beee", "build vllm"),
            ("controller", "extract flash"),
        ]
        assert all("sha256: not built" in step.reason for step in self.later(plan))
        assert as_text(plan).count("[not built yet: ") == 4

    def test_a_build_names_commit_requirements_and_environment(self, plan: Plan) -> None:
        torch = command_of(next(self.later(plan))).splitlines()
        assert torch[0] == (
            "git fetch https://github.com/pytorch/pytorch.git 0fabc3ba44823f257e70ce397d989c8de5e362c1 with submodules"
        )
        assert torch[1].startswith("pip install cmake==")
        assert "TORCH_CUDA_ARCH_LIST=12.1" in torch[2]
        assert torch[2].endswith(" pip wheel --no-deps --no-build-isolation .")
        assert torch[3] == (
            "rsync gx10-beee:torch-2.9.0+cu130-cp312-cp312-linux_aarch64.whl to dist/guide/aarch64-cp312"
        )

    def test_checkouts_that_the_build_would_download_are_named(self, plan: Plan) -> None:
        (vllm,) = [command_of(step) for step in self.later(plan) if "vllm" in step.title]
        assert "git fetch https://github.com/NVIDIA/cutlass.git v4.2.1, for VLLM_CUTLASS_SRC_DIR" in vllm

    def test_what_differs_from_the_guide_is_noted_with_its_reason(self, plan: Plan) -> None:
        assert len(plan.notes) == 7
        assert "note: unlike the guide, ray 2.52.1: its 2.51.1 has CVE-2025-62593" in as_text(plan)

    def test_an_image_is_named_by_digest(self, plan: Plan) -> None:
        (image,) = [command_of(step) for step in self.later(plan) if step.node == "controller"]
        assert "nvcr.io/nvidia/pytorch@sha256:" in image

    def test_the_index_part_is_fetched_here(self, plan: Plan) -> None:
        (write,) = [step for step in plan.steps if isinstance(step, Write)]
        assert write.content == f"ray==2.52.1 --hash=sha256:{'a' * 64}\n"


def test_our_own_sources_are_built_elsewhere_when_this_host_does_not_fit(world: World) -> None:
    plan = plan_wheels(replace(world.build, here=False, on="lab-a"), None)
    (build,) = [step for step in plan.steps if isinstance(step, Later)]
    assert (build.node, command_of(build).splitlines()[0]) == ("lab-a", "copy build/sources/vllm-metadata")


@pytest.mark.processes
def test_a_plan_builds_a_real_wheel(world: World) -> None:
    """The metadata package: no compiler, so that this takes a second."""
    (world.recipes / "small.toml").write_text(Path("build/recipes/vllm-metadata.toml").read_text())
    (stage, *_) = plan_wheels(world.build, None).stages
    for step in stage.steps:
        run_step(step, LocalHost("controller", SudoPassword(None)), lambda _: None, Event())
    assert [path.name for path in world.place.glob("*.whl")] == [expected_wheel(load_recipe("small"), "x86_64")]
    assert not list(world.out.glob("*.whl"))
