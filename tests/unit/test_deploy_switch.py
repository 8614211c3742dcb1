"""`current` on all nodes or on none: the plan, and the scripts as they run on a node."""

from __future__ import annotations

import json
import venv
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from core import parsers
from core.apply import apply
from core.config import Cluster
from core.errors import CommandFailed, UnfitNode
from core.facts import NodeFacts
from core.hand import Hand
from core.parsers import Taken
from core.plan import Run, Step, Write, make_plan
from core.process import Completed, run
from deploy.switch import REMEMBERED, Switch, before, plan_switch, previous, taken
from tests.unit.samples import lab_facts, local
from tests.unit.test_core_apply import context

HAND = Hand("owner@desk", "2026-11-24T10:00:00Z")
OLD, NEW = "cpu-x86_64-cp311-old", "cpu-x86_64-cp311-new"
RELEASES = {OLD: {"stack": "cpu"}, NEW: {"stack": "cpu"}}
A, B = "lab-a", "lab-b"


def history(*releases: str) -> tuple[Taken, ...]:
    return tuple(Taken(release, "2026-11-23T10:00:00Z", "other@desk") for release in releases)


def facts(current: str | None, *noted: str, only: str = "") -> dict[str, NodeFacts]:
    """Both nodes (or ``only`` one, the other being on NEW already) have ``current`` in use."""
    on_new = {"releases": RELEASES, "current": NEW, "history": history(OLD, NEW)}
    behind = {"releases": RELEASES, "current": current, "history": history(*noted)}
    return {name: replace(seen, **(on_new if only and name != only else behind)) for name, seen in lab_facts().items()}


def stages(switch: Switch) -> dict[str, list[str]]:
    return {title: [step.node for step in steps] for title, steps in switch.stages if steps}


def test_a_switch_is_prepared_done_checked_and_noted_on_every_node_and_undone_on_every_node() -> None:
    switch = plan_switch(local(), facts(OLD, OLD), NEW, HAND)
    both = [A, B]
    assert stages(switch) == {
        "prepare the switch": both,
        "switch": both,
        "check what is in use": both,
        "note what is in use": both,
    }
    assert {title: [(step.node, step.title) for step in steps] for title, steps in switch.undo.items()} == {
        "switch": [(A, f"switch back to {OLD}"), (B, f"switch back to {OLD}")],
        "note what is in use": [(A, "take the note back"), (B, "take the note back")],
    }


@pytest.mark.parametrize(
    ("current", "noted", "expected"),
    [
        (None, [], ["prepare the switch", "switch", "check what is in use", "note what is in use"]),
        (NEW, [OLD, NEW], []),
        (NEW, [OLD], ["check what is in use", "note what is in use"]),
        (NEW, [], ["check what is in use", "note what is in use"]),
        (NEW, [NEW, OLD], ["check what is in use", "note what is in use"]),
        (OLD, [OLD, NEW], ["prepare the switch", "switch", "check what is in use", "note what is in use"]),
    ],
)
def test_what_is_to_do_depends_on_the_link_and_on_the_last_line_noted(
    current: str | None, noted: list[str], expected: list[str]
) -> None:
    assert list(stages(plan_switch(local(), facts(current, *noted), NEW, HAND))) == expected


def test_a_node_that_is_there_already_is_left_alone_and_would_not_be_switched_back() -> None:
    switch = plan_switch(local(), facts(OLD, OLD, only=B), NEW, HAND)
    assert {node for nodes in stages(switch).values() for node in nodes} == {B}
    assert [step.node for step in switch.undo["switch"]] == [B]


def test_the_plan_says_what_is_in_use_now() -> None:
    for current, reason, back in ((OLD, f"it is {OLD}", OLD), (None, "there is none", "away")):
        switch = plan_switch(local(), facts(current), NEW, HAND)
        assert [step.reason for step in dict(switch.stages)["switch"]] == [reason] * 2
        assert back in switch.undo["switch"][0].title


def test_a_history_is_written_whole_and_forgets_its_oldest_lines() -> None:
    notes = dict(plan_switch(local(), facts(OLD, *[OLD] * 200), NEW, HAND).stages)["note what is in use"]
    note = notes[0]
    assert isinstance(note, Write)
    assert str(note.path) == "/opt/sparkstack/history.jsonl"
    lines = [json.loads(line) for line in note.content.splitlines()]
    assert len(lines) == REMEMBERED
    assert lines[-1] == {"release": NEW, "at": HAND.at, "by": HAND.by}


def test_what_an_older_version_left_in_use_is_noted_first_so_that_a_rollback_finds_it() -> None:
    note = dict(plan_switch(local(), facts(OLD), NEW, HAND).stages)["note what is in use"][0]
    assert isinstance(note, Write)
    assert [json.loads(line) for line in note.content.splitlines()] == [
        {"release": OLD, "at": "?", "by": "?"},
        {"release": NEW, "at": HAND.at, "by": HAND.by},
    ]


@pytest.mark.parametrize("noted", [[], [OLD], [NEW, OLD]])
def test_a_note_is_taken_back_by_the_history_as_it_was(noted: list[str]) -> None:
    back = plan_switch(local(), facts(NEW, *noted), NEW, HAND).undo["note what is in use"]
    assert [step.node for step in back] == [A, B]
    for step in back:
        assert isinstance(step, Write)
        assert str(step.path) == "/opt/sparkstack/history.jsonl"
        assert parsers.history(step.content) == history(*noted)


@pytest.mark.processes
def test_a_note_that_fails_on_one_node_leaves_links_and_histories_of_both_as_they_were(tmp_path: Path) -> None:
    old = "".join(json.dumps(asdict(line)) + "\n" for line in history(OLD))
    switches = {}
    for name in (A, B):
        root = tmp_path / name
        for release in (OLD, NEW):
            (root / "releases" / release).mkdir(parents=True)
            (root / "releases" / release / "complete.json").write_text("{}")
        (root / "current").symlink_to(f"releases/{OLD}")
        (root / "history.jsonl").write_text(old)
        switches[name] = plan_switch(local().model_copy(update={"root": root}), facts(OLD, OLD), NEW, HAND)
    fails = Run(node=B, title="note", reason="", argv=("sh", "-c", "sleep 0.5; exit 1"))
    note = "note what is in use"

    def steps_of(title: str) -> list[Step]:
        return [step for name, one in switches.items() for step in dict(one.stages)[title] if step.node == name]

    stages: list[tuple[str, list[Step]]] = [(title, steps_of(title)) for title in ("prepare the switch", "switch")]
    stages.append((note, [step for step in steps_of(note) if step.node == A] + [fails]))
    undo = {
        title: [step for name, one in switches.items() for step in one.undo[title] if step.node == name]
        for title in ("switch", note)
    }
    with pytest.raises(CommandFailed) as caught:
        apply(make_plan("switch", stages, undo=undo), context(tmp_path, A, B))
    assert caught.value.evidence.splitlines() == [
        f"{A}: take the note back: done",
        f"{B}: take the note back: done",
        f"{A}: switch back to {OLD}: done",
        f"{B}: switch back to {OLD}: done",
    ]
    for name in (A, B):
        assert (tmp_path / name / "current").readlink() == Path(f"releases/{OLD}")
        assert (tmp_path / name / "history.jsonl").read_text() == old


@pytest.mark.parametrize(
    ("current", "noted", "complete", "expected"),
    [
        ("b", "ab", "ab", ["a"]),
        ("a", "aba", "ab", ["b"]),
        ("c", "abc", "ac", ["a"]),
        ("b", "a", "ab", ["a"]),
        ("a", "ab", "ab", ["b"]),
        ("a", "a", "ab", []),
        (None, "ab", "ab", ["b", "a"]),
        ("c", "abac", "abc", ["a", "b"]),
        ("a", "", "ab", []),
    ],
)
def test_what_was_in_use_before(current: str | None, noted: str, complete: str, expected: list[str]) -> None:
    seen = replace(lab_facts()[A], current=current, history=history(*noted), releases={one: {} for one in complete})
    assert list(before(seen)) == expected
    assert previous(seen) == (expected[0] if expected else None)


def test_since_when_is_known_only_of_what_was_noted_last() -> None:
    seen = replace(lab_facts()[A], current="b", history=history("a", "b"))
    assert taken(seen) == Taken("b", "2026-11-23T10:00:00Z", "other@desk")
    assert taken(replace(seen, current="a")) is None
    assert taken(replace(seen, history=())) is None


@pytest.fixture
def node(tmp_path: Path) -> Cluster:
    """A node's folder with two complete releases, none in use."""
    for name in (OLD, NEW):
        (tmp_path / "releases" / name).mkdir(parents=True)
        (tmp_path / "releases" / name / "complete.json").write_text("{}")
    return local().model_copy(update={"root": tmp_path})


def steps(cluster: Cluster, current: str | None) -> tuple[list[Run], Run]:
    """Return what the head runs to get to NEW, up to the rename, and what takes it back."""
    switch = plan_switch(cluster, facts(current), NEW, HAND)
    forward = [dict(switch.stages)[title][0] for title in ("prepare the switch", "switch")]
    assert all(isinstance(step, Run) for step in forward)
    back = switch.undo["switch"][0]
    assert isinstance(back, Run)
    return [step for step in forward if isinstance(step, Run)], back


@pytest.mark.processes
@pytest.mark.parametrize("current", [None, OLD])
def test_the_link_is_replaced_in_one_rename_and_put_back(node: Cluster, current: str | None) -> None:
    link = node.root / "current"
    if current:
        link.symlink_to(f"releases/{current}")
    (ready, rename), back = steps(node, current)
    run(ready.argv)
    assert (link.readlink() if current else link.exists()) == (Path(f"releases/{current}") if current else False)
    run(rename.argv)
    assert link.readlink() == Path(f"releases/{NEW}")
    for _ in range(2):
        run(back.argv)
        assert link.is_symlink() == (current is not None)
        assert not current or link.readlink() == Path(f"releases/{current}")
        assert sorted(path.name for path in node.root.iterdir()) == [*(["current"] if current else []), "releases"]


@pytest.mark.processes
def test_a_switch_that_was_only_prepared_is_forgotten(node: Cluster) -> None:
    (node.root / "current").symlink_to(f"releases/{OLD}")
    (ready, _), back = steps(node, OLD)
    run(ready.argv)
    run(back.argv)
    assert (node.root / "current").readlink() == Path(f"releases/{OLD}")
    assert sorted(path.name for path in node.root.iterdir()) == ["current", "releases"]


@pytest.mark.processes
def test_a_release_that_is_not_complete_is_not_made_ready(node: Cluster) -> None:
    (node.root / "releases" / NEW / "complete.json").unlink()
    (ready, _), _ = steps(node, None)
    assert run(ready.argv, check=False).code == 1
    assert not (node.root / ".current.new").is_symlink()


def healthy(node: Cluster) -> Completed:
    """Run the check of what is in use."""
    step = dict(plan_switch(node, facts(OLD), NEW, HAND).stages)["check what is in use"][0]
    assert isinstance(step, Run)
    return run(step.argv, check=False)


@pytest.fixture
def release(node: Cluster) -> Path:
    """A real environment with one distribution, in use."""
    folder = node.root / "releases" / NEW
    venv.create(folder / "venv", symlinks=True)
    info = next((folder / "venv/lib").glob("python*/site-packages")) / "Some_Package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: Some.Package\nVersion: 1.0\n")
    (folder / "stack.lock").write_text("# stack\nsome-package==1.0 --hash=sha256:00\n")
    (node.root / "current").symlink_to(f"releases/{NEW}")
    return folder


@pytest.mark.processes
@pytest.mark.parametrize(
    ("lock", "says"),
    [
        ("# stack\nsome-package==1.0 --hash=sha256:00\n", ""),
        ("some-package==1.0\ntorch==2.9.0+cpu --hash=sha256:00\n", "1 of 2 wheels are not installed: torch\n"),
        ("", "its stack.lock names no wheel\n"),
    ],
)
def test_a_release_is_whole_when_every_wheel_of_its_lock_is_installed(
    node: Cluster, release: Path, lock: str, says: str
) -> None:
    (release / "stack.lock").write_text(lock)
    done = healthy(node)
    assert (done.code, done.err) == (int(bool(says)), says)
    assert (release / "complete.json").exists() == ("torch" not in says), "what is not whole is made anew"


@pytest.mark.processes
def test_a_release_whose_python_does_not_start_is_not_whole(node: Cluster, release: Path) -> None:
    (release / "venv/bin/python").unlink()
    assert healthy(node).code == 127
    assert not (release / "complete.json").exists()


@pytest.mark.processes
@pytest.mark.parametrize(("signal", "stays"), [("TERM", True), ("PIPE", True), ("KILL", True), ("SEGV", False)])
def test_a_check_that_is_ended_from_outside_says_nothing_of_the_release(
    node: Cluster, release: Path, signal: str, *, stays: bool
) -> None:
    python = release / "venv/bin/python"
    python.unlink()
    python.write_text(f"#!/bin/sh\nkill -{signal} $$\n")
    python.chmod(0o755)
    assert healthy(node).code > 128
    assert (release / "complete.json").exists() == stays


def test_a_release_that_is_not_whole_is_named_with_what_it_lacks() -> None:
    step = dict(plan_switch(local(), facts(OLD), NEW, HAND).stages)["check what is in use"][1]
    assert isinstance(step, Run)
    assert step.failure is not None
    error = step.failure(Completed((), 1, "", "1 of 2 wheels are not installed: torch\n"))
    assert isinstance(error, UnfitNode)
    assert str(error).startswith(
        f"{B}: the release {NEW} is not whole: 1 of 2 wheels are not installed: torch\n  next: "
    )
    assert "its Python ended with 127" in str(step.failure(Completed((), 127, "", "")))


@pytest.mark.processes
def test_current_has_to_lead_to_the_release_that_was_meant(node: Cluster, release: Path) -> None:
    other = node.root / "releases" / OLD / "venv"
    venv.create(other, symlinks=True)
    (node.root / "current").unlink()
    (node.root / "current").symlink_to(f"releases/{OLD}")
    assert release.is_dir()
    done = healthy(node)
    assert (done.code, done.err) == (1, f"current leads to {other}\n")
