"""What stands in a build environment besides the recipe's own requirements: what needed components require."""

from __future__ import annotations

from pathlib import Path

import pytest

from build.metadata import Stub, write_stubs
from build.needs import distribution_of, needed_wheels
from core.errors import BuildFailed
from wheels.target import Target

TARGET = Target(architecture="x86_64", python=(3, 12), glibc=(2, 39))
STACK = (
    Stub("torch", "2.0", ("filelock", "cuda-toolkit[cublas,cufft]==13.0", "pyyaml; extra == 'yaml'", "absent")),
    Stub("cuda-toolkit", "13.0", ("nvidia-cublas; extra == 'cublas'", "nvidia-npp; extra == 'npp'")),
    Stub("nvidia-cublas", "13.1", ("nvidia-nvjitlink; platform_machine == 'x86_64'", "torch")),
    *(Stub(name, "1.0") for name in ("filelock", "nvidia-npp", "nvidia-nvjitlink", "pyyaml", "unrelated")),
)


def test_what_a_component_requires_comes_along_through_extras_and_nothing_else(tmp_path: Path) -> None:
    write_stubs(tmp_path, STACK)
    found = sorted(distribution_of(path) for path in needed_wheels(["torch"], tmp_path, TARGET))
    assert found == ["cuda-toolkit", "filelock", "nvidia-cublas", "nvidia-nvjitlink", "torch"]


def test_a_component_without_a_wheel_is_told(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="the wheel of torch is not there"):
        needed_wheels(["torch"], tmp_path, TARGET)
