"""The nvcc of CUDA 12.4, in the place of this host's toolkit: Debian's own package, fetched once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from build.emulate import apt_options, sources_list
from core.config import WORK
from core.errors import CommandFailed
from core.process import run
from lab.base import Distribution, Mirror, host_distribution, host_mirror

RELEASE = "12.4"
PACKAGE = "nvidia-cuda-toolkit"
SUITE = "trixie"
"""Has CUDA 12.4 in its section non-free (87 MB); older ones, and Ubuntu, have other releases."""
DEBIAN = "http://deb.debian.org/debian"

# /usr/local gets a second layer with an empty folder `cuda`: hosts without a toolkit have none to mount over, on others
# it may be a link.
ENTER = """
set -e
layer=$1 toolkit=$2; shift 2
mount --make-rprivate /
mount -t overlay -o lowerdir="$layer":/usr/local overlay /usr/local
mount --bind "$toolkit" /usr/local/cuda
exec "$@"
"""


def old_cuda() -> Path:
    """Return a folder with bin/nvcc and bin/ptxas of CUDA 12.4; without them the test is skipped, in CI it fails."""
    folder = WORK / f"cuda-{RELEASE}"
    if not folder.is_dir():
        try:
            _make(folder)
        except CommandFailed as error:
            reason = f"{PACKAGE} of Debian {SUITE} (non-free) cannot be had here: {error}"
            pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return folder


def inside(toolkit: Path, layer: Path) -> tuple[str, ...]:
    """Return how an argv begins that has ``toolkit`` as its /usr/local/cuda; ``layer`` is a folder to use up."""
    (layer / "cuda").mkdir(parents=True)
    return ("unshare", "--mount", "sh", "-c", ENTER, "sh", str(layer), str(toolkit))


def _make(folder: Path) -> None:
    place = folder.with_suffix(".partial")
    shutil.rmtree(place, ignore_errors=True)
    for name in ("state/lists/partial", "cache/archives/partial", "root"):
        (place / name).mkdir(parents=True)
    (place / "state/status").touch()
    wanted = Distribution("debian", SUITE, "amd64" if os.uname().machine == "x86_64" else "arm64")
    own = host_distribution()
    mirror = host_mirror(Distribution("debian", own.suite, own.architecture)) if own.id == "debian" else Mirror(DEBIAN)
    (place / "sources.list").write_text(sources_list(wanted, Mirror(mirror.url, ("non-free",))))
    apt = ("apt-get", *apt_options(wanted, place), "-q")
    run([*apt, "--error-on=any", "update"])
    run([*apt, "download", PACKAGE], cwd=place)
    (package,) = place.glob("*.deb")
    run(["dpkg-deb", "-x", str(package), str(place / "root")])
    toolkit = place / "root" / "usr/lib/nvidia-cuda-toolkit"
    shutil.copy2(place / "root/usr/bin/ptxas", toolkit / "bin/ptxas")
    toolkit.rename(folder)
    shutil.rmtree(place)
