"""The whole of a deployment as a plan."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.apply import Context, apply
from core.config import load_cluster, load_stack
from core.errors import ComesFirst, UnfitNode
from core.facts import NodeFacts
from core.parsers import Taken
from core.plan import Later, as_text
from deploy.rollout import plan_deploy, plan_unbuilt
from tests.unit.samples import SPARK, cpu, lab_facts, local, manifest, spark_captures

WHEELS = manifest()
SWITCHING = ["prepare the switch", "switch", "check what is in use", "note what is in use"]


def deployed(seen: NodeFacts) -> NodeFacts:
    return replace(
        seen,
        root_owner="spark",
        wheels={one.filename: one.size for one in WHEELS.wheels},
        releases={WHEELS.release: {"stack": "cpu"}},
        current=WHEELS.release,
        history=(Taken(WHEELS.release, "?", "?"),),
    )


def test_fresh_nodes_get_everything_in_stages() -> None:
    plan = plan_deploy(local(), cpu(), WHEELS, lab_facts())
    assert plan.title == f"deploy {WHEELS.release} to local (lab-a, lab-b)"
    assert [stage.title for stage in plan.stages] == ["prepare", "push wheels", "install", "check", *SWITCHING]
    assert all(set(stage.by_node) == {"lab-a", "lab-b"} for stage in plan.stages)


def test_deployed_nodes_have_nothing_to_do() -> None:
    facts = {name: deployed(seen) for name, seen in lab_facts().items()}
    assert plan_deploy(local(), cpu(), WHEELS, facts).empty


def test_only_the_node_that_lacks_something_gets_it() -> None:
    facts = {name: deployed(seen) for name, seen in lab_facts().items()}
    facts["lab-b"] = replace(facts["lab-b"], current="older")
    plan = plan_deploy(local(), cpu(), WHEELS, facts)
    assert [(stage.title, list(stage.by_node)) for stage in plan.stages] == [(title, ["lab-b"]) for title in SWITCHING]


def test_a_node_that_is_not_fit_stops_the_whole_deployment() -> None:
    facts = lab_facts()
    facts["lab-b"] = replace(facts["lab-b"], disk_free=0)
    with pytest.raises(UnfitNode, match="the disk is full"):
        plan_deploy(local(), cpu(), WHEELS, facts)


class TestWithoutWheels:
    plan = plan_unbuilt(load_cluster("spark"), load_stack("guide"), SPARK, spark_captures().parsed())

    def test_the_plan_is_whole_and_its_first_stage_is_the_wheels(self) -> None:
        assert [stage.title for stage in self.plan.stages] == [
            "wheels",
            "prepare",
            "push wheels",
            "install",
            "check",
            *SWITCHING,
        ]
        assert self.plan.title == "deploy guide-aarch64-cp312-not-built to spark (gx10-beee, gx10-c6fb)"

    def test_every_component_reads_as_not_built(self) -> None:
        text = as_text(self.plan)
        assert "torch==2.9.0+cu130  from source  sha256: not built" in text
        assert text.count("sha256: not built") == len(load_stack("guide").components)
        assert "[comes first: invoke build-wheels --stack guide]" in text
        assert "push 137 wheels, sizes not known yet" in text

    def test_it_cannot_be_run(self) -> None:
        assert isinstance(next(self.plan.steps), Later)
        with pytest.raises(ComesFirst):
            apply(self.plan, Context(None, None, None))  # type: ignore[arg-type]
