"""The disk of a machine: a sparse ext4 image that holds everything it writes, as the upper layer over the base root.

It is mounted only in the supervisor's own mount namespace: when the last process of a machine is gone, the kernel takes
the mounts and the loop device away with it, so nothing can be left behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from core.config import WORK
from core.errors import LabError
from core.process import run
from lab.place import Place


def ensure(place: Place, size: int, base: Path, report: Callable[[str], None]) -> None:
    """Make the machine's disk of ``size`` bytes over the root ``base`` when it is not there.

    LabError when it has another size.
    """
    if place.disk.exists():
        found = place.disk.stat().st_size
        if found != size:
            raise LabError(
                f"its disk has {found / 1024**3:.1f} GiB, the configuration says {size / 1024**3:.1f} GiB",
                next_move="run `invoke lab.clean`, then `invoke lab.up`, for a new disk; or change lab.disk back",
                node=place.node.name,
            )
        return
    report(f"{place.node.name}: making a disk of {size / 1024**3:.1f} GiB (sparse)")
    partial = place.disk.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with partial.open("xb") as file:
        file.truncate(size)
    place.base.write_text(f"{base.name}\n", encoding="utf-8")
    run(["mkfs.ext4", "-q", "-m", "0", "-L", "machine", str(partial)])
    partial.rename(place.disk)


def base_of(place: Place) -> Path:
    """Return the root that the disk was made over; LabError when it is gone."""
    base = WORK / "lab" / place.base.read_text(encoding="utf-8").strip()
    if not base.is_dir():
        raise LabError(
            f"the root {base.name} that this machine's disk was made over is gone",
            next_move="run `invoke lab.clean`, then `invoke lab.up`, for a new machine",
            node=place.node.name,
        )
    return base


def used(place: Place) -> int:
    """Return the bytes that the disk really takes on this host."""
    return place.disk.stat().st_blocks * 512 if place.disk.exists() else 0


def loops(place: Place) -> str:
    """Return the loop devices on the disk, as losetup says them; empty when it is free."""
    return run(["losetup", "--associated", str(place.disk), "--noheadings", "--output", "NAME"]).out.strip()


def wait_free(place: Place, seconds: float = 60) -> None:
    """Wait until nothing has the disk any more: the kernel lets go of it shortly after the last process ended."""
    deadline = time.monotonic() + seconds
    while place.disk.exists() and loops(place):
        if time.monotonic() > deadline:
            raise LabError(
                f"{place.disk} is still in use by {loops(place)}",
                next_move="unmount it (findmnt shows where), then run the same command again",
                node=place.node.name,
            )
        time.sleep(0.1)


def layers(base: Path, disk: Path, work: Path) -> str:
    """Return the overlay's options, relative to ``work``: a project path with a comma or colon cannot break them."""
    return ",".join(
        (
            f"lowerdir={base.relative_to(work)}",
            f"upperdir={(disk / 'upper').relative_to(work)}",
            f"workdir={(disk / 'work').relative_to(work)}",
        )
    )


def mount(place: Place) -> Path:
    """Mount disk and overlay, in the mount namespace we are in; return the machine's root."""
    disk, root = place.folder / "disk", place.folder / "root"
    for folder in (disk, root):
        folder.mkdir(exist_ok=True)
    # deleted files give their space back to the host: `discard` punches holes into the image
    run(["mount", "-t", "ext4", "-o", "loop,discard", str(place.disk), str(disk)])
    # past the host's page cache, which would hold everything twice and copy it on cores that the machines need as well;
    # where the host's filesystem has no direct I/O (tmpfs), with it (losetup(8))
    run(["losetup", "--direct-io=on", loops(place)], check=False)
    for layer in ("upper", "work"):
        (disk / layer).mkdir(exist_ok=True)
    run(["mount", "-t", "overlay", "overlay", "-o", layers(base_of(place), disk, WORK), str(root)], cwd=WORK)
    return root


def unmount(place: Place) -> None:
    """Unmount what `mount` mounted; the loop device goes with it."""
    run(["umount", str(place.folder / "root")])
    run(["umount", str(place.folder / "disk")])
