"""Facts of one ELF file (a shared library, an extension module, a program), read by pyelftools without loading it."""

from __future__ import annotations

import hashlib
import io
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import copyfileobj
from typing import IO, Any, NamedTuple

import elftools.elf.sections
from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.enums import ENUM_ST_INFO_BIND, ENUM_ST_INFO_TYPE, ENUM_ST_VISIBILITY
from elftools.elf.gnuversions import GNUVerNeedSection

from core.errors import BuildFailed

MAGIC = b"\x7fELF"
CHUNK = 1024 * 1024
MOST_VERSIONS = 500
"""Of one library, and libraries that versions are needed of."""
LONGEST_NAME = 256 * 1024
"""Bytes of a symbol's name; those of C++ templates have some thousands."""
IN_MEMORY = 64 * 1024**2
"""Bytes up to which a member of a wheel is held in memory, not on disk."""
DEVICE_CODE = ("__nv_relfatbin", ".nv_fatbin")
"""Sections that hold GPU code: of kernels linked across files, and of all others. `.nvFatBinSegment` only points."""
_MACHINES = {
    ("EM_AARCH64", True): "aarch64",
    ("EM_X86_64", True): "x86_64",
    ("EM_PPC64", True): "ppc64le",
    ("EM_RISCV", True): "riscv64",
    ("EM_386", True): "i686",
    ("EM_ARM", True): "armv7l",
    ("EM_S390", False): "s390x",
}
# what pyelftools and zipfile raise for damaged bytes, tried by changing each one of a library
UNREADABLE = (
    *(ELFError, ArithmeticError, AssertionError, EOFError, LookupError, MemoryError, OSError, RuntimeError, ValueError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)


class _Headers(ELFFile):
    """Does not unpack the hash tables of symbols: nothing asks for them, and they take most of the time."""

    def _make_gnu_hash_section(self, section_header: Any, name: str) -> Any:
        return elftools.elf.sections.Section(section_header, name, self)

    _make_elf_hash_section = _make_gnu_hash_section


@dataclass(frozen=True)
class Section:
    """A section; ``size`` and ``offset`` in the file and ``address`` in memory in bytes, ``sha256`` in hex.

    A section without bytes in the file (`.bss`) has its size in memory and the hash of nothing.
    """

    name: str
    kind: str
    flags: int
    address: int
    offset: int
    size: int
    sha256: str = ""

    @property
    def in_file(self) -> bool:
        """Whether it has bytes in the file."""
        return self.kind != "SHT_NOBITS"

    @property
    def executable(self) -> bool:
        """Whether processors run it."""
        return bool(self.flags & 0x4)


class Symbol(NamedTuple):
    """A dynamic symbol: "STB_GLOBAL" or "STB_WEAK", "STT_FUNC" or "STT_OBJECT" and so on; ``size`` in bytes."""

    name: str
    binding: str
    kind: str
    visibility: str
    defined: bool
    size: int


@dataclass(frozen=True)
class Elf:
    """One file: ``machine`` as `uname -m` says it; ``segments`` as the program headers have them, but for offsets."""

    machine: str
    kind: str
    sections: tuple[Section, ...]
    segments: tuple[tuple[str, int, int, int, int, int], ...]
    symbols: frozenset[Symbol]
    needed: tuple[str, ...]
    """Libraries that it is linked with (DT_NEEDED)."""
    rpath: tuple[str, ...]
    """Folders that libraries are looked for in (DT_RPATH and DT_RUNPATH, split at colons)."""
    soname: str
    versions: frozenset[tuple[str, str]]
    """Needed symbol versions with their library, like ("libc.so.6", "GLIBC_2.34")."""

    @property
    def defined(self) -> frozenset[str]:
        """Names of the symbols that it gives to others."""
        return frozenset(symbol.name for symbol in self.symbols if symbol.defined)

    @property
    def undefined(self) -> frozenset[str]:
        """Names of the symbols that another library has to give; weak ones may stay missing and are left out."""
        wanted = (symbol for symbol in self.symbols if not symbol.defined and symbol.binding != "STB_WEAK")
        return frozenset(symbol.name for symbol in wanted)


def read_elf(file: IO[bytes], name: str, *, hashes: bool = False, symbols: bool = True) -> Elf:
    """Read an open ELF file; ``name`` is for messages. With ``hashes`` every section is read and hashed.

    Without ``symbols`` there are none in it: PyTorch's libraries have hundreds of thousands.

    Raises BuildFailed for what is no ELF file, is damaged or has no sections (nothing in it could be checked).
    """
    with readable(name):
        elf = _Headers(file)
        if not elf.num_sections():
            raise BuildFailed(
                f"{name} has no section headers: what is in it cannot be checked",
                next_move="leave them in (strip keeps them, sstrip does not)",
            )
        return _read(elf, file, hashes, symbols)


def read_path(path: Path, *, hashes: bool = False) -> Elf:
    """Read an ELF file as read_elf does."""
    with readable(path.name), path.open("rb") as file:
        return read_elf(file, path.name, hashes=hashes)


def device_code_sections(elf: Elf) -> tuple[Section, ...]:
    """Return the sections that hold GPU code."""
    return tuple(section for section in elf.sections if section.name in DEVICE_CODE and section.in_file)


def section_bytes(file: IO[bytes], section: Section) -> bytes:
    """Return a section's bytes as they are in the file."""
    file.seek(section.offset)
    return file.read(section.size) if section.in_file else b""


@contextmanager
def elf_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[IO[bytes] | None]:
    """Give a member of a wheel as a file that can be sought in; None when it is no ELF file.

    Libraries of a gigabyte are usual: what is larger than IN_MEMORY goes to disk.
    """
    with archive.open(info) as member:
        start = member.read(len(MAGIC))
        if start != MAGIC:
            yield None
            return
        with sought(info.file_size) as file:
            file.write(start)
            copyfileobj(member, file, CHUNK)
            file.seek(0)
            yield file


def sought(size: int) -> IO[bytes]:
    """Return an empty file for so many bytes that can be sought in, in memory or on disk; it vanishes when closed."""
    return io.BytesIO() if size <= IN_MEMORY else tempfile.TemporaryFile()


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Name the file in the error about bytes that cannot be read."""
    try:
        yield
    except UNREADABLE as error:
        raise BuildFailed(f"{name} cannot be read: {error}", next_move="build it again") from error


def _read(elf: ELFFile, file: IO[bytes], hashes: bool, symbols: bool) -> Elf:  # noqa: FBT001
    read: list[Any] = list(elf.iter_sections())
    raw = [_section(section) for section in read]
    dynamic: list[Any] = [tag for section in read if isinstance(section, DynamicSection) for tag in section.iter_tags()]
    return Elf(
        machine=_machine(elf),
        kind=str(elf["e_type"]),
        sections=tuple(_hashed(section, file) for section in raw) if hashes else tuple(raw),
        segments=tuple(_segment(segment) for segment in elf.iter_segments()),
        symbols=frozenset(_symbols(elf, read, file) if symbols else ()),
        needed=tuple(tag.needed for tag in dynamic if tag.entry.d_tag == "DT_NEEDED"),
        rpath=tuple(_folders(dynamic)),
        soname=next((tag.soname for tag in dynamic if tag.entry.d_tag == "DT_SONAME"), ""),
        versions=frozenset(_versions(read)),
    )


def _machine(elf: ELFFile) -> str:
    machine = elf["e_machine"]
    return _MACHINES.get((machine, elf.little_endian)) or f"machine {machine}"


def _section(section: Any) -> Section:
    return Section(
        name=section.name,
        kind=str(section["sh_type"]),
        flags=section["sh_flags"],
        address=section["sh_addr"],
        offset=section["sh_offset"],
        size=section["sh_size"],
    )


def _hashed(section: Section, file: IO[bytes]) -> Section:
    digest = hashlib.sha256()
    file.seek(section.offset)
    left = section.size if section.in_file else 0
    while left and (chunk := file.read(min(left, CHUNK))):
        digest.update(chunk)
        left -= len(chunk)
    return Section(**{**vars(section), "sha256": digest.hexdigest()})


def _segment(segment: Any) -> tuple[str, int, int, int, int, int]:
    keys = ("p_flags", "p_vaddr", "p_filesz", "p_memsz", "p_align")
    flags, address, in_file, in_memory, alignment = (segment[key] for key in keys)
    return str(segment["p_type"]), flags, address, in_file, in_memory, alignment


def _symbols(elf: ELFFile, sections: Sequence[Any], file: IO[bytes]) -> Iterator[Symbol]:
    """Yield the dynamic symbols that have a name.

    Not by pyelftools, which takes half a minute for a library of PyTorch; this takes a tenth of a second.
    """
    for table in (one for one in sections if one["sh_type"] == "SHT_DYNSYM"):
        strings = _bytes_of(file, sections[table["sh_link"]])
        for start, info, other, section, size in _rows(elf, _bytes_of(file, table)):
            if start:
                end = strings.find(b"\0", start, start + LONGEST_NAME)
                if end < 0:
                    raise ELFError("a symbol's name has no end")
                name = strings[start:end].decode("utf-8", "replace")
                yield Symbol(name, *_in_words(info, other), section != 0, size)


def _rows(elf: ELFFile, table: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield of each symbol where its name begins, info, other, section, size."""
    order = "<" if elf.little_endian else ">"
    if elf.elfclass == 64:
        return struct.Struct(f"{order}IBBH8xQ").iter_unpack(table)
    rows = struct.Struct(f"{order}I4xIBBH").iter_unpack(table)
    return ((name, info, other, section, size) for name, size, info, other, section in rows)


@cache
def _in_words(info: int, other: int) -> tuple[str, str, str]:
    """Return binding, kind and visibility of a symbol."""
    kinds, binding, kind = ENUM_ST_INFO_TYPE, info >> 4, info & 15
    return _word(ENUM_ST_INFO_BIND, binding), _word(kinds, kind), _word(ENUM_ST_VISIBILITY, other & 7)


def _word(table: Mapping[str, Any], value: int) -> str:
    return next((word for word, number in reversed(list(table.items())) if number == value), str(value))


def _bytes_of(file: IO[bytes], section: Any) -> bytes:
    file.seek(section["sh_offset"])
    return file.read(section["sh_size"])


def _folders(dynamic: list[Any]) -> Iterator[str]:
    for tag in dynamic:
        if tag.entry.d_tag == "DT_RPATH":
            yield from tag.rpath.split(":")
        elif tag.entry.d_tag == "DT_RUNPATH":
            yield from tag.runpath.split(":")


def _versions(sections: Iterable[Any]) -> Iterator[tuple[str, str]]:
    for section in (one for one in sections if isinstance(one, GNUVerNeedSection)):
        for library, wanted in _few(section.iter_versions()):
            yield from ((library.name, version.name) for version in _few(wanted))


def _few(found: Iterable[Any]) -> Iterator[Any]:
    """Pass on what is found, and fail where a damaged list leads back to itself for ever."""
    for place, one in enumerate(found):
        if place == MOST_VERSIONS:
            raise ELFError(f"more than {MOST_VERSIONS} symbol versions")
        yield one
