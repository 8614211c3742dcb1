"""Start, stop and restart as plans: what runs is brought to what should, in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from core.config import load_cluster, load_profile, load_stack
from core.errors import ConfigError, NotServing, UnfitNode
from core.facts import NodeFacts
from core.plan import Later, Plan, Poll, Run, Step, Write, as_text
from core.process import Completed
from core.units import RAY_HEAD, RAY_WORKER, SUPERVISOR, VLLM
from serve.api.keys import FINGERPRINTS, Secrets
from serve.api.tls import PACKAGE, PROXY
from serve.cluster import Service
from serve.files import WANTED
from serve.service import (
    Wish,
    nodes_without_model,
    plan_serve,
    plan_unready,
    require_model,
    require_packages,
)
from serve.stopping import plan_stop
from tests.unit.samples import lab_facts, local, process, service, serving, spark_captures, tiny, unit

SERVED = service()
FRESH = Secrets("1" * 64, "2" * 64, "3" * 64, "4" * 64)
DOWN = ["drain", "stop"]
UP = ["start the supervisors", "first token"]
RESTART = Wish(restart=True)


def stages(plan: Plan) -> list[str]:
    return [stage.title for stage in plan.stages]


def commands(plan: Plan, stage: str) -> list[tuple[str, str]]:
    (found,) = [one for one in plan.stages if one.title == stage]
    return [(step.node, " ".join(step.argv)) for step in found.steps if isinstance(step, Run)]


def stopped(plan: Plan) -> list[tuple[str, str]]:
    return [(step.node, step.title) for step in plan.steps if step.title.startswith("stop ")]


def written(plan: Plan) -> list[tuple[str, str]]:
    return [(step.node, step.path.name) for step in plan.steps if isinstance(step, Write)]


def back(plan: Plan) -> Sequence[Step]:
    """Return what is done when the configuration, or what follows it, fails: stages are undone, the last first."""
    return [
        step for title in ("configure", "stop") for stage in plan.stages if stage.title == title for step in stage.undo
    ]


def change(node: str, **changes: Any) -> dict[str, NodeFacts]:
    facts = serving(SERVED)
    return {**facts, node: replace(facts[node], **changes)}


def said(**changes: Any) -> dict[str, NodeFacts]:
    """Return machines that serve, whose head says something else."""
    return change("lab-a", state={**serving(SERVED)["lab-a"].state, **changes})


class TestServe:
    def test_a_fresh_cluster_gets_secrets_files_and_supervisors_in_this_order(self) -> None:
        plan = plan_serve(SERVED, lab_facts(), FRESH)
        assert stages(plan) == ["secrets", "configure", "keep shared memory", *UP]
        start = [("lab-a", f"systemctl enable --quiet --now {SUPERVISOR}")]
        found = commands(plan, "start the supervisors")
        assert [found[0], found[-1]] == [*start, ("lab-b", start[0][1])]

    def test_no_plan_starts_a_rank_the_supervisors_do(self) -> None:
        for plan in (plan_serve(SERVED, lab_facts(), FRESH), plan_serve(SERVED, serving(SERVED), FRESH, RESTART)):
            argvs = [" ".join(step.argv) for step in plan.steps if isinstance(step, Run)]
            assert not [argv for argv in argvs if f"start {VLLM}" in argv or f"start {RAY_HEAD}" in argv]

    def test_systemd_reads_the_units_before_they_start(self) -> None:
        (configure,) = [stage for stage in plan_serve(SERVED, lab_facts(), FRESH).stages if stage.title == "configure"]
        for steps in configure.by_node.values():
            assert steps[-1].title == "reload systemd"
            assert all(step.privileged for step in steps)

    def test_a_service_that_serves_has_nothing_to_do(self) -> None:
        assert plan_serve(SERVED, serving(SERVED), FRESH).empty

    @pytest.mark.parametrize("phase", ["waiting", "stopping", "resting", "starting"])
    def test_supervisors_that_are_on_their_way_are_waited_for(self, phase: str) -> None:
        assert stages(plan_serve(SERVED, said(phase=phase), FRESH)) == ["first token"]

    def test_a_state_that_is_old_says_nothing(self) -> None:
        assert stages(plan_serve(SERVED, said(at=said()["lab-a"].moment - 60), FRESH)) == ["first token"]

    def test_a_state_of_another_service_is_no_token_of_this_one(self) -> None:
        assert stages(plan_serve(SERVED, said(generation="other"), FRESH)) == ["first token"]

    def test_a_service_that_was_given_up_is_started_again(self) -> None:
        assert stages(plan_serve(SERVED, said(phase="given-up"), FRESH)) == [*DOWN, *UP]

    def test_a_changed_variable_stops_all_configures_all_and_starts_all(self) -> None:
        changed = service(profile=tiny().model_copy(update={"environment": {"A": "1"}}))
        plan = plan_serve(changed, serving(SERVED), FRESH)
        assert stages(plan) == ["check the flags", *DOWN, "configure", *UP]
        assert written(plan) == [(node, name) for node in ("lab-a", "lab-b") for name in ("node.env", "service.json")]
        assert {step.reason for step in plan.steps if isinstance(step, Write)} == {"it differs"}

    def test_another_release_is_another_service(self) -> None:
        plan = plan_serve(replace(SERVED, release="cpu-x86_64-cp311-other"), serving(SERVED), FRESH)
        assert stages(plan) == ["check the flags", *DOWN, "configure", *UP]

    def test_flags_are_checked_before_anything_that_serves_is_stopped(self) -> None:
        changed = service(profile=tiny().model_copy(update={"flags": ("--no-such-flag",)}))
        steps = [step.title for step in plan_serve(changed, serving(SERVED), FRESH).steps]
        assert steps[0] == "check the flags"

    def test_where_nothing_runs_nothing_can_be_lost_by_a_wrong_flag(self) -> None:
        assert "check the flags" not in stages(plan_serve(SERVED, lab_facts(), FRESH))

    def test_a_profile_that_breaks_a_must_is_refused_without_a_plan(self) -> None:
        broken = service(profile=tiny().model_copy(update={"flags": ("--port", "1")}))
        with pytest.raises(ConfigError, match="flags holds --port, which the suite gives itself"):
            plan_serve(broken, serving(SERVED), FRESH)

    @pytest.mark.parametrize("node", ["lab-a", "lab-b"])
    @pytest.mark.parametrize("active", ["inactive", "failed"])
    def test_a_supervisor_that_is_down_has_all_of_it_stopped_and_started(self, node: str, active: str) -> None:
        units = {**serving(SERVED)[node].units, SUPERVISOR: unit(SUPERVISOR, active)}
        assert stages(plan_serve(SERVED, change(node, units=units), FRESH)) == [*DOWN, *UP]

    def test_a_rank_that_is_down_is_the_supervisors_own_matter(self) -> None:
        units = {**serving(SERVED)["lab-b"].units, RAY_WORKER: unit(RAY_WORKER, "failed")}
        assert plan_serve(SERVED, change("lab-b", units=units), FRESH).empty

    def test_a_restart_stops_and_starts_what_is_fine(self) -> None:
        plan = plan_serve(SERVED, serving(SERVED), FRESH, RESTART)
        assert stages(plan) == [*DOWN, *UP]
        assert {step.reason for step in plan.stages[1].steps} == {"restart was asked for"}

    def test_nodes_whose_keys_differ_get_the_same_one_and_start_anew(self) -> None:
        files = {**serving(SERVED)["lab-b"].files, str(FINGERPRINTS): json.dumps({"link-key": "9" * 64})}
        plan = plan_serve(SERVED, change("lab-b", files=files), FRESH)
        assert stages(plan) == [*DOWN, "secrets", *UP]
        links = [(step.node, step.content) for step in plan.steps if isinstance(step, Write) and "link" in step.title]
        assert links == [("lab-a", FRESH.link_key + "\n"), ("lab-b", FRESH.link_key + "\n")]

    def test_a_unit_of_a_part_that_moved_away_is_removed(self) -> None:
        stray = f"/etc/systemd/system/{VLLM}.service"
        plan = plan_serve(SERVED, change("lab-b", files={**serving(SERVED)["lab-b"].files, stray: "old"}), FRESH)
        assert ("lab-b", f"rm -f {stray}") in commands(plan, "configure")
        assert written(plan) == []

    def test_the_plan_shows_no_secret(self) -> None:
        text = as_text(plan_serve(SERVED, lab_facts(), FRESH))
        assert not [key for key in "1234" if key * 64 in text]

    def test_shared_memory_is_kept_for_a_user_who_has_logged_out(self) -> None:
        plan = plan_serve(SERVED, lab_facts(), FRESH)
        assert commands(plan, "keep shared memory") == [
            (node, "loginctl enable-linger spark") for node in ("lab-a", "lab-b")
        ]


class TestBack:
    """What served before comes back where the new one does not come up."""

    CHANGED = service(profile=tiny().model_copy(update={"environment": {"A": "1"}}))

    def undone(self, served: Service, facts: dict[str, NodeFacts]) -> list[tuple[str, str]]:
        return [(step.node, step.title) for step in back(plan_serve(served, facts, FRESH))]

    def test_each_node_has_its_files_back_before_its_supervisor_starts(self) -> None:
        for node in ("lab-a", "lab-b"):
            titles = [title for where, title in self.undone(self.CHANGED, serving(SERVED)) if where == node]
            assert titles == [
                "stop what did not come up",
                "write node.env",
                "write service.json",
                "reload systemd",
                f"enable and start {SUPERVISOR}",
            ]

    def test_what_comes_back_is_what_was_there_word_for_word(self) -> None:
        facts = serving(SERVED)
        undo = back(plan_serve(self.CHANGED, facts, FRESH))
        written = {(step.node, str(step.path)): step.content for step in undo if isinstance(step, Write)}
        assert written
        assert all(facts[node].files[path] == content for (node, path), content in written.items())

    def test_nothing_comes_back_where_nothing_served(self) -> None:
        assert self.undone(SERVED, lab_facts()) == []
        assert self.undone(self.CHANGED, said(phase="given-up")) == []

    def test_a_proxy_that_is_new_is_stopped_and_taken_away_and_not_started_again(self) -> None:
        undone = self.undone(service(local().with_tls()), serving(SERVED))
        assert ("lab-a", f"enable and start {SUPERVISOR}") in undone
        (stop,) = [
            step
            for step in back(plan_serve(service(local().with_tls()), serving(SERVED), FRESH))
            if step.node == "lab-a" and step.title == "stop what did not come up"
        ]
        assert isinstance(stop, Run)
        assert PROXY in stop.argv

    def test_a_proxy_that_was_there_starts_again(self) -> None:
        proxied = service(local().with_tls())
        units = {**serving(proxied)["lab-a"].units, PROXY: unit(PROXY)}
        facts = {**serving(proxied), "lab-a": replace(serving(proxied)["lab-a"], units=units)}
        assert ("lab-a", f"enable and start {SUPERVISOR}, {PROXY}") in self.undone(SERVED, facts)

    def test_what_served_starts_again_where_the_stop_or_the_keys_fail(self) -> None:
        plan = plan_serve(self.CHANGED, serving(SERVED), FRESH)
        (stop,) = [stage for stage in plan.stages if stage.title == "stop"]
        assert [(step.node, step.title) for step in stop.undo] == [
            (node, f"enable and start {SUPERVISOR}") for node in ("lab-a", "lab-b")
        ]
        (stop,) = [stage for stage in plan_serve(SERVED, said(phase="given-up"), FRESH).stages if stage.title == "stop"]
        assert stop.undo == ()

    def test_a_boot_in_between_starts_it(self) -> None:
        for _, argv in commands(plan_serve(self.CHANGED, serving(SERVED), FRESH), "stop"):
            assert "disable" not in argv

    def test_what_runs_and_no_boot_would_start_is_enabled_without_a_stop(self) -> None:
        units = serving(SERVED)["lab-b"].units
        facts = change("lab-b", units={**units, SUPERVISOR: replace(units[SUPERVISOR], enabled=False)})
        plan = plan_serve(SERVED, facts, FRESH)
        assert stages(plan) == ["start at boot"]
        assert commands(plan, "start at boot") == [("lab-b", f"systemctl enable --quiet {SUPERVISOR}")]


class TestProxy:
    PROXIED = service(local().with_tls())

    def test_it_starts_with_the_heads_supervisor(self) -> None:
        start = commands(plan_serve(self.PROXIED, lab_facts(), FRESH), "start the supervisors")
        assert start[0] == ("lab-a", f"systemctl enable --quiet --now {SUPERVISOR} {PROXY}")
        assert start[-1] == ("lab-b", f"systemctl enable --quiet --now {SUPERVISOR}")

    def test_one_that_is_down_is_not_what_is_wanted(self) -> None:
        assert stages(plan_serve(self.PROXIED, serving(self.PROXIED), FRESH)) == [*DOWN, *UP]

    def test_without_caddy_it_is_refused(self) -> None:
        with pytest.raises(UnfitNode, match=f"TLS for the API needs the Debian package {PACKAGE}"):
            require_packages(self.PROXIED, serving(self.PROXIED))


class TestWait:
    def poll(self) -> Poll:
        (step,) = [step for step in plan_serve(SERVED, lab_facts(), FRESH).steps if isinstance(step, Poll)]
        return step

    def answer(self, **state: Any) -> Completed:
        (text,) = [
            step.content
            for step in plan_serve(SERVED, lab_facts(), FRESH).steps
            if isinstance(step, Write) and step.path == WANTED and step.node == "lab-a"
        ]
        said = {"generation": json.loads(text)["generation"], **state}
        return Completed((), 0, json.dumps({"state": said, "age": 0.5}) + "\n")

    def test_it_ends_when_the_head_says_that_this_service_serves(self) -> None:
        step = self.poll()
        assert (step.node, step.timeout, step.privileged) == ("lab-a", 300, False)
        assert step.accept(self.answer(phase="serving"))
        assert not step.accept(self.answer(phase="starting"))
        assert not step.accept(self.answer(phase="serving", generation="older"))

    def test_it_ends_at_once_where_the_head_has_given_up(self) -> None:
        with pytest.raises(NotServing, match="given up after 2 failures"):
            self.poll().accept(self.answer(phase="given-up", reason="given up after 2 failures in a row: x"))


class TestStop:
    def test_running_requests_end_first_then_all_that_runs_is_stopped(self) -> None:
        plan = plan_stop(local(), serving(SERVED))
        assert stages(plan) == DOWN
        assert stopped(plan) == [("lab-a", "stop supervisor, vllm, ray-head"), ("lab-b", "stop supervisor, ray-worker")]
        assert {step.reason for step in plan.stages[1].steps} == {"stop was asked for"}

    def test_supervisors_are_told_to_start_nothing_at_the_next_boot(self) -> None:
        found = commands(plan_stop(local(), serving(SERVED)), "stop")
        for node in ("lab-a", "lab-b"):
            mine = [argv for where, argv in found if where == node]
            assert mine[0] == f"systemctl disable --quiet {SUPERVISOR}"

    def test_with_no_patience_nobody_is_waited_for(self) -> None:
        assert stages(plan_stop(local(), serving(SERVED), patience=0)) == ["stop"]

    def test_what_is_down_has_nothing_to_do(self) -> None:
        assert plan_stop(local(), lab_facts()).empty
        assert plan_stop(local(), lab_facts(units={VLLM: unit(VLLM, "inactive", pid=0)})).empty

    def test_a_unit_that_failed_is_not_left_so(self) -> None:
        failed = {VLLM: unit(VLLM, "failed", pid=0)}
        facts = {**lab_facts(), "lab-a": lab_facts(units=failed)["lab-a"]}
        assert stopped(plan_stop(local(), facts)) == [("lab-a", "stop vllm")]

    def test_processes_without_a_unit_are_no_steps(self) -> None:
        assert plan_stop(local(), lab_facts(processes=(process(),))).empty


class TestNeeds:
    def test_a_node_without_the_model_is_named_with_the_command_that_brings_it(self) -> None:
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
        command = "invoke model.fetch Qwen/Qwen2.5-32B-Instruct --cluster spark --profile qwen2.5-32b"
        assert caught.value.next_move == command
        assert f"[comes first: {command}]" in as_text(plan_unready(sparks, spark_captures().parsed(), FRESH))

    def test_of_a_model_from_nowhere_the_folder_is_said(self) -> None:
        profile = load_profile("qwen2.5-32b").model_copy(update={"repository": None})
        sparks = Service(load_cluster("spark"), load_stack("guide"), profile, "r")
        words = "put the model's files into /home/gx10/models/Qwen2.5-32B-Instruct on every node"
        with pytest.raises(UnfitNode) as caught:
            require_model(sparks, spark_captures().parsed())
        assert caught.value.next_move == words
        assert f"[comes first: {words}]" in as_text(plan_unready(sparks, spark_captures().parsed(), FRESH))

    def test_what_is_on_every_node_is_fine(self) -> None:
        require_model(SERVED, serving(SERVED))
        require_packages(SERVED, serving(SERVED))
        assert nodes_without_model(SERVED, serving(SERVED)) == []

    def test_a_node_that_could_not_close_its_ports_is_refused(self) -> None:
        with pytest.raises(UnfitNode, match="Debian packages are missing: nftables") as caught:
            require_packages(SERVED, change("lab-b", packages=frozenset()))
        assert caught.value.node == "lab-b"


class TestPlanOnly:
    """What is shown where the release or the model is not there yet."""

    def later(self, plan: Plan) -> Sequence[Later]:
        return [step for step in plan.steps if isinstance(step, Later)]

    def test_what_comes_first_is_named_and_the_rest_is_whole(self) -> None:
        plan = plan_unready(SERVED, lab_facts(), FRESH)
        assert stages(plan) == ["deploy", "model", "secrets", "configure", "keep shared memory", *UP]
        text = as_text(plan)
        assert f"lab-a: deploy {SERVED.release} — in use is none  [comes first: invoke deploy --cluster local]" in text
        assert "[comes first: invoke lab.model --cluster local --profile tiny]" in text

    def test_only_nodes_that_lack_it_are_named(self) -> None:
        plan = plan_unready(SERVED, change("lab-b", current="older"), FRESH)
        assert [(step.node, step.reason) for step in self.later(plan)] == [("lab-b", "in use is older")]

    def test_where_all_is_there_it_is_the_plan_itself(self) -> None:
        assert plan_unready(SERVED, serving(SERVED), FRESH).empty
        whole = plan_serve(SERVED, serving(SERVED), FRESH, RESTART)
        assert as_text(plan_unready(SERVED, serving(SERVED), FRESH, RESTART)) == as_text(whole)
