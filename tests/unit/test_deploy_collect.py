"""What no release needs goes, and nothing else: the plan, the removal as a node runs it, the cache with uv itself."""

from __future__ import annotations

import json
import shutil
import sys
import venv
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import Cluster
from core.facts import NodeFacts
from core.parsers import Process, Taken
from core.plan import Run
from core.process import run
from core.question import INSTALL_UNIT
from deploy.collect import plan_collect, staying, unneeded_files, unneeded_wheels
from deploy.environment import install_argv
from deploy.switch import previous
from tests.unit.samples import TABLES, lab_facts, local, unit
from tests.unit.small_wheels import small_wheel
from wheels.manifest import sha256_of

CASES: list[dict[str, Any]] = json.loads((TABLES / "collect.json").read_text(encoding="utf-8"))


def node(case: dict[str, Any]) -> NodeFacts:
    """Letters are releases; a case names those complete only where they differ from those that were in use."""
    serves = [Process(9, "spark", f"/opt/sparkstack/releases/{one}/venv/bin/ray") for one in case.get("serves", "")]
    return replace(
        lab_facts()["lab-a"],
        releases={one: {} for one in case.get("complete", case["history"])},
        partial=frozenset(case.get("partial", "")),
        history=tuple(Taken(one, "?", "?") for one in case["history"]),
        current=case["current"],
        processes=tuple(serves),
        units={INSTALL_UNIT: unit(INSTALL_UNIT)} if case.get("installs") else {},
    )


def removed(cluster: Cluster, facts: dict[str, NodeFacts], keep: int = 2) -> list[str]:
    """Return the releases that go from lab-a."""
    steps = [step for step in plan_collect(cluster, facts, keep).steps if step.node == "lab-a"]
    return [
        step.argv[4].rpartition("/")[2] for step in steps if isinstance(step, Run) and "complete.json" in step.argv[2]
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["title"])
def test_what_goes(case: dict[str, Any]) -> None:
    other = node({"history": case["other"], "current": case["other"]}) if "other" in case else node(case)
    facts = {"lab-a": node(case), "lab-b": other}
    assert removed(local(), facts, case.get("keep", 2)) == list(case["goes"])


@given(
    history=st.text(alphabet="abcde", max_size=8),
    other=st.text(alphabet="abcde", max_size=8),
    current=st.sampled_from([*"abcde", None]),
    keep=st.integers(min_value=-1, max_value=6),
)
def test_the_release_in_use_and_the_one_before_never_go_whatever_happened(
    history: str, other: str, current: str | None, keep: int
) -> None:
    one = node({"history": history, "current": current, "complete": "abcde"})
    two = node({"history": other, "current": "a", "complete": "abcde"})
    facts = {"lab-a": one, "lab-b": two}
    stay = staying(local(), facts, keep)
    assert {release for seen in (one, two) for release in (seen.current, previous(seen)) if release} <= stay
    assert not set(removed(local(), facts, keep)) & stay


def test_a_second_collection_has_nothing_to_do() -> None:
    case = {"history": "abc", "current": "c"}
    after = {name: node({**case, "complete": "bc"}) for name in ("lab-a", "lab-b")}
    assert plan_collect(local(), after).empty


def test_the_plan_says_what_stays_and_why() -> None:
    seen = node({"history": "", "current": "c", "complete": "abc", "partial": "u", "installs": True})
    notes = plan_collect(local(), {"lab-a": seen, "lab-b": seen}).notes
    assert notes[:2] == (
        "lab-a: no switch was noted there yet, so every complete release stays",
        "lab-a: an installation runs, so what is unfinished stays",
    )


LOCKS = {
    "a": "# stack\ntorch==1.0 --hash=sha256:00\n",
    "b": "torch==2.0+cu1 --hash=sha256:00\nuv==0.9 --hash=sha256:00\n",
}
WHEELS = (
    "torch-1.0-py3-none-any.whl",
    "torch-2.0+cu1-cp312-cp312-linux_aarch64.whl",
    "uv-0.9-py3-none-any.whl",
    "odd.whl",
)


@pytest.mark.parametrize(
    ("stay", "locks", "gone"),
    [
        ("b", "ab", [WHEELS[0]]),
        ("a", "ab", [WHEELS[1], WHEELS[2]]),
        ("ab", "ab", []),
        ("b", "a", []),
        ("", "ab", []),
    ],
)
def test_a_wheel_goes_when_no_lock_that_stays_names_it_and_all_of_these_are_known(
    stay: str, locks: str, gone: list[str]
) -> None:
    seen = replace(
        node({"history": "ab", "current": "b"}),
        wheels=dict.fromkeys(WHEELS, 1000),
        locks={one: LOCKS[one] for one in locks},
    )
    assert unneeded_wheels(seen, frozenset(stay)) == gone


@pytest.mark.processes
def test_a_release_goes_whole_with_what_belongs_to_it_and_others_stay(tmp_path: Path) -> None:
    cluster = local().model_copy(update={"root": tmp_path})
    for name in "abc":
        (tmp_path / "releases" / name / "venv").mkdir(parents=True)
        (tmp_path / "releases" / name / "complete.json").write_text("{}")
        (tmp_path / "signed" / name).mkdir(parents=True)
    seen = node({"history": "abc", "current": "c"})
    steps = [step for step in plan_collect(cluster, {"lab-a": seen, "lab-b": seen}).steps if step.node == "lab-a"]
    assert [step.title for step in steps] == ["remove a", "free what only the removed releases had of the cache"]
    for _ in range(2):
        for step in steps:
            assert isinstance(step, Run)
            run(step.argv)
        assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")) == [
            *("releases/b", "releases/c", "signed/b", "signed/c")
        ]


@pytest.mark.processes
def test_what_was_signed_goes_before_the_release_after_which_nobody_would_ask_for_it(tmp_path: Path) -> None:
    cluster = local().model_copy(update={"root": tmp_path})
    (tmp_path / "releases" / "a").mkdir(parents=True)
    (tmp_path / "releases" / "a" / "complete.json").mkdir()  # rm -f refuses a folder: it ends there
    (tmp_path / "signed" / "a").mkdir(parents=True)
    seen = node({"history": "abc", "current": "c"})
    step = next(plan_collect(cluster, {"lab-a": seen, "lab-b": seen}).steps)
    assert isinstance(step, Run)
    assert run(step.argv, check=False).code
    assert (tmp_path / "releases" / "a").exists()
    assert not (tmp_path / "signed" / "a").exists()


@pytest.mark.processes
def test_the_cache_loses_what_no_release_links_and_uv_unpacks_it_again(tmp_path: Path) -> None:
    """With the real uv: two environments with one wheel in common; one of them is removed."""
    cluster = local().model_copy(update={"root": tmp_path})
    (tmp_path / "wheels").mkdir()
    made = [small_wheel(tmp_path / "wheels", name) for name in ("both", "only-old")]
    both, only_old = (f"{path.name.split('-')[0]}==1.0 --hash=sha256:{sha256_of(path)}\n" for path in made)

    def install(environment: str, *lines: str) -> None:
        venv.create(tmp_path / environment, symlinks=True)
        (tmp_path / "lock").write_text("".join(lines))
        uv = str(Path(sys.executable).with_name("uv"))
        run(install_argv(cluster, uv, PurePosixPath(tmp_path / environment), PurePosixPath(tmp_path / "lock")))

    install("old", both, only_old)
    install("new", both)
    shutil.rmtree(tmp_path / "old")
    seen = node({"history": "abc", "current": "c"})
    prune = list(plan_collect(cluster, {"lab-a": seen, "lab-b": seen}).steps)[-1]
    assert isinstance(prune, Run)
    run(prune.argv)
    assert len(list((tmp_path / "cache").glob("archive-v*/*"))) == 1
    install("again", both, only_old)
    module = next((tmp_path / "again").glob("lib/python*/site-packages/only_old*"))
    assert module.exists()
    assert len(list((tmp_path / "cache").glob("archive-v*/*"))) == 2


def test_a_file_of_the_store_goes_when_its_hash_is_in_no_lock_of_what_stays() -> None:
    hashes = [letter * 64 for letter in "abcdef"]
    lock = f"torch==1.0 --hash=sha256:{hashes[0]} \\\n    --hash=sha256:{hashes[1]}\n"
    store = {**dict.fromkeys(hashes[:3], 1000), f".incoming/{hashes[3]}": 5, ".lock": 0}
    seen = replace(lab_facts()["lab-a"], releases={"a": {}}, store=store, locks={"a": lock})
    assert unneeded_files(seen, frozenset("a")) == [hashes[2]]
    assert unneeded_files(replace(seen, locks={}), frozenset("a")) == [], "nobody knows what it needs"
    assert unneeded_files(seen, frozenset()) == []


@pytest.mark.processes
def test_a_file_goes_with_all_its_names_and_names_of_others_stay(tmp_path: Path) -> None:
    """The removal as it runs on a node."""
    (tmp_path / "store").mkdir()
    (tmp_path / "wheels").mkdir()
    for letter in "ab":
        (tmp_path / "store" / (letter * 64)).write_text(letter)
        (tmp_path / "wheels" / f"{letter}-1.0-py3-none-any.whl").hardlink_to(tmp_path / "store" / (letter * 64))
    (tmp_path / "wheels" / "old-1.0-py3-none-any.whl").write_text("by name only")
    seen = replace(
        lab_facts()["lab-a"],
        history=(Taken("r", "?", "?"),),
        current="r",
        releases={"r": {}},
        store=dict.fromkeys(("a" * 64, "b" * 64), 1),
        wheels={path.name: 1 for path in (tmp_path / "wheels").iterdir()},
        locks={"r": f"b==1.0 --hash=sha256:{'b' * 64}\n"},
    )
    cluster = local().model_copy(update={"root": tmp_path})
    facts = {"lab-a": seen, "lab-b": replace(seen, name="lab-b")}
    steps = [step for step in plan_collect(cluster, facts).steps if step.node == "lab-a" and isinstance(step, Run)]
    assert [step.title for step in steps] == ["remove 2 wheels, 2 B"]
    for _ in range(2):
        run(steps[0].argv)
        left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
        assert sorted(left) == [f"store/{'b' * 64}", "wheels/b-1.0-py3-none-any.whl"]
