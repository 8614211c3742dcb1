"""What a wheel says of itself: name and version in METADATA, tags in WHEEL, and the file name that they give."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from typing import Literal

from packaging.tags import Tag, parse_tag
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from wheels.canonical import NotAWheel

MAGIC = b"\x7fELF"
HEADER = 20
"""Bytes at the beginning of an ELF file that say what machine it is for."""
_MACHINES = {
    (3, "little"): "i686",
    (21, "little"): "ppc64le",
    (22, "big"): "s390x",
    (40, "little"): "armv7l",
    (62, "little"): "x86_64",
    (183, "little"): "aarch64",
    (243, "little"): "riscv64",
    (258, "little"): "loongarch64",
}
_LINUX = re.compile(r"(?:linux|manylinux\d+|manylinux_\d+_\d+|musllinux_\d+_\d+)_(?P<machine>\w+)")
_WORD = re.compile(r"[A-Za-z0-9_.]+")


@dataclass(frozen=True)
class Identity:
    """What METADATA and WHEEL say; ``version`` as they write it, ``tags`` one by one, ``build`` empty without one."""

    name: str
    version: str
    tags: frozenset[Tag]
    build: str
    root_is_purelib: bool

    @property
    def filename(self) -> str:
        """The name of the wheel's file: normalised, the tags as compressed sets in alphabetical order."""
        name = canonicalize_name(self.name).replace("-", "_")
        build = f"-{self.build}" if self.build else ""
        tags = "-".join(".".join(sorted(found)) for found in _sets(self.tags))
        return f"{name}-{Version(self.version)}{build}-{tags}.whl"


def _sets(tags: Iterable[Tag]) -> tuple[set[str], set[str], set[str]]:
    every = [(tag.interpreter, tag.abi, tag.platform) for tag in tags]
    return {tag[0] for tag in every}, {tag[1] for tag in every}, {tag[2] for tag in every}


def identify(metadata: bytes, wheel: bytes, folder: str) -> Identity:
    """Read METADATA and WHEEL of the .dist-info ``folder``. Raises NotAWheel where they do not agree or lack tags."""
    about, how = (BytesParser().parsebytes(data, headersonly=True) for data in (metadata, wheel))
    name, version = _one(about, "METADATA", "Name"), _one(about, "METADATA", "Version")
    require_same(folder.removesuffix(".dist-info"), name, version)
    if not _one(how, "WHEEL", "Wheel-Version").startswith("1."):
        raise NotAWheel(f"its WHEEL is of a version that nobody knows yet: {how['Wheel-Version'][:20]!r}")
    found = Identity(
        name=name,
        version=version,
        tags=_tags(how.get_all("Tag", [])),
        build=(how.get("Build") or "").strip(),
        root_is_purelib=_one(how, "WHEEL", "Root-Is-Purelib").lower() == "true",
    )
    _require_filename(found)
    return found


def _one(message: Message, file: str, key: str) -> str:
    values = message.get_all(key, [])
    if len(values) != 1 or not str(values[0]).strip():
        raise NotAWheel(f"its {file} says {len(values)} times what its {key} is")
    return str(values[0]).strip()


def require_same(pair: str, name: str, version: str) -> None:
    """Refuse NAME-VERSION, as folders are called, when it is not this distribution. Raises NotAWheel."""
    own_name, _, own_version = pair.rpartition("-")
    if _normalised(own_name, own_version.replace("_", "-")) != _normalised(name, version):
        raise NotAWheel(f"it calls itself {pair[:80]!r}, and {f'{name}-{version}'[:80]!r}")


def _normalised(name: str, version: str) -> tuple[str, Version]:
    try:
        return canonicalize_name(name), Version(version)
    except InvalidVersion as error:
        raise NotAWheel(f"{version[:40]!r} is no version") from error


def _tags(lines: Iterable[str]) -> frozenset[Tag]:
    tags: set[Tag] = set()
    for line in (str(line).strip() for line in lines):
        if line.count("-") != 2 or not all(_WORD.fullmatch(part) for part in line.split("-")):
            raise NotAWheel(f"its WHEEL has a tag that is none: {line[:60]!r}")
        tags |= _parsed(line)
    if not tags:
        raise NotAWheel("its WHEEL has no tags: nobody knows where it runs")
    return frozenset(tags)


def _parsed(line: str) -> frozenset[Tag]:
    try:
        return parse_tag(line)
    except ValueError as error:
        raise NotAWheel(f"its WHEEL has a tag that is none: {line[:60]!r}") from error


def _require_filename(found: Identity) -> None:
    """Refuse tags that no file name can say, and a build number that is none."""
    if {Tag(*parts) for parts in itertools.product(*_sets(found.tags))} != found.tags:
        said = ", ".join(sorted(map(str, found.tags)))
        raise NotAWheel(f"no file name says its tags, and only them: {said[:200]}")
    if found.build and not re.fullmatch(r"\d[A-Za-z0-9_]*", found.build):
        raise NotAWheel(f"its WHEEL has a build number that is none: {found.build[:20]!r}")
    try:
        parse_wheel_filename(found.filename)
    except ValueError as error:
        raise NotAWheel(f"a wheel cannot be called {found.filename[:80]!r}") from error


def machine_of(header: bytes) -> str:
    """Return the machine, as `uname -m` says it, that an ELF file is for; ``header`` is how the file begins.

    It is empty for what is no ELF file, and for code of devices (CUDA's cubin files are ELF files).
    """
    if len(header) < HEADER or not header.startswith(MAGIC):
        return ""
    order: Literal["big", "little"] = "big" if header[5] == 2 else "little"
    return _MACHINES.get((int.from_bytes(header[18:20], order), order), "")


def require_tags_fit(tags: frozenset[Tag], name: str, machine: str) -> None:
    """Refuse the file ``name``, an ELF file for ``machine``, in a wheel whose tags say something else.

    Raises NotAWheel.
    """
    platforms = {tag.platform for tag in tags}
    if "any" in platforms:
        raise NotAWheel(f"its tags say that it runs anywhere, and {name} is for {machine} only")
    matches = (_LINUX.fullmatch(platform) for platform in platforms)
    machines = {"armv7l" if found["machine"] == "armv6l" else found["machine"] for found in matches if found}
    if machine not in machines:
        raise NotAWheel(f"its tags say {', '.join(sorted(platforms))}, and {name} is for {machine}")
