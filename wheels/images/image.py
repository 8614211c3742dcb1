"""Distributions out of an image: its layers are read from the top until every file that their RECORDs name is found.

First all is found, then it is written: layers that hold wanted files are read once more, from the disk. Layers below
the last one that is needed are never fetched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Literal

from core.errors import ImageRefused
from core.mistakes import nearest
from core.plan import Report, megabytes
from wheels.canonical import MAX_BYTES, NotAWheel
from wheels.images.freshfolder import FreshFolder
from wheels.images.layers import Budget, Index, Span, read_layer, read_spans
from wheels.images.oci import Blobs, Image
from wheels.images.sightings import Ambiguous, Lookout, Sighting, Wanted, choose
from wheels.images.whiteouts import Barred, Lies, Verdict, judge
from wheels.record import Row, parse_record
from wheels.scheme import candidates, scheme_of

__all__ = ["Found", "Wanted", "extract_files"]
LARGEST_RECORD = 32 * 1024**2
LONGEST_PATH, LONGEST_NAME = 4096, 255
"""Bytes of a path and of each name in it that Linux allows."""
ELSEWHERE = "take another image or tag of it, or have the wheel built from source (a component's origin)"


@dataclass(frozen=True)
class Found:
    """One distribution in the image; ``kind`` says whether it is installed, or a wheel that was left over.

    ``site`` is the folder that holds its .dist-info, or the wheel, relative to the image's root; ``info`` the name of
    that. ``layers`` are the digests of the stored layers that its files came from, bottom first.
    """

    name: str
    version: str
    kind: Literal["installed", "wheel"]
    site: PurePosixPath
    info: str
    layers: tuple[str, ...]


@dataclass
class _Goal:
    """A wanted distribution on its way: what was chosen, which files are found, and which paths are still looked for.

    A file may have two places: ``open`` has the ones that are left of each.
    """

    want: Wanted
    chosen: Sighting | None = None
    open: list[tuple[str, ...]] = field(default_factory=list)
    lies: dict[str, Lies] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Say whether all of it is found."""
        return self.chosen is not None and not self.open


def extract_files(
    blobs: Blobs, image: Image, wanted: Sequence[Wanted], folder: Path, report: Report
) -> tuple[Found, ...]:
    """Write the wanted distributions' files below ``folder``, as the image has them, and nothing else.

    ``folder`` must be empty or missing. They are proved to be the image's; whether they are what RECORD says is not
    looked at. Byte code is left out. Returns what was found, in the order of ``wanted``. Raises ImageRefused for what
    the image lacks, hides, has twice or damaged; RegistryRefused. Files may be left behind then: they are the caller's.
    """
    search = _Search(blobs, image, report, [_Goal(want) for want in wanted])
    search.run()
    search.write(folder)
    return tuple(search.found(goal) for goal in search.goals)


class _Search:
    """Goes down through the layers of an image; ``indexes`` has what was read, from the top."""

    def __init__(self, blobs: Blobs, image: Image, report: Report, goals: list[_Goal]) -> None:
        self._blobs = blobs
        self._image = image
        self._report = report
        self._indexes: list[Index] = []
        self._budget = Budget()
        self._lookout = Lookout(frozenset(goal.want.name for goal in goals))
        self._passed: dict[Sighting, str] = {}
        self.goals = goals

    def run(self) -> None:
        """Find all. Raises ImageRefused."""
        for number, layer in reversed(list(enumerate(self._image.layers, 1))):
            if all(goal.done for goal in self.goals):
                return
            index = Index(number, layer)
            self._report(f"layer {number} of {len(self._image.layers)}: {megabytes(layer.blob.size)}")
            read_layer(self._blobs, index, self._lookout, self._budget, self._report)
            self._indexes.append(index)
            for goal in self.goals:
                self._look(goal, index)
        for goal in self.goals:
            if not goal.done:
                raise self._missing(goal)

    def _look(self, goal: _Goal, index: Index) -> None:
        """Look for a distribution, or for what is missing of it, in the layer that was read last."""
        before = len(goal.lies)
        if goal.chosen is not None:
            self._seek(goal, index)
        elif chosen := self._chosen(goal.want, index):
            goal.chosen = chosen
            goal.open = self._listed(chosen)
            self._report(f"{chosen.shown}: {len(goal.open)} files")
            for one in self._indexes:
                self._seek(goal, one)
        if len(goal.lies) > before:
            rest = f", {len(goal.open)} are in lower layers" if goal.open else ""
            self._report(f"{goal.want.name}: {len(goal.lies) - before} files found{rest}")

    def _chosen(self, want: Wanted, index: Index) -> Sighting | None:
        """Return what the layer has of a wanted distribution, unless a layer above it took that away again."""
        shown = [one for one in index.sightings if one.name == want.name]
        verdicts = self._seen_from_above([one.path for one in shown])
        there = [one for one in shown if isinstance(verdicts[one.path], Lies)]
        for one in shown:
            verdict = verdicts[one.path]
            self._passed[one] = f"{one.shown} {verdict.why}" if isinstance(verdict, Barred) else one.shown
        usable = [one for one in dict.fromkeys(there) if one.kind in {"installed", "wheel"}]
        try:
            return choose(want, usable, self._contents)
        except Ambiguous as error:
            raise ImageRefused(
                f"{self._image.reference} has several of {want.name} in {index.called}",
                next_move="name the version that is meant (NAME==VERSION); of one in several folders, the folder",
                evidence=str(error),
            ) from error

    def _seen_from_above(self, paths: list[str]) -> dict[str, Verdict]:
        """Say what all layers that were read mean together for these paths."""
        verdicts: dict[str, Verdict] = dict.fromkeys(paths)
        for index in self._indexes:
            verdicts |= judge(index, [path for path, verdict in verdicts.items() if verdict is None])
        return verdicts

    def _rows(self, sighting: Sighting) -> tuple[Row, ...]:
        """Return what an installed distribution consists of, without byte code."""
        lies = self._seen_from_above([sighting.path])[sighting.path]
        assert isinstance(lies, Lies)
        if lies.span.size > LARGEST_RECORD:
            raise _refused(sighting, f"its RECORD has {megabytes(lies.span.size)}")
        with _said_of(sighting):
            return tuple(row for row in parse_record(self._content(lies)) if not _byte_code(row))

    def _contents(self, sighting: Sighting) -> frozenset[tuple[str, bytes]]:
        """Return what its RECORD lists but for what its installer noted."""
        rows = self._rows(sighting)
        return frozenset((row.path, row.digest) for row in rows if not row.path.startswith(f"{sighting.info}/"))

    def _content(self, lies: Lies) -> bytes:
        known = lies.index.records.get(lies.span.offset)
        if known is not None:
            return known
        pieces = read_spans(self._blobs, lies.index, [lies.span], self._report)
        return b"".join(piece for _, piece in pieces)

    def _listed(self, chosen: Sighting) -> list[tuple[str, ...]]:
        """Return the paths of all files that belong to it, each with the other place where it may be."""
        if chosen.kind == "wheel":
            return [(chosen.path,)]
        scheme = scheme_of(chosen.site)
        with _said_of(chosen):
            listed = {
                tuple(map(_possible, candidates(scheme, path)))
                for path in (f"{chosen.info}/RECORD", *(row.path for row in self._rows(chosen)))
            }
        return sorted(listed)

    def _seek(self, goal: _Goal, index: Index) -> None:
        """Judge what is missing by one layer; what it has is found, what it hides is refused."""
        verdicts = judge(index, {path for places in goal.open for path in places})
        still: list[tuple[str, ...]] = []
        for places in goal.open:
            found = {path: verdict for path in places if isinstance(verdict := verdicts[path], Lies)}
            goal.lies |= found
            barred = [(path, verdict) for path in places if isinstance(verdict := verdicts[path], Barred)]
            if not found and len(barred) == len(places):
                assert goal.chosen is not None
                raise _refused(goal.chosen, f"/{barred[0][0]}, which it consists of, {barred[0][1].why}")
            if not found:
                still.append(tuple(path for path in places if verdicts[path] is None))
        goal.open = still

    def _missing(self, goal: _Goal) -> ImageRefused:
        want, reference = goal.want, self._image.reference
        if goal.chosen:
            others = f" and {len(goal.open) - 1} more of its files are" if len(goal.open) > 1 else " is"
            return _refused(goal.chosen, f"/{goal.open[0][0]}{others} in its RECORD and in no layer")
        passed = {one: words for one, words in self._passed.items() if one.name == want.name}
        whole = {(one.site, one.info) for one in passed if one.kind == "installed"}
        lines = [words for one, words in passed.items() if one.kind != "metadata" or (one.site, one.info) not in whole]
        asked = f"{want.name}{f' {want.version}' if want.version else ''}{f' in /{want.site}' if want.site else ''}"
        hint = " that can be taken" if lines else nearest(want.name, list(self._lookout.seen))
        return ImageRefused(
            f"{reference} holds no {asked}{hint}",
            next_move="name another version, distribution or image, or have the wheel built from source",
            evidence="\n".join(lines[:10]),
        )

    def write(self, folder: Path) -> None:
        """Write all that was found, layer by layer from the top. Raises ImageRefused."""
        files = {path: lies for goal in self.goals for path, lies in goal.lies.items()}
        size = sum(lies.span.size for lies in files.values())
        if size > MAX_BYTES:
            raise ImageRefused(f"what is wanted has {megabytes(size)}", next_move="name fewer distributions")
        with FreshFolder(folder) as fresh:
            for index in self._indexes:
                ours = {path: lies for path, lies in files.items() if lies.index is index}
                if ours:
                    self._report(f"{len(ours)} files of layer {index.number} are written")
                    self._write(fresh, index, ours)

    def _write(self, fresh: FreshFolder, index: Index, files: dict[str, Lies]) -> None:
        names: dict[Span, list[str]] = {}
        for path in sorted(files):
            names.setdefault(files[path].span, []).append(path)
        pieces = read_spans(self._blobs, index, sorted(names), self._report)
        written: set[Span] = set()
        for span, parts in groupby(pieces, key=itemgetter(0)):
            with fresh.file(names[span][0], executable=files[names[span][0]].executable) as file:
                for _, piece in parts:
                    file.write(piece)
            written.add(span)
        for span, (first, *others) in names.items():
            if span not in written:  # it is empty
                fresh.file(first, executable=files[first].executable).close()
            for other in others:
                fresh.link(first, other)

    def found(self, goal: _Goal) -> Found:
        """Describe what was found."""
        assert goal.chosen is not None
        one = goal.chosen
        used = {lies.index.number: lies.index.layer.blob.digest for lies in goal.lies.values()}
        kind: Literal["installed", "wheel"] = "wheel" if one.kind == "wheel" else "installed"
        return Found(one.name, one.version, kind, one.site, one.info, tuple(used[number] for number in sorted(used)))


def _refused(sighting: Sighting, cause: str) -> ImageRefused:
    return ImageRefused(f"{sighting.shown} of the image: {cause}", next_move=ELSEWHERE)


@contextmanager
def _said_of(sighting: Sighting) -> Iterator[None]:
    try:
        yield
    except NotAWheel as error:
        raise _refused(sighting, str(error)) from error


def _byte_code(row: Row) -> bool:
    """Say whether Python makes it anew: whoever makes an image may leave it out, and no wheel holds it."""
    path = PurePosixPath(row.path)
    return path.suffix == ".pyc" and ("__pycache__" in path.parts or not row.algorithm)


def _possible(path: PurePosixPath) -> str:
    """Return the path as text. Raises NotAWheel for one that no file should have."""
    text = str(path)
    too_long = len(text.encode()) > LONGEST_PATH or any(len(part.encode()) > LONGEST_NAME for part in path.parts)
    if not path.parts or too_long or any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise NotAWheel(f"its RECORD names {text[:200]!r}, a name that no file should have")
    return text
