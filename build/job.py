"""One build as a folder: what goes in, under which path and in which surroundings it runs, what comes out.

The folder is bound to one fixed path in a mount namespace of its own, because compilers write paths into what they
make (nvcc hashes the absolute path into symbol names, and no prefix map cures that). There is no network in it and no
compiler cache, and nothing of the caller's environment: what a build uses is what the recipe names.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from packaging.utils import parse_wheel_filename

from build.recipe import Recipe
from build.source import Sources
from core.config import ROOT
from core.errors import BuildFailed
from wheels.lock import Locked
from wheels.manifest import sha256_of
from wheels.sbom import PLACE

FIXED = PurePosixPath("/srv/sparkstack")
"""Where every job believes to be."""
CUDA = FIXED / "cuda"
CCACHE = FIXED / "ccache"
CACHES = ("/usr/bin/ccache", "/usr/bin/sccache", "/usr/local/bin/ccache", "/usr/local/bin/sccache")
"""Compiler caches, hidden from a build for a release: vLLM's and PyTorch's builds take one without being asked."""

# In namespaces of its own: job and toolkit to their fixed paths, caches out of sight. /srv is there on every Linux
# (FHS), and the empty file system over it lets also a user without root make a folder in it. The job is moved there
# from /mnt, because it may lie below /srv itself. The shell stays as the namespace's first process: the kernel gives
# that one no SIGTERM, and the runner is to take it. A user without root may write neither the host's name
# below /proc nor mount's table.
_ENTER = """
set -e
job=$1 cuda=$2 name=$3 cache=$4 hidden=$5; shift 5
mount --make-rprivate /
hostname "$name"
for each in $hidden; do if [ -f "$each" ]; then mount --bind /dev/null "$each"; fi; done
if [ -n "$cuda" ]; then mkdir -p "$job/cuda"; mount --bind "$cuda" "$job/cuda"; fi
if [ -n "$cache" ]; then mkdir -p "$cache" "$job/ccache"; mount --bind "$cache" "$job/ccache"; fi
mount --rbind "$job" /mnt
mount -t tmpfs -o mode=755 tmpfs /srv
mkdir /srv/sparkstack
mount --no-mtab --move /mnt /srv/sparkstack
cd /srv/sparkstack
"$@"
exit
"""


@dataclass(frozen=True)
class Task:
    """What a job folder is filled with; ``environment`` holds every placeholder filled in."""

    recipe: Recipe
    wheel: str
    environment: dict[str, str]
    strip: str = "strip"
    files: tuple[Path, ...] = ()
    """Further files that go into `in/`."""
    sbom: str = ""
    """What goes into the wheel's .dist-info (wheels/sbom.py)."""


def told(task: Task) -> str:
    """Return the text of job.json (build/runner.py says what it holds)."""
    data = {
        "environment": dict(sorted(task.environment.items())),
        "subdirectory": str(task.recipe.subdirectory or "."),
        "options": list(task.recipe.build_options),
        "wheel": task.wheel,
        "strip": task.strip,
        "epoch": int(task.environment["SOURCE_DATE_EPOCH"]),
        "sbom": {"place": PLACE, "text": task.sbom},
    }
    return json.dumps(data, indent=1) + "\n"


def lay_out(folder: Path, task: Task, sources: Sources, wheels: Iterable[Path]) -> None:
    """Fill `in/` of a job folder anew: source, wheels of the build environment with their hashes, runner."""
    into = folder / "in"
    shutil.rmtree(into, ignore_errors=True)
    (into / "wheels").mkdir(parents=True)
    lines = []
    for wheel in wheels:
        link_or_copy(wheel, into / "wheels" / wheel.name)
        name, version, *_ = parse_wheel_filename(wheel.name)
        lines.append(f"{name}=={version} --hash=sha256:{sha256_of(wheel)}\n")
    (into / "requirements.txt").write_text("".join(sorted(lines)), encoding="utf-8")
    pack_sources(sources, into / "source.tar")
    (into / "job.json").write_text(told(task), encoding="utf-8")
    for file in task.files:
        shutil.copyfile(file, into / file.name)
    shutil.copyfile(ROOT / "build" / "runner.py", into / "runner.py")
    shutil.copyfile(ROOT / "wheels" / "canonical.py", into / "canonical.py")


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system has no such links or they cross a border."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def pack_sources(sources: Sources, target: Path) -> None:
    """Write `source/` and `deps/` as a tar file, names sorted and owners left out."""
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as archive:
        for name in ("source", "deps"):
            if (sources.folder / name).is_dir():
                archive.add(sources.folder / name, name, filter=_plain)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def requirement_wheels(locked: Iterable[Locked], folder: Path) -> Iterator[Path]:
    """Return the fetched wheels of a recipe's lock. Raises BuildFailed for one that is missing or not as locked."""
    files = {_identity(path): path for path in sorted(folder.glob("*.whl"))}
    for item in locked:
        path = files.get((item.name, item.version))
        if path is None:
            raise BuildFailed(f"{item.name}=={item.version} was not fetched", next_move="run the same command again")
        if sha256_of(path) not in item.hashes:
            path.unlink()
            raise BuildFailed(
                f"{path.name} is not what the lock names; it was removed", next_move="run the same command again"
            )
        yield path


def missing_wheels(locked: Iterable[Locked], folder: Path) -> list[str]:
    """Return the names of a lock whose wheels are not in the folder."""
    files = {_identity(path) for path in folder.glob("*.whl")}
    return [item.name for item in locked if (item.name, item.version) not in files]


def _identity(path: Path) -> tuple[str, str]:
    name, version, *_ = parse_wheel_filename(path.name)
    return str(name), str(version)


def runner_argv(python: str) -> tuple[str, ...]:
    """Return what runs inside: our runner, with nothing of the user's Python settings."""
    return (python, "-E", "-s", str(FIXED / "in" / "runner.py"), str(FIXED))


def entered(job: Path, python: str, *, cuda: str = "", name: str = "sparkstack", cache: str = "") -> tuple[str, ...]:
    """Return the argv that runs a job in namespaces of its own on this host; without root in a user namespace too.

    ``cache`` is the folder of the compiler cache, which outlives the job; without it caches are hidden.

    With us ends `unshare`, with that the first process of the namespace, and with that one all others: no compiler
    goes on when we are killed.
    """
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    hidden = "" if cache else " ".join(CACHES)
    shell = ("sh", "-c", _ENTER, "sh", str(job), cuda, name, cache, hidden)
    with_us = ("setpriv", "--pdeathsig=KILL", "unshare", "--fork", "--kill-child")
    return (*with_us, *user, "--mount", "--net", "--uts", "--pid", "--mount-proc", "--", *shell, *runner_argv(python))


def unit_properties(job: PurePosixPath, *, memory: int, cuda: str = "", cache: str = "") -> tuple[str, ...]:
    """Return the properties of the unit that gives a job the same surroundings on a node; ``memory`` in bytes.

    By systemd, not by `unshare`: Ubuntu 24.04 gives users no namespaces (apparmor_restrict_unprivileged_userns).
    """
    return (
        f"MemoryMax={memory}",
        "MemorySwapMax=0",
        "UMask=0022",
        "PrivateNetwork=yes",
        "TemporaryFileSystem=/srv",
        f"BindPaths={job}:{FIXED}",
        *((f"BindReadOnlyPaths={cuda}:{CUDA}",) if cuda else ()),
        f"BindPaths={cache}:{CCACHE}" if cache else f"InaccessiblePaths={' '.join(f'-{path}' for path in CACHES)}",
        f"WorkingDirectory={FIXED}",
    )


def own_python() -> str:
    """Return this host's interpreter outside of our own environment."""
    return getattr(sys, "_base_executable", sys.executable)
