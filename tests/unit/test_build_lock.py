"""Locks made again: what goes into a resolution, what comes out, how it differs, and pins that are not as they were."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import build.lock
import build.locktext
from build.lock import LockFile, Locks, difference, lock, make_locks, write
from build.locktext import (
    UNKNOWN,
    carried,
    every_variant,
    identified,
    recipes_of,
    wanted_by_fallback,
    wanted_by_recipe,
    wanted_by_stack,
)
from build.metadata import Stub, stubs_of, write_stubs
from build.recipe import INSTALLER, Dependency, Recipe, load_recipe
from build.references import pins, problems
from build.request import identities
from build.resolver import Wanted, flags, resolve
from core.command import Options
from core.config import ROOT, Stack, load_stack
from core.errors import BuildFailed
from core.plan import as_text
from tests.unit.gitserver import Repository, Server, serving
from wheels.lock import read_lock

DIGEST = "a" * 64
NOWHERE = "http://127.0.0.1:9/simple"


def entry(pin: str, *digests: str) -> str:
    return " \\\n".join([pin, *(f"    --hash=sha256:{digest}" for digest in digests)]) + "\n    # via something\n"


class TestWhatEntersAResolution:
    def test_what_is_built_or_extracted_enters_by_what_its_recipe_says(self) -> None:
        stubs = {stub.name: stub for stub in stubs_of(load_stack("guide"))}
        assert stubs.keys() == {"torch", "triton", "vllm", "flash-attn"}
        assert stubs["torch"].version == "2.9.0+cu130"
        assert "torch==2.9.0" in stubs["vllm"].requires
        assert stubs["flash-attn"] == Stub("flash-attn", "2.7.4.post1+25.11", ("torch", "einops"))

    def test_a_stub_is_a_wheel_of_metadata_alone(self, tmp_path: Path) -> None:
        write_stubs(tmp_path, [Stub("the-thing", "1.0+own", ("other>=2; python_version > '3.11'",))])
        with zipfile.ZipFile(tmp_path / "the_thing-1.0+own-py3-none-any.whl") as wheel:
            assert {name.partition("/")[2] for name in wheel.namelist()} == {"METADATA", "WHEEL", "RECORD"}
            metadata = wheel.read("the_thing-1.0+own.dist-info/METADATA").decode()
        assert metadata.splitlines()[1:] == [
            "Name: the-thing",
            "Version: 1.0+own",
            "Requires-Dist: other>=2; python_version > '3.11'",
        ]

    def test_a_stack_for_one_machine_is_resolved_for_that_machine_and_day(self) -> None:
        wanted = wanted_by_stack(load_stack("guide"))
        assert "vllm==0.11.3.dev0+g275de3417" in wanted.requirements
        assert "ray==2.52.1" in wanted.requirements
        words = " ".join(flags(wanted))
        assert "--python-platform aarch64-manylinux_2_39 --python-version 3.12" in words
        assert "--exclude-newer 2026-02-09T00:00:00Z" in words, "the day counts whole, in no time zone of this host"
        assert "--no-emit-package vllm" in words

    def test_a_stack_for_every_machine_is_resolved_for_all_from_the_oldest_python_on(self) -> None:
        wanted = wanted_by_stack(load_stack("cpu"))
        assert flags(wanted)[2:5] == ("--universal", "--python-version", "3.11")
        assert "torch" in wanted.without, "it has an index of its own"
        assert not [line for line in wanted.requirements if line.startswith("torch=")]

    def test_a_fallback_holds_what_the_stacks_lock_does_not(self) -> None:
        cpu = load_stack("cpu")
        wanted = wanted_by_fallback(cpu, cpu.indexes[0], (ROOT / cpu.lock).read_text())
        assert wanted.requirements == ("torch==2.13.0",)
        assert {"filelock", "sympy", "triton"} <= set(wanted.without)
        assert "torch" not in wanted.without

    def test_a_build_environment_holds_what_its_torch_requires_and_not_torch(self) -> None:
        wanted = wanted_by_recipe("vllm")
        assert wanted.requirements[0] == INSTALLER
        assert wanted.requirements[-1] == "torch==2.9.0+cu130"
        assert [stub.name for stub in wanted.stubs] == ["torch"]

    def test_recipes_of_a_stack_are_those_of_its_versions(self) -> None:
        assert recipes_of(load_stack("guide")) == ("torch", "triton", "vllm", "flash-attn", "flashinfer-python")
        assert recipes_of(load_stack("current")) == ()


class TestTheText:
    def test_an_entry_of_another_index_stays_as_it_was_written(self) -> None:
        cpu = load_stack("cpu")
        kept = carried((ROOT / cpu.lock).read_text(), cpu)
        assert kept.startswith("torch==2.13.0+cpu \\\n")
        assert kept.count("--hash=sha256:") == 6
        assert kept.endswith("for aarch64\n")

    def test_an_entry_of_another_index_that_is_missing_is_asked_for(self) -> None:
        with pytest.raises(BuildFailed, match=r"no entry for torch==2.13.0\+cpu") as caught:
            carried(entry("torch==2.12.0+cpu", DIGEST), load_stack("cpu"))
        assert "https://download.pytorch.org/whl/cpu" in caught.value.next_move

    def test_each_build_is_named_by_its_identity(self) -> None:
        text = f"# torch==2.9.0+cu130 built by build/recipes/torch.toml, recipe {UNKNOWN}\nray==1 \\\n"
        named = identified(text, {"torch": DIGEST})
        assert named == f"# torch==2.9.0+cu130 built by build/recipes/torch.toml, recipe {DIGEST}\nray==1 \\\n"
        assert identified(named, {"torch": "b" * 64}) == named.replace("a" * 64, "b" * 64)
        assert identified(named, {}) == text

    def test_a_difference_has_a_line_an_entry(self) -> None:
        before = "# made\n" + entry("a==1", DIGEST) + entry("b==1", DIGEST) + entry("c==1", DIGEST)
        after = "# made again\n" + entry("a==1", DIGEST, "b" * 64) + entry("b==1", DIGEST) + entry("c==2", DIGEST)
        lines = difference(LockFile(ROOT / "new.lock", before, after))
        assert lines[:5] == [
            "--- new.lock",
            "+++ new.lock",
            "@@ -1,2 +1,2 @@",
            "-# made",
            f"-a==1 (1 hashes, {short(DIGEST)})",
        ]
        assert lines[5:7] == ["+# made again", f"+a==1 (2 hashes, {short(DIGEST, 'b' * 64)})"]
        assert [line[:5] for line in lines[8:]] == ["-c==1", "+c==2"]

    def test_a_difference_in_annotations_alone_is_none(self) -> None:
        before, after = entry("a==1", DIGEST), entry("a==1", DIGEST).replace("something", "another")
        assert difference(LockFile(ROOT / "new.lock", before, after)) == []


def short(*digests: str) -> str:
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()[:8]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index in a folder, and uv told to take it."""
    monkeypatch.setenv("UV_DEFAULT_INDEX", (tmp_path / "simple").as_uri())
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "simple"


def publish(index: Path, *stubs: Stub) -> None:
    write_stubs(index / "files", stubs)
    for wheel in (index / "files").glob("*.whl"):
        page = index / wheel.name.split("-")[0].replace("_", "-") / "index.html"
        page.parent.mkdir(exist_ok=True)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        with page.open("a") as file:
            file.write(f'<a href="../files/{wheel.name}#sha256={digest}">{wheel.name}</a>\n')


@pytest.mark.processes
class TestUv:
    def test_what_is_built_brings_its_requirements_and_stays_out(self, index: Path) -> None:
        publish(index, Stub("dep", "1.0"), Stub("dep", "2.0"), Stub("left-out", "1.0"))
        stub = Stub("built", "1.0+own", ("dep<2", "left-out"))
        wanted = Wanted("config/stacks/x.toml", ("built==1.0+own",), "3.11", (stub,), without=("left-out",))
        text = resolve(wanted)
        assert text.startswith("dep==1.0 \\\n    --hash=sha256:")
        assert text.endswith("    # via built\n")

    def test_an_entry_says_which_file_asked_for_it(self, index: Path) -> None:
        publish(index, Stub("dep", "1.0"))
        assert resolve(Wanted("config/stacks/x.toml", ("dep",), "3.11")).endswith("    # via config/stacks/x.toml\n")

    def test_the_guides_own_pins_are_refused_in_uvs_words(self, index: Path) -> None:
        publish(index, Stub("flashinfer-python", "0.5.1"), Stub("flashinfer-python", "0.5.2"))
        vllm = Stub("vllm", "0.11.3.dev0+g275de3417", ("flashinfer-python==0.5.2",))
        wanted = Wanted(
            "config/stacks/guide.toml", (f"vllm=={vllm.version}", "flashinfer-python==0.5.1"), "3.12", (vllm,)
        )
        with pytest.raises(BuildFailed, match=r"requirements of config/stacks/guide\.toml do not fit") as caught:
            resolve(wanted)
        assert "flashinfer-python==0.5.2" in caught.value.evidence
        assert "flashinfer-python==0.5.1" in caught.value.evidence

    def test_an_override_lets_two_that_do_not_fit_stand_together(self, index: Path) -> None:
        publish(index, Stub("dep", "1.0"))
        stub = Stub("built", "1.0", ("dep>=2",))
        wanted = Wanted("config/stacks/x.toml", ("built==1.0",), "3.11", (stub,), overrides=("dep",))
        assert resolve(wanted).startswith("dep==1.0")

    @pytest.mark.usefixtures("index")
    def test_an_index_that_does_not_answer_is_no_conflict(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("UV_DEFAULT_INDEX", NOWHERE)
        monkeypatch.setenv("UV_HTTP_RETRIES", "0")
        with pytest.raises(BuildFailed, match="could not be resolved") as caught:
            resolve(Wanted("config/stacks/x.toml", ("dep",), "3.11"))
        assert "127.0.0.1:9" in caught.value.evidence


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """The cpu stack with its locks in another folder, and a resolver that always gives one entry."""
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    monkeypatch.setattr(build.lock, "ROOT", tmp_path)
    monkeypatch.setattr(build.lock, "shown", lambda path: path.name)
    monkeypatch.setattr(Recipe, "lock", property(lambda recipe: recipes / f"{recipe.name}.lock"))
    monkeypatch.setattr(build.lock, "resolve", lambda wanted, **_: entry(f"{len(wanted.label)}-dep==1", DIGEST))
    monkeypatch.setattr(build.lock, "moved", lambda *_: ["probe: moved"])
    return load_stack("cpu").model_copy(update={"lock": Path("cpu.lock"), "indexes": ()})


def say(_: str) -> None:
    """Take a line of progress."""


class TestTheCommand:
    def test_a_dry_run_shows_the_difference_and_writes_nothing(self, stack: Stack, capsys: Any, tmp_path: Path) -> None:
        lock(stack, Options(dry_run=True), offline=True)
        out = capsys.readouterr().out
        assert "write probe.lock — " in out
        assert "+++ cpu.lock" in out
        assert f"+# sparkstack-probe==0.1.0 built by build/recipes/probe.toml, recipe {UNKNOWN}" in out
        assert not list(tmp_path.rglob("*.lock"))

    def test_the_second_run_has_nothing_to_do(self, stack: Stack, capsys: Any, tmp_path: Path) -> None:
        lock(stack, Options(as_json=True), offline=True)
        first = json.loads(capsys.readouterr().out)
        assert first["changed"] is True
        assert len(first["stages"][0]["steps"]) == 4
        assert "+++ cpu.lock" in first["stages"][0]["steps"][-1]["command"]
        written = {path: path.read_bytes() for path in tmp_path.rglob("*.lock")}
        assert len(written) == 4
        lock(stack, Options(), offline=True)
        assert capsys.readouterr().out == "nothing to do\n"
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.lock")} == written

    def test_the_stacks_lock_names_builds_by_the_recipes_new_locks(self, stack: Stack, tmp_path: Path) -> None:
        write(make_locks(stack, say, offline=True), say)
        text = (tmp_path / "cpu.lock").read_text()
        assert f"built by build/recipes/probe.toml, recipe {identities(stack)['sparkstack-probe']}\n" in text

    def test_what_can_be_made_is_made_and_the_rest_is_told_at_the_end(
        self, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse_probe(wanted: Wanted, **_: bool) -> str:
            if "probe" in wanted.label:
                raise BuildFailed("they do not fit", next_move="change one", evidence="because")
            return entry("dep==1", DIGEST)

        monkeypatch.setattr(build.lock, "resolve", refuse_probe)
        with pytest.raises(BuildFailed, match="2 pins or locks are not in order") as caught:
            lock(stack, Options())
        assert caught.value.evidence == "probe: moved\nthey do not fit\nbecause\nnext: change one"
        assert {path.name for path in tmp_path.rglob("*.lock")} == {
            "cpu.lock",
            "vllm-metadata.lock",
            "vllm-ray-cpu.lock",
        }

    def test_offline_asks_no_repository(self, stack: Stack) -> None:
        assert make_locks(stack, say, offline=True).problems == ()
        assert make_locks(stack, say).problems == ("probe: moved",)

    def test_problems_are_notes_of_the_plan(self, stack: Stack) -> None:
        plan = Locks(stack, (LockFile(ROOT / "x.lock", "", entry("a==1", DIGEST)),), ("torch: moved",)).plan
        assert as_text(plan).endswith("\nnote: torch: moved")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "served") as found:
        yield found


@pytest.fixture
def project(server: Server) -> tuple[Repository, str]:
    """A repository with an annotated tag on its only commit."""
    repository = server.repository("a/project")
    commit = repository.commit({"file": "one\n"})
    repository.git("tag", "--annotate", "--message", "first", "v1")
    return repository, commit


def recipe_at(url: str, commit: str, reference: str | None = None) -> Recipe:
    dependency = Dependency(variable="A_DIR", repository=url, commit=commit, reference=reference)
    return load_recipe("probe").model_copy(update={"dependencies": (dependency,)})


def asked(url: str, commit: str, reference: str | None = None) -> list[str]:
    return list(problems([recipe_at(url, commit, reference)], say))


@pytest.mark.processes
class TestPins:
    def test_an_annotated_tag_is_its_commit(self, server: Server, project: tuple[Repository, str]) -> None:
        assert asked(server.url("a/project"), project[1], "v1") == []

    def test_a_tag_that_moved_is_told_with_both_commits(self, server: Server, project: tuple[Repository, str]) -> None:
        repository, old = project
        new = repository.commit({"file": "two\n"})
        repository.git("tag", "--force", "v1")
        (problem,) = asked(server.url("a/project"), old, "v1")
        assert problem.startswith(f"probe: v1 of {server.url('a/project')} is {new}, the recipe says {old}\n")
        assert "build/recipes/probe.toml" in problem

    def test_a_branch_may_go_on(self, server: Server, project: tuple[Repository, str]) -> None:
        repository, old = project
        repository.commit({"file": "two\n"})
        assert asked(server.url("a/project"), old, "main") == []

    def test_a_tag_that_is_not_there_is_told(self, server: Server, project: tuple[Repository, str]) -> None:
        (problem,) = asked(server.url("a/project"), project[1], "v2")
        assert "has no tag, branch or commit 'v2'" in problem

    def test_a_commit_needs_no_name(self, server: Server, project: tuple[Repository, str]) -> None:
        assert asked(server.url("a/project"), project[1]) == []
        assert asked(server.url("a/project"), project[1], project[1][:9]) == []

    @pytest.mark.usefixtures("project")
    def test_a_commit_that_is_nowhere_is_told(self, server: Server) -> None:
        (problem,) = asked(server.url("a/project"), "0" * 39 + "1")
        assert problem == f"probe: {server.url('a/project')} has no commit {'0' * 39}1"

    def test_a_short_hash_is_resolved_to_the_commit_that_it_stands_for(
        self, server: Server, project: tuple[Repository, str]
    ) -> None:
        (problem,) = asked(server.url("a/project"), "f" * 40, project[1][:8])
        assert f"{project[1][:8]} of {server.url('a/project')} is {project[1]}, the recipe says ffff" in problem

    def test_a_host_that_does_not_answer_is_told_as_such(self, server: Server, project: tuple[Repository, str]) -> None:
        url = server.url("a/project")
        server.stop()
        (problem,) = asked(url, project[1], "v1")
        assert problem.startswith(f"probe: {url} cannot be fetched\n")
        assert "onnection refused" in problem

    @pytest.mark.usefixtures("project")
    def test_one_that_fails_keeps_no_other_from_being_asked(self, server: Server) -> None:
        url = server.url("a/project")
        found = list(problems([recipe_at(server.url("none"), "f" * 40), recipe_at(url, "f" * 40, "v1")], say))
        assert len(found) == 2


def test_every_pin_of_the_shipped_recipes_is_asked_for_once() -> None:
    found = pins(every_variant(["torch", "triton", "vllm"]))
    assert len(found) == 8
    assert [(pin.url.rpartition("/")[2], pin.reference) for pin in found][:2] == [
        ("pytorch.git", "v2.9.0"),
        ("triton.git", "v3.5.0"),
    ]


def test_build_requirements_count_to_the_end_of_their_day() -> None:
    assert isinstance(build.locktext.RECIPES_AS_OF, date)
    assert wanted_by_recipe("probe").exclude_newer == "2026-11-25T00:00:00Z"


@pytest.mark.parametrize("name", ["cpu", "guide", "current"])
def test_the_shipped_locks_were_made_from_the_shipped_recipes(name: str) -> None:
    stack = load_stack(name)
    text = (ROOT / stack.lock).read_text()
    assert identified(text, identities(stack)) == text, f"run: invoke build.lock --stack {name}"


def test_the_lock_is_read_without_what_it_says_of_builds() -> None:
    assert not {"torch", "vllm"} & {item.name for item in read_lock(ROOT / "requirements.lock")}
