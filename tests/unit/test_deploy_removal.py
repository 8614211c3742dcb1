"""Everything of ours off the nodes, and nothing of anybody else's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.condition import Condition
from core.errors import InUse
from core.facts import NodeFacts
from core.plan import Plan, Run
from core.process import run
from core.surroundings import OurProcess, Surroundings
from core.units import MONITOR
from deploy.removal import OURS, plan_remove
from tests.unit.samples import lab_facts, local, process, service, serving, unit

EMPTY = lab_facts()["lab-a"]
STOPPED: dict[str, Any] = {
    "root_owner": "spark",
    "entries": frozenset({"releases", "wheels", "models", "current"}),
    "files": {"/etc/sparkstack/node.env": "", "/etc/systemd/system/sparkstack-vllm.service": ""},
}


def plan(head: NodeFacts, **options: bool) -> Plan:
    return plan_remove(local(), {**lab_facts(), "lab-a": head}, **options)


def titles(made: Plan) -> list[str]:
    return [step.title for step in made.steps]


def test_nodes_without_anything_of_ours_have_nothing_to_do() -> None:
    assert plan(EMPTY).empty


def test_files_and_folder_go_and_a_node_that_has_nothing_is_left_alone() -> None:
    made = plan(replace(EMPTY, **STOPPED))
    assert titles(made) == [
        "remove 2 files, the cache and the keys",
        "remove current, models, releases, wheels in /opt/sparkstack",
        "remove /opt/sparkstack",
    ]
    assert {step.node for step in made.steps} == {"lab-a"}
    assert not made.notes


def test_models_may_stay_and_then_the_folder_does() -> None:
    made = plan(replace(EMPTY, **STOPPED), keep_models=True)
    assert titles(made)[1:] == ["remove current, releases, wheels in /opt/sparkstack"]
    assert made.notes == ("lab-a: /opt/sparkstack/models stays, as --keep-models says",)
    after = replace(EMPTY, root_owner="spark", entries=frozenset({"models"}))
    assert plan(after, keep_models=True).empty
    assert titles(plan(after)) == ["remove models in /opt/sparkstack", "remove /opt/sparkstack"]


def test_what_is_not_ours_stays_and_is_named() -> None:
    made = plan(replace(EMPTY, **{**STOPPED, "entries": frozenset({"releases", "thesis"}), "files": {}}))
    assert titles(made) == ["remove releases in /opt/sparkstack"]
    assert made.notes == ("lab-a: thesis in /opt/sparkstack is not of the suite and stays",)
    assert plan(replace(EMPTY, root_owner="spark", entries=frozenset({"thesis"}))).empty


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"units": {"sparkstack-vllm": unit("sparkstack-vllm")}}, "it still runs sparkstack-vllm"),
        ({"units": {"sparkstack-build-x": unit("sparkstack-build-x", "activating")}}, "sparkstack-build-x"),
    ],
)
def test_a_node_where_something_of_ours_runs_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InUse, match=says) as caught:
        plan(replace(EMPTY, **STOPPED, **changes))
    assert caught.value.node == "lab-a"
    assert "invoke stop --cluster local" in caught.value.next_move
    assert "--stop" in caught.value.next_move


@pytest.mark.parametrize(
    ("names", "says", "not_said"),
    [
        (("sparkstack-prometheus", "sparkstack-node-exporter"), "invoke monitor --off --cluster local, or", "stop --c"),
        (("sparkstack-vllm",), "invoke stop --cluster local, or", "monitor"),
        (
            ("sparkstack-node-exporter", "sparkstack-vllm"),
            "invoke stop --cluster local and invoke monitor --off --cluster local, or",
            "nothing",
        ),
    ],
)
def test_the_command_that_ends_what_runs_is_named(names: tuple[str, ...], says: str, not_said: str) -> None:
    with pytest.raises(InUse) as caught:
        plan(replace(EMPTY, units={name: unit(name) for name in names}))
    assert caught.value.next_move.startswith(says)
    assert not_said not in caught.value.next_move


def test_the_metrics_go_before_the_unit_that_keeps_them() -> None:
    files = {f"/etc/systemd/system/{name}.service": "" for name in MONITOR}
    made = plan(replace(EMPTY, files=files, units={name: unit(name) for name in MONITOR}), stop=True)
    assert titles(made) == [
        "stop sparkstack-node-exporter, sparkstack-prometheus",
        "remove the metrics kept so far",
        "remove 2 files, the cache and the keys",
    ]


def test_no_boot_looks_for_a_unit_that_was_removed() -> None:
    """The script is read and never run: it names folders of the machine itself."""
    *_, step = plan(replace(EMPTY, files={"/etc/systemd/system/sparkstack-prometheus.service": ""})).steps
    assert isinstance(step, Run)
    removing = next(line for line in step.argv[2].splitlines() if line.startswith("rm -f "))
    assert "/etc/systemd/system/*.wants/sparkstack-*.service" in removing.split()


def living(*units: str) -> dict[str, Any]:
    """Return facts of a node with a process of ours in each of these units."""
    ours = tuple(
        OurProcess(7 + number, 1, 1000, one, "ray::IDLE", (), 7 + number, loose=False, starter="1 systemd")
        for number, one in enumerate(units)
    )
    return {"condition": Condition(around=Surroundings(ours=ours))}


@pytest.mark.parametrize("stop", [False, True])
def test_a_process_that_no_unit_holds_is_named_and_not_killed(stop: object) -> None:
    with pytest.raises(InUse, match="1 processes of ours that belong to no unit") as caught:
        plan(replace(EMPTY, **STOPPED, **living("session-5.scope")), stop=bool(stop))
    assert caught.value.node == "lab-a"
    assert caught.value.next_move == "end them on the node: kill 7"
    assert caught.value.evidence == "7 ray::IDLE (user 1000, started by 1 systemd)"


def test_a_process_that_no_unit_holds_is_refused_before_anything_is_stopped_or_removed() -> None:
    units = {"sparkstack-vllm": unit("sparkstack-vllm")}
    with pytest.raises(InUse, match="1 processes of ours that belong to no unit") as caught:
        plan(replace(EMPTY, **STOPPED, units=units, **living("sparkstack-vllm.service", "-")), stop=True)
    assert caught.value.next_move == "end them on the node: kill 8"


def test_processes_in_units_of_ours_end_with_their_units() -> None:
    units = {"sparkstack-vllm": unit("sparkstack-vllm")}
    made = plan(replace(EMPTY, units=units, **living("sparkstack-vllm.service")), stop=True)
    assert titles(made) == ["stop sparkstack-vllm"]


@pytest.mark.parametrize("command", ["VLLM::Worker", "ray::IDLE", "vim /opt/sparkstack/releases/x/stack.lock"])
def test_what_only_looks_like_ours_is_somebody_elses(command: str) -> None:
    assert titles(plan(replace(EMPTY, **STOPPED, processes=(process(7, command),)))) == titles(
        plan(replace(EMPTY, **STOPPED))
    )


def test_a_unit_that_ended_is_no_reason_to_refuse_and_a_failed_one_is_forgotten() -> None:
    units = {
        "sparkstack-vllm": unit("sparkstack-vllm", "failed"),
        "sparkstack-ray-head": unit("sparkstack-ray-head", "inactive"),
    }
    assert titles(plan(replace(EMPTY, units=units))) == ["stop sparkstack-vllm"]


def test_what_serves_is_stopped_first_when_told() -> None:
    made = plan_remove(local(), serving(service()), stop=True)
    assert [stage.title for stage in made.stages] == ["stop what runs", "remove units and environment files"]
    assert titles(made)[:2] == [
        "start nothing at boot",
        "stop sparkstack-ray-head, sparkstack-supervisor, sparkstack-vllm",
    ]


@pytest.mark.processes
def test_the_folder_goes_only_when_nothing_else_is_in_it(tmp_path: Path) -> None:
    root = tmp_path / "sparkstack"
    cluster = local().model_copy(update={"root": root})
    for name in OURS:
        (root / name / "inside").mkdir(parents=True)
    seen = replace(EMPTY, root_owner="spark", entries=frozenset(OURS))
    for step in plan_remove(cluster, {"lab-a": seen, "lab-b": EMPTY}).steps:
        assert isinstance(step, Run)
        run(step.argv)
    assert not root.exists()
