"""What keeps a machine from building a recipe, each with its next move; and how many compilers run at once."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build.cross import cross_environment, cross_packages, strip_program, toolchain_file
from build.recipe import Recipe
from build.toolchain import GIB, RESERVE, examine, jobs, memory_limit, needed_packages
from core import parsers
from core.errors import UsageError
from core.facts import NodeFacts
from core.host import CONTROLLER
from tests.unit.samples import SPARK, TABLES, capture, spark_captures

FINDINGS = json.loads((TABLES / "toolchain_findings.json").read_text())
NODE = "gx10-beee"


def spark(**changes: Any) -> NodeFacts:
    seen = spark_captures().parsed()[NODE]
    return replace(seen, **{"packages": frozenset({"libnuma-dev"}), **changes})


def recipe(**changes: Any) -> Recipe:
    data: dict[str, Any] = {
        "name": "trial",
        "distribution": "trial",
        "version": "1.0",
        "source": {"path": "build/sources/probe"},
        "requires": ("ninja==1.13.2",),
        "toolchain": {"compiler": True, "gcc": (11, 14), "cuda": "13.0", "headers": True, "packages": ("libnuma-dev",)},
        "memory_per_job": 8 * GIB,
        "disk": 50 * GIB,
        "expected": {"tags": "cp312-cp312-linux_{arch}"},
    }
    return Recipe.model_validate({**data, **changes})


def seen_in(row: dict[str, Any]) -> NodeFacts:
    facts = {key: tuple(value) if isinstance(value, list) else value for key, value in row.get("facts", {}).items()}
    if "packages" in facts or "packages_too" in row:
        extra = cross_packages() if "packages_too" in row else ()
        facts["packages"] = frozenset((*facts.get("packages", ("libnuma-dev",)), *extra))
    seen = spark(**facts)
    changes = row.get("toolchain", {})
    tools = {key: frozenset(value) if isinstance(value, list) else value for key, value in changes.items()}
    return replace(seen, toolchain=replace(seen.toolchain, **tools))


@pytest.mark.parametrize("row", FINDINGS, ids=lambda row: row["title"])
def test_what_keeps_a_machine_from_building_is_found_with_the_next_move(row: dict[str, Any]) -> None:
    tags = {"expected": {"tags": row["tags"]}} if "tags" in row else {}
    made = recipe(cross=row.get("cross", False), **tags)
    architectures, toolkit = row.get("architectures", ["121"]), row.get("toolkit", False)
    found = list(examine(made, architectures, seen_in(row), NODE, SPARK, toolkit=toolkit))
    assert [one.cause for one in found] == [cause for cause, _ in row["finds"]]
    for one, (_, move) in zip(found, row["finds"], strict=True):
        assert move in one.next_move
        assert one.node == NODE


def test_the_tools_of_cuda_12_are_told_from_what_they_print() -> None:
    older = replace(
        spark().toolchain,
        nvcc_codes=parsers.gpu_codes(capture("nvcc-list-gpu-code.12.4.not-spark.txt")),
        ptxas_codes=parsers.gpu_codes(capture("ptxas-help.12.8.not-spark.txt")),
    )
    release = parsers.cuda_release(capture("nvcc-version.12.4.not-spark.txt"))
    (found,) = examine(recipe(), ["121"], spark(cuda=release, toolchain=older), CONTROLLER, SPARK)
    assert found.cause == "its nvcc is of CUDA 12.4, the recipe needs 13.0"
    assert found.next_move.startswith("sudo apt-get install cuda-toolkit-13-0")
    assert "--toolkit" in found.next_move, "this host can take it from wheels"
    causes = [one.cause for one in examine(recipe(), ["121"], spark(toolchain=older), NODE, SPARK)]
    assert causes == ["its nvcc knows no sm_121", "its ptxas knows no sm_121"]


def test_what_a_probe_has_to_ask_for_is_known_before() -> None:
    assert needed_packages(recipe(), spark(), SPARK) == ("libnuma-dev",)
    assert needed_packages(recipe(), spark(architecture="x86_64"), SPARK) == ("libnuma-dev", *cross_packages())


@pytest.mark.parametrize(
    ("cores", "gib", "per_job", "threads", "words"),
    [
        (20, 115, 8, 1, "13 jobs: 20 cores, 115 GiB available, 8 GiB a job"),
        (20, 115, 4, 1, "20 jobs: 20 cores, 115 GiB available, 4 GiB a job"),
        (20, 115, 4, 2, "10 jobs: 20 cores, 115 GiB available, 4 GiB a job, 2 threads a job"),
        (2, 4.5, 2, 1, "1 job: 2 cores, 4.5 GiB available, 2 GiB a job"),
        (1, 64, 2, 4, "1 job: 1 core, 64 GiB available, 2 GiB a job, 4 threads a job"),
    ],
)
def test_jobs_are_what_cores_and_memory_allow(cores: int, gib: float, per_job: int, threads: int, words: str) -> None:
    size = int(gib * GIB)
    seen = spark(cores=cores, memory_available=size, memory_total=size)
    made = recipe(memory_per_job=per_job * GIB, threads_per_job=threads)
    assert jobs(made, seen).words == words


@given(cores=st.integers(1, 512), available=st.integers(0, 2**42), total=st.integers(0, 2**42))
def test_a_build_gets_a_job_and_leaves_memory_to_the_system(cores: int, available: int, total: int) -> None:
    seen = spark(cores=cores, memory_available=min(available, total), memory_total=total)
    found = jobs(recipe(), seen)
    assert 1 <= found.count <= max(1, cores)
    assert found.memory == memory_limit(seen) <= seen.memory_available
    assert seen.memory_available - found.memory <= RESERVE


def test_a_cross_build_names_every_tool_for_the_target() -> None:
    job, cuda = PurePosixPath("/srv/sparkstack/in"), PurePosixPath("/srv/sparkstack/cuda")
    found = cross_environment("x86_64", "aarch64", folder=job, cuda=cuda)
    assert found["CXX"] == found["CUDAHOSTCXX"] == found["NVCC_CCBIN"] == "aarch64-linux-gnu-g++"
    assert found["CMAKE_TOOLCHAIN_FILE"] == "/srv/sparkstack/in/aarch64.cmake"
    assert found["CUDACXX"] == "/srv/sparkstack/cuda/bin/nvcc"
    assert found["_PYTHON_HOST_PLATFORM"] == "linux-aarch64"
    assert strip_program("x86_64", "aarch64") == "aarch64-linux-gnu-strip"


def test_a_build_for_the_machine_itself_is_left_alone() -> None:
    nowhere = PurePosixPath("/")
    assert cross_environment("aarch64", "aarch64", folder=nowhere, cuda=nowhere) == {}
    assert strip_program("x86_64", "x86_64") == "strip"


def test_machines_that_nothing_compiles_between_are_refused() -> None:
    with pytest.raises(UsageError, match="nothing here compiles on aarch64 for x86_64"):
        strip_program("aarch64", "x86_64")


def test_the_toolchain_file_sets_what_the_environment_names() -> None:
    text = toolchain_file("aarch64").read_text()
    settings = dict(re.findall(r"^set\((\w+) ([^)]+)\)", text, re.MULTILINE))
    assert settings["CMAKE_SYSTEM_PROCESSOR"] == "aarch64"
    for variable, setting in (("CC", "C_COMPILER"), ("CXX", "CXX_COMPILER"), ("CUDAHOSTCXX", "CUDA_HOST_COMPILER")):
        named = cross_environment("x86_64", "aarch64", folder=PurePosixPath("/"), cuda=PurePosixPath("/"))
        assert settings[f"CMAKE_{setting}"] == named[variable]
