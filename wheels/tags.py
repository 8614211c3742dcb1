"""Tags of wheels (PEP 425, PEP 600): which ones a target takes, and which glibc a file name promises."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache

from packaging.tags import Tag, compatible_tags, cpython_tags

from wheels.target import Target

LEGACY = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
"""Older names of platforms and the glibc that they stand for."""
_OLDEST = {"x86_64": 5, "i686": 5}
_MANYLINUX = re.compile(r"manylinux_(\d+)_(\d+)_(?P<machine>\w+)")


@cache
def supported(architecture: str, python: tuple[int, int], glibc: tuple[int, int]) -> frozenset[Tag]:
    """Return every tag that an installer takes there."""
    platforms = list(_platforms(architecture, glibc))
    interpreter = "cp{}{}".format(*python)
    return frozenset(
        (
            *cpython_tags(python, abis=[interpreter], platforms=platforms),
            *compatible_tags(python, interpreter, platforms),
        )
    )


def fits(tags: Iterable[Tag], target: Target) -> bool:
    """Say whether an installer on the target takes a wheel with these tags."""
    return not supported(target.architecture, target.python, target.glibc).isdisjoint(tags)


def _platforms(architecture: str, glibc: tuple[int, int]) -> Iterator[str]:
    for minor in range(glibc[1], _OLDEST.get(architecture, 17) - 1, -1):
        yield f"manylinux_{glibc[0]}_{minor}_{architecture}"
    yield from (f"{name}_{architecture}" for name, least in LEGACY.items() if least <= glibc)
    yield f"linux_{architecture}"


def promised_glibc(tags: Iterable[Tag]) -> tuple[int, int] | None:
    """Return the oldest glibc that the tags say is enough; None when they speak of none."""
    found = [version for tag in tags if (version := _glibc(tag.platform))]
    return min(found, default=None)


def _glibc(platform: str) -> tuple[int, int] | None:
    match = _MANYLINUX.fullmatch(platform)
    if match:
        return int(match[1]), int(match[2])
    return next((version for name, version in LEGACY.items() if platform.startswith(f"{name}_")), None)


def stable_abi_since(tags: Iterable[Tag]) -> tuple[int, int] | None:
    """Return the oldest Python that a wheel of the stable ABI promises to run on; None for other wheels."""
    names = [re.fullmatch(r"cp(\d)(\d+)", tag.interpreter) for tag in tags if tag.abi == "abi3"]
    return min(((int(name[1]), int(name[2])) for name in names if name), default=None)
