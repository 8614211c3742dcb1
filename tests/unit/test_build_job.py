"""What goes into a job folder, and in which surroundings a job runs."""

from __future__ import annotations

import errno
import json
import os
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from build import job, site
from build.job import (
    Task,
    entered,
    link_or_copy,
    missing_wheels,
    pack_sources,
    requirement_wheels,
    told,
    unit_properties,
)
from build.recipe import Recipe, environment, load_recipe
from build.source import Sources
from core.errors import BuildFailed
from core.plan import Run
from core.process import run
from tests.unit.samples import lab_facts, local
from wheels.lock import Locked
from wheels.manifest import sha256_of

NAMES = ("one-1.0-py3-none-any.whl", "Two_Words-2.0-py3-none-any.whl")


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("probe")


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).write_text(name)
    return tmp_path


def locked(name: str, version: str, *hashes: str) -> Locked:
    return Locked(name, version, frozenset(hashes), None, "")


def both(wheels: Path) -> list[Locked]:
    one, two = (sha256_of(wheels / name) for name in NAMES)
    return [locked("one", "1.0", "0" * 64, one), locked("two-words", "2.0", two)]


def test_job_json_says_what_the_runner_reads(recipe: Recipe) -> None:
    task = Task(recipe, "x-1-py3-none-any.whl", {"Z": "last", **environment(recipe, [])}, strip="aarch64-strip")
    text = told(task)
    data = json.loads(text)
    assert list(data) == ["environment", "subdirectory", "options", "wheel", "strip", "epoch", "sbom"]
    assert list(data["environment"]) == sorted(data["environment"])
    assert data["epoch"] == int(data["environment"]["SOURCE_DATE_EPOCH"])
    assert data["strip"] == "aarch64-strip"
    assert data["sbom"] == {"place": "sboms/sparkstack.cdx.json", "text": ""}
    assert data["subdirectory"] == str(recipe.subdirectory or ".")
    assert told(task) == text


def test_the_wheels_of_a_lock_are_found_by_name_and_hash(wheels: Path) -> None:
    assert [path.name for path in requirement_wheels(both(wheels), wheels)] == list(NAMES)
    assert missing_wheels(both(wheels), wheels) == []


def test_a_wheel_that_is_not_there_is_named(wheels: Path) -> None:
    wanted = [*both(wheels), locked("one", "1.1", "0" * 64)]
    assert missing_wheels(wanted, wheels) == ["one"]
    with pytest.raises(BuildFailed, match=r"one==1\.1 was not fetched") as caught:
        list(requirement_wheels(wanted, wheels))
    assert caught.value.next_move == "run the same command again"


def test_a_wheel_with_another_hash_is_refused_and_removed_so_that_the_next_run_fetches_it(wheels: Path) -> None:
    wanted = both(wheels)
    (wheels / NAMES[1]).write_text("damaged")
    with pytest.raises(BuildFailed, match="is not what the lock names; it was removed") as caught:
        list(requirement_wheels(wanted, wheels))
    assert NAMES[1] in caught.value.cause
    assert missing_wheels(wanted, wheels) == ["two-words"]
    assert (wheels / NAMES[0]).exists()


def test_a_file_gets_a_second_name(wheels: Path) -> None:
    link_or_copy(wheels / NAMES[0], wheels / "other")
    assert (wheels / "other").samefile(wheels / NAMES[0])


def test_where_no_link_can_be_made_the_file_is_copied(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(job.os, "link", refuse)
    link_or_copy(wheels / NAMES[0], wheels / "other")
    assert not (wheels / "other").samefile(wheels / NAMES[0])
    assert (wheels / "other").read_text() == NAMES[0]


def test_sources_are_packed_without_owners_and_in_one_order(tmp_path: Path) -> None:
    for name in ("source/b.py", "source/a.py", "deps/LIBRARY/c.h", "elsewhere/d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    pack_sources(sources_in(tmp_path), tmp_path / "source.tar")
    with tarfile.open(tmp_path / "source.tar") as archive:
        members = archive.getmembers()
    files = [member.name for member in members if member.isfile()]
    assert files == ["source/a.py", "source/b.py", "deps/LIBRARY/c.h"]
    assert {(member.uid, member.gid, member.uname, member.gname) for member in members} == {(0, 0, "", "")}


def sources_in(folder: Path) -> Sources:
    return Sources(recipe="x", tree="0" * 64, deps={}, pins=(), folder=folder)


def test_a_job_here_ends_with_us_and_has_namespaces_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job.os, "geteuid", lambda: 0)
    argv = entered(Path("/work/job"), "/usr/bin/python3", cuda="/cuda", name="again")
    ours, theirs = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    assert ours[:5] == ("setpriv", "--pdeathsig=KILL", "unshare", "--fork", "--kill-child")
    assert set(ours[5:]) == {"--mount", "--net", "--uts", "--pid", "--mount-proc"}
    assert theirs[4:9] == ("/work/job", "/cuda", "again", "", " ".join(job.CACHES))
    assert theirs[9:] == ("/usr/bin/python3", "-E", "-s", "/srv/sparkstack/in/runner.py", "/srv/sparkstack")


def test_without_root_a_job_gets_a_user_namespace_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job.os, "geteuid", lambda: 1000)
    assert {"--user", "--map-root-user"} < set(entered(Path("/job"), "python3"))


def test_with_a_compiler_cache_none_is_hidden() -> None:
    argv = entered(Path("/job"), "python3", cache="/work/ccache")
    assert argv[argv.index("/job") :][3:5] == ("/work/ccache", "")


def test_a_unit_gives_a_job_the_same_surroundings() -> None:
    properties = unit_properties(PurePosixPath("/opt/x/build/job"), memory=1024, cuda="/usr/local/cuda")
    pairs = dict(line.split("=", 1) for line in properties)
    assert pairs["MemoryMax"] == "1024"
    assert pairs["PrivateNetwork"] == "yes"
    assert pairs["BindPaths"] == "/opt/x/build/job:/srv/sparkstack"
    assert pairs["BindReadOnlyPaths"] == "/usr/local/cuda:/srv/sparkstack/cuda"
    assert pairs["InaccessiblePaths"].split() == [f"-{path}" for path in job.CACHES]
    assert pairs["WorkingDirectory"] == "/srv/sparkstack"


def test_a_unit_for_development_has_the_nodes_compiler_cache_and_hides_none() -> None:
    properties = unit_properties(PurePosixPath("/opt/x/build/job"), memory=1, cache="/opt/x/ccache")
    assert "BindPaths=/opt/x/ccache:/srv/sparkstack/ccache" in properties
    assert not [line for line in properties if line.startswith(("InaccessiblePaths", "BindReadOnlyPaths"))]


def test_the_nodes_compiler_cache_lies_beside_its_jobs_and_is_made_with_the_job() -> None:
    cluster = local()
    where = site.node(cluster, lab_facts()[cluster.head.name])
    errand = site.Errand(where, "x-1", "build x", "", memory=1)
    assert errand.cache == ""
    errand = replace(errand, with_cache=True)
    assert errand.cache == f"{cluster.root}/ccache"
    (make,) = (step for step in site.steps(errand) if isinstance(step, Run) and step.argv[0] == "mkdir")
    assert {errand.cache, f"{cluster.root}/build/x-1/ccache"} < set(make.argv)


WHERE = "import os, socket; print(os.getcwd(), socket.gethostname(), os.getppid(), os.path.exists('/srv/sparkstack/x'))"


@pytest.mark.processes
def test_a_job_finds_itself_at_the_fixed_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    (tmp_path / "x").touch()
    monkeypatch.setattr(job, "runner_argv", lambda python: (python, "-c", WHERE))
    assert run(entered(tmp_path, "python3", name="again")).out == "/srv/sparkstack again 1 True\n"


@pytest.mark.processes
def test_how_a_job_ended_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    monkeypatch.setattr(job, "runner_argv", lambda python: (python, "-c", "raise SystemExit(7)"))
    assert run(entered(tmp_path, "python3"), check=False).code == 7


NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
SPACES = ("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc")


@pytest.mark.processes
def test_a_user_without_root_gets_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0 or run([*NOBODY, *SPACES, "true"], check=False).code:
        pytest.skip("this host gives users no namespaces, or we are no root to become one")
    monkeypatch.setattr(job, "runner_argv", lambda python: (python, "-c", WHERE))
    monkeypatch.setattr(job.os, "geteuid", lambda: 65534)
    with tempfile.TemporaryDirectory(prefix="sparkstack-") as folder:
        Path(folder).chmod(0o777)
        (Path(folder) / "x").touch()
        argv = entered(Path(folder), "/usr/bin/python3", name="again")
        assert run([*NOBODY, *argv]).out == "/srv/sparkstack again 1 True\n"
