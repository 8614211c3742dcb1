"""What the layers of an image mean together: which has a path, and which one above hides it.

A path is looked for from the top. The first layer that says anything of it, or of a folder above it, decides: it has
the file, or the file is gone, whatever lies below. Whiteouts and opaque folders hide what lower layers have, never what
their own layer has (OCI image specification, layer.md). Links are data: nothing is ever looked for through one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from wheels.images.layers import Entry, Index, Span
from wheels.images.tarstream import Kind

FILES = {Kind.FILE, Kind.PROGRAM}
FOLDERS = {Kind.FOLDER, Kind.IMPLIED}
REMOVALS = {Kind.WHITEOUT, Kind.OPAQUE}
LONGEST_CHAIN = 40
"""Hard links to hard links."""
_WORDS = {
    Kind.LINK: "a symbolic link",
    Kind.SPARSE: "a sparse file, in a form that is not read",
    Kind.OTHER: "a device or something else that is no file",
    Kind.HARD_LINK: "a hard link",
    Kind.FOLDER: "a folder",
    Kind.IMPLIED: "a folder",
}


@dataclass(frozen=True)
class Lies:
    """The file is in this layer."""

    index: Index
    span: Span
    executable: bool


@dataclass(frozen=True)
class Barred:
    """There is no such file in the image, or none that may be taken; ``why`` goes on after the path."""

    why: str


Verdict = Lies | Barred | None
"""None: the layer says nothing of the path; the next lower one decides."""


def judge(index: Index, paths: Iterable[str]) -> dict[str, Verdict]:
    """Say what a layer means for each of these paths."""
    wanted = list(paths)
    bench = _Bench(index, wanted)
    verdicts = {path: bench.verdict(path) for path in wanted}
    return {**verdicts, **_followed(index, bench.links)}


class _Bench:
    """Judges paths by what one layer says of them and of the folders above."""

    def __init__(self, index: Index, paths: Iterable[str]) -> None:
        hashes: set[int] = set()
        for path in paths:
            place = path
            while (one := hash(place)) not in hashes:
                hashes.add(one)
                place = _above(place)
        self._index = index
        self._entries = index.entries(hashes)
        self._ways: dict[str, tuple[str, str]] = {"": ("", self._removed("", {Kind.OPAQUE}))}
        self.links: dict[str, Entry] = {}

    def verdict(self, path: str) -> Verdict:
        """Judge a path; a hard link is put aside into ``links``."""
        barred, removed = self._way(_above(path))
        entries = self._entries.get(hash(path), [])
        there = [entry for entry in entries if entry.kind not in REMOVALS]
        if barred:
            return Barred(barred)
        if there:
            return self._of(path, there)
        removed = removed or self._removed(path, {Kind.WHITEOUT})
        return Barred(removed) if removed else None

    def _of(self, path: str, there: list[Entry]) -> Verdict:
        """Judge what the layer has; of a name that is there twice, extractors leave the last."""
        kinds = {entry.kind for entry in there}
        if kinds & FOLDERS and kinds - FOLDERS:
            return Barred(f"is a folder and something else at once in {self._index.called}")
        last = there[-1]
        if last.kind in FILES:
            return Lies(self._index, Span(last.offset, last.extra), last.kind == Kind.PROGRAM)
        if last.kind == Kind.HARD_LINK:
            self.links[path] = last
        return Barred(f"is {_WORDS[last.kind]} in {self._index.called}")

    def _way(self, folder: str) -> tuple[str, str]:
        """Say what bars the way into a folder for all layers from here on, and what for those below this one."""
        if folder not in self._ways:
            barred, removed = self._way(_above(folder))
            if not barred:
                barred = next(self._not_folders(folder), "")
            removed = removed or self._removed(folder, REMOVALS)
            self._ways[folder] = barred, removed
        return self._ways[folder]

    def _not_folders(self, folder: str) -> Iterator[str]:
        for entry in self._entries.get(hash(folder), []):
            if entry.kind not in FOLDERS | REMOVALS:
                yield f"lies behind /{folder}, which is {_WORDS.get(entry.kind, 'a file')} in {self._index.called}"

    def _removed(self, path: str, by: set[Kind]) -> str:
        gone = any(entry.kind in by for entry in self._entries.get(hash(path), []))
        return f"was removed by {self._index.called}" if gone else ""


def _above(path: str) -> str:
    return path.rpartition("/")[0]


def _followed(index: Index, links: dict[str, Entry]) -> dict[str, Verdict]:
    """Follow hard links to files of the same layer, which must come before them: so no chain goes round."""
    verdicts: dict[str, Verdict] = {}
    for _ in range(LONGEST_CHAIN):
        if not links:
            break
        entries = index.entries({link.extra for link in links.values()})
        following: dict[str, Entry] = {}
        for path, link in links.items():
            target = _before(entries.get(link.extra, []), link.position)
            if target and target.kind == Kind.HARD_LINK:
                following[path] = target
            else:
                verdicts[path] = _end(index, target)
        links = following
    too_long = Barred(f"is a hard link to hard links, more than {LONGEST_CHAIN}, in {index.called}")
    return {**verdicts, **dict.fromkeys(links, too_long)}


def _before(entries: list[Entry], position: int) -> Entry | None:
    earlier = [entry for entry in entries if entry.position < position and entry.kind not in REMOVALS]
    return earlier[-1] if earlier else None


def _end(index: Index, target: Entry | None) -> Verdict:
    if target is None:
        return Barred(f"is a hard link to what is not in {index.called} before it")
    if target.kind in FILES:
        return Lies(index, Span(target.offset, target.extra), target.kind == Kind.PROGRAM)
    return Barred(f"is a hard link to {_WORDS[target.kind]} in {index.called}")
