"""docs/build.md says what is: every key of a recipe, and a recipe and a stack that load."""

from __future__ import annotations

import re
import tomllib

import pytest

from build.recipe import Dependency, Expected, Origin, Patch, Recipe, Source, Toolchain, load_recipe
from core.config import ROOT, Model, Stack, load_data

TEXT = (ROOT / "docs" / "build.md").read_text(encoding="utf-8")
OF_THE_FILE = {"name", "variant"}
"""Told by the recipe's file name and by the stack."""
TABLES = ("variants",)


@pytest.mark.parametrize("model", [Recipe, Origin, Source, Dependency, Patch, Toolchain, Expected])
def test_every_key_of_a_recipe_is_explained(model: type[Model]) -> None:
    assert [key for key in model.model_fields if key not in OF_THE_FILE and f"`{key}`" not in TEXT] == []


def test_no_key_is_explained_that_a_recipe_does_not_have() -> None:
    table = TEXT.partition("| key | what it says |")[2].partition("\n\n")[0]
    named = {key for row in table.splitlines()[2:] for key in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named <= {*Recipe.model_fields, *TABLES}


def test_the_recipe_and_the_stack_made_from_nothing_load() -> None:
    recipe, stack, _ = (tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL))
    loaded = load_data(Recipe, ROOT / "build" / "recipes" / "cuvec.toml", recipe)
    assert loaded.requires[0] == load_recipe("probe").requires[0]
    assert load_data(Stack, ROOT / "config" / "stacks" / "cuvec.toml", stack).components["cuvec"].recipe == "cuvec"
