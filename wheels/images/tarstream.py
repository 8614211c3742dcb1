"""The members of a tar archive that comes as a stream: names, kinds and places, within limits.

We read headers ourselves. tarfile takes a damaged header for the end of the archive, reads extended headers of any
size into memory and searches them in quadratic time (CVE-2024-6232), and needs four times as long for what layers of
100,000 files are full of. Formats: ustar, GNU (long names), pax; what these say of sparse files is only recognised.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

BLOCK = 512
LARGEST_HEADER = 1024 * 1024
"""Bytes of an extended header: names, and attributes that nobody here needs."""
LONGEST = 4096
"""Bytes of a path; no extractor on Linux can make a longer one."""
MOST_EXTENSIONS = 8
"""Extended headers before one member."""
ZEROS = bytes(BLOCK)


class Damaged(ValueError):
    """The archive is damaged, or made to mislead or exhaust whoever reads it."""


class Kind(IntEnum):
    """What a member is; the last three are what a layer says of a path without having it."""

    FILE = 1
    PROGRAM = 2
    """A file that its owner may execute."""
    FOLDER = 3
    LINK = 4
    """Symbolic."""
    HARD_LINK = 5
    SPARSE = 6
    """A file with holes, in a form that is not read."""
    OTHER = 7
    """Device, pipe, or something unknown."""
    IMPLIED = 8
    """A folder of which only its contents tell."""
    WHITEOUT = 9
    """Lower layers' entry of that name is gone, with all below it."""
    OPAQUE = 10
    """Of a folder, all that lower layers have in it is gone."""


class Member(NamedTuple):
    """One entry: ``name`` without "./" before and "/" behind it, empty for the root; ``target`` of a link as written.

    Its ``size`` bytes lie at ``offset`` of the archive.
    """

    name: str
    kind: Kind
    offset: int
    size: int
    target: str


_KINDS = {
    b"5": Kind.FOLDER,
    b"1": Kind.HARD_LINK,
    b"2": Kind.LINK,
    b"3": Kind.OTHER,
    b"4": Kind.OTHER,
    b"6": Kind.OTHER,
}
"""Kinds that have no content, whatever their header gives as size."""
_FILES = (b"0", b"\0", b"7")
_SAME_FOR_ALL = ("path", "linkpath", "size")


class TarStream:
    """Reads members in their order; what lies between them is passed over."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = filter(None, pieces)
        self._piece = b""
        self._at = 0
        self._begin = 0
        self._end = 0
        self._next = 0

    def __iter__(self) -> Iterator[Member]:
        """Yield members until the archive ends. Raises Damaged."""
        while header := self._header():
            yield self._member(header)
        if self._rest_is_something():
            raise Damaged("it goes on behind its end")

    @property
    def position(self) -> int:
        """Where in the archive we are."""
        return self._begin + self._at

    def content(self, member: Member) -> bytes:
        """Return the content of the member that was yielded last."""
        return self._read(member.size)

    def _header(self) -> bytes:
        """Return the next header; nothing at the end, which is a block of zeros or the end of the stream.

        What fills a member's last block may be missing there: umoci's `insert` leaves it out, with all behind it.
        """
        self._skip_to(self._end)
        self._read(max(0, self._next - self.position), may_end=True)
        header = self._piece[self._at : self._at + BLOCK]
        if len(header) == BLOCK:
            self._at += BLOCK
        else:
            header = self._read(BLOCK, may_end=True)
        if header in {ZEROS, b""}:
            return b""
        if not _is_header(header):
            raise Damaged(f"what should be a header at byte {self.position - len(header)} is none")
        self._end = self._next = self.position
        return header

    def _member(self, header: bytes) -> Member:
        more: dict[str, str] = {}
        for _ in range(MOST_EXTENSIONS):
            kind = header[156:157]
            if kind not in {b"x", b"g", b"L", b"K"}:
                return self._made(header, kind, more)
            self._extend(more, kind, self._extension(header))
            header = self._header()
            if not header:
                raise Damaged("it ends after an extended header")
        raise Damaged(f"a member has more than {MOST_EXTENSIONS} extended headers")

    def _extension(self, header: bytes) -> bytes:
        size = _number(header[124:136])
        if size > LARGEST_HEADER:
            raise Damaged(f"an extended header has {size} bytes")
        data = self._read(size)
        self._end, self._next = self.position, self.position + -size % BLOCK
        return data

    def _extend(self, more: dict[str, str], kind: bytes, data: bytes) -> None:
        if kind == b"g":
            said = [key for key in _records(data) if key in _SAME_FOR_ALL or key.startswith("GNU.sparse.")]
            if said:
                raise Damaged(f"a header gives all members the same {said[0]}")
            return
        found = _records(data) if kind == b"x" else {"path" if kind == b"L" else "linkpath": _text(data)}
        twice = sorted(found.keys() & more.keys())
        if twice:
            raise Damaged(f"two headers of one member give it a {twice[0]}")
        more |= found

    def _made(self, header: bytes, flag: bytes, more: dict[str, str]) -> Member:
        said = more.get("size", "")
        if said and not (said.isascii() and said.isdigit() and len(said) < 19):
            raise Damaged(f"a header gives a size of {said[:20]!r}")
        size = int(said) if said else _number(header[124:136])
        name = more.get("GNU.sparse.name") or more.get("path") or _name(header)
        kind = _kind(header, flag, name, more)
        if flag in _KINDS:
            size = 0
        elif flag == b"S":
            self._skip_sparse_map(header)
        offset = self.position
        self._end, self._next = offset + size, offset + size + -size % BLOCK
        target = more.get("linkpath") or _text(header[157:257])
        return Member(clean(name), kind, offset, size, target if flag in {b"1", b"2"} else "")

    def _skip_sparse_map(self, header: bytes) -> None:
        goes_on = header[482]
        while goes_on:
            goes_on = self._read(BLOCK)[504]

    def _read(self, size: int, *, may_end: bool = False) -> bytes:
        parts: list[bytes] = []
        while size:
            if self._at == len(self._piece) and not self._refill():
                break
            part = self._piece[self._at : self._at + size]
            parts.append(part)
            self._at += len(part)
            size -= len(part)
        if size and not may_end:
            raise Damaged("it ends in the middle of a member")
        return b"".join(parts)

    def _skip_to(self, place: int) -> None:
        while place > self._begin + len(self._piece):
            self._at = len(self._piece)
            if not self._refill():
                raise Damaged("it ends in the middle of a member")
        self._at = place - self._begin

    def _refill(self) -> bool:
        self._begin += len(self._piece)
        self._piece, self._at = next(self._pieces, b""), 0
        return bool(self._piece)

    def _rest_is_something(self) -> bool:
        """Read to the end; say whether anything but zeros comes."""
        rest, something = self._piece[self._at :], False
        while rest:
            something = something or bool(rest.strip(b"\0"))
            rest = self._piece if self._refill() else b""
        self._at = len(self._piece)
        return something


def _is_header(header: bytes) -> bool:
    """Say whether the checksum is right, which counts its own eight bytes as blanks."""
    checksum = sum(header) - sum(header[148:156]) + 8 * 32
    return len(header) == BLOCK and header[148:156].partition(b"\0")[0].strip().lstrip(b"0") == b"%o" % checksum


def _number(field: bytes) -> int:
    """Return a number that a header has in octal digits, or in base 256. Raises Damaged."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
    else:
        digits = field.partition(b"\0")[0].strip()
        if digits.translate(None, b"01234567"):
            raise Damaged(f"a header has {field!r} for a number")
        value = int(digits or b"0", 8)
    if value >> 62:
        raise Damaged(f"a header has {field!r} for a number")
    return value


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _name(header: bytes) -> str:
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and header[345]:
        prefix = header[345:476] if header[508:] == b"tar\0" else header[345:500]  # star has times behind it
        return f"{_text(prefix)}/{name}"
    return name


def _kind(header: bytes, flag: bytes, name: str, more: dict[str, str]) -> Kind:
    if flag in _KINDS:
        return _KINDS[flag]
    if flag == b"S" or any(key.startswith("GNU.sparse.") for key in more):
        return Kind.SPARSE
    if flag not in _FILES:
        return Kind.OTHER
    if flag == b"\0" and name.endswith("/"):
        return Kind.FOLDER
    return Kind.PROGRAM if _number(header[100:108]) & 0o100 else Kind.FILE


def _records(data: bytes) -> dict[str, str]:
    """Return the records of a pax header: length, blank, key=value, newline; the length counts all of it."""
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        digits, blank, _ = data[at : at + 10].partition(b" ")
        end = at + int(digits) if digits.isdigit() else 0
        key, equals, value = data[at + len(digits) + 1 : max(0, end - 1)].partition(b"=")
        if not blank or end > len(data) or not key or not equals or data[end - 1 : end] != b"\n":
            raise Damaged("an extended header cannot be read")
        if value:  # an empty one takes back what a header for all said
            found[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        at = end
    return found


def clean(name: str) -> str:
    """Return the name as it counts. Raises Damaged for one that leads out of the root, is none or too long."""
    plain = name.removeprefix("./").removesuffix("/")
    if plain and "/." not in plain and "//" not in plain and plain[0] not in "./" and "\0" not in plain:
        parts = None
    else:
        parts = [part for part in name.split("/") if part not in {"", "."}]
        if not name or (name[0] == "/" and parts) or ".." in parts or "\0" in name:
            raise Damaged(f"its member {name[:200]!r} leads out of the image's root, or has no name")
        plain = "/".join(parts)
    if len(plain) > LONGEST or len(plain.encode("utf-8", "surrogateescape")) > LONGEST:
        raise Damaged(f"its member {plain[:80]!r}… has a name of more than {LONGEST} bytes")
    return plain
