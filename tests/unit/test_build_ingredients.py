"""What goes into a build, as data: gathered before it, found again in the wheel, with what built it."""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from build.accept import accept
from build.ingredients import ingredients, require_sbom, sbom_of, toolchain
from build.recipe import Recipe, load_recipe
from build.records import described, record, recorded
from build.source import Pin, Sources
from core.config import ROOT
from core.errors import BuildFailed
from tests.unit.samples import wheel
from tests.unit.test_build_accept import Bench, bench  # noqa: F401
from wheels import canonical
from wheels.ingredients import Ingredients, Tool
from wheels.manifest import sha256_of
from wheels.sbom import PLACE, sbom_in

COMMIT = "a" * 40
INFO = "small_thing-1.0.dist-info"


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("vllm")


def sources(tmp_path: Path) -> Sources:
    pins = (Pin(place="source", origin="https://example.org/vllm", digest=f"gitCommit:{COMMIT}"),)
    return Sources(recipe="vllm", tree="0" * 64, deps={}, pins=pins, folder=tmp_path)


def file(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_what_a_build_takes_is_told_by_name_and_hash(recipe: Recipe, tmp_path: Path) -> None:
    wheels = [file(tmp_path / "wheels" / f"{name}-1.0-py3-none-any.whl", name) for name in ("wheel", "Pip_x")]
    toolkit = [file(tmp_path / "files" / ("c" * 64) / "nvidia_nvvm-13.0-py3-none-any.whl")]
    made = ingredients(recipe, ("121",), sources(tmp_path), wheels, toolkit)
    assert (made.recipe, made.variant, made.architectures) == ("vllm", None, ("121",))
    assert [(one.place, one.digest) for one in made.sources] == [("source", f"gitCommit:{COMMIT}")]
    assert [(one.name, one.sha256) for one in made.requirements] == [
        ("pip-x", sha256_of(wheels[1])),
        ("wheel", sha256_of(wheels[0])),
    ]
    assert [(one.name, one.sha256) for one in made.toolkit] == [("nvidia-nvvm", "c" * 64)]
    assert [one.file for one in made.patches] == [patch.file for patch in recipe.patches]


def test_the_order_of_the_files_changes_nothing(recipe: Recipe, tmp_path: Path) -> None:
    wheels = [file(tmp_path / f"{name}-1.0-py3-none-any.whl", name) for name in ("a", "b")]
    one, other = (ingredients(recipe, (), sources(tmp_path), order, []) for order in (wheels, wheels[::-1]))
    assert sbom_of(recipe, one) == sbom_of(recipe, other)


def test_a_wheel_with_the_sbom_that_was_given_is_accepted_with_what_it_is_made_of(bench: Bench) -> None:  # noqa: F811
    made = Ingredients(recipe="small", architectures=("121",))
    text = sbom_of(bench.made.recipe, made)
    bench.builds({f"{INFO}/{PLACE}": text.encode()})
    tools = {"gcc": {"version": "gcc 13.3.0", "sha256": "d" * 64}}
    bench.tells(sha256=sha256_of(bench.made.path), seconds={"all": 1.0}, tools=tools)
    accept(replace(bench.made, made_of=made), bench.place, bench.said.append)
    (kept,) = recorded(bench.place)
    assert kept.made_of == made
    assert kept.toolchain == (Tool(name="gcc", version="gcc 13.3.0", sha256="d" * 64),)
    assert described(bench.place, kept.filename) == kept


@pytest.mark.parametrize("content", [None, b"{}"])
def test_a_wheel_with_another_sbom_stays_out(bench: Bench, content: bytes | None) -> None:  # noqa: F811
    bench.builds({f"{INFO}/{PLACE}": content})
    with pytest.raises(BuildFailed, match="was not built of what is there now"):
        require_sbom(bench.made.path, bench.made.recipe, Ingredients(recipe="small"))


TOOLS: dict[str, tuple[dict[str, Any], tuple[Tool, ...]]] = {
    "two": (
        {"tools": {"ld": {"version": "2.42", "sha256": "1" * 64}, "gcc": {"version": "13", "sha256": "2" * 64}}},
        (Tool(name="gcc", version="13", sha256="2" * 64), Tool(name="ld", version="2.42", sha256="1" * 64)),
    ),
    "none": ({"tools": {}}, ()),
    "an older runner's": ({"tools": {"gcc": "gcc 13"}}, ()),
    "nothing said": ({}, ()),
    "no hash": ({"tools": {"gcc": {"version": "13", "sha256": "x"}}}, ()),
}


@pytest.mark.parametrize("case", TOOLS)
def test_the_toolchain_is_what_the_runner_said(case: str) -> None:
    result, told = TOOLS[case]
    assert toolchain(result) == told


def test_a_record_whose_wheel_was_changed_is_forgotten(tmp_path: Path) -> None:
    one = wheel("small-thing", size=1)
    file(tmp_path / one.filename)
    record(tmp_path, one)
    with pytest.raises(BuildFailed, match="is not the wheel that was built"):
        described(tmp_path, one.filename)
    assert recorded(tmp_path) == ()


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the runner as it is on a machine that builds: wheels/canonical.py lies beside it."""
    monkeypatch.setitem(sys.modules, "canonical", canonical)
    spec = importlib.util.spec_from_file_location("runner", ROOT / "build" / "runner.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_runner_puts_the_sbom_in_before_it_packs(runner: ModuleType, tmp_path: Path) -> None:
    for name in ("METADATA", "WHEEL"):
        file(tmp_path / "unpacked" / INFO / name)
    runner.add_sbom(tmp_path / "unpacked", PLACE, "{}\n")
    canonical.pack(tmp_path / "unpacked", tmp_path / "x.whl", 1764547200)
    assert sbom_in(tmp_path / "x.whl") == b"{}\n"
    with zipfile.ZipFile(tmp_path / "x.whl") as archive:
        assert f"{INFO}/{PLACE},sha256=" in archive.read(f"{INFO}/RECORD").decode()


def test_the_runner_adds_nothing_where_it_was_given_nothing(runner: ModuleType, tmp_path: Path) -> None:
    file(tmp_path / INFO / "METADATA")
    runner.add_sbom(tmp_path, PLACE, "")
    assert [path.name for path in (tmp_path / INFO).iterdir()] == ["METADATA"]


@pytest.mark.processes
def test_the_runner_names_the_programs_that_it_finds_with_version_and_hash(runner: ModuleType, tmp_path: Path) -> None:
    for name, line in (("cross-gcc", "cross-gcc 13.3.0"), ("cmake", "cmake version 4.4.4"), ("strip", "not asked")):
        program = file(tmp_path / "venv" / "bin" / name, f"#!/bin/sh\necho {line}\necho more\n")
        program.chmod(0o755)
    found = dict(runner.tools(tmp_path, {"strip": "cross-strip", "environment": {"PATH": "/nowhere"}}))
    assert found["cross-gcc"] == {
        "version": "cross-gcc 13.3.0",
        "sha256": sha256_of(tmp_path / "venv" / "bin" / "cross-gcc"),
    }
    assert found["cmake"]["version"] == "cmake version 4.4.4"
    assert "strip" not in found
    assert toolchain({"tools": json.loads(json.dumps(found))})
