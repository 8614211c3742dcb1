"""Recipes: what they refuse, and what the hash of a source depends on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build.recipe import (
    RECIPES,
    Recipe,
    environment,
    expected_files,
    expected_wheel,
    load_recipe,
    source_hash,
    tree_hash,
)
from core.config import ROOT, load_model
from core.errors import BuildFailed, ConfigError

COMMIT = "0fabc3ba44823f257e70ce397d989c8de5e362c1"


def recipe_file(folder: Path, source: str, requires: str = '["setuptools==84.2.1"]') -> Path:
    path = folder / "thing.toml"
    path.write_text(
        f'distribution = "the-thing"\nversion = "1.0"\nrequires = {requires}\n'
        f'[source]\n{source}\n[expected]\ntags = "py3-none-linux_{{arch}}"\nfiles = ["a"]\n'
    )
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path: Path):
    assert load_recipe(path.stem).name == path.stem


def test_sources_of_this_project_exist_and_carry_a_licence():
    for recipe in (load_recipe(path.stem) for path in RECIPES.glob("*.toml")):
        if recipe.source.path:
            assert (ROOT / recipe.source.path / "pyproject.toml").is_file()
            assert (ROOT / recipe.source.path / "LICENSE").is_file()


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
        ('sdist = "https://example.org/a.tar.gz"', "belong together"),
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
    assert "setuptools>=77 without an exact version" in caught.value.evidence


def test_device_code_is_asked_for_by_the_stacks_architectures():
    probe = load_recipe("probe")
    assert environment(probe, ())["SPARKSTACK_CUDA_ARCHITECTURES"] == ""
    assert environment(probe, ("121", "90"))["SPARKSTACK_CUDA_ARCHITECTURES"] == "121;90"
    assert "sparkstack_probe/libprobe_device.so" not in expected_files(probe, ())
    assert "sparkstack_probe/libprobe_device.so" in expected_files(probe, ("121",))


def test_the_file_name_of_the_wheel_is_known_before_it_is_built(tmp_path: Path):
    recipe = load_model(Recipe, recipe_file(tmp_path, 'path = "a"'))
    assert expected_wheel(recipe, "aarch64") == "the_thing-1.0-py3-none-linux_aarch64.whl"
    assert expected_wheel(load_recipe("vllm-metadata"), "x86_64") == "vllm-0.32.0+cpu-py3-none-any.whl"


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


def test_a_link_in_a_source_is_refused(tmp_path: Path):
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(BuildFailed, match="neither a file nor a folder"):
        tree_hash(tmp_path)


def test_a_missing_source_is_an_error_and_not_an_empty_hash(tmp_path: Path):
    with pytest.raises(BuildFailed, match="is not a folder"):
        tree_hash(tmp_path / "nowhere")


def test_a_commit_names_its_source(tmp_path: Path):
    source = f'repository = "https://example.org/a.git"\ncommit = "{COMMIT}"'
    recipe = load_model(Recipe, recipe_file(tmp_path, source))
    assert source_hash(recipe) != source_hash(load_recipe("vllm"))
    assert not recipe.builds_here


@given(st.dictionaries(st.from_regex(r"[a-z]{1,6}", fullmatch=True), st.binary(max_size=8), max_size=4))
def test_the_hash_is_that_of_the_tree_and_not_of_where_it_lies(tmp_path_factory, files: dict[str, bytes]):
    folders = [tmp_path_factory.mktemp("tree") for _ in range(2)]
    for folder, names in zip(folders, (list(files), list(reversed(files))), strict=True):
        for name in names:
            (folder / name).write_bytes(files[name])
    assert tree_hash(folders[0]) == tree_hash(folders[1])
