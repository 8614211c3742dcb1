"""Three of vLLM's real CUDA files, compiled for a Spark's GPU in the namespace of a job, and one for aarch64.

Options are those of vLLM's CMake files but for two: C++20, because torch 2.14's headers want it (vLLM 0.11.2 was
written for 2.9 and C++17), and 12.1 itself, where its list of architectures ends at 12.0. The NVFP4 file wants the
suffix that vLLM gives it too: ptxas makes no `cvt` to e2m1x2 for plain sm_121.
"""

from __future__ import annotations

import platform
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from build.job import CUDA, FIXED
from build.toolkit import Toolkit, toolkit_folder
from tests.builds.workshop import Inside, Unfinished, Workshop
from wheels.elf import read_path
from wheels.fatbin import device_code
from wheels.manifest import sha256_of

pytestmark = [
    pytest.mark.builds,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the lock of torch for CUDA 13 is for x86_64"),
]

CSRC = FIXED / "source" / "csrc"
SITE = FIXED / "venv" / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
HEADERS = (CUDA / "include", SITE / "torch/include", SITE / "torch/include/torch/csrc/api/include")
LIBRARIES = SITE / "nvidia/cu13/include"
"""Headers of cuBLAS and others: a toolkit for a cross build has none."""
COMMON = ("-O2", "-DNDEBUG", "-std=c++20", f"-I{CSRC}")
NVCC = ("nvcc", *COMMON, "-Xcompiler=-fPIC", "--expt-relaxed-constexpr", "-DENABLE_FP8", "-DENABLE_NVFP4_SM120=1")


@dataclass(frozen=True)
class Source:
    """A file below csrc/ and the architecture that it is compiled for."""

    path: str
    architecture: str = "121"
    crossed: bool = False

    @property
    def object(self) -> str:
        """The name of what is made of it."""
        return f"{Path(self.path).stem}{'-aarch64' if self.crossed else ''}.o"

    @property
    def argv(self) -> tuple[str, ...]:
        """The command that compiles it."""
        code = f"-gencode=arch=compute_{self.architecture},code=sm_{self.architecture}"
        host = ("-ccbin=aarch64-linux-gnu-g++",) if self.crossed else ()
        folders = [word for folder in (*HEADERS, LIBRARIES) for word in ("-isystem", str(folder))]
        module = ("-DTORCH_EXTENSION_NAME=_C", "-DPy_LIMITED_API=3")
        files = ("-c", str(CSRC / self.path), "-o", str(FIXED / "out" / self.object))
        return (*NVCC, code, *host, *module, *folders, *files)


ACTIVATION = Source("activation_kernels.cu")
NVFP4 = Source("quantization/fp4/nvfp4_quant_kernels.cu", "121f")
CROSSED = Source("quantization/fp4/nvfp4_quant_kernels.cu", "121f", crossed=True)
UTILITIES = Source("cuda_utils_kernels.cu")
ALLOCATOR = "cumem_allocator.o"


def allocator() -> tuple[str, ...]:
    """Return the command that compiles the memory allocator, which is C++ against CUDA's driver."""
    folders = ("-isystem", str(CUDA / "include"), "-isystem", sysconfig.get_path("include"))
    names = ("-DTORCH_EXTENSION_NAME=cumem_allocator", "-DPy_LIMITED_API=0x03080000", "-fPIC")
    return ("g++", *COMMON, *names, *folders, "-c", str(CSRC / "cumem_allocator.cpp"), "-o", f"{FIXED}/out/{ALLOCATOR}")


@pytest.fixture(scope="module")
def objects(unfinished: Unfinished, workshop: Workshop) -> Path:
    """Compile the files, two at a time, and return the folder of the objects."""
    workshop.builds("probe-only", "aarch64", "--toolkit")  # leaves the toolkit that compiles for aarch64
    here = Inside(unfinished.job, unfinished.cuda)
    across = Inside(unfinished.job, toolkit_folder(Toolkit("13.0", "x86_64", "aarch64")))
    with ThreadPoolExecutor(2) as both:
        commands = ((across, CROSSED.argv), (here, ACTIVATION.argv), (here, NVFP4.argv), (here, UTILITIES.argv))
        ran = [both.submit(inside, *argv) for inside, argv in (*commands, (here, allocator()))]
    assert [one.result().code for one in ran] == [0] * len(ran)
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
