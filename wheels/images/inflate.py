"""Layers are packed by gzip, zstd or not at all: their bytes unpacked in small pieces, within limits.

A gzip stream cannot be read from its middle. While it is read for the first time, marks are made: copies of the
inflater's state, from which it goes on later. So a file in the middle of a layer costs the way from the mark before it.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Protocol, cast

import zstandard

if TYPE_CHECKING:
    from zlib import _Decompress

PIECE = 1024 * 1024
"""Bytes that come out at once, at most."""
BITE = 64 * 1024
"""Bytes that go in at once. A stream of many gzip members is slow where this is larger: what is left is copied."""
BETWEEN_MARKS = 16 * 1024**2
"""Unpacked bytes between two marks."""
MOST_MARKS = 64
"""Marks of a layer: each takes some 40 KiB."""
MOST_MEMBERS = 4_000_000
"""Members of a gzip stream; formats whose files can be found have one for each file (eStargz)."""
LARGEST_WINDOW = 64 * 1024**2
"""Bytes that zstd may look back; levels up to 21 need no more."""
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"
"""How frames of zstd that hold something else go on after their first byte."""
_ANY_GZIP = 16 + zlib.MAX_WBITS


class Unpackable(ValueError):
    """The bytes are no stream of their kind, are cut off, or larger than allowed."""


@dataclass(frozen=True)
class Mark:
    """After ``packed`` bytes went in, ``plain`` bytes had come out, and the inflater was in this state."""

    packed: int
    plain: int
    state: _Decompress


@dataclass
class Marks:
    """The marks of one layer, evenly apart: when there are more than ``most``, every other one goes."""

    found: list[Mark] = field(default_factory=list)
    apart: int = BETWEEN_MARKS
    most: int = MOST_MARKS

    def offer(self, packed: int, plain: int, state: _Decompress) -> None:
        """Make a mark here if the last one is far enough behind."""
        if not self.most or plain < (self.found[-1].plain if self.found else 0) + self.apart:
            return
        self.found.append(Mark(packed, plain, state.copy()))
        if len(self.found) > self.most:
            self.apart *= 2
            self.found = self.found[1::2]

    def before(self, plain: int) -> Mark | None:
        """Return the last mark at or before a place of the unpacked bytes."""
        index = bisect_right(self.found, plain, key=lambda mark: mark.plain)
        return self.found[index - 1] if index else None


class Packed:
    """The stored bytes of a layer, taken in bites; ``position`` is how many are behind us."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = filter(None, blocks)
        self._block = memoryview(b"")
        self.position = 0

    def peek(self) -> bytes:
        """Return how the stream begins, four bytes of it."""
        while len(self._block) < 4 and (block := next(self._blocks, b"")):
            self._block = memoryview(bytes(self._block) + block)
        return bytes(self._block[:4])

    def take(self) -> memoryview:
        """Return the next bytes, none at the end."""
        while not self._block and (block := next(self._blocks, None)) is not None:
            self._block = memoryview(block)
        bite, self._block = self._block[:BITE], self._block[BITE:]
        self.position += len(bite)
        return bite

    def skip_to(self, position: int) -> None:
        """Leave out what lies before ``position``. Raises Unpackable when the stream ends before."""
        while self.position + len(self._block) < position:
            self.position += len(self._block)
            block = next(self._blocks, None)
            if block is None:
                raise Unpackable("it is shorter than when it was read before")
            self._block = memoryview(block)
        self._block = self._block[position - self.position :]
        self.position = position

    def read(self, _: int = -1) -> bytes:
        """Return the next bytes, as a file would."""
        return bytes(self.take())


class Plain(Protocol):
    """The unpacked bytes of a layer, in their order."""

    @property
    def position(self) -> int:
        """How many bytes have come out."""

    def read(self) -> bytes:
        """Return the next piece, none at the end. Raises Unpackable."""

    def near(self, place: int) -> None:
        """Go forward to a mark that lies before ``place``, if that is nearer than where we are."""


def unpacked(blocks: Iterator[bytes], marks: Marks) -> Plain:
    """Return the unpacked bytes of a layer, by what it begins with; marks are made, or used when there are some."""
    packed = Packed(blocks)
    begin = packed.peek()
    if begin.startswith(GZIP):
        return _Gzip(packed, marks)
    if begin == ZSTD or (begin[1:] == _SKIPPABLE and begin[0] & 0xF0 == 0x50):
        return _Zstd(packed)
    return _Bare(packed)


class _Gzip:
    def __init__(self, packed: Packed, marks: Marks) -> None:
        self._packed = packed
        self._marks = marks
        self._inflater = zlib.decompressobj(_ANY_GZIP)
        self._rest: bytes | memoryview = b""
        self._more = False
        self._members = 1
        self.position = 0

    def read(self) -> bytes:
        """Inflate until something comes out."""
        while self._rest or self._more or self._take():
            piece = self._inflate()
            if piece:
                self.position += len(piece)
                return piece
        if not self._inflater.eof:
            raise Unpackable("it is cut off: its gzip stream does not end")
        return b""

    def near(self, place: int) -> None:
        """Go on from the mark before ``place``."""
        mark = self._marks.before(place)
        if mark and mark.plain > self.position:
            self._packed.skip_to(mark.packed)
            self._inflater, self._rest, self._more = mark.state.copy(), b"", False
            self.position = mark.plain

    def _take(self) -> bool:
        # all that went in is through here: whoever puts the same bytes in from here on gets the same
        self._marks.offer(self._packed.position, self.position, self._inflater)
        self._rest = self._packed.take()
        return bool(self._rest)

    def _inflate(self) -> bytes:
        if self._inflater.eof:
            self._next_member()
        try:
            piece = self._inflater.decompress(self._rest, PIECE)
        except zlib.error as error:
            raise Unpackable(f"its gzip stream is damaged: {error}") from error
        self._rest = self._inflater.unconsumed_tail or self._inflater.unused_data
        self._more = len(piece) == PIECE and not self._inflater.eof
        return piece

    def _next_member(self) -> None:
        self._members += 1
        if self._members > MOST_MEMBERS:
            raise Unpackable(f"its gzip stream has more than {MOST_MEMBERS} members")
        self._inflater = zlib.decompressobj(_ANY_GZIP)


class _Zstd:
    def __init__(self, packed: Packed) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
        self._reader = decompressor.stream_reader(cast(IO[bytes], packed), read_across_frames=True)
        self.position = 0

    def read(self) -> bytes:
        """Unpack the next piece."""
        try:
            piece = self._reader.read(PIECE)
        except zstandard.ZstdError as error:
            raise Unpackable(f"its zstd stream is damaged, or looks too far back: {error}") from error
        self.position += len(piece)
        return piece

    def near(self, place: int) -> None:
        """Do nothing: its state cannot be copied, but it is fast."""


class _Bare:
    def __init__(self, packed: Packed) -> None:
        self._packed = packed

    @property
    def position(self) -> int:
        """How many bytes have come out."""
        return self._packed.position

    def read(self) -> bytes:
        """Return the next bytes as they are."""
        return self._packed.read()

    def near(self, place: int) -> None:
        """Go there."""
        self._packed.skip_to(place)
