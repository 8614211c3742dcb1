"""Can this machine build this recipe, and with how many compilers at once? Facts in; findings and a number out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from build.cross import cross_packages
from build.recipe import Recipe
from core.facts import NodeFacts
from core.findings import Finding, apt_install
from core.host import CONTROLLER
from core.plan import megabytes
from wheels.target import Target

GIB = 1024**3
RESERVE = 4 * GIB
"""Memory that a build leaves to sshd and the system; on small machines an eighth of all."""


@dataclass(frozen=True)
class Jobs:
    """How many compilers run at once, why, and the memory limit (bytes) of the build as a whole."""

    count: int
    words: str
    memory: int


def jobs(recipe: Recipe, seen: NodeFacts) -> Jobs:
    """Return how many jobs fit the machine's cores and the memory that is free on it now; at least one."""
    memory = memory_limit(seen)
    by_cores, by_memory = seen.cores // recipe.threads_per_job, memory // recipe.memory_per_job
    count = max(1, min(by_cores, by_memory))
    threads = f", {recipe.threads_per_job} threads a job" if recipe.threads_per_job > 1 else ""
    words = (
        f"{_counted(count, 'job')}: {_counted(seen.cores, 'core')}, "
        f"{_gib(seen.memory_available)} available, {_gib(recipe.memory_per_job)} a job{threads}"
    )
    return Jobs(count, words, memory)


def memory_limit(seen: NodeFacts) -> int:
    """Return the memory that a build may take (bytes): what is available less what the system itself needs."""
    return max(seen.memory_available - min(RESERVE, seen.memory_total // 8), seen.memory_available // 2)


def needed_packages(recipe: Recipe, seen: NodeFacts, target: Target) -> tuple[str, ...]:
    """Return the Debian packages that the machine must have: what a probe has to ask for."""
    cross = cross_packages() if seen.architecture != target.architecture else ()
    return (*recipe.toolchain.packages, *cross)


def examine(
    recipe: Recipe,
    architectures: Sequence[str],
    seen: NodeFacts,
    node: str,
    target: Target,
    *,
    toolkit: bool = False,
) -> Iterator[Finding]:
    """Find what keeps a machine from building a recipe; what was not asked of it is not held against it.

    ``architectures`` are GPU architectures as nvcc names them. ``toolkit``: CUDA comes from wheels (build/toolkit.py),
    not from the machine.
    """
    yield from _host(recipe, seen, node, target)
    yield from _python(recipe, seen, node, target)
    yield from _room(recipe, seen, node)
    if recipe.toolchain.cuda and architectures and not toolkit:
        yield from _cuda(recipe.toolchain.cuda, architectures, seen, node)


def _host(recipe: Recipe, seen: NodeFacts, node: str, target: Target) -> Iterator[Finding]:
    wanted = recipe.toolchain
    if seen.architecture != target.architecture and not recipe.cross:
        yield Finding(
            node,
            f"it is {seen.architecture}, and {recipe.title} cannot be compiled on it for {target.architecture}",
            f"build on a machine that is {target.architecture}: invoke build-wheels --on NODE",
        )
    missing = [name for name in needed_packages(recipe, seen, target) if name not in seen.packages]
    programs, own = seen.toolchain.programs, seen.architecture == target.architecture
    if own and (wanted.compiler or wanted.gcc) and programs is not None and "g++" not in programs:
        missing.insert(0, "g++")
    if missing:
        yield Finding(node, f"Debian packages are missing: {' '.join(missing)}", apt_install(missing, node))
    yield from _gcc(recipe, seen, node)


def _gcc(recipe: Recipe, seen: NodeFacts, node: str) -> Iterator[Finding]:
    found, wanted = seen.toolchain.gcc, recipe.toolchain.gcc
    if not found or wanted is None or wanted[0] <= int(found.split(".")[0]) <= wanted[1]:
        return
    nearest = wanted[0] if int(found.split(".")[0]) < wanted[0] else wanted[1]
    packages = (f"gcc-{nearest}", f"g++-{nearest}")
    yield Finding(
        node,
        f"its GCC is {found}; {recipe.title} builds with GCC {wanted[0]} to {wanted[1]}",
        f"{apt_install(packages, node)}, then make it the default with update-alternatives",
    )


def _python(recipe: Recipe, seen: NodeFacts, node: str, target: Target) -> Iterator[Finding]:
    needed = _python_of(recipe.expected.tags.replace("{python}", "{}{}".format(*target.python)))
    own = "{}.{}".format(*seen.python)
    if needed and needed != seen.python:
        yield Finding(
            node,
            "its Python is {}, the wheel of {} is for {}.{}".format(own, recipe.title, *needed),
            "build on a machine with Python {}.{}: invoke build-wheels --on NODE".format(*needed),
        )
    if recipe.toolchain.headers and seen.toolchain.headers is False:
        yield Finding(node, f"Python {own} has no C headers (Python.h)", apt_install([f"python{own}-dev"], node))


def _python_of(tags: str) -> tuple[int, int] | None:
    """Return the one Python that a wheel with these tags is for; None where it is for several (abi3, py3)."""
    found = re.match(r"cp(\d)(\d+)-cp\d+-", tags)
    return (int(found[1]), int(found[2])) if found else None


def _room(recipe: Recipe, seen: NodeFacts, node: str) -> Iterator[Finding]:
    if seen.disk_free < recipe.disk:
        yield Finding(
            node,
            f"the disk has {megabytes(seen.disk_free)} free, building {recipe.title} takes {megabytes(recipe.disk)}",
            "free space there, then run the same command again",
        )
    if memory_limit(seen) < recipe.memory_per_job:
        yield Finding(
            node,
            f"{_gib(seen.memory_available)} of memory are available, one compiler of {recipe.title} takes "
            f"{_gib(recipe.memory_per_job)} and the system its share",
            "end what uses memory there" + ("" if node == CONTROLLER else " (a model that is served: invoke stop)"),
        )


def _cuda(release: str, architectures: Sequence[str], seen: NodeFacts, node: str) -> Iterator[Finding]:
    package = "cuda-toolkit-" + release.replace(".", "-")
    own = ", or take it from wheels: --toolkit" if node == CONTROLLER else ""
    tools = f"{apt_install([package], node)} (from NVIDIA's repository, {_DOWNLOADS}){own}"
    if not seen.cuda:
        yield Finding(node, f"there is no CUDA toolkit in /usr/local/cuda; CUDA {release} is needed", tools)
        return
    if seen.cuda != release:
        yield Finding(node, f"its nvcc is of CUDA {seen.cuda}, the recipe needs {release}", f"{tools}; {_LINK}")
        return
    for name, known in (("nvcc", seen.toolchain.nvcc_codes), ("ptxas", seen.toolchain.ptxas_codes)):
        unknown = [f"sm_{one}" for one in architectures if known and not _known(one, known)]
        if unknown:
            yield Finding(
                node, f"its {name} knows no {' and no '.join(unknown)}", f"install CUDA {release} anew: {tools}"
            )
    if seen.toolchain.ptxas_codes == frozenset():
        yield Finding(node, "its nvcc has no ptxas beside it", f"install CUDA {release} anew: {tools}")


_DOWNLOADS = "developer.nvidia.com/cuda-toolkit-archive"
_LINK = "where several are installed, /usr/local/cuda is a link: let it lead to that one"


def _known(architecture: str, codes: frozenset[str]) -> bool:
    """Say whether a tool makes code for an architecture; nvcc lists no variants, so there the plain one counts."""
    variants = any(code[-1].isalpha() for code in codes)
    return f"sm_{architecture if variants else architecture.rstrip('af')}" in codes


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _gib(size: int) -> str:
    return f"{size / GIB:.0f} GiB" if size >= 10 * GIB else f"{size / GIB:.1f} GiB".replace(".0 ", " ")
