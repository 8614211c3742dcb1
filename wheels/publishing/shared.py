"""A folder as the package index of many releases: `PATH/RELEASE/` each, and `PATH/simple/` over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from core.config import shown
from core.errors import PublishRefused
from core.plan import Report
from core.store import held
from wheels.manifest import MANIFEST, Manifest
from wheels.publishing.index import Offer, pages
from wheels.publishing.release import SUMS, Release, assemble, offers_of, pending, write


@dataclass(frozen=True)
class SharedFolder:
    """Where releases are put beside each other. One file name stands for one file in all of them."""

    path: Path

    @property
    def address(self) -> str:
        """How it is written and shown."""
        return f"folder:{shown(self.path)}"

    def pending(self, release: Release) -> list[str]:
        """Say what is still to do. Raises PublishRefused when the folder has another file under a name of ours."""
        wanted = self._pages(release)
        todo = pending(release, self.path / release.name)
        stale = [name for name, page in wanted.items() if not _holds(self.path / name, page)]
        return [*todo, *([f"{len(stale)} pages of the index"] if stale else [])]

    def send(self, release: Release, folder: Path, report: Report) -> None:
        """Add the release from its own folder, then write the index's pages. Raises PublishRefused."""
        self._pages(release)  # refuses before anything is written
        assemble(release.lying_in(folder), self.path / release.name, report)
        with held(self.path / ".index.lock", f"writes the index of {self.address}", report):
            wanted = self._pages(release)
            # the pages of projects before the root's, and all after the files that they name
            for name in sorted(wanted, key=lambda name: -name.count("/")):
                if not _holds(self.path / name, wanted[name]):
                    (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                    write(self.path / name, wanted[name])

    def _pages(self, release: Release) -> dict[str, bytes]:
        offers: dict[str, Offer] = {}
        ours = offers_of(release.manifest, release.content, f"{release.name}/")
        for one in sorted([*self._others(release.name), *ours], key=lambda one: one.url):
            known = offers.setdefault(one.filename, one)
            if known.sha256 != one.sha256:
                raise PublishRefused(
                    f"there is another {one.filename} in {self.address}: "
                    + " and ".join(f"{each.sha256} in {each.url.split('/')[2]}" for each in (known, one)),
                    next_move="publish into another folder, or give the wheel another version",
                )
        return pages(offers.values())

    def _others(self, name: str) -> Iterator[Offer]:
        """Yield what the other releases of the folder offer."""
        for folder in (sums.parent for sums in sorted(self.path.glob(f"[!.]*/{SUMS}"))):
            if folder.name != name:
                yield from offers_of(_manifest(folder), _reader(folder), f"{folder.name}/")


def _reader(folder: Path) -> Callable[[str], bytes]:
    return lambda name: (folder / name).read_bytes()


def _manifest(folder: Path) -> Manifest:
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (ValidationError, OSError) as error:
        raise PublishRefused(
            f"{shown(folder)} lies among the releases and has no manifest that can be read",
            next_move="move it away, or publish into another folder",
        ) from error


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content
