"""Layers of an image, read twice at most: once through for what they hold, once more for the files that are wanted.

The first reading goes to the layer's end, whatever is found: nothing of it counts before the digests of what is stored
and of what is in it are those that the image names. Fetching, inflating and looking run beside each other.

What a layer holds is remembered without its names, 25 bytes for each entry: a path is looked for by its hash, and what
is written later lies where a verified archive had it.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from core.errors import ImageRefused
from core.plan import Report, megabytes
from wheels.images.behind import Behind
from wheels.images.inflate import Marks, Plain, Unpackable, unpacked
from wheels.images.oci import Blobs, Layer
from wheels.images.sightings import Lookout, Sighting
from wheels.images.tarstream import Damaged, Kind, Member, TarStream, clean

if TYPE_CHECKING:
    from hashlib import _Hash

LARGEST = 128 * 1024**3
"""Bytes of an unpacked layer."""
HARMLESS = 1024**3
"""Bytes of an unpacked layer below which it may be packed as tightly as it likes."""
TIGHTEST = 100
"""How many times its stored size a larger one may have unpacked: binaries have 2 to 10."""
MOST_ENTRIES = 2_000_000
"""Of all layers that are read of an image."""
MOST_RECORDS = 64 * 1024**2
"""Bytes of RECORDs that are kept in memory."""
MOST_SIGHTINGS = 2_000
"""Files that show the wanted distributions: of each there are two, or some more in an image of many environments."""
ALL_MARKS = 1_000
"""Marks of all layers; without them what is wanted of a layer only takes longer."""
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_OF_AUFS = ".wh..wh."
"""How names begin that AUFS left for itself; they remove nothing."""


class Entry(NamedTuple):
    """What a layer says of a path, at ``position`` among all that it says; ``extra`` is a size or a target's hash."""

    position: int
    kind: Kind
    offset: int
    extra: int


@dataclass
class Index:
    """What a layer holds; ``number`` counts from 1 at the bottom. ``records`` has RECORDs by where they begin."""

    number: int
    layer: Layer
    marks: Marks = field(default_factory=Marks)
    sightings: list[Sighting] = field(default_factory=list)
    records: dict[int, bytes] = field(default_factory=dict)
    _hashes: array[int] = field(default_factory=lambda: array("q"))
    _kinds: array[int] = field(default_factory=lambda: array("B"))
    _offsets: array[int] = field(default_factory=lambda: array("Q"))
    _extras: array[int] = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        return len(self._hashes)

    @property
    def called(self) -> str:
        """The layer for people."""
        return f"layer {self.number} ({self.layer.blob.digest[:19]})"

    def add(self, path: str, kind: Kind, offset: int = 0, extra: int = 0) -> None:
        """Note what the layer says of a path."""
        self._hashes.append(hash(path))
        self._kinds.append(kind)
        self._offsets.append(offset)
        self._extras.append(extra)

    def entries(self, hashes: set[int]) -> dict[int, list[Entry]]:
        """Return what the layer says of paths with these hashes, each in the archive's order."""
        found: dict[int, list[Entry]] = {}
        for position, one in enumerate(self._hashes):
            if one in hashes:
                entry = Entry(position, Kind(self._kinds[position]), self._offsets[position], self._extras[position])
                found.setdefault(one, []).append(entry)
        return found


@dataclass
class Budget:
    """What may still be kept in memory of an image's layers."""

    entries: int = MOST_ENTRIES
    records: int = MOST_RECORDS
    sightings: int = MOST_SIGHTINGS
    marks: int = ALL_MARKS


def read_layer(blobs: Blobs, index: Index, lookout: Lookout, budget: Budget, report: Report) -> None:
    """Read a layer through and fill its index, which counts once this returns: then both its digests are verified.

    Raises ImageRefused, or what ``blobs`` raises.
    """
    layer = index.layer
    index.marks.most = min(index.marks.most, budget.marks)
    with _said_of(index):
        with closing(_stream(blobs, layer, report)) as blocks:
            try:
                diff_id = _scanned(blocks, index, lookout, budget)
            except (Damaged, Unpackable):
                for _ in blocks:  # bytes that were changed on their way end here, refused by their digest and not kept
                    pass
                raise
        budget.marks -= len(index.marks.found)
        if diff_id != layer.diff_id:
            raise Damaged(f"its content has the digest {diff_id}, the image's configuration says {layer.diff_id}")


def _scanned(blocks: Iterable[bytes], index: Index, lookout: Lookout, budget: Budget) -> str:
    with _scanning(index, lookout, budget) as scan:
        for block in blocks:
            scan.put(block)
        return scan.result()


def _stream(blobs: Blobs, layer: Layer, report: Report) -> Generator[bytes, None, None]:
    yield from blobs.read(layer.blob, report)


@contextmanager
def _said_of(index: Index) -> Iterator[None]:
    """Name the layer in the error."""
    try:
        yield
    except (Damaged, Unpackable) as error:
        raise ImageRefused(
            f"the image's {index.called} is refused: {error}",
            next_move="do not use that image; look where it comes from",
        ) from error


def _scanning(index: Index, lookout: Lookout, budget: Budget) -> Behind[str]:
    """Return two threads behind each other: one inflates, one hashes and looks through; they give the diff_id."""

    def scan(pieces: Iterator[bytes]) -> str:
        total = hashlib.sha256()
        _Scan(index, lookout, budget).run(TarStream(_hashed(pieces, total)))
        return f"sha256:{total.hexdigest()}"

    def inflate(blocks: Iterator[bytes]) -> str:
        with Behind(scan) as looked_through:
            for piece in _limited(unpacked(blocks, index.marks), index.layer.blob.size):
                looked_through.put(piece)
            return looked_through.result()

    return Behind(inflate)


def _hashed(pieces: Iterable[bytes], total: _Hash) -> Iterator[bytes]:
    for piece in pieces:
        total.update(piece)
        yield piece


def _limited(plain: Plain, stored: int) -> Iterator[bytes]:
    most = min(LARGEST, max(HARMLESS, TIGHTEST * stored))
    while piece := plain.read():
        if plain.position > most:
            raise Unpackable(f"it has {megabytes(stored)} and unpacks to more than {megabytes(most)}")
        yield piece


class _Scan:
    """Goes once through the members of a layer and notes them."""

    def __init__(self, index: Index, lookout: Lookout, budget: Budget) -> None:
        self._index = index
        self._lookout = lookout
        self._budget = budget
        self._folders = {hash("")}

    def run(self, stream: TarStream) -> None:
        """Note all. Raises Damaged."""
        last = ""
        before = 0
        for member in stream:
            folder, _, name = member.name.rpartition("/")
            if folder != last:
                self._imply(folder)
                last = folder
            if name.startswith(_WHITEOUT):
                self._whiteout(folder, name)
            else:
                self._note(member)
                if self._lookout.may_concern(member.name):
                    self._look(member, stream)
            self._budget.entries -= len(self._index) - before
            before = len(self._index)
            if self._budget.entries < 0:
                raise Damaged(f"the image has more than {MOST_ENTRIES} files and folders")

    def _imply(self, folder: str) -> None:
        """Note a folder and those above it, unless that was done."""
        while (one := hash(folder)) not in self._folders:
            self._folders.add(one)
            self._index.add(folder, Kind.IMPLIED)
            folder = folder.rpartition("/")[0]

    def _note(self, member: Member) -> None:
        extra = member.size
        if member.kind == Kind.FOLDER:
            self._folders.add(hash(member.name))
        elif member.kind == Kind.HARD_LINK:
            extra = _target(member)
        self._index.add(member.name, member.kind, member.offset, extra)

    def _whiteout(self, folder: str, name: str) -> None:
        gone = name.removeprefix(_WHITEOUT)
        if name == _OPAQUE:
            self._index.add(folder, Kind.OPAQUE)
        elif name.startswith(_OF_AUFS):
            pass
        elif gone in {"", ".", ".."}:
            raise Damaged(f"its member {folder}/{name} removes {gone or 'nothing'!r}, which is no name")
        else:
            self._index.add(f"{folder}/{gone}" if folder else gone, Kind.WHITEOUT)

    def _look(self, member: Member, stream: TarStream) -> None:
        sighting = self._lookout.see(member.name)
        if sighting is None:
            return
        self._budget.sightings -= 1
        if self._budget.sightings < 0:
            raise Damaged(f"the image shows what is wanted in more than {MOST_SIGHTINGS} places")
        self._index.sightings.append(sighting)
        if sighting.kind == "installed" and member.kind in {Kind.FILE, Kind.PROGRAM}:
            self._budget.records -= member.size
            if self._budget.records >= 0:
                self._index.records[member.offset] = stream.content(member)


def _target(member: Member) -> int:
    """Return the hash of what a hard link points to; some tools write these from the root, with a slash before."""
    try:
        return hash(clean(member.target.lstrip("/")))
    except Damaged:
        return hash("")  # leads out: nothing of that name is ever found


class Span(NamedTuple):
    """Where a file lies in a layer's archive, in bytes."""

    offset: int
    size: int


def read_spans(blobs: Blobs, index: Index, spans: Sequence[Span], report: Report) -> Iterator[tuple[Span, bytes]]:
    """Yield pieces of files of a layer that was read before; ``spans`` are in order and apart from each other.

    The stored bytes are read, from the disk, to their end: what has come counts once this ends. Raises ImageRefused, or
    what ``blobs`` raises.
    """
    with _said_of(index), closing(_stream(blobs, index.layer, report)) as blocks:
        plain = unpacked(blocks, index.marks)
        piece, begin = b"", 0
        for span in spans:
            at, end = span.offset, span.offset + span.size
            while at < end:
                if at >= begin + len(piece):
                    plain.near(at)
                    piece = plain.read()
                    begin = plain.position - len(piece)
                    if not piece:
                        raise Unpackable("it is shorter than when it was read before")
                    continue
                part = piece[at - begin : end - begin]
                yield span, part
                at += len(part)
        for _ in blocks:
            pass
