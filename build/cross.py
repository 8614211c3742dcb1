"""Compile on x86_64 for aarch64: Debian's cross compiler, nvcc with it as its host compiler, the target's toolkit."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from core.bootstrap import PACKAGES, read_groups
from core.config import ROOT
from core.errors import UsageError

PAIRS = {("x86_64", "aarch64")}
"""Machine that compiles and machine that it compiles for."""


def cross_environment(machine: str, target: str, *, folder: PurePosixPath, cuda: PurePosixPath) -> dict[str, str]:
    """Return the variables that make a build on ``machine`` compile for ``target``; none where they are the same.

    ``folder`` is where the toolchain file lies (under its own name), ``cuda`` the toolkit, both as the build sees them.
    Raises UsageError for machines that nothing here compiles between.
    """
    if machine == target:
        return {}
    tool = f"{_triplet(machine, target)}-"
    return {
        "CC": f"{tool}gcc",
        "CXX": f"{tool}g++",
        "AR": f"{tool}ar",
        "STRIP": f"{tool}strip",
        "LDSHARED": f"{tool}gcc -shared",
        "CMAKE_TOOLCHAIN_FILE": str(folder / toolchain_file(target).name),
        "CUDACXX": str(cuda / "bin" / "nvcc"),
        "CUDAHOSTCXX": f"{tool}g++",  # CMake reads this one,
        "NVCC_CCBIN": f"{tool}g++",  # and nvcc itself that one
        "_PYTHON_HOST_PLATFORM": f"linux-{target}",  # the wheel's tag, through sysconfig
    }


def toolchain_file(target: str) -> Path:
    """Return the CMake toolchain file for a target; it goes into the job."""
    return ROOT / "build" / "toolchains" / f"{target}.cmake"


def strip_program(machine: str, target: str) -> str:
    """Return the `strip` that knows the target's libraries."""
    return "strip" if machine == target else f"{_triplet(machine, target)}-strip"


def cross_packages() -> tuple[str, ...]:
    """Return the Debian packages that a cross build needs on this host."""
    return tuple(read_groups(PACKAGES)["cross"])


def _triplet(machine: str, target: str) -> str:
    if (machine, target) not in PAIRS:
        raise UsageError(
            f"nothing here compiles on {machine} for {target}",
            next_move=f"build on a machine that is {target}: invoke build-wheels --on NODE",
        )
    return f"{target}-linux-gnu"
