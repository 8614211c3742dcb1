"""Faults of builds on this host, each caused for real: one clear error, nothing half-made, and the next run goes on."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from core.config import ROOT
from core.process import run
from tests.builds.old_cuda import inside, old_cuda
from tests.builds.workshop import Workshop
from tests.machines.command_line import Ended, Started, assert_interrupted, assert_refused, left_of
from tests.unit.gitserver import Repository, Server
from tests.unit.gitserver import serving as serving_git
from tests.unit.smalldisk import mounted
from tests.unit.webserver import Web, serving

pytestmark = pytest.mark.builds

BUILD = ("build-wheels", "--stack=brief", f"--target={os.uname().machine}")
PLAIN = ("build-wheels", "--stack=plain", f"--target={os.uname().machine}")
FILES = {
    "pyproject.toml": """
[build-system]
requires = ["scikit-build-core"]
build-backend = "scikit_build_core.build"
[project]
name = "sparkstack-plain"
version = "1.0"
[tool.scikit-build]
wheel.cmake = false
wheel.packages = ["plain"]
""",
    "plain/__init__.py": "ANSWER = 42\n",
}
RECIPE = """
distribution = "sparkstack-plain"
version = "1.0"
requires = ["pip==26.3", "scikit-build-core==1.1.2"]
[source]
{source}
[expected]
tags = "py3-none-any"
files = ["plain/__init__.py"]
"""
LOG = ".work/logs/build-slow-"


@pytest.fixture
def shop(workshop: Workshop) -> Iterator[Workshop]:
    """Return a copy of the project in which nothing of the stack was made, and leave nothing of it."""
    shutil.copytree(ROOT / "tests" / "builds" / "recipes", workshop.folder / "build" / "recipes", dirs_exist_ok=True)
    forget(workshop)
    yield workshop
    forget(workshop)


def forget(shop: Workshop) -> None:
    for stack in ("brief", "plain"):
        shop.forget(stack)
    shutil.rmtree(shop.folder / ".work" / "sources", ignore_errors=True)
    shutil.rmtree(shop.folder / ".work" / "build", ignore_errors=True)
    shutil.rmtree(shop.folder / ".work" / "ccache", ignore_errors=True)


def nothing_made(shop: Workshop) -> bool:
    """Say whether the wheelhouse holds neither a wheel, whole or half, nor a record nor a list of one."""
    made = [path for stack in ("brief", "plain") for path in (shop.folder / "dist" / stack).rglob("*")]
    return not [path for path in made if path.is_file()]


def goes_on(shop: Workshop) -> None:
    """Run the same command again; it must succeed."""
    shop.invoke.works(*BUILD)
    assert shop.wheels("brief") == [f"slow-1.0-py3-none-linux_{os.uname().machine}.whl"]
    assert shop.jobs() == []


def namespace(process: str | Path) -> int:
    """Return the number of a process's mount namespace; 0 of one that has ended."""
    try:
        return (Path("/proc") / process / "ns" / "mnt").stat().st_ino
    except OSError:
        return 0


def processes_in(space: int) -> list[Path]:
    """Return the processes of a mount namespace, as their folders in /proc."""
    return [folder for folder in Path("/proc").glob("[0-9]*") if namespace(folder) == space]


def compiles_a_part(process: Path) -> bool:
    """Say whether it is a compiler at the source itself: CMake tries the compiler on files of its own before."""
    try:
        command = (process / "cmdline").read_text(errors="replace")
    except OSError:  # it has ended
        return False
    return "cc1plus" in command and "part1.cpp" in command


def compilers_of(started: Started) -> list[Path]:
    """Return the compilers of a command: they carry no mark, because a build's environment is its recipe's alone."""
    spaces = {namespace(str(pid)) for pid in left_of(started.mark)} - {namespace("self"), 0}
    return [process for space in spaces for process in processes_in(space) if compiles_a_part(process)]


def opened(process: Path) -> BinaryIO | None:
    """Open the mount namespace of a process; None of one that has ended."""
    try:
        return (process / "ns" / "mnt").open("rb", buffering=0)
    except OSError:
        return None


@contextmanager
def compiling(started: Started) -> Iterator[tuple[list[Path], int]]:
    """Wait until the build compiles; give its compilers and the number of the namespace that it runs in.

    The namespace is kept open meanwhile: the number of one that is gone goes to the next that anybody makes.
    """
    found, held = list[Path](), list[BinaryIO]()

    def look() -> bool:
        found[:] = compilers_of(started)
        held[:] = filter(None, map(opened, found[:1]))
        return bool(held)

    started.reaches(look, "it never compiled")
    with held[0] as space:
        yield found, os.fstat(space.fileno()).st_ino


def ended(space: int, seconds: float = 5) -> bool:
    """Wait until nothing is left of a namespace."""
    until = time.monotonic() + seconds
    while processes_in(space) and time.monotonic() < until:
        time.sleep(0.05)
    return not processes_in(space)


def test_a_compiler_that_is_killed_ends_the_build_and_the_next_run_goes_on(shop: Workshop) -> None:
    with shop.invoke.begin(*BUILD) as started, compiling(started) as (compilers, space):
        os.kill(int(compilers[0].name), signal.SIGKILL)
        done = started.ended()
        assert ended(space)
    assert_refused(done, 30, "build slow-1.0", "cc1plus", "most likely out of memory", LOG)
    assert nothing_made(shop)
    goes_on(shop)


def test_ctrl_c_ends_every_compiler_and_the_next_run_goes_on(shop: Workshop) -> None:
    with shop.invoke.begin(*BUILD) as started, compiling(started) as (_, space):
        started.interrupt()
        done = started.ended()
        assert ended(space)
    assert_interrupted(done)
    assert nothing_made(shop)
    goes_on(shop)


def test_no_compiler_outlives_a_command_that_is_killed_and_the_next_run_goes_on(shop: Workshop) -> None:
    with shop.invoke.begin(*BUILD) as started, compiling(started) as (_, space):
        started.process.kill()
        assert ended(space)
        assert started.ended().code == -signal.SIGKILL
        assert left_of(started.mark) == []
    assert nothing_made(shop)
    goes_on(shop)


def test_a_disk_that_fills_up_is_told_as_such_and_the_next_run_goes_on(shop: Workshop) -> None:
    jobs = shop.folder / ".work" / "build"
    with mounted(jobs, "400m"), shop.invoke.begin(*BUILD) as started, compiling(started):
        fill(jobs / "filler")
        done = started.ended()
    assert_refused(
        done, 30, "build slow-1.0", "the disk is full where the build writes", "No space left on device", LOG
    )
    assert nothing_made(shop)
    shutil.rmtree(jobs)
    goes_on(shop)


def fill(path: Path) -> None:
    assert "No space left on device" in run(["cp", "/dev/zero", str(path)], check=False).err


def test_a_disk_that_is_too_small_for_the_sources_is_told_as_such(shop: Workshop) -> None:
    jobs = shop.folder / ".work" / "build"
    with mounted(jobs, "2m"):
        done = shop.invoke(*BUILD)
    assert_refused(done, 60, "the disk of .work/build/slow-", "is full", "run the same command again")
    assert nothing_made(shop)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("ccache") is None, reason="this host has no ccache")
def test_a_development_build_takes_from_ccache_and_one_for_a_release_does_not(shop: Workshop) -> None:
    shop.invoke.works(*BUILD, "--development")
    shop.forget("brief")
    assert hits(shop) == 0
    shop.invoke.works(*BUILD, "--development")
    kept = hits(shop)
    assert kept > 0
    assert shop.manifest("brief", os.uname().machine)["slow"]["development"]
    with shop.invoke.begin(*BUILD) as started, compiling(started):
        assert started.ended(300).code == 0
    assert hits(shop) == kept
    assert not shop.manifest("brief", os.uname().machine)["slow"]["development"]


def hits(shop: Workshop) -> int:
    """Return how many objects came out of the compiler cache."""
    folder = {"CCACHE_DIR": str(shop.folder / ".work" / "ccache")}
    told = dict(line.split("\t") for line in run(["ccache", "--print-stats"], env=folder).out.splitlines())
    return int(told["direct_cache_hit"]) + int(told["preprocessed_cache_hit"])


def plain_from(shop: Workshop, **source: str) -> None:
    """Write the recipe of the plain wheel with that source."""
    lines = "\n".join(f'{key} = "{value}"' for key, value in source.items())
    (shop.folder / "build" / "recipes" / "plain.toml").write_text(RECIPE.format(source=lines))


def plain_is_made(shop: Workshop, environment: Mapping[str, str] | None = None) -> None:
    """Run the same command again; it must succeed."""
    done = shop.invoke(*PLAIN, environment=environment)
    assert done.code == 0, str(done)
    assert shop.wheels("plain") == ["sparkstack_plain-1.0-py3-none-any.whl"]


def sdist() -> bytes:
    """Return a source distribution of the plain wheel."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, text in {
            **FILES,
            "PKG-INFO": "Metadata-Version: 2.1\nName: sparkstack-plain\nVersion: 1.0\n",
        }.items():
            member = tarfile.TarInfo(f"sparkstack_plain-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return file.getvalue()


class Index:
    """A package index on loopback with the one source distribution, and pip's configuration that leads there."""

    FILE = "/files/sparkstack_plain-1.0.tar.gz"

    def __init__(self, web: Web, shop: Workshop) -> None:
        self.web, self.content = web, sdist()
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        page = f'<a href="{self.FILE}#sha256={self.sha256}">sparkstack_plain-1.0.tar.gz</a>'
        web.pages = {"/simple/sparkstack-plain/": page.encode(), self.FILE: self.content}
        web.types = {"/simple/sparkstack-plain/": "text/html"}
        self.environment = {"PIP_EXTRA_INDEX_URL": f"{web.url}/simple"}
        self.kept = shop.folder / ".work" / "files" / self.sha256

    def damaged(self) -> bytes:
        """Return the file with one byte changed, as long as before."""
        middle = len(self.content) // 2
        return self.content[:middle] + bytes([self.content[middle] ^ 1]) + self.content[middle + 1 :]


@pytest.fixture
def index(shop: Workshop) -> Iterator[Index]:
    with serving() as web:
        index = Index(web, shop)
        plain_from(shop, sdist="sparkstack-plain==1.0", sha256=index.sha256)
        yield index
    shutil.rmtree(index.kept, ignore_errors=True)


def test_an_archive_that_is_damaged_on_its_way_is_not_built(shop: Workshop, index: Index) -> None:
    index.web.pages[index.FILE] = index.damaged()
    done = shop.invoke(*PLAIN, environment=index.environment)
    assert_refused(done, 30, "sparkstack_plain-1.0.tar.gz", "is not what the recipe names", index.sha256)
    assert nothing_made(shop)
    index.web.pages[index.FILE] = index.content
    plain_is_made(shop, index.environment)


def test_an_archive_that_is_damaged_in_the_store_is_fetched_again(shop: Workshop, index: Index) -> None:
    plain_is_made(shop, index.environment)
    (kept,) = index.kept.glob("sparkstack_plain-1.0.tar.gz")
    kept.write_bytes(index.damaged())
    forget(shop)
    pages, index.web.pages = index.web.pages, {}
    done = shop.invoke(*PLAIN, environment=index.environment)
    assert_refused(done, 30, "no source distribution of sparkstack-plain==1.0", "PIP_INDEX_URL")
    assert nothing_made(shop)
    index.web.pages = pages
    plain_is_made(shop, index.environment)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving_git(tmp_path / "served") as server:
        yield server


def tagged(server: Server) -> tuple[Repository, str]:
    """Serve the plain wheel's source; return its repository and the commit that the tag v1 names."""
    repository = server.repository("plain")
    commit = repository.commit(FILES)
    repository.git("tag", "v1")
    return repository, commit


def test_a_tag_that_has_moved_is_told_and_not_built(shop: Workshop, server: Server) -> None:
    repository, pinned = tagged(server)
    plain_from(shop, repository=server.url("plain"), reference="v1", commit=pinned)
    moved = repository.commit({"plain/__init__.py": "ANSWER = 41\n"})
    repository.git("tag", "--force", "v1")
    done = shop.invoke(*PLAIN)
    assert_refused(done, 30, f"the tag v1 of {server.url('plain')} has moved", pinned, moved, "invoke build.lock")
    assert nothing_made(shop)
    done = shop.invoke("build.lock", "--stack=plain", "--dry-run")
    assert_refused(done, 30, f"v1 of {server.url('plain')} is {moved}, the recipe says {pinned}", "plain.toml")
    repository.git("tag", "--force", "v1", pinned)
    plain_is_made(shop)


def test_a_commit_that_does_not_exist_is_told(shop: Workshop, server: Server) -> None:
    _, commit = tagged(server)
    absent = "dead" * 10
    plain_from(shop, repository=server.url("plain"), commit=absent)
    done = shop.invoke(*PLAIN)
    assert_refused(done, 30, server.url("plain"), f"the pinned commit {absent} does not exist there", "correct the pin")
    assert nothing_made(shop)
    done = shop.invoke("build.lock", "--stack=plain", "--dry-run")
    assert_refused(done, 30, f"plain: {server.url('plain')} has no commit {absent}")
    plain_from(shop, repository=server.url("plain"), commit=commit)
    plain_is_made(shop)


def test_an_older_cuda_is_refused_before_anything_is_begun(shop: Workshop, tmp_path: Path) -> None:
    stacks = shop.folder / "config" / "stacks"
    shutil.copy(stacks / "probe-only.toml", stacks / "probe-again.toml")  # nothing of it is made, whatever ran before
    words = ("build-wheels", "--stack=probe-again", f"--target={os.uname().machine}")
    invoke = str(Path(sys.executable).with_name("invoke"))
    answered = run([*inside(old_cuda(), tmp_path / "layer"), invoke, *words], cwd=shop.folder, check=False)
    done = Ended(words, answered.code, answered.out, answered.err, 0, "")
    assert_refused(done, 25, "controller: its nvcc is of CUDA 12.4, the recipe needs 13.0", "cuda-toolkit-13-0")
    assert shop.jobs() == []
    assert not (shop.folder / "dist" / "probe-again").exists()
