"""Builds on nodes are found by their units and stopped when asked; how long the last one took is remembered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from build import times
from build.site import plan_stop
from core.plan import as_text, command_of
from tests.unit.samples import lab_facts, local, unit


def test_stop_ends_the_builds_that_run_and_no_other_unit() -> None:
    facts = lab_facts()
    units = {name: unit(name) for name in ("sparkstack-build-vllm-1", "sparkstack-vllm", "sparkstack-ray-head")}
    units["sparkstack-build-torch-2"] = unit("sparkstack-build-torch-2", active="failed")
    facts["lab-a"] = replace(facts["lab-a"], units=units)
    plan = plan_stop(local(), facts, "")
    assert [(step.node, command_of(step)) for step in plan.steps] == [
        ("lab-a", "sudo systemctl stop sparkstack-build-vllm-1")
    ]
    assert plan_stop(local(), facts, "lab-b").empty
    assert "stop the builds on lab-a" in as_text(plan_stop(local(), facts, "lab-a"))


def test_the_last_builds_seconds_are_kept_by_machine_and_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(times, "WORK", tmp_path)
    assert times.expected_seconds("gx10-beee", "vllm") is None
    times.keep_seconds("gx10-beee", "vllm", 1000.5)
    times.keep_seconds("controller", "vllm", 4000)
    times.keep_seconds("gx10-beee", "vllm", 990)
    assert (times.expected_seconds("gx10-beee", "vllm"), times.expected_seconds("controller", "vllm")) == (990, 4000)


@pytest.mark.parametrize("text", ["", "[]", "{half"])
def test_a_damaged_record_of_times_is_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(times, "WORK", tmp_path)
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "times.json").write_text(text)
    assert times.expected_seconds("a", "b") is None
    times.keep_seconds("a", "b", 1)
    assert times.expected_seconds("a", "b") == 1
