"""Whatever befalls the nodes: they run one try at a time, all of it or none, and serve again when it has passed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.onnode.decide import Phase
from tests.unit.simulated_nodes import LATE, LIMITS, A, B, World

EXECUTORS = ["ray", "mp"]
FAULTS = ["cut", "end", "reboot", "memory", "other service", "hang"]
OF_WORKERS = ("cut", "other service")
FAULT = st.tuples(st.integers(0, 40), st.sampled_from(FAULTS), st.sampled_from([A, B]), st.integers(1, 40)).filter(
    lambda fault: fault[2] == B or fault[1] not in OF_WORKERS
)
"""Seconds until it comes, what it is, where, and how long it lasts."""


def check(world: World, before: Phase) -> None:
    """Hold what has to be true after every turn."""
    state = world.state
    for name, node in world.nodes.items():
        reached = name == A or world.now >= world.cut_until
        if reached and node.generation == "g1":
            assert set(node.running().values()) <= {state.serial}, f"{name} runs what another try has started"
    if state.phase is Phase.STARTING and before is not Phase.STARTING:
        for name, node in world.nodes.items():
            assert world.told_nothing.get(name, 0) > 0, f"{name} was never told to run nothing"
            assert not node.running() or set(node.running().values()) == {state.serial}, f"{name} was not empty"
    if state.phase in (Phase.STOPPING, Phase.RESTING, Phase.WAITING, Phase.GIVEN_UP):
        assert not world.nodes[A].running(), "the head's units end at once"


def play(world: World, faults: list[tuple[int, str, str, int]]) -> None:
    for pause, fault, node, seconds in faults:
        for _ in range(pause):
            before = world.state.phase
            world.turn()
            check(world, before)
        world.befall(fault, node, seconds)


@pytest.mark.parametrize("executor", EXECUTORS)
@settings(max_examples=60)
@given(faults=st.lists(FAULT, max_size=6))
def test_after_any_faults_it_serves_with_one_try_on_all_nodes_or_says_why_not(
    executor: str, faults: list[tuple[int, str, str, int]]
) -> None:
    world = World(executor)
    play(world, faults)
    for _ in range(400):
        before = world.state.phase
        world.turn()
        check(world, before)
    state = world.state
    assert state.phase in (Phase.SERVING, Phase.GIVEN_UP), f"{state.phase}: {state.reason}"
    if state.phase is Phase.SERVING:
        assert [node.running() for node in world.nodes.values()] == [
            dict.fromkeys(node.names, state.serial) for node in world.nodes.values()
        ]
    else:
        alike = len({failure.reason for failure in state.row[-2:]}) == 1
        assert len(state.row) == LIMITS.attempts or (alike and state.served is None)
        assert not any(node.running() for node in world.nodes.values())


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    ("fault", "node"), [(fault, node) for fault in FAULTS for node in (A, B) if node == B or fault not in OF_WORKERS]
)
def test_one_fault_of_a_service_that_serves_is_overcome_soon(executor: str, fault: str, node: str) -> None:
    world = World(executor)
    assert world.settle() is Phase.SERVING
    first = world.state
    world.befall(fault, node, 30)
    began = world.now
    for _ in range(30):
        before = world.state.phase
        world.turn()
        check(world, before)
    assert world.settle() is Phase.SERVING
    if fault in ("end", "reboot", "cut", "other service"):
        assert world.state.serial > first.serial, "all of it was started anew"
    assert world.now - began < 30 + LIMITS.lost + LIMITS.delays[0] + 20


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("seconds", range(1, 40))
def test_a_cable_that_was_out_for_any_time_leaves_no_rank_of_an_earlier_try(executor: str, seconds: int) -> None:
    """A worker notices a little later than the head that they are apart: its ranks may still run when it is back."""
    world = World(executor)
    assert world.settle() is Phase.SERVING
    world.befall("cut", B, seconds)
    for _ in range(seconds + LATE):
        before = world.state.phase
        world.turn()
        check(world, before)
    assert world.settle() is Phase.SERVING
    for node in world.nodes.values():
        assert node.running() == dict.fromkeys(node.names, world.state.serial)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_short_cut_is_not_even_noticed(executor: str) -> None:
    world = World(executor)
    world.settle()
    before = world.state
    world.befall("cut", B, 5)
    for _ in range(20):
        world.turn()
    assert world.state == before


def test_what_always_ends_is_given_up_after_growing_rests() -> None:
    world = World("ray")
    world.settle()
    rests: list[float] = []
    while world.state.phase is not Phase.GIVEN_UP:
        if world.state.phase is Phase.SERVING:
            world.befall("end", B, 0)
        before = world.state
        world.turn()
        if len(world.state.row) > len(before.row):
            rests.append(world.state.not_before - world.now)
    assert rests == [2, 5, 10, 10][: LIMITS.attempts]
    assert world.state.reason.startswith("given up after 4 failures in a row: lab-b: ray-worker ended")
    assert not any(node.running() for node in world.nodes.values())


def test_failures_far_apart_never_add_up() -> None:
    world = World("ray")
    for _ in range(2 * LIMITS.attempts):
        assert world.settle() is Phase.SERVING
        for _ in range(int(LIMITS.stable) + 2):
            world.turn()
        assert world.state.row == ()
        world.befall("end", B, 0)
        world.turn()
    assert len(world.state.failures) == 2 * LIMITS.attempts


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("order", [(A, B), (B, A)])
def test_nodes_that_boot_in_any_order_end_in_a_service(executor: str, order: tuple[str, str]) -> None:
    world = World(executor)
    world.settle()
    for node in order:
        world.befall("reboot", node, 0)
        for _ in range(25):
            world.turn()
    assert world.settle() is Phase.SERVING
