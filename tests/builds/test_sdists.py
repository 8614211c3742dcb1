"""flash-attn and flashinfer-python from their source distributions. No CUDA code is compiled for them here."""

from __future__ import annotations

import platform
import zipfile
from pathlib import Path

import pytest

from tests.builds.workshop import Fresh, Workshop
from wheels.fatbin import device_code_of_wheel

pytestmark = pytest.mark.builds

STACK = "sdists"
X86 = platform.machine()
NAMES = {"flash-attn": "flash_attn", "flashinfer-python": "flashinfer_python"}


@pytest.fixture(scope="module")
def made(workshop: Workshop) -> dict[str, Path]:
    """Return both wheels, each built twice."""
    workshop.builds(STACK, X86, "--verify")
    return {name: workshop.wheel(STACK, X86, stem) for name, stem in NAMES.items()}


@pytest.mark.parametrize("name", NAMES)
def test_without_cuda_code_both_build_to_the_same_bytes_twice(
    made: dict[str, Path], workshop: Workshop, name: str
) -> None:
    told = workshop.manifest(STACK, X86)[name]
    assert (told["level"], told["differs"]) == (1, "")
    assert made[name].name.endswith("-py3-none-any.whl")
    assert device_code_of_wheel(made[name]) == {}


def test_flashinfer_carries_the_sources_of_its_kernels(made: dict[str, Path]) -> None:
    with zipfile.ZipFile(made["flashinfer-python"]) as archive:
        names = archive.namelist()
    assert "flashinfer/data/csrc/batch_decode.cu" in names
    assert any(name.startswith("flashinfer/data/cutlass/include/") for name in names)


def test_both_install_and_what_needs_no_library_is_read(made: dict[str, Path], tmp_path: Path) -> None:
    """Neither imports as a whole: flash_attn wants the library that was left out, flashinfer wants apache-tvm-ffi.

    That package, like nvidia-cutlass-dsl, compiles and loads kernels; without a GPU it would show nothing.
    """
    fresh = Fresh.made(tmp_path / "environment", *made.values())
    version = "import importlib.metadata as m; print(m.version({!r}))"
    assert fresh.python(version.format("flash-attn")) == "2.7.4.post1"
    assert fresh.python(version.format("flashinfer-python")) == "0.5.2"
    (site,) = (tmp_path / "environment" / "lib").glob("python3.*/site-packages")
    namespace: dict[str, str] = {}
    exec((site / "flashinfer" / "_build_meta.py").read_text(encoding="utf-8"), namespace)
    assert namespace["__version__"] == "0.5.2"
    missing = "try:\n import flash_attn\nexcept ModuleNotFoundError as error:\n print(error.name)"
    assert fresh.python(missing) in {"torch", "flash_attn_2_cuda"}
