"""What a build needs of its own stack: the wheels of components, and what those require of the same stack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from email.parser import BytesParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from core.errors import BuildFailed
from wheels.intact import metadata_of
from wheels.lock import marker_environment
from wheels.target import Target


def needed_wheels(names: Iterable[str], place: Path, target: Target) -> tuple[Path, ...]:
    """Return the wheels in ``place`` of these components and of all that they require there, on a machine like this.

    What is not in the stack is left to the recipe's own build requirements. Raises BuildFailed for a component whose
    wheel is not there.
    """
    there: dict[str, Path] = {distribution_of(path): path for path in sorted(place.glob("*.whl"))}
    direct = [canonicalize_name(name) for name in names]
    missing = [name for name in direct if name not in there]
    if missing:
        raise BuildFailed(f"the wheel of {', '.join(missing)} is not there", next_move="run the same command again")
    found: dict[str, Path] = {}
    seen: set[tuple[str, str]] = set()
    waiting: list[tuple[str, str]] = [(name, "") for name in direct]
    while waiting:
        name, extra = waiting.pop()
        if name in there and (name, extra) not in seen:
            seen.add((name, extra))
            found[name] = there[name]
            waiting += requirements_of(there[name], extra, target)
    return tuple(found.values())


def requirements_of(wheel: Path, extra: str, target: Target) -> Iterator[tuple[str, str]]:
    """Return what a wheel with an extra (empty: without one) requires on a target: names, each with "" and its extras.

    torch asks for CUDA's libraries so: cuda-toolkit[cublas,cufft].
    """
    environment = {**marker_environment(target), "extra": extra}
    for line in BytesParser().parsebytes(metadata_of(wheel)).get_all("Requires-Dist", []):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            yield from ((canonicalize_name(requirement.name), wanted) for wanted in ("", *sorted(requirement.extras)))


def distribution_of(wheel: Path) -> str:
    """Return the canonical name of a wheel file's distribution."""
    return str(parse_wheel_filename(wheel.name)[0])
