"""The configuration that is shipped: it loads, it agrees with itself, its locks hold nothing unhashed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from build.recipe import load_recipe
from core.config import CONFIG, ROOT, Stack, load_cluster, load_profile, load_stack

STACKS = sorted(path.stem for path in (CONFIG / "stacks").glob("*.toml"))
LOCKS = sorted({*(CONFIG / "stacks").glob("*.lock"), *ROOT.glob("requirements*.lock")})


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
            recipe = load_recipe(data.recipe)
            assert (recipe.distribution, recipe.version) == (component, data.version)


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
    if not (ROOT / stack.lock).is_file():
        pytest.skip(f"{stack.lock} is not made yet")
    for component, data in stack.components.items():
        expected = [f"=={data.version}"] if data.origin == "index" else []
        assert sorted(set(pinned(stack, component))) == expected, component
    for left_out in stack.without:
        assert not pinned(stack, left_out), left_out


@pytest.mark.parametrize("name", STACKS)
def test_a_lock_was_made_without_what_the_stack_leaves_out_for_a_reason(name: str):
    stack = load_stack(name)
    lines = (CONFIG / "stacks" / f"{name}.without").read_text().splitlines()
    names = {line for line in lines if line and not line.startswith("#")}
    assert set(stack.without) <= names
    assert names - set(stack.without) <= set(stack.components), "left out without a reason"


def test_the_cpu_lock_draws_no_cuda_library():
    assert not [name for name in entries(ROOT / load_stack("cpu").lock) if name.startswith(("nvidia-", "cuda-"))]


def test_the_cuda_build_of_torch_stays_out_of_the_cpu_lock():
    (locked,) = entries(CONFIG / "stacks" / "cpu.lock")["torch"]
    (fallback,) = entries(CONFIG / "stacks" / "cpu-cuda-torch.lock")["torch"]
    assert not set(locked[1]) & set(fallback[1])
    assert len(locked[1]) == 6
