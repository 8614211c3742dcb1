"""The configuration that is shipped: it loads, it agrees with itself, its locks hold nothing unhashed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from build.recipe import INSTALLER, RECIPES, load_recipe, recipe_names, variant_names
from core.config import CONFIG, ROOT, Stack, load_cluster, load_profile, load_stack

STACKS = sorted(path.stem for path in (CONFIG / "stacks").glob("*.toml"))
LOCKS = sorted({*(CONFIG / "stacks").glob("*.lock"), *RECIPES.glob("*.lock"), *ROOT.glob("requirements*.lock")})


def entries(lock: Path) -> dict[str, list[tuple[Requirement, list[str]]]]:
    """Return name → requirements with their hashes; a line that is none of what a lock holds raises."""
    found: dict[str, list[tuple[Requirement, list[str]]]] = {}
    text = re.sub(r"^\s*#.*\n?", "", lock.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, map(str.strip, text.splitlines())):
        requirement = Requirement(line.split("--hash=")[0])
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line)
        found.setdefault(canonicalize_name(requirement.name), []).append((requirement, hashes))
    return found


def pinned(stack: Stack, name: str) -> list[str]:
    lock = entries(ROOT / stack.lock)
    return [str(requirement.specifier) for requirement, _ in lock.get(canonicalize_name(name), [])]


@pytest.mark.parametrize("path", sorted((CONFIG / "clusters").glob("*.toml")), ids=lambda path: path.stem)
def test_every_cluster_loads(path: Path):
    cluster = load_cluster(path.stem)
    assert cluster.name == path.stem
    assert cluster.stack in STACKS


@pytest.mark.parametrize("name", STACKS)
def test_every_stack_loads_and_its_components_have_recipes(name: str):
    for component, data in load_stack(name).components.items():
        if data.recipe:
            recipe = load_recipe(data.recipe, data.variant)
            assert (recipe.distribution, recipe.version) == (component, data.version)
            assert set(recipe.needs) <= set(load_stack(name).components)


@pytest.mark.parametrize("path", sorted((CONFIG / "profiles").glob("*.toml")), ids=lambda path: path.stem)
def test_every_profile_loads(path: Path):
    assert load_profile(path.stem).name == path.stem


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_holds_exact_hashed_requirements_only(lock: Path):
    for name, locked in entries(lock).items():
        for requirement, hashes in locked:
            assert hashes, f"{name} has no hash"
            assert requirement.url is None
            assert [spec.operator for spec in requirement.specifier] == ["=="]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_names_no_index_and_no_folder(lock: Path):
    text = lock.read_text(encoding="utf-8")
    assert not re.search(r"^\s*(-|--(?!hash))[a-z]", text, flags=re.MULTILINE)
    assert not re.search(r"https?://|file:|127\.0\.0\.1|localhost", text)


@pytest.mark.parametrize("name", STACKS)
def test_the_index_part_is_in_the_lock_at_its_version_and_the_rest_is_not(name: str):
    stack = load_stack(name)
    for component, data in stack.components.items():
        expected = [f"=={data.version}"] if data.origin == "index" else []
        assert sorted(set(pinned(stack, component))) == expected, component
    for left_out in stack.without:
        assert not pinned(stack, left_out), left_out


def test_the_cpu_lock_draws_no_cuda_library():
    assert not [name for name in entries(ROOT / load_stack("cpu").lock) if name.startswith(("nvidia-", "cuda-"))]


def test_the_cuda_build_of_torch_stays_out_of_the_cpu_lock():
    (locked,) = entries(CONFIG / "stacks" / "cpu.lock")["torch"]
    (fallback,) = entries(CONFIG / "stacks" / "cpu-cuda-torch.lock")["torch"]
    assert not set(locked[1]) & set(fallback[1])
    assert len(locked[1]) == 6


@pytest.mark.parametrize("name", STACKS)
def test_a_lock_holds_what_its_stack_requires_besides(name: str):
    stack = load_stack(name)
    for requirement in map(Requirement, stack.requires):
        found = entries(ROOT / stack.lock)[canonicalize_name(requirement.name)]
        assert all(requirement.specifier.contains(pin) for one, _ in found for pin in versions(one)), requirement


def versions(requirement: Requirement) -> list[str]:
    return [specifier.version for specifier in requirement.specifier]


@pytest.mark.parametrize("name", recipe_names())
def test_the_lock_of_a_recipe_holds_what_each_of_its_variants_requires(name: str):
    locked = entries(RECIPES / f"{name}.lock")
    for variant in (None, *variant_names(name)):
        recipe = load_recipe(name, variant)
        assert recipe.requires[0] == INSTALLER
        for wanted in map(Requirement, recipe.requires):
            assert [str(one.specifier) for one, _ in locked[canonicalize_name(wanted.name)]] == [str(wanted.specifier)]
        assert not {canonicalize_name(need) for need in recipe.needs} & locked.keys(), "that is of the stack"


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_that_needs_torch_has_what_torch_requires_to_be_imported(name: str):
    if "torch" in load_recipe(name).needs:
        assert {"filelock", "sympy", "typing-extensions", "jinja2"} <= entries(RECIPES / f"{name}.lock").keys()


def test_the_guides_stack_differs_from_the_guide_only_where_it_says_so():
    guide = load_stack("guide").components
    theirs = {"torch": "2.9.0+cu130", "nvidia-nccl-cu13": "2.27.7", "transformers": "4.57.1", "safetensors": "0.6.2"}
    theirs |= {"ray": "2.51.1", "flash-attn": "2.7.4.post1+25.11", "triton": "3.5.0+git8daff01a"}
    theirs |= {"vllm": "0.11.3.dev0+g275de3417.d20260208.cu130", "flashinfer-python": "0.5.1"}
    theirs |= {"flashinfer-cubin": "0.5.1+28c4ab8a.nv25.11"}
    for name, version in theirs.items():
        assert (guide[name].version != version) == bool(guide[name].guide), name


def test_the_current_stack_is_published_wheels_only_with_what_vllm_requires_of_them():
    current = load_stack("current")
    assert {component.origin for component in current.components.values()} == {"index"}
    assert pinned(current, "vllm") == ["==0.33.0"]
    assert pinned(current, "torch") == ["==2.14.0"]
    assert not pinned(current, "flashinfer-cubin"), "none has flashinfer's version"
