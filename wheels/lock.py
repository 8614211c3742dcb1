"""Hashed requirements files: which distributions they hold, in which version, with which hashes, under which marker."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from core.errors import ConfigError
from wheels.target import Target


@dataclass(frozen=True)
class Locked:
    """One pinned requirement; ``text`` is its whole entry as the file has it."""

    name: str
    version: str
    hashes: frozenset[str]
    marker: Marker | None
    text: str


def read_lock(path: Path) -> tuple[Locked, ...]:
    """Read a file of `uv pip compile --generate-hashes`. Raises ConfigError for an entry without version or hash."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", next_move="check the stack's lock") from error
    return tuple(_locked(path, entry) for entry in entries(text))


def entries(text: str) -> list[str]:
    """Split a requirements file into its entries: comments out, continued lines joined."""
    plain = re.sub(r"(?m)^\s*#.*$|\s+#.*$", "", text)
    return [line.strip() for line in re.sub(r"\\\s*\n", " ", plain).splitlines() if line.strip()]


def _locked(path: Path, entry: str) -> Locked:
    first, *options = re.split(r"\s+--hash=", entry)
    try:
        requirement = Requirement(first)
    except InvalidRequirement as error:
        raise ConfigError(f"{path}: {first!r} is not a requirement", next_move="make the lock again") from error
    pins = [spec.version for spec in requirement.specifier if spec.operator == "=="]
    hashes = frozenset(option.strip().removeprefix("sha256:") for option in options)
    if len(pins) != 1 or not hashes:
        raise ConfigError(f"{path}: {first!r} has no exact version or no hash", next_move="make the lock again")
    return Locked(canonicalize_name(requirement.name), pins[0], hashes, requirement.marker, entry)


def for_target(locked: Iterable[Locked], target: Target) -> tuple[Locked, ...]:
    """Return the entries whose markers hold on the target."""
    environment = marker_environment(target)
    return tuple(item for item in locked if item.marker is None or item.marker.evaluate(environment))


def marker_environment(target: Target) -> Mapping[str, str]:
    """Return the PEP 508 variables of CPython on Linux for the target."""
    python = "{}.{}".format(*target.python)
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": target.architecture,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
        "extra": "",
    }
