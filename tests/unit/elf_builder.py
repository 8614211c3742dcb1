"""Shared libraries and fat binaries made by hand, as small as their readers allow."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

PROGBITS, SYMTAB, STRTAB, DYNAMIC, NOTE, NOBITS, DYNSYM, VERNEED = 1, 2, 3, 6, 7, 8, 11, 0x6FFFFFFE
WRITE, ALLOC, EXECUTE = 1, 2, 4
LOCAL, GLOBAL, WEAK = 0, 1, 2
X86_64, AARCH64 = 62, 183


@dataclass(frozen=True)
class Part:
    """A section."""

    name: str
    content: bytes
    kind: int = PROGBITS
    flags: int = ALLOC
    link: int = 0
    entry_size: int = 0


@dataclass(frozen=True)
class Library:
    """A shared library: `defined` and `undefined` name functions, `needed` libraries, `versions` (library, version)."""

    parts: tuple[Part, ...] = ()
    machine: int = X86_64
    defined: tuple[str, ...] = ()
    undefined: tuple[str, ...] = ()
    weak: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    runpath: str = ""
    rpath: str = ""
    soname: str = ""
    versions: tuple[tuple[str, str], ...] = ()
    alignment: int = 0x1000
    strings: bytearray = field(default_factory=lambda: bytearray(b"\0"))

    def text(self, word: str) -> int:
        """Put a word among the strings of the dynamic section and return where."""
        self.strings.extend(word.encode() + b"\0")
        return len(self.strings) - len(word) - 1

    def build(self) -> bytes:
        """Return the file, the same each time."""
        del self.strings[1:]
        symbols, dynamic, versions = self._symbols(), self._dynamic(), self._versions()
        parts = [
            Part(".dynstr", bytes(self.strings), STRTAB),
            Part(".dynsym", symbols, DYNSYM, link=1, entry_size=24),
            Part(".dynamic", dynamic, DYNAMIC, ALLOC | WRITE, link=1, entry_size=16),
            *([Part(".gnu.version_r", versions, VERNEED, link=1)] if versions else []),
            *self.parts,
        ]
        return _file(parts, self.machine, self.alignment)

    def _symbols(self) -> bytes:
        rows = [(name, GLOBAL, 5) for name in self.defined]
        rows += [(name, GLOBAL, 0) for name in self.undefined] + [(name, WEAK, 0) for name in self.weak]
        symbol = struct.Struct("<IBBHQQ")
        return bytes(24) + b"".join(
            symbol.pack(self.text(name), binding << 4 | 2, 0, place, 0, 0) for name, binding, place in rows
        )

    def _dynamic(self) -> bytes:
        tags = [(1, name) for name in self.needed]
        tags += [(tag, text) for tag, text in ((14, self.soname), (15, self.rpath), (29, self.runpath)) if text]
        return b"".join(struct.pack("<QQ", tag, self.text(text)) for tag, text in tags) + bytes(16)

    def _versions(self) -> bytes:
        rows = []
        for library, version in self.versions:
            last = (library, version) == self.versions[-1]
            rows.append(struct.pack("<HHIII", 1, 1, self.text(library), 16, 0 if last else 32))
            rows.append(struct.pack("<IHHII", 0, 0, 2, self.text(version), 0))
        return b"".join(rows)


def _file(parts: Sequence[Part], machine: int, alignment: int) -> bytes:
    names = b"\0" + b"".join(part.name.encode() + b"\0" for part in parts) + b".shstrtab\0"
    every = [*parts, Part(".shstrtab", names, STRTAB, 0)]
    body, headers, name = bytearray(), [bytes(64)], 1
    for part in every:
        offset, size = 120 + len(body), len(part.content)
        address = offset if part.flags & ALLOC else 0
        info = size // 32 if part.kind == VERNEED else 0
        header = (name, part.kind, part.flags, address, offset, size, part.link, info, 1, part.entry_size)
        headers.append(struct.pack("<IIQQQQIIQQ", *header))
        body += b"" if part.kind == NOBITS else part.content
        name += len(part.name) + 1
    table = 120 + len(body)
    start = b"\x7fELF\x02\x01\x01" + bytes(9)
    rest = (3, machine, 1, 0, 64, table, 0, 64, 56, 1, 64, len(headers), len(headers) - 1)
    loaded = sum(len(part.content) for part in every if part.flags & ALLOC)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 120 + loaded, 120 + loaded, alignment)
    return start + struct.pack("<HHIQQQIHHHHHH", *rest) + segment + bytes(body) + b"".join(headers)


def entry(kind: int, number: int, flags: int = 0, payload: bytes = b"payload!", header: int = 64) -> bytes:
    """Return one entry of a fat binary: kind 1 is PTX, 2 machine code."""
    fields = struct.pack("<HHIQIIIIQQQQ", kind, 0x101, header, len(payload), 0, 0, 0x10008, number, 0, flags, 0, 0)
    return fields.ljust(header, b"\0") + payload


def fatbin(*entries: bytes, version: int = 1) -> bytes:
    """Return a container of entries."""
    content = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, version, 16, len(content)) + content


def with_code(*containers: bytes, section: str = ".nv_fatbin") -> Library:
    """Return a library with fat binaries."""
    return Library(parts=(Part(section, b"".join(containers)),))
