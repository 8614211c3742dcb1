"""vLLM's recipe from its source distribution: without CUDA code to a wheel, with it as far as a build gets offline."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from build.recipe import load_recipe
from tests.builds.workshop import Fresh, Unfinished, Workshop
from tests.machines.command_line import assert_refused

pytestmark = pytest.mark.builds

EMPTY = "vllm-empty"
VERSION = "0.11.3.dev0+g275de3417"
X86 = platform.machine()


def test_the_empty_variant_is_one_variable_apart() -> None:
    plain, empty = load_recipe("vllm"), load_recipe("vllm", "empty")
    assert {**plain.environment, "VLLM_TARGET_DEVICE": "empty"} == empty.environment
    assert plain.environment["VLLM_TARGET_DEVICE"] == "cuda"
    same = ("distribution", "version", "requires", "needs", "patches", "subdirectory")
    assert {key: getattr(plain, key) for key in same} == {key: getattr(empty, key) for key in same}


def test_its_python_files_alone_build_to_the_same_bytes_twice(workshop: Workshop) -> None:
    workshop.builds(EMPTY, X86, "--verify")
    made = workshop.manifest(EMPTY, X86)["vllm"]
    assert (made["level"], made["differs"]) == (1, "")
    assert workshop.wheel(EMPTY, X86, "vllm").name == f"vllm-{VERSION}-py3-none-any.whl"


def test_that_wheel_installs_in_a_fresh_environment_and_imports(workshop: Workshop, tmp_path: Path) -> None:
    workshop.builds(EMPTY, X86)
    wheels = workshop.wheel(EMPTY, X86, "vllm").parent.glob("*.whl")
    fresh = Fresh.made(tmp_path / "environment", *wheels)
    assert fresh.python("import vllm; print(vllm.__version__)").splitlines()[-1] == VERSION


@pytest.mark.skipif(X86 != "x86_64", reason="the lock of torch for CUDA 13 is for x86_64")
def test_the_cuda_build_configures_until_its_first_external_project(unfinished: Unfinished) -> None:
    """Nothing but the external projects is missing: with the network off the build ends at CUTLASS, and says so."""
    assert_refused(unfinished.ended, 30, "the build wanted to download cutlass", "[[dependencies]]")
    log = unfinished.log
    assert "-- Target device: cuda" in log
    assert "-- Found CUDAToolkit: /srv/sparkstack/cuda/include" in log
    assert "-- Found Torch: /srv/sparkstack/venv/" in log
    assert "-- CUDA target architectures: 12.1" in log
    assert "-- CUDA supported target architectures: 12.0" in log
    assert "Performing download step (git clone) for 'cutlass-populate'" in log
    assert [name for name in unfinished.shop.wheels("vllm-cuda") if name.startswith("vllm")] == []


@pytest.mark.skipif(X86 != "x86_64", reason="the lock of torch for CUDA 13 is for x86_64")
def test_that_build_had_the_very_environment_of_the_recipe(unfinished: Unfinished) -> None:
    told = (unfinished.job / "in" / "job.json").read_text(encoding="utf-8")
    plain = load_recipe("vllm").environment
    for name in ("VLLM_TARGET_DEVICE", "VLLM_VERSION_OVERRIDE", "NVCC_THREADS"):
        assert f'"{name}": "{plain[name]}"' in told
    assert '"TORCH_CUDA_ARCH_LIST": "12.1"' in told
