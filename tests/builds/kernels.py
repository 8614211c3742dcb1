"""Three of vLLM's real CUDA files, compiled for a Spark's GPU in the namespace of a job, and one for aarch64.

Options are those of vLLM's CMake files but for two: C++20, because torch 2.14's headers want it (vLLM 0.11.2 was
written for 2.9 and C++17), and 12.1 itself, where its list of architectures ends at 12.0. The NVFP4 file wants the
suffix that vLLM gives it too: ptxas makes no `cvt` to e2m1x2 for plain sm_121.
"""

from __future__ import annotations

import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from build.job import CUDA, FIXED
from build.toolkit import Toolkit, toolkit_folder
from tests.builds.workshop import Inside, Unfinished, Workshop

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


def compile_all(unfinished: Unfinished, workshop: Workshop, at_once: int) -> None:
    """Compile the files into the job's out/, so many at a time; a workshop makes the toolkit for aarch64."""
    workshop.builds("probe-only", "aarch64", "--toolkit")
    here = Inside(unfinished.job, unfinished.cuda)
    across = Inside(unfinished.job, toolkit_folder(Toolkit("13.0", "x86_64", "aarch64")))
    commands = ((across, CROSSED.argv), (here, ACTIVATION.argv), (here, NVFP4.argv), (here, UTILITIES.argv))
    with ThreadPoolExecutor(at_once) as some:
        ran = [some.submit(inside, *argv) for inside, argv in (*commands, (here, allocator()))]
    assert [one.result().code for one in ran] == [0] * len(ran)
