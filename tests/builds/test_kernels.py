"""What comes of vLLM's CUDA files (kernels.py) when they are compiled for a Spark's GPU, and for aarch64."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.beforehand import OBJECTS, Beforehand
from tests.builds.kernels import ACTIVATION, ALLOCATOR, CROSSED, NVFP4, UTILITIES, Source, allocator, compile_all
from tests.builds.workshop import Inside, Unfinished, Workshop
from wheels.elf import read_path
from wheels.fatbin import device_code
from wheels.manifest import sha256_of

pytestmark = [
    pytest.mark.builds,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the lock of torch for CUDA 13 is for x86_64"),
]


@pytest.fixture(scope="module")
def objects(before: Beforehand | None, unfinished: Unfinished, workshop: Workshop) -> Path:
    """Return the folder of the objects; they were begun with the session, or are compiled now, two at a time."""
    if before is None or before.wait(OBJECTS) is None:
        compile_all(unfinished, workshop, 2)
    return unfinished.job / "out"


@pytest.fixture
def other(unfinished: Unfinished, tmp_path: Path) -> Iterator[Inside]:
    """Return the same source, elsewhere on the disk and under a longer name."""
    job = tmp_path / "a-folder-with-another-name"
    for name in ("in", "source/csrc"):
        shutil.copytree(unfinished.job / name, job / name, ignore=shutil.ignore_patterns("*.whl", "*.tar"))
    for name in ("out", "tmp"):
        (job / name).mkdir()
    yield Inside(job, unfinished.cuda)
    shutil.rmtree(job)


@pytest.mark.parametrize(("source", "code"), [(ACTIVATION, "sm_121"), (NVFP4, "sm_121f")])
def test_its_kernels_compile_for_a_spark(objects: Path, source: Source, code: str) -> None:
    made = objects / source.object
    assert {str(one) for one in device_code(made)} == {code}
    assert all(one.runs_on("12.1") for one in device_code(made))
    assert read_path(made).machine == "x86_64"


def test_its_memory_allocator_compiles_against_the_driver(objects: Path) -> None:
    """Compiled only: libcuda comes with the driver, and there is none here."""
    made = objects / ALLOCATOR
    assert read_path(made).machine == "x86_64"
    assert b"cuMemAddressReserve" in made.read_bytes()


def test_a_kernel_compiles_here_for_aarch64(objects: Path) -> None:
    made = objects / CROSSED.object
    assert read_path(made).machine == "aarch64"
    assert {str(one) for one in device_code(made)} == {"sm_121f"}


def test_two_folders_give_the_same_objects(objects: Path, other: Inside) -> None:
    """The files without torch's headers, which take seconds: one of C++, one of CUDA."""
    other(*allocator())
    other(*UTILITIES.argv)
    for name in (ALLOCATOR, UTILITIES.object):
        assert sha256_of(other.job / "out" / name) == sha256_of(objects / name)
