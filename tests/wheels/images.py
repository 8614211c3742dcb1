"""Images made by umoci out of installed distributions: several layers, with files replaced, removed and hidden."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.process import run


@dataclass(frozen=True)
class Workbench:
    """An OCI layout that grows layer by layer."""

    folder: Path

    @property
    def image(self) -> str:
        """The image as umoci names it."""
        return f"{self.folder / 'layout'}:made"

    @property
    def reference(self) -> str:
        """The image as skopeo and we name it."""
        return f"oci:{self.image}"

    def begin(self) -> None:
        self.folder.mkdir(parents=True)
        run(["umoci", "init", "--layout", str(self.folder / "layout")])
        run(["umoci", "new", "--image", self.image])

    @contextmanager
    def layer(self) -> Iterator[Path]:
        """Give the image's files; what is changed there within the block becomes a layer, with whiteouts."""
        bundle = self.folder / "bundle"
        run(["umoci", "unpack", "--image", self.image, str(bundle)])
        yield bundle / "rootfs"
        run(["umoci", "repack", "--image", self.image, str(bundle)])
        shutil.rmtree(bundle)

    def opaque(self, source: Path, target: str) -> None:
        """Add a layer with the folder ``source`` as ``target``, which hides all that lower layers have there."""
        run(["umoci", "insert", "--image", self.image, "--opaque", str(source), target])

    def whiteout(self, target: str) -> None:
        """Add a layer that removes a file."""
        run(["umoci", "insert", "--image", self.image, "--whiteout", target])


def in_layers(bench: Workbench, root: Path, hidden: Sequence[str]) -> None:
    """Pack what is installed below ``root`` so that no layer holds it all.

    Of all files a third is old in the lowest layer and replaced in the next, a third comes from the lowest one, one as
    a hard link; a third from the next, which removes older metadata and strays. The folders ``hidden`` are opaque in
    layers of their own, over files that are wrong. The last layer has nothing to do with it.
    """
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    bench.begin()
    with bench.layer() as place:
        _older(place, root, files)
    with bench.layer() as place:
        _newer(place, root, files)
        for folder in hidden:
            _spoil(place / folder)
    for folder in hidden:
        bench.opaque(root / folder, f"/{folder}")
    with bench.layer() as place:
        _put(place / "srv" / "last", b"nothing")


def _older(place: Path, root: Path, files: Sequence[Path]) -> None:
    for path in files[::3]:
        _put(place / path, b"# old\n")
    for path in files[1::3]:
        _copy(root / path, place / path)
    os.link(place / files[1], place / "a-link")
    for info in root.rglob("*.dist-info"):
        older = f"{info.name.rpartition('-')[0]}-0.0.1.dist-info"
        shutil.copytree(info, place / info.parent.relative_to(root) / older)


def _newer(place: Path, root: Path, files: Sequence[Path]) -> None:
    for path in (*files[::3], *files[2::3]):
        _copy(root / path, place / path)
    for older in place.rglob("*-0.0.1.dist-info"):
        shutil.rmtree(older)


def _spoil(folder: Path) -> None:
    for path in folder.rglob("*.py"):
        path.write_bytes(b"# wrong\n")
    _put(folder / "stray.py", b"")


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # a hard link is not to change with it
    shutil.copy2(source, target)
