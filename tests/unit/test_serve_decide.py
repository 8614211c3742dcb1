"""What the head's supervisor decides: every way from one phase to another, in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from serve.onnode.decide import DOWN, KEPT, Failure, Order, Phase, Seen, State, Unit, first, order_for, step
from serve.onnode.wanted import Limits, Wanted

A, B = "lab-a", "lab-b"
HEAD, WORKER, VLLM = "sparkstack-ray-head", "sparkstack-ray-worker", "sparkstack-vllm"
LIMITS = Limits(start=300, delays=(2, 10, 30), attempts=3, lost=12, stable=600, memory=120)
WANTED = Wanted(
    generation="g1",
    cluster="local",
    node=A,
    head=A,
    addresses={A: "198.18.100.1", B: "198.18.100.2"},
    port=29779,
    stages=({A: HEAD}, {B: WORKER}, {A: VLLM}),
    memory={A: 4 << 30, B: 2 << 30},
    limits=LIMITS,
    user="spark",
)
NOW = 1_000_000.0
UP = {A: {HEAD: "active", VLLM: "active"}, B: {WORKER: "active"}}
ENDED = {A: {HEAD: "inactive", VLLM: "failed"}, B: {WORKER: "inactive"}}


def state(phase: Phase = Phase.SERVING, **changes: Any) -> State:
    stage = 2 if phase is Phase.SERVING else 0
    return State(**{"phase": phase, "since": NOW - 60, "serial": 7, "stage": stage, **changes})


def reports(
    units: Mapping[str, Mapping[str, str]], *, serial: int = 7, why: str = "", **changes: Mapping[str, Any]
) -> dict[str, Seen]:
    """Return a fresh report of every node; ``lab_a`` and ``lab_b`` change that node's own."""
    found = {}
    for node, states in units.items():
        told = {name: Unit(active, why if active in DOWN else "") for name, active in states.items()}
        seen = Seen(NOW, "g1", serial, told, memory=8 << 30, started=frozenset(states))
        found[node] = replace(seen, **changes.get(node.replace("-", "_"), {}))
    return found


def after(before: State, seen: Mapping[str, Seen], now: float = NOW) -> State:
    return step(before, WANTED, seen, now)


class TestWaiting:
    def test_it_waits_for_every_node_and_names_those_that_it_waits_for(self) -> None:
        found = after(first(NOW, 5), {A: reports(ENDED)[A]})
        assert (found.phase, found.reason) == (Phase.WAITING, "lab-b has not reported")

    def test_a_node_that_still_has_another_service_is_told_from_one_that_is_silent(self) -> None:
        found = after(first(NOW, 5), reports(ENDED, lab_b={"generation": "g0"}))
        said = "lab-b has another configuration: invoke serve gives all the same"
        assert (found.phase, found.reason) == (Phase.WAITING, said)

    def test_with_all_there_what_may_be_left_is_ended_first(self) -> None:
        found = after(first(NOW, 5), reports(UP, serial=0))
        assert (found.phase, found.serial) == (Phase.STOPPING, 6)
        assert [order_for(found, WANTED, node).run for node in (A, B)] == [(), ()]


class TestStopping:
    def test_it_lasts_until_every_unit_of_every_node_is_down(self) -> None:
        before = state(Phase.STOPPING)
        for active in ("active", "activating", "deactivating", "reloading"):
            assert after(before, reports({**ENDED, B: {WORKER: active}})) == before
        assert after(before, reports(ENDED)).phase is Phase.RESTING

    def test_a_report_from_before_the_order_says_nothing(self) -> None:
        before = state(Phase.STOPPING)
        assert after(before, reports(ENDED, lab_b={"serial": 6})) == before

    def test_a_node_that_is_gone_is_not_waited_for(self) -> None:
        assert after(state(Phase.STOPPING), {A: reports(ENDED)[A]}).phase is Phase.RESTING

    def test_the_reason_is_kept(self) -> None:
        assert after(state(Phase.STOPPING, reason="why"), reports(ENDED)).reason == "why"

    def test_where_the_failures_were_too_many_it_is_given_up(self) -> None:
        found = after(state(Phase.STOPPING, over=True, reason="given up after 3 failures in a row: x"), reports(ENDED))
        assert (found.phase, found.reason) == (Phase.GIVEN_UP, "given up after 3 failures in a row: x")


class TestResting:
    def test_it_rests_as_long_as_it_has_to(self) -> None:
        before = state(Phase.RESTING, not_before=NOW + 1)
        assert after(before, reports(ENDED)) == before
        assert (
            after(before, reports(ENDED, lab_a={"at": NOW + 1}, lab_b={"at": NOW + 1}), NOW + 1).phase is Phase.STARTING
        )

    def test_a_start_has_a_new_serial_and_begins_with_the_first_stage(self) -> None:
        found = after(state(Phase.RESTING, attempt=4), reports(ENDED))
        assert (found.serial, found.stage, found.attempt) == (8, 0, 5)
        assert order_for(found, WANTED, A) == Order("g1", 8, (HEAD,))
        assert order_for(found, WANTED, B) == Order("g1", 8, ())

    def test_it_says_which_try_in_a_row_this_is(self) -> None:
        assert after(state(Phase.RESTING, row=(Failure(1, "x"),)), reports(ENDED)).reason == "attempt 2 of 3"

    def test_memory_that_is_not_back_is_waited_for_and_said(self) -> None:
        found = after(state(Phase.RESTING), reports(ENDED, lab_b={"memory": 1 << 30}))
        assert (found.phase, found.reason) == (Phase.RESTING, "waits for memory: lab-b has 1.0 of 2.0 GiB")

    def test_memory_that_does_not_come_back_is_a_failure(self) -> None:
        found = after(state(Phase.RESTING, since=NOW - 121), reports(ENDED, lab_b={"memory": 1 << 30}))
        assert (found.phase, found.serial) == (Phase.STOPPING, 8)
        assert found.reason == "memory did not come back: lab-b has 1.0 of 2.0 GiB"

    def test_the_patience_for_memory_begins_when_the_rest_is_over(self) -> None:
        before = state(Phase.RESTING, since=NOW - 300, not_before=NOW - 10)
        assert after(before, reports(ENDED, lab_b={"memory": 0})).phase is Phase.RESTING

    @pytest.mark.parametrize("back", [{"serial": 6}, {"units": {WORKER: Unit("active")}}])
    def test_a_node_that_was_away_while_the_others_ended_ends_first(self, back: dict[str, Any]) -> None:
        found = after(state(Phase.RESTING, reason="why"), reports(ENDED, lab_b=back))
        assert (found.phase, found.serial, found.reason) == (Phase.STOPPING, 7, "why")

    def test_a_node_that_goes_away_is_waited_for(self) -> None:
        found = after(state(Phase.RESTING), {A: reports(ENDED)[A]})
        assert (found.phase, found.reason) == (Phase.WAITING, "lab-b has not reported")


class TestStarting:
    def test_the_next_stage_starts_when_all_of_this_one_runs(self) -> None:
        begun = {A: {HEAD: "active", VLLM: "inactive"}, B: {WORKER: "inactive"}}
        seen = reports(begun, lab_a={"started": frozenset({HEAD})}, lab_b={"started": frozenset()})
        found = after(state(Phase.STARTING), seen)
        assert (found.phase, found.stage, found.serial) == (Phase.STARTING, 1, 7)
        assert order_for(found, WANTED, B).run == (WORKER,)
        assert order_for(found, WANTED, A).run == (HEAD,)

    def test_a_unit_that_is_on_its_way_is_waited_for(self) -> None:
        before = state(Phase.STARTING)
        assert after(before, reports({**ENDED, A: {HEAD: "activating"}})) == before

    def test_a_unit_that_was_not_started_yet_is_no_failure(self) -> None:
        before = state(Phase.STARTING)
        seen = reports(ENDED, why="old", lab_a={"started": frozenset()}, lab_b={"started": frozenset()})
        assert after(before, seen) == before

    def test_a_unit_that_ended_is_a_failure_with_its_reason(self) -> None:
        seen = reports({**UP, A: {HEAD: "active", VLLM: "failed"}}, why="ValueError: no such model")
        found = after(state(Phase.STARTING, stage=2), seen)
        assert found.reason == "lab-a: sparkstack-vllm ended: ValueError: no such model"
        assert (found.phase, found.serial, found.not_before) == (Phase.STOPPING, 8, NOW + 2)

    def test_what_vllm_says_comes_last_it_is_often_the_echo(self) -> None:
        found = after(state(Phase.STARTING, stage=2), reports(ENDED, why="x"))
        assert found.reason.startswith("lab-b: ")
        assert found.reason.count("ended: x") == 3

    def test_a_start_that_takes_too_long_names_what_was_not_ready(self) -> None:
        found = after(
            state(Phase.STARTING, stage=2, since=NOW - 301), reports({**UP, A: {HEAD: "active", VLLM: "activating"}})
        )
        assert (found.phase, found.reason) == (Phase.STOPPING, "lab-a: sparkstack-vllm was not ready within 300 s")

    def test_a_node_that_falls_silent_is_a_failure(self) -> None:
        found = after(state(Phase.STARTING), {A: reports(UP)[A]})
        assert (found.phase, found.reason) == (Phase.STOPPING, "lab-b is silent for 12 s")

    def test_with_the_last_stage_up_it_serves(self) -> None:
        found = after(state(Phase.STARTING, stage=2), reports(UP))
        assert (found.phase, found.since, found.served) == (Phase.SERVING, NOW, NOW)

    def test_a_report_from_before_the_order_is_neither_up_nor_a_failure(self) -> None:
        before = state(Phase.STARTING, stage=2)
        assert after(before, reports(UP, serial=6)) == before
        assert after(before, reports(ENDED, serial=6)) == before


class TestServing:
    def test_all_is_well_and_nothing_changes(self) -> None:
        assert after(state(), reports(UP)) == state()

    @pytest.mark.parametrize("active", ["inactive", "failed", "deactivating", "activating"])
    @pytest.mark.parametrize(("node", "name"), [(A, HEAD), (A, VLLM), (B, WORKER)])
    def test_any_rank_that_is_not_up_ends_all_of_it(self, node: str, name: str, active: str) -> None:
        found = after(state(), reports({**UP, node: {**UP[node], name: active}}))
        assert (found.phase, found.serial) == (Phase.STOPPING, 8)
        assert found.reason == f"{node}: {name} is {active}"
        assert [order_for(found, WANTED, one).run for one in (A, B)] == [(), ()]

    def test_a_rank_that_is_gone_ends_all_of_it_though_its_unit_runs(self) -> None:
        gone = {WORKER: Unit("active", lost="its rank ray::RayWorkerProc (process 8) is gone")}
        found = after(state(), reports(UP, lab_b={"units": gone}))
        assert found.phase is Phase.STOPPING
        assert found.reason == f"lab-b: {WORKER}: its rank ray::RayWorkerProc (process 8) is gone"

    def test_while_it_starts_ranks_may_come_and_go(self) -> None:
        gone = {WORKER: Unit("active", lost="its rank ray::RayWorkerProc (process 8) is gone")}
        found = after(state(Phase.STARTING, stage=1), reports(UP, lab_b={"units": gone}))
        assert found.phase is Phase.STARTING

    def test_a_silent_node_ends_all_of_it(self) -> None:
        found = after(state(), reports(UP, lab_b={"at": NOW - 12.1}))
        assert (found.phase, found.reason) == (Phase.STOPPING, "lab-b is silent for 12 s")
        assert after(state(), reports(UP, lab_b={"at": NOW - 12})) == state()

    def test_a_node_that_was_rebooted_ends_all_of_it(self) -> None:
        found = after(state(), reports(UP, lab_b={"serial": 0, "started": frozenset()}))
        assert (found.phase, found.reason) == (Phase.STOPPING, "lab-b was started anew")

    def test_a_node_with_another_service_ends_all_of_it(self) -> None:
        found = after(state(), reports(UP, lab_b={"generation": "g2"}))
        assert (found.phase, found.reason) == (Phase.STOPPING, "lab-b has another configuration")

    def test_failures_are_forgotten_when_it_has_served_long_enough(self) -> None:
        row = (Failure(1, "x"),)
        assert after(state(row=row, since=NOW - 600), reports(UP)).row == row
        found = after(state(row=row, failures=row, since=NOW - 601), reports(UP))
        assert (found.row, found.failures) == ((), row)


class TestNodesWithoutAPart:
    """With mp there may be fewer ranks than nodes."""

    ALONE = replace(WANTED, stages=({A: VLLM},))

    @pytest.mark.parametrize("spare", [{}, {B: replace(reports(UP)[B], at=NOW - 100, units={}, memory=0)}])
    def test_they_may_be_silent_and_full(self, spare: dict[str, Seen]) -> None:
        up, down = reports({A: {VLLM: "active"}}), reports({A: {VLLM: "inactive"}})
        serves = state(stage=0)
        assert step(serves, self.ALONE, {**up, **spare}, NOW) == serves
        assert step(first(NOW, 5), self.ALONE, {**up, **spare}, NOW).phase is Phase.STOPPING
        assert step(state(Phase.STOPPING), self.ALONE, {**down, **spare}, NOW).phase is Phase.RESTING
        assert step(state(Phase.RESTING), self.ALONE, {**down, **spare}, NOW).phase is Phase.STARTING


class TestFailures:
    def failed(self, row: int, *, served: float | None = 1, reason: str = "x") -> State:
        before = state(served=served, row=tuple(Failure(n, reason) for n in range(row)))
        return after(before, reports({**UP, B: {WORKER: "failed"}}, why="x"))

    def test_each_rest_is_longer_than_the_last_and_the_longest_stays(self) -> None:
        limits = replace(LIMITS, attempts=9)
        found = [
            step(
                state(served=1.0, row=tuple(Failure(n, "x") for n in range(row))),
                replace(WANTED, limits=limits),
                reports({**UP, B: {WORKER: "failed"}}),
                NOW,
            ).not_before
            - NOW
            for row in range(5)
        ]
        assert found == [2, 10, 30, 30, 30]

    def test_as_many_in_a_row_as_the_cluster_says_end_it(self) -> None:
        assert [self.failed(row).over for row in range(3)] == [False, False, True]
        assert self.failed(2).reason == f"given up after 3 failures in a row: lab-b: {WORKER} ended: x"

    def test_what_never_served_and_fails_twice_alike_is_not_tried_again(self) -> None:
        reason = f"lab-b: {WORKER} ended: x"
        assert self.failed(1, served=None, reason=reason).over
        assert not self.failed(1, served=None, reason="another").over
        assert not self.failed(1, served=5.0, reason=reason).over

    def test_a_node_that_is_silent_twice_says_nothing_of_the_configuration(self) -> None:
        """After a power cut nothing has served yet, and a cable may flap."""
        silent = Failure(NOW - 20, "lab-b is silent for 12 s")
        found = after(state(Phase.STARTING, row=(silent,)), {A: reports(UP)[A]})
        assert not found.over

    def test_only_the_last_failures_are_kept(self) -> None:
        before = state(served=1.0, failures=tuple(Failure(n, "x") for n in range(KEPT)))
        found = after(before, reports({**UP, B: {WORKER: "failed"}}))
        assert len(found.failures) == KEPT
        assert found.failures[-1] == Failure(NOW, f"lab-b: {WORKER} is failed")


def test_given_up_stays_given_up_whatever_the_nodes_say() -> None:
    before = state(Phase.GIVEN_UP)
    assert [after(before, seen) for seen in ({}, reports(UP), reports(ENDED))] == [before] * 3
    assert order_for(before, WANTED, A).run == ()


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase not in (Phase.STARTING, Phase.SERVING)])
def test_no_unit_is_ordered_but_while_it_starts_or_serves(phase: Phase) -> None:
    assert [order_for(state(phase, stage=2), WANTED, node).run for node in (A, B)] == [(), ()]
