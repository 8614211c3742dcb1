"""Start, stop and restart as plans: what runs is brought to what should, in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from core.config import load_cluster, load_profile, load_stack
from core.errors import NotServing, UnfitNode
from core.facts import NodeFacts
from core.plan import Later, Plan, Poll, Run, Write, as_text
from core.process import Completed
from core.units import RAY_HEAD, RAY_WORKER, VLLM
from serve.cluster import Service
from serve.service import nodes_without_model, plan_serve, plan_stop, plan_unready, require_model
from tests.unit.samples import lab_facts, local, process, service, serving, spark_captures, tiny, unit

SERVED = service()
STOPPING = ["stop the API", "stop Ray"]
STARTING = ["start the Ray head", "start the Ray workers", "check the Ray cluster", "start vLLM", "first token"]


def stages(plan: Plan) -> list[str]:
    return [stage.title for stage in plan.stages]


def commands(plan: Plan, stage: str) -> list[tuple[str, str]]:
    (found,) = [one for one in plan.stages if one.title == stage]
    return [(step.node, " ".join(step.argv)) for step in found.steps if isinstance(step, Run)]


def stopped(plan: Plan) -> list[tuple[str, str]]:
    return [(step.node, step.title) for step in plan.steps if step.title.startswith("stop ")]


def written(plan: Plan) -> list[tuple[str, str]]:
    return [(step.node, step.path.name) for step in plan.steps if isinstance(step, Write)]


def change(node: str, **changes: Any) -> dict[str, NodeFacts]:
    facts = serving(SERVED)
    return {**facts, node: replace(facts[node], **changes)}


class TestServe:
    def test_a_fresh_cluster_is_configured_and_started_in_order(self) -> None:
        plan = plan_serve(SERVED, lab_facts())
        assert stages(plan) == ["configure", *STARTING]
        assert written(plan) == [
            ("lab-a", "node.env"),
            ("lab-a", f"{RAY_HEAD}.service"),
            ("lab-a", f"{VLLM}.service"),
            ("lab-b", "node.env"),
            ("lab-b", f"{RAY_WORKER}.service"),
        ]
        assert commands(plan, "start the Ray head") == [("lab-a", f"systemctl start {RAY_HEAD}")]
        assert commands(plan, "start the Ray workers") == [("lab-b", f"systemctl start {RAY_WORKER}")]
        assert commands(plan, "start vLLM") == [("lab-a", f"systemctl start {VLLM}")]

    def test_systemd_reads_the_units_before_they_start(self) -> None:
        configure = plan_serve(SERVED, lab_facts()).stages[0]
        for steps in configure.by_node.values():
            assert steps[-1].title == "reload systemd"
            assert all(step.privileged for step in steps)

    def test_a_service_that_answers_has_nothing_to_do(self) -> None:
        assert plan_serve(SERVED, serving(SERVED)).empty

    def test_units_that_run_without_a_token_are_waited_for(self) -> None:
        plan = plan_serve(SERVED, change("lab-a", token=False))
        assert stages(plan) == ["first token"]

    def test_a_changed_variable_stops_all_configures_all_and_starts_all(self) -> None:
        changed = service(profile=tiny().model_copy(update={"environment": {"A": "1"}}))
        plan = plan_serve(changed, serving(SERVED))
        assert stages(plan) == [*STOPPING, "configure", *STARTING]
        assert written(plan) == [("lab-a", "node.env"), ("lab-b", "node.env")]
        assert [step.reason for step in plan.steps if isinstance(step, Write)] == ["it differs"] * 2

    def test_another_release_is_another_service(self) -> None:
        plan = plan_serve(replace(SERVED, release="cpu-x86_64-cp311-other"), serving(SERVED))
        assert stages(plan) == [*STOPPING, "configure", *STARTING]

    @pytest.mark.parametrize("state", ["inactive", "failed", "activating"])
    def test_a_worker_that_is_down_restarts_everything_in_order(self, state: str) -> None:
        plan = plan_serve(SERVED, change("lab-b", units={RAY_WORKER: unit(RAY_WORKER, state)}))
        assert stages(plan) == [*STOPPING, *STARTING], "a stage of vLLM cannot come back alone"
        ended = [] if state == "inactive" else [("lab-b", f"stop {RAY_WORKER}")]
        assert stopped(plan) == [("lab-a", f"stop {VLLM}"), ("lab-a", f"stop {RAY_HEAD}"), *ended]

    def test_a_machine_that_was_rebooted_is_a_worker_that_is_down(self) -> None:
        assert stages(plan_serve(SERVED, change("lab-b", units={}))) == [*STOPPING, *STARTING]

    def test_a_restart_stops_and_starts_what_is_fine(self) -> None:
        plan = plan_serve(SERVED, serving(SERVED), restart=True)
        assert stages(plan) == [*STOPPING, *STARTING]
        assert {step.reason for step in plan.stages[0].steps} == {"restart was asked for"}

    def test_a_unit_of_a_part_that_moved_away_is_removed(self) -> None:
        stray = f"/etc/systemd/system/{VLLM}.service"
        facts = change("lab-b", files={**serving(SERVED)["lab-b"].files, stray: "old"})
        plan = plan_serve(SERVED, facts)
        assert ("lab-b", f"rm -f {stray}") in commands(plan, "configure")
        assert written(plan) == []

    def test_one_node_has_no_workers_to_start(self) -> None:
        cluster = local().model_copy(update={"nodes": local().nodes[:1]})
        profile = tiny().model_copy(update={"pipeline_parallel": 1})
        assert "start the Ray workers" not in stages(plan_serve(service(cluster, profile=profile), lab_facts()))


class TestWaits:
    def poll(self, title: str) -> Poll:
        (step,) = [step for step in plan_serve(SERVED, lab_facts()).steps if step.title.startswith(title)]
        assert isinstance(step, Poll)
        return step

    def test_ray_is_asked_on_the_head_over_the_fabric(self) -> None:
        step = self.poll("wait until Ray has 2 nodes")
        assert step.node == "lab-a"
        assert step.argv[-1] == "198.18.100.1:6379"
        rows = [{"address": f"198.18.100.{n}", "alive": True, "resources": {"GPU": 1.0}} for n in (1, 2)]
        assert step.accept(answer(rows))
        assert not step.accept(answer(rows[:1]))
        error = step.failure(answer(rows[:1]))
        assert isinstance(error, NotServing)
        assert (error.node, error.cause) == ("lab-b", "Ray has 1 of 2 nodes; lab-b is missing")

    def test_a_token_is_asked_of_the_first_name_at_the_apis_address(self) -> None:
        step = self.poll("wait for the first token")
        assert step.argv[3:] == ("http://198.18.34.100:8000/v1", "tiny", "30", VLLM, RAY_HEAD)
        assert (step.timeout, step.privileged) == (300, True)


def answer(data: object) -> Completed:
    return Completed((), 0, json.dumps(data) + "\n")


class TestStop:
    def test_all_that_runs_is_stopped_the_api_first(self) -> None:
        plan = plan_stop(local(), serving(SERVED))
        assert stages(plan) == STOPPING
        assert stopped(plan) == [
            ("lab-a", f"stop {VLLM}"),
            ("lab-a", f"stop {RAY_HEAD}"),
            ("lab-b", f"stop {RAY_WORKER}"),
        ]
        assert {step.reason for step in plan.steps} == {"stop was asked for"}

    def test_what_is_down_has_nothing_to_do(self) -> None:
        assert plan_stop(local(), lab_facts()).empty
        assert plan_stop(local(), lab_facts(units={VLLM: unit(VLLM, "inactive", pid=0)})).empty

    def test_a_unit_that_failed_is_not_left_so(self) -> None:
        failed = {VLLM: unit(VLLM, "failed", pid=0)}
        assert stopped(plan_stop(local(), {**lab_facts(), "lab-a": lab_facts(units=failed)["lab-a"]})) == [
            ("lab-a", f"stop {VLLM}")
        ]

    def test_processes_without_a_unit_are_no_steps(self) -> None:
        assert plan_stop(local(), lab_facts(processes=(process(),))).empty


class TestModel:
    def test_a_node_without_it_is_named_with_the_command_that_brings_it(self) -> None:
        with pytest.raises(
            UnfitNode, match=r"the model sparkstack-tiny is not in /opt/sparkstack/models/spark"
        ) as caught:
            require_model(SERVED, change("lab-b", model_files={}))
        assert caught.value.node == "lab-b"
        assert caught.value.next_move == "invoke lab.model --cluster local --profile tiny"

    def test_a_real_cluster_is_told_where_it_belongs(self) -> None:
        sparks = Service(load_cluster("spark"), load_stack("guide"), load_profile("qwen2.5-32b"), "r")
        with pytest.raises(UnfitNode) as caught:
            require_model(sparks, spark_captures().parsed())
        assert caught.value.next_move == (
            "invoke model.fetch Qwen/Qwen2.5-32B-Instruct --cluster spark --profile qwen2.5-32b"
        )

    def test_of_a_model_from_nowhere_the_folder_is_said(self) -> None:
        profile = load_profile("qwen2.5-32b").model_copy(update={"repository": None})
        sparks = Service(load_cluster("spark"), load_stack("guide"), profile, "r")
        words = "put the model's files into /home/gx10/models/Qwen2.5-32B-Instruct on every node"
        with pytest.raises(UnfitNode) as caught:
            require_model(sparks, spark_captures().parsed())
        assert caught.value.next_move == words
        assert f"[comes first: {words}]" in as_text(plan_unready(sparks, spark_captures().parsed()))

    def test_a_model_on_every_node_is_fine(self) -> None:
        require_model(SERVED, serving(SERVED))
        assert nodes_without_model(SERVED, serving(SERVED)) == []


class TestPlanOnly:
    """What is shown where the release or the model is not there yet."""

    def later(self, plan: Plan) -> Sequence[Later]:
        return [step for step in plan.steps if isinstance(step, Later)]

    def test_what_comes_first_is_named_and_the_rest_is_whole(self) -> None:
        plan = plan_unready(SERVED, lab_facts())
        assert stages(plan) == ["deploy", "model", "configure", *STARTING]
        text = as_text(plan)
        assert f"lab-a: deploy {SERVED.release} — in use is none  [comes first: invoke deploy --cluster local]" in text
        assert "[comes first: invoke lab.model --cluster local --profile tiny]" in text

    def test_only_nodes_that_lack_it_are_named(self) -> None:
        plan = plan_unready(SERVED, change("lab-b", current="older"))
        assert [(step.node, step.reason) for step in self.later(plan)] == [("lab-b", "in use is older")]

    def test_the_fetch_of_the_profiles_model_is_what_comes_first(self) -> None:
        sparks = Service(load_cluster("spark"), load_stack("guide"), load_profile("qwen2.5-32b"), "r")
        plan = plan_unready(sparks, spark_captures().parsed())
        command = "invoke model.fetch Qwen/Qwen2.5-32B-Instruct --cluster spark --profile qwen2.5-32b"
        assert f"[comes first: {command}]" in as_text(plan)

    def test_where_all_is_there_it_is_the_plan_itself(self) -> None:
        assert plan_unready(SERVED, serving(SERVED)).empty
        assert plan_unready(SERVED, serving(SERVED), restart=True) == plan_serve(SERVED, serving(SERVED), restart=True)
