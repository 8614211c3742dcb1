"""The doctor on two machines: well, and with one fault each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from core.errors import UnfitNode
from lab import lifecycle
from tests.machines.command_line import CommandLine, Ended
from tests.machines.harness import Lab, eventually

pytestmark = pytest.mark.machines

A, B = "test-a", "test-b"


@pytest.fixture(autouse=True)
def nothing_serves(invoke: CommandLine) -> None:
    invoke.works("stop")


def asked(invoke: CommandLine) -> tuple[Ended, dict[str, Any]]:
    done = invoke("doctor", "--json")
    data: dict[str, Any] = json.loads(done.out)
    return done, data


def problems(data: dict[str, Any]) -> set[tuple[str, str]]:
    return {(one["check"], one["node"]) for one in data["findings"] if one["severity"] == "problem"}


def test_machines_that_are_well_can_serve(invoke: CommandLine) -> None:
    done, data = asked(invoke)
    assert data["serves"], str(done)
    assert problems(data) == set()
    assert done.seconds < 3


def test_a_doctor_changes_nothing(lab: Lab, invoke: CommandLine) -> None:
    for name in (A, B):
        lab.output(name, "touch /tmp/mark")
    invoke("doctor")
    for name in (A, B):
        assert lab.output(name, "find /opt /etc /home -newer /tmp/mark 2>/dev/null; rm /tmp/mark") == ""


def test_a_cable_that_is_out_is_found_on_both_ends(lab: Lab, invoke: CommandLine) -> None:
    lifecycle.cut(lab.cluster, A, lab.said.append)
    try:
        done, data = asked(invoke)
    finally:
        lifecycle.heal(lab.cluster, A, lab.said.append)
    assert done.code == UnfitNode.exit_code
    assert ("reachability", B) in problems(data)
    assert ("fabric address", A) in problems(data)
    assert eventually(lambda: problems(asked(invoke)[1]) == set(), 15)


def test_ends_of_different_mtu_are_found(lab: Lab, invoke: CommandLine) -> None:
    lab.as_root(B, "ip link set fab0 mtu 1400")
    try:
        found = problems(asked(invoke)[1])
    finally:
        lab.as_root(B, "ip link set fab0 mtu 1500")
    assert found == {("MTU", B)}


@contextmanager
def running(lab: Lab, name: str, command: str) -> Iterator[None]:
    """Run something on a machine beside the test; it is ended by its own number."""
    pid = lab.output(name, f"nohup {command} >/dev/null 2>&1 & echo $!")
    try:
        yield
    finally:
        lab.output(name, f"kill {pid}")


def test_a_port_of_ray_that_is_taken_is_found(lab: Lab, invoke: CommandLine) -> None:
    with running(lab, B, "python3 -m http.server 6379"):
        assert problems(asked(invoke)[1]) == {("ports", B)}


def test_a_ray_that_is_not_ours_is_named_and_left_alone(lab: Lab, invoke: CommandLine) -> None:
    with running(lab, B, "python3 -c 'import time; time.sleep(600)' /x/raylet"):
        _, data = asked(invoke)
        (found,) = [one for one in data["findings"] if one["check"] == "other Ray or vLLM"]
        assert f"of user {lab.cluster.user} looks like Ray or vLLM" in found["finding"]
        assert lab.output(B, "pgrep -c -f /x/[r]aylet") == "1"
