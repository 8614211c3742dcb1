"""Where the two builders work: copies of the project for ours, plain folders for pip; each run timed from outside."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import load
from build.job import own_python
from build.recipe import REPRODUCIBLE, Recipe
from build.source import origin_file
from core.config import ROOT, WORK, load_data, read_toml
from core.facts import look_here
from core.process import run
from wheels.lock import for_target, read_lock
from wheels.manifest import sha256_of
from wheels.target import target_of

HERE = Path(__file__).parent
STACK, RECIPE = "overhead", "xgrammar"
FOLDERS = ("one", "another-longer-name")
TIMEOUT = 3600
SHARED = ("files", "requirements")
"""Folders of .work that hold what was fetched by hash."""
OURS, BARE, CLOCKED = "ours", "pip", "pip-clock"
"""Kinds of builds and names of their folders: `invoke build-wheels`, plain `pip wheel`, the same with a fixed clock."""


@dataclass(frozen=True)
class Run:
    """One build: seconds of wall clock and of processors; of a bare one also those before `pip wheel` began.

    ``load`` is the machine's before it began.
    """

    kind: str
    folder: str
    seconds: float
    prepare_seconds: float
    cpu_seconds: float
    sha256: str
    load: float


@dataclass(frozen=True)
class Workshop:
    """A folder for all of it, and how many compilers run at once."""

    folder: Path
    jobs: int

    def wheel(self, kind: str, name: str) -> Path:
        """Return where the wheel of the last build of a kind in a folder is kept."""
        (path,) = (self.folder / "wheels" / kind / name).glob("*.whl")
        return path

    def build(self, kind: str, name: str) -> Run:
        """Build from nothing and keep the wheel."""
        place, before = self.folder / kind / name, load()
        clear(place, kind)
        start, cpu = time.monotonic(), _cpu()
        made, prepared = (_ours if kind == OURS else _bare)(place, kind, self.jobs)
        seconds, used = time.monotonic() - start, _cpu() - cpu
        kept = self.folder / "wheels" / kind / name
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        wheel = Path(shutil.move(made, kept / made.name))
        clear(place, kind)
        prepare = prepared - start if prepared else 0.0
        return Run(kind, name, round(seconds, 1), round(prepare, 1), round(used, 1), sha256_of(wheel), before)


def make(jobs: int) -> Workshop:
    """Return a workshop made anew; what was fetched by hash is taken from the project's own."""
    shop = Workshop(WORK / "benchmark", jobs)
    shutil.rmtree(shop.folder, ignore_errors=True)
    for name in FOLDERS:
        _copy_project(shop.folder / OURS / name)
        for kind in (BARE, CLOCKED):
            (shop.folder / kind / name).mkdir(parents=True)
    return shop


def clear(place: Path, kind: str) -> None:
    """Remove what a build left; nobody's time."""
    left = ("dist", ".work/build") if kind == OURS else ("environment", "source", "wheels")
    for name in left:
        shutil.rmtree(place / name, ignore_errors=True)


def _copy_project(folder: Path) -> None:
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "dist", "__pycache__", "tests"))
    for name in SHARED:
        (WORK / name).mkdir(parents=True, exist_ok=True)
        (folder / ".work").mkdir(exist_ok=True)
        (folder / ".work" / name).symlink_to(WORK / name)
    shutil.copytree(HERE / "recipes", folder / "build" / "recipes", dirs_exist_ok=True)
    shutil.copytree(HERE / "stacks", folder / "config" / "stacks", dirs_exist_ok=True)


def _ours(place: Path, _: str, jobs: int) -> tuple[Path, float]:
    flags = (f"--stack={STACK}", f"--target={platform.machine()}", f"--jobs={jobs}")
    run([sys.executable, "-m", "invoke", "build-wheels", *flags], cwd=place, timeout=TIMEOUT)
    (wheel,) = (place / "dist" / STACK).glob("*/*.whl")
    return wheel, 0.0


def _bare(place: Path, kind: str, jobs: int) -> tuple[Path, float]:
    """Do what build/runner.py does, less what makes it ours; return the wheel and when `pip wheel` began."""
    environment = place / "environment"
    (place / "source").mkdir()
    run(["tar", "-xf", str(_sdist()), "-C", str(place / "source"), "--strip-components=1"])
    run([own_python(), "-m", "venv", "--without-pip", str(environment)])
    _install(environment)
    began = time.monotonic()
    variables = {
        "PATH": f"{environment}/bin:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(environment),
        "MAX_JOBS": str(jobs),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs),
        **({"SOURCE_DATE_EPOCH": REPRODUCIBLE["SOURCE_DATE_EPOCH"]} if kind == CLOCKED else {}),
    }
    flags = ("--no-index", "--no-deps", "--no-build-isolation", "--verbose", f"--wheel-dir={place}/wheels")
    argv = [str(environment / "bin" / "python"), "-m", "pip", "wheel", *flags, str(place / "source")]
    run(argv, env=variables, cwd=place / "source", timeout=TIMEOUT)
    (wheel,) = (place / "wheels").glob("*.whl")
    return wheel, began


def _install(environment: Path) -> None:
    """Install the recipe's locked build requirements, by the pip among them."""
    target = target_of(look_here())
    folder = WORK / "requirements" / target.tag
    locked = [
        f"{item.name}=={item.version}" for item in for_target(read_lock(HERE / "recipes" / f"{RECIPE}.lock"), target)
    ]
    (pip,) = [path for path in folder.glob("pip-*.whl") if f"pip=={path.name.split('-')[1]}" in locked]
    flags = ("--quiet", "--no-index", "--no-cache-dir", "--no-deps", "--no-compile", f"--find-links={folder}")
    run([str(environment / "bin" / "python"), str(pip / "pip"), "install", *flags, *locked])


def recipe() -> Recipe:
    """Return the recipe of what is built."""
    path = HERE / "recipes" / f"{RECIPE}.toml"
    return load_data(Recipe, path, read_toml(path))


def _sdist() -> Path:
    return origin_file(recipe().source, lambda _: None)


def _cpu() -> float:
    """Return the seconds of processors that finished child processes, and theirs, have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
