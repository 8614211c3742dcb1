"""Recipes: what they refuse, and what the hash of a source depends on."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from build.recipe import (
    RECIPES,
    Recipe,
    capability,
    environment,
    expected_code,
    expected_files,
    expected_wheel,
    load_recipe,
    recipe_hash,
    recipe_names,
    source_hash,
    variant_names,
)
from build.tree import tree_hash
from core.config import ROOT, load_model
from core.errors import BuildFailed, ConfigError
from tests.unit.samples import SPARK, X86

COMMIT = "0fabc3ba44823f257e70ce397d989c8de5e362c1"


def recipe_file(folder: Path, source: str, requires: str = '["setuptools==84.2.1"]') -> Path:
    path = folder / "thing.toml"
    path.write_text(
        f'distribution = "the-thing"\nversion = "1.0"\nrequires = {requires}\n'
        f'[source]\n{source}\n[expected]\ntags = "py3-none-linux_{{arch}}"\nfiles = ["a"]\n'
    )
    return path


SHIPPED = [(name, variant) for name in recipe_names() for variant in (None, *variant_names(name))]
PLACES = {"architectures", "capabilities", "jobs", "cuda", "venv", "source", "python"}
shipped = pytest.mark.parametrize(("name", "variant"), SHIPPED, ids=lambda word: word or "plain")


@shipped
def test_every_shipped_recipe_loads_in_each_variant(name: str, variant: str | None):
    recipe = load_recipe(name, variant)
    assert (recipe.name, recipe.variant) == (name, variant)
    assert recipe.title == (f"{name} ({variant})" if variant else name)


@shipped
def test_a_shipped_recipe_names_no_place_that_nobody_fills_in(name: str, variant: str | None):
    text = " ".join(load_recipe(name, variant).environment.values())
    assert set(re.findall(r"\{(\w+)\}", text)) <= PLACES


@shipped
def test_what_a_shipped_recipe_requires_at_run_time_can_be_read(name: str, variant: str | None):
    assert all(Requirement(line).name for line in load_recipe(name, variant).requires_dist)


@shipped
def test_what_compiles_device_code_says_with_what_and_how_much_memory_it_takes(name: str, variant: str | None):
    recipe = load_recipe(name, variant)
    if recipe.expected.device_code:
        assert recipe.toolchain.compiler
        assert recipe.toolchain.cuda == "13.0"
    if recipe.expected.device_code and name != "probe":
        assert recipe.memory_per_job >= 5 * 2**30
        assert recipe.environment["MAX_JOBS"] == "{jobs}"
        assert recipe.toolchain.gcc == (9, 15)


@shipped
def test_every_repository_is_at_a_full_commit_and_every_archive_has_a_hash(name: str, variant: str | None):
    recipe = load_recipe(name, variant)
    for origin in (recipe.source, *recipe.dependencies):
        assert origin.path or re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", origin.pin)
        assert (origin.repository or origin.archive or "https://").startswith("https://")


def test_sources_of_this_project_exist_and_carry_a_licence():
    for recipe in (load_recipe(path.stem) for path in RECIPES.glob("*.toml")):
        if recipe.source.path:
            assert (ROOT / recipe.source.path / "pyproject.toml").is_file()
            assert (ROOT / recipe.source.path / "LICENSE").is_file()
        assert all((ROOT / other.path).is_dir() for other in recipe.dependencies if other.path)


def test_the_probe_requires_what_its_source_says():
    for name in ("probe", "vllm-metadata", "vllm-ray-cpu"):
        recipe = load_recipe(name)
        project = tomllib.loads((ROOT / str(recipe.source.path) / "pyproject.toml").read_text())["project"]
        assert list(recipe.requires_dist) == project.get("dependencies", [])
        assert (recipe.distribution, recipe.version.partition("+")[0]) == (
            project["name"],
            project["version"].partition("+")[0],
        )


def test_vllm_without_device_code_is_the_same_recipe_one_variable_apart():
    plain, empty = load_recipe("vllm"), load_recipe("vllm", "empty")
    differing = {key for key in plain.environment if plain.environment[key] != empty.environment[key]}
    assert differing == {"VLLM_TARGET_DEVICE"}
    assert (empty.requires, empty.needs, empty.version) == (plain.requires, plain.needs, plain.version)
    assert empty.source.sdist == "vllm==0.11.2"
    assert empty.dependencies == ()
    assert set(plain.requires_dist) - set(empty.requires_dist) == {
        "numba==0.61.2",
        "ray[cgraph]>=2.48.0",
        "torch==2.9.0",
        "torchaudio==2.9.0",
        "torchvision==0.24.0",
        "xformers==0.0.33.post1; platform_system == 'Linux' and platform_machine == 'x86_64'",
        "flashinfer-python==0.5.2",
    }


def test_everything_that_vllms_build_would_download_is_named():
    variables = [other.variable for other in load_recipe("vllm").dependencies]
    assert variables == ["VLLM_CUTLASS_SRC_DIR", "VLLM_FLASH_ATTN_SRC_DIR", "FLASH_MLA_SRC_DIR", "QUTLASS_SRC_DIR"]
    assert [other.submodules for other in load_recipe("vllm").dependencies] == [False, True, True, False]
    assert load_recipe("vllm", "sdist").dependencies == load_recipe("vllm").dependencies


def test_triton_downloads_nothing():
    triton = load_recipe("triton")
    assert triton.environment["TRITON_OFFLINE_BUILD"] == "1"
    assert {other.variable for other in triton.dependencies} == {
        "LLVM_PROJECT_DIR",
        "SPARKSTACK_LLVM_BUILD",
        "JSON_SYSPATH",
    }


def test_an_unknown_recipe_is_answered_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"did you mean probe\?"):
        load_recipe("prob")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("", "give one of"),
        (f'path = "a"\nrepository = "b"\ncommit = "{COMMIT}"', "give one of"),
        ('repository = "https://example.org/a.git"', "belong together"),
        ('repository = "https://example.org/a.git"\ncommit = "main"', "pattern"),
        ('sdist = "a==1"', '"sha256" belongs to'),
        ('sdist = "a>=1"\nsha256 = "' + "0" * 64 + '"', "no exact version"),
        ('archive = "https://example.org/a.tar.gz"', '"sha256" belongs to'),
        ('path = "a"\nreference = "v1"', 'belong to a "repository"'),
        ('path = "../elsewhere"', "within the project"),
        ('path = "/etc"', "within the project"),
    ],
)
def test_a_source_is_exactly_one_thing_and_cannot_move(tmp_path: Path, source: str, complaint: str):
    with pytest.raises(ConfigError) as caught:
        load_model(Recipe, recipe_file(tmp_path, source))
    assert complaint in caught.value.evidence


def test_build_requirements_are_exact(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        load_model(Recipe, recipe_file(tmp_path, 'path = "a"', '["setuptools>=77"]'))
    assert "setuptools>=77 has no exact version" in caught.value.evidence


def test_device_code_is_asked_for_by_the_stacks_architectures():
    probe = load_recipe("probe")
    assert environment(probe, ())["SPARKSTACK_CUDA_ARCHITECTURES"] == ""
    assert environment(probe, ("121", "90"))["SPARKSTACK_CUDA_ARCHITECTURES"] == "121;90"
    assert "sparkstack_probe/libprobe_device.so" not in expected_files(probe, ())
    assert "sparkstack_probe/libprobe_device.so" in expected_files(probe, ("121",))


def test_the_file_name_of_the_wheel_is_known_before_it_is_built(tmp_path: Path):
    recipe = load_model(Recipe, recipe_file(tmp_path, 'path = "a"'))
    assert expected_wheel(recipe, SPARK) == "the_thing-1.0-py3-none-linux_aarch64.whl"
    assert expected_wheel(load_recipe("vllm-metadata"), X86) == "vllm-0.32.0+cpu-py3-none-any.whl"
    assert expected_wheel(load_recipe("triton"), SPARK) == "triton-3.5.0-cp312-cp312-linux_aarch64.whl"
    assert expected_wheel(load_recipe("vllm"), SPARK) == "vllm-0.11.3.dev0+g275de3417-cp38-abi3-linux_aarch64.whl"


def test_the_hash_changes_with_a_name_a_byte_and_an_executable_bit(tmp_path: Path):
    (tmp_path / "b").mkdir()
    file = tmp_path / "b" / "one"
    file.write_bytes(b"1")
    hashes = [tree_hash(tmp_path)]
    file.write_bytes(b"2")
    hashes.append(tree_hash(tmp_path))
    file.chmod(0o755)
    hashes.append(tree_hash(tmp_path))
    file.rename(tmp_path / "one")
    hashes.append(tree_hash(tmp_path))
    assert len(set(hashes)) == 4


def test_the_hash_does_not_change_with_byte_code_dates_or_the_umask(tmp_path: Path):
    file = tmp_path / "one.py"
    file.write_bytes(b"1")
    before = tree_hash(tmp_path)
    file.chmod(0o600)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "one.pyc").write_bytes(b"x")
    assert tree_hash(tmp_path) == before


def test_a_link_counts_with_where_it_leads_and_a_pipe_is_refused(tmp_path: Path):
    (tmp_path / "link").symlink_to("one")
    first = tree_hash(tmp_path)
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("two")
    assert tree_hash(tmp_path) != first
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BuildFailed, match="neither a file, a link nor a folder"):
        tree_hash(tmp_path)


def test_a_missing_source_is_an_error_and_not_an_empty_hash(tmp_path: Path):
    with pytest.raises(BuildFailed, match="is not a folder"):
        tree_hash(tmp_path / "nowhere")


def test_a_commit_names_its_source(tmp_path: Path):
    source = f'repository = "https://example.org/a.git"\ncommit = "{COMMIT}"'
    recipe = load_model(Recipe, recipe_file(tmp_path, source))
    assert source_hash(recipe) != source_hash(load_recipe("vllm"))


def test_the_identity_of_a_build_changes_with_what_goes_into_it_and_with_nothing_else():
    recipe = load_recipe("vllm", "empty")
    same = recipe.model_copy(update={"memory_per_job": 1, "disk": 1, "variant": "another"})
    assert recipe_hash(same, ("121",), {"torch": "a"}) == recipe_hash(recipe, ("121",), {"torch": "a"})
    others = [
        recipe_hash(recipe, ("121",), {"torch": "b"}),
        recipe_hash(recipe, ("120",), {"torch": "a"}),
        recipe_hash(
            recipe.model_copy(update={"dependencies": load_recipe("vllm").dependencies}), ("121",), {"torch": "a"}
        ),
        recipe_hash(load_recipe("vllm", "sdist"), ("121",), {"torch": "a"}),
    ]
    assert len({recipe_hash(recipe, ("121",), {"torch": "a"}), *others}) == 5


def test_architectures_are_told_as_each_build_names_them():
    assert [capability(name) for name in ("121", "120f", "90a")] == ["12.1", "12.0f", "9.0a"]
    found = environment(load_recipe("vllm"), ("121",), cuda="/cuda", jobs="3", venv="/venv")
    assert (found["TORCH_CUDA_ARCH_LIST"], found["CUDA_HOME"], found["MAX_JOBS"]) == ("12.1", "/cuda", "3")


def test_the_code_that_each_library_must_hold_is_known():
    assert expected_code(load_recipe("probe"), ("121",)) == {"sparkstack_probe/libprobe_device.so": ("sm_121",)}
    assert expected_code(load_recipe("probe"), ()) == {}
    assert expected_code(load_recipe("vllm"), ("121",))["vllm/_C.abi3.so"] == ("sm_120", "sm_120f")
    assert expected_code(load_recipe("vllm", "empty"), ("121",)) == {}


@given(st.dictionaries(st.from_regex(r"[a-z]{1,6}", fullmatch=True), st.binary(max_size=8), max_size=4))
def test_the_hash_is_that_of_the_tree_and_not_of_where_it_lies(tmp_path_factory, files: dict[str, bytes]):
    folders = [tmp_path_factory.mktemp("tree") for _ in range(2)]
    for folder, names in zip(folders, (list(files), list(reversed(files))), strict=True):
        for name in names:
            (folder / name).write_bytes(files[name])
    assert tree_hash(folders[0]) == tree_hash(folders[1])
