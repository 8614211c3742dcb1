"""A CUDA toolkit from the package index's wheels, by hash, in `.work/toolkits/`.

For hosts without one, for builds whose toolkit is pinned to the byte, and for cross builds, where it also holds headers
and libraries of the other machine.

The folder looks as NVIDIA's installer leaves it: bin/, nvvm/, targets/PLATFORM/{include,lib} and links to the host's
own. `complete.json` is written last, and the folder gets its name after that.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from build.index import FETCH_TIMEOUT, platform_flags, requirements_file, requirements_text
from core.config import ROOT, WORK, shown
from core.errors import BuildFailed, ConfigError
from core.host import CONTROLLER
from core.plan import Call, Report, Run, Step, Write
from core.process import run
from core.store import digest, full_disk_is_said, held, intact
from wheels.lock import Locked, read_lock
from wheels.target import Target

LOCKS = ROOT / "build" / "toolkits"
LAYOUT = 1
"""Counts up when the same wheels are laid out otherwise."""
PLATFORMS = {"x86_64": "x86_64-linux", "aarch64": "sbsa-linux"}
"""NVIDIA's names for what code runs on."""
HOST_ONLY = {"nvidia-cuda-cuxxfilt", "nvidia-cuda-nvcc", "nvidia-nvvm"}
"""Programs: only those of the machine that compiles are of use. Their headers are the same for every machine."""
PREFIX = ("nvidia", "cu13")
PROGRAMS = (("bin",), ("nvvm", "bin"))


@dataclass(frozen=True)
class Toolkit:
    """Which toolkit: CUDA's release ("13.0"), the machine that it runs on and the one that it compiles for."""

    release: str
    machine: str
    target: str
    libraries: bool = False
    """With cuBLAS, cuSPARSE, cuSOLVER, cuRAND, cuFFT, NVRTC, CUPTI (1.2 GB): what compiles against torch needs them."""

    @property
    def locks(self) -> tuple[Path, ...]:
        """The lock files whose wheels it consists of."""
        names = (f"cuda-{self.release}", *((f"cuda-{self.release}-libraries",) if self.libraries else ()))
        return tuple(LOCKS / f"{name}.lock" for name in names)

    @property
    def identity(self) -> str:
        """What it consists of (SHA-256, hex)."""
        parts = [str(LAYOUT), self.machine, self.target, *(lock.read_text(encoding="utf-8") for lock in self.locks)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def title(self) -> str:
        """It in words."""
        other = f", compiling for {self.target}" if self.target != self.machine else ""
        return f"CUDA {self.release} for {self.machine}{other}{', with libraries' if self.libraries else ''}"


def known_releases() -> list[str]:
    """Return the releases that there are locks of."""
    names = (path.stem.removeprefix("cuda-") for path in LOCKS.glob("cuda-*.lock"))
    return sorted(name for name in names if not name.endswith("-libraries"))


def toolkit_lists(release: str | None) -> tuple[Path, ...]:
    """Return the lists NAME.in that the locks of a release are made from; none for a release that has none."""
    return tuple(sorted(LOCKS.glob(f"cuda-{release}*.in"))) if release else ()


def toolkit_folder(toolkit: Toolkit, work: Path = WORK) -> Path:
    """Return where the toolkit lies, made or not. Raises ConfigError for a release that has no lock."""
    if toolkit.release not in known_releases():
        raise ConfigError(
            f"no CUDA toolkit {toolkit.release} can be made from wheels",
            next_move=f"use one of: {', '.join(known_releases())}; or the machine's own toolkit, without --toolkit",
        )
    return work / "toolkits" / f"cuda-{toolkit.release}-{toolkit.machine}-{toolkit.target}-{toolkit.identity[:10]}"


def is_whole(toolkit: Toolkit, work: Path = WORK) -> bool:
    """Say whether the toolkit is there."""
    return (toolkit_folder(toolkit, work) / "complete.json").is_file()


def toolkit_steps(toolkit: Toolkit, work: Path = WORK) -> tuple[Step, ...]:
    """Return what fetches and assembles the toolkit; nothing when it is there. Only missing wheels are fetched."""
    if is_whole(toolkit, work):
        return ()
    folder = toolkit_folder(toolkit, work)
    arrived = _arrived(folder)
    fetches = [step for machine, items in _missing(toolkit, work) for step in _fetch(toolkit, machine, items, arrived)]
    return (
        *((_folders(arrived, requirements_file(()).parent), *fetches) if fetches else ()),
        Call(
            node=CONTROLLER,
            title=f"assemble {toolkit.title}",
            reason="as NVIDIA's installer lays it out; every wheel by its hash",
            shown=f"unpack {len(_parts(toolkit))} wheels into {shown(folder)}",
            action=partial(assemble, toolkit, work=work),
        ),
    )


def _folders(*paths: Path) -> Run:
    argv = ("mkdir", "-p", *map(str, paths))
    return Run(node=CONTROLLER, title="make the folders", reason="wheels and lists go there", argv=argv)


def wheels_of(toolkit: Toolkit, work: Path = WORK) -> tuple[Path, ...]:
    """Return the toolkit's wheels as far as they are in the store."""
    kept = (_kept(item, machine, work) for item, machine in _parts(toolkit))
    return tuple(path for path in kept if path is not None)


def _arrived(folder: Path) -> Path:
    """Return where pip puts wheels before they go into the store."""
    return folder.with_name(f"{folder.name}.wheels")


def _missing(toolkit: Toolkit, work: Path) -> Iterator[tuple[str, tuple[Locked, ...]]]:
    """Return for each machine those of its wheels that are not in the store."""
    for machine in dict.fromkeys((toolkit.machine, toolkit.target)):
        own = (item for item, whose in _parts(toolkit) if whose == machine)
        items = tuple(item for item in own if _kept(item, machine, work) is None)
        if items:
            yield machine, items


def _parts(toolkit: Toolkit) -> tuple[tuple[Locked, str], ...]:
    """Return every wheel of the toolkit: its entry in the lock, and which machine's."""
    items = [item for lock in toolkit.locks for item in read_lock(lock)]
    own = [(item, toolkit.machine) for item in items]
    cross = toolkit.target != toolkit.machine
    return (*own, *((item, toolkit.target) for item in items if cross and item.name not in HOST_ONLY))


def _kept(item: Locked, machine: str, work: Path) -> Path | None:
    found = (path for sha256 in item.hashes for path in (work / "files" / sha256).glob(f"*_{machine}.whl"))
    return next(found, None)


def _fetch(toolkit: Toolkit, machine: str, items: tuple[Locked, ...], into: Path) -> tuple[Step, ...]:
    python = (sys.version_info[0], sys.version_info[1])  # the wheels are for every Python
    flags = platform_flags(Target(architecture=machine, python=python, glibc=(2, 39)))
    listed = requirements_file(items)
    return (
        Write(
            node=CONTROLLER,
            title="list what to fetch",
            reason="each with the hashes that the lock allows",
            path=PurePosixPath(listed),
            content=requirements_text(items),
        ),
        Run(
            node=CONTROLLER,
            title=f"fetch {len(items)} wheels for {machine}",
            reason=f"{toolkit.title}, by hash",
            argv=(
                *(sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--progress-bar=off"),
                *("--no-deps", "--require-hashes", "--only-binary=:all:", f"--dest={into}", *flags),
                f"--requirement={listed}",
            ),
            timeout=FETCH_TIMEOUT,
        ),
    )


def assemble(toolkit: Toolkit, report: Report, *, work: Path = WORK) -> Path:
    """Make the toolkit of its wheels and return its folder. Raises BuildFailed for a wheel that is not as locked."""
    folder = toolkit_folder(toolkit, work)
    partial_folder = folder.with_name(f"{folder.name}.partial")
    with held(folder.with_name(f".{folder.name}.lock"), "assembles this toolkit", report), full_disk_is_said(folder):
        if is_whole(toolkit, work):
            return folder
        _keep(toolkit, _arrived(folder), work)
        shutil.rmtree(partial_folder, ignore_errors=True)
        wheels = [(_intact(item, machine, report, work), item, machine) for item, machine in _parts(toolkit)]
        for wheel, item, machine in wheels:
            _unpack(wheel, partial_folder, toolkit, machine, only_headers=item.name in HOST_ONLY)
        _link(partial_folder, toolkit)
        _try(partial_folder, toolkit)
        _complete(partial_folder, toolkit, [wheel for wheel, _, _ in wheels])
        partial_folder.rename(folder)
    report(f"{toolkit.title}: {shown(folder)}")
    return folder


def _keep(toolkit: Toolkit, arrived: Path, work: Path) -> None:
    """Move what pip fetched into the store, by its hash; what no lock names is removed with its folder."""
    known = {sha256 for item, _ in _parts(toolkit) for sha256 in item.hashes}
    for wheel in sorted(arrived.glob("*.whl")):
        sha256 = digest(wheel)
        if sha256 in known:
            (work / "files" / sha256).mkdir(parents=True, exist_ok=True)
            wheel.replace(work / "files" / sha256 / wheel.name)
    shutil.rmtree(arrived, ignore_errors=True)


def _intact(item: Locked, machine: str, report: Report, work: Path) -> Path:
    kept = _kept(item, machine, work)
    found = intact(kept.parent.name, report, work=work) if kept else None
    if found is None:
        raise BuildFailed(
            f"the wheel of {item.name}=={item.version} for {machine} is not there, or not as locked",
            next_move="run the same command again: it is fetched anew",
        )
    return found


def _unpack(wheel: Path, folder: Path, toolkit: Toolkit, machine: str, *, only_headers: bool) -> None:
    """Unpack a wheel; the headers of programs go to every platform, programs to the top, all else to its platform."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            parts = PurePosixPath(member.filename).parts
            if member.is_dir() or parts[:2] != PREFIX or ".." in parts or parts[2].startswith("."):
                continue
            for target in _places(parts[2:], toolkit, machine, everywhere=only_headers):
                _write(archive, member, folder / target)


def _places(parts: tuple[str, ...], toolkit: Toolkit, machine: str, *, everywhere: bool) -> Iterator[PurePosixPath]:
    if parts[0] not in ("include", "lib"):
        if machine == toolkit.machine:
            yield PurePosixPath(*parts)
        return
    both = everywhere and parts[0] == "include"
    for one in dict.fromkeys((toolkit.machine, toolkit.target) if both else (machine,)):
        yield PurePosixPath("targets", PLATFORMS[one], *parts)


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, 1024**2)
    parent = target.parent.parts
    target.chmod(0o755 if any(parent[-len(place) :] == place for place in PROGRAMS) else 0o644)


def _link(folder: Path, toolkit: Toolkit) -> None:
    """Add the links that linkers and CMake look for: NAME.so to NAME.so.13, include and lib of this machine."""
    own = Path("targets") / PLATFORMS[toolkit.machine]
    for name, target in (("include", own / "include"), ("lib", own / "lib"), ("lib64", own / "lib")):
        (folder / name).symlink_to(target)
    (folder / "nvvm" / "lib64").symlink_to(Path("..") / own / "lib")
    for library in sorted((folder / "targets").glob("*/lib/*.so.*")):
        plain = library.with_name(f"{library.name.partition('.so.')[0]}.so")
        if not plain.exists():
            plain.symlink_to(library.name)


def _try(folder: Path, toolkit: Toolkit) -> None:
    """Ask nvcc for its release, where it runs on this host."""
    if platform.machine() != toolkit.machine:
        return
    said = run([str(folder / "bin" / "nvcc"), "--version"]).out
    if f"release {toolkit.release}," not in said:
        raise BuildFailed(
            f"the nvcc of these wheels is not of CUDA {toolkit.release}",
            next_move=f"correct build/toolkits/cuda-{toolkit.release}.in and make its lock again",
            evidence=said,
        )


def _complete(folder: Path, toolkit: Toolkit, wheels: list[Path]) -> None:
    record = {
        "toolkit": toolkit.title,
        "identity": toolkit.identity,
        "wheels": {wheel.name: wheel.parent.name for wheel in wheels},
    }
    with (folder / "complete.json").open("w", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
