"""Try wheels for aarch64 on x86_64: import them in an arm64 Python under qemu's user emulation.

The arm64 root is made once of the distribution's own packages, in `.work/emulation/SUITE-HASH/`: apt fetches them with
a state of its own (nothing of this host's apt changes) and dpkg-deb unpacks them, so that neither root nor a second
architecture in dpkg is needed. Emulated code runs about ten times slower: this is for imports, not for compiling.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.config import WORK, shown
from core.errors import BuildFailed, CommandFailed, HostNotReady
from core.plan import Report
from core.process import Completed, follow, run
from core.store import full_disk_is_said, held
from lab.base import KEYRINGS, Distribution, Mirror, choose_mirror, host_distribution, host_mirror

ARCHITECTURES = {"aarch64": "arm64"}
"""Machines that are emulated, with Debian's name for them."""
PACKAGES = ("libgomp1", "libpython3-dev", "libstdc++6", "python3")
"""Python with its headers (a cross build may need them), and what compiled modules link to."""
LAYOUT = 1
"""Counts up when the same packages are laid out otherwise."""
PATIENCE = 300
"""Seconds after which an import has failed."""


@dataclass(frozen=True)
class Root:
    """An unpacked arm64 system with Python."""

    folder: Path
    machine: str

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "usr/bin/python3"

    @property
    def includes(self) -> tuple[Path, ...]:
        """Folders with Python's headers for the machine and nothing else: not all of its /usr/include."""
        (version,) = (path.name for path in (self.folder / "usr/include").glob("python3.*"))
        return (self.folder / "usr/include" / version, self.folder / "python-include")


def emulator(machine: str) -> str | None:
    """Return the program that runs the machine's code on this host; None where there is none."""
    return shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")


def root_folder(wanted: Distribution, work: Path = WORK) -> Path:
    """Return where the root for this distribution and machine lies, made or not."""
    recipe = repr((wanted, PACKAGES, LAYOUT))
    return (
        work / "emulation" / f"{wanted.suite}-{wanted.architecture}-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}"
    )


def mirror_of(wanted: Distribution) -> Mirror:
    """Return where the foreign packages are: Ubuntu has other architectures on a host of their own."""
    if wanted.id == "ubuntu" and wanted.architecture != host_distribution().architecture:
        return choose_mirror([], wanted, lambda _: "")
    return host_mirror(wanted)


def ensure_root(machine: str, report: Report, *, work: Path = WORK) -> Root:
    """Return the root, made when it is not there (seconds, 25 MB fetched). Raises HostNotReady when it cannot be."""
    own = host_distribution()
    wanted = Distribution(own.id, own.suite, ARCHITECTURES[machine])
    folder = root_folder(wanted, work)
    with held(folder.with_name(f".{folder.name}.lock"), "makes this root", report), full_disk_is_said(folder):
        if not folder.is_dir():
            _make_root(wanted, folder, report)
    return Root(folder, machine)


def _make_root(wanted: Distribution, folder: Path, report: Report) -> None:
    mirror = mirror_of(wanted)
    report(f"making a root of {wanted.id} {wanted.suite} for {wanted.architecture} from {mirror.url}, once")
    partial, log = folder.with_suffix(".partial"), folder.with_suffix(".log")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _make(wanted, mirror, partial, log)
    except CommandFailed as error:
        raise HostNotReady(
            f"no root for {wanted.architecture} could be made: {error.cause}",
            next_move=f"read {shown(log)}; check that apt-get update works here, then run the same command again",
            evidence=error.evidence,
        ) from error
    (partial / "root").rename(folder)
    shutil.rmtree(partial)


def _make(wanted: Distribution, mirror: Mirror, place: Path, log: Path) -> None:
    apt = apt_options(wanted, place)
    for folder in ("state/lists/partial", "cache/archives/partial", "root"):
        (place / folder).mkdir(parents=True)
    (place / "state/status").touch()
    (place / "sources.list").write_text(sources_list(wanted, mirror), encoding="utf-8")
    log.unlink(missing_ok=True)
    follow(["apt-get", *apt, "-q", "--error-on=any", "update"], _quiet, log=log)
    install = ("-q", "-y", "--no-install-recommends", "--download-only", "install")
    follow(["apt-get", *apt, *install, *PACKAGES], _quiet, log=log)
    for package in sorted((place / "cache/archives").glob("*.deb")):
        follow(["dpkg-deb", "-x", str(package), str(place / "root")], _quiet, log=log)
    _finish(place / "root")


def _quiet(_: str) -> None:
    """Leave the line to the log."""


def sources_list(wanted: Distribution, mirror: Mirror) -> str:
    """Return apt's line for the mirror, its signature checked by the distribution's own key."""
    keyring = Path("/usr/share/keyrings") / KEYRINGS[wanted.id]
    options = f"[arch={wanted.architecture} signed-by={keyring}]"
    return f"deb {options} {mirror.url} {wanted.suite} {' '.join(mirror.components)}\n"


def apt_options(wanted: Distribution, place: Path) -> tuple[str, ...]:
    """Return options that give apt a state, a cache and an architecture of its own; proxies stay the host's."""
    settings = {
        "Dir::State": place / "state",
        "Dir::State::status": place / "state/status",
        "Dir::Cache": place / "cache",
        "Dir::Etc::sourcelist": place / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "APT::Architecture": wanted.architecture,
        "APT::Architectures::": wanted.architecture,
        "APT::Sandbox::User": "root",  # apt's own user may not see this folder
    }
    return tuple(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))


def _finish(root: Path) -> None:
    """Add what packages leave to base-files (the merged /usr), and a folder of Python's headers alone."""
    for name in ("bin", "lib", "sbin"):
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    for headers in (root / "usr/include").glob("*-linux-gnu/python3.*"):
        alone = root / "python-include" / headers.parent.name
        alone.mkdir(parents=True)
        (alone / headers.name).symlink_to(Path("../../usr/include") / headers.parent.name / headers.name)


def import_wheel(wheel: Path, modules: Sequence[str], report: Report, *, machine: str = "aarch64") -> None:
    """Import modules of a wheel in the machine's Python, and load every library that the wheel holds.

    Raises BuildFailed with what Python said, HostNotReady where there is no emulator.
    """
    program = emulator(machine)
    if program is None:
        raise HostNotReady(
            f"{machine} cannot be emulated here", next_move="sudo apt-get install qemu-user-static, or build on a node"
        )
    root = ensure_root(machine, report)
    with tempfile.TemporaryDirectory(prefix="sparkstack-") as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        done = _run(import_argv(program, root, Path(folder), modules))
    if done.code != 0:
        raise BuildFailed(
            f"{wheel.name} does not import on {machine}",
            next_move="read the lines above: it was built for another machine, or needs what is not there",
            evidence=done.tail(),
        )
    report(f"{wheel.name} imports on {machine} (emulated)")


def _run(argv: Sequence[str]) -> Completed:
    return run(argv, check=False, timeout=PATIENCE)


_IMPORT = """
import ctypes, importlib, pathlib, sys
place, *modules = sys.argv[1:]
sys.path.insert(0, place)
sys.dont_write_bytecode = True
for name in modules:
    importlib.import_module(name)
for library in sorted(pathlib.Path(place).rglob("*.so*")):
    ctypes.CDLL(str(library))
"""


def import_argv(program: str, root: Root, folder: Path, modules: Sequence[str]) -> tuple[str, ...]:
    """Return the argv that imports modules from the unpacked wheel ``folder``, with nothing of this host's Python."""
    python = (str(root.python), "-E", "-s", "-S", "-c", _IMPORT, str(folder))
    return (program, "-L", str(root.folder), *python, *modules)
