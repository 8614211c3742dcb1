"""Two builds of one recipe compared: how alike are the wheels?

1: the same bytes.
2: the same after normalising. Left out are what the canonical form decides (order, times and compression of the zip
   entries), RECORD, byte code, and of ELF files what `strip` removes or the linker signs: debug sections, symbol
   table, `.comment`, build id and debug link, and where all this lies in the file.
3: the same code: the same files are there; in every library the same executable sections, GPU code and dynamic
   symbols; every file of code (Python, CUDA sources compiled at run time, scripts) is the same. Data may differ.
0: less than that.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO

from core.errors import BuildFailed
from wheels.canonical import Entry, NotAWheel, wheel_files
from wheels.elf import DEVICE_CODE, Elf, Section, elf_member, read_elf, readable

WORST_LAST = (1, 2, 3, 0)
ZIP_FORM = "the form of the zip file, RECORD or byte code"
CHUNK = 1024 * 1024
STRIPPED = frozenset(
    {".comment", ".gnu.build.attributes", ".gnu_debugaltlink", ".gnu_debuglink", ".note.gnu.build-id"}
    | {".shstrtab", ".strtab", ".symtab", ".symtab_shndx"}
)
CODE_FILES = frozenset(
    {".c", ".cc", ".cpp", ".cu", ".cubin", ".cuh", ".fatbin", ".h", ".hpp", ".inc", ".inl", ".pth", ".ptx", ".py"}
    | {".pyc", ".pyi", ".pyx", ".sh"}
)


@dataclass(frozen=True)
class Verdict:
    """The level reached, and the first thing that keeps it from a better one, like `vllm/_C.abi3.so: .rodata`."""

    level: int
    differs: str = ""


@dataclass(frozen=True)
class Member:
    """A file in one of the two wheels."""

    archive: zipfile.ZipFile
    entry: Entry


def compare(first: Path, second: Path) -> Verdict:
    """Say how alike two wheels are. Raises BuildFailed when one of them cannot be read."""
    if _same_files(first, second):
        return Verdict(1)
    with _opened(first) as one, _opened(second) as other:
        mine, theirs = _members(one, first), _members(other, second)
        found = [verdict for name in sorted(mine | theirs) for verdict in _file(name, mine.get(name), theirs.get(name))]
    # the first of the worst
    return max([*found, Verdict(2, ZIP_FORM)], key=lambda verdict: WORST_LAST.index(verdict.level))


def _opened(wheel: Path) -> zipfile.ZipFile:
    with readable(wheel.name):
        return zipfile.ZipFile(wheel)


def _members(archive: zipfile.ZipFile, wheel: Path) -> dict[str, Member]:
    try:
        entries = wheel_files(archive)
    except NotAWheel as error:
        raise BuildFailed(f"{wheel.name}: {error}", next_move="build it again") from error
    return {entry.name: Member(archive, entry) for entry in entries if not entry.name.endswith(".dist-info/RECORD")}


def _file(name: str, one: Member | None, other: Member | None) -> Iterator[Verdict]:
    """Yield what differs between the two, each with the best level that it leaves possible."""
    if one is None or other is None:
        yield Verdict(0, f"{name}: only in one of the two")
        return
    if one.entry.executable != other.entry.executable:
        yield Verdict(3, f"{name}: its mode")
    if _same_content(one.entry, other.entry):
        return
    first, second = _elf(name, one), _elf(name, other)
    if first and second and not _is_code(name):
        yield from _library(name, first, second)
    else:
        yield Verdict(0 if first or second or _is_code(name) else 3, name)


def _is_code(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix in CODE_FILES or path.name == "entry_points.txt" or ".data/scripts/" in name


def _elf(name: str, member: Member) -> Elf | None:
    """Return a member as an ELF file; None when it is none."""
    info = member.archive.getinfo(member.entry.name)
    with readable(name), elf_member(member.archive, info) as file:
        return read_elf(file, name, hashes=True) if file else None


def _library(name: str, one: Elf, other: Elf) -> Iterator[Verdict]:
    if (one.machine, one.kind) != (other.machine, other.kind):
        yield Verdict(0, f"{name}: the machine it is for")
    if one.symbols != other.symbols:
        yield Verdict(0, f"{name}: dynamic symbols ({min(one.symbols ^ other.symbols).name})")
    mine, theirs = _by_name(one), _by_name(other)
    for key in mine | theirs:
        if verdict := _section(name, mine.get(key), theirs.get(key)):
            yield verdict
    if one.segments != other.segments:
        yield Verdict(3, f"{name}: program headers")
    yield Verdict(2, f"{name}: where its sections lie in the file")


def _by_name(elf: Elf) -> dict[tuple[str, int], Section]:
    """Return the sections by name and, as names may repeat, how many of that name came before."""
    seen: Counter[str] = Counter()
    sections = {}
    for section in elf.sections:
        sections[section.name, seen[section.name]] = section
        seen[section.name] += 1
    return sections


def _section(name: str, one: Section | None, other: Section | None) -> Verdict | None:
    """Return the verdict on one section; None where both have the same at the same address."""
    if one and other and replace(one, offset=other.offset) == other:
        return None
    section = one or other
    assert section is not None
    if section.name in STRIPPED or section.name.startswith((".debug_", ".zdebug_")):
        return Verdict(2, f"{name}: {section.name}")
    same = one and other and (one.sha256, one.size) == (other.sha256, other.size)
    if same:
        return Verdict(3, f"{name}: {section.name} (its address or flags)")
    return Verdict(0 if section.executable or section.name in DEVICE_CODE else 3, f"{name}: {section.name}")


def _same_content(one: Entry, other: Entry) -> bool:
    with readable(one.name):
        return one.size == other.size and _same_streams(one.open, other.open)


def _same_files(first: Path, second: Path) -> bool:
    with readable(f"{first.name} or {second.name}"):
        return _same_streams(lambda: first.open("rb"), lambda: second.open("rb"))


def _same_streams(one: Callable[[], IO[bytes]], other: Callable[[], IO[bytes]]) -> bool:
    with one() as first, other() as second:
        while (chunk := first.read(CHUNK)) == second.read(CHUNK):
            if not chunk:
                return True
    return False
