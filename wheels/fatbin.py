"""GPU architectures inside shared libraries, read from the headers of NVIDIA's fat binaries; no CUDA needed.

The format is nobody's published one: it was found by comparing files with what `cuobjdump` says of them, and a test
does so again. All numbers are little endian. A container: magic, u16 version 1, u16 header size 16, u64 size of what
follows. In it one entry after another: u16 kind at 0 (1 PTX, 2 machine code; others are left out), u32 header size at
4, u64 payload size at 8, u32 architecture at 28 (121), u64 flags at 40 (0x100000 is suffix `a`, 0x200000 is `f`).
Payloads may be compressed; headers never are.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from core.errors import BuildFailed
from wheels.elf import Elf, device_code_sections, elf_member, read_elf, readable
from wheels.members import of_each

MAGIC = b"\x50\xed\x55\xba"
HEADER = struct.Struct("<4sHHQ")
ENTRY = struct.Struct("<H2xIQ12xI8xQ16x")
KINDS: dict[int, Literal["ptx", "sass"]] = {1: "ptx", 2: "sass"}
CHUNK = 4096


@dataclass(frozen=True, order=True)
class Code:
    """Code for one architecture: machine code ("sass") or the text that the driver compiles at first use ("ptx").

    ``number`` is 121 for compute capability 12.1. The suffix `a` ties code to exactly that architecture, `f` to its
    family from that member on.
    """

    number: int
    suffix: Literal["", "a", "f"]
    kind: Literal["sass", "ptx"]

    def __str__(self) -> str:
        return f"{'sm' if self.kind == 'sass' else 'compute'}_{self.number}{self.suffix}"

    def runs_on(self, capability: str) -> bool:
        """Return whether a GPU of this compute capability ("12.1") runs it.

        Machine code runs on its own architecture and, without `a`, on later ones of the same major number. PTX without
        a suffix runs on its own architecture and every later one. PTX with a suffix does not count: it would run on
        few GPUs only, and a wheel that relies on it was built for another one.
        """
        device = tuple(int(part) for part in capability.split("."))
        own = divmod(self.number, 10)
        if self.kind == "ptx":
            return not self.suffix and own <= device
        return own == device or (self.suffix != "a" and own[0] == device[0] and own <= device)


def runs_on(codes: Iterable[Code], capability: str) -> bool:
    """Return whether a library with this GPU code runs on a GPU of this compute capability ("12.1")."""
    return any(code.runs_on(capability) for code in codes)


def in_words(codes: Iterable[Code]) -> str:
    """Return the codes as people read them, in order: `sm_120f, sm_121, compute_121`."""
    return ", ".join(str(code) for code in sorted(codes, key=lambda code: (code.kind == "ptx", code)))


def device_code(path: Path) -> frozenset[Code]:
    """Return what GPU code a shared library holds. Raises BuildFailed when it cannot be read."""
    with readable(path.name), path.open("rb") as file:
        return device_code_in(file, path.name)


def device_code_of_wheel(wheel: Path) -> dict[str, frozenset[Code]]:
    """Return the libraries of a wheel that hold GPU code, each with it, by their name in the wheel.

    Several members are unpacked at once. Raises BuildFailed when it cannot be read.
    """
    with readable(wheel.name), zipfile.ZipFile(wheel) as archive:
        members = archive.infolist()
        found = of_each(members, lambda info: _code_of(archive, info, wheel.name))
        return {info.filename: codes for info, codes in zip(members, found, strict=True) if codes}


def _code_of(archive: zipfile.ZipFile, info: zipfile.ZipInfo, wheel: str) -> frozenset[Code]:
    name = f"{wheel}: {info.filename}"
    with readable(name), elf_member(archive, info) as file:
        return device_code_in(file, name) if file else frozenset()


def device_code_in(file: IO[bytes], name: str) -> frozenset[Code]:
    """Return what GPU code an open ELF file holds; ``name`` is for messages."""
    return device_code_of(file, read_elf(file, name, symbols=False), name)


def device_code_of(file: IO[bytes], elf: Elf, name: str) -> frozenset[Code]:
    """Return what GPU code an open ELF file holds of which ``elf`` was read already."""
    sections = device_code_sections(elf)
    return frozenset(
        code
        for section in sections
        for code in codes_between(file, section.offset, section.offset + section.size, name)
    )


def codes_between(file: IO[bytes], start: int, end: int, name: str) -> Iterator[Code]:
    """Find the containers between two offsets and yield their codes. Raises BuildFailed for what is not as known."""
    while (found := _find(file, start, end)) is not None:
        file.seek(found)
        _, version, header, size = HEADER.unpack(_exactly(file, HEADER.size, name))
        first, start = found + HEADER.size, found + HEADER.size + size
        if version != 1 or header != HEADER.size or start > end:
            raise _unknown(name, f"a container of version {version}, header {header}, size {size}")
        yield from _entries(file, first, start, name)


def _entries(file: IO[bytes], at: int, end: int, name: str) -> Iterator[Code]:
    while at < end:
        file.seek(at)
        kind, header, payload, number, flags = ENTRY.unpack(_exactly(file, ENTRY.size, name))
        at += header + payload
        if header < ENTRY.size or at > end:
            raise _unknown(name, f"an entry of kind {kind}, header {header}, size {payload}")
        if kind in KINDS:
            yield Code(number, "a" if flags & 0x100000 else "f" if flags & 0x200000 else "", KINDS[kind])


def _find(file: IO[bytes], start: int, end: int) -> int | None:
    """Return where the next container begins; between them is nothing but padding."""
    while start + len(MAGIC) <= end:
        file.seek(start)
        chunk = file.read(min(CHUNK, end - start))
        found = chunk.find(MAGIC)
        if found >= 0:
            return start + found
        if len(chunk) < len(MAGIC):
            return None
        start += len(chunk) - len(MAGIC) + 1
    return None


def _exactly(file: IO[bytes], size: int, name: str) -> bytes:
    read = file.read(size)
    if len(read) < size:
        raise _unknown(name, "a header that the file is too short for")
    return read


def _unknown(name: str, what: str) -> BuildFailed:
    return BuildFailed(
        f"{name}: its GPU code cannot be read: {what}",
        next_move="build it again; if it stays, nvcc writes a newer form than wheels/fatbin.py knows",
    )
