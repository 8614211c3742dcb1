"""Back to a release that every node has, and what is where."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from core import errors
from core.facts import NodeFacts
from core.hand import Hand
from core.parsers import Process, Taken
from core.plan import as_text, command_of
from deploy.inventory import as_data, in_order, inventory, served, table
from deploy.rollback import plan_rollback, wanted_release
from tests.unit.samples import TABLES, lab_facts, local

CASES: list[dict[str, Any]] = json.loads((TABLES / "rollback.json").read_text(encoding="utf-8"))
RECORD = {"stack": "cpu", "imports": ["torch", "vllm"], "environment": {"KEY": "value"}}


def node(seen: NodeFacts, noted: str, current: str | None, gone: str = "", **more: Any) -> NodeFacts:
    """Return a node with a release for each letter."""
    complete = {one: RECORD for one in (*noted, *(current or "")) if one not in gone}
    history = tuple(Taken(one, f"2026-11-2{number}T10:00:00Z", "owner@desk") for number, one in enumerate(noted))
    return replace(seen, releases=complete, history=history, current=current, **more)


def facts(case: dict[str, Any]) -> dict[str, NodeFacts]:
    """Letters of a case are releases in the order of their use; a star: the last one is in use."""
    found = {}
    for name, seen in lab_facts().items():
        noted = case.get(name, case["lab-a"])
        current = noted[-2] if noted.endswith("*") else case.get(f"{name}-current")
        extra = "b" if "cut off" in case["title"] else ""
        found[name] = node(seen, noted.rstrip("*"), current, case.get("gone", ""))
        found[name] = replace(found[name], releases={**found[name].releases, **dict.fromkeys(extra, RECORD)})
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["title"])
def test_where_a_rollback_goes(case: dict[str, Any]) -> None:
    if "release" in case:
        assert wanted_release(local(), facts(case), case["to"]) == case["release"]
        return
    with pytest.raises(getattr(errors, case["error"])) as caught:
        wanted_release(local(), facts(case), case["to"])
    assert case["says"] in str(caught.value)
    assert case["next"] in caught.value.next_move


def test_a_rollback_checks_the_release_on_every_node_before_it_switches() -> None:
    seen = facts({"title": "", "lab-a": "ab*"})
    plan = plan_rollback(local(), seen, "a", hand=Hand("owner@desk", "2026-11-24T10:00:00Z"))
    assert [stage.title for stage in plan.stages] == [
        "check",
        "prepare the switch",
        "switch",
        "check what is in use",
        "note what is in use",
    ]
    assert all(set(stage.by_node) == {"lab-a", "lab-b"} for stage in plan.stages)
    step = next(plan.steps)
    assert step.title == "import torch, vllm"
    assert command_of(step).startswith("env KEY=value /opt/sparkstack/releases/a/venv/bin/python -c 'import torch; ")
    assert "lab-b: if this or a later stage fails: switch back to b" in as_text(plan)
    assert plan.title == "roll local back to a (lab-a, lab-b)"


def test_a_record_of_an_older_version_names_no_imports_and_its_python_is_started() -> None:
    seen = {name: replace(one, releases={"a": {}, "b": {}}) for name, one in facts(CASES[0]).items()}
    assert next(plan_rollback(local(), seen, "a").steps).title == "start its Python"


def test_a_rollback_to_the_release_in_use_has_nothing_to_do() -> None:
    assert plan_rollback(local(), facts({"title": "", "lab-a": "ab*"}), "b").empty


def test_a_rollback_says_that_the_service_runs_on() -> None:
    seen = facts({"title": "", "lab-a": "ab*"})
    seen["lab-b"] = replace(
        seen["lab-b"], files={"/etc/x.service": "ExecStart=/opt/sparkstack/releases/b/venv/bin/ray"}
    )
    assert plan_rollback(local(), seen, "a").notes == ("the service still names b: invoke restart takes it to a",)


def test_what_serves_is_read_from_units_and_processes() -> None:
    seen = replace(
        lab_facts()["lab-a"],
        files={"/etc/systemd/system/x.service": "ExecStart=/opt/sparkstack/releases/one/venv/bin/ray start"},
        processes=(
            Process(7, "spark", "/opt/sparkstack/releases/two/venv/bin/python -m x"),
            Process(8, "spark", "raylet"),
        ),
    )
    assert served(local(), seen) == {"one", "two"}


def test_releases_stand_in_the_order_of_their_use_and_the_newest_of_the_others_first() -> None:
    seen = replace(
        node(lab_facts()["lab-a"], "abc", "c"),
        releases={"a": {}, "b": {}, "c": {}, "x": {"at": "2026-01-01"}, "y": {"at": "2026-01-02"}},
    )
    assert in_order(seen) == ("c", "b", "a", "y", "x")


def test_the_inventory_says_state_time_hand_and_size() -> None:
    used = {"/opt/sparkstack": 3_000_000_000, "/opt/sparkstack/releases/b": 2_000_000_000}
    seen = {
        name: node(one, "abc", "c", partial=frozenset("u"), used=used, disk_free=9_000_000_000)
        for name, one in lab_facts().items()
    }
    rows = [(kept.node, kept.release, kept.state, kept.since) for kept in inventory(local(), seen)][:4]
    assert rows == [
        ("lab-a", "c", "in use", "2026-11-22T10:00:00Z"),
        ("lab-a", "b", "previous", "2026-11-21T10:00:00Z"),
        ("lab-a", "a", "kept", "2026-11-20T10:00:00Z"),
        ("lab-a", "u", "unfinished", ""),
    ]
    data = as_data(local(), seen)
    assert data["same"] is True
    assert data["nodes"]["lab-b"] == {"used": 3_000_000_000, "free": 9_000_000_000}
    assert data["releases"][1]["size"] == 2_000_000_000
    text = table(local(), seen)
    assert "owner@desk" in text
    assert "lab-a: 3.0 GB in /opt/sparkstack" in text
    assert "not on one release" not in text


def test_a_release_in_use_that_lost_its_record_is_both_in_use_and_unfinished() -> None:
    seen = node(lab_facts()["lab-a"], "ab", "b", gone="b", partial=frozenset("bu"))
    states = {one.release: one.state for one in inventory(local(), {"lab-a": seen, "lab-b": seen})}
    assert states == {"a": "previous", "b": "in use, unfinished", "u": "unfinished"}


def test_the_inventory_says_where_nodes_differ() -> None:
    text = table(local(), facts({"title": "", "lab-a": "ab*", "lab-b": "a*"}))
    assert "the nodes are not on one release: lab-a has b, lab-b has a\nnext: invoke deploy --cluster local" in text


def test_since_when_is_not_known_of_a_switch_that_was_not_noted() -> None:
    seen = node(lab_facts()["lab-a"], "ab", "a")
    kept = {one.release: one.since for one in inventory(local(), {"lab-a": seen, "lab-b": seen}) if one.node == "lab-a"}
    assert kept == {"a": "", "b": "2026-11-21T10:00:00Z"}


def test_since_when_is_not_known_of_what_an_older_version_deployed() -> None:
    seen = replace(node(lab_facts()["lab-a"], "ab", "b"), history=(Taken("a", "?", "?"), Taken("b", "2026", "me@here")))
    kept = {one.release: (one.since, one.by) for one in inventory(local(), {"lab-a": seen, "lab-b": seen})}
    assert kept == {"a": ("", ""), "b": ("2026", "me@here")}
