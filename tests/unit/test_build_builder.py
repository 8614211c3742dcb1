"""Plans of wheels: what is fetched, built and listed, and what is left alone."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from build import recipe, site, stages
from build.builder import plan_wheels
from build.index import IndexPart
from build.records import record, recorded
from build.request import Build, identities
from core.config import Component, Stack, load_stack
from core.errors import BuildFailed, UnfitNode, UsageError
from core.facts import NodeFacts
from core.parsers import Toolchain
from core.plan import Call, Job, Later, Plan, Push, Write, as_text, command_of
from tests.unit.samples import SPARK, X86, lab_facts, local, spark_captures
from tests.unit.samples import unit as unit_of
from tests.unit.small_wheels import small_wheel
from wheels import manifest as manifests
from wheels.gates import GATES
from wheels.ingredients import Ingredients
from wheels.lock import Locked
from wheels.manifest import Manifest, describe, folder, load, save, sha256_of

RECIPE = """
distribution = "small-thing"
version = "1.0"
requires = ["pip==26.3", "setuptools==84.2.1"]
[source]
path = "build/sources/vllm-metadata"
[expected]
tags = "py3-none-any"
files = ["small_thing/__init__.py"]
"""
LOCK = f"pip==26.3 --hash=sha256:{'1' * 64}\nsetuptools==84.2.1 --hash=sha256:{'2' * 64}\n"


@dataclass(frozen=True)
class World:
    """A stack of one built and two fetched wheels in a folder of its own."""

    stack: Stack
    build: Build
    recipes: Path

    @property
    def place(self) -> Path:
        return folder(self.stack, X86)

    def wheel(self, filename: str, *files: str) -> Path:
        self.place.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(self.place / filename, "w") as archive:
            for name in files or ("x",):
                archive.writestr(name, filename)
        return self.place / filename

    def all_built(self, **changes: Any) -> Manifest:
        self.place.mkdir(parents=True, exist_ok=True)
        path = small_wheel(self.place, "small-thing")
        described = describe(path, "source", identities(self.stack)["small-thing"])
        built = described.model_copy(update={"made_of": Ingredients(), **changes})
        record(self.place, built)
        wheels = [built, *(describe(small_wheel(self.place, name, "2.0"), "index") for name in ("one", "two"))]
        return save(self.stack, X86, wheels, self.build.index_lock)

    def with_index(self, *names: str) -> Build:
        """Return the build with the hashes of the wheels that lie there."""
        hashes = {name: sha256_of(self.place / f"{name}-2.0-py3-none-any.whl") for name in names}
        locked = tuple(Locked(name, "2.0", frozenset([digest]), None, "") for name, digest in hashes.items())
        return replace(self.build, index=IndexPart(locked, ()))

    def change(self, old: str, new: str) -> None:
        path = self.recipes / "small.toml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def seen(self, **changes: Any) -> Build:
        """Return the build on a machine that is otherwise."""
        return replace(self.build, site=site.controller(replace(self.build.site.seen, **changes)))

    def on_node(self, **changes: Any) -> Build:
        """Return the build on the lab's first machine, of which facts say this."""
        return replace(self.build, site=site.node(local(), replace(lab_facts()["lab-a"], **changes)))


def builder_facts() -> NodeFacts:
    tools = Toolchain(gcc="12.2.0", programs=frozenset({"g++", "git"}), headers=True)
    return replace(lab_facts()["lab-a"], name="controller", toolchain=tools)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "small.toml").write_text(RECIPE)
    (recipes / "small.lock").write_text(LOCK)
    monkeypatch.setattr(recipe, "RECIPES", recipes)
    monkeypatch.setattr(stages, "WORK", tmp_path / "work")
    monkeypatch.setattr(site, "WORK", tmp_path / "work")
    monkeypatch.setattr(manifests, "DIST", tmp_path / "dist")
    components = {
        "small-thing": Component(origin="source", version="1.0", recipe="small"),
        "one": Component(origin="index", version="2.0"),
    }
    stack = Stack(
        name="test", description="", lock=Path("x.lock"), platforms=("x86_64",), python=("3.11",), components=components
    )
    locked = tuple(Locked(name, "2.0", frozenset(["a" * 64]), None, "") for name in ("one", "two"))
    build = Build(stack, X86, IndexPart(locked, ()), "lock-1", site=site.controller(builder_facts()))
    return World(stack, build, recipes)


def stages_of(plan: Plan) -> list[str]:
    return [stage.title for stage in plan.stages]


BUILT = ["sources of small", "lay out small", "build small", "check small"]


def test_nothing_is_to_do_when_every_wheel_is_there_and_intact(world: World) -> None:
    assert plan_wheels(world.build, world.all_built()).empty


def test_without_a_manifest_everything_is_fetched_built_and_listed(world: World) -> None:
    plan = plan_wheels(world.build, None)
    assert stages_of(plan) == ["fetch by hash", *BUILT, "check and list"]
    titles = [step.title for step in plan.steps]
    assert "build small_thing-1.0-py3-none-any.whl" in titles
    assert "fetch 2 wheels for x86_64, Python 3.11, glibc 2.36" in titles
    assert "fetch 2 build requirements of small" in titles


def test_a_changed_recipe_is_built_anew_and_nothing_is_fetched(world: World) -> None:
    have = world.all_built()
    world.change("[expected]", "# a note\n[expected]")
    assert plan_wheels(world.build, have).empty, "a comment is no change"
    world.change("[expected]", '[environment]\nA = "1"\n[expected]')
    plan = plan_wheels(world.build, have)
    assert stages_of(plan) == [*BUILT, "check and list"]
    (laid_out,) = [step for step in plan.steps if step.title.startswith("lay out")]
    assert "\nA=1\n" in f"\n{command_of(laid_out)}\n"


@pytest.mark.parametrize(
    ("key", "again"),
    [
        ('memory_per_job = "9 GiB"', False),
        ('disk = "1 GiB"', False),
        ("threads_per_job = 2", False),
        ('build_options = ["-v"]', True),
    ],
)
def test_what_changes_no_byte_builds_nothing_anew(world: World, key: str, again: bool) -> None:  # noqa: FBT001
    have = world.all_built()
    world.change('version = "1.0"', f'version = "1.0"\n{key}')
    assert plan_wheels(world.build, have).empty is not again


def test_other_build_requirements_are_another_build(world: World) -> None:
    have = world.all_built()
    (world.recipes / "small.lock").write_text(LOCK.replace("2" * 64, "3" * 64))
    assert "build small" in stages_of(plan_wheels(world.build, have))


def test_other_gpu_architectures_are_another_build(world: World) -> None:
    have = world.all_built()
    changed = replace(world.build, stack=world.stack.model_copy(update={"architectures": ("121",)}))
    assert "build small" in stages_of(plan_wheels(changed, have))


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("cut")], ids=["missing", "truncated"])
@pytest.mark.parametrize(("prefix", "made"), [("small", BUILT), ("two", ["fetch by hash"])])
def test_a_wheel_that_is_missing_or_truncated_is_made_again(world: World, damage, prefix: str, made: list[str]) -> None:  # type: ignore[no-untyped-def]
    have = world.all_built()
    damage(next(world.place.glob(f"{prefix}*")))
    assert stages_of(plan_wheels(world.build, have)) == [*made, "check and list"]


def test_of_a_changed_lock_only_what_changed_is_fetched(world: World) -> None:
    have = world.all_built()
    assert stages_of(plan_wheels(replace(world.build, index_lock="lock-2"), have)) == ["check and list"]
    one, two = world.build.index.default
    newer = replace(world.build, index=IndexPart((one, replace(two, version="2.1")), ()), index_lock="lock-2")
    plan = plan_wheels(newer, have)
    assert stages_of(plan) == ["fetch by hash", "check and list"]
    (wanted,) = [step.content for step in plan.steps if isinstance(step, Write)]
    assert wanted.startswith("two==2.1 ")


def test_a_wheel_of_no_component_any_more_is_delisted(world: World) -> None:
    have = world.all_built()
    fewer = replace(world.build, index=IndexPart(world.build.index.default[:1], ()))
    assert stages_of(plan_wheels(fewer, have)) == ["check and list"]


def test_to_verify_is_to_build_what_is_there_once_more(world: World) -> None:
    have = world.all_built()
    verified = replace(world.build, verify=True)
    again = ["sources of small", "lay out small", "build small again", "check small", "check and list"]
    assert stages_of(plan_wheels(verified, have)) == again
    assert stages_of(plan_wheels(replace(verified, built=recorded(world.place)), None)) == again
    assert plan_wheels(verified, world.all_built(level=3, differs="a.so: .text")).empty


def test_of_one_component_alone_only_that_is_built_and_nothing_is_listed(world: World) -> None:
    alone = replace(world.build, only=frozenset({"small-thing"}))
    assert stages_of(plan_wheels(alone, None)) == BUILT
    world.all_built()
    assert plan_wheels(replace(alone, built=recorded(world.place)), None).empty


def test_to_verify_what_is_not_there_is_to_build_twice(world: World) -> None:
    plan = plan_wheels(replace(world.build, verify=True), None)
    assert [title for title in stages_of(plan) if title.startswith("build")] == ["build small", "build small again"]
    names = [step.argv[step.argv.index("sh") + 4] for step in plan.steps if isinstance(step, Job)]
    assert len(set(names)) == 2, "two builds lie in folders of different names"


def test_a_wheel_made_with_a_compiler_cache_is_built_anew_for_a_release(world: World) -> None:
    have = world.all_built(development=True)
    assert "build small" in stages_of(plan_wheels(world.build, have))
    assert plan_wheels(replace(world.build, development=True), have).empty


@pytest.mark.parametrize("development", [False, True])
def test_a_compiler_cache_is_used_where_there_is_one_and_only_for_development(world: World, development: bool) -> None:  # noqa: FBT001
    tools = replace(world.build.site.seen.toolchain, programs=frozenset({"g++", "ccache"}))
    plan = plan_wheels(replace(world.seen(toolchain=tools), development=development), None)
    text = as_text(plan)
    assert ("CMAKE_CXX_COMPILER_LAUNCHER=ccache" in text) is development
    assert ("/usr/bin/ccache" in text) is not development, "the list of what is hidden"


def test_jobs_are_as_many_as_memory_and_cores_allow_and_are_shown(world: World) -> None:
    plan = plan_wheels(world.seen(cores=20, memory_available=64 * 1024**3, memory_total=128 * 1024**3), None)
    (job,) = [step for step in plan.steps if isinstance(step, Job)]
    assert "20 jobs: 20 cores, 64 GiB available, 2 GiB a job" in job.reason
    plan = plan_wheels(replace(world.build, max_jobs=3), None)
    assert "MAX_JOBS=3" in as_text(plan)
    assert "3 jobs, as asked for" in as_text(plan)


def test_a_machine_that_cannot_build_is_refused_before_anything_is_built(world: World) -> None:
    world.change("[expected]", "[toolchain]\ncompiler = true\n[expected]")
    tools = replace(world.build.site.seen.toolchain, programs=frozenset({"git"}))
    with pytest.raises(UnfitNode, match=r"controller: Debian packages are missing: g\+\+"):
        plan_wheels(world.seen(toolchain=tools), None)


def test_a_machine_that_cannot_build_is_fit_when_nothing_is_to_be_built(world: World) -> None:
    world.change("[expected]", "[toolchain]\ncompiler = true\n[expected]")
    have = world.all_built()
    tools = replace(world.build.site.seen.toolchain, programs=frozenset({"git"}))
    assert plan_wheels(world.seen(toolchain=tools), have).empty


class TestOrder:
    """Components are built after those that they need, against exactly those."""

    @pytest.fixture
    def chain(self, world: World) -> Build:
        (world.recipes / "base.toml").write_text(RECIPE.replace("small-thing", "base"))
        (world.recipes / "base.lock").write_text(LOCK)
        world.change('version = "1.0"', 'version = "1.0"\nneeds = ["base"]')
        base = Component(origin="source", version="1.0", recipe="base")
        components = {**world.stack.components, "base": base}
        return replace(world.build, stack=world.stack.model_copy(update={"components": components}))

    def test_what_is_needed_comes_first(self, chain: Build) -> None:
        titles = stages_of(plan_wheels(chain, None))
        assert titles.index("check base") < titles.index("lay out small")

    def test_of_one_component_alone_what_it_needs_is_built_too(self, chain: Build) -> None:
        titles = stages_of(plan_wheels(replace(chain, only=frozenset({"small-thing"})), None))
        assert [title for title in titles if title.startswith("build")] == ["build base", "build small"]
        titles = stages_of(plan_wheels(replace(chain, only=frozenset({"base"})), None))
        assert [title for title in titles if title.startswith("build")] == ["build base"]

    def test_what_is_needed_is_part_of_the_identity(self, chain: Build, world: World) -> None:
        before = identities(chain.stack)
        base = world.recipes / "base.toml"
        base.write_text(base.read_text().replace("[expected]", '[environment]\nA = "1"\n[expected]'))
        after = identities(chain.stack)
        assert {name for name in before if before[name] != after[name]} == {"base", "small-thing"}

    def test_a_ring_is_refused(self, chain: Build, world: World) -> None:
        base = world.recipes / "base.toml"
        base.write_text(base.read_text().replace('version = "1.0"', 'version = "1.0"\nneeds = ["small-thing"]'))
        with pytest.raises(UsageError, match="the recipes of base, small-thing need each other"):
            plan_wheels(chain, None)

    def test_a_need_that_the_stack_does_not_have_is_refused(self, world: World) -> None:
        world.change('version = "1.0"', 'version = "1.0"\nneeds = ["torch"]')
        with pytest.raises(UsageError, match="the recipe small needs torch, which the stack test does not have"):
            plan_wheels(world.build, None)


class TestOnANode:
    """A build on a node: what travels, under which limits it runs, and what the facts say is done already."""

    def steps(self, plan: Plan) -> list[str]:
        return [step.title for step in plan.steps if step.node == "lab-a"]

    def name(self, world: World) -> str:
        return f"small-{identities(world.stack)['small-thing'][:10]}"

    def test_it_is_sent_built_and_brought_here(self, world: World) -> None:
        plan = plan_wheels(world.on_node(), None)
        assert self.steps(plan) == [
            "make /opt/sparkstack",
            f"make /opt/sparkstack/build/{self.name(world)}",
            "send source and build requirements",
            "build small_thing-1.0-py3-none-any.whl",
            "bring the wheel here",
            "remove the job from the node",
        ]
        (push,) = [step for step in plan.steps if isinstance(step, Push)]
        assert [path.name for path in push.sources] == ["in"]

    def test_it_is_a_unit_with_a_memory_limit_no_network_and_one_fixed_path(self, world: World) -> None:
        (job,) = [step for step in plan_wheels(world.on_node(), None).steps if isinstance(step, Job)]
        said = command_of(job)
        place = f"/opt/sparkstack/build/{self.name(world)}"
        limits = ("MemoryMax=", "MemorySwapMax=0", "PrivateNetwork=yes", f"BindPaths={place}:/srv/sparkstack")
        assert [text for text in limits if text not in said] == []
        assert said.startswith(f"sudo systemd-run --unit=sparkstack-build-{self.name(world)} --uid=spark ")
        assert job.hint == "invoke build.stop --on lab-a"

    def test_one_that_runs_is_followed_and_not_sent_again(self, world: World) -> None:
        unit = f"sparkstack-build-{self.name(world)}"
        running = world.on_node(units={unit: unit_of(unit)})
        assert self.steps(plan_wheels(running, None))[0] == "build small_thing-1.0-py3-none-any.whl"
        assert not [step for step in plan_wheels(running, None).steps if step.title.startswith("lay out")]

    def test_one_that_ended_while_nobody_looked_is_only_brought_here(self, world: World) -> None:
        ended = world.on_node(builds=frozenset({self.name(world)}))
        assert self.steps(plan_wheels(ended, None)) == ["bring the wheel here", "remove the job from the node"]


def test_listing_writes_the_manifest_and_removes_strays(world: World) -> None:
    world.all_built()
    world.wheel("stray-1-py3-none-any.whl")
    (world.place / "manifest.json").unlink()
    build = replace(world.with_index("one", "two"), built=recorded(world.place))
    said = apply_last(plan_wheels(build, None))
    listed = load(world.stack, X86)
    assert listed is not None
    assert [wheel.name for wheel in listed.wheels] == ["one", "small-thing", "two"]
    assert not list(world.place.glob("stray*"))
    assert said == [
        f"3 wheels pass {len(GATES)} gates, 0 warnings",
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


class TestGuide:
    """The guide's stack for a Spark: complete, and honest about what cannot run yet."""

    @pytest.fixture
    def plan(self) -> Plan:
        guide = load_stack("guide")
        locked = (Locked("ray", "2.52.1", frozenset(["a" * 64]), None, ""),)
        seen = spark_captures().parsed()["gx10-beee"]
        packages = frozenset({"libopenblas-dev"})
        where = site.node(local(), replace(seen, packages=packages))
        return plan_wheels(Build(guide, SPARK, IndexPart(locked, ()), "lock", site=where), None)

    def test_torch_comes_before_triton_before_vllm_and_all_are_built_on_the_node(self, plan: Plan) -> None:
        jobs = [step for step in plan.steps if isinstance(step, Job)]
        assert [job.title.split("-")[0] for job in jobs] == ["build torch", "build triton", "build vllm"]
        assert {job.node for job in jobs} == {"gx10-beee"}

    def test_what_comes_from_an_image_is_taken_by_digest_before_anything_is_built(self, plan: Plan) -> None:
        assert not [step for step in plan.steps if isinstance(step, Later)]
        assert [stage.title for stage in plan.stages][:2] == ["fetch by hash", "extract from images"]
        (step,) = plan.stages[1].steps
        assert step.title == "extract flash-attn==2.7.4.post1+25.11"
        assert "--image nvcr.io/nvidia/pytorch@sha256:" in command_of(step)
        assert "--platform linux/arm64" in command_of(step)

    def test_sources_are_named_by_commit_with_what_the_build_would_download(self, plan: Plan) -> None:
        said = [command_of(step) for step in plan.steps if step.title.startswith("fetch the sources")]
        torch = "git fetch https://github.com/pytorch/pytorch.git 0fabc3ba44823f257e70ce397d989c8de5e362c1"
        assert said[0] == f"{torch} with submodules"
        assert "https://github.com/NVIDIA/cutlass.git" in said[2]
        assert ", for VLLM_CUTLASS_SRC_DIR" in said[2]

    def test_the_environment_is_shown(self, plan: Plan) -> None:
        (torch,) = [command_of(step) for step in plan.steps if "/torch-" in step.title and "lay out" in step.title]
        assert "TORCH_CUDA_ARCH_LIST=12.1\n" in torch

    def test_what_differs_from_the_guide_is_noted_with_its_reason(self, plan: Plan) -> None:
        assert len(plan.notes) == 7
        assert "note: unlike the guide, ray 2.52.1: its 2.51.1 has CVE-2025-62593" in as_text(plan)

    def test_the_index_part_is_fetched_here(self, plan: Plan) -> None:
        first = next(step for step in plan.steps if isinstance(step, Write))
        assert first.content == f"ray==2.52.1 --hash=sha256:{'a' * 64}\n"
